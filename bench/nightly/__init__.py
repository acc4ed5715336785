"""The nightly: a fixed small plan run again and again, its history, and the alarm that says when accuracy or speed got worse.

`alarm` is the statistics, `noise` what nights differ without cause, `verdict` what a history means tonight, `history` the files, `rows` what
stands in them, `text` what is printed, `trend` the data of the page's figure; none of them imports torch. `measure` runs the plan, `command`
is `python -m bench nightly`.
"""
