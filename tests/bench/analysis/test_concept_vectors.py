"""Concept vectors on planted channels: one that is the concept, a union of two; the strict threshold; arithmetic; AUC against brute force; halves
of images in turns, and concepts of which nothing is found."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.analysis import concepts
from bench.analysis.frame.base import Stored
from bench.analysis.maths import concept_fits as fits
from bench.analysis.maths import concept_vectors as cv
from bench.analysis.maths.concept_fits import _nearest
from bench.analysis.probes.base import Annotated, Concept
from bench.errors import UsageError

CHANNELS, IMAGES, SIZE = 4, 160, 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(union: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse channels, as a high threshold makes them; the concept is what channel 2 (and 3, with `union`) marks."""
    on = torch.rand(IMAGES, CHANNELS, SIZE, SIZE, generator=generator()) < 0.05
    shown = on[:, 2] | on[:, 3] if union else on[:, 2]
    return on, shown


EVERY = torch.ones(CHANNELS, dtype=torch.bool)


def test_a_planted_channel_is_found_by_one_and_by_all():
    on, label = planted(union=False)
    assert cv.single(on, label).argmax() == 2
    weights = cv.fit(on, label, EVERY, concepts.Options(), generator(1))
    assert torch.nn.functional.cosine_similarity(weights, torch.eye(CHANNELS)[2], dim=0) > 0.9
    assert cv.strongest(weights, 1).nonzero().item() == 2


def test_a_union_of_two_is_better_by_all_than_by_the_best_one():
    on, label = planted(union=True)
    weights = cv.fit(on, label, EVERY, concepts.Options(), generator(1))
    assert cv.iou(on, label, weights) > cv.single(on, label).max() + 0.1
    assert set(cv.strongest(weights, 2).nonzero().flatten().tolist()) == {2, 3}
    pair = cv.fit(on, label, cv.strongest(weights, 2), concepts.Options(), generator(1))
    assert (pair != 0).nonzero().flatten().tolist() == [2, 3]


def test_a_pixel_without_an_active_channel_is_not_the_concept():
    on, label = torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    assert cv.field(on, torch.ones(2), 4).sigmoid().unique().tolist() == [0.5]
    assert cv.iou(on.bool(), label, torch.ones(2)) == 0


def test_the_loss_is_linear_in_the_mask():
    z, label = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    mask = torch.sigmoid(torch.tensor(2.0)).item()
    assert cv.loss(z, label, 0.75).item() == pytest.approx(-(0.75 * 0.5 + 0.25 * (1 - mask)))


def test_channels_are_summed_before_upsampling():
    on, weights = torch.rand(2, 3, 4, 4, generator=generator()).round(), torch.tensor([1.0, -2.0, 0.5])
    up = torch.nn.functional.interpolate(on, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cv.field(on, weights, 8), (up * weights[:, None, None]).sum(1))


def test_arithmetic_on_a_planted_orthogonal_basis():
    basis = torch.eye(5)
    vectors = torch.cat([basis[:3] * 7, (basis[0] + basis[1])[None], (basis[0] - basis[2])[None]])
    assert cv.combine(vectors, [0, 1], []) == (3, pytest.approx(1))
    assert cv.combine(vectors, [0], [2]) == (4, pytest.approx(1))
    assert cv.combine(vectors, [3], [1])[0] in (0, 4)


def test_auc_counts_pairs():
    scores, y = torch.tensor([[1.0, 5.0], [2.0, 5.0], [2.0, 1.0], [4.0, 0.0]]), torch.tensor([[True], [False], [True], [True]])
    wins = [sum((a > b) + 0.5 * (a == b) for a in s[y[:, 0]] for b in s[~y[:, 0]]).item() / 3 for s in scores.T]
    assert cv.auc(scores, y)[0].tolist() == pytest.approx(wins)
    assert cv.auc(scores, torch.ones(4, 1, dtype=torch.bool)).tolist() == [[0.5, 0.5]]


def test_a_planted_direction_is_told():
    x = torch.randn(400, 5, generator=generator())
    y = ((x @ torch.tensor([2.0, 0, -1, 0, 0])) > 1.5)[:, None]
    weights, bias = cv.classify(x, y)
    assert torch.nn.functional.cosine_similarity(weights[0], torch.tensor([2.0, 0, -1, 0, 0]), dim=0) > 0.98
    assert cv.auc(x @ weights.T + bias, y).item() > 0.99


