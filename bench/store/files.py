"""Files that are there whole or not at all, with their checksums."""

import hashlib
import json
import os
import secrets
import zlib
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.plan.identity import canonical


def _reject(literal: str) -> float:
    raise ValueError(f"{literal} is not a number here")


_decode = json.JSONDecoder(parse_constant=_reject).decode  # NaN and Infinity are no JSON


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


def write_json(path: Path, value: Any, durable: bool = True) -> bytes:
    """Write indented JSON atomically and return its bytes; an object gets the CRC-32 of its content as "crc". Raises ValueError for NaN, OSError."""
    if isinstance(value, dict):
        value = {**value, "crc": crc(json.loads(json.dumps(value, allow_nan=False)))}  # as it will be read: keys are strings
    data = (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()
    write_bytes(path, data, durable)
    return data


def parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = _decode(data.decode())
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({error})") from error
    except RecursionError as error:
        raise StoreError(f"{path}: nested too deep") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: not a JSON object")
    return value


def read_json(path: Path, sealed: bool = False) -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is no such file. Raises StoreError for anything else than a JSON object, and for one that does
    not match its checksum (`sealed`: or has none, as files from other hands do)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    value = parse(path, data)
    if (sealed or "crc" in value) and not sound(value):
        raise StoreError(f"{path}: does not match its checksum")
    value.pop("crc", None)
    return value


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
        file = open(path, "r+b")
    except FileNotFoundError:
        return 0
    with file:
        data = file.read()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            file.truncate(keep)
            os.fsync(file.fileno())
    return len(data) - keep


def sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
