"""Jobs for a real cluster: training groups slowed down to a known length, so that they can be interrupted without using the machine."""

import time

from bench.jobs import Group, Where
from bench.protocol import Protocol

TINY = Protocol("tiny", dataset="shapes100", epochs=12, milestones=(8,), train_images=200, test_images=100, image_size=16, batch=64)
STEPS = 4 * TINY.epochs


def slow_group(group: Group, seconds: float, where: Where) -> int:
    """bench.jobs.run_group with a pause before every step, in all `seconds` for an undisturbed run."""
    from bench import jobs, train

    step = train.engine.Eager.step

    def slowly(engine, start, stop):
        time.sleep(seconds / STEPS)
        return step(engine, start, stop)

    train.engine.Eager.step = slowly
    return jobs.run_group(group, where)
