"""Preparation stages: built once per (teacher, data, settings) under a lock, stored with their cost, refused on any mismatch."""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor, nn

from bench.data.augment import Augmenter, crops, plain
from bench.errors import StoreError, UsageError
from bench.plan.identity import canonical, digest
from bench.store.files import read_json, write_bytes, write_json
from bench.train import environment
from bench.train.memory import high_water, reset_high_water
from methods.base import Preparation, Prepared
from models.randomness import generator, keyed

FORMAT = 1
SEED = 0
"""A preparation's own fixed seed: one result serves every run's seed."""


class TrainingImages:
    """The training set as a preparation sees it: methods.base.PreparationData."""

    def __init__(self, dataset, data: Augmenter, name: str, log: Callable[[str], None], check: Callable[[], None]) -> None:
        self.device, self.count, self.classes = data.device, len(dataset.train_labels), len(dataset.classes)
        self._data, self._name, self._check = data, name, check
        self.log = log

    def generator(self, purpose: str, epoch: int = 0) -> torch.Generator:
        return generator(SEED, f"preparation/{self._name}/{purpose}", epoch)

    def batches(self, batch_size: int, *, epoch: int = 0, augment: bool = False, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and labels, one pass; the last batch is kept. May raise Stopped between batches."""
        order = torch.randperm(self.count, generator=self.generator("order", epoch)) if shuffle else torch.arange(self.count)
        drawn = crops(self.generator("augment", epoch), self.count) if augment else plain(self.count)
        order, dy, dx, flip = (t.to(self.device) for t in (order, *drawn))
        for start in range(0, self.count, batch_size):
            self._check()
            index = order[start : start + batch_size]
            yield self._data.train_batch(index, dy, dx, flip), self._data.train_labels[index]


@dataclass(frozen=True)
class Built:
    """A preparation at hand and the facts that enter a run's record."""

    prepared: Prepared
    key: str
    name: str
    seconds: float
    peak_bytes: int | None = None  # of memory while it was built
    device: str | None = None  # name of the device it was built on

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "key": self.key, "seconds": self.seconds, "facts": dict(self.prepared.facts)}


def identity(preparation: Preparation, teacher_hash: str, data_hash: str) -> dict[str, Any]:
    """What must agree for a stored preparation to be used."""
    settings = dict(preparation.settings)
    return {
        "format": FORMAT,
        "name": preparation.name,
        "version": preparation.version,
        "settings": settings,
        "teacher_hash": teacher_hash,
        "data_hash": data_hash,
    }


def place(results: Path, wanted: dict[str, Any]) -> Path:
    """The folder of the preparation with this identity, whether it exists or not."""
    return results / "preparations" / f"{wanted['name']}-{digest(wanted)}"


def obtain(
    results: Path,
    preparation: Preparation,
    teacher: Callable[[], nn.Module],
    teacher_hash: str,
    data_hash: str,
    images: Callable[[str, Callable[[str], None]], TrainingImages],
    check: Callable[[], None],
    log: Callable[[str], None],
) -> Built:
    """The stored preparation, or a new one built under a lock that others wait for. Raises UsageError for a damaged or foreign one."""
    wanted = identity(preparation, teacher_hash, data_hash)
    folder = place(results, wanted)
    key = folder.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.parent / f".{key}.lock")
    while True:
        check()
        try:
            lock.acquire(timeout=1.0)
            break
        except filelock.Timeout:
            continue
    try:
        if (folder / "prepared.json").exists():
            return read(folder, wanted)
        log(f"preparing {key}")
        folder.mkdir(exist_ok=True)
        started, cpu = time.monotonic(), time.process_time()
        memory = _Memory()
        network, inputs = teacher(), images(preparation.name, log)
        with keyed(SEED, f"preparation/{preparation.name}"):
            prepared = preparation.build(network, inputs)
        seconds = time.monotonic() - started
        buffer = io.BytesIO()
        torch.save({name: t.detach().cpu() for name, t in prepared.tensors.items()}, buffer)
        content = buffer.getvalue()
        write_bytes(folder / "prepared.pt", content)
        cost = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "peak_memory_bytes": memory.peak(inputs.device),
            "device": environment.device_facts(inputs.device)["name"],
            "threads": torch.get_num_threads(),
        }
        record = {**wanted, "facts": dict(prepared.facts), "cost": cost, "sha256": hashlib.sha256(content).hexdigest()}
        write_json(folder / "prepared.json", record)
        log(f"prepared {key} in {seconds:.1f} s")
        return Built(prepared, key, preparation.name, seconds, cost["peak_memory_bytes"], cost["device"])
    finally:
        lock.release()


def read(folder: Path, wanted: dict[str, Any]) -> Built:
    """A stored preparation. Raises UsageError naming what is damaged or differs, and what to do."""
    cure = f"remove {folder} and it is built again"
    try:
        record = read_json(folder / "prepared.json") or {}
        content = (folder / "prepared.pt").read_bytes()
        facts, cost, sha256 = record["facts"], record["cost"], record["sha256"]
        seconds, peak, device = float(cost["seconds"]), cost.get("peak_memory_bytes"), cost.get("device")
    except (OSError, ValueError, KeyError, TypeError, StoreError) as error:
        raise UsageError(f"preparation {folder.name} is damaged ({type(error).__name__}: {error}); {cure}") from None
    for name, value in wanted.items():
        if canonical(value) != canonical(record.get(name)):
            raise UsageError(f"preparation {folder.name} was made for another {name} ({record.get(name)!r}, now {value!r}); {cure}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UsageError(f"preparation {folder.name}: prepared.pt differs from its SHA-256; {cure}")
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return Built(Prepared(tensors, facts), folder.name, wanted["name"], seconds, peak, device)


class _Memory:
    """Peak memory while a preparation is built: what CUDA's allocator held, or on a CPU how far the process's high-water mark rose."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._base = reset_high_water()

    def peak(self, device: torch.device) -> int:
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else max(0, high_water() - self._base)
