"""What is done of a plan and what is left, read from the results folder."""

import contextlib
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench import data
from bench.data import Dataset
from bench.errors import StoreError, UsageError
from bench.plan.expand import Cell, Plan, as_json, narrowed
from bench.plan.groups import Group
from bench.plan.identity import canonical
from bench.plan.rows import row_of
from bench.store import redo, teachers
from bench.store.files import read_json, write_json
from bench.store.lease import Lease
from bench.store.runs import TEACHER, RunView, is_done, read_status
from bench.text import say
from methods import registry


class Ledger:
    """The runs of a plan in a results folder. Without a data set no run has an id, and everything counts as left.

    `redo_done`: what is done counts as left too, to be trained again. `given`: files by architecture that will be imported as teachers,
    which then are not missing. `data_root`: where the data of the plan's teachers are read from.
    """

    def __init__(
        self,
        results: Path,
        the_plan: Plan,
        dataset: Dataset | None,
        redo_done: bool = False,
        given: Mapping[str, Path] = MappingProxyType({}),
        data_root: Path | None = None,
    ) -> None:
        self.results, self.plan, self.dataset, self.redo, self.given, self.data_root = results, the_plan, dataset, redo_done, given, data_root
        self._begun = False
        redo.recover(results)
        self._leases: dict[Path, Lease] = {}
        self._ids: dict[tuple[Group, str | None], dict[str, str | None]] = {}

    def teacher(self, architecture: str) -> teachers.TeacherFile | None:
        """The teacher that the plan's runs may learn from: another launch may have left one that does not fit since `check_teachers`."""
        found = teachers.find(self.results, self.plan.protocol.dataset, architecture)
        return found if found and not teachers.unfit(found, self.plan.teacher_protocol) else None

    def teachers_missing(self) -> list[str]:
        """Architectures that a group with something left needs and that are not there, largest first."""
        needed = {g.teacher for g in self.groups_left() if self.plan.needs_teacher(g)}
        return [name for name in self.plan.teachers if name in needed and name not in self.given and self.teacher(name) is None]

    def teachers_there(self) -> list[teachers.TeacherFile]:
        """The teachers of the plan that are at hand, largest first."""
        return [found for name in self.plan.teachers if (found := self.teacher(name))]

    def check_teachers(self) -> None:
        """Raises UsageError for a teacher that was trained here in another way than this plan trains its own."""
        for name in self.plan.teachers:
            if found := teachers.find(self.results, self.plan.protocol.dataset, name):
                teachers.check(found, self.plan.teacher_protocol)

    def ids(self, group: Group) -> dict[str, str | None]:
        """Run ids by row of a group, or of a teacher's own; None where a method cannot do the pair or its teacher is not there yet."""
        from bench.train.context import runs_of

        if self.dataset is None:
            return dict.fromkeys(group.methods)
        found = self.teacher(group.teacher) if group.teacher else None
        key = group, found.hash if found else None
        if key not in self._ids:  # they are asked for again and again while a launch waits
            members = runs_of(group, self.dataset if group.protocol == self.plan.protocol else self._teachers_data, key[1])
            self._ids[key] = {m.row: None if m.skipped or (m.run.teacher and not found) else m.run.id for m in members}
        return self._ids[key]

    @cached_property
    def _teachers_data(self) -> Dataset:
        """What the plan's teachers are trained on: students may see other images, or a part of them. Raises UsageError."""
        return data.load(self.plan.teacher_protocol, self.data_root)

    def runs(self) -> dict[Cell, str | None]:
        """Run ids by cell."""
        by_group = {(g.teacher, g.student, g.seed): self.ids(g) for g in self.plan.full_groups}
        return {c: by_group[c.teacher, c.student, c.seed][c.row] for c in self.plan.cells}

    def labels(self) -> dict[str, str]:
        """What tells the row of a run from its method's own, by id; those of the own rows are left out."""
        return {run: cell.label for cell, run in self.runs().items() if run and cell.label}

    def done(self, run: str | None) -> bool:
        """Whether the run's final record is there and sound, and it is not to be trained again."""
        if self.redo and run is not None and (redo.pending(self.results, run) or (not self._begun and run in self._to_mark)):
            return False
        return run is not None and is_done(self.results / "runs" / run)

    def finished(self, group: Group) -> bool:
        """Whether every run of a group is done."""
        return all(self.done(run) for run in self.ids(group).values())

    def missing(self, group: Group) -> dict[str, bool]:
        """The runs of a group that are not done, by id (by row where that is not known yet), and whether a live writer holds each."""
        return {run or row: run is not None and self._held(run) for row, run in self.ids(group).items() if not self.done(run)}

    def _held(self, run: str) -> bool:
        """Whether somebody trains a run, here or anywhere; of a lease that cannot be read nobody knows."""
        root = redo.root(self.results) if redo.pending(self.results, run) else self.results
        with contextlib.suppress(StoreError):
            return self._leases.setdefault(root / run, Lease(root / "runs" / run)).live()
        return False

    def groups_left(self) -> list[Group]:
        """The plan's groups, longest first, without what is done."""
        left = []
        for group in self.plan.groups:
            members = [row for row, run in self.ids(group).items() if not self.done(run)]
            if members:
                left.append(narrowed(group, members))
        return left

    def counts(self) -> tuple[int, int]:
        """Runs done and planned; one run that serves several cells counts once."""
        runs = [run for group in self.plan.groups for run in self.ids(group).values()]
        return sum(self.done(run) for run in runs), len(runs)

    def troubles(self) -> dict[str, str]:
        """Runs of the plan that failed or diverged, with the reason."""
        found = {}
        labels = self.labels()
        for run in {run for run in self.runs().values() if run and not self.done(run)}:
            try:
                where = redo.root(self.results) if redo.pending(self.results, run) else self.results
                status = read_status(where / "runs" / run)
            except StoreError as error:  # it is not fsynced: after a crash of the machine it may be anything
                found[run] = str(error)
                continue
            if status and status.status in ("failed", "diverged", "interrupted"):
                found[run] = f"{status.status}: {status.reason or 'no reason given'}{f' ({labels[run]})' if run in labels else ''}"
        return found

    @cached_property
    def _to_mark(self) -> frozenset[str]:
        """The runs that `begin_redo` is going to mark, as they are before it."""
        runs = self._known()
        return frozenset(runs) - redo.covered(self.results, runs)

    def _known(self) -> list[str]:
        """The ids of the plan's runs, as far as they are known, each once."""
        return [run for run in dict.fromkeys(self.runs().values()) if run]

    def begin_redo(self) -> None:
        """Mark the plan's runs as to be trained again. Where an earlier --redo of some of them was stopped, that one goes on: what it has done is
        not done once more, and what it did not cover is marked too.

        Raises UsageError, and marks none, where one is being trained.
        """
        redo.begin(self.results, self._known())
        self._begun = True

    def resumes_redo(self) -> bool:
        """Whether an earlier --redo of some of these runs was stopped before all were done."""
        return any(redo.pending(self.results, run) for run in self._known())

    def end_redo(self) -> list[str]:
        """After a launch that came to its end: a run that diverged would do so again, so it keeps its old results. Which runs those are.

        One without old results is put in their place. What failed or was killed stays pending, with its checkpoints: the same --redo goes on.
        What another launch trains is left to it.
        """
        over = [run for run in self._known() if redo.pending(self.results, run) and self._diverged_again(run)]
        without = [run for run in over if not is_done(self.results / "runs" / run)]
        for run in without:
            redo.settle(self.results, run)
        return [run for run in over if run not in without and redo.drop(self.results, run)]

    def _diverged_again(self, run: str) -> bool:
        """Whether a run that is pending came to an end without a record; a status that cannot be read says nothing."""
        try:
            status = read_status(redo.root(self.results) / "runs" / run)
        except StoreError:
            return False
        return status is not None and status.status in ("diverged", "skipped")

    def write_plan(self) -> None:
        """Leave plan.json for the report. Raises UsageError where nothing can be written."""
        try:
            self.results.mkdir(parents=True, exist_ok=True)
            write_json(self.results / "plan.json", as_json(self.plan, self.runs()))
        except OSError as error:
            raise UsageError(f"cannot write {self.results / 'plan.json'}: {error.strerror}; choose another --results folder") from None

    def complete_plan(self) -> None:
        """Give plan.json the ids that are known by now, unless a later launch has put its own in the place of this plan. A warning says where
        it cannot be written."""
        ours = as_json(self.plan, self.runs())
        with contextlib.suppress(StoreError, KeyError, TypeError):
            there = read_json(self.results / "plan.json")
            if there is not None and _without_ids(there) != _without_ids(ours):
                return
        try:
            self.write_plan()
        except UsageError as error:
            say(f"warning: {error}")


