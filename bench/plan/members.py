"""From a group to its runs: hyper-parameters, settings, identities, and the reason where a method cannot do the pair."""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import models
from bench.errors import UsageError, check_known
from bench.plan.groups import Group
from bench.plan.identity import Run
from bench.plan.rows import method_of, settings_of
from bench.plan.selection import typed
from bench.text import clean
from methods import registry
from methods.base import Method, MethodError, Pretraining, Setting, check_hyper, named_hyper


@dataclass(frozen=True)
class Member:
    """One run of a group, ready to be trained, or skipped with a reason."""

    run: Run
    method: type[Method]
    hyper: Any
    setting: Setting
    skipped: str | None = None
    row: str = ""  # as the group names it

    def pretraining(self) -> Pretraining | None:
        """The stage before the main one that the run has, its epochs scaled with the schedule (Protocol.share); None: it has none."""
        stage = self.method.pretraining(self.hyper, self.setting)
        return stage and dataclasses.replace(stage, epochs=self.run.protocol.share(stage.epochs))


@contextlib.contextmanager
def asking(name: str) -> Iterator[None]:
    """Whatever a method's own code raises when it is asked what it needs: MethodError, in one line that names the method."""
    try:
        yield
    except (MethodError, UsageError, models.NetworkError):
        raise
    except Exception as error:  # a stranger's file may raise anything
        raise MethodError(f"{name}: {type(error).__name__}: {clean(' '.join(str(error).split()), 300)}") from error


def hyper_of(method: type[Method], teacher: str | None, student: str, overrides: dict[str, object], row: str = "") -> Any:
    """The method's hyper-parameters for a pair, with overrides. Raises UsageError for an unknown field, a value of another type or out of
    its range, MethodError where the method's own values cannot be had or are out of theirs. `row`: as the group names what asks for them."""
    with asking(method.name):
        hyper = method.hyper_for(teacher, student)
        kinds = typing.get_type_hints(type(hyper)) if overrides else {}
    try:
        check_hyper(method.name, hyper)
    except MethodError as error:
        raise MethodError(f"{error}; the method's file says both: mend its default or its range") from None
    known = [f.name for f in dataclasses.fields(hyper)]
    changed = {}
    for name, value in overrides.items():
        check_known(f"hyper-parameter of {method.name}", name, sorted(known))
        try:
            changed[name] = typed(str(value), kinds[name])
        except ValueError as error:
            asked = f"--methods {row}: {name}={value}" if name in settings_of(row) else f"--set {method.name}.{name}={value}"
            raise UsageError(f"{asked}: {error}, as in {getattr(hyper, name)!r}") from None
    try:
        hyper = dataclasses.replace(hyper, **changed)
        check_hyper(method.name, hyper)
    except ValueError as error:
        raise UsageError(f"{f'--methods {row}' if settings_of(row) else f'--set {method.name}'}: {error}") from None
    return hyper


def resolve(group: Group, data_hash: str, classes: int, image_size: int, images: int, teacher_hash: str | None) -> list[Member]:
    """The members of a group in the order of its rows. Raises UsageError or MethodError for unknown names, MethodError for what a method's
    own code raises."""
    shapes = {name: models.shapes(name, classes, image_size) for name in (group.teacher, group.student) if name}
    setting = Setting(shapes[group.student], shapes.get(group.teacher), classes, images)
    members = []
    for row in group.methods:
        name = method_of(row)
        method = registry.get(name)
        hyper = hyper_of(method, group.teacher, group.student, group.overrides(row), row)
        with asking(name):
            reason = method.reason_against(hyper, setting)
            depends = reason is None and method.depends_on_teacher(hyper, setting)
        if depends and setting.teacher is None:
            reason = "needs a teacher and the group has none"
        run = Run(
            student=group.student,
            method=name,
            seed=group.seed,
            protocol=group.protocol,
            precision=group.precision,
            data_hash=data_hash,
            method_version=method.version,
            hyper=named_hyper(hyper),
            teacher=group.teacher if depends else None,
            teacher_hash=teacher_hash if depends else None,
        )
        members.append(Member(run, method, hyper, setting, reason, row))
    return members
