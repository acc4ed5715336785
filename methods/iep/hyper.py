"""IEP's hyper-parameters, with the switches for the ablations of its Tables 4 to 6."""

from dataclasses import dataclass
from typing import Any

from methods.base import MethodError, ranged

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
    iterations: int = ranged(2, at_least=1)  # of message passing (Table 6)
    pca: str = "covariance"  # see PCA (Table 5)
    sigma_scale: bool = False  # times sigma as Eq. 5 prints, on both sides
    teacher_first: bool = True  # L^int = KL(teacher || student); False: as Eq. 18 prints
    clip: str = "tensor"  # or "global": one factor for the whole student
    ramp: bool = True  # clip at sigmoid(epoch - 1) times the cross-entropy gradient's norm; False: at the norm
    power_steps: int = ranged(12, at_least=1)  # of the first component
    phase_epochs: int = ranged(20, at_least=1)  # phase I: teacher only
    phase_batch: int = ranged(64, at_least=2)  # 128 in the authors' code
    phase_steps: int = ranged(0, at_least=0)  # steps of each pass of phase I; 0: the whole training set
    phase_lr: float = ranged(0.1, above=0)
    phase_momentum: float = ranged(0.9, above=0, at_most=1)  # nesterov, which needs some
    phase_weight_decay: float = ranged(1e-3, at_least=0)  # on every weight of the networks, batch normalisation included
    check_batches: int = ranged(50, at_least=1)  # of training images, not augmented, on which the networks are compared with trivial predictors

    def __post_init__(self) -> None:
        if self.pca not in PCA:
            raise MethodError(f"pca={self.pca!r}: one of {', '.join(PCA)}")
        if self.clip not in CLIP:
            raise MethodError(f"clip={self.clip!r}: one of {', '.join(CLIP)}")
        if not self.kinds:
            raise MethodError("no knowledge left to transfer: set intermediate or alteration")

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
        """A phase I of seconds, for tests, the nightly and timings: not the paper's."""
        return cls(**{"phase_epochs": 2, "phase_steps": 8, "check_batches": 2, **options})


@dataclass(frozen=True)
class BlackBoxHyper(Hyper):
    """IEP with black-box knowledge. Without `intermediate` and `alteration` it is the row K^BB of Table 4."""

    heads: int = ranged(7, at_least=1)  # learned; one more is injected

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*super().kinds, "bb")

    @property
    def estimator_heads(self) -> int:
        return self.heads
