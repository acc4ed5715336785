"""Stored results: results/analysis/<name>-<network>-<hash>/ holds result.json (facts, identity, cost) and arrays.npz. No torch here.

A result is there whole or not at all: the arrays first, then the JSON that names their SHA-256. Parts of unfinished work lie in
parts/<unit>.npz of the same folder and go when the result is written.
"""

import hashlib
import io
import re
import shutil
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta, Struct

from bench.analysis.frame.base import Analysis, Result, Stored, Table
from bench.errors import StoreError
from bench.plan.identity import canonical, digest
from bench.store.files import folders, read_bytes, read_json, typed, write_bytes, write_json
from bench.store.records import Amount, Integer, Name, Percent, Positive, Text
from bench.text import clean

FORMAT = 1
FOLDER = "analysis"
LIMIT = 1 << 30
"""Bytes that a file of arrays may have, and the arrays in it."""


class _Network(Struct):
    label: Name
    test_top1: Percent


class _Data(Struct):
    name: Name


class _Identity(Struct):
    name: Name
    version: Integer
    options: dict[str, Any]
    networks: Annotated[list[_Network], Meta(min_length=1)]
    data: _Data


class _Cost(Struct):
    seconds: Amount
    cpu_seconds: Amount
    device: Text
    threads: Positive


class _Written(Struct):
    """result.json, as far as every reader needs it; what an analysis makes of its facts is its own."""

    WHAT: ClassVar[str] = "a result of an analysis"
    identity: _Identity
    facts: dict[str, Any]
    cost: _Cost
    arrays_sha256: str


def key(identity: Mapping[str, Any]) -> str:
    """The name of a result's folder, as dissect-resnet56-0123456789."""
    first = re.sub(r"[^A-Za-z0-9_]+", "-", identity["networks"][0]["label"]).strip("-")
    return f"{identity['name']}-{first}-{digest({'format': FORMAT, **identity})}"


def place(results: Path, identity: Mapping[str, Any]) -> Path:
    """The folder of the result with this identity, whether it exists or not."""
    return results / FOLDER / key(identity)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as the bytes of an .npz file; objects are refused with ValueError."""
    buffer = io.BytesIO()
    if any(np.asarray(a).dtype.hasobject for a in arrays.values()):
        raise ValueError("arrays of objects cannot be stored")
    np.savez_compressed(buffer, **{name: np.asarray(a) for name, a in arrays.items()})
    return buffer.getvalue()


def unpack(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Raises StoreError for bytes that are no .npz of plain arrays, and for arrays of more than LIMIT bytes."""
    cure = f"remove {path.parent} and run the analysis again"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as whole:
            size = sum(entry.file_size for entry in whole.infolist())
        if size > LIMIT:
            raise StoreError(f"{path}: arrays of {size:,} bytes, more than the {LIMIT:,} that are read; {cure}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if all(isinstance(array, np.ndarray) for array in found.values()):
            return found
    except StoreError:
        raise
    except Exception as error:  # a stranger's bytes make numpy raise many things
        raise StoreError(f"{path}: cannot be read as arrays ({type(error).__name__}); {cure}") from None
    raise StoreError(f"{path}: holds something else than arrays; {cure}")


def arrays_of(path: Path) -> bytes:
    """The content of a file of arrays. Raises StoreError."""
    try:
        return read_bytes(path, LIMIT)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; remove {path.parent} and run the analysis again") from None


def write(folder: Path, identity: Mapping[str, Any], result: Result, cost: Mapping[str, Any]) -> None:
    """Write a result; its parts go. Raises ValueError for facts that are no JSON (a NaN) and arrays of objects."""
    folder.mkdir(parents=True, exist_ok=True)
    data = pack(result.arrays)
    write_bytes(folder / "arrays.npz", data)
    found = {"format": FORMAT, "identity": dict(identity), "facts": dict(result.facts), "cost": dict(cost)}
    write_json(folder / "result.json", {**found, "arrays_sha256": hashlib.sha256(data).hexdigest()})
    shutil.rmtree(folder / "parts", ignore_errors=True)


def read(folder: Path) -> Stored | None:
    """The result in a folder; None where it is not finished. Raises StoreError for one that cannot be trusted."""
    where = folder / "result.json"
    if (found := read_json(where, sealed=True)) is None:
        return None
    cure = f"remove {folder} and run the analysis again"
    if found.get("format") != FORMAT:
        raise StoreError(f"{where}: format {found.get('format')!r}, this version reads {FORMAT}; {cure}")
    try:
        typed(where, found, _Written)
    except StoreError as error:
        raise StoreError(f"{error}; {cure}") from None
    if key(found["identity"]) != folder.name:
        raise StoreError(f"{where}: its identity does not belong to this folder; {cure}")
    data = arrays_of(folder / "arrays.npz")
    if hashlib.sha256(data).hexdigest() != found["arrays_sha256"]:
        raise StoreError(f"{folder / 'arrays.npz'}: differs from its SHA-256; {cure}")
    arrays = unpack(folder / "arrays.npz", data)
    return Stored(folder.name, found["identity"]["name"], found["identity"], found["facts"], arrays, found["cost"])


def find(results: Path, identity: Mapping[str, Any]) -> Stored | None:
    """The finished result with this identity, or None. Raises StoreError."""
    found = read(place(results, identity))
    if found is not None and canonical(found.identity) != canonical(dict(identity)):
        raise StoreError(f"{place(results, identity)}: holds a result of another identity; remove it and run the analysis again")
    return found


def scan(results: Path) -> tuple[list[Stored], list[tuple[str, str]]]:
    """All finished results below a results folder by name, and those that cannot be trusted, with the reason."""
    found, problems = [], []
    names, unread = folders(results, FOLDER)
    for name in names:
        try:
            if (stored := read(results / FOLDER / name)) is not None:
                found.append(stored)
        except StoreError as error:
            problems.append((clean(name), str(error)))
    return found, [(p.where, p.reason) for p in unread] + problems


def tables(analysis: type[Analysis], stored: Stored) -> list[Table]:
    """What an analysis makes of a stored result, cells as text. Raises StoreError where its facts and arrays are not what the analysis reads."""
    try:
        return [_as_text(one) for one in analysis.tables(stored)]
    except Exception as error:  # whatever stands there may make it raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}, {Path(last.filename).name} line {last.lineno}"
        cure = f"either its tables() is wrong, or the result is: then remove {FOLDER}/{stored.key} and run the analysis again"
        raise StoreError(f"{stored.key}: {analysis.name} cannot show it ({said}); {cure}") from error


def _as_text(table: Table) -> Table:
    rows = [[str(cell) for _, cell in zip(table.header, row, strict=True)] for row in table.rows]
    return Table(str(table.title), [str(head) for head in table.header], rows, [str(note) for note in table.notes])
