"""A learner: one run's student, method and optimiser, and the step that trains them on a batch shared by the group."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import models
from bench.plan.identity import Run
from bench.train.environment import precision_scope
from methods.base import Batch, Method, MethodError, Needs, Prepared, Pretraining, Setting
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
    """One run in training. `step` is capturable: static shapes, no host read; sums are kept on the device in float64.

    With `pretraining` it is the learner of that stage: it trains the student's trunk and the method by `pretraining_losses`; the main
    stage is another learner's, which begins with the weights of this one.
    """

    def __init__(
        self,
        run: Run,
        method: type[Method],
        hyper: Any,
        setting: Setting,
        prepared: Prepared | None,
        device: torch.device,
        pretraining: Pretraining | None = None,
    ) -> None:
        """Raises MethodError where the method's parameter groups are not of its own parameters, and where it predicts in its own way and does not
        say what that needs."""
        if method.predict is not Method.predict and method.inference.__func__ is Method.inference.__func__:
            raise MethodError(f"{run.method}: predict() is its own; inference() must say what is evaluated besides the student")
        self.run, self.device, self.pretraining = run, device, pretraining
        with keyed(run.seed, f"init/{run.student}"):
            student = models.build(run.student, setting.classes, **student_options(run))
        with keyed(run.seed, f"init/method/{run.method}"):
            self.method = method(hyper, setting, prepared)
        self.student = student.to(device, memory_format=torch.channels_last).train()
        self.method.to(device).train()
        if pretraining:
            self.student.eval().requires_grad_(False)
            for module in models.trunk(self.student):
                module.train().requires_grad_(True)
        self.kinds = method.student_needs(hyper).maps
        self.teacher_needs: Needs = method.teacher_needs(hyper) if pretraining else method.main_teacher_needs(hyper, setting)
        self.parameters: list[nn.Parameter] = [p for m in (self.student, self.method) for p in m.parameters() if p.requires_grad]
        self.small_rate = models.small_rate(run.student)
        self.optimizer = self._optimizer()
        self.drops_out = bool(student_options(run))
        self.draws_in_steps = method.begin_step is not Method.begin_step
        self.evaluated: nn.Module = self.student if method.predict is Method.predict else Predicting(self.student, self.method, self.kinds)
        self.sums: dict[str, Tensor] = {}
        self._started = False
        self._draws = torch.Generator(device) if self.draws_in_steps else None

    def _optimizer(self) -> torch.optim.SGD:
        """SGD as the protocol says; the method's own parameter groups with their own rate and decay."""
        p, own = self.run.protocol, tuple(self.method.parameter_groups())
        named = [id(parameter) for group in own for parameter in group.parameters]
        apart = set(named)
        if len(named) > len(apart) or not apart <= {id(parameter) for parameter in self.method.parameters() if parameter.requires_grad}:
            raise MethodError(f"{self.run.method}: parameter_groups() may name trainable parameters of the method only, each once")
        groups: list[dict[str, Any]] = [{"params": [parameter for parameter in self.parameters if id(parameter) not in apart]}]
        for group in own:
            decay = p.weight_decay if group.weight_decay is None else group.weight_decay
            groups.append({"params": list(group.parameters), "weight_decay": decay})
        # Tensors, so that a captured step follows the schedule; CUDA's fused update reads float32.
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        self.rates = [(torch.zeros((), dtype=kind, device=self.device), times) for times in (1.0, *(group.rate for group in own))]
        rate = p.base_rate(small=self.small_rate)
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=p.momentum, weight_decay=p.weight_decay, nesterov=p.nesterov, fused=True)
        for group, (tensor, times) in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = tensor.fill_(rate * times)
        if p.momentum:  # zeros give the first step the same bits, and a captured one has them in place
            for parameter in self.parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured: no draw is made in it, and the method does not opt out."""
        return self.method.capturable and not self.drops_out

    def start(self, labels: Tensor) -> None:
        """The method's own start, once, before a state is loaded; labels (N,) int64 of the training images, on the device."""
        if not self._started:
            self._started = True
            self.method.start(labels)

    def begin_epoch(self, epoch: int) -> None:
        """Learning rate and, in the main stage (from epoch 1), the method's own host work for an epoch."""
        self.epoch = epoch
        base = self.pretraining.rate if self.pretraining else self.run.protocol.rate(epoch, small=self.small_rate)
        for tensor, times in self.rates:
            tensor.fill_(base * times)
        if not self.pretraining:
            self.method.begin_epoch(epoch, generator(self.run.seed, f"method/{self.run.method}", epoch))

    def begin_step(self, index: Tensor, place: int) -> None:
        """The method's draws for the step whose batch (B,) begins at `place` of the epoch's order; not for use inside a captured step."""
        self._draws.manual_seed(key(self.run.seed, f"method/{self.run.method}/step/{place}", self.epoch))
        self.method.begin_step(index, self._draws)

    def seed_dropout(self, place: int) -> None:
        """Key the one draw that layers make of the global generator, before the forward pass of the batch that begins at `place`."""
        if self.drops_out:
            torch.manual_seed(key(self.run.seed, f"dropout/{place}", self.epoch))

    def clear_sums(self) -> None:
        """Start an epoch's sums anew, where they are."""
        for value in self.sums.values():
            value.zero_()

    def step(self, images: Tensor, teacher: Outputs | None, batch: Batch, place: int = 0) -> None:
        """One optimiser step. `images` (B, 3, H, W) normalised; `teacher` the shared outputs or None; `place` where in the epoch."""
        self.seed_dropout(place)
        outputs, losses = self.forward(images, teacher, batch)
        logits = self._predicted(outputs)  # now: the update changes what predicts
        self.optimizer.zero_grad(set_to_none=True)
        if self.method.own_backward and not self.pretraining:
            self.method.backward(losses, self.parameters)
        else:
            sum(losses.values()).backward()
        self.optimizer.step()
        self._count(logits, losses, batch.labels)

    def forward(self, images: Tensor, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Mapping[str, Tensor]]:
        """The student's outputs and the method's losses. Raises MethodError for losses that break the contract."""
        precision, losses = self.run.precision, self.method.pretraining_losses if self.pretraining else self.method.losses
        with precision_scope(precision, self.device):
            outputs = self.student(images, self.kinds)
            if not self.method.fp32:
                return outputs, self._checked(losses(outputs, teacher, batch))
        if precision == "bf16":
            return outputs, self._checked(losses(as_float(outputs), as_float(teacher) if teacher else None, batch))
        return outputs, self._checked(losses(outputs, teacher, batch))

    def _checked(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        name, function = self.run.method, "pretraining_losses()" if self.pretraining else "losses()"
        if not isinstance(losses, Mapping) or not losses:
            raise MethodError(f"{name}: {function} gives {type(losses).__name__} {losses!r:.60}; return a dict of named scalar tensors")
        for term, value in losses.items():
            if not isinstance(value, Tensor) or value.shape != ():
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise MethodError(f'{name}: the loss "{term}" of {function} is no scalar tensor ({found}); take its mean or sum')
        if self.method.uses_labels and not self.pretraining and "ce" not in losses:
            terms = ", ".join(losses)
            raise MethodError(f'{name}: {function} has no "ce" among its terms ({terms}); add the cross-entropy or declare uses_labels = False')
        return losses

    @torch.no_grad()
    def _predicted(self, outputs: Outputs) -> Tensor:
        """The logits (B, classes) that count for the training top-1."""
        if self.evaluated is self.student or self.pretraining:
            return outputs.logits.detach()
        self.method.eval()  # a second pass through its modules leaves no trace in their statistics
        try:
            with precision_scope(self.run.precision, self.device):
                return self.evaluated.logits(outputs)
        finally:
            self.method.train()

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

    def end_pretraining(self) -> None:
        """Forget the optimiser and the sums: the main stage starts with fresh ones."""
        self.optimizer.state.clear()
        self.sums.clear()

    def released(self) -> dict[str, Tensor]:
        """The method's state that is kept beside the finished student's weights."""
        return {name: value for name, value in self.method.state_dict().items() if name.split(".")[0] not in self.method.unreleased}

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


class Predicting(nn.Module):
    """A student as its method evaluates it: `predict` in place of the student's own logits."""

    def __init__(self, student: nn.Module, method: Method, kinds: Sequence[str]) -> None:
        super().__init__()
        self.student, self.method, self.kinds = student, method, tuple(kinds)

    def forward(self, images: Tensor, kinds: Sequence[str] = ()) -> Outputs:
        """images (B, 3, H, W) -> logits (B, classes) and the embedding; no maps."""
        outputs = self.student(images, self.kinds)
        return Outputs(self.logits(outputs), outputs.embedding)

    def logits(self, outputs: Outputs) -> Tensor:
        """The logits (B, classes) that are evaluated; an fp32 island where the method is one."""
        if not self.method.fp32:
            return self.method.predict(outputs)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            return self.method.predict(as_float(outputs))


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
