"""What is to be run, and what names it.

Ask it for protocols, pairs and profiles, the plan of a selection, the identity of a run, the members of a group.
It may use bench.errors, bench.text, bench.options, and the registries of methods and models.
"""
