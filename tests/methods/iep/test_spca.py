"""First component, stereographic projection and the PCA of a stream against numpy and against their identities."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.iep.spca import (
    CovariancePCA,
    IncrementalPCA,
    Projection,
    affinity,
    batch_pca,
    first_component,
    sign_rule,
    stereographic,
    student_component,
    uses_gram,
)
from models.randomness import generator


def inverse_stereographic(q: Tensor) -> Tensor:
    """Back from the plane (B, D) to the unit sphere."""
    o = 1.0 / math.sqrt(q.shape[-1])
    return (q + 2.0 * o) / (1.0 + q.square().sum(-1, keepdim=True) / 4.0) - o


def draw(*shape, purpose="spca"):
    return torch.randn(*shape, generator=generator(0, f"{purpose}{shape}"))


def maps(*shape):
    """Like maps after ReLU: non-negative with a dominant part."""
    return (draw(*shape) + 0.5).relu()


def oracle(x):
    """numpy's first singular pair of each HW x D matrix."""
    u, _, vt = np.linalg.svd(x.flatten(2).transpose(1, 2).double().numpy(), full_matrices=False)
    return torch.from_numpy(vt[:, 0]), torch.from_numpy(u[:, :, 0])


SHAPES = [(5, 16, 8, 8), (5, 64, 4, 4), (5, 400, 21, 20)]  # wide, tall, and too large for the Gram matrix to pay


@pytest.mark.parametrize("shape", SHAPES)
def test_first_component_equals_numpy_svd(shape):
    x = maps(*shape)
    found = first_component(x)
    v, u = oracle(x)
    assert (found.v * v).sum(1).abs().sub(1).abs().max() < 1e-6
    assert (found.v.double() - v * (found.v * v).sum(1, keepdim=True).sign()).abs().max() < 1e-4
    assert (found.u.double() - u * (found.u * u).sum(1, keepdim=True).sign()).abs().max() < 1e-4
    assert found.residual.max() < 1e-4


def test_shapes_choose_between_gram_and_map():
    assert [uses_gram(s[1], s[2] * s[3], 12) for s in SHAPES] == [True, True, False]


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_hard_images_fall_back_on_the_eigendecomposition(shape):
    """Signed maps with two close singular values do not converge in two steps: seen by the residual, repaired by the check."""
    x = draw(*shape)
    loose, checked = first_component(x, steps=2), first_component(x, steps=2, check=True)
    v, _ = oracle(x)
    assert loose.residual.min() > 1e-3
    assert (loose.v * v).sum(1).abs().min() < 0.99
    assert (checked.v * v).sum(1).abs().sub(1).abs().max() < 1e-5
    assert checked.residual.max() <= 1e-3


def test_check_leaves_converged_images_alone():
    x = maps(4, 16, 8, 8)
    assert torch.equal(first_component(x, check=True).v, first_component(x).v)


def test_sign_rule():
    v = torch.tensor([[0.1, -0.9], [0.9, -0.1], [0.5, -0.5], [0.0, 0.0]])
    assert sign_rule(v).squeeze(1).tolist() == [-1.0, 1.0, 1.0, 1.0]
    found = first_component(draw(6, 8, 4, 4), check=True)
    assert (found.v.amax(1) + found.v.amin(1) >= 0).all()
    pair = torch.einsum("bdp,bp->bd", draw(6, 8, 4, 4).flatten(2), found.u)
    assert ((pair * found.v).sum(1) > 0).all()  # u carries the sign too: F^T u points along v


def test_components_of_maps_after_relu_are_non_negative():
    found = first_component(maps(8, 16, 8, 8))
    assert found.v.min() >= 0 and found.u.min() >= 0


def test_memory_format_and_flat_input_do_not_matter():
    x = maps(4, 16, 8, 8)
    expected = first_component(x).v
    assert torch.allclose(first_component(x.contiguous(memory_format=torch.channels_last)).v, expected, atol=1e-6)
    assert torch.equal(first_component(x.flatten(2)).v, expected)


def test_dead_map_stays_finite_and_lands_on_the_origin():
    x = torch.zeros(2, 16, 4, 4, requires_grad=True)
    found = first_component(x)
    assert torch.equal(found.v, torch.zeros(2, 16))
    assert torch.equal(found.residual, torch.zeros(2))
    flat = stereographic(student_component(x, found.u))
    assert flat.abs().max() < 1e-6
    flat.square().sum().backward()
    assert x.grad.isfinite().all()


def test_students_component_equals_the_teachers_for_the_same_map():
    x = maps(5, 16, 8, 8)
    found = first_component(x)
    assert torch.allclose(student_component(x, found.u), found.v, atol=1e-6)


def test_stereographic_identities():
    p = torch.nn.functional.normalize(draw(50, 12).abs().double(), dim=1)
    o = torch.full((12,), 1 / math.sqrt(12), dtype=torch.float64)
    flat = stereographic(p)
    angle = torch.acos(p @ o)
    printed = (p + o) / torch.cos(angle / 2)[:, None] ** 2 - 2 * o  # Eq. 4 as it stands
    assert torch.allclose(flat, printed, atol=1e-12)
    assert (flat @ o).abs().max() < 1e-12
    assert torch.allclose(flat.norm(dim=1), 2 * torch.tan(angle / 2), atol=1e-12)
    assert torch.allclose(inverse_stereographic(flat), p, atol=1e-12)


def test_stereographic_gradient_is_finite_at_the_centre():
    p = torch.full((1, 9), 1 / 3.0, requires_grad=True)
    stereographic(p).sum().backward()
    assert p.grad.isfinite().all()


def stream(count=200, dim=10):
    return draw(count, dim) @ torch.diag(torch.arange(dim, 0, -1.0)) + draw(dim)


