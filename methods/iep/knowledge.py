"""IEP's losses as pure functions (Lee and Song 2021, Eq. 13, 18, 19 and the estimator of the black-box knowledge)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def row_divergence(target: Tensor, estimate: Tensor) -> Tensor:
    """KL(softmax target || softmax estimate) summed over all rows: (..., N, N) twice -> scalar (Eq. 13; the sum is the code's)."""
    return F.kl_div(F.log_softmax(estimate, -1), F.log_softmax(target, -1), reduction="sum", log_target=True)


def intermediate_loss(student: Tensor, teacher: Tensor, teacher_first: bool = True) -> Tensor:
    """L^int: divergence of the estimated affinities (N, N), row-wise softmax, summed over rows.

    KL(teacher || student) as in the authors' code; `teacher_first=False` gives KL(student || teacher) as Eq. 18 prints.
    """
    return row_divergence(teacher, student) if teacher_first else row_divergence(student, teacher)


def alteration_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """L^alt = 1 / N^2 * sum |m_S - m_T| over iterations, pairs and channels; messages are I tensors (N, N, D) (Eq. 19)."""
    pairs = student[0].shape[0] * student[0].shape[1]
    return sum(F.l1_loss(s, t, reduction="sum") for s, t in zip(student, teacher, strict=True)) / pairs


def estimator_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean over images of 1 - cosine(estimate, target): (N, K) twice -> scalar."""
    return (1.0 - F.cosine_similarity(estimate, target, dim=1)).mean()


def blackbox_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L^BB = KL(softmax tanh G_S || softmax tanh G_T), summed over heads and rows: attention logits (heads, N, N) -> scalar.

    Student first, unlike L^int: the direction of multi-head graph distillation's code.
    """
    return row_divergence(student.tanh(), teacher.tanh())
