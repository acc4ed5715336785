"""The eps-graph against what is known: clusters of given sizes, the loss of identical points, one step of two points."""

import math

import numpy as np
import pytest
import torch

from bench.analysis import sync
from bench.analysis.maths import eps_graph
from methods.skd.loss import relation, rows
from tests.bench.analysis import small


def two_clusters(first: int, second: int) -> torch.Tensor:
    """Points at two orthogonal directions, each with a little spread."""
    base = torch.eye(2, 6, dtype=torch.float64).repeat_interleave(torch.tensor([first, second]), 0)
    return base + 0.01 * torch.randn(base.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_two_clusters_further_apart_than_eps():
    distances = 1 - relation(two_clusters(5, 3))
    assert eps_graph.components(eps_graph.neighbours(distances, 0.1)) == [5, 3]
    found = eps_graph.metrics(distances, 0.1)
    assert (found.with_neighbours, found.largest_cluster) == (8, 5)
    assert found.mean_neighbours == pytest.approx((5 * 4 + 3 * 2) / 8)
    assert eps_graph.metrics(distances, 1.5).largest_cluster == 8


def test_a_chain_is_one_cluster_though_its_ends_are_apart():
    near = torch.zeros(4, 4, dtype=torch.bool)
    for i in range(3):
        near[i, i + 1] = near[i + 1, i] = True
    assert eps_graph.components(near) == [4]


def test_identical_points_have_loss_0_and_lonely_ones_add_0():
    assert eps_graph.loss(torch.zeros(4, 4), 0.1).item() == 0
    alone = torch.ones(3, 3) - torch.eye(3)
    assert eps_graph.loss(alone, 0.5).item() == 0
    assert eps_graph.metrics(alone, 0.5).mean_distance is None
    pair = torch.tensor([[0, 0.2, 1], [0.2, 0, 1], [1, 1, 0]])
    assert eps_graph.loss(pair, 0.5).item() == pytest.approx(0.4 / 3)
    assert eps_graph.loss(pair, 0.2).item() == pytest.approx(0.4 / 3)  # at most eps
    assert eps_graph.loss(pair, 0.1).item() == 0


def test_one_step_of_two_points_in_closed_form():
    points = torch.tensor([[1.0, 0.2], [0.9, 0.5]], dtype=torch.float64)
    step = torch.tensor([math.sin(-0.1), math.sin(0.3)], dtype=torch.float64)
    torch.testing.assert_close(eps_graph.kuramoto_step(points, 0.5), points + torch.stack([step, -step]))
    torch.testing.assert_close(eps_graph.kuramoto_step(points, 1e-6), points)


def test_activations_are_averaged_over_images_though_the_halves_differ_in_size(tmp_path):
    images = small.dataset()
    subjects = small.subjects_of(tmp_path, images, 0)
    context = small.context(tmp_path, images, subjects)
    even, odd, whole = sync._halves(context, subjects[0], {"stage3": 3}, 5)["stage3"]  # of 2, 2 and 1 images
    maps = context.outputs(subjects[0], next(context.batches(5))[0], ("stage",)).maps["stage"][3]
    each = relation(rows(maps)).double()
    for found, at in ((even, [0, 1, 4]), (odd, [2, 3]), (whole, [0, 1, 2, 3, 4])):
        torch.testing.assert_close(torch.from_numpy(found), each[at].mean(0), atol=1e-5, rtol=0)


def test_the_stability_is_of_cosines_between_channels():
    first, second = np.eye(3), np.full((3, 3), 0.5)
    assert sync._stability(first, second) == pytest.approx(0.5)
    np.fill_diagonal(second, 1)
    assert sync._stability(first, second) == pytest.approx(0.5)  # over all cells it would be a third
