"""Gradients of loss terms against plain torch on the same batches; runs that cannot be read are refused."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import models
from bench.analysis import gradients
from bench.analysis.frame import subjects
from bench.analysis.frame.context import obtain
from bench.data import augment
from bench.errors import UsageError
from bench.store import runs
from bench.train.learner import Learner
from methods import registry
from models.randomness import keyed
from tests.bench.analysis import small


@pytest.fixture
def place(tmp_path):
    """A teacher, a plain student and one of KD, untrained."""
    images = small.dataset()
    small.add_teacher(tmp_path, images)
    for method in ("student", "kd"):
        small.add_student(tmp_path, images, method)
    given = [subjects.teacher(tmp_path, images.name, small.TEACHER), *(subjects.student(v, images.hash) for v in runs.scan(tmp_path)[0])]
    return tmp_path, images, given


def by_hand(network, teacher, images, labels, hyper) -> tuple[float, float]:
    """KD's distillation term beside its cross-entropy: norms of the gradients over each other, and cosine."""
    logits = network(images).logits
    with torch.no_grad():
        known = teacher(images).logits
    t, hard = hyper.temperature, F.cross_entropy(logits, labels)
    soft = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(known / t, 1), reduction="batchmean") * t * t
    ours, theirs = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)]).double()
        for loss in (hyper.kd_weight * soft, hyper.ce_weight * hard)
    )
    return (ours.norm() / theirs.norm()).item(), F.cosine_similarity(ours, theirs, dim=0).item()


def test_kd_against_plain_torch(place):
    folder, images, given = place
    stored = obtain(gradients.Gradients(gradients.Options(batches=2)), small.context(folder, images, given))
    assert {r["method"] for r in stored.facts["rows"]} == {"kd"}
    assert [row[:3] for row in gradients.Gradients.tables(stored)[0].rows] == [("kd", "1", "kd")]
    found = {(r["when"], r["term"]): (r["ratio"], r["cosine"]) for r in stored.facts["rows"]}
    assert found["initial", "ce"] == pytest.approx((1, 1))

    hyper, context = registry.get("kd").hyper_for(small.TEACHER, small.STUDENT), small.context(folder, images, given)
    draws, size = augment.draws(1, 1, len(images.train_labels)), small.PROTOCOL.batch
    with keyed(1, f"init/{small.STUDENT}"):
        initial = models.build(small.STUDENT, 100)
    trained = small.network(small.STUDENT, "kd 1")
    for when, network in (("initial", initial), ("trained", trained)):
        network.train()
        expected = []
        for index in draws.order.split(size)[:2]:
            pictures = context.images.train_batch(index, draws.dy, draws.dx, draws.flip)
            expected.append(by_hand(network, context.network(given[0]), pictures, images.train_labels[index], hyper))
        assert found[when, "kd"] == pytest.approx(np.mean(expected, 0), rel=1e-3)


def of(method: str, folder, images, **run) -> dict:
    """(when, term) -> (ratio, cosine) of one more run."""
    label = small.add_student(folder, images, method, seed=7, **run)
    view = next(v for v in runs.scan(folder)[0] if v.id == label)
    given = [subjects.teacher(folder, images.name, small.TEACHER), subjects.student(view, images.hash)]
    stored = obtain(gradients.Gradients(gradients.Options(batches=9)), small.context(folder, images, given))  # more than there are
    return {(r["when"], r["term"]): (r["ratio"], r["cosine"]) for r in stored.facts["rows"]}


def test_without_a_weight_on_the_labels_the_plain_cross_entropy_counts(place):
    folder, images, _ = place
    whole = of("kd", folder, images, hyper={"ce_weight": 1.0, "kd_weight": 0.9, "temperature": 4.0})
    none = of("kd", folder, images, hyper={"ce_weight": 0.0, "kd_weight": 0.9, "temperature": 4.0})
    for when in gradients.WHEN:
        assert none[when, "kd"] == pytest.approx(whole[when, "kd"], rel=1e-4) and none[when, "ce"] == (0, 0)
        assert whole[when, "ce"] == pytest.approx((1, 1))


def test_dropout_draws_what_it_drew_in_training(place, monkeypatch):
    folder, images, given = place
    monkeypatch.setattr(small, "STUDENT", "wrn_16_1")
    label = small.add_student(folder, images, protocol=dataclasses.replace(small.PROTOCOL, batch=8, dropout=0.3))
    student = subjects.student(next(v for v in runs.scan(folder)[0] if v.id == label), images.hash)
    context, found, places = small.context(folder, images, [given[0], student]), [], []
    seed_dropout = Learner.seed_dropout
    monkeypatch.setattr(Learner, "seed_dropout", lambda self, place: (places.append((self.epoch, place)), seed_dropout(self, place)))
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        found.append(gradients._of_run(context, student, 2))
    assert all(np.array_equal(found[0][term], found[1][term]) for term in found[0])
    assert places == 2 * [(epoch, place) for epoch in (1, small.PROTOCOL.epochs) for place in (0, 8)]


def test_a_memory_bank_begins_anew(place, monkeypatch):
    folder, images, given = place
    label = small.add_student(folder, images, "crd")
    student = subjects.student(next(v for v in runs.scan(folder)[0] if v.id == label), images.hash)
    banks, begin = [], Learner.begin_epoch
    monkeypatch.setattr(Learner, "begin_epoch", lambda self, epoch: (banks.append(self.method.student_bank.clone()), begin(self, epoch)))
    gradients._of_run(small.context(folder, images, [given[0], student]), student, 1)
    assert len(banks) == 2 and torch.equal(*banks)


def test_plain_students_and_another_version_are_refused(place, monkeypatch):
    folder, images, given = place
    with pytest.raises(UsageError, match="no loss term beside the labels' in the training of student"):
        obtain(gradients.Gradients(gradients.Options()), small.context(folder, images, [one for one in given if one.method != "kd"]))
    monkeypatch.setattr(registry.get("kd"), "version", 99)
    with pytest.raises(UsageError, match="is of version 1 of kd, and here is version 99"):
        obtain(gradients.Gradients(gradients.Options()), small.context(folder, images, given))
