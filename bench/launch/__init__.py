"""Many groups on many devices.

Ask it to run a plan here or on Slurm, what is left of it, how long it will take, how it stands.
It may use measure, train, data, store and plan.
"""
