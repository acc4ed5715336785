"""Every registered method keeps the contract of methods.base. A new method is tested here without anyone adding a test."""

import contextlib
import dataclasses
import io
import json
import random

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods import registry
from methods.base import Batch, Method, MethodError
from models.outputs import KINDS, Outputs
from models.randomness import generator
from tests.methods.cases import CLASSES, PAIR, Case, asked, backward, frozen_teacher, hyper_of, made, made_up, pictures, setting, tensors

NAMES = registry.names()
BASELINE = "student"
every = pytest.mark.parametrize("name", NAMES)


def listed(value: object) -> object:
    """Tuples as lists, as JSON has them; all else as it is."""
    if isinstance(value, dict):
        return {key: listed(one) for key, one in value.items()}
    return [listed(one) for one in value] if isinstance(value, list | tuple) else value


def finite_scalars(losses: dict[str, Tensor], name: str) -> None:
    assert ("ce" in losses) == registry.get(name).uses_labels
    for term, value in losses.items():
        assert value.shape == (), f"{term} has shape {tuple(value.shape)}"
        assert torch.isfinite(value), f"{term} is {value}"


def finite_gradients(case: Case) -> None:
    for parameter in case.parameters:
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    assert case.student.conv1.weight.grad.abs().sum() > 0


def on_leaves(name: str, batch: int, change, pair: tuple[str, str] = PAIR) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses of made-up outputs after `change(outputs, side)`, and the gradients that reach the student's outputs."""
    used, method = setting(*pair), made(name, pair=pair)
    student = change(made_up(used.student, batch, seed=1), "student")
    teacher = change(made_up(used.teacher, batch, seed=2), "teacher")
    leaves = [t.requires_grad_() for t in tensors(student)]
    labels = torch.arange(batch) % CLASSES
    needs = method.teacher_needs(method.hyper)
    losses = method.losses(student, asked(teacher, needs) if needs else None, Batch(labels, torch.arange(batch)))
    sum(losses.values()).backward()
    return losses, [leaf.grad for leaf in leaves if leaf.grad is not None]


def zeroed(outputs: Outputs, rows: slice) -> Outputs:
    """Embedding and maps of some images 0, as after dead ReLUs."""
    for tensor in tensors(outputs)[1:]:
        tensor[rows] = 0
    return outputs


def test_every_file_loads():
    assert registry.broken() == {}


@every
def test_declares_itself(name):
    method = registry.get(name)
    hyper = method.Hyper()
    assert method.title and method.paper and "\n" not in method.paper
    assert isinstance(method.version, int) and method.version >= 1
    assert json.loads(json.dumps(dataclasses.asdict(hyper))) == listed(dataclasses.asdict(hyper))
    for needs in (method.teacher_needs(hyper), method.student_needs(hyper)):
        assert set(needs.maps) <= set(KINDS)
    if dataclasses.fields(hyper):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(hyper, dataclasses.fields(hyper)[0].name, 0)
    reads = bool(method.teacher_needs(hyper)) or method.preparation(hyper, setting()) is not None
    assert method.depends_on_teacher(hyper, setting()) == reads
    assert name != BASELINE or not reads


@every
@pytest.mark.parametrize("batch", [64, 16, 2, 1])
def test_losses_and_gradients_are_finite(name, batch):
    case = Case.of(name)
    finite_scalars(case.step(*pictures(batch, 1)), name)
    finite_gradients(case)


@every
def test_distillation_reaches_the_first_layer(name):
    case = Case.of(name)
    if not case.method.depends_on_teacher(case.method.hyper, case.method.setting):
        pytest.skip("reads no teacher")
    images, labels = pictures(16, 1)
    if case.method.pretraining(case.method.hyper, case.method.setting) is None:
        losses = case.losses(images, labels)
    else:  # the student learns from the teacher before the main stage
        outputs = case.student(images, case.method.student_needs(case.method.hyper).maps)
        losses = case.method.pretraining_losses(outputs, case.teacher_outputs(images), Batch(labels, torch.arange(16)))
    distilled = sum(value for key, value in losses.items() if key != "ce")
    (gradient,) = torch.autograd.grad(distilled, case.student.conv1.weight)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@every
def test_every_trainable_parameter_is_trained(name):
    case = Case.of(name)
    case.step(*pictures(16, 1))
    for key, parameter in case.method.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, f"{key} gets no gradient"


@every
def test_batch_of_one_class(name):
    case = Case.of(name)
    images, labels = pictures(16, 1)
    finite_scalars(case.step(images, torch.full_like(labels, 3)), name)
    finite_gradients(case)


