"""Protocols: data set, schedule, optimiser, batch and augmentation of a run, as frozen data.

`crd`: Tian et al., Contrastive Representation Distillation, ICLR 2020 (240 epochs). `skd`: Han et al., SKD, 2022 (100 epochs).
`iep`: Lee and Song, IEP, 2021 (100 epochs, batch 128, nesterov); `iep_half`, `iep_quarter`, `iep_tenth`: the same on a class-balanced
part of the training set, as its experiments declare it.
`smoke` and `smoke_teacher`: minutes on two CPU cores, on the embedded data. A schedule scaled with `scaled` is a trial, not the protocol.
No torch here: the report reads it too.
"""
import dataclasses
from dataclasses import dataclass
from types import MappingProxyType

from bench.errors import UsageError, unknown


@dataclass(frozen=True)
class Protocol:
    """Everything about training that methods share. Epochs count from 1; `milestones` are the last epochs at the higher rate."""

    name: str
    dataset: str = "cifar100"
    epochs: int = 240
    milestones: tuple[int, ...] = (150, 180, 210)
    lr: float = 0.05
    small_lr: float = 0.01
    decay: float = 0.1
    batch: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    dropout: float = 0.0  # of students that have it (WRN)
    sample_rate: float = 1.0  # class-balanced fraction of the training set
    train_images: int | None = None  # embedded data only: how many to draw
    test_images: int | None = None
    image_size: int = 32
    trial: str = ""  # why a run so made is not the protocol; empty: it is

    def scaled(self, epochs: int) -> "Protocol":
        """The same schedule at another length: milestones scaled by fraction and rounded; marked as a trial. Raises UsageError."""
        if epochs < 1:
            raise UsageError(f"--epochs {epochs}: at least 1")
        if epochs == self.epochs:
            return self
        milestones = tuple(int(m * epochs / self.epochs + 0.5) for m in self.milestones)
        reason = f"{epochs} of {self.epochs} epochs" if epochs < self.epochs else f"{epochs} epochs, more than the protocol's {self.epochs}"
        return dataclasses.replace(self, epochs=epochs, milestones=milestones, trial="; ".join(filter(None, (self.trial, reason))))

    def share(self, epochs: int) -> int:
        """The length here of a stage that has `epochs` beside the declared schedule: scaled as milestones are, at least 1. The declared
        schedules of embedded data are short forms of the CRD protocol's."""
        declared = PROTOCOLS.get(self.name, self)
        if self.name in PROTOCOLS and declared.train_images is not None:
            declared = PROTOCOLS["crd"]
        return max(1, int(epochs * self.epochs / declared.epochs + 0.5))

    def sampled(self, rate: float) -> "Protocol":
        """A class-balanced fraction of the training set. Raises UsageError."""
        if not 0 < rate <= 1:
            raise UsageError(f"--sample-rate {rate}: above 0 and at most 1")
        if rate == self.sample_rate:
            return self
        reason = f"{100 * rate:g}% of the training set"
        return dataclasses.replace(self, sample_rate=rate, trial="; ".join(filter(None, (self.trial, reason))))

    def base_rate(self, *, small: bool) -> float:
        """The initial learning rate; `small`: of a student that declares the small one (models.small_rate), the CRD protocol's exception."""
        return self.small_lr if small else self.lr

    def rate(self, epoch: int, *, small: bool) -> float:
        """The learning rate in `epoch` (from 1): multiplied by `decay` in every epoch after each milestone. `small` as in `base_rate`."""
        return self.base_rate(small=small) * self.decay ** sum(epoch > m for m in self.milestones)


_IEP = Protocol("iep", epochs=100, milestones=(30, 60, 80), lr=0.1, small_lr=0.1, decay=0.2, batch=128, nesterov=True, dropout=0.3)
PROTOCOLS = MappingProxyType(
    {
        p.name: p
        for p in (
            Protocol("crd"),
            Protocol("skd", epochs=100, milestones=(50, 75, 90), lr=0.1),
            _IEP,
            dataclasses.replace(_IEP, name="iep_half", sample_rate=0.5),
            dataclasses.replace(_IEP, name="iep_quarter", sample_rate=0.25),
            dataclasses.replace(_IEP, name="iep_tenth", sample_rate=0.1),
            # Few images for students and more for the teacher: what a student lacks is data, and distillation makes up for it.
            Protocol("smoke", "shapes20", epochs=50, milestones=(40, 45, 48), batch=32, train_images=400, test_images=1000, image_size=16),
            Protocol("smoke_teacher", "shapes20", epochs=16, milestones=(10, 12, 14), train_images=4000, test_images=1000, image_size=16),
        )
    }
)


def get(name: str) -> Protocol:
    """The declared protocol of that name. Raises UsageError."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, sorted(PROTOCOLS))
    return PROTOCOLS[name]
