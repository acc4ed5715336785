"""No step reads the host, has a shape that depends on data, crosses between host and device, or lacks a deterministic algorithm on CUDA: every
method, alone and in a group, and every network."""

import contextlib

import pytest
import torch

import models
from bench.data import augment
from bench.train.engine import Eager
from methods import registry
from models.outputs import KINDS
from tests.bench import groups
from tests.bench.capture_safe import CaptureSafe, NotCapturable
from tests.bench.groups import CPU

META = torch.device("meta")
FULL, SMALL = (64, 16), (16, 4)
"""A batch and its remainder: of all methods together, and of one alone."""
every = pytest.mark.parametrize("name", registry.names())


@pytest.fixture(autouse=True)
def as_a_run_is():
    """Deterministic algorithms are asked for by few runs, and torch then takes other ways: what a test before left on would hide what is found."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


def prepare(names, device=CPU, precision="tf32", sizes=SMALL):
    """An engine with these learners on the device, one epoch begun and the draws made for a step of each size (what is set up once is not a
    step's)."""
    learners = [groups.learner(name, precision=precision) for name in names]
    images = groups.images(sum(sizes))
    for one in learners:
        one.start(images.train_labels)
        one.begin_epoch(1)
        for start, stop in groups.bounds(sum(sizes), sizes[0]):  # draws for a step are made outside of what is captured
            if one.draws_in_steps:
                one.begin_step(torch.arange(start, stop), start)
    runner = Eager(augment.Augmenter(images, device, channels_last=True), groups.teacher(device), learners, precision)
    for one in learners:
        if device == META:
            to_meta(one)
    runner.begin_epoch(augment.draws(1, 1, sum(sizes)))
    return runner


def to_meta(one) -> None:
    """Move a learner where no numbers are, its optimiser's state too."""
    one.student.to(META)
    one.method.to(META)
    one.parameters = [p for m in (one.student, one.method) for p in m.parameters() if p.requires_grad]
    one.optimizer = torch.optim.SGD(one.parameters, lr=0.1, momentum=0.9, fused=True)
    one.optimizer._need_device_dtype_check_for_fused = False
    one.optimizer.param_groups[0]["lr"] = torch.empty((), device=META)
    for p in one.parameters:
        one.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def steps(runner, sizes=SMALL, on_meta=False) -> int:
    """A step on the batch and one on its remainder, where sizes say that there is one; the fewest operations a learner that a step was seen with."""
    draw, seen = runner.draw, []
    for start, stop in groups.bounds(sum(sizes), sizes[0]):
        if not on_meta:  # draws for a step are made outside of what is captured
            assert draw(runner.draws.order[start:stop], start) == []
        runner.draw = lambda index, start: []
        with CaptureSafe(on_meta) as mode:
            for _, error in runner.step(start, stop):
                raise error
        seen.append(mode.seen)
    return min(seen) // len(runner.learners)


@every
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_no_method_reads_the_host(name, precision):
    assert steps(prepare([name], precision=precision)) >= 100


@pytest.fixture
def meta_autocast(monkeypatch):
    """Autocast does not know the device: inside its scope nothing changes there."""
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: contextlib.nullcontext() if kind == "meta" else real(kind, *a, **k))


@every
def test_no_method_crosses_between_host_and_device(name, meta_autocast):
    only = SMALL[:1]  # the remainder of each is a step of the group's
    assert steps(prepare([name], META, sizes=only), only, on_meta=True) >= 100


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_the_group_as_a_whole(device, meta_autocast):
    capturable = [name for name in registry.names() if registry.get(name).capturable]
    assert steps(prepare(capturable, device, sizes=FULL), FULL, on_meta=device == META) >= 100


@pytest.mark.parametrize("name", models.names())
def test_every_network(name):
    """Forward and backward with all its maps."""
    network = models.build(name, 100).to(META).train()
    with CaptureSafe(on_meta=True) as mode:
        outputs = network(torch.zeros(4, 3, 32, 32, device=META), KINDS)
        sum(m.sum() for group in outputs.maps.values() for m in group).add(outputs.logits.sum()).add(outputs.embedding.sum()).backward()
    assert mode.seen > 100


FORBIDDEN = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0, 0]),
    "branch": lambda x: x if x.sum() > 0 else -x,
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "where": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "eigh": lambda x: torch.linalg.eigh(x @ x.T),
    "repeat": lambda x: torch.arange(4, device=x.device).repeat_interleave(torch.ones(4, dtype=torch.int64, device=x.device)),
    "running sum": lambda x: x.cumsum(0),
    "median": lambda x: x.median(0),
    "pooled": lambda x: torch.nn.functional.adaptive_avg_pool2d(x[None, None].clone().requires_grad_(), 3).sum().backward(),
    "resized": lambda x: torch.nn.functional.interpolate(x[None, None].clone().requires_grad_(), (5, 5), mode="bilinear").sum().backward(),
    "put": lambda x: x.clone().index_put_((x > 0,), x[0, :1].expand(2)),
}
CROSSING = {
    "to the host": lambda x: x.cpu(),
    "made on the host": lambda x: x @ torch.eye(8).to(x.device),
    "list index": lambda x: x[:, torch.tensor([0, 1])],
    "constant": lambda x: x + torch.tensor([1.0, 2.0] * 4, device=x.device),
    "new on the host": lambda x: torch.zeros(8).sum(),
    "scalar to the device": lambda x: x * torch.tensor(2.0).to(x.device),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_mode_finds(what):
    with pytest.raises(NotCapturable), CaptureSafe():
        FORBIDDEN[what](torch.ones(8, 8))


@pytest.mark.parametrize("what", [n for n in FORBIDDEN if n not in ("put",)] + list(CROSSING))
def test_the_mode_finds_on_the_device_that_is_not_there(what):
    with pytest.raises(NotCapturable), CaptureSafe(on_meta=True):
        {**FORBIDDEN, **CROSSING}[what](torch.ones(8, 8, device="meta"))


def test_the_mode_lets_pass():
    for device in ("cpu", "meta"):
        x = torch.ones(8, 8, device=device, requires_grad=True)
        with CaptureSafe(on_meta=device == "meta") as mode:
            y = torch.where(x > 0, x, 0.0) * torch.tensor(2.0) + torch.eye(8, device=device)
            y.masked_fill(y > 1, 0.5).gather(1, torch.zeros(8, 1, dtype=torch.int64, device=device)).sum().backward()
            x.detach()[x.detach() > 3] = 1.0
            x.detach().long().cumsum(0), x.detach().median()
        assert mode.seen > 10 and x.grad is not None


def test_gradients_are_watched_too():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    y = Reads.apply(torch.ones(3, requires_grad=True)).sum()
    with pytest.raises(NotCapturable, match="_local_scalar_dense"), CaptureSafe():
        y.backward()
