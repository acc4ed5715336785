"""What the command line changes of a profile, and how its words are read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.errors import UsageError, unknown
from bench.plan.profiles import ALL_PAIRS, Pair


@dataclass(frozen=True)
class Selection:
    """What the command line changes of a profile; None or empty: as the profile says."""

    methods: tuple[str, ...] = ()  # replaces the rows; a name with "+" before it joins them
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: str | None = None
    epochs: int | None = None
    sample_rate: float | None = None
    precision: str | None = None
    hyper: tuple[tuple[str, str, object], ...] = ()  # (method, field, value)


def parse_seeds(texts: Iterable[str], option: str = "--seeds") -> tuple[int, ...]:
    """Seeds (or epochs: `option` says which) from "1", "1,2" or "1-3", in order, each once. Raises UsageError."""
    seeds: list[int] = []
    for part in (p for text in texts for p in text.split(",") if p):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.endswith("-") or int(last or first) < int(first):
            raise UsageError(f"{option} {part}: expected whole numbers or a range, as in 1,2 or 1-3")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(seeds))


def parse_pair(text: str, networks: Sequence[str]) -> Pair:
    """A pair from "teacher-student" or "teacher/student". Raises UsageError, with close matches."""
    for separator in ("/", "->", "-"):
        teacher, found, student = text.partition(separator)
        if found and teacher.strip() in networks and student.strip() in networks:
            return Pair(teacher.strip(), student.strip())
    known = [p.name for p in ALL_PAIRS]
    for separator in ("/", "->", "-"):
        teacher, found, student = (part.strip() for part in text.partition(separator))
        if found and (teacher in networks or student in networks):
            raise unknown("network", student if teacher in networks else teacher, list(networks))
    if text in networks:
        raise UsageError(f"pair {text!r} is one network: write teacher-student, as in resnet56-resnet20")
    raise unknown("pair", text, known)


def parse_set(text: str) -> tuple[str, str, str]:
    """One `--set method.field=value`. The value stays text; its type is the field's. Raises UsageError."""
    name, equals, value = text.partition("=")
    method, dot, field = name.partition(".")
    if not (equals and dot and method and field):
        raise UsageError(f"--set {text}: expected method.field=value, as in kd.temperature=2")
    return method, field, value


def words(texts: Iterable[str]) -> tuple[str, ...]:
    """Names separated by spaces or commas, each once."""
    return tuple(dict.fromkeys(word for text in texts for word in text.replace(",", " ").split()))
