"""The suite's losses against those of the reference way, step by step: both sides of the speed comparison do the same training."""

import pytest

from tests.benchmarks.reference import METHODS
from tests.benchmarks.sides import Sides, images

STEPS, TOLERANCE = 20, 1e-4


@pytest.fixture(scope="module")
def histories(one_thread) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    sides = Sides(images(1280), "resnet14", "resnet8")
    ours: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(STEPS):
        for learner in sides.learners:
            learner.clear_sums()
        sides.group_step()
        for name, loss in zip(METHODS, sides.group_losses(), strict=True):
            ours[name].append(loss)
    return ours, {trainer.method: [trainer.step() for _ in range(STEPS)] for trainer in sides.trainers}


@pytest.mark.parametrize("method", METHODS)
def test_losses_equal_the_reference(histories, method):
    ours, theirs = (side[method] for side in histories)
    assert len(set(ours)) == STEPS  # every step saw another batch or other weights
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
