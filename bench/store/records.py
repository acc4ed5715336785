"""What stands in the files of a results folder, as types: the fields that this version knows, their types and their ranges.

A file is read by `bench.store.files.read`: a field of another type or out of its range makes the file a named problem; a key that a newer
version wrote is left out. A test holds every field here against the kept evidence, so that none is read that nobody writes.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

from bench.plan.protocols import Protocol
from bench.text import settings_text

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=10_000)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Positive = Annotated[int, Meta(ge=1, le=10**12)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]
Some = Annotated[float, Meta(ge=1e-6, le=1e18)]
MOST_CELLS = 1_000_000
"""Pairs x rows x seeds of a plan: a hundred times what the largest has."""


class Identity(Struct, frozen=True, kw_only=True):
    """What names a run. `protocol`: as `Protocol`; see also `known_protocol`."""

    student: Name
    method: Name
    seed: Integer
    protocol: Protocol
    precision: Name
    data_hash: Name
    method_version: Integer
    hyper: dict[str, Any]
    teacher: Name | None = None
    teacher_hash: Name | None = None


class Config(Struct, frozen=True, kw_only=True):
    """config.json: written once, when a run's folder is made."""

    WHAT: ClassVar[str] = "the configuration of a run"
    format: int
    identity: Identity
    method_source: Text = ""
    title: Text = ""
    changed: dict[str, Any] = {}
    """Of a variant, the settings that its method's own row has otherwise."""

    def __post_init__(self) -> None:
        check_protocol(self.identity.protocol)


class Row(Struct, frozen=True, kw_only=True):
    """One line of epochs.jsonl. Losses are finite; `seconds`: of training since the run began."""

    WHAT: ClassVar[str] = "the row of an epoch"
    run: Name
    attempt: Positive
    epoch: Positive
    lr: float
    loss: float
    losses: dict[str, float]
    train_top1: Percent
    test_top1: Percent
    test_top5: Percent
    test_loss: float
    seconds: Amount


class Device(Struct, frozen=True, kw_only=True):
    """What a number was made on. `cores`: of a CPU; `driver`: of a GPU."""

    type: Name
    name: Name
    cores: Positive | None = None
    driver: Text | None = None


class Versions(Struct, frozen=True, kw_only=True):
    """Versions that can change numbers."""

    python: Text
    torch: Text
    torchvision: Text | None = None
    cuda: Text | None = None
    cudnn: Integer | None = None
    platform: Text | None = None


class UsedTeacher(Struct, frozen=True, kw_only=True):
    """What a run's record says of its teacher."""

    architecture: Name
    hash: Name
    test_top1: Percent
    trained: bool


class Pretrained(Struct, frozen=True, kw_only=True):
    """A stage before the main one in which the student itself was trained."""

    epochs: Positive
    rate: Amount
    seconds: Amount


class AtUse(Struct, frozen=True, kw_only=True):
    """What a method adds to its student when it is used; `macs` for one image. Below 0: it is used with less."""

    parameters: Integer
    macs: Integer


class Record(Struct, frozen=True, kw_only=True):
    """record.json: what a finished run leaves behind, written last and once. `commit`: see environment.commit_of; None: of an
    older version, outside a checkout."""

    WHAT: ClassVar[str] = "the record of a finished run"
    format: int
    run: Name
    status: Literal["done"]
    epochs: Positive
    test_top1: Percent
    test_top5: Percent
    test_loss: float
    best_top1: Percent
    best_epoch: Count
    attempts: Positive
    train_seconds: Amount
    device: Device
    versions: Versions
    engine: Text
    threads: Positive
    deterministic: bool
    commit: Text | None
    method_source: Text
    weights_sha256: Text
    config_sha256: Text
    rows_sha256: Text
    teacher: UsedTeacher | None
    preparation: dict[str, Any] | None
    finished: Text
    changes: list[Text] = []
    pretraining: Pretrained | None = None
    inference: AtUse | None = None


class Status(Struct, frozen=True, kw_only=True):
    """status.json: where a run stands, for whoever looks. Replaced often and not fsynced."""

    WHAT: ClassVar[str] = "the status of a run"
    status: Literal["planned", "running", "done", "diverged", "failed", "interrupted", "skipped"]
    run: Name | None = None
    reason: str | None = None
    attempt: Count | None = None
    epoch: Count | None = None
    epochs: Count | None = None
    step: Count | None = None
    steps: Count | None = None
    loss: float | None = None
    test_top1: Percent | None = None
    eta_seconds: Amount | None = None


