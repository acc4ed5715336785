"""Preparation stages: built once per (teacher, data, settings) under a lock, stored with their cost, refused on any mismatch."""

import copy
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from bench.data import Dataset
from bench.data.augment import Augmenter, crops, plain
from bench.errors import StoreError, UsageError
from bench.plan.identity import canonical, digest
from bench.store.files import read_bytes, read_json, write_bytes, write_json
from bench.store.lease import waited_for
from bench.store.weights import pickled
from bench.train import environment
from methods import registry
from methods.base import Preparation, Prepared
from models.files import LIMIT
from models.randomness import generator, keyed

FORMAT = 1
SEED = 0
"""A preparation's own fixed seed: one result serves every run's seed."""


class TrainingImages:
    """The training set as a preparation sees it: methods.base.PreparationData."""

    def __init__(self, dataset: Dataset, images: Augmenter, check: Callable[[], None] = lambda: None) -> None:
        self.device, self.count, self.classes = images.device, len(dataset.train_labels), len(dataset.classes)
        self._images, self.check = images, check
        self._name, self._unfinished = "", None
        self.log: Callable[[str], None] = lambda message: None

    def named(self, name: str, log: Callable[[str], None] | None = None, unfinished: "Unfinished | None" = None) -> "TrainingImages":
        """The same images for the preparation of that name: its draws, its log, where it keeps how far it came."""
        images = copy.copy(self)
        images._name, images._unfinished, images.log = name, unfinished, log or self.log
        return images

    def generator(self, purpose: str, epoch: int = 0) -> torch.Generator:
        return generator(SEED, f"preparation/{self._name}/{purpose}", epoch)

    def batches(self, batch_size: int, *, epoch: int = 0, augment: bool = False, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and labels, one pass; the last batch is kept. May raise Stopped between batches."""
        order = torch.randperm(self.count, generator=self.generator("order", epoch)) if shuffle else torch.arange(self.count)
        drawn = crops(self.generator("augment", epoch), self.count) if augment else plain(self.count)
        order, dy, dx, flip = (t.to(self.device) for t in (order, *drawn))
        for start in range(0, self.count, batch_size):
            self.check()
            index = order[start : start + batch_size]
            yield self._images.train_batch(index, dy, dx, flip), self._images.train_labels[index]

    def resume(self) -> Mapping[str, Any] | None:
        return self._unfinished.read() if self._unfinished else None

    def save(self, state: Mapping[str, Any]) -> None:
        if self._unfinished:
            self._unfinished.write(state)


class Unfinished:
    """Where a preparation stands: `unfinished.pt` in its folder, its SHA-256 first, with the seconds spent so far."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.path, self._log = folder / "unfinished.pt", log
        self._before = {"seconds": 0.0, "cpu_seconds": 0.0}
        self._started = environment.clocks()

    def spent(self) -> dict[str, float]:
        """Seconds and CPU seconds, those of earlier processes included."""
        spent = zip(self._before.items(), environment.clocks(), self._started, strict=True)
        return {name: now - began + before for (name, before), now, began in spent}

    def write(self, state: Mapping[str, Any]) -> None:
        content = pickled({"state": dict(state), "spent": self.spent()})
        write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def read(self) -> Mapping[str, Any] | None:
        """What was saved last; None where nothing was, or it is damaged, which the log then says."""
        try:
            content = read_bytes(self.path, LIMIT)
        except FileNotFoundError:
            return None
        except StoreError as error:
            self._log(f"{error}: starting over")
            return None
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            self._log(f"{self.path.name} is damaged: starting over")
            return None
        found = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
        self._before = found["spent"]
        return found["state"]

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Origin:
    """What a preparation is built from: the frozen teacher (loaded when asked for), the images, and what names both."""

    teacher: Callable[[], nn.Module]
    teacher_hash: str
    data_hash: str
    arithmetic: str  # see environment.arithmetic
    images: TrainingImages


@dataclass(frozen=True)
class Built:
    """A preparation at hand and the facts that enter a run's record."""

    prepared: Prepared
    key: str
    name: str
    seconds: float
    peak_bytes: int | None = None  # of memory while it was built
    device: str | None = None  # name of the device it was built on
    threads: int | None = None  # of the process that built it

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "key": self.key, "seconds": self.seconds, "facts": dict(self.prepared.facts)}


