"""Phase I and the two registered methods on a small pair."""

import dataclasses

import pytest
import torch

import models
from methods.base import Batch, MethodError, Prepared, Setting, check_hyper
from methods.iep import IEP, IEPBlackBox, phase_one
from methods.iep.hyper import BlackBoxHyper
from methods.iep.phase_one import sensed
from methods.registry import get
from models.outputs import Outputs, Shapes
from models.randomness import generator
from tests.methods.iep.conftest import CLASSES, Textures, network

METHODS = {"iep": IEP, "iep_bb": IEPBlackBox}


def quick(cls, **options):
    return cls.Hyper.quick(phase_batch=16, **options)


@pytest.fixture(scope="session")
def prepared(teacher, setting):
    """Phase I of both methods, built once."""
    return {name: cls.preparation(quick(cls), setting).build(teacher, Textures()) for name, cls in METHODS.items()}


def make(cls, setting, prepared, **options):
    return cls(quick(cls, **options), setting, prepared).train()


def outputs(net, images, frozen=False):
    with torch.set_grad_enabled(not frozen):
        return net(images, ("relu",))


def batch_of(textures, size):
    images = textures.images[:size]
    return images, Batch(textures.labels[:size], torch.arange(size))


def step(method, student, teacher, textures, size=8):
    images, batch = batch_of(textures, size)
    parameters = [p for m in (student, method) for p in m.parameters() if p.requires_grad]
    losses = method.losses(outputs(student, images), outputs(teacher, images, True), batch)
    method.backward(losses, parameters)
    return losses, parameters


def test_both_are_registered():
    assert (get("iep").title, get("iep_bb").title) == ("IEP", "IEP+BB")


def test_injected_heads_of_phase_one_come_from_running_statistics():
    stages = phase_one.Stages(BlackBoxHyper.quick(), [8, 8]).train()
    coordinates = [torch.randn(6, 4, generator=generator(i, "heads")) for i in range(2)]
    (whole,), (part,) = (phase_one._injected_heads(stages, [c[:n] for c in coordinates]) for n in (6, 3))
    assert torch.allclose(whole[:3, :3], part, atol=1e-6) and not whole.requires_grad  # of the batch's own statistics they would not be
    assert all(m.training for m in stages.modules())


@pytest.mark.parametrize("name", METHODS)
def test_phase_one_is_repeatable_and_says_what_it_found(name, teacher, setting, prepared):
    cls, data = METHODS[name], Textures()
    again = cls.preparation(quick(cls), setting).build(teacher, data)
    assert again.tensors.keys() == prepared[name].tensors.keys()
    assert all(torch.equal(again.tensors[k], v) for k, v in prepared[name].tensors.items())
    assert len(again.facts["kl_per_image"]) == 2 and set(again.facts["kl_per_image"][0]) == {"network", "identity", "uniform"}
    assert len(again.facts["points"]) == 3 and "16 channels, 8 kept" in again.facts["points"][0]
    assert any("epoch 2/2" in line for line in data.lines)


def test_phase_one_lowers_its_loss(teacher, setting):
    data = Textures()
    hyper = IEP.Hyper.quick(phase_batch=16, phase_epochs=12)
    facts = IEP.preparation(hyper, setting).build(teacher, data).facts
    first = float(data.lines[0].split("loss ")[1].split()[0])
    assert facts["last_loss"] < 0.8 * first


def test_last_batch_of_one_image_is_left_out(teacher, setting, prepared):
    assert Textures().count % 16 == 1  # the fixture's passes end with such a batch
    assert all(t.isfinite().all() for t in prepared["iep"].tensors.values())


@pytest.mark.parametrize("pca", ["ipca", "ipca_code", "batch"])
def test_other_second_pcas_give_finite_losses(pca, teacher, setting, textures):
    hyper = IEP.Hyper.quick(phase_batch=16, pca=pca)
    method = IEP(hyper, setting, IEP.preparation(hyper, setting).build(teacher, textures)).train()
    assert method.capturable == (pca != "batch")
    losses, parameters = step(method, network("resnet8", 2).train(), teacher, textures)
    assert all(v.isfinite() for v in losses.values()) and all(p.grad.isfinite().all() for p in parameters)


