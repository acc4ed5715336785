"""IEP's knowledge as an analysis: the teacher against itself is at distance 0, invariances of the affinities, hand-made distances."""

import dataclasses

import pytest
import torch

from bench.analysis.frame import registry
from bench.analysis.frame.context import obtain
from bench.analysis.frame.subjects import Subject
from bench.analysis.maths import knowledge
from bench.errors import UsageError
from bench.plan.profiles import PROFILES
from methods.iep.hyper import Hyper
from methods.iep.mpnn import Knowledge
from methods.iep.phase_one import Stages
from methods.iep.spca import stereographic
from models.randomness import keyed
from tests.bench.analysis import small

N, WIDTHS, SIDES = 12, (6, 8, 10), (8, 4, 2)


def stages() -> Stages:
    """Untrained networks over a PCA of planted directions."""
    with keyed(0, "knowledge"):
        made = Stages(Hyper(), WIDTHS).eval()
    for projection, width in zip(made.projections, WIDTHS, strict=True):
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator(width))).Q
        projection.set(stereographic(torch.full((1, width), width**-0.5))[0], basis[:, : width // 2], torch.ones(width // 2))
    return made.requires_grad_(False)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(seed: int = 0) -> list[torch.Tensor]:
    return [torch.rand(N, w, s, s, generator=generator(seed + w)) for w, s in zip(WIDTHS, SIDES, strict=True)]


def test_a_student_that_is_the_teacher_is_at_distance_0():
    made, teacher = stages(), maps()
    known, patterns = knowledge.of_teacher(made, teacher, 60)
    same = knowledge.apart(known, knowledge.of_student(made, teacher, patterns))
    for name in ("affinity", "int", "alt"):
        assert same[name].abs().max() < 1e-4, name
    assert same["correlation"] == pytest.approx(1) and same["alteration"] == pytest.approx(1)
    other = knowledge.apart(known, knowledge.of_student(made, maps(9), patterns))
    assert all(other[name].min() > 1e-3 for name in ("affinity", "int", "alt")) and other["correlation"].max() < 0.9


def test_the_phase_that_any_profile_asks_for_can_be_asked_for():
    options = {f.name for f in dataclasses.fields(registry.get("knowledge").Options)}
    asked = {field for p in PROFILES.values() for method, field, _ in (*p.hyper, *p.variant) if method == "iep" and field.startswith("phase_")}
    assert "phase_batch" in asked and asked <= options


def test_affinities_are_cosines_and_know_neither_brightness_nor_the_order_of_pixels():
    made, teacher = stages(), maps()
    known, patterns = knowledge.of_teacher(made, teacher, 60)
    a = known.affinities
    torch.testing.assert_close(a.diagonal(dim1=1, dim2=2), torch.ones(3, N))
    torch.testing.assert_close(a, a.transpose(1, 2))
    moved = []
    for m in teacher:
        order = torch.randperm(m.shape[2] * m.shape[3], generator=generator(1))
        scale = torch.rand(N, 1, 1, generator=generator(2)) + 0.5
        moved.append((m.flatten(2) * scale)[:, :, order].view_as(m))
    again, turned = knowledge.of_teacher(made, moved, 60)
    torch.testing.assert_close(again.affinities, a, atol=1e-4, rtol=0)
    student = knowledge.of_student(made, teacher, patterns)
    torch.testing.assert_close(knowledge.of_student(made, moved, turned).affinities, student.affinities, atol=1e-4, rtol=0)


def test_distances_of_hand_made_knowledge():
    def known(first: list[float], second: list[float], message: float) -> knowledge.Known:
        a = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
        for matrix, (x, y, z) in zip(a, (first, second), strict=True):
            for (i, j), value in zip(((0, 1), (0, 2), (1, 2)), (x, y, z), strict=True):
                matrix[i, j] = matrix[j, i] = value
        return knowledge.Known(a, [Knowledge(a[0], a[1], (torch.full((3, 3, 2), message), torch.zeros(3, 3, 2)))])

    found = knowledge.apart(known([0.1, 0.2, 0.3], [0.1, 0.4, 0.9], 0.5), known([0.2, 0.3, 0.4], [0.7, 0.6, 0.3], 0.75))
    torch.testing.assert_close(found["affinity"], torch.tensor([0.1, (0.6 + 0.2 + 0.6) / 3], dtype=torch.float64))
    assert found["correlation"][0].item() == pytest.approx(1) and found["alteration"].shape == (1,)
    assert found["alteration"].item() == pytest.approx(-1)  # (0, 0.2, 0.6) and (0.5, 0.3, -0.1)
    assert found["alt"].item() == pytest.approx(2 * 0.25)


def test_other_images_are_as_far_as_another_order():
    known, _ = knowledge.of_teacher(stages(), maps(), 60)
    order = torch.randperm(N, generator=generator(3))
    moved = knowledge.shuffled(known, order)
    assert moved.affinities[1, 0, 1] == known.affinities[1, order[0], order[1]]
    torch.testing.assert_close(knowledge.shuffled(moved, order.argsort()).affinities, known.affinities)


def test_a_student_of_other_shapes_is_refused(tmp_path):
    images = small.dataset()
    teacher, student = small.subjects_of(tmp_path, images, 1)
    wide = Subject(**{**student.facts(), "file": student.file, "architecture": "resnet8x4"})
    analysis = registry.get("knowledge")
    with pytest.raises(UsageError, match="stages of its shapes"):
        obtain(analysis(small.quick(analysis)), small.context(tmp_path, images, [teacher, wide]))
