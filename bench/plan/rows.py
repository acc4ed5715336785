"""A row as the command line and a group name it: a method, or a method with settings of its own, as in skd:sum_over=images."""

from collections.abc import Mapping

from bench.errors import UsageError


def method_of(row: str) -> str:
    """The method of a row."""
    return row.partition(":")[0]


def settings_of(row: str) -> dict[str, str]:
    """The settings that a row has otherwise than its method's own row, as text. Raises UsageError."""
    found = {}
    for part in row.split(":")[1:]:
        name, equals, value = part.partition("=")
        if not (name and equals):
            raise UsageError(f"--methods {row}: expected method:setting=value, as in kd:temperature=2")
        if name in found:
            raise UsageError(f"--methods {row}: {name} stands there twice")
        found[name] = value
    return found


def row_of(method: str, changed: Mapping[str, object] | None) -> str:
    """The row of a method's runs in which these settings are changed."""
    return ":".join([method, *(f"{name}={value}" for name, value in sorted((changed or {}).items()))])
