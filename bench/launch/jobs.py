"""What a submitted job executes. No torch at import: a launcher pickles these by name."""

from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.train.execution import Execution


def run_teacher(architecture: str, protocol: Protocol, seed: int, precision: str, execution: Execution) -> int:
    """Train a teacher under the protocol and publish it in the results folder. Returns an exit code."""
    from bench.train import teacher_training

    return teacher_training.train(architecture, protocol, seed, precision, execution)


def run_group(group: Group, execution: Execution) -> int:
    """Train what is not yet done of a group. Returns an exit code. Raises UsageError for bad input, before anything is written."""
    from bench.train import group_job

    return group_job.run_group(group, execution)