def test_settings_of_the_preparation_hold_what_shapes_it_and_nothing_of_the_student(setting):
    base = IEP.preparation(IEP.Hyper(), setting).settings
    for change in ({"iterations": 3}, {"pca": "ipca"}, {"sigma_scale": True}, {"phase_lr": 0.2}, {"power_steps": 3}):
        assert IEP.preparation(IEP.Hyper(**change), setting).settings != base
    for change in ({"alteration": False}, {"clip": "global"}, {"teacher_first": False}, {"ramp": False}):
        assert IEP.preparation(IEP.Hyper(**change), setting).settings == base
    other = dataclasses.replace(setting, student=models.shapes("resnet14", CLASSES))
    assert IEP.preparation(IEP.Hyper(), other).settings == base
    assert IEPBlackBox.preparation(IEPBlackBox.Hyper(), setting).settings != base


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1, 16])
def test_small_batches_give_finite_losses_and_gradients(name, size, teacher, setting, prepared, textures):
    student = network("resnet8", 2).train()
    losses, parameters = step(make(METHODS[name], setting, prepared[name]), student, teacher, textures, size)
    assert set(losses) == {"ce", "int", "alt"} | ({"bb"} if name == "iep_bb" else set())
    assert all(v.isfinite() and v.shape == () for v in losses.values())
    assert all(p.grad.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_itself_as_student_has_no_loss(name, teacher, setting, prepared, textures):
    images, batch = batch_of(textures, 12)
    method, out = make(METHODS[name], setting, prepared[name]), outputs(teacher, images, True)
    losses = method.losses(out, out, batch)
    other = method.losses(outputs(network("resnet8", 2).eval(), images, True), out, batch)
    for term in losses.keys() - {"ce"}:
        assert losses[term].abs() < 1e-3 * other[term]


@pytest.mark.parametrize("name", METHODS)
def test_training_leaves_phase_one_bit_for_bit(name, teacher, setting, prepared, textures):
    method, student = make(METHODS[name], setting, prepared[name]), network("resnet8", 2).train()
    assert not any(m.training for m in method.stages.modules())
    _, parameters = step(method, student, teacher, textures)
    assert len(parameters) == len(list(student.parameters()))
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        step(method, student, teacher, textures)
        optimizer.step()
    assert all(torch.equal(method.stages.state_dict()[k], v) for k, v in prepared[name].tensors.items())
    assert not any(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_knowledge_adds_at_most_its_bound_to_each_tensor(teacher, setting, prepared, textures):
    method, student = make(IEP, setting, prepared["iep"]), network("resnet8", 2).train()
    method.begin_epoch(2, torch.Generator())
    images, batch = batch_of(textures, 8)
    losses = method.losses(outputs(student, images), outputs(teacher, images, True), batch)
    parameters = list(student.parameters())
    ce = torch.autograd.grad(losses["ce"], parameters, retain_graph=True)
    method.backward(losses, parameters)
    shares = [((p.grad - g).norm() / g.norm()).item() for p, g in zip(parameters, ce, strict=True)]
    assert max(shares) <= 2 * 0.7311 * 1.001  # two kinds of knowledge, each at sigmoid(1) of the cross-entropy gradient
    assert shares[0] > 0.01 and shares[-1] == 0  # the stem learns from both, the classifier from cross-entropy alone


def test_ramp_starts_at_a_half_and_rises(setting, prepared):
    method = make(IEP, setting, prepared["iep"])
    ratios = []
    for epoch in (1, 2, 3, 200):
        method.begin_epoch(epoch, torch.Generator())
        ratios.append(method.ratio.item())
    assert ratios == pytest.approx([0.5, 0.7311, 0.8808, 1.0], abs=1e-4)
    constant = make(IEP, setting, prepared["iep"], ramp=False)
    constant.begin_epoch(1, torch.Generator())
    assert constant.ratio.item() == 1.0


@pytest.mark.parametrize(
    ("cls", "options", "terms"),
    [
        (IEP, {"alteration": False}, {"ce", "int"}),
        (IEP, {"intermediate": False}, {"ce", "alt"}),
        (IEPBlackBox, {"intermediate": False, "alteration": False}, {"ce", "bb"}),
    ],
)
def test_ablations_of_table_4(cls, options, terms, teacher, setting, prepared, textures):
    losses, parameters = step(make(cls, setting, prepared[cls.name], **options), network("resnet8", 2).train(), teacher, textures)
    assert set(losses) == terms and all(p.grad is not None for p in parameters)


def test_unconverged_components_are_counted_and_told(teacher, setting, prepared, textures):
    method = make(IEP, setting, prepared["iep"])
    images, batch = batch_of(textures, 4)
    signed = tuple(torch.randn_like(m) for m in outputs(teacher, images, True).maps["relu"])
    hard = Outputs(torch.zeros(4, CLASSES), torch.zeros(4, 64), {"relu": signed})
    method.losses(outputs(teacher, images, True), hard, batch)
    assert method.worst_residual > 0.03
    with pytest.warns(UserWarning, match="power_steps"):
        method.begin_epoch(2, torch.Generator())


def shapes(name, *sizes):
    return Shapes(name, CLASSES, sizes[-1][0], {"relu": ((16, 32, 32), *sizes)})


def maps_of(shape, batch, grad=False):
    maps = tuple(torch.rand(batch, *size, requires_grad=grad) for size in shape.maps["relu"])
    return Outputs(torch.randn(batch, CLASSES, requires_grad=grad), torch.zeros(batch, shape.embedding), {"relu": maps})


@pytest.mark.parametrize("stages", [[(8, 32, 32), (24, 16, 16), (32, 8, 8)], [(16, 16, 16), (8, 8, 8), (64, 12, 12)]])
def test_students_of_other_widths_and_sizes_learn_through_adapters(stages, setting, prepared):
    student = shapes("other", *stages)
    method = IEP(quick(IEP), Setting(student, setting.teacher, CLASSES), prepared["iep"]).train()
    widths = [(s[0], t[0]) for s, t in zip(stages, sensed(setting.teacher.maps["relu"]), strict=True)]
    trained = [p for p in method.parameters() if p.requires_grad]
    assert len(trained) == 3 * sum(a != b for a, b in widths)
    out = maps_of(student, 6, grad=True)
    losses = method.losses(out, maps_of(setting.teacher, 6), Batch(torch.zeros(6, dtype=torch.int64), torch.arange(6)))
    assert all(v.isfinite() for v in losses.values())
    method.backward(losses, trained)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in trained if p.dim() == 4)
    method.eval()
    assert not any(m.training for m in method.modules())


def test_pairs_it_cannot_do(setting):
    four = shapes("four", (16, 32, 32), (32, 16, 16), (64, 8, 8), (64, 4, 4))
    one = shapes("one", (16, 32, 32))
    thin = shapes("thin", (16, 32, 32), (1, 16, 16), (64, 8, 8))
    hyper = IEP.Hyper()
    assert "4 teacher stages against 3" in IEP.unsupported(hyper, Setting(setting.student, four))
    assert "two stages" in IEP.unsupported(hyper, Setting(one, one))
    assert "two channels" in IEP.unsupported(hyper, Setting(thin, thin))
    assert IEP.reason_against(hyper, Setting(setting.student, None)) == "iep needs a teacher: name one"
    assert IEP.unsupported(hyper, setting) is None
    with pytest.raises(MethodError, match="4 teacher stages"):
        IEP(hyper, Setting(setting.student, four), None)


def test_a_preparation_that_does_not_fit_is_refused_in_one_line(setting, prepared):
    tensors, facts = prepared["iep"].tensors, prepared["iep"].facts
    less = Prepared({k: v for k, v in tensors.items() if "basis" not in k}, facts)
    cases = [(None, {}), (less, {}), (prepared["iep_bb"], {}), (prepared["iep"], {"iterations": 3}), (prepared["iep"], {"pca": "ipca"})]
    for wrong, options in cases:
        with pytest.raises(MethodError, match="phase I") as error:
            make(IEP, setting, wrong, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"pca": "kernel"}, {"clip": "max"}, {"intermediate": False, "alteration": False}]
)
def test_bad_hyper_parameters_are_refused(options):
    with pytest.raises(MethodError):
        IEP.Hyper(**options)


def test_phase_one_has_some_momentum():
    check_hyper("iep", IEP.Hyper(phase_momentum=0.1))
    with pytest.raises(MethodError, match="iep.phase_momentum is 0; it must be above 0 and at most 1"):  # SGD's nesterov refuses it later
        check_hyper("iep", IEP.Hyper(phase_momentum=0))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_nothing_on_the_host(name, setting, prepared):
    """On the meta device a host read has no value to give and raises."""
    method, student = make(METHODS[name], setting, prepared[name]).to("meta"), network("resnet8", 2).to("meta")
    images, labels = torch.zeros(6, 3, 32, 32, device="meta"), torch.zeros(6, dtype=torch.int64, device="meta")
    losses = method.losses(outputs(student, images), outputs(student, images, True), Batch(labels, labels))
    method.backward(losses, list(student.parameters()))
    assert all(p.grad.shape == p.shape for p in student.parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        method.worst_residual.item()
