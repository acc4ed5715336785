"""FT: a translator on the student's last map gives the same factors as a paraphraser, an encoder fitted to the teacher's last map alone.

Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018. The paraphraser is a preparation: 30
epochs of reconstruction at a constant rate. Settings and weight are those of the CRD protocol's code (its paper lists 500); as there, factors
are compared through their attention maps, where Kim et al. compare the normalised factors themselves. On a teacher with a large last map the
rate is too high and the fit is refused (a resnet56 with a mean square of 8: 0.005 and less went well, 0.01 did not).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import Weighted, same_size
from methods.at import attention
from methods.base import MethodError, Needs, Preparation, PreparationData, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs
from models.randomness import keyed

SLOPE, MOMENTUM, WEIGHT_DECAY, BATCH = 0.1, 0.9, 5e-4, 64
Layer = type[nn.Conv2d] | type[nn.ConvTranspose2d]


def factor_loss(student_factors: Tensor, teacher_factors: Tensor) -> Tensor:
    """Mean over (B, H * W) of |A(f_s) - A(f_t)|, A as in AT with power 2; factors (B, C, H, W), the larger average-pooled to the smaller
    one's size -> scalar (Kim et al. 2018, the transfer loss with p = 1, on channel means)."""
    return F.l1_loss(*(attention(factors) for factors in same_size(student_factors, teacher_factors)))


def layers(kind: Layer, widths: tuple[int, ...], normalised: bool = False) -> nn.Sequential:
    """3x3 layers, each followed by BN where `normalised` and a leaky ReLU: (B, widths[0], H, W) -> (B, widths[-1], H, W)."""
    parts: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        parts += [kind(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if normalised else []), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*parts)


def encoder(width: int) -> nn.Sequential:
    """The paraphraser's half that gives factors: (B, C, H, W) -> (B, C / 2, H, W)."""
    return layers(nn.Conv2d, (width, width, width // 2, width // 2))


def build(teacher: nn.Module, data: PreparationData, settings: dict[str, Any], method: str) -> Prepared:
    """The encoder's state after training it, with a decoder, to reconstruct the teacher's last map; taken up again epoch by epoch.

    Raises MethodError where it diverges, which names the setting of `method` that helps.
    """
    width = settings["width"]
    with keyed(data.generator("ft-paraphraser").initial_seed(), "ft-paraphraser"):
        encode, decode = encoder(width), layers(nn.ConvTranspose2d, (width // 2, width // 2, width, width))
    both = nn.Sequential(encode, decode).to(data.device)
    optimiser = torch.optim.SGD(both.parameters(), lr=settings["rate"], momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    errors: list[float] = []
    if state := data.resume():
        errors = state["errors"]
        both.load_state_dict(state["modules"])
        optimiser.load_state_dict(state["optimizer"])
    for epoch in range(len(errors) + 1, settings["epochs"] + 1):
        total = torch.zeros((), dtype=torch.float64, device=data.device)
        for images, _ in data.batches(BATCH, epoch=epoch, augment=True, shuffle=True):
            with torch.no_grad():
                maps = teacher(images, ("stage",)).maps["stage"][-1].float()
            loss = F.mse_loss(both(maps), maps)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(images)
        errors.append(total.item() / data.count)
        if not math.isfinite(errors[-1]):
            rate = settings["rate"]
            raise MethodError(f"ft's paraphraser diverged in epoch {epoch}: lower its rate (now {rate:g}): --set {method}.rate={rate / 10:g}")
        data.log(f"ft paraphraser: epoch {epoch} of {settings['epochs']}, mean squared error {errors[-1]:.4g}")
        data.save({"errors": errors, "modules": both.state_dict(), "optimizer": optimiser.state_dict()})
    tensors = {name: value.detach().cpu().clone() for name, value in encode.state_dict().items()}
    return Prepared(tensors, {**settings, "mean_squared_errors": errors})


@dataclass(frozen=True)
class Hyper:
    """The CRD protocol's weight; epochs and learning rate of the paraphraser."""

    weight: float = ranged(200.0, at_least=0)
    epochs: int = ranged(30, at_least=1)
    rate: float = ranged(0.01, above=0)

    @classmethod
    def quick(cls) -> "Hyper":
        """Small enough for tests."""
        return cls(epochs=2)


@register("ft")
class FT(Weighted):
    title = "FT"
    paper = "Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    term = "ft"

    @classmethod
    def hyper_for(cls, teacher: str | None, student: str) -> Hyper:
        """The protocol's code trains the paraphraser with the student's rate, but for ResNet and WRN students with 0.01."""
        return Hyper(rate=0.05) if student.startswith("vgg") else Hyper()

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        return None if setting.teacher.maps["stage"][-1][0] > 1 else "ft halves the channels of the teacher's last map, which has one"

    @classmethod
    def preparation(cls, hyper: Hyper, setting: Setting) -> Preparation | None:
        settings = {"epochs": hyper.epochs, "rate": hyper.rate, "width": setting.teacher.maps["stage"][-1][0]}
        return Preparation("ft-paraphraser", 1, settings, partial(build, settings=settings, method=cls.name))

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported or its paraphraser is missing."""
        super().__init__(hyper, setting, prepared)
        if prepared is None:
            raise MethodError("ft needs its paraphraser: run the preparation with this teacher first")
        width, own = setting.teacher.maps["stage"][-1][0], setting.student.maps["stage"][-1][0]
        self.paraphraser = encoder(width).requires_grad_(False)
        self.paraphraser.load_state_dict(dict(prepared.tensors))
        self.translator = layers(nn.Conv2d, (own, own, width // 2, width // 2), normalised=True)

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        with torch.no_grad():
            known = self.paraphraser(teacher.maps["stage"][-1])
        return factor_loss(self.translator(student.maps["stage"][-1]), known)
