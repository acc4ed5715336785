"""SKD as a method: no teacher in training, refusals, options."""

import dataclasses
import gc
import weakref

import pytest
import torch
from torch.nn import functional as F

from methods import registry
from methods.base import NOTHING, Batch, MethodError, Needs, Prepared, Setting
from methods.skd import SKD, Hyper
from methods.skd.loss import distribution, relation, static_loss

QUICK = Hyper.quick()


def prepare(hyper, setting, teacher, images):
    return SKD.preparation(hyper, setting).build(teacher, images)


def with_facts(prepared, **changes):
    return Prepared(prepared.tensors, {**prepared.facts, **changes})


def forward(student, hyper, count=5, seed=0):
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return student(x, kinds=(hyper.kind,)), Batch(torch.arange(count) % 4, torch.arange(count))


def test_registered():
    assert registry.get("skd") is SKD and SKD.title == "SKD"


def test_declares_a_preparation_and_no_teacher_in_the_step(setting):
    assert SKD.teacher_needs(QUICK) == NOTHING and not SKD.teacher_needs(QUICK)
    assert SKD.student_needs(Hyper(kind="relu")) == Needs(logits=True, maps=("relu",))
    assert SKD.depends_on_teacher(QUICK, setting)
    preparation = SKD.preparation(QUICK, setting)
    other = dataclasses.replace(setting, student=dataclasses.replace(setting.student, name="other"))
    assert preparation.settings == SKD.preparation(QUICK, other).settings  # one serves many students
    for change in ({"beta": 0.1}, {"target": "P"}):  # and what only training uses is not its key
        assert SKD.preparation(dataclasses.replace(QUICK, **change), setting).settings == preparation.settings


def test_trains_after_the_teacher_is_deleted(setting, make_toy, images):
    teacher = make_toy().eval().requires_grad_(False)
    prepared = prepare(QUICK, setting, teacher, images)
    gone = [weakref.ref(x) for x in (teacher, *teacher.modules(), *teacher.parameters())]
    method = SKD(QUICK, setting, prepared)
    del teacher
    gc.collect()
    assert all(ref() is None for ref in gone)
    student = make_toy()
    optimiser = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.05)
    values = []
    for _ in range(3):
        outputs, batch = forward(student, QUICK)
        losses = method.losses(outputs, None, batch)
        values.append(sum(losses.values()))
        optimiser.zero_grad()
        values[-1].backward()
        optimiser.step()
    assert values[2] < values[0]
    assert not list(method.parameters()) and len(list(method.modules())) == 1


def test_losses_are_the_printed_sum(setting, toy, make_toy, images):
    hyper = dataclasses.replace(QUICK, beta=0.3)
    prepared = prepare(hyper, setting, toy, images)
    outputs, batch = forward(make_toy(), hyper)
    losses = SKD(hyper, setting, prepared).losses(outputs, None, batch)
    assert set(losses) == {"ce", "skd"}
    assert torch.equal(losses["ce"], F.cross_entropy(outputs.logits, batch.labels))
    each = [static_loss(outputs.maps["stage"][i], prepared.tensors[f"p.stage{i}"]).item() for i in (1, 2)]
    assert losses["skd"].item() == pytest.approx(0.3 * sum(each) / 2, abs=1e-6)


@pytest.mark.parametrize("changes", [{"target": "P"}, {"diagonal": False}, {"kind": "relu"}, {"temperature": 0.5}, {"mode": "paper"}])
@pytest.mark.parametrize("count", [1, 16])
def test_options_give_finite_and_other_losses(setting, toy, make_toy, images, changes, count):
    hyper = dataclasses.replace(QUICK, **changes)
    method = SKD(hyper, setting, prepare(hyper, setting, toy, images))
    plain = SKD(QUICK, setting, prepare(QUICK, setting, toy, images))
    torch.manual_seed(0)
    student = make_toy()
    results = []
    for h, m in ((hyper, method), (QUICK, plain)):
        outputs, batch = forward(student, h, count)
        loss = m.losses(outputs, None, batch)["skd"]
        student.zero_grad()
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in student.convs.parameters())
        results.append(loss.item())
    assert results[0] != results[1]


def test_target_p_is_the_mean_relation_itself(setting, toy, images):
    hyper = dataclasses.replace(QUICK, target="P")
    prepared = prepare(hyper, setting, toy, images)
    assert torch.equal(SKD(hyper, setting, prepared).target_stage1, prepared.tensors["P.stage1"].float())
    assert torch.equal(SKD(QUICK, setting, prepared).target_stage1, prepared.tensors["p.stage1"])


def test_beta_of_the_paper():
    assert SKD.hyper_for("vgg13", "vgg8").beta == 0.05
    assert SKD.hyper_for("resnet56", "resnet20").beta == 0.5
    assert SKD.hyper_for(None, "vgg8").beta == 0.5


