"""What analyses cost, as ratios measured in one run: dissect of the three stages of a resnet56 against one evaluation pass over the same images,
quantify against the bare passes, forward and backward, over as many noisy images.

The sides take turns on one thread; the ratio is the median over rounds on the process's CPU time (the clock's is printed beside it). The networks
are untrained, the probe is CIFAR-100's (colours of pixels, classes of images) on drawn images. KD_BENCH_ROUNDS sets the rounds (default 2, after
one that does not count; 1: only one, not warmed up, of fewer images).
"""

import os

import torch

from bench.analysis import quantify
from bench.analysis.dissect import Options
from bench.analysis.frame import registry, subjects
from bench.analysis.frame.context import obtain
from bench.plan.protocols import Protocol
from bench.train.learner import evaluate
from tests.bench.analysis import small
from tests.benchmarks.timing import ONCE, at_most, ratio, timed

ROUNDS = int(os.environ.get("KD_BENCH_ROUNDS", "2"))
IMAGES = 300 if ONCE else 1000
PROTOCOL = Protocol("analyses", dataset="shapes100", train_images=100, test_images=IMAGES, image_size=32)


def test_dissect_against_an_evaluation(benchmark, capsys, one_thread, tmp_path):
    images = small.cifar_like(small.dataset(PROTOCOL))
    small.add_teacher(tmp_path, images, "resnet56")
    subject = subjects.teacher(tmp_path, images.name, "resnet56")
    context = small.context(tmp_path, images, [subject])
    network, dissect = context.network(subject), registry.get("dissect")
    ours, theirs = [], []

    def turn() -> None:
        theirs.append(timed(lambda: evaluate(network, context.images.test_batches(100), "fp32")))
        # Another quantile each time: a result that is there is not made again.
        ours.append(timed(lambda: obtain(dissect(Options(quantile=0.005 + 1e-6 * len(ours))), context)))

    if not ONCE:
        turn()
        ours.clear()
        theirs.clear()
        (tmp_path / "analysis").rename(tmp_path / "warm-up")
    benchmark.pedantic(turn, rounds=ROUNDS, iterations=1)
    at_most(capsys, benchmark, [("dissect, three stages / one evaluation pass", 3.0, *ratio(ours, theirs))])


def test_quantify_against_bare_passes(benchmark, capsys, one_thread, tmp_path):
    """A few images of the teacher and one student, with the options people get; printed beside it what 50 images of 8 snapshots would take."""
    few, networks = 2 if ONCE else 4, 2
    images = small.dataset()  # 16 pixels
    given = small.subjects_of(tmp_path, images, students=1)
    context = small.context(tmp_path, images, given)
    analysis, bare = registry.get("quantify"), small.network(small.STUDENT, "bare")
    ours, theirs = [], []

    def passes(o: quantify.Options) -> None:
        noisy = torch.randn(few * o.draws, 3, images.image_size, images.image_size).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(networks * o.steps):
            torch.autograd.grad(bare(noisy).embedding.square().sum(), noisy)

    def turn() -> None:
        # Another target each time: a result that is there is not made again.
        options = quantify.Options(images=few, learning=False, target=-2.8 + 1e-6 * len(ours))
        theirs.append(timed(lambda: passes(options)))
        ours.append(timed(lambda: obtain(analysis(options), context)))

    warm = 0 if ONCE else 1
    benchmark.pedantic(turn, rounds=ROUNDS, iterations=1, warmup_rounds=warm)
    at_most(capsys, benchmark, [("quantify / forward and backward passes over as many images", 1.3, *ratio(ours[warm:], theirs[warm:]))])
    each = min(ours[warm:])[0] / (few * networks)
    with capsys.disabled():
        print(f"50 images, 8 snapshots and the teacher: {each * 50 * 9:.0f} CPU s (goal 600, aim 300)")
