"""The CRD protocol the way its reference code trains: the yardstick of the group's speed, and a second opinion on its losses.

Written independently of the suite, its networks included: a torch DataLoader without workers over PIL transforms, NCHW, one method
at a time with a teacher pass of its own, loss.item() and top-1/top-5 read after every step. Sources: Tian et al., Contrastive
Representation Distillation, ICLR 2020, and its published training settings; the papers of the methods are named at their losses.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

BATCH, TEMPERATURE = 64, 4.0
METHODS = ("student", "kd", "fitnet", "at", "rkd", "sp", "cc")
EIGHT = (*METHODS, "skd")
TEACHERLESS = ("student", "skd")  # no teacher in the step


class Block(nn.Module):
    """Post-activation basic block; the shortcut is a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """CIFAR resnet by name, resnet<6n+2> with widths 16, 16, 32, 64 or, with x4, 32, 64, 128, 256; returns
    [stem, stage 1, stage 2, stage 3, pooled] and the logits."""

    def __init__(self, name: str, classes: int = 100) -> None:
        super().__init__()
        depth, wide = int(name.removeprefix("resnet").removesuffix("x4")), name.endswith("x4")
        inputs, *self.widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
        self.conv1, self.bn1 = nn.Conv2d(3, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs)
        for stage, (width, stride) in enumerate(zip(self.widths, (1, 2, 2), strict=True), 1):
            blocks = []
            for _ in range((depth - 2) // 6):
                blocks.append(Block(inputs, width, stride))
                inputs, stride = width, 1
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        features = [F.relu(self.bn1(self.conv1(x)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            features.append(stage(features[-1]))
        features.append(F.avg_pool2d(features[-1], features[-1].shape[-1]).flatten(1))
        return features, self.fc(features[-1])


class DrawnCrop(transforms.RandomCrop):
    """RandomCrop whose corner can be given."""

    corner: tuple[int, int] | None = None

    def get_params(self, image, output_size):  # the parent calls it on the instance
        if self.corner is None:
            return transforms.RandomCrop.get_params(image, output_size)
        return *self.corner, *output_size


class DrawnFlip(transforms.RandomHorizontalFlip):
    """RandomHorizontalFlip whose outcome can be given."""

    flip: bool | None = None

    def forward(self, image):
        if self.flip is None:
            return super().forward(image)
        return transforms.functional.hflip(image) if self.flip else image


Draws = tuple[Tensor, Tensor, Tensor]


class PilImages(Dataset):
    """uint8 images (N, 3, S, S) and labels (N,) behind the protocol's transforms on PIL images, one image at a time.

    `draws` (dy, dx, flip; each (N,), per dataset position) fixes the augmentation; without it torchvision draws.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float], draws: Draws | None = None) -> None:
        self.pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.labels, self.draws = labels.tolist(), draws and list(zip(*(d.tolist() for d in draws), strict=True))
        self.crop, self.flip = DrawnCrop(images.shape[-1], padding=4), DrawnFlip()
        self.transform = transforms.Compose([self.crop, self.flip, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if self.draws is not None:
            dy, dx, self.flip.flip = self.draws[position]
            self.crop.corner = dy, dx
        return self.transform(Image.fromarray(self.pixels[position])), self.labels[position]


def loader(images: PilImages, order: Sequence[int] | None = None, batch: int = BATCH) -> DataLoader:
    """The protocol's loader; `order` replaces the shuffle."""
    if order is None:
        return DataLoader(images, batch, shuffle=True)
    return DataLoader(images, batch, sampler=order)


class Regressor(nn.Module):
    """FitNet's regressor as the CRD protocol has it: 1x1 convolution, batch norm, ReLU."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(student, teacher, 1), nn.BatchNorm2d(teacher)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Targets(nn.Module):
    """SKD's row distributions, one (C, C) for each stage; they do not train."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for stage, width in enumerate(widths, 1):
            self.register_buffer(f"stage{stage}", torch.zeros(width, width))


def auxiliary(method: str, widths: Sequence[int]) -> nn.ModuleList:
    """The modules that the method adds for networks with stages of these widths; their parameters join the student's SGD group."""
    if method == "fitnet":
        return nn.ModuleList([Regressor(widths[1], widths[1])])
    if method == "skd":
        return nn.ModuleList([Targets(widths)])
    return nn.ModuleList([nn.Linear(widths[-1], 128), nn.Linear(widths[-1], 128)] if method == "cc" else [])


def soft_targets(student: Tensor, teacher: Tensor) -> Tensor:
    """Hinton et al. 2015, T = 4."""
    p, q = F.softmax(teacher / TEMPERATURE, 1), F.log_softmax(student / TEMPERATURE, 1)
    return F.kl_div(q, p, reduction="sum") * TEMPERATURE**2 / student.shape[0]


def attention(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Zagoruyko and Komodakis 2017, sums of squares, mean-squared difference of the normalised maps."""

    def energy(f: Tensor) -> Tensor:
        return F.normalize(f.pow(2).mean(1).flatten(1))

    return sum((energy(s) - energy(t)).pow(2).mean() for s, t in zip(student, teacher, strict=True))


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Tung and Mori 2019."""

    def gram(f: Tensor) -> Tensor:
        f = f.flatten(1)
        return F.normalize(f @ f.t())

    return (gram(teacher) - gram(student)).pow(2).sum() / student.shape[0] ** 2


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """The form that the CRD protocol's code has of Peng et al. 2019: products of neighbouring differences in the batch."""
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum(1).mean()


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Park et al. 2019: 25 x distance + 50 x angle."""

    def distances(e: Tensor) -> Tensor:
        square = e.pow(2).sum(1)
        d = (square[:, None] + square[None] - 2 * e @ e.t()).clamp(min=1e-12).sqrt()
        d = d * (1 - torch.eye(len(e)))
        return d / d[d > 0].mean()

    def angles(e: Tensor) -> Tensor:
        unit = F.normalize(e[None] - e[:, None], dim=2)
        return torch.bmm(unit, unit.transpose(1, 2)).flatten()

    with torch.no_grad():
        t_distances, t_angles = distances(teacher), angles(teacher)
    return 25 * F.smooth_l1_loss(distances(student), t_distances) + 50 * F.smooth_l1_loss(angles(student), t_angles)


def static_relations(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Han et al. 2022, Eq. 2 as it stands: cross-entropy of the channels' cosines, row by row, with a fixed distribution; mean of layers."""
    terms = []
    for f, p in zip(maps, targets, strict=True):
        unit = F.normalize(f.flatten(2), dim=2)
        terms.append(-(p * F.log_softmax(unit @ unit.transpose(1, 2), 2)).sum(2).mean())
    return torch.stack(terms).mean()


Pass = tuple[list[Tensor], Tensor]
"""What a forward pass returns: features and logits."""


def total_loss(method: str, extra: nn.ModuleList, student: Pass, teacher: Pass | None, labels: Tensor) -> Tensor:
    """The training loss of one batch with the protocol's weights."""
    features, logits = student
    hard = F.cross_entropy(logits, labels)
    if method == "skd":
        return hard + 0.5 * static_relations(features[1:-1], list(extra.buffers()))
    if teacher is None:
        return hard
    t_features, t_logits = teacher
    soft = soft_targets(logits, t_logits)  # the reference code computes it for every method, with weight 0 for most
    if method == "kd":
        return 0.1 * hard + 0.9 * soft
    if method == "fitnet":
        own = 100 * F.mse_loss(extra[0](features[2]), t_features[2])
    elif method == "at":
        own = 1000 * attention(features[1:-1], t_features[1:-1])
    elif method == "rkd":
        own = relations(features[-1], t_features[-1])
    elif method == "sp":
        own = 3000 * similarity(features[-2], t_features[-2])
    else:
        own = 0.02 * correlation(extra[0](features[-1]), extra[1](t_features[-1]))
    return hard + 0.0 * soft + own


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 of a batch, in percent."""
    hits = logits.topk(5, 1).indices == labels[:, None]
    return 100 * hits[:, 0].float().mean().item(), 100 * hits.any(1).float().mean().item()


class Trainer:
    """One method in training, on a loader of its own."""

    def __init__(self, method: str, student: ResNet, teacher: ResNet | None, data: DataLoader, extra: nn.ModuleList) -> None:
        self.method, self.student, self.extra, self.data = method, student.train(), extra.train(), data
        self.teacher = teacher.eval() if teacher is not None else None
        parameters = [*student.parameters(), *extra.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.batches: Iterator = iter(())
        self.seen: list[float] = []
        self.top: list[tuple[float, float]] = []

    def step(self) -> float:
        """The next batch, loading included; returns the loss."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.data)
            batch = next(self.batches)
        images, labels = batch[0].to(self.student.fc.weight.dtype), batch[1]
        outputs = self.student(images)
        with torch.no_grad():
            target = self.teacher(images) if self.teacher is not None else None
        loss = total_loss(self.method, self.extra, outputs, target, labels)
        self.seen.append(loss.item())
        self.top.append(accuracy(outputs[1], labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return self.seen[-1]
