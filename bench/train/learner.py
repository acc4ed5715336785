"""A learner: one run's student, method and optimiser, and the step that trains them on a batch shared by the group."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import models
from bench.plan.identity import Run
from bench.train.environment import precision_scope
from methods.base import Batch, Method, Needs, Prepared, Setting
from models.outputs import Outputs
from models.randomness import generator, key, keyed


def student_options(run: Run) -> dict[str, Any]:
    """Network options that the protocol sets for a student that has them."""
    has = run.protocol.dropout and "dropout" in models.options(run.student)
    return {"dropout": run.protocol.dropout} if has else {}


def as_float(outputs: Outputs) -> Outputs:
    """The same outputs in float32 (an fp32 island under autocast)."""
    maps = {kind: tuple(m.float() for m in group) for kind, group in outputs.maps.items()}
    return Outputs(outputs.logits.float(), outputs.embedding.float(), maps)


class Learner:
    """One run in training. `step` is capturable: static shapes, no host read; sums are kept on the device in float64."""

    def __init__(self, run: Run, method: type[Method], hyper: Any, setting: Setting, prepared: Prepared | None, device: torch.device) -> None:
        self.run, self.device = run, device
        with keyed(run.seed, f"init/{run.student}"):
            student = models.build(run.student, setting.classes, **student_options(run))
        with keyed(run.seed, f"init/method/{run.method}"):
            self.method = method(hyper, setting, prepared)
        self.student = student.to(device, memory_format=torch.channels_last).train()
        self.method.to(device).train()
        self.kinds = method.student_needs(hyper).maps
        self.teacher_needs: Needs = method.teacher_needs(hyper)
        self.parameters: list[nn.Parameter] = [p for m in (self.student, self.method) for p in m.parameters() if p.requires_grad]
        p = run.protocol
        self.small_rate = models.small_rate(run.student)
        base_rate = p.base_rate(small=self.small_rate)
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=base_rate, momentum=p.momentum, weight_decay=p.weight_decay, nesterov=p.nesterov, fused=True
        )
        # A tensor, so that a captured step follows the schedule; CUDA's fused update reads float32.
        self.rate = torch.tensor(base_rate, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self.optimizer.param_groups[0]["lr"] = self.rate
        if p.momentum:  # zeros give the first step the same bits, and a captured one has them in place
            for parameter in self.parameters:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.drops_out = bool(student_options(run))
        self.sums: dict[str, Tensor] = {}

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured: no draw is made in it, and the method does not opt out."""
        return self.method.capturable and not self.drops_out

    def begin_epoch(self, epoch: int) -> None:
        """Learning rate and the method's own host work for an epoch (from 1)."""
        self.epoch = epoch
        self.rate.fill_(self.run.protocol.rate(epoch, small=self.small_rate))
        self.method.begin_epoch(epoch, generator(self.run.seed, f"method/{self.run.method}", epoch))

    def clear_sums(self) -> None:
        """Start an epoch's sums anew, where they are."""
        for value in self.sums.values():
            value.zero_()

    def step(self, images: Tensor, teacher: Outputs | None, batch: Batch, place: int = 0) -> None:
        """One optimiser step. `images` (B, 3, H, W) normalised; `teacher` the shared outputs or None; `place` where in the epoch."""
        if self.drops_out:  # the one draw that layers make of the global generator
            torch.manual_seed(key(self.run.seed, f"dropout/{place}", self.epoch))
        outputs, losses = self.forward(images, teacher, batch)
        self.optimizer.zero_grad(set_to_none=True)
        if self.method.own_backward:
            self.method.backward(losses, self.parameters)
        else:
            sum(losses.values()).backward()
        self.optimizer.step()
        self._count(outputs.logits.detach(), losses, batch.labels)

    def forward(self, images: Tensor, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Mapping[str, Tensor]]:
        """The student's outputs and the method's losses."""
        precision = self.run.precision
        with precision_scope(precision, self.device):
            outputs = self.student(images, self.kinds)
            if not self.method.fp32:
                return outputs, self.method.losses(outputs, teacher, batch)
        if precision == "bf16":
            return outputs, self.method.losses(as_float(outputs), as_float(teacher) if teacher else None, batch)
        return outputs, self.method.losses(outputs, teacher, batch)

    def _count(self, logits: Tensor, losses: Mapping[str, Tensor], labels: Tensor) -> None:
        size = labels.shape[0]
        values = {f"loss/{name}": value.detach().double() * size for name, value in losses.items()}
        values["correct"] = (logits.argmax(1) == labels).sum().double()
        for name, value in values.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value

    def finite(self) -> bool:
        """Whether every loss so far in this epoch is finite. Reads the host: not for use inside a step."""
        return all(math.isfinite(value.item()) for name, value in self.sums.items() if name.startswith("loss/"))

    def means(self, images: int) -> tuple[dict[str, float], float]:
        """Mean loss terms and training top-1 in percent over an epoch of `images` images."""
        losses = {name.removeprefix("loss/"): value.item() / images for name, value in self.sums.items() if name != "correct"}
        return losses, 100.0 * self.sums["correct"].item() / images

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs besides its position."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "momentum": {i: self.optimizer.state[p]["momentum_buffer"] for i, p in enumerate(self.parameters) if self.optimizer.state[p]},
            "sums": dict(self.sums),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore `state()`. Raises RuntimeError or KeyError where it is another learner's."""
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        for i, buffer in state["momentum"].items():
            self.optimizer.state[self.parameters[i]]["momentum_buffer"].copy_(buffer)
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}


@torch.no_grad()
def teacher_forward(teacher: nn.Module, images: Tensor, needs: Needs, precision: str) -> Outputs:
    """The frozen teacher's outputs on a batch, once for all learners, in float32 whatever the precision."""
    with precision_scope(precision, images.device):
        outputs = teacher(images, needs.maps)
    return as_float(outputs) if precision == "bf16" else outputs


@torch.no_grad()
def evaluate(network: nn.Module, batches: Sequence, precision: str, check=lambda: None) -> dict[str, float]:
    """Top-1 and top-5 in percent and mean cross-entropy of a network over (images, labels) batches; the network's mode is restored.

    `check` is called between batches and may raise to stop.
    """
    was_training = network.training
    network.eval()
    totals: Tensor | None = None
    count = 0
    try:
        for images, labels in batches:
            check()
            with precision_scope(precision, images.device):
                logits = network(images, ()).logits
            logits = logits.float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            batch_totals = torch.stack([best[:, 0].sum().double(), best.sum().double(), loss.double()])
            totals = batch_totals if totals is None else totals + batch_totals
            count += labels.shape[0]
    finally:
        network.train(was_training)
    top1, top5, loss = (totals / count).tolist()
    return {"top1": 100.0 * top1, "top5": 100.0 * top5, "loss": loss}