@every
@pytest.mark.parametrize("rows", [slice(0, 8), slice(0, 3), slice(0, 1)], ids=["all", "some", "one"])
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_dead_features(name, rows, dead):
    losses, gradients = on_leaves(name, 8, lambda outputs, side: zeroed(outputs, rows) if dead in (side, "both") else outputs)
    finite_scalars(losses, name)
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


@every
@pytest.mark.parametrize("batch", [2, 8])
def test_equal_images(name, batch):
    """Copies of one image: every distance between embeddings is 0."""

    def copied(outputs, side):
        same = [t[:1].expand_as(t).clone() for t in tensors(outputs)]
        kinds, at = {}, 2
        for kind, group in outputs.maps.items():
            kinds[kind] = tuple(same[at : at + len(group)])
            at += len(group)
        return Outputs(same[0], same[1], kinds)

    losses, gradients = on_leaves(name, batch, copied)
    finite_scalars(losses, name)
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


def in_float(outputs: Outputs) -> Outputs:
    maps = {kind: tuple(m.float() for m in group) for kind, group in outputs.maps.items()}
    return Outputs(outputs.logits.float(), outputs.embedding.float(), maps)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_values_in_half_precision(name, dtype):
    method = made(name)
    student, teacher = (made_up(s, 8, seed, 1e3, dtype) for seed, s in enumerate((setting().student, setting().teacher)))
    if method.fp32:  # the trainer casts and leaves autocast
        student, teacher = (in_float(o) for o in (student, teacher))
    leaves = [t.requires_grad_() for t in tensors(student)]
    needs = method.teacher_needs(method.hyper)
    with torch.autocast("cpu", dtype, enabled=not method.fp32):
        losses = method.losses(student, asked(teacher, needs) if needs else None, Batch(torch.arange(8), torch.arange(8)))
    finite_scalars(losses, name)
    sum(losses.values()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)


@every
def test_a_diverged_student_shows(name):
    """A loss must not hide a NaN in what it reads: the trainer finds divergence by it."""

    def broken(outputs, side):
        if side == "student":
            for tensor in tensors(outputs)[1:]:
                tensor[2] = torch.nan
            outputs.logits[2] = torch.nan
        return outputs

    used = setting()
    method = made(name)
    student, teacher = broken(made_up(used.student, 8, 1), "student"), made_up(used.teacher, 8, 2)
    needs = method.teacher_needs(method.hyper)
    losses = method.losses(student, asked(teacher, needs) if needs else None, Batch(torch.arange(8), torch.arange(8)))
    for key, value in losses.items():
        assert not torch.isfinite(value), f"{key} is {value}"


@every
def test_leaves_teacher_and_outputs_alone(name):
    case, teacher = Case.of(name), frozen_teacher()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    images, labels = pictures(16, 1)
    shared = case.teacher_outputs(images)
    copies = [t.clone() for t in tensors(shared)] if shared else []
    outputs = case.student(images, case.method.student_needs(case.method.hyper).maps)
    logits = outputs.logits.detach().clone()
    losses = case.method.losses(outputs, shared, Batch(labels, torch.arange(16)))
    backward(case.method, losses, case.parameters)
    assert not teacher.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(t, c) and not t.requires_grad for t, c in zip(tensors(shared) if shared else [], copies, strict=True))
    assert torch.equal(outputs.logits, logits)


