"""What a training step of each row costs, as a multiple of KD's: every registered row on a thin and a wide pair, batch 64, one thread.

A round goes through all rows. Its batch and the teacher's outputs on it are made once and timed by themselves; then each row takes its step on
them (its draws, forward pass, loss, backward pass, SGD). A row's time is that step's, the batch's, and the teacher's where the row reads
outputs of it: an engine on the CPU does these one after the other. KD takes a step again after every few rows, and the mean of these counts.
Printed are medians over rounds of the ratio to KD within the round, on the process's CPU time and, beside it, by the clock. AB and FSP have two
lines: what they train before the main stage is another step.

Goals are for a quiet machine; what is asserted is three times as loose. KD_BENCH_ROUNDS sets the rounds (default 3 and 1, after one that does
not count; 1: only one, not warmed up, of KD and the rows that have a goal, the wide pair's on a batch of 16). The images are 50,000, random
where KD_BENCH_DATA names none: CRD's banks have a row for each.
"""

import contextlib
import os

import pytest
import torch

from bench.data import augment
from bench.train.context import Context
from bench.train.engine import Native
from bench.train.learner import Learner, teacher_forward
from methods import registry
from methods.base import NOTHING, Batch
from methods.crd import CRD, contrastive_loss, scores
from models import folded, native
from models.randomness import generator
from tests.benchmarks.alone import BATCH, PRECISION, learner, members, peak_memory, untrained
from tests.benchmarks.sides import SEED, images
from tests.benchmarks.timing import ONCE, SLACK, STEP_IMAGES, Times, at_most, ratio, timed, total

IMAGES = 50_000
THIN, WIDE = ("resnet56", "resnet20"), ("resnet32x4", "resnet8x4")
ROUNDS = {THIN: int(os.environ.get("KD_BENCH_ROUNDS", "3")), WIDE: int(os.environ.get("KD_BENCH_ROUNDS", "1"))}
SIZE = {THIN: BATCH, WIDE: STEP_IMAGES}
GOALS = dict.fromkeys(("pkt", "nst", "dkd", "dist", "kd_ls", "wttm", "ickd"), 1.1) | dict.fromkeys(("vid", "ft", "crd"), 1.4) | {"reviewkd": 1.6}
OF_THIN = {"skd": 0.65, "iep": 2.4}
"""Goals on resnet56 -> resnet20 alone."""
BEFORE = " (before)"
KD_EVERY = 6
"""Rows between two steps of KD."""


@pytest.fixture(scope="module")
def dataset():
    return images(IMAGES)


def learners_of(context: Context, student: str, names: tuple[str, ...]) -> dict[str, Learner]:
    """The rows that can do the pair, and the stage before the main one of those that have one."""
    found = {}
    for member in members(context, student, names):
        if member.skipped is None:
            found[member.run.method] = learner(context, member, batches=1)
            if member.pretraining():
                found[member.run.method + BEFORE] = learner(context, member, before=True)
    for one in found.values():
        one.start(context.images.train_labels)
    return found


class Rounds:
    """Rounds over the rows, and the times of their parts."""

    def __init__(self, context: Context, rows: dict[str, Learner], size: int) -> None:
        self.data, self.rows, self.size = context.images, rows, size
        self.draws, self.start = augment.draws(SEED, 1, len(context.dataset.train_labels)), 0
        self.switched_on = native.switched_on if context.engine is Native else contextlib.nullcontext
        self.teacher, self.needs = folded(context.teacher()), NOTHING
        for one in rows.values():
            self.needs = self.needs | one.teacher_needs
        self.times: dict[str, list[Times]] = {name: [] for name in ("batch", "teacher", *rows)}

    def run(self) -> None:
        with self.switched_on():
            self._run()

    def _run(self) -> None:
        index, d, start = self.draws.order[self.start : self.start + self.size], self.draws, self.start
        self.start += self.size
        made: list = []
        self.times["batch"].append(timed(lambda: made.append(self.data.train_batch(index, d.dy, d.dx, d.flip))))
        self.times["teacher"].append(timed(lambda: made.append(teacher_forward(self.teacher, made[0], self.needs, PRECISION))))
        (pictures, outputs), batch = made, Batch(self.data.train_labels[index], index)

        def step(one: Learner) -> None:
            if one.draws_in_steps:
                one.begin_step(index, start)
            one.step(pictures, outputs if one.teacher_needs else None, batch, start)

        kd: list[Times] = []
        for place, (name, one) in enumerate(self.rows.items()):
            if place % KD_EVERY == 0:
                kd.append(timed(lambda: step(self.rows["kd"])))
            if name != "kd":
                self.times[name].append(timed(lambda one=one: step(one)))
        cpu, wall = total(kd)
        self.times["kd"].append((cpu / len(kd), wall / len(kd)))

    def whole(self, name: str) -> list[Times]:
        """A row's whole step in each round that counts."""
        parts = [self.times["batch"], self.times[name], *([self.times["teacher"]] if self.rows[name].teacher_needs else [])]
        return [total(list(times)) for times in zip(*parts, strict=True)][0 if ONCE else 1 :]


