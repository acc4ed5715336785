"""Agreement, divergence, calibration and CKA against closed forms and the definitions written out; intervals against scipy's."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from bench.analysis.frame import by_method, subjects
from bench.analysis.maths import similarity
from bench.errors import UsageError
from bench.store import runs
from tests.bench.analysis import small


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_agreement_and_divergence_of_two_classes():
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 0.5]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 9.0]])
    assert similarity.agreement(a, b) == 0.75
    p, q = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])  # (3/4, 1/4) and (1/2, 1/2)
    assert similarity.divergence(p, q) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert similarity.divergence(p, p + 7) == pytest.approx(0, abs=1e-7)


def test_calibration_by_hand():
    # Two images at confidence 0.8 (one right), two at 0.6 (both right): 1/2 |0.5 - 0.8| + 1/2 |1 - 0.6|.
    logits = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.6, 0.4]], dtype=torch.float64).log()
    error, bins = similarity.calibration(logits, torch.tensor([0, 1, 1, 0]), 10)
    assert error == pytest.approx(0.35)
    np.testing.assert_allclose(bins[5], (0.5, 0.6, 1.0))
    np.testing.assert_allclose(bins[7], (0.5, 0.8, 0.5))
    assert bins[:, 0].sum() == 1


def test_labels_drawn_from_the_probabilities_are_calibrated():
    logits = draw(40000, 4) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert similarity.calibration(logits, labels)[0] < 0.012
    assert similarity.calibration(3 * logits, labels)[0] > 0.1  # overconfident


def test_accuracy_of_each_class():
    logits = torch.eye(3)[[0, 0, 1, 1]]
    np.testing.assert_allclose(similarity.class_accuracy(logits, torch.tensor([0, 1, 1, 1]), 3), (100, 200 / 3, 0))


def test_hsic_is_the_sum_over_distinct_indices():
    n = 6
    k, m = similarity.gram(draw(n, 3)), similarity.gram(draw(n, 2, seed=1))
    pairs = sum(k[i, j] * m[i, j] for i, j in itertools.permutations(range(n), 2)) / math.perm(n, 2)
    triples = sum(k[i, j] * m[i, q] for i, j, q in itertools.permutations(range(n), 3)) / math.perm(n, 3)
    fours = sum(k[i, j] * m[q, r] for i, j, q, r in itertools.permutations(range(n), 4)) / math.perm(n, 4)
    assert similarity.hsic(k, m).item() == pytest.approx((pairs + fours - 2 * triples).item(), rel=1e-9)


def test_cka_of_the_same_turned_scaled_and_of_something_else():
    x = draw(4, 50, 8)
    turn = torch.linalg.qr(draw(8, 8, seed=2)).Q
    grams = [torch.stack([similarity.gram(b) for b in y]) for y in (x, 3 * x @ turn + 5, draw(4, 50, 8, seed=3))]
    assert similarity.cka(grams[0], grams[0]) == pytest.approx(1)
    assert similarity.cka(grams[0], grams[1]) == pytest.approx(1)  # a shift of the mean is centred away
    assert abs(similarity.cka(grams[0], grams[2])) < 0.1
    assert similarity.cka(grams[0], torch.ones_like(grams[0])) == 0


def test_paired_intervals_are_students_t():
    found = by_method.compared({1: 3.0, 2: 5.0, 3: 4.5, 9: 0.0}, {1: 2.0, 2: 3.5, 3: 4.0, 4: 1.0})
    low, high = scipy.stats.ttest_1samp([1.0, 1.5, 0.5], 0).confidence_interval()
    assert (found.mean, found.n) == (1.0, 3) and found.half == pytest.approx((high - low) / 2)
    assert by_method.half_width(np.array([1.0, 1.5, 0.5])) == pytest.approx(found.half)
    assert by_method.shown(found) == f"+1.00 ± {found.half:.2f}"
    assert by_method.shown(by_method.compared({1: 3.0, 2: 4.5}, {1: 2.0, 2: 5.0})) == "+0.25 (2 seeds)"
    assert by_method.compared({1: 3.0}, {2: 2.0}) is None and by_method.shown(None) == ""


def own(view):
    return {"temperature": 4.0, "later": 1}  # as a hyper-parameter that joined after the run


def test_students_that_cannot_be_paired_are_refused(tmp_path):
    images = small.dataset()
    small.add_student(tmp_path, images, seed=1)
    small.add_student(tmp_path, images, seed=2, protocol=dataclasses.replace(small.PROTOCOL, epochs=3))
    students = [subjects.student(v, images.hash) for v in runs.scan(tmp_path)[0]]
    with pytest.raises(UsageError, match="different protocols"):
        by_method.grouped(students, own)
    assert list(by_method.grouped(students[:1], own)["kd"]) == [students[0].seed]


def test_students_of_two_precisions_are_no_pairs(tmp_path):
    """A report has a table of its own for each."""
    images = small.dataset()
    small.add_student(tmp_path, images, "student")
    small.add_student(tmp_path, images, "kd", precision="bf16")
    students = [subjects.student(v, images.hash) for v in runs.scan(tmp_path)[0]]
    with pytest.raises(UsageError, match=r"different precisions \((tf32 and bf16|bf16 and tf32)\)"):
        by_method.grouped(students, own)


def test_other_settings_are_a_row_of_their_own(tmp_path):
    images = small.dataset()
    for temperature, seeds in ((4.0, (1, 2)), (2.0, (2,))):
        for seed in seeds:
            small.add_student(tmp_path, images, seed=seed, hyper={"temperature": temperature})
    students = [subjects.student(v, images.hash) for v in runs.scan(tmp_path)[0]]
    found = by_method.grouped(students, own)
    assert {row: list(by_seed) for row, by_seed in found.items()} == {"kd": [1, 2], "kd [temperature=2.0]": [2]}
    small.add_student(tmp_path, images, seed=3, hyper={"temperature": 4.0}, teacher_hash="another")
    students = [subjects.student(v, images.hash) for v in runs.scan(tmp_path)[0]]
    with pytest.raises(UsageError, match="differ in more than the seed"):
        by_method.grouped(students, own)