class Cost(Struct, frozen=True, kw_only=True):
    """costs/<device>/*.json: what an exclusive probe measured. `teacher` None: the method uses none; `teacher_macs` 0: none in the step.

    From `method_version` on: what older records do not say (None); it then fits any. `relative`: the plain student's step time over this
    one's, median over rounds in which both took turns. `noisy`: why the figures are not to be trusted; empty: nothing speaks against them.
    """

    WHAT: ClassVar[str] = "a cost record"
    teacher: Name | None
    student: Name
    method: Name
    precision: Name
    device: Device
    engine: Name
    threads: Positive
    batch: Positive
    speed: Some = field(name="images_per_second")
    memory: Some = field(name="peak_memory_bytes")
    memory_kind: Text = field(name="peak_memory_kind")
    preparation: Amount | None = field(name="preparation_seconds")
    preparation_memory: Amount | None = field(name="preparation_peak_bytes")
    student_macs: Amount
    teacher_macs: Amount
    teacher_trained: bool
    versions: Versions
    protocol: Name
    method_version: Integer | None = None
    hyper: dict[str, Any] | None = None
    dataset: Name | None = None
    image_size: Positive | None = None
    train_images: Positive | None = None
    momentum: Amount | None = None
    nesterov: bool | None = None
    dropout: Amount | None = None
    commit: Text | None = None
    finished: Text = ""
    relative: Some | None = None
    noisy: Text = ""


class PlannedPair(Struct, frozen=True, kw_only=True):
    teacher: Name | None
    student: Name


class PlannedRow(Struct, frozen=True, kw_only=True):
    method: Name
    title: Text


class PlannedCell(Struct, frozen=True, kw_only=True):
    """`run` None: not known before the teacher is there. `changed`: of a variant, field -> (the value in the method's own row, the value here)."""

    teacher: Name | None
    student: Name
    method: Name
    seed: Integer
    run: Name | None
    skipped: Text | None
    changed: dict[str, tuple[Any, Any]] = {}

    @property
    def label(self) -> str:
        """What tells its row from the method's own."""
        return settings_text({name: here for name, (_, here) in self.changed.items()})


class PlanRecord(Struct, frozen=True, kw_only=True):
    """plan.json: what the launcher leaves for readers of the results folder."""

    WHAT: ClassVar[str] = "a plan"
    format: int
    protocol: Protocol
    precision: Name
    seeds: list[Integer]
    pairs: list[PlannedPair]
    rows: list[PlannedRow]
    cells: list[PlannedCell]

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        if (cells := len(self.pairs) * len(self.rows) * len(self.seeds)) > MOST_CELLS:
            raise ValueError(f"{cells:,} cells, more than the {MOST_CELLS:,} that are read")


class Teacher(Struct, frozen=True, kw_only=True):
    """teacher.json: of a trained network in results/teachers. `trial`: why its own training was none of a protocol. `precision`: of that training;
    None: it is not known, as of one that was imported."""

    WHAT: ClassVar[str] = "the record of a teacher"
    format: int
    architecture: Name
    dataset: Name
    hash: Name
    test_top1: Percent
    test_top5: Percent | None
    test_top1_data: Name
    trained: bool
    source: Text
    trial: Text | None = None
    protocol: Name | None = None
    precision: Name | None = None


class Verified(Struct, frozen=True, kw_only=True):
    """verified.json: test top-1 of a teacher's weights, by the hash of the data it was measured on. `networks`: hash of the code they were
    measured with; empty: of an older version."""

    WHAT: ClassVar[str] = "what was measured of a teacher"
    format: int
    hash: Name
    data: dict[str, Percent]
    networks: Text = ""


class Member(Struct, frozen=True, kw_only=True):
    file: Name
    sha256: Name
    bytes: Count


class Manifest(Struct, frozen=True, kw_only=True):
    """groups/<key>/manifest.json: the members of one generation of a group's checkpoints."""

    WHAT: ClassVar[str] = "the manifest of a group"
    format: int
    serial: Count
    epoch: Integer  # below 1: of a stage before the main one
    step: Count
    members: dict[str, Member]


def check_protocol(protocol: Protocol) -> None:
    """Raises ValueError for a protocol whose numbers cannot be."""
    p = protocol
    counts = {"epochs": p.epochs, "batch": p.batch, "image_size": p.image_size, "train_images": p.train_images, "test_images": p.test_images}
    for name, value in counts.items():
        if value is not None and not 1 <= value <= 10**9:
            raise ValueError(f"{name} {str(value)[:20]} of the protocol is no count")
    if not 0 < p.sample_rate <= 1:
        raise ValueError(f"sample_rate {p.sample_rate} of the protocol is no part of the training set")


def known_protocol(raw: dict[str, Any], protocol: Protocol) -> Protocol:
    """The protocol, marked as a trial where its file holds settings that this version does not know: then it is none that is declared here."""
    strange = sorted(raw.keys() - {field.name for field in dataclasses.fields(Protocol)})
    if not strange:
        return protocol
    reason = f"settings that this version does not know: {', '.join(strange)}"
    return dataclasses.replace(protocol, trial="; ".join(filter(None, (protocol.trial, reason))))