def _without_ids(plan: dict[str, Any]) -> str:
    return canonical({**plan, "cells": [{**cell, "run": None} for cell in plan["cells"]]})


def of_changed_source(results: Path, views: list[RunView]) -> list[RunView]:
    """Done runs that are of another source than their method's now. Those of an earlier version or of another teacher than the present one are
    none: no launch trains them again."""
    sources = registry.sources({v.method for v in views})
    present = {(t.record.dataset, t.architecture): t.hash for t in teachers.available(results)[0]}
    found = []
    for view in views:
        if view.record is None or sources.get(view.method, view.method_source) == view.method_source:
            continue
        teacher = present.get((view.protocol.dataset, view.teacher), view.known.teacher_hash)
        if (view.known.teacher_hash, view.known.method_version) == (teacher, registry.get(view.method).version):
            found.append(view)
    return found


def changed_sources(results: Path, views: list[RunView]) -> list[str]:
    """One warning for each method whose source changed under done runs, see `of_changed_source`; a teacher's own training is for `doctor`."""
    changed: dict[str, list[str]] = {}
    for view in of_changed_source(results, views):
        if view.title != TEACHER:
            changed.setdefault(view.method, []).append(row_of(view.method, view.changed))
    return [
        f"the source of {method} changed since {len(rows)} of its runs were done; run them again with --redo --methods "
        f"{shlex.join(sorted(set(rows)))}, or raise its version"
        for method, rows in sorted(changed.items())
    ]
