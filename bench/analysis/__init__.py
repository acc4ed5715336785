"""What the networks know: one file an analysis, registered like a method.

Ask it for an analysis by name.
It may use measure, train, data, store and plan.
"""
