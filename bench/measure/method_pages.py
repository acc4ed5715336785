"""`methods`: the registered methods, or one page about one: what it is, its settings, what it needs, what it adds and costs."""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import models
from bench.options import ResultsOption
from bench.plan import names
from bench.plan.profiles import ALL_PAIRS, PAIRS, Pair
from bench.store import costs
from bench.text import left, say
from methods import registry
from methods.base import Method, MethodError, Needs, Setting


@dataclass(frozen=True)
class Methods(ResultsOption):
    """The registered methods, and files that could not be loaded; with a name, what that one is, needs and costs."""

    name: tyro.conf.Positional[str] = ""
    """One method."""
    markdown: bool = False
    """All pages as Markdown, as docs/methods.md holds them."""

    def check(self) -> None:
        """Raises UsageError for a name that nothing declares."""
        names.check_methods([self.name] if self.name else [])

    def main(self) -> int:
        if self.markdown:
            print(markdown())
        elif self.name:
            measured = [f"  {line}" for line in _costs(self.name, self.results)] or ["  nothing was measured here: python -m bench run measures it"]
            print("\n".join([*page(self.name), "", "costs", *measured]))
        else:
            found = [registry.get(name) for name in registry.names()]
            for line in left([(m.name, f"v{m.version}", m.title, m.paper) for m in found]) or ["no method is registered"]:
                print(line)
            for name, error in registry.broken().items():
                say(f"{name}: BROKEN, {error}")
        return 0


def page(name: str) -> list[str]:
    """The page of a method as lines of text. Raises MethodError for an unknown or broken one."""
    method = registry.get(name)
    about = [f"{name}: {method.title}", method.paper, f"version {method.version}, {_source(method)}", ""]
    text = inspect.getdoc(sys.modules[method.__module__]) or ""
    own = inspect.cleandoc(vars(method).get("__doc__") or "")  # where a file holds several
    lines = [*(line for line in about if line is not None), *([*own.splitlines(), ""] if own else []), *text.splitlines(), "", "settings"]
    lines += [f"  {line}" for line in left(list(_settings(method)))] or ["  none"]
    return [*lines, "", "needs", *(f"  {line}" for line in _needs(method)), "", "adds", *(f"  {line}" for line in _adds(method))]


def markdown() -> str:
    """docs/methods.md: a section a method."""
    parts = [
        "# The methods",
        "",
        "What each row is, its settings with the papers' values, and what it needs. Made by `python -m bench methods --markdown`; "
        "`python -m bench methods NAME` prints one.",
    ]
    for name in registry.names():
        heading, paper, version, *rest = page(name)
        parts += ["", f"## {heading}", "", *([f"{paper}.  "] if paper else []), f"{version}", "", "```text", *rest[1:], "```"]
    return "\n".join(parts)


def _costs(name: str, results: Path) -> Iterator[str]:
    """What the cost probes of a results folder say of a method, a line a pair, device and condition."""
    for c in costs.scan(results)[0]:
        if c.method == name:
            speed = f"{c.relative:.2f} of the plain student's throughput" if c.relative is not None else f"{c.speed:,.0f} images/s"
            noisy = ", a noisy measurement" if c.noisy else ""
            yield f"{'-'.join(filter(None, (c.teacher, c.student)))}, {c.device.name}, {c.precision}: {speed}, peak {c.memory / 1e6:,.0f} MB{noisy}"


def _source(method: type[Method]) -> str:
    path = Path(inspect.getfile(method))
    return "/".join(path.parts[path.parts.index("methods") :]) if "methods" in path.parts else path.name


def _settings(method: type[Method]) -> Iterator[tuple[str, ...]]:
    """Rows: name, the default, its range, and the pairs where the paper says otherwise."""
    usual = method.Hyper()
    own = {pair: method.hyper_for(pair.teacher, pair.student) for pair in ALL_PAIRS}
    for field in dataclasses.fields(method.Hyper):
        value = getattr(usual, field.name)
        limits = " and ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in field.metadata.get("range", {}).items())
        yield field.name, f"{value!r}".strip("'"), limits, _elsewhere(value, {pair.name: getattr(hyper, field.name) for pair, hyper in own.items()})


def _elsewhere(usual: Any, by_pair: dict[str, Any]) -> str:
    others: dict[Any, list[str]] = {}
    for pair, value in by_pair.items():
        if value != usual:
            others.setdefault(value, []).append(pair)
    return "; ".join(f"{value!r} for {', '.join(pairs)}" for value, pairs in others.items())


def _outputs(needs: Needs) -> str:
    said = [name for name in ("logits", "embedding") if getattr(needs, name)] + [f"maps ({kind})" for kind in needs.maps]
    return ", ".join(said) or "nothing"


def _setting(pair: Pair) -> Setting:
    return Setting(models.shapes(pair.student), models.shapes(pair.teacher))


def _needs(method: type[Method]) -> Iterator[str]:
    pair = PAIRS[1]
    hyper, setting = method.hyper_for(pair.teacher, pair.student), _setting(pair)
    yield f"of the teacher in each step: {_outputs(method.main_teacher_needs(hyper, setting))}"
    yield f"of the student: {_outputs(method.student_needs(hyper))}"
    if prepared := method.preparation(hyper, setting):
        yield f"a preparation from the teacher, {prepared.name}, built once and shared by all students"
    if stage := method.pretraining(hyper, setting):
        yield f"{stage.epochs} epochs before the main stage in which the student itself is trained, at rate {stage.rate:g}"
    if method.own_backward:
        yield "its own backward pass"
    if method.fp32:
        yield "losses in float32 whatever the precision"
    for other in ALL_PAIRS:
        if reason := method.reason_against(method.hyper_for(other.teacher, other.student), _setting(other)):
            yield f"cannot do {other.name}: {reason}"


def _adds(method: type[Method]) -> Iterator[str]:
    pair = PAIRS[1]
    hyper, setting = method.hyper_for(pair.teacher, pair.student), _setting(pair)
    try:
        built = method(hyper, setting)
    except (MethodError, KeyError, TypeError, AttributeError):
        yield "parameters that train: not counted without its preparation"
    else:
        count = sum(p.numel() for p in built.parameters() if p.requires_grad)
        yield f"parameters that train beside the student ({pair.name}): {count:,}"
    used = method.inference(hyper, setting)
    if used.parameters or used.macs:
        yield f"when the student is used: {used.parameters:,} parameters and {used.macs / 1e6:.1f} M multiply-accumulates an image"
