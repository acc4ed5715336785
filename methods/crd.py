"""CRD: a student's embedding is near the teacher's of the same image and far from those of images of other classes.

Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, as the authors' code computes it: two memory banks hold the last
embeddings of all training images; each side is scored against the other side's bank at its own place and at 16,384 places of other classes,
drawn for each image without replacement; the constants that scale scores to probabilities come from the first batch. Temperature 0.07 as in
that code (for the paper, 0.1 is quoted). A smaller data set has fewer draws: as many as there are images outside its largest class (the
authors' code draws 16,384 with replacement there).

Scores are taken from the product with the whole bank, (B, N): the reference gathers (B, 16385, 128) rows of each bank instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import unit
from methods.base import Batch, Method, MethodError, Needs, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs

EPS = 1e-7  # joins probabilities


def scores(embedding: Tensor, bank: Tensor, places: Tensor, temperature: float) -> Tensor:
    """exp(v_k . e / T): embeddings e (B, D), bank of rows v (N, D), places k (B, 1 + K), the own one first -> (B, 1 + K)."""
    return ((embedding / temperature) @ bank.T).gather(1, places).exp()


def contrastive_loss(probabilities: Tensor, images: int) -> Tensor:
    """-1 / B * sum [ln p_0 / (p_0 + K / N + eps) + sum_k ln (K / N) / (p_k + K / N + eps)]; p (B, 1 + K), the image's own first, N = `images`
    -> scalar (Tian et al. 2020, noise-contrastive estimation)."""
    noise = (probabilities.shape[1] - 1) / images
    own = ((noise + EPS) / probabilities[:, 0]).log1p()  # the same logarithms, exact where they are near 0
    others = (probabilities[:, 1:] + EPS).div_(noise).log1p()
    return (own.sum() + others.sum()) / len(probabilities)


class Others:
    """The images of other classes than a given one's, and how they are drawn.

    labels (N,) of the training images; `wanted` draws an image, fewer (`count`) where a class leaves fewer. Raises MethodError where all images
    are of one class.
    """

    def __init__(self, labels: Tensor, wanted: int) -> None:
        sizes = labels.bincount()
        self.labels, self.sizes = labels, sizes
        self.order = labels.argsort(stable=True)  # by class: those of class c from starts[c] on
        self.starts = sizes.cumsum(0) - sizes
        self.others = len(labels) - sizes
        numbers, self.row = self.others.unique(return_inverse=True)  # of others; one number where classes are of one size
        self.numbers = numbers.tolist()
        self.count = min(wanted, len(labels) - int(sizes.max()))
        if self.count == 0:
            raise MethodError("crd contrasts images with those of other classes: the training images are of one class")
        self.shuffles = torch.zeros(len(numbers), 2 * len(labels), dtype=torch.int64, device=labels.device)  # each twice: a window may wrap

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """For each image of a batch (B,), `count` images of other classes without replacement, all choices equally likely: (B, count).

        Each image takes a window, from a place drawn for it on, of one shuffle a step. Its choice is one of all with equal chance, and whether
        it takes a given image does not depend on whether another image of the batch does.
        """
        for row, number in zip(self.shuffles, self.numbers, strict=True):
            torch.randperm(number, generator=generator, out=row[:number])
            row[number : 2 * number] = row[:number]
        label = self.labels[index]
        start = torch.rand(len(index), generator=generator, dtype=torch.float64, device=index.device) * self.others[label]
        rank = self.shuffles.unfold(1, self.count, 1)[self.row[label], start.long()]  # among the others, sorted by class
        first, size = self.starts[label].unsqueeze(1), self.sizes[label].unsqueeze(1)
        return self.order.take(rank + (rank >= first) * size)


@torch.no_grad()
def remember(bank: Tensor, index: Tensor, embedding: Tensor, momentum: float) -> None:
    """In place, at the batch's places: v <- unit(momentum * v + (1 - momentum) * e). No place occurs twice in a batch."""
    bank.index_copy_(0, index, unit(momentum * bank.index_select(0, index) + (1.0 - momentum) * embedding))


@dataclass(frozen=True)
class Hyper:
    """The authors' values."""

    weight: float = ranged(0.8, at_least=0)
    temperature: float = ranged(0.07, above=0)
    momentum: float = ranged(0.5, at_least=0, at_most=1)
    negatives: int = ranged(16384, at_least=1)
    dimensions: int = ranged(128, at_least=1)


@register("crd")
class CRD(Method):
    title = "CRD"
    paper = "Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020"
    Hyper = Hyper
    teacher_outputs = Needs(embedding=True)
    fp32 = True
    unreleased = ("student_bank", "teacher_bank")

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported."""
        super().__init__(hyper, setting, prepared)
        size = hyper.dimensions
        self.project_student, self.project_teacher = (nn.Linear(n.embedding, size) for n in (setting.student, setting.teacher))
        bound = (3.0 / size) ** 0.5  # rows of norm 1 in the mean square
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", (2.0 * torch.rand(setting.images, size) - 1.0) * bound)
            self.register_buffer(f"{side}_constant", torch.tensor(-1.0))  # set by the first batch

    def start(self, labels: Tensor) -> None:
        self.others = Others(labels, self.hyper.negatives)

    def begin_step(self, index: Tensor, generator: torch.Generator) -> None:
        name = f"places_of_{len(index)}"
        if not hasattr(self, name):  # for each batch size its own: recorded steps go on reading the memory they were recorded with
            places = torch.empty(len(index), 1 + self.others.count, dtype=torch.int64, device=index.device)
            self.register_buffer(name, places, persistent=False)
        places = getattr(self, name)
        places[:, 0] = index
        places[:, 1:] = self.others.draw(index, generator)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        s, t = unit(self.project_student(student.embedding)), unit(self.project_teacher(teacher.embedding))
        contrast = self._side(s, self.teacher_bank, self.student_constant) + self._side(t, self.student_bank, self.teacher_constant)
        remember(self.student_bank, batch.index, s, self.hyper.momentum)
        remember(self.teacher_bank, batch.index, t, self.hyper.momentum)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "crd": contrast}

    def _side(self, embedding: Tensor, bank: Tensor, constant: Tensor) -> Tensor:
        """One side's loss against the other side's bank, as it stands before this step. Its gradient is made at once: the bank changes before the
        backward pass, and of (B, N) scores only one side's are held at a time."""
        images, places = len(bank), getattr(self, f"places_of_{len(embedding)}")
        with torch.enable_grad():
            own = embedding.detach().requires_grad_()
            found = scores(own, bank, places, self.hyper.temperature)
            with torch.no_grad():
                scale = torch.where(constant < 0, found.mean() * images, constant)
                constant.copy_(scale)
            loss = self.hyper.weight * contrastive_loss(found / scale, images)
            (slope,) = torch.autograd.grad(loss, own)
        return loss.detach() + ((embedding - own.detach()) * slope).sum()  # plus 0
