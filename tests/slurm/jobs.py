"""Jobs for a real cluster: training groups slowed down to a known length, so that they can be interrupted without using the machine."""

import time
from pathlib import Path

from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.train.execution import Execution

TINY = Protocol("tiny", dataset="shapes100", epochs=12, milestones=(8,), train_images=200, test_images=100, image_size=16, batch=64)
STEPS = 4 * TINY.epochs


def slow_group(group: Group, seconds: float, execution: Execution, once: bool = False) -> int:
    """run_group with a pause before every step, in all `seconds` for an undisturbed run. `once`: until its first checkpoint is there."""
    from bench.train import engine, group_job

    if once and list(Path(execution.results).glob("groups/*/manifest.json")):
        seconds = 0.0

    step = engine.Eager.step

    def slowly(runner, start, stop):
        time.sleep(seconds / STEPS)
        return step(runner, start, stop)

    engine.Eager.step = slowly
    return group_job.run_group(group, execution)