def identity(preparation: Preparation, origin: Origin) -> dict[str, Any]:
    """What must agree for a stored preparation to be used."""
    wanted = {
        "format": FORMAT,
        "name": preparation.name,
        "version": preparation.version,
        "settings": dict(preparation.settings),
        "source": registry.source_of(preparation.build),  # changed code makes another: its version says what was meant, this what is
        "networks": models.source_hash(),
        "teacher_hash": origin.teacher_hash,
        "data_hash": origin.data_hash,
    }
    return wanted if origin.arithmetic == "fp32" else {**wanted, "arithmetic": origin.arithmetic}


def place(results: Path, wanted: dict[str, Any]) -> Path:
    """The folder of the preparation with this identity, whether it exists or not."""
    return results / "preparations" / f"{wanted['name']}-{digest(wanted)}"


def stored(results: Path, preparation: Preparation, origin: Origin) -> Built | None:
    """The preparation if it is there. Raises UsageError for a damaged or foreign one."""
    wanted = identity(preparation, origin)
    folder = place(results, wanted)
    return read(folder, wanted) if (folder / "prepared.json").exists() else None


def obtain(results: Path, preparation: Preparation, origin: Origin, log: Callable[[str], None]) -> Built:
    """The stored preparation, or a new one built under a lock that others wait for; one that was stopped goes on where it saved last.

    Raises UsageError for a damaged or foreign one, and what `build` raises.
    """
    wanted = identity(preparation, origin)
    folder = place(results, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with waited_for(folder.parent / f".{folder.name}.lock", origin.images.check):
        if not (folder / "prepared.json").exists():
            _build(folder, wanted, preparation, origin, log)
        return read(folder, wanted)  # what was just built as well: everyone gets what is on disk


def _build(folder: Path, wanted: dict[str, Any], preparation: Preparation, origin: Origin, log: Callable[[str], None]) -> None:
    log(f"preparing {folder.name}")
    network = origin.teacher()
    unfinished, memory = Unfinished(folder, log), _Memory(origin.images.device)
    with keyed(SEED, f"preparation/{preparation.name}"):
        prepared = preparation.build(network, origin.images.named(preparation.name, log, unfinished))
    content = pickled({name: t.detach().cpu() for name, t in prepared.tensors.items()})
    write_bytes(folder / "prepared.pt", content)
    device = origin.images.device
    cost = {
        **unfinished.spent(),
        "peak_memory_bytes": memory.peak(),
        "device": environment.device_facts(device)["name"],
        "threads": torch.get_num_threads(),
    }
    record = {**wanted, "facts": dict(prepared.facts), "cost": cost, "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / "prepared.json", record)
    unfinished.remove()
    log(f"prepared {folder.name} in {cost['seconds']:.1f} s")


def read(folder: Path, wanted: dict[str, Any]) -> Built:
    """A stored preparation. Raises UsageError naming what is damaged or differs, and what to do."""
    cure = f"remove {folder} and it is built again"
    try:
        record = read_json(folder / "prepared.json") or {}
        content = read_bytes(folder / "prepared.pt", LIMIT)
        facts, cost, sha256 = record["facts"], record["cost"], record["sha256"]
        seconds, peak, device = float(cost["seconds"]), cost.get("peak_memory_bytes"), cost.get("device")
        threads = cost.get("threads")
    except (OSError, ValueError, KeyError, TypeError, StoreError) as error:
        raise UsageError(f"preparation {folder.name} is damaged ({type(error).__name__}: {error}); {cure}") from None
    for name, value in wanted.items():
        if canonical(value) != canonical(record.get(name)):
            raise UsageError(f"preparation {folder.name} was made for another {name} ({record.get(name)!r}, now {value!r}); {cure}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UsageError(f"preparation {folder.name}: prepared.pt differs from its SHA-256; {cure}")
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes make torch.load raise many things
        raise UsageError(f"preparation {folder.name}: prepared.pt cannot be read ({type(error).__name__}); {cure}") from None
    return Built(Prepared(tensors, facts), folder.name, wanted["name"], seconds, peak, device, threads)


class _Memory:
    """Peak memory while a preparation is built, beyond what was there before: what CUDA's allocator held, or on a CPU the process's size."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._base = torch.cuda.memory_allocated(device)
        else:
            self._base = environment.reset_high_water()

    def peak(self) -> int:
        mark = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else environment.high_water()
        return max(0, mark - self._base)
