"""What people read: statistics, tables, figures, the page, exports.

Ask it for the report of a results folder; `python -m bench.report` writes it.
It may use nightly's history, store and plan, and no torch.
"""
