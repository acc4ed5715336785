"""The suite's losses against those of the reference way, step by step: both sides of the speed comparison do the same training.

In double precision, because training amplifies the last bit of a float: after 20 steps from untrained weights two correct
single-precision runs differ in the third digit. The first step is compared in single precision too.
"""

import pytest
import torch

from tests.benchmarks.reference import EIGHT
from tests.benchmarks.sides import Sides, images


def histories(steps: int, dtype: torch.dtype, batch: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Losses of each method on either side, by step."""
    sides = Sides(images(1280), "resnet8", "resnet8", dtype, batch, EIGHT)
    ours: dict[str, list[float]] = {name: [] for name in EIGHT}
    for _ in range(steps):
        sides.clear_losses()
        sides.group_step()
        for name, loss in zip(EIGHT, sides.group_losses(), strict=True):
            ours[name].append(loss)
    return ours, {trainer.method: [trainer.step() for _ in range(steps)] for trainer in sides.trainers}


@pytest.fixture(scope="module")
def ten_steps(one_thread):
    return histories(10, torch.float64, 8)  # small: doubles are slow


@pytest.fixture(scope="module")
def first_step(one_thread):
    return histories(1, torch.float32, 64)


@pytest.mark.parametrize("method", EIGHT)
def test_ten_steps_equal_the_reference(ten_steps, method):
    ours, theirs = (side[method] for side in ten_steps)
    assert len(set(ours)) == 10  # every step saw another batch or other weights
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("method", EIGHT)
def test_first_step_equals_the_reference_in_single_precision(first_step, method):
    ours, theirs = (side[method] for side in first_step)
    assert ours == pytest.approx(theirs, rel=1e-5)
