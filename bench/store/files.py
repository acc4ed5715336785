"""Files that are there whole or not at all, with their checksums."""

import hashlib
import json
import os
import secrets
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from bench.errors import StoreError
from bench.plan.identity import FORMAT, canonical

LIMIT = 16 << 20
"""Bytes that a file of records may have: a hundred times what the largest plan takes."""
DEPTH = 32
"""How deep a file may be nested; ours are six deep."""
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A file (or run) that is left out, and why. `where`: the run id or the path below the results folder."""

    where: str
    reason: str


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace `path` by `data`, atomically. `durable=False` skips both fsyncs: readers still never see half a file.

    Raises OSError; the old file then stands.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt too must leave nothing behind
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """Indented JSON; an object gets the CRC-32 of its content as "crc". Raises ValueError for NaN and for text that UTF-8 cannot hold."""
    if isinstance(value, dict):
        value = {**value, "crc": crc(json.loads(json.dumps(value, allow_nan=False)))}  # as it will be read: keys are strings
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any, durable: bool = True) -> bytes:
    """Write `json_bytes` atomically and return them. Raises ValueError as that does, and OSError; the old file then stands."""
    data = json_bytes(value)
    write_bytes(path, data, durable)
    return data


def open_regular(path: Path, limit: int = LIMIT) -> BinaryIO:
    """`path` opened for reading: a regular file, or a link to one. Never waits, whatever stands there.

    Raises FileNotFoundError, and StoreError for a folder, pipe, device or looping link, for more than `limit` bytes, and where it cannot be read.
    """
    try:
        found = os.stat(path)  # before it is opened: a device may act on that
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path}: is no regular file")
        if found.st_size > limit:
            raise StoreError(f"{path}: {found.st_size:,} bytes, more than the {limit:,} that are read")
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise StoreError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """The content of a file. Raises as `open_regular`."""
    with open_regular(path, limit) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    if data is None or len(data) > limit:
        raise StoreError(f"{path}: no file that ends within {limit:,} bytes")
    return data


def folders(results: Path, part: str) -> tuple[list[str], list[Problem]]:
    """The folders in `results`/`part` by name, hidden ones left out; none where it does not exist. What cannot be looked at is a problem."""
    try:
        with os.scandir(results / part) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and os.path.isdir(e.path)), []
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [Problem(part, f"cannot be read ({error.strerror})")]


def _deeper(value: Any, left: int = DEPTH) -> bool:
    values = value.values() if isinstance(value, dict) else value
    return not left or any(_deeper(v, left - 1) for v in values if isinstance(v, dict | list))


def parse(where: Path | str, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises StoreError, naming `where`."""
    try:
        value = msgspec.json.decode(data)  # refuses NaN, numbers out of range, lone surrogates
        if not isinstance(value, dict):
            raise StoreError(f"{where}: not a JSON object")
        if not _deeper(value):
            return value
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreError(f"{where}: not JSON ({error})") from error
    except RecursionError:
        pass
    raise StoreError(f"{where}: nested too deep")


def checked(where: Path | str, data: bytes, sealed: bool = True) -> dict[str, Any]:
    """The JSON object in `data` without its checksum, which it must match. `sealed`: it must have one. Raises StoreError, naming `where`."""
    value = parse(where, data)
    if (sealed or "crc" in value) and not sound(value):
        raise StoreError(f"{where}: does not match its checksum")
    value.pop("crc", None)
    return value


def read_json(path: Path, sealed: bool = False) -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is no such file. Raises StoreError for anything else than a JSON object, and for one that does
    not match its checksum (`sealed`: or has none, as files from other hands do)."""
    try:
        return checked(path, read_bytes(path), sealed)
    except FileNotFoundError:
        return None


def typed(where: Path | str, value: dict[str, Any], kind: type[T]) -> T:
    """`value` as a record of that kind; what the kind does not know is left out. Raises StoreError saying which field is wrong, and how."""
    if "format" in kind.__struct_fields__ and value.get("format") != FORMAT:
        raise StoreError(f"{where}: format {value.get('format')!r}, this version reads {FORMAT}")
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise StoreError(f"{where}: not {kind.WHAT} ({error})") from error


def read(path: Path, kind: type[T], sealed: bool = False) -> T | None:
    """The record in `path`; None where there is no such file. Raises StoreError."""
    value = read_json(path, sealed)
    return None if value is None else typed(path, value, kind)


def sound(value: dict[str, Any]) -> bool:
    try:
        return value.get("crc") == crc(value)
    except (ValueError, RecursionError):  # 1e999 reads as infinity
        return False


def crc(row: dict[str, Any]) -> str:
    return f"{zlib.crc32(canonical({k: v for k, v in row.items() if k != 'crc'}).encode()):08x}"


def mend_torn_tail(path: Path) -> int:
    """Cut an unfinished last line (a write that was interrupted) and return how many bytes went. 0 where there is no file or nothing torn."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return 0
    keep = data.rfind(b"\n") + 1
    if keep < len(data):
        with open(path, "r+b") as file:
            file.truncate(keep)
            os.fsync(file.fileno())
    return len(data) - keep


def sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing") from error