def test_other_widths_are_refused_by_layer_and_counts(make_shapes, toy, images, setting):
    narrow = Setting(make_shapes("narrow", ((3, 8, 8), (12, 8, 8), (10, 4, 4))), setting.teacher, 4)
    reason = SKD.unsupported(QUICK, narrow)
    assert all(word in reason for word in ("stage2", "20", "10", "toy_teacher", "narrow")) and "\n" not in reason
    with pytest.raises(MethodError, match="stage2"):
        SKD(QUICK, narrow, prepare(QUICK, setting, toy, images))
    other_size = Setting(make_shapes("small", ((3, 4, 4), (12, 4, 4), (20, 2, 2))), setting.teacher, 4)
    assert SKD.unsupported(QUICK, other_size) is None and SKD.unsupported(QUICK, setting) is None
    deep = Setting(make_shapes("deep", ((3, 8, 8),) * 4), setting.teacher, 4)
    assert "deep have 2 and 3" in SKD.unsupported(QUICK, deep)
    assert "needs a teacher" in SKD.unsupported(QUICK, Setting(setting.student, None, 4))


def test_block0_is_for_vgg(setting, make_shapes):
    hyper = dataclasses.replace(QUICK, include_block0=True)
    assert "stem" in SKD.unsupported(hyper, setting)
    pair = Setting(make_shapes("vgg8"), make_shapes("vgg13"), 4)
    assert SKD.unsupported(hyper, pair) is None
    assert SKD.preparation(hyper, pair).settings["layers"] == ["block0", "stage1", "stage2"]
    # A different width of block 0 counts only where block 0 is used.
    wide = Setting(make_shapes("vgg8", ((5, 8, 8), (12, 8, 8), (20, 4, 4))), make_shapes("vgg13"), 4)
    assert "block0" in SKD.unsupported(hyper, wide) and SKD.unsupported(QUICK, wide) is None


@pytest.mark.parametrize(
    ("fact", "value"),
    [("layers", ["stage1"]), ("kind", "relu"), ("mode", "paper"), ("dimensions", 16), ("temperature", 4.0), ("diagonal", False), ("seed", 7)],
)
def test_vectors_of_other_settings_are_refused(setting, toy, images, fact, value):
    prepared = prepare(QUICK, setting, toy, images)
    SKD(QUICK, setting, prepared)
    with pytest.raises(MethodError, match=fact) as error:
        SKD(QUICK, setting, with_facts(prepared, **{fact: value}))
    assert "\n" not in str(error.value)


def test_missing_or_misshapen_vectors_are_refused(setting, toy, images):
    prepared = prepare(QUICK, setting, toy, images)
    with pytest.raises(MethodError, match="skd-embedding"):
        SKD(QUICK, setting, None)
    for name, tensor, words in (("S.stage2", torch.zeros(19, 4), "19"), ("p.stage1", torch.zeros(11, 11), "11"), ("P.stage1", None, "missing")):
        tensors = {**prepared.tensors, name: tensor}
        if tensor is None:
            del tensors[name]
        with pytest.raises(MethodError, match=words):
            SKD(QUICK, setting, Prepared(tensors, prepared.facts))


@pytest.mark.parametrize(
    "changes",
    [{"mode": "fast"}, {"target": "S"}, {"kind": "preact"}, {"assign": True, "target": "P"}],
)
def test_bad_hyper_parameters_are_refused(changes):
    with pytest.raises(MethodError):
        Hyper(**changes)


def test_state_survives_a_resume(setting, toy, images):
    prepared = prepare(QUICK, setting, toy, images)
    a, b = SKD(QUICK, setting, prepared), SKD(QUICK, setting, prepared)
    b.target_stage1.zero_()
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.target_stage1, prepared.tensors["p.stage1"])
    assert b.target_stage1.data_ptr() != prepared.tensors["p.stage1"].data_ptr()


def test_assign_gives_a_narrow_student_centroids(setting, toy, images, make_shapes, make_toy):
    stages = ((3, 8, 8), (12, 8, 8), (5, 4, 4))
    narrow = Setting(make_shapes("narrow", stages), setting.teacher, 4)
    hyper = dataclasses.replace(QUICK, assign=True)
    assert SKD.unsupported(hyper, narrow) is None
    prepared = prepare(hyper, narrow, toy, images)
    method = SKD(hyper, narrow, prepared)
    assert torch.equal(method.target_stage1, prepared.tensors["p.stage1"]) and method.target_stage2.shape == (5, 5)
    assert torch.allclose(method.target_stage2.sum(1), torch.ones(5))
    outputs, batch = forward(make_toy(stages), hyper)
    assert method.losses(outputs, None, batch)["skd"].isfinite()
    wide = Setting(make_shapes("wide", ((3, 8, 8), (12, 8, 8), (21, 4, 4))), setting.teacher, 4)
    assert "stage2" in SKD.unsupported(hyper, wide)


def test_assigned_centroids_are_the_groups():
    from methods.skd.assign import assigned_distribution, centroids

    g = torch.Generator().manual_seed(0)
    groups = torch.eye(4)
    vectors = (groups[torch.arange(20) % 4] + 0.05 * torch.randn(20, 4, generator=g)) * torch.rand(20, 1, generator=g).add(0.5)
    found = max((centroids(vectors, 4, seed) for seed in range(8)), key=lambda c: (vectors.double() @ c.T).max(1).values.sum())
    assert sorted(found.argmax(1).tolist()) == [0, 1, 2, 3] and (found.max(1).values > 0.99).all()
    assert torch.allclose(assigned_distribution(vectors, 20, 1.0, True, 0).sum(1), torch.ones(20))
    assert torch.equal(assigned_distribution(vectors, 4, 1.0, True, 3), distribution(relation(centroids(vectors, 4, 3))).float())
