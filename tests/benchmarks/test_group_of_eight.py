"""What a group of eight saves, as ratios measured in one run: the rows of the table other than IEP (student, kd, fitnet, at, rkd, sp, cc,
skd), for a thin and a wide pair, in fp32 and bf16.

Sides take turns on one thread: the reference way (fp32), and in each precision the group's step and its floor. A ratio is the median over
rounds of the ratio within a round, on the process's CPU time, which neighbours disturb less than the clock (whose ratio is printed beside
it). The targets are for a quiet machine; what is asserted leaves room for a noisy one. bf16 is left out where the processor has no such
products. KD_BENCH_ROUNDS sets the rounds (default 2, after WARM_UP that do not count: until then new memory comes from the system by
pages, which costs a side of the thin pair up to a fifth of its time; 1: only one, not warmed up, of 16 images).
"""

import os
import statistics

import pytest
import torch

from tests.benchmarks import reference
from tests.benchmarks.sides import Sides, images
from tests.benchmarks.timing import ONCE, STEP_IMAGES, BareSteps, Times, at_most, ratio, timed, total

ROUNDS = int(os.environ.get("KD_BENCH_ROUNDS", "2"))
PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
WARM_UP = dict(zip(PAIRS, (3, 1), strict=True))
OF_FLOOR = 1.05
OF_REFERENCE = {"fp32": 0.50} | ({"bf16": 0.33} if torch.cpu._is_avx512_bf16_supported() else {})


@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids=[f"{t}-{s}" for t, s in PAIRS])
def test_group_of_eight(benchmark, capsys, one_thread, teacher, student):
    dataset = images(2048)
    sides = {name: Sides(dataset, teacher, student, batch=STEP_IMAGES, methods=reference.EIGHT, precision=name) for name in OF_REFERENCE}
    bare = {name: BareSteps(side) for name, side in sides.items()}
    trainers = sides["fp32"].trainers
    groups: dict[str, list[Times]] = {name: [] for name in sides}
    floors: dict[str, list[Times]] = {name: [] for name in sides}
    alone: list[Times] = []

    def turn() -> None:
        for name, side in sides.items():
            groups[name].append(timed(side.group_step))
            floors[name].append(timed(bare[name].run))
        alone.append(total([timed(trainer.step) for trainer in trainers]))

    def check() -> None:
        expected = [trainer.seen[0] for trainer in trainers]
        assert sides["fp32"].group_losses() == pytest.approx(expected, rel=1e-4)  # the same work on both sides
        assert all(side.group_losses() == pytest.approx(expected, rel=0.1) for side in sides.values())

    if not ONCE:
        turn()
        check()
        for _ in range(WARM_UP[teacher, student] - 1):
            turn()
        for times in (*groups.values(), *floors.values(), alone):
            times.clear()
    benchmark.pedantic(turn, rounds=ROUNDS, iterations=1)
    if ONCE:
        check()

    rows = []
    for name, target in OF_REFERENCE.items():
        rows.append((f"{name}: group / (sum of bare steps + one teacher forward)", OF_FLOOR, *ratio(groups[name], floors[name])))
        rows.append((f"{name}: group / eight trained one by one the reference way", target, *ratio(groups[name], alone)))
    seconds = {"reference": alone} | {f"group {name}": times for name, times in groups.items()}
    benchmark.extra_info |= {f"CPU seconds a step, {what}": statistics.median(cpu for cpu, _ in times) for what, times in seconds.items()}
    with capsys.disabled():
        took = ", ".join(f"{what} {statistics.median(cpu for cpu, _ in times):.3f}" for what, times in seconds.items())
        print(f"\n\n{teacher} -> {student}, CPU seconds a step: {took}", end="")
    at_most(capsys, benchmark, rows)
