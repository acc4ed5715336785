"""The distances of channel relations against plain torch, image by image; what cannot be compared is refused."""

import dataclasses

import pytest
import torch

import models
from bench.analysis import relations
from bench.analysis.frame import subjects
from bench.analysis.frame.context import obtain
from bench.errors import UsageError
from bench.store import runs
from models.randomness import keyed
from tests.bench.analysis import small


@pytest.fixture
def place(tmp_path):
    """A teacher, a plain student and two of KD, one at another temperature, untrained."""
    images = small.dataset()
    small.add_teacher(tmp_path, images)
    for method, seed, hyper in (("student", 1, {}), ("kd", 1, {}), ("kd", 2, {"temperature": 2.0})):
        small.add_student(tmp_path, images, method, seed, hyper=hyper)
    given = [subjects.teacher(tmp_path, images.name, small.TEACHER), *(subjects.student(v, images.hash) for v in runs.scan(tmp_path)[0])]
    return tmp_path, images, given


def by_hand(network, images, target) -> tuple[float, float]:
    """One layer's KLs: the mean over images, and of the mean over images."""
    with torch.no_grad():
        maps = network(images, ("stage",)).maps["stage"][2].double().flatten(2)
    cosines = torch.nn.functional.cosine_similarity(maps.unsqueeze(2), maps.unsqueeze(1), dim=3)
    q = cosines.softmax(2)
    each, mean = ((target * (target / x).log()).sum(-1).mean().item() for x in (q, q.mean(0)))
    return each, mean


def test_against_plain_torch(place):
    folder, images, given = place
    context = small.context(folder, images, given)
    stored = obtain(relations.Relations(relations.Options(images=50)), context)
    rows = {(r["method"], r["seed"]): r for r in stored.facts["rows"]}
    assert list(rows) == [("initial", 1), ("initial", 2), ("student", 1), ("kd", 1), ("kd [temperature=2.0]", 2)]
    pictures = context.images.test_batch(slice(0, 50))
    target = context.prepared(given[0], "skd").tensors["p.stage2"].double()
    with keyed(2, f"init/{small.STUDENT}"):
        initial = models.build(small.STUDENT, 100).train()
    expected = {("initial", 2): initial, ("student", 1): small.network(small.STUDENT, "student 1"), ("kd", 1): small.network(small.STUDENT, "kd 1")}
    for key, network in expected.items():
        each, mean = by_hand(network, pictures, target)
        assert rows[key]["images"][1] == pytest.approx(each, rel=1e-3) and rows[key]["mean"][1] == pytest.approx(mean, rel=1e-3)
    assert stored.facts["teacher"]["images"][1] == pytest.approx(by_hand(context.network(given[0]), pictures, target)[0], rel=1e-3)
    assert stored.facts["uniform"][1] == pytest.approx((target * (32 * target).log()).sum(-1).mean().item(), rel=1e-3)


def test_the_vectors_and_the_difference_to_the_plain_student_are_shown(place):
    folder, images, given = place
    stored = obtain(relations.Relations(relations.Options(images=50)), small.context(folder, images, given))
    rows = {r[0]: r for r in relations.Relations.tables(stored)[0].rows}
    kd, plain = (next(sum(r["images"]) / 3 for r in stored.facts["rows"] if r["method"] == m and r["seed"] == 1) for m in ("kd", "student"))
    assert rows["kd"][-1] == f"{1e3 * (kd - plain):+.2f} (1 seed)"
    assert [rows[name][-1] for name in ("uniform", "teacher", "initial", "student", "kd [temperature=2.0]")] == [""] * 5


@pytest.mark.parametrize(("student", "said"), [("wrn_16_2", "32, 64, 128"), ("vgg8", "128, 256, 512, 512")])
def test_unequal_channels_are_refused(place, student, said):
    folder, images, given = place
    others = [given[0], *(dataclasses.replace(s, architecture=student) for s in given[1:])]
    with pytest.raises(UsageError, match=f"of resnet8 have 16, 32, 64 channels and those of the students {said}: only equal"):
        obtain(relations.Relations(relations.Options()), small.context(folder, images, others))