def test_streaming_covariance_equals_pca_of_all_rows_in_any_order():
    rows = stream()
    a, b = CovariancePCA(10, 5), CovariancePCA(10, 5)
    for part in rows.split(32):
        a.update(part)
    for part in rows[torch.randperm(200, generator=generator(0, "order"))].split(7):
        b.update(part)
    mean, basis, sigma = a.solve()
    centred = rows.double().numpy() - rows.double().numpy().mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(mean, rows.mean(0), atol=1e-5)
    assert np.abs(np.abs((vt[:5] * basis.T.numpy()).sum(1)) - 1).max() < 1e-5
    assert np.abs(sigma.numpy() - s[:5] / math.sqrt(200)).max() < 1e-4
    for x, y in zip(a.solve(), b.solve(), strict=True):
        assert torch.allclose(x, y, atol=1e-5)


def test_basis_near_another_spans_the_same_and_is_closest():
    pca = CovariancePCA(10, 5)
    pca.update(stream())
    _, basis, _ = pca.solve()
    turned = torch.linalg.qr(draw(5, 5)).Q
    _, near, _ = pca.solve(near=basis @ turned)
    assert torch.allclose(near, basis @ turned, atol=1e-5)
    assert torch.allclose(near @ near.T, basis @ basis.T, atol=1e-5)


def test_incremental_pca_with_all_components_is_exact_with_ross_weighting():
    rows = stream()
    pca, unit = IncrementalPCA(10, 10, old_mean=None), IncrementalPCA(10, 10, old_mean=None, ross=False)
    for part in rows.split(32):
        pca.update(part)
        unit.update(part)
    _, s, vt = np.linalg.svd(rows.double().numpy() - rows.double().numpy().mean(0), full_matrices=False)
    mean, basis, sigma = pca.solve()
    assert torch.allclose(mean, rows.mean(0), atol=1e-4)
    assert np.abs(sigma.numpy() * math.sqrt(200) - s).max() < 1e-2
    assert np.abs(np.abs((vt * basis.T.numpy()).sum(1)) - 1).max() < 1e-3
    assert np.abs(unit.values.numpy() - s).max() > 1e-2  # without the weight the mean row counts too little


@pytest.mark.parametrize(("old_mean", "ross"), [(0.9, True), (0.1, False)])
def test_the_first_batch_has_no_old_mean(old_mean, ross):
    rows = 20.0 + stream()[:32]
    pca = IncrementalPCA(10, 10, old_mean=old_mean, ross=ross)
    pca.update(rows)
    assert torch.allclose(pca.values, torch.linalg.svdvals(rows - rows.mean(0)), atol=1e-4)


def test_incremental_mean_is_the_moving_average():
    a, b = torch.full((4, 3), 1.0), torch.full((4, 3), 3.0)
    pca = IncrementalPCA(3, 1, old_mean=0.1, ross=False)
    pca.update(a)
    pca.update(b)
    assert torch.allclose(pca.mean, torch.full((3,), 0.1 * 0.9 + 0.9 * 3.0))


def test_batch_pca_of_few_rows_keeps_its_shape():
    mean, basis, sigma = batch_pca(draw(1, 8), 4)
    assert basis.shape == (8, 4) and sigma.abs().max() < 1e-6 and mean.isfinite().all()


def coordinates(projection, x):
    return projection(stereographic(first_component(x).v))


def test_affinity_is_a_cosine_and_blind_to_image_scale_and_pixel_order():
    x = maps(12, 16, 8, 8)
    projection, pca = Projection(16, 8), CovariancePCA(16, 8)
    pca.update(stereographic(first_component(x).v))
    projection.set(*pca.solve())
    a = affinity(coordinates(projection, x))
    assert torch.allclose(a.diagonal(), torch.ones(12), atol=1e-5) and torch.allclose(a, a.T, atol=1e-6)
    scale = torch.linspace(0.1, 9, 12)[:, None, None, None]
    order = torch.randperm(64, generator=generator(0, "pixels"))
    shuffled = x.flatten(2)[:, :, order]
    assert torch.allclose(affinity(coordinates(projection, x * scale)), a, atol=1e-4)
    assert torch.allclose(affinity(coordinates(projection, shuffled)), a, atol=1e-4)
    assert not torch.allclose(affinity(coordinates(projection, maps(12, 16, 8, 8).flip(0))), a, atol=1e-2)


def test_pixels_of_teacher_and_student_permuted_together_change_nothing():
    teacher, student = maps(12, 16, 8, 8), maps(12, 16, 8, 8).flip(0)
    order = torch.randperm(64, generator=generator(0, "pixels"))

    def relation(t, s):
        return affinity(stereographic(student_component(s, first_component(t).u)))

    a = relation(teacher.flatten(2), student.flatten(2))
    assert torch.allclose(relation(teacher.flatten(2)[:, :, order], student.flatten(2)[:, :, order]), a, atol=1e-4)
    assert not torch.allclose(relation(teacher.flatten(2)[:, :, order], student.flatten(2)), a, atol=1e-3)
    scale = torch.linspace(0.1, 9, 12)[:, None, None]
    assert torch.allclose(relation(teacher.flatten(2), student.flatten(2) * scale), a, atol=1e-4)


def test_sigma_scale_multiplies_the_coordinates():
    plain, scaled = Projection(6, 3), Projection(6, 3, scale=True)
    state = torch.zeros(6), torch.eye(6)[:, :3], torch.tensor([3.0, 2.0, 1.0])
    plain.set(*state)
    scaled.set(*state)
    rows = draw(4, 6)
    assert torch.equal(scaled(rows), plain(rows) * torch.tensor([3.0, 2.0, 1.0]))
