"""Neighbours and compositions against brute force over the vectors."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from bench.analysis.maths.compositions import composition_scores, neighbours


@pytest.fixture
def vectors():
    return torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_composition_formula_is_brute_force(vectors):
    pairs = torch.tensor(list(itertools.combinations(range(9), 2)))
    score, gain = composition_scores(vectors, pairs)
    unit = F.normalize(vectors, dim=1)
    for n, (a, b) in enumerate(pairs.tolist()):
        for c in range(9):
            if c in (a, b):
                assert score[n, c] == gain[n, c] == -torch.inf
                continue
            expected = F.cosine_similarity(unit[a] + unit[b], unit[c], dim=0)
            alone = max(F.cosine_similarity(unit[k], unit[c], dim=0) for k in (a, b))
            assert score[n, c].item() == pytest.approx(expected.item(), abs=1e-7)
            assert gain[n, c].item() == pytest.approx((expected - alone).item(), abs=1e-7)


def test_gain_prefers_a_composition_to_a_duplicate():
    vectors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.01, 0.0], [0.0, 0.0, 1.0]])
    score, gain = composition_scores(vectors, torch.tensor([[0, 1]]))
    assert gain[0].argmax() == 2 and score[0, 2] == pytest.approx(1, abs=1e-5) and gain[0, 2] > 0.25 > gain[0, 3]


def test_opposite_vectors_stay_finite():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert composition_scores(vectors, torch.tensor([[0, 1]]))[0][0, 2].abs() < 1e-3


def test_neighbours(vectors):
    found = neighbours(vectors, 2)
    for i in range(9):
        others = sorted((j for j in range(9) if j != i), key=lambda j: -F.cosine_similarity(vectors[i], vectors[j], dim=0).item())
        assert found[i].tolist() == others[:2]
