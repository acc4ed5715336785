"""What a group of seven saves, as ratios measured in one run: resnet56 -> resnet20, rows student, kd, fitnet, at, rkd, sp, cc.

All sides take turns on one thread. A ratio is the median over rounds of the ratio within a round, on the process's CPU time, which
neighbours disturb less than the clock (whose ratio is printed beside it). The targets are for a quiet machine; what is asserted
leaves room for a noisy one. KD_BENCH_ROUNDS sets the rounds (default 6, after one that does not count).
"""

import os
import statistics

import pytest
import torch

from tests.benchmarks import reference
from tests.benchmarks.sides import Sides, images
from tests.benchmarks.timing import ONCE, BareSteps, Times, at_most, ratio, timed, total

ROUNDS = int(os.environ.get("KD_BENCH_ROUNDS", "6"))


@pytest.mark.skipif(ONCE, reason="one round: the group of eight holds it to the same bounds")
def test_group_of_seven(benchmark, capsys, one_thread):
    sides = Sides(images(2048), "resnet56", "resnet20")
    bare = BareSteps(sides)
    group: list[Times] = []
    floor: list[Times] = []
    alone: list[Times] = []

    def others() -> None:
        floor.append(timed(bare.run))
        alone.append(total([timed(trainer.step) for trainer in sides.trainers]))

    others()
    sides.group_step()
    assert sides.group_losses() == pytest.approx([trainer.seen[0] for trainer in sides.trainers], rel=1e-4)  # the same work on both sides
    floor.clear()
    alone.clear()
    benchmark.pedantic(lambda: group.append(timed(sides.group_step)), setup=others, rounds=ROUNDS, iterations=1)
    at_most(
        capsys,
        benchmark,
        [
            ("group step / (sum of bare steps + one teacher forward)", 1.05, *ratio(group, floor)),
            ("group step / seven trained one by one the reference way", 0.52, *ratio(group, alone)),
        ],
    )


def test_batched_augmentation(benchmark, capsys, one_thread):
    """Batches gathered and augmented at once, against PIL transforms one image at a time."""
    sides = Sides(images(2048), "resnet8", "resnet8")
    pictures = sides.trainers[0].data.dataset
    order = sides.draws.order
    starts = iter(range(0, 2048, reference.BATCH))
    batched: list[Times] = []
    single: list[Times] = []

    def pil() -> None:
        start = next(starts)
        single.append(timed(lambda: torch.stack([pictures[i][0] for i in order[start : start + reference.BATCH].tolist()])))

    def ours() -> None:
        start = (len(single) - 1) * reference.BATCH
        batched.append(timed(lambda: sides.batch(order[start : start + reference.BATCH])))

    pil()
    ours()  # both once, untimed
    batched.clear()
    benchmark.pedantic(ours, setup=pil, rounds=20, iterations=1)
    microseconds = 1e6 * statistics.median(cpu for cpu, _ in batched) / reference.BATCH
    benchmark.extra_info["microseconds per image"] = microseconds
    with capsys.disabled():
        print(f"\n\nbatched augmentation: {microseconds:.1f} us an image", end="")
    at_most(capsys, benchmark, [("batched augmentation / PIL transforms, one core", 0.25, *ratio(batched, single[1:]))])
