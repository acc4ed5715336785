"""The CPU's compiled normalisation: torch's numbers, in float64 the yardstick, and clear words where it cannot be had."""

import copy
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from models import native

ROOT = Path(__file__).parents[2]
needs_native = pytest.mark.skipif(native.reason() is not None, reason=f"no compiled operator here: {native.reason()}")
SHAPES = [(6, 16, 8, 8), (3, 32, 4, 4), (2, 64, 5, 3), (5, 128, 2, 2), (2, 192, 3, 3), (64, 16, 32, 32), (16, 512, 1, 1)]
BELOW = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""The largest error, over the largest value, that the operator may have in each type."""


def case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], nn.BatchNorm2d]:
    """x, the map to add and the incoming gradient, channels last and off centre, and a normalisation with parameters of its own."""
    source = torch.Generator().manual_seed(sum(shape))
    x, add, dy = (torch.randn(shape, generator=source).contiguous(memory_format=torch.channels_last) for _ in range(3))
    norm = nn.BatchNorm2d(shape[1])
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=source)
    return [(3 * x + 5).to(dtype), add.to(dtype), dy.to(dtype)], norm


def everything(norm: nn.BatchNorm2d, x: Tensor, add: Tensor | None, dy: Tensor, relu: bool) -> list[Tensor]:
    """Output, running statistics and all gradients of one training step of the normalisation, in float64."""
    leaves = [t.clone().requires_grad_() for t in (x, add) if t is not None]
    out = native.normalised(norm, *leaves, relu=relu)
    gradients = torch.autograd.grad(out, [*leaves, *norm.parameters()], dy)
    return [t.double() for t in (out, norm.running_mean, norm.running_var, *gradients)]


def furthest(found: list[Tensor], truth: list[Tensor]) -> float:
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, truth, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", BELOW)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_statistics_and_gradients(shape, dtype):
    for with_add, relu in itertools.product((False, True), repeat=2):
        (x, add, dy), norm = case(shape, dtype)
        add = add if with_add else None
        with native.switched_on():
            found = everything(copy.deepcopy(norm), x, add, dy, relu)
        in_double = [t.double() if t is not None else None for t in (x, add)]
        truth = everything(copy.deepcopy(norm).double(), *in_double, dy.double(), relu)
        kink = truth[0].abs() < 1e-2 if relu else torch.zeros_like(truth[0], dtype=torch.bool)
        if kink.any():  # beside the kink of ReLU rounding decides: take the gradient away there, on both sides
            dy = dy.masked_fill(kink, 0).contiguous(memory_format=torch.channels_last)
            with native.switched_on():
                found = everything(copy.deepcopy(norm), x, add, dy, relu)
            truth = everything(copy.deepcopy(norm).double(), *in_double, dy.double(), relu)
        assert furthest(found, truth) < BELOW[dtype], (with_add, relu)


@needs_native
def test_it_is_no_less_exact_than_torch():
    (x, add, dy), norm = case((64, 16, 32, 32), torch.float32)
    truth = everything(copy.deepcopy(norm).double(), x.double(), add.double(), dy.double(), False)
    torchs = furthest(everything(copy.deepcopy(norm), x, add, dy, False), truth)
    with native.switched_on():
        ours = furthest(everything(copy.deepcopy(norm), x, add, dy, False), truth)
    assert ours < max(torchs, 1e-6)


@needs_native
def test_large_mean_small_variance():
    """Sums of squares would lose the variance here."""
    (x, _, dy), norm = case((8, 16, 16, 16), torch.float32)
    x = 1000 + (x - 5) / 30
    truth = everything(copy.deepcopy(norm).double(), x.double(), None, dy.double(), False)
    with native.switched_on():
        assert furthest(everything(copy.deepcopy(norm), x, None, dy, False)[:3], truth[:3]) < 1e-3


@needs_native
def test_the_bits_do_not_depend_on_threads():
    (x, add, dy), norm = case((16, 32, 16, 16), torch.float32)
    before = torch.get_num_threads()
    try:
        with native.switched_on():
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(everything(copy.deepcopy(norm), x, add, dy, True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_native
def test_what_is_not_a_number_stays_visible():
    for dtype in BELOW:
        (x, _, _), norm = case((4, 16, 4, 4), dtype)
        x[1, 3, 2, 2] = float("nan")
        with native.switched_on():
            out = native.normalised(norm, x)
        assert out[:, 3].isnan().all() and not out[:, :3].isnan().any() and not out[:, 4:].isnan().any()


@needs_native
@pytest.mark.parametrize("what", ["channels first", "float64", "100 channels", "evaluation", "other addend"])
def test_what_does_not_fit_takes_torchs_operators(what):
    (x, add, dy), norm = case((4, 100 if what == "100 channels" else 16, 4, 4), torch.float32)
    if what == "channels first":
        x = x.contiguous()
    elif what == "float64":
        x, add, dy, norm = x.double(), add.double(), dy.double(), norm.double()
    elif what == "evaluation":
        norm.eval()
    elif what == "other addend":
        add = add.contiguous()
    plain = everything(copy.deepcopy(norm), x, add, dy, True)
    with native.switched_on():
        assert all(torch.equal(a, b) for a, b in zip(everything(norm, x, add, dy, True), plain, strict=True))


@needs_native
def test_one_value_a_channel_is_refused_as_torch_does():
    (x, _, _), norm = case((1, 16, 1, 1), torch.float32)
    with native.switched_on(), pytest.raises(ValueError, match="more than 1 value per channel"):
        native.normalised(norm, x)


@needs_native
def test_a_second_derivative_is_refused():
    (x, _, _), norm = case((4, 16, 4, 4), torch.float32)
    x.requires_grad_()
    with native.switched_on(), pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(native.normalised(norm, x).sum(), x, create_graph=True)


def loss_and_gradients(network: nn.Module, x: Tensor, kinds: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits, maps and buffers, then gradients, in float64; every map takes part in the loss."""
    out = network.train()(x, kinds)
    maps = [m for kind in kinds for m in out.maps[kind]]
    loss = F.cross_entropy(out.logits, torch.arange(len(x)) % out.logits.shape[1]) + sum(m.pow(2).mean() for m in maps)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    return [t.detach().double() for t in (out.logits, *maps, *buffers)], [g.double() for g in gradients]


