"""What the networks know: one file an analysis, registered like a method.

Ask it for an analysis by name. A file here registers one analysis and loads neither torch nor a plotting library before it runs or draws, so
that the report can read its results; `maths/` holds the pure functions, `probes/` the annotated images, `frame/` what all analyses share.
It may use measure, train, data, store and plan.
"""
