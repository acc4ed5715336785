"""Phase I: on the teacher alone, fit the second PCA of every sensing point and train one network for every adjacent pair of points.

The result is a preparation, keyed by the teacher and the settings below, and stays frozen while students train. Paper: Lee and Song
2021, Eq. 1-13; schedule (20 epochs, SGD lr 0.1 with nesterov momentum, weight decay 1e-3 on the networks) from the authors' code.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import MethodError, Preparation, PreparationData, Prepared
from methods.iep.blackbox import Estimator, injected_head
from methods.iep.hyper import Hyper
from methods.iep.knowledge import estimator_loss, row_divergence
from methods.iep.mpnn import MPNN, Knowledge
from methods.iep.spca import Component, CovariancePCA, IncrementalPCA, Projection, affinity, batch_pca, first_component, stereographic
from models.randomness import keyed

KIND = "relu"  # maps are sensed after ReLU: there the first component is non-negative
_SHARED = ("iterations", "pca", "sigma_scale", "power_steps")  # settings that phase I and training must agree on


def sensed(maps: Sequence[Any]) -> tuple[Any, ...]:
    """The sensing points of a stem-first tuple: the ends of all stages."""
    return tuple(maps[1:])


def kept(width: int) -> int:
    """Coordinates kept of a point with `width` channels: the top half."""
    return width // 2


class Stages(nn.Module):
    """Everything that phase I fits: a projection for each of L sensing points, a network (and an estimator) for each of L - 1 pairs."""

    def __init__(self, hyper: Hyper, widths: Sequence[int]) -> None:
        super().__init__()
        self.refit = hyper.pca == "batch"
        keeps = [kept(width) for width in widths]
        pairs = list(zip(keeps, keeps[1:], strict=False))
        heads = hyper.estimator_heads
        self.projections = nn.ModuleList(Projection(w, k, hyper.sigma_scale) for w, k in zip(widths, keeps, strict=True))
        self.networks = nn.ModuleList(MPNN(front, back, hyper.iterations) for front, back in pairs)
        self.estimators = nn.ModuleList(Estimator(front, back, heads) for front, back in pairs if heads)

    def coordinates(self, points: Sequence[Tensor], fit: bool = False) -> list[Tensor]:
        """Unit components (N, D) of each sensing point -> coordinates (N, K). `fit`: the teacher's, which in the ablation with a PCA
        of each mini-batch define the projection first."""
        flat = [stereographic(p) for p in points]
        if fit and self.refit:
            for projection, rows in zip(self.projections, flat, strict=True):
                projection.set(*batch_pca(rows, projection.basis.shape[1]))
        return [projection(rows) for projection, rows in zip(self.projections, flat, strict=True)]

    def forward(self, coordinates: Sequence[Tensor]) -> list[Knowledge]:
        """Knowledge of each adjacent pair of points."""
        return [network(*pair) for network, *pair in zip(self.networks, coordinates, coordinates[1:], strict=False)]

    def attention(self, coordinates: Sequence[Tensor]) -> list[Tensor]:
        """K^BB of each adjacent pair of points, (heads, N, N)."""
        return [estimator.logits(*pair) for estimator, *pair in zip(self.estimators, coordinates, coordinates[1:], strict=False)]


def preparation(hyper: Hyper, widths: Sequence[int]) -> Preparation:
    """The stage for a teacher whose sensing points have these channel counts."""
    settings = {k: v for k, v in dataclasses.asdict(hyper).items() if k.startswith("phase_") or k in (*_SHARED, "check_batches")}
    settings |= {"heads": hyper.estimator_heads, "widths": list(widths)}
    version = 2 if hyper.estimator_heads or hyper.pca == "ipca_code" else 1  # the numbers of the others are those of version 1
    return Preparation("iep-phase-one", version, settings, partial(_build, hyper=hyper, widths=tuple(widths)))


def restore(hyper: Hyper, widths: Sequence[int], prepared: Prepared | None) -> Stages:
    """The frozen modules of phase I. Raises MethodError where there are none or they belong to other settings."""
    if prepared is None:
        raise MethodError("IEP needs its phase I: run the preparation with this teacher first")
    stages = Stages(hyper, widths)
    expected = {name: tuple(t.shape) for name, t in stages.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in prepared.tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        shapes = f"{name} is {found.get(name)}, expected {expected.get(name)}"
        raise MethodError(f"phase I does not fit this teacher and these settings: {shapes}; rebuild it")
    for name in _SHARED:
        if name in prepared.facts and prepared.facts[name] != getattr(hyper, name):
            raise MethodError(f"phase I was built with {name}={prepared.facts[name]!r}, not {getattr(hyper, name)!r}; rebuild it")
    stages.load_state_dict(dict(prepared.tensors))
    return stages.requires_grad_(False).eval()


def _images(data: PreparationData, hyper: Hyper, epoch: int, augment: bool, most: int) -> Iterator[Tensor]:
    """One pass in batches; a batch of one image has no relations and is left out; `most` batches at most, 0: all."""
    for step, (images, _) in enumerate(data.batches(hyper.phase_batch, epoch=epoch, augment=augment, shuffle=True)):
        if most and step >= most:
            return
        if images.shape[0] > 1:
            yield images


@torch.no_grad()
def _components(teacher: nn.Module, images: Tensor, steps: int) -> list[Component]:
    return [first_component(m, steps, check=True) for m in sensed(teacher(images, (KIND,)).maps[KIND])]


def _streams(hyper: Hyper, widths: Sequence[int], device: torch.device) -> list[CovariancePCA | IncrementalPCA]:
    if hyper.pca == "batch":
        return []
    if hyper.pca == "covariance":
        return [CovariancePCA(w, kept(w), device) for w in widths]
    old, ross = (0.9, True) if hyper.pca == "ipca" else (0.1, False)
    return [IncrementalPCA(w, kept(w), device, old, ross) for w in widths]


def _build(teacher: nn.Module, data: PreparationData, hyper: Hyper, widths: tuple[int, ...]) -> Prepared:
    """Burn in the PCA with one pass, train the networks, compare them with the trivial predictors on a pass without augmentation."""
    with keyed(data.generator("init").initial_seed(), "iep/phase-one"):
        stages = Stages(hyper, widths)
    stages.to(data.device)
    streams = _streams(hyper, widths, data.device)
    optimizer = torch.optim.SGD(
        stages.parameters(), lr=hyper.phase_lr, momentum=hyper.phase_momentum, weight_decay=hyper.phase_weight_decay, nesterov=True
    )
    done, loss = 0, math.nan
    if state := data.resume():
        done, loss = state["epoch"], state["loss"]
        stages.load_state_dict(state["stages"])
        optimizer.load_state_dict(state["optimizer"])
        for stream, kept_state in zip(streams, state["streams"], strict=True):
            stream.load(kept_state)
    else:
        # The first batches span fewer directions than are kept, and a network is tied to its basis: so the PCA comes first.
        for images in _images(data, hyper, 0, True, hyper.phase_steps) if streams else ():
            for stream, component in zip(streams, _components(teacher, images, hyper.power_steps), strict=True):
                stream.update(stereographic(component.v))
        for projection, stream in zip(stages.projections, streams, strict=False):
            projection.set(*stream.solve())
    for epoch in range(done + 1, hyper.phase_epochs + 1):
        loss = _train_epoch(teacher, data, hyper, stages, streams, optimizer, epoch)
        if not math.isfinite(loss):
            raise MethodError(f"IEP's phase I diverged in epoch {epoch}: lower phase_lr ({hyper.phase_lr})")
        data.log(f"IEP phase I: epoch {epoch}/{hyper.phase_epochs}, loss {loss:.4f} per image")
        if hyper.pca == "covariance" and epoch < hyper.phase_epochs:
            for projection, stream in zip(stages.projections, streams, strict=True):
                projection.set(*stream.solve(near=projection.basis))
        state = {"epoch": epoch, "loss": loss, "stages": stages.state_dict(), "optimizer": optimizer.state_dict()}
        data.save({**state, "streams": [stream.state() for stream in streams]})
    facts = {name: getattr(hyper, name) for name in _SHARED}
    facts |= {"points": [f"{KIND} of stage {i + 1}: {w} channels, {kept(w)} kept" for i, w in enumerate(widths)], "last_loss": loss}
    facts["kl_per_image"] = _compare(teacher, data, hyper, stages)
    for line in facts["kl_per_image"]:
        data.log(f"IEP phase I: {line}")
    return Prepared({name: t.detach().cpu().clone() for name, t in stages.state_dict().items()}, facts)


def _train_epoch(
    teacher: nn.Module,
    data: PreparationData,
    hyper: Hyper,
    stages: Stages,
    streams: Sequence[CovariancePCA | IncrementalPCA],
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> float:
    """One pass over the training images; returns the mean loss per image."""
    stages.train()
    draws = data.generator("drop-head", epoch)
    total, count = torch.zeros((), device=data.device), 0
    for images in _images(data, hyper, epoch, True, hyper.phase_steps):
        points = [c.v for c in _components(teacher, images, hyper.power_steps)]
        for projection, stream, p in zip(stages.projections, streams, points, strict=False):
            stream.update(stereographic(p))
            if isinstance(stream, IncrementalPCA):
                projection.set(*stream.solve())
        with torch.no_grad():
            coordinates = stages.coordinates(points, fit=True)
        loss = _loss(stages, coordinates, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        count += images.shape[0]
    if not count:
        raise MethodError("IEP's phase I saw no batch of two or more images: use more training images or a larger phase_batch")
    return total.item() / count


def _loss(stages: Stages, coordinates: Sequence[Tensor], draws: torch.Generator) -> Tensor:
    """Eq. 13 over all pairs of points, plus the estimators' loss where there are any."""
    loss = sum(row_divergence(affinity(c), k.readout) for c, k in zip(coordinates[1:], stages(coordinates), strict=True))
    injected = _injected_heads(stages, coordinates) if len(stages.estimators) else []
    for estimator, front, back, head in zip(stages.estimators, coordinates, coordinates[1:], injected, strict=False):
        noise = torch.randn(estimator.heads + 1, front.shape[0], 1, generator=draws).to(front.device)
        loss = loss + estimator_loss(estimator.estimate(front, back, head, noise), back)
    return loss


