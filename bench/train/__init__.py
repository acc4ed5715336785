"""One group on one device.

Ask it to set up a training context, train a group, build a preparation, load a teacher.
It may use data, store and plan.
"""
