"""What is on disk: atomic files, typed records, runs, teachers, leases.

Ask it for a path or a record; it writes whole files or none and says what cannot be trusted.
It may use plan, and no torch (but in weights).
"""
