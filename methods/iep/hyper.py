"""IEP's hyper-parameters, with the switches for the ablations of its Tables 4 to 6."""

from dataclasses import dataclass
from typing import Any

from methods.base import MethodError

PCA = ("covariance", "ipca", "ipca_code", "batch")
"""The second PCA. `covariance`: exact streaming mean and covariance. `ipca`: incremental, moving mean with old weight 0.9.
`ipca_code`: as the authors' code, old weight 0.1 and mean row weight 1. `batch`: each mini-batch alone (Table 5; reads the host in
the step, so such steps are run eagerly)."""
CLIP = ("tensor", "global")


@dataclass(frozen=True)
class Hyper:
    """Defaults: the paper where it states a value, else the authors' code."""

    intermediate: bool = True  # K^int (Table 4)
    alteration: bool = True  # K^alt (Table 4)
    iterations: int = 2  # of message passing (Table 6)
    pca: str = "covariance"  # see PCA (Table 5)
    sigma_scale: bool = False  # times sigma as Eq. 5 prints, on both sides
    teacher_first: bool = True  # L^int = KL(teacher || student); False: as Eq. 18 prints
    clip: str = "tensor"  # or "global": one factor for the whole student
    ramp: bool = True  # clip at sigmoid(epoch - 1) times the cross-entropy gradient's norm; False: at the norm
    power_steps: int = 12  # of the first component
    phase_epochs: int = 20  # phase I: teacher only
    phase_batch: int = 64  # 128 in the authors' code
    phase_steps: int = 0  # steps of each pass of phase I; 0: the whole training set
    phase_lr: float = 0.1
    phase_momentum: float = 0.9  # nesterov
    phase_weight_decay: float = 1e-3  # on every weight of the networks, batch normalisation included
    check_batches: int = 50  # held pass that compares the networks with the trivial predictors

    def __post_init__(self) -> None:
        if self.pca not in PCA:
            raise MethodError(f"pca={self.pca!r}: one of {', '.join(PCA)}")
        if self.clip not in CLIP:
            raise MethodError(f"clip={self.clip!r}: one of {', '.join(CLIP)}")
        if not self.kinds:
            raise MethodError("no knowledge left to transfer: set intermediate or alteration")
        for name, least in (("iterations", 1), ("power_steps", 1), ("phase_epochs", 1), ("phase_batch", 2), ("phase_steps", 0), ("check_batches", 1)):
            if getattr(self, name) < least:
                raise MethodError(f"{name}={getattr(self, name)}: at least {least}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the knowledge losses in use."""
        return tuple(name for name, on in (("int", self.intermediate), ("alt", self.alteration)) if on)

    @property
    def estimator_heads(self) -> int:
        """Learned attention heads of the black-box knowledge; 0: none."""
        return 0

    @classmethod
    def quick(cls, **options: Any) -> "Hyper":
        """A phase I of seconds, for tests and the smoke profile: not the paper's."""
        return cls(**{"phase_epochs": 2, "phase_steps": 8, "check_batches": 2, **options})


@dataclass(frozen=True)
class BlackBoxHyper(Hyper):
    """IEP with black-box knowledge. Without `intermediate` and `alteration` it is the row K^BB of Table 4."""

    heads: int = 7  # learned; one more is injected

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1:
            raise MethodError(f"heads={self.heads}: at least 1")

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*super().kinds, "bb")

    @property
    def estimator_heads(self) -> int:
        return self.heads