@pytest.mark.parametrize("pair", [THIN, WIDE], ids="-".join)
def test_step_of_each_row(benchmark, capsys, one_thread, dataset, pair):
    context = untrained(dataset, pair[0], engine="auto")
    goals = GOALS | (OF_THIN if pair == THIN else {})
    rounds = Rounds(context, learners_of(context, pair[1], ("kd", *goals) if ONCE else tuple(registry.names())), SIZE[pair])
    if not ONCE:
        rounds.run()
    benchmark.pedantic(rounds.run, rounds=ROUNDS[pair], iterations=1)
    costs = {name: ratio(rounds.whole(name), rounds.whole("kd")) for name in rounds.rows}
    with capsys.disabled():
        print(f"\n\n{pair[0]} -> {pair[1]}, engine {context.engine.name}, {ROUNDS[pair]} round(s); step / KD's{'goal':>11}{'CPU':>8}{'wall':>8}")
        for name, (cpu, wall) in sorted(costs.items(), key=lambda item: -item[1][0]):
            print(f"{name:<64}{goals.get(name, ''):>8}{cpu:>8.3f}{wall:>8.3f}")
    nightly = {name: {"target": goal, "cpu": costs[name][0], "wall": costs[name][1]} for name, goal in goals.items()}  # these are watched
    benchmark.extra_info |= nightly | {"others": {name: cpu for name, (cpu, _) in costs.items() if name not in goals}}
    assert all(one.finite() for one in rounds.rows.values()), [name for name, one in rounds.rows.items() if not one.finite()]
    assert not {name: costs[name] for name, goal in goals.items() if costs[name][0] > SLACK * goal}


def gathered(embedding: torch.Tensor, bank: torch.Tensor, places: torch.Tensor, temperature: float) -> torch.Tensor:
    """`methods.crd.scores` the reference way: all rows of the bank that are scored are copied first, (B, 1 + K, D)."""
    rows = bank.index_select(0, places.flatten()).unflatten(0, places.shape)
    return (torch.bmm(rows, embedding.unsqueeze(2)).squeeze(2) / temperature).exp()


def test_contrast_of_crd_against_gathers(benchmark, capsys, one_thread):
    """Scores of a batch against both banks, their loss and its gradient."""
    g = generator(0, "crd")
    banks, embeddings = ([torch.nn.functional.normalize(torch.randn(n, 128, generator=g)) for _ in range(2)] for n in (IMAGES, BATCH))
    places = torch.stack([torch.randperm(IMAGES, generator=g)[: 1 + CRD.Hyper().negatives] for _ in range(BATCH)])
    for e in embeddings:
        e.requires_grad_()

    def contrast(way) -> list[torch.Tensor]:
        sides = []
        for e, bank in zip(embeddings, banks, strict=True):
            found = way(e, bank, places, 0.07)
            sides.append(contrastive_loss(found / (found.detach().mean() * IMAGES), IMAGES))
        return torch.autograd.grad(sum(sides), embeddings)

    ours, theirs = contrast(scores), contrast(gathered)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)  # the same work
    a: list[Times] = []
    b: list[Times] = []
    gathers = lambda: b.append(timed(lambda: contrast(gathered)))  # noqa: E731
    benchmark.pedantic(lambda: a.append(timed(lambda: contrast(scores))), setup=gathers, rounds=ROUNDS[THIN], iterations=1)
    at_most(capsys, benchmark, [("CRD's contrast by a product / by gathers of 16,385 rows", 1 / 10, *ratio(a, b))])


def test_memory_of_crd(capsys):
    """Peak of a step beside KD's, each in a process of its own, and the two banks."""
    kd, crd = (peak_memory(*THIN, name, IMAGES) for name in ("kd", "crd"))
    banks = 2 * IMAGES * CRD.Hyper().dimensions * 4
    with capsys.disabled():
        print(f"\npeak of a step: KD {kd / 2**20:.0f} MiB, CRD {crd / 2**20:.0f} MiB, beside its banks {(crd - banks) / kd:.2f} times (goal 2)")
    assert crd - banks <= SLACK * 2 * kd