@needs_native
@pytest.mark.parametrize("kinds", [(), ("stage", "preact", "relu")], ids=["logits", "maps"])
@pytest.mark.parametrize("name", ["resnet14", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "vgg13", "mobilenetv2", "shufflev1", "shufflev2"])
def test_networks(name, kinds):
    torch.manual_seed(1)
    network = models.build(name, num_classes=10).to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    truth = loss_and_gradients(copy.deepcopy(network).double(), x.double(), kinds)
    plain = loss_and_gradients(copy.deepcopy(network), x, kinds)
    with native.switched_on():
        found = loss_and_gradients(network, x, kinds)

    def errors(values: list[Tensor], true: list[Tensor]) -> float:
        return max(((a - b).norm() / (b.norm() + 1e-3)).item() for a, b in zip(values, true, strict=True))

    assert any(not torch.equal(a, b) for a, b in zip(found[0], plain[0], strict=True))  # it did run
    assert errors(found[0], truth[0]) < max(3 * errors(plain[0], truth[0]), 1e-5)
    # A value beside ReLU's kink that rounding carries over it moves a gradient by a few percent, in torch's operators as well.
    assert errors(found[1], truth[1]) < max(3 * errors(plain[1], truth[1]), 0.05)
    assert {int(b) for n, b in network.named_buffers() if n.endswith("tracked")} == {1}


SCRIPT = "from models import native; print('REASON', native.reason())"