@torch.no_grad()
def _injected_heads(stages: Stages, coordinates: Sequence[Tensor]) -> list[Tensor]:
    """Of each pair of points, from the networks with their running statistics, as in the authors' code."""
    stages.networks.eval()
    heads = [injected_head(known) for known in stages(coordinates)]
    stages.networks.train()
    return heads


@torch.no_grad()
def _compare(teacher: nn.Module, data: PreparationData, hyper: Hyper, stages: Stages) -> list[dict[str, float]]:
    """Mean KL per image, for each pair of points, of the network, of predicting no change (identity) and of knowing nothing (uniform)."""
    stages.eval()
    names, count = ("network", "identity", "uniform"), 0
    sums = torch.zeros(len(stages.networks), len(names), device=data.device)
    for images in _images(data, hyper, hyper.phase_epochs + 1, False, hyper.check_batches):
        coordinates = stages.coordinates([c.v for c in _components(teacher, images, hyper.power_steps)], fit=True)
        relations = [affinity(c) for c in coordinates]
        for i, found in enumerate(stages(coordinates)):
            front, back = relations[i], relations[i + 1]
            sums[i] += torch.stack([row_divergence(back, guess) for guess in (found.readout, front, torch.zeros_like(back))])
        count += images.shape[0]
    return [dict(zip(names, row, strict=True)) for row in (sums / count).tolist()]
