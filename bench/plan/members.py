"""From a group to its runs: hyper-parameters, settings, identities, and the reason where a method cannot do the pair."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import models
from bench.errors import UsageError, unknown
from bench.plan.groups import Group
from bench.plan.identity import Run
from methods import registry
from methods.base import Method, Pretraining, Setting, named_hyper


@dataclass(frozen=True)
class Member:
    """One run of a group, ready to be trained, or skipped with a reason."""

    run: Run
    method: type[Method]
    hyper: Any
    setting: Setting
    skipped: str | None = None

    def pretraining(self) -> Pretraining | None:
        """The stage before the main one that the run has, its epochs scaled with the schedule (Protocol.share); None: it has none."""
        stage = self.method.pretraining(self.hyper, self.setting)
        return stage and dataclasses.replace(stage, epochs=self.run.protocol.share(stage.epochs))


def hyper_of(method: type[Method], teacher: str | None, student: str, overrides: dict[str, object]) -> Any:
    """The method's hyper-parameters for a pair, with overrides. Raises UsageError for an unknown field or a value of another type."""
    hyper = method.hyper_for(teacher, student)
    fields = {f.name: getattr(hyper, f.name) for f in dataclasses.fields(hyper)}
    changed = {}
    for name, value in overrides.items():
        if name not in fields:
            raise unknown(f"hyper-parameter of {method.name}", name, sorted(fields))
        changed[name] = _coerce(method.name, name, value, fields[name])
    try:
        return dataclasses.replace(hyper, **changed)
    except ValueError as error:
        raise UsageError(f"--set {method.name}: {error}") from None


def _coerce(method: str, name: str, value: object, present: object) -> object:
    """`value` (possibly text from the command line) in the type of the present value."""
    if present is None or type(value) is type(present):
        return value
    text = str(value)
    try:
        if isinstance(present, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if isinstance(present, (int, float, str)):
            return type(present)(text)
        if isinstance(present, tuple):
            items = text.strip("()[] ").split(",")
            return tuple(type(present[0])(i) if present else i for i in items)
    except (KeyError, ValueError):
        pass
    raise UsageError(f"--set {method}.{name}={text}: expected a {type(present).__name__}, as in {present!r}")


def resolve(group: Group, data_hash: str, classes: int, image_size: int, images: int, teacher_hash: str | None) -> list[Member]:
    """The members of a group in the order of its methods. Raises UsageError or MethodError for unknown names."""
    shapes = {name: models.shapes(name, classes, image_size) for name in (group.teacher, group.student) if name}
    setting = Setting(shapes[group.student], shapes.get(group.teacher), classes, images)
    members = []
    for name in group.methods:
        method = registry.get(name)
        hyper = hyper_of(method, group.teacher, group.student, group.overrides(name))
        reason = method.unsupported(hyper, setting)
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
        members.append(Member(run, method, hyper, setting, reason))
    return members