def in_a_process(tmp_path: Path, **variables: str) -> str:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    return done.stdout


def compiler(tmp_path: Path, script: str) -> str:
    file = tmp_path / "compiler"
    file.write_text("#!/bin/sh\n" + script)
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Why the operator cannot be had with these variables and an empty cache: found anew, in this process."""

    def reason(**variables: str) -> str:
        for name, value in ({"XDG_CACHE_HOME": str(tmp_path)} | variables).items():
            monkeypatch.setenv(name, value)
        return native.reason.__wrapped__()

    return reason


def test_without_a_compiler(refused):
    assert refused(CXX="no-such-compiler").startswith("no C++ compiler")


def test_a_compiler_of_several_words(tmp_path, refused):
    wrong = compiler(tmp_path, 'echo "error: called with $1 $2" >&2; exit 1')
    assert "cannot compile the CPU's operator: error: called with g++ -m64" in refused(CXX=f"{wrong} g++ -m64")


def test_a_compiler_that_fails(tmp_path, refused):
    wrong = compiler(tmp_path, "echo 'native.cpp:1: error: no such thing' >&2; exit 1")
    assert refused(CXX=wrong).startswith(f"{wrong} cannot compile the CPU's operator: native.cpp:1: error: no such thing")
    assert not list((tmp_path / "kd-bench").glob("*.so")) and not [p for p in (tmp_path / "kd-bench").iterdir() if p.is_dir()]


def test_a_library_that_does_not_load(tmp_path, refused):
    empty = compiler(tmp_path, 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo no library >"$2"; fi; shift; done')
    said = refused(CXX=empty)
    assert "cannot be kept or loaded" in said and f"remove {tmp_path}" in said


def test_a_cache_that_cannot_be_written(tmp_path, refused):
    (tmp_path / "file").write_text("")
    assert "cannot be kept or loaded" in refused(XDG_CACHE_HOME=str(tmp_path / "file"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache that three processes filled at once, and what each said. Without optimisation: what all other tests here load has it."""
    cache = tmp_path_factory.mktemp("cache")
    quick = compiler(cache, f'exec {os.environ.get("CXX") or "c++"} "$@" -O0')
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "CXX": quick}
    asking = [subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) for _ in range(3)]
    said = [process.communicate()[0] for process in asking]
    return list((cache / "kd-bench").glob("*.so")), said


@needs_native
@pytest.mark.slow
def test_compiled_once_however_many_ask(compiled):
    libraries, said = compiled
    assert all("REASON None" in text for text in said)
    assert sum("compiling" in text for text in said) == 1 and len(libraries) == 1


@needs_native
@pytest.mark.slow
def test_killed_while_compiling(tmp_path, compiled):
    slow = compiler(tmp_path, 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo half >"$2"; fi; shift; done; exec sleep 600')
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "CXX": slow}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    folder = tmp_path / "kd-bench"
    while not (begun := list(folder.glob("*/*.so"))):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # By the same name, since the key is the same; what it would compile is there already.
    compiler(tmp_path, f'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then cp "{compiled[0][0]}" "$2"; fi; shift; done')
    said = in_a_process(tmp_path, CXX=slow)
    assert "compiling" in said and "REASON None" in said
    assert not begun[0].parent.exists() and len(list(folder.glob("*.so"))) == 1


@needs_native
@pytest.mark.parametrize("wrong", BELOW)
def test_numbers_that_are_not_torchs_are_not_believed(wrong, monkeypatch):
    right = native._operator

    def operator(norm, x, add, relu):
        return right(norm, x, add, relu) * (1.1 if x.dtype == wrong else 1)

    monkeypatch.setattr(native, "_operator", operator)
    with pytest.raises(native.NativeError, match="does not give torch's numbers"):
        native._check()


def test_switching_on_where_there_is_none(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda: "no compiler")
    with pytest.raises(native.NativeError, match="no compiler"), native.switched_on():
        pass
    assert not native._on
