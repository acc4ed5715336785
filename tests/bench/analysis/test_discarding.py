"""Knowledge quantification against its closed form for a linear network, planted networks, and sets counted by hand."""

import math

import numpy as np
import pytest
import torch

from bench.analysis.maths import concept_counts as counting
from bench.analysis.maths.discarding import CONSTANT, Search, discarded, level, noise, spread
from models.randomness import generator

SIZE, GRID = 8, 4


def draw(step: int, draws: int) -> torch.Tensor:
    return noise(generator(0, "test", step + 1), draws, SIZE, torch.zeros((), dtype=torch.float64))


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=generator(0, "images"), dtype=torch.float64)


def linear(weights: torch.Tensor):
    """Features W x + 5000, so that their ReLU is the identity: weights (L, 3, S, S)."""
    return lambda x: x.flatten(1) @ weights.flatten(1).T + 5000


def planted() -> torch.Tensor:
    """Weights of 32 outputs that differ from cell to cell by factors up to 3."""
    factors = spread(torch.linspace(1, 3, GRID * GRID, dtype=torch.float64).view(GRID, GRID), SIZE)
    return torch.randn(32, 3, SIZE, SIZE, generator=generator(0, "weights"), dtype=torch.float64) * factors


def energy(weights: torch.Tensor) -> torch.Tensor:
    """W_g: squared weights of each cell, (G, G)."""
    return weights.square().sum((0, 1)).view(GRID, SIZE // GRID, GRID, SIZE // GRID).sum((1, 3))


def test_the_penalty_reaches_its_closed_form_within_1_percent():
    weights, search = planted(), Search("penalty", steps=300, draws=512, weight=1.0, high=10.0)
    w = energy(weights)
    found, valid = discarded(linear(weights), images(), GRID, search, draw)
    expected = search.start * (search.weight * w.sum() / (2 * GRID * GRID * w)).sqrt()
    assert valid.all()
    assert ((found - CONSTANT).exp().mean(0) / expected - 1).abs().max() < 0.03  # the scale's own draws are in it: a common factor
    ratio = (found - CONSTANT).exp().mean(0) / expected
    assert (ratio / ratio.mean() - 1).abs().max() < 0.01


def test_matching_the_mean_gives_the_same_distribution():
    weights = planted()
    w = energy(weights)
    found, _ = discarded(linear(weights), images(), GRID, Search(steps=300, draws=512), draw)
    assert found.mean((1, 2)).tolist() == pytest.approx([-2.8, -2.8], abs=1e-6)
    closed = -0.5 * w.log()
    expected = closed - closed.mean() - 2.8
    assert ((found - expected).exp() - 1).abs().max() < 0.01


@pytest.mark.parametrize("spread_of", [0.3, 1.0, 1.5], ids=["even", "sharp", "very sharp"])
@pytest.mark.parametrize("steps", [30, 60])
def test_sharp_maps_are_not_cut_off(spread_of, steps):
    """Log sigmas that lie up to four nats from their mean, with the steps and draws of everyday use."""
    g = generator(0, "sharp")
    factors = spread((2 * spread_of * torch.randn(GRID, GRID, generator=g, dtype=torch.float64)).exp().sqrt(), SIZE)
    weights = torch.randn(64, 3, SIZE, SIZE, generator=g, dtype=torch.float64) * factors
    found, _ = discarded(linear(weights), images(1), GRID, Search(steps=steps), draw)
    closed = -0.5 * energy(weights).log()
    expected = level(closed[None], -2.8 - CONSTANT, math.log(0.001), 0.0) + CONSTANT
    assert (found - expected).square().mean().sqrt() < 0.25


def test_entropies_are_minus_half_the_log_of_the_jacobians_energy_for_a_smooth_network():
    weights = planted() / 60
    feature = lambda x: torch.tanh(x.flatten(1) @ weights.flatten(1).T) + 5  # noqa: E731
    x = images(1)
    jacobian = torch.autograd.functional.jacobian(feature, x)[0, :, 0]
    closed = -0.5 * energy(jacobian).log()
    found, _ = discarded(feature, x, GRID, Search(steps=300, draws=256, target=-5.0, low=1e-5), draw)
    torch.testing.assert_close(found[0], closed - closed.mean() - 5.0, atol=0.03, rtol=0)


def test_the_scale_of_the_feature_does_not_matter():
    weights, search = planted(), Search("penalty", steps=30, draws=16)
    once, _ = discarded(linear(weights), images(), GRID, search, draw)
    more, _ = discarded(linear(10 * weights), images(), GRID, search, draw)
    torch.testing.assert_close(once, more, atol=1e-7, rtol=1e-7)


def test_images_do_not_know_of_each_other():
    weights, search = planted(), Search(steps=20, draws=8)
    feature = lambda x: torch.tanh((linear(weights)(x) - 5000) / 30)  # noqa: E731
    together, _ = discarded(feature, images(3), GRID, search, draw)
    alone, _ = discarded(feature, images(3)[1:2], GRID, search, draw)
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("mode", ("match", "penalty"))
def test_a_network_that_looks_only_inside_the_mask(mode):
    mask = torch.zeros(GRID, GRID, dtype=torch.bool)
    mask[1:3, 1:3] = True
    found, _ = discarded(linear(planted() * spread(mask, SIZE)), images(), GRID, Search(mode, steps=120, draws=32), draw)
    entropy, foreground = found.numpy()[None], mask.numpy()[None].repeat(2, 0)
    counted = counting.counts(counting.concepts(entropy, foreground, 0.2), foreground)
    assert (counted["bg"] == 0).all() and (counted["fg"] == 4).all() and (counted["ratio"] == 1).all()
    if mode == "penalty":
        assert (found[:, ~mask] == found[:, ~mask][0, 0]).all()  # all alike, on their way to the clamp


def test_unused_cells_go_to_the_clamp_and_a_dead_feature_is_said():
    mask = torch.zeros(GRID, GRID, dtype=torch.bool)
    mask[0, 0] = True
    search = Search("penalty", steps=300, draws=16, high=0.1)
    found, valid = discarded(linear(planted() * spread(mask, SIZE)), images(), GRID, search, draw)
    assert valid.all() and found[:, ~mask].max().item() == pytest.approx(math.log(0.1) + CONSTANT)
    dead, valid = discarded(lambda x: 0 * x.flatten(1)[:, :3] - 1, images(), GRID, Search(steps=3, draws=4), draw)
    assert not valid.any() and torch.isfinite(dead).all()


def test_the_codes_search_reports_the_iterate_nearest_the_target():
    weights = planted()
    found, _ = discarded(linear(weights), images(), GRID, Search("code", draws=96, weight=7.0), draw)
    assert (found.mean((1, 2)) + 2.8).abs().max() < 0.05
    order = energy(weights).flatten()
    assert np.corrcoef(found[0].flatten(), -order.log())[0, 1] > 0.9
    start, _ = discarded(linear(weights), images(), GRID, Search("code", draws=8, target=-3.2), draw)
    assert (start.mean((1, 2)) + 3.2).abs().max() < 0.05


def test_levelling_keeps_to_the_clamp():
    found = level(torch.tensor([[[-9.0, 0.0], [1.0, 2.0]]]), -1.0, -3.0, 0.5)
    assert found.mean().item() == pytest.approx(-1.0, abs=1e-5) and found.min() == -3.0
    torch.testing.assert_close(found.flatten()[1:].diff(), torch.tensor([1.0, 0.5]), atol=0.6, rtol=0)


def test_entropies_by_hand():
    """One image, 2 x 2 cells, the upper row is the object; two checkpoints."""
    foreground = np.array([[[True, True], [False, False]]])
    entropy = np.array([[[[-3.5, -3.0], [-2.0, -3.0]]], [[[-3.5, -2.0], [-3.0, -3.0]]]])  # background means -2.5 and -3
    found = counting.concepts(entropy, foreground, 0.2)
    np.testing.assert_array_equal(found[:, 0], [[[True, True], [False, True]], [[True, False], [False, False]]])
    counted = counting.counts(found, foreground)
    assert counted["fg"][:, 0].tolist() == [2, 1] and counted["bg"][:, 0].tolist() == [1, 0]
    assert counted["ratio"][:, 0].tolist() == pytest.approx([2 / 3, 1])
    assert counting.detours(found, foreground).tolist() == [0.5]  # one left of two ever
    assert counting.concepts(entropy, foreground, math.inf).sum() == 0
    assert counting.effective(entropy[:1], foreground).tolist() == [True]  # -3.25 on the object, -2.5 beside it
    assert counting.effective(entropy, foreground).tolist() == [False]  # at the second -2.75 and -3


def test_the_background_over_images_or_of_each():
    foreground = np.repeat(np.array([[[True, False]]]), 2, 0)
    entropy = np.array([[[[-3.0, -2.0]], [[-3.0, -3.0]]]])
    assert counting.concepts(entropy, foreground, 0.4)[0, :, 0, 0].tolist() == [True, True]  # -2.5 of both
    assert counting.concepts(entropy, foreground, 0.4, per_image=True)[0, :, 0, 0].tolist() == [True, False]


def test_distances_and_detours_of_hand_made_paths():
    fg = np.array([[0, 5, 2], [4, 5, 1], [4, 1, 3]])
    assert counting.distances(fg, (0.0, 0.5, 0.25)).tolist() == [0.5, 0.0, 0.75]  # the first of the largest
    same = np.ones((3, 1, 2, 2), dtype=bool)
    assert counting.detours(same, np.ones((1, 2, 2), dtype=bool)).tolist() == [1.0]
    assert np.isnan(counting.detours(~same, np.ones((1, 2, 2), dtype=bool))).all()


def test_an_interval_is_over_the_images_that_have_a_number_in_all_networks():
    """So few that a bootstrap over all images would draw none of them now and then."""
    ours = np.full((3, 16), np.nan)
    ours[:, :3] = [[0.5, 0.6, 0.7]] * 3
    theirs = ours - 0.1
    theirs[1, 2] = np.nan
    assert counting.numbered(ours, theirs).tolist() == [True] * 2 + [False] * 14
    assert counting.interval("rho", ours, theirs, np.random.default_rng(0), 500, True) == pytest.approx((0.1, 0.1, 0.1))


def test_verdicts_and_intervals():
    assert counting.verdict("fg", 0.1, 0.4) == "better" and counting.verdict("bg", 0.1, 0.4) == "worse"
    assert counting.verdict("d_var", -2, -1) == "better" and counting.verdict("rho", -0.1, 0.2) == "tie"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 400))
    mean, low, high = counting.interval("fg", x + 0.5, x, np.random.default_rng(1), 200, seeds=True)
    assert (mean, low, high) == pytest.approx((0.5, 0.5, 0.5))  # paired: the images' own spread goes
    y = rng.normal(size=(1, 400))
    mean, low, high = counting.interval("fg", y, np.zeros((1, 400)), np.random.default_rng(1), 2000, seeds=False)
    assert high - low == pytest.approx(2 * 1.96 * y.std() / 20, rel=0.1)
    assert counting.interval("d_var", 2 * x, x, np.random.default_rng(1), 50, seeds=False)[0] == pytest.approx(3 * x.var(1).mean())
    holes = np.array([[np.nan, 1.0, 3.0]])
    assert counting.statistic("rho", holes).tolist() == [2.0]