def test_sums_are_read_and_unknown_concepts_refused():
    names = ["red", "blue green", "white"]
    assert concepts._terms("red+white-blue green", names) == ([0, 2], [1])
    with pytest.raises(UsageError, match="no concept 'mauve'; it has red"):
        concepts._terms("red+mauve", names)
    for text in ("", "red+", "red white", "redwhite"):
        with pytest.raises(UsageError, match="no concept"):
            concepts._terms(text, names)


def test_a_name_may_hold_a_hyphen():
    names = ["polka", "dotted", "polka-dotted", "red-c"]
    assert concepts._terms("polka-dotted + red-c", names) == ([2, 3], [])
    assert concepts._terms("red-c-polka", names) == ([3], [0])


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        concepts.Options(most_concepts=-5)


def test_the_nearest_is_sought_among_those_allowed():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]]).numpy()
    names = ["class a", "its coarse class", "class b", "alone"]
    groups = torch.tensor([0, 1, 0, 2])
    assert [name for name, _ in _nearest(vectors, [0, 1, 2, 3], names)] == ["its coarse class", "class a", "its coarse class", "class b"]
    found = _nearest(vectors, [0, 1, 2, 3], names, groups[:, None] == groups)
    assert found[0] == ("class b", pytest.approx(0.5**0.5)) and found[1] == ("–", 0.0) and found[2][0] == "class a" and found[3] == ("–", 0.0)


class Turns:
    """A probe whose concepts come in turns, as the classes of embedded data do: image i shows concept i % 2."""

    name, count, size = "turns", 60, 4
    concepts = (Concept("first", "class"), Concept("second", "class"))

    def batches(self, batch: int):
        whole = 1 + torch.arange(self.count)[:, None] % 2
        yield Annotated(torch.zeros(self.count, 3, self.size, self.size), (), whole, torch.zeros(0))


def test_halves_share_the_classes_of_images_in_turns():
    labels = fits.labelled(Turns(), concepts.Options(most_images=12))
    assert labels.told == [0, 1] and labels.left_out == 0
    assert sorted([*labels.train.tolist(), *labels.test.tolist()]) == list(range(60)) and len(labels.train) == 30
    for concept in (0, 1):
        train, test = labels.halves(concept)
        assert len(train) <= 12 <= len(test) and not set(train.tolist()) & set(test.tolist())
        assert labels.has[train, concept].all() and labels.has[test, concept].all()
    pooled = labels.has[:, :1].float() + 0.1 * torch.randn(60, 1, generator=generator())
    rows, _ = fits.classified("stage1", {"stage1.pooled": pooled.numpy()}, labels)
    assert [row["all"] for row in rows] == [1, 1]


class Silent(Turns):
    """The same with a pixel of the concept in each image."""

    def batches(self, batch: int):
        (one,) = super().batches(batch)
        plane = torch.zeros(self.count, 1, self.size, self.size, dtype=torch.int64)
        plane[:, 0, 0, 0] = one.whole[:, 0]
        yield Annotated(one.images, (plane,), torch.zeros(self.count, 0, dtype=torch.int64), one.shown)


def test_where_all_channels_find_nothing_no_number_of_them_is_needed():
    labels = fits.labelled(Silent(), concepts.Options())
    on = np.zeros((60, 4, 4, 4), dtype=bool)
    on[::2, 1, 0, 0] = True  # the first concept is channel 1, the second no channel's
    seen = {"stage1.on": np.packbits(on.reshape(60, -1), axis=1), "stage1.shape": np.array(on.shape)}
    context = SimpleNamespace(part=lambda unit, make: make(), progress=lambda items, total, what: items)
    rows, _ = fits.segmented(context, "stage1", seen, labels, concepts.Options(epochs=40, rate=0.01))
    assert [row["needed"] for row in rows] == [1, None] and [row["all"] for row in rows] == [1, 0]
    assert concepts._summary(rows, [])["needed"] == 1 and concepts._summary(rows[1:], [])["needed"] is None
    assert (concepts._count(None), concepts._count(2.0)) == ("–", "2")


def test_a_result_without_any_concept_has_no_figure():
    layer = {"layer": "stage1", "same_group": None, "chance": None} | concepts._summary([], [])
    facts = {"layers": [layer], "segmentation": [], "classification": [], "arithmetic": [], "images": 4, "probe": "turns", "left_out": 2}
    stored = Stored("key", "concepts", {"version": 2, "options": {"share": 0.9}, "networks": [{"label": "resnet8"}]}, facts, {}, {})
    assert concepts.Concepts.draw(stored) == [] and len(concepts.Concepts.tables(stored)[0].rows) == 1
