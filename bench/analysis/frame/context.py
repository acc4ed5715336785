"""What an analysis works with: the device, the images, the networks it was asked about, stored preparations, and parts that survive a stop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import models
from bench.analysis.frame import registry, results
from bench.analysis.frame.base import Analysis, Stored
from bench.analysis.frame.by_method import grouped
from bench.analysis.frame.subjects import Subject
from bench.errors import UsageError
from bench.plan.identity import digest
from bench.store.files import write_bytes
from bench.store.runs import RunView
from bench.text import duration
from bench.train import context, environment, preparations, teacher_networks
from methods import registry as method_registry
from methods.base import MethodError, Preparation, Prepared, check_hyper, named_hyper
from models.outputs import Outputs, Shapes

BATCH = 100
SAY_SECONDS = 10.0
PRECISION = "tf32"
"""That of most runs, so that what was prepared for them serves here; plain fp32 on a CPU."""


class Context:
    """One result being made, on a machine set up as for training. Networks are frozen, in eval mode, on the device; nothing here trains them."""

    def __init__(self, machine: context.Context, subjects: Sequence[Subject], log: Callable[[str], None]) -> None:
        self.machine, self.subjects, self.log = machine, tuple(subjects), log
        self.root, self.dataset, self.images, self.device = machine.results, machine.dataset, machine.images, machine.device
        self.folder: Path | None = None  # of the result, set by `obtain`
        self.apart = (0.0, 0.0)  # seconds and CPU seconds spent on what has a cost of its own
        self._networks: dict[str, nn.Module] = {}

    # The networks.
    @property
    def teacher(self) -> Subject:
        """The first network named (scope "network": the only one)."""
        return self.subjects[0]

    @property
    def students(self) -> tuple[Subject, ...]:
        return self.subjects[1:]

    def rows(self) -> dict[str, dict[int, Subject]]:
        """The students by row and seed, see `by_method.grouped`."""

        def own(view: RunView) -> dict[str, Any]:
            try:
                return named_hyper(method_registry.get(view.method).hyper_for(view.teacher, view.student))
            except MethodError:  # not here any more: there is no telling its own settings, and its runs must agree in them
                return view.known.hyper

        return grouped(self.students, own)

    def network(self, subject: Subject) -> nn.Module:
        """The network of a subject. Raises UsageError where its file is damaged or another one's."""
        if subject.hash not in self._networks:
            made = teacher_networks.read(subject.architecture, subject.file, subject.hash, len(self.dataset.classes), self.device)
            self._networks[subject.hash] = made
        return self._networks[subject.hash]

    def shapes(self, subject: Subject) -> Shapes:
        return models.shapes(subject.architecture, len(self.dataset.classes), self.dataset.image_size)

    def layers(self, subject: Subject, wanted: Sequence[str] = (), kind: str = "stage", stem: bool = True) -> dict[str, int]:
        """Name -> position in the tuple of stage maps: all stages (stage1, stage2, ...), or those wanted; "stem" can be asked for if `stem`.

        Raises UsageError for an unknown layer.
        """
        known = ({"stem": 0} if stem else {}) | {f"stage{i}": i for i in range(1, len(self.shapes(subject).maps[kind]))}
        for name in wanted:
            if name not in known:
                raise UsageError(f"{subject.architecture} has no layer {name!r}; it has {', '.join(known)}")
        return {name: known[name] for name in wanted} if wanted else {n: i for n, i in known.items() if i}

    # The images.
    def count(self, wanted: int | None = None) -> int:
        """How many test images there are, at most those wanted."""
        return min(wanted or len(self.dataset.test_labels), len(self.dataset.test_labels))

    def batches(self, count: int | None = None, batch: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised test images (B, 3, S, S) and labels (B,), the first `count` of them (all: None), in their order."""
        total = self.count(count)
        for start in range(0, total, batch):
            part = slice(start, min(start + batch, total))
            yield self.images.test_batch(part), self.images.test_labels[part]

    def outputs(self, subject: Subject, images: Tensor, kinds: tuple[str, ...] = ()) -> Outputs:
        """One forward pass of a batch, without gradients."""
        with torch.inference_mode():
            return self.network(subject)(images, kinds)

    # What was made before.
    def prepared(self, subject: Subject, method: str, changes: Mapping[str, Any] | None = None) -> Prepared:
        """The preparation of `method` for this network (built and stored if it is not there yet), with hyper-parameters changed.

        Raises MethodError for a value out of its range.
        """
        return self.preparation(subject, self._wanted(subject, method, changes or {}))

    def _wanted(self, subject: Subject, method: str, changes: Mapping[str, Any]) -> Preparation:
        found = method_registry.get(method)
        hyper = dataclasses.replace(found.hyper_for(subject.architecture, subject.architecture), **changes)
        check_hyper(method, hyper)
        return self.machine.preparation_of(found, hyper, subject.architecture)

    def prepared_by(self, method: str, changes: Mapping[str, Any]) -> str:
        """A hash of what names that preparation of the first network: its version, settings and code among it."""
        return digest(preparations.identity(self._wanted(self.teacher, method, changes), self._origin(self.teacher)), 16)

    def preparation(self, subject: Subject, wanted: Preparation) -> Prepared:
        """The same, of what a method asks for."""
        with self._apart():
            return preparations.obtain(self.root, wanted, self._origin(subject), self.log).prepared

    def _origin(self, subject: Subject) -> preparations.Origin:
        return self.machine.origin_of(lambda: self.network(subject), subject.hash)

    def result(self, name: str, changes: Mapping[str, Any] | None = None) -> Stored:
        """The stored result of another analysis on the same networks and data, made now if it is not there. Raises UsageError for bad options."""
        with self._apart():
            return obtain(*self._inner(name, changes or {}))

    def named_by(self, name: str, changes: Mapping[str, Any] | None = None) -> str:
        """A hash of what names that result."""
        return digest(identity(*self._inner(name, changes or {})), 16)

    def _inner(self, name: str, changes: Mapping[str, Any]) -> "tuple[Analysis, Context]":
        analysis = registry.get(name)
        try:
            options = dataclasses.replace(analysis.Options(), **changes)
        except ValueError as error:
            raise UsageError(str(error)) from None
        inner = Context(self.machine, self.subjects, self.log)
        inner._networks = self._networks
        return analysis(options), inner

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """What is spent here is not this result's: it has a cost of its own."""
        began = environment.clocks()
        try:
            yield
        finally:
            self.apart = tuple(a + now - before for a, now, before in zip(self.apart, environment.clocks(), began, strict=True))

    def progress(self, items: Iterable, total: int, what: str) -> Iterator:
        """The same items; says at most every ten seconds how far they are."""
        began = said = time.monotonic()
        for i, item in enumerate(items):
            now = time.monotonic()
            if i and now - said >= SAY_SECONDS:
                said = now
                self.log(f"{what}: {i} of {total}, {duration((now - began) * (total - i) / i)} left")
            yield item

    def part(self, unit: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of one unit of work, kept on disk until the result is whole: what is made once is not made again after a stop."""
        place = self.folder / "parts" / f"{unit}.npz"
        if place.exists():
            return results.unpack(place, results.arrays_of(place))
        made = {name: np.asarray(value) for name, value in make().items()}
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, results.pack(made))
        return made


def identity(analysis: Analysis, context: Context) -> dict[str, Any]:
    """What names a result: the analysis with its options and version, the networks by their weights, the data by its content."""
    data = {"name": context.dataset.name, "hash": context.dataset.hash, "image_size": context.dataset.image_size}
    found = {**analysis.identity(), "networks": [s.facts() for s in context.subjects], "data": data, **analysis.made_of(context)}
    if prepares := analysis.prepares():
        found["prepared"] = {method: context.prepared_by(method, changes) for method, changes in prepares.items()}
    arithmetic = environment.arithmetic(PRECISION, context.device)
    return found if arithmetic == "fp32" else {**found, "arithmetic": arithmetic}


def obtain(analysis: Analysis, context: Context) -> Stored:
    """The stored result, or a new one: run, written, read back. Raises UsageError and StoreError."""
    wanted = identity(analysis, context)
    found = results.find(context.root, wanted)
    if found is not None:
        context.log(f"{found.key}: done before")
        return found
    folder = context.folder = results.place(context.root, wanted)
    context.log(f"{folder.name}: running")
    began = environment.clocks()
    result = analysis.run(context)
    seconds, cpu = (now - before - apart for now, before, apart in zip(environment.clocks(), began, context.apart, strict=True))
    cost = {
        "seconds": max(0.0, seconds),
        "cpu_seconds": max(0.0, cpu),
        "device": environment.device_facts(context.device)["name"],
        "threads": torch.get_num_threads(),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    results.write(folder, wanted, result, cost)
    context.log(f"{folder.name}: done in {cost['seconds']:.1f} s, {cost['cpu_seconds']:.1f} CPU s")
    return results.find(context.root, wanted)