@every
def test_runs_the_student_once_and_keeps_its_mode(name):
    case = Case.of(name)
    own = [m for m in case.method.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.num_batches_tracked is not None]
    before = [m.num_batches_tracked.item() for m in own]
    case.method.begin_epoch(1, generator(0, "epoch", 1))
    case.step(*pictures(16, 1))
    norms = [m for m in case.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(m.num_batches_tracked == 1 and m.training for m in norms)
    again = [norm for norm, count in zip(own, before, strict=True) if norm.num_batches_tracked > count + 1]
    assert not again, "a step updates the running statistics of the method's own normalisations more than once"
    assert case.student.training and case.method.training


@every
def test_ambient_randomness_plays_no_part(name):
    def run(seed: int):
        torch.manual_seed(seed)
        random.seed(seed)
        case = Case.of(name)
        state = torch.get_rng_state()
        case.method.begin_epoch(1, generator(0, "epoch", 1))
        losses = case.step(*pictures(16, 1))
        assert torch.equal(torch.get_rng_state(), state), "a step draws from the global generator"
        return {**losses, **{f"gradient {i}": p.grad for i, p in enumerate(case.parameters) if p.grad is not None}}

    first, second = run(1), run(2)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_state_dict_is_all_that_a_resumed_run_needs(name):
    case = Case.of(name)
    optimizer = torch.optim.SGD(case.parameters, lr=0.01)
    case.method.begin_epoch(1, generator(0, "epoch", 1))
    for step in range(2):
        case.step(*pictures(16, step))
        optimizer.step()
    file = io.BytesIO()
    torch.save({"student": case.student.state_dict(), "method": case.method.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Case(name, made(name, purpose="other weights"), Case.of(name).student)
    resumed.student.load_state_dict(saved["student"])
    resumed.method.load_state_dict(saved["method"])
    results = []
    for each in (case, resumed):
        each.method.begin_epoch(2, generator(0, "epoch", 2))
        losses = each.step(*pictures(16, 2))
        results.append([*losses.values(), *(p.grad for p in each.parameters if p.grad is not None), *each.method.state_dict().values()])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__")
DYNAMIC = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere", "masked_select", "_unique", "_unique2"}
DYNAMIC |= {"unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount", "histc", "allclose"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "repeat_interleave"}


class NoHostRead(TorchDispatchMode):
    """Fails on operations that read a value on the host or whose output's shape depends on values; keeps the shapes of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        op = func.overloadpacket.__name__
        if op in DYNAMIC:
            raise AssertionError(f"{op} in a step: it reads values on the host")
        if op in INDEXED and any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in flat(args[1:2])):
            raise AssertionError(f"{op} with a boolean mask in a step: its shape depends on values; multiply by the mask instead")
        result = func(*args, **(kwargs or {}))
        self.trace.append((op, [tuple(t.shape) for t in flat([result]) if isinstance(t, Tensor)]))
        return result


def flat(values) -> list:
    return [x for v in values for x in (flat(v) if isinstance(v, list | tuple) else [v])]


@contextlib.contextmanager
def no_host_read(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("a step reads a tensor on the host")

    with monkeypatch.context() as patch, NoHostRead() as mode:
        for attribute in READS:
            patch.setattr(torch.Tensor, attribute, refuse)
        yield mode


@every
def test_step_can_be_captured(name, monkeypatch):
    """No host read, and the same operations on the same shapes whatever the values."""
    case = Case.of(name)
    if not case.method.capturable:
        pytest.skip("declares that its step cannot be captured")
    images, labels = pictures(16, 1)
    dark, one_class = torch.zeros_like(images), torch.zeros_like(labels)
    batches = [(images, labels), (dark, one_class), pictures(16, 2)]
    case.step(*batches[2])  # first calls may build caches
    traces, keys = [], []
    for batch in batches:
        for parameter in case.parameters:
            parameter.grad = None
        teacher = case.teacher_outputs(batch[0])
        index = torch.arange(16)
        with no_host_read(monkeypatch) as mode:
            outputs = case.student(batch[0], case.method.student_needs(case.method.hyper).maps)
            losses = case.method.losses(outputs, teacher, Batch(batch[1], index))
            backward(case.method, losses, case.parameters)
        traces.append(mode.trace)
        keys.append(list(losses))
    assert traces[0] == traces[1] == traces[2]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.clone().index_put_((x > 0,), torch.zeros(())),
    ],
    ids=["item", "float", "bool", "tolist", "numpy", "mask", "masked_select", "unique", "index_put"],
)
def test_the_guard_sees_host_reads(step, monkeypatch):
    with pytest.raises(AssertionError), no_host_read(monkeypatch):
        step(torch.arange(-3.0, 3.0))


@every
@pytest.mark.parametrize("pair", [("wrn_40_2", "wrn_40_1"), ("vgg13", "resnet8x4"), ("resnet32x4", "vgg8"), ("wrn_16_1", "wrn_16_2")], ids="-".join)
def test_other_pairs_work_or_say_why_not(name, pair):
    method = registry.get(name)
    reason = method.reason_against(hyper_of(method, *pair), setting(*pair))
    if reason is not None:
        assert isinstance(reason, str) and reason.strip() and "\n" not in reason
        if method.__init__ is not Method.__init__:
            with pytest.raises(MethodError):
                method(hyper_of(method, *pair), setting(*pair), None)
        return
    losses, gradients = on_leaves(name, 4, lambda outputs, side: outputs, pair)
    finite_scalars(losses, name)
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
