"""What parts of SKD and IEP cost, as ratios measured in one run on a CPU, resnet56 -> resnet20 at batch 64 (whole steps: test_row_costs).

Sides take turns; a ratio is the median over rounds of the ratio within a round, on the process's CPU time (both sides on one thread),
with the clock's ratio printed beside it. Targets are for a quiet machine; what is asserted is three times as loose, but for the count of
saved tensors, which is exact. KD_BENCH_ROUNDS sets the rounds (default 6, after one that does not count; 1: only one, not warmed
up, of fewer images).
"""

import os
from collections.abc import Callable

import pytest
import torch

from bench.train.learner import evaluate
from methods.iep.spca import first_component
from methods.skd import Hyper
from methods.skd.embedding import BATCH, Embedding
from methods.skd.loss import skd_loss
from models import shapes
from tests.benchmarks.alone import few, untrained
from tests.benchmarks.sides import images
from tests.benchmarks.timing import ONCE, Times, at_most, ratio, timed

ROUNDS = int(os.environ.get("KD_BENCH_ROUNDS", "6"))
TEACHER, STUDENT = "resnet56", "resnet20"


@pytest.fixture(scope="module")
def context(one_thread):
    return untrained(images(1024), TEACHER)


def against(benchmark, ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> Times:
    """The ratio ours / theirs, taking turns, after a round that does not count where there are several."""
    a: list[Times] = []
    b: list[Times] = []
    if not ONCE:
        ours()
        theirs()
    benchmark.pedantic(lambda: a.append(timed(ours)), setup=lambda: b.append(timed(theirs)), rounds=rounds, iterations=1)
    return ratio(a, b)


def test_first_component_against_svd(benchmark, capsys):
    """On two threads, by the clock: idle threads spin, so CPU time says nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        maps = torch.randn(64, 128, 16, 16, generator=torch.Generator().manual_seed(0)).add_(0.5).relu_()
        matrices = maps.flatten(2).transpose(1, 2).contiguous()
        v = first_component(maps).v
        _, _, right = torch.linalg.svd(matrices[:4], full_matrices=False)
        assert (v[:4] * right[:, 0]).sum(1).abs().min() > 1 - 1e-4  # the same answer
        measured = against(benchmark, lambda: first_component(maps), lambda: torch.linalg.svd(matrices, full_matrices=False), 1 if ONCE else 3)
    finally:
        torch.set_num_threads(before)
    at_most(capsys, benchmark, [("first component / torch.linalg.svd, 64 maps of 128x16x16", 1 / 5, *measured)], counts="wall")


def test_streaming_embedding_against_an_evaluation_pass(benchmark, capsys, context):
    """One pass of stage A over some images against the trainer's own evaluation of the teacher on them."""
    seen, teacher = few(context, 2 if ONCE else 4), context.teacher()
    layers = {f"stage{i}": i for i in range(1, len(shapes(TEACHER).maps["stage"]))}
    embedding = Embedding(layers, Hyper())
    measured = against(
        benchmark, lambda: embedding.stream(teacher, seen), lambda: evaluate(teacher, seen.batches(BATCH), "tf32"), ROUNDS if ONCE else 2 * ROUNDS
    )
    at_most(capsys, benchmark, [("streaming embedding / one evaluation pass of the teacher", 1.2, *measured)])


@pytest.mark.parametrize(("student", "batch"), [(STUDENT, BATCH), ("vgg8", 4)])
def test_loss_block_of_skd_keeps_at_most_three_copies_of_the_relations(student, batch):
    """What autograd keeps for the backward pass, beside the gradient itself (as large as the maps)."""
    maps = [torch.randn(batch, *size, requires_grad=True) for size in shapes(student).maps["stage"][1:]]
    targets = [torch.full((m.shape[1],) * 2, 1 / m.shape[1]) for m in maps]
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        loss = skd_loss(maps, targets)
    loss.backward()
    relations = [(batch, m.shape[1], m.shape[1]) for m in maps]
    assert saved and all(m.grad.abs().max() > 0 for m in maps)
    assert sum(shape in relations for shape in saved) <= 3 * len(relations)
    assert sum(shape.numel() for shape in saved) <= sum(m.numel() for m in maps) + 3 * sum(b * c * c for b, c, _ in relations)
