"""IEP's knowledge of a teacher and of a student on the same images, and how far they are apart (Lee and Song, AAAI 2021)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from methods.iep.knowledge import alteration_loss, intermediate_loss
from methods.iep.mpnn import Knowledge
from methods.iep.phase_one import Stages
from methods.iep.spca import affinity, first_component, student_component


class Known(NamedTuple):
    """Of one network on one batch of N images, L sensing points."""

    affinities: Tensor  # A_l (L, N, N), Eq. 7
    knowledge: list[Knowledge]  # K^int and K^alt of each adjacent pair of points, Eq. 12 and 15


def of_teacher(stages: Stages, maps: Sequence[Tensor], steps: int) -> tuple[Known, list[Tensor]]:
    """The teacher's knowledge and its spatial patterns u (N, HW) of each point; maps (N, D, H, W) of each point."""
    components = [first_component(m, steps, check=True) for m in maps]
    return _known(stages, [c.v for c in components], fit=True), [c.u for c in components]


def of_student(stages: Stages, maps: Sequence[Tensor], patterns: Sequence[Tensor]) -> Known:
    """A student's, through the teacher's patterns, PCA and networks (Eq. 16 to 19); maps of the teacher's shapes."""
    return _known(stages, [student_component(m, u) for m, u in zip(maps, patterns, strict=True)])


def _known(stages: Stages, points: Sequence[Tensor], fit: bool = False) -> Known:
    coordinates = stages.coordinates(points, fit=fit)
    return Known(torch.stack([affinity(c) for c in coordinates]), stages(coordinates))


def apart(teacher: Known, student: Known) -> dict[str, Tensor]:
    """How far a student is from the teacher, one number a point or a pair of points, fp64.

    affinity (L,): mean |A^S - A^T| over pairs of different images; correlation (L,): of these entries; alteration (L - 1,): correlation of
    A_{l+1} - A_l; int (L - 1,): KL(teacher || student) of K^int in nats an image; alt (L - 1,): L^alt, Eq. 19.
    """
    a, b = teacher.affinities.double(), student.affinities.double()
    n = a.shape[-1]
    pairs = list(zip(student.knowledge, teacher.knowledge, strict=True))
    return {
        "affinity": (_off(a) - _off(b)).abs().mean(1),
        "correlation": _correlation(_off(a), _off(b)),
        "alteration": _correlation(_off(a.diff(dim=0)), _off(b.diff(dim=0))),
        "int": torch.stack([intermediate_loss(s.readout, t.readout) for s, t in pairs]).double() / n,
        "alt": torch.stack([alteration_loss(s.messages, t.messages) for s, t in pairs]).double(),
    }


def shuffled(teacher: Known, order: Tensor) -> Known:
    """The same with the images in another order: what a network would give that knows other images."""
    knowledge = [Knowledge(*(x[order][:, order] for x in k[:2]), tuple(m[order][:, order] for m in k.messages)) for k in teacher.knowledge]
    return Known(teacher.affinities[:, order][:, :, order], knowledge)


def _off(a: Tensor) -> Tensor:
    """The entries off the diagonal: (L, N, N) -> (L, N (N - 1))."""
    return a[:, ~torch.eye(a.shape[-1], dtype=torch.bool, device=a.device)]


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, over the last dimension; 0 where one is constant."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-12)
