"""Run identity: a short hash of everything that can change a run's numbers, behind a readable prefix. No torch here."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from bench.plan.protocols import Protocol

FORMAT = 1
PRECISIONS = ("tf32", "fp32", "bf16")
"""`tf32`: PyTorch's default on GPUs (convolutions in TF32, the rest fp32; plain fp32 on CPU). `fp32`: TF32 off. `bf16`: autocast."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 10) -> str:
    """The first `length` hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Run:
    """One (pair, method, seed, protocol, precision)."""

    student: str
    method: str
    seed: int
    protocol: Protocol
    precision: str
    data_hash: str
    method_version: int = 1
    hyper: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None  # architecture; None where the numbers depend on no teacher
    teacher_hash: str | None = None

    def identity(self) -> dict[str, Any]:
        """The JSON object whose hash names the folder."""
        protocol = {**dataclasses.asdict(self.protocol), "milestones": list(self.protocol.milestones)}
        return {"format": FORMAT, **dataclasses.asdict(self), "protocol": protocol}

    @property
    def id(self) -> str:
        """The folder's name, e.g. resnet56-resnet20-kd-s1-0123456789."""
        parts = [self.teacher, self.student, self.method, f"s{self.seed}", digest(self.identity())]
        return "-".join(p for p in parts if p)
