"""Weights of a student kept on the way: runs/<run id>/snapshots/epoch-<n>.pt, each with a JSON that holds their hash. No torch here.

They are written where `run --keep-epochs` asks for them and change nothing of a run: not its identity, not its numbers.
"""

import re
from pathlib import Path

from bench.errors import StoreError
from bench.store.files import read_json, write_bytes, write_json


def place(folder: Path, epoch: int) -> Path:
    """Of the weights after an epoch (0: before the first) in a run's folder."""
    return folder / "snapshots" / f"epoch-{epoch}.pt"


def write(folder: Path, epoch: int, data: bytes, weights_hash: str) -> None:
    """Weights first, then the JSON that vouches for them. Raises OSError."""
    where = place(folder, epoch)
    where.parent.mkdir(exist_ok=True)
    write_bytes(where, data)
    write_json(where.with_suffix(".json"), {"epoch": epoch, "weights_sha256": weights_hash})


def drop_from(folder: Path, epoch: int) -> list[int]:
    """Remove those after this epoch and later ones, and give their epochs: a run that goes on before it may come to others. Raises OSError."""
    numbers = (path.stem.removeprefix("epoch-") for path in (folder / "snapshots").glob("epoch-*.json"))
    gone = sorted(int(number) for number in numbers if re.fullmatch("[0-9]+", number) and int(number) >= epoch)
    for number in gone:
        where = place(folder, number)
        where.with_suffix(".json").unlink(missing_ok=True)
        where.unlink(missing_ok=True)
    return gone


def kept(folder: Path) -> dict[int, str]:
    """Epoch -> hash of the weights that were kept, ascending. Raises StoreError for a file that cannot be trusted."""
    found = {}
    for path in (folder / "snapshots").glob("epoch-*.json"):
        value = read_json(path, sealed=True) or {}
        epoch, weights = value.get("epoch"), value.get("weights_sha256")
        if not isinstance(epoch, int) or f"epoch-{epoch}.json" != path.name or not isinstance(weights, str):
            raise StoreError(f"{path}: says nothing of a snapshot; remove {path.parent} and train the run again with --redo --keep-epochs")
        found[epoch] = weights
    return dict(sorted(found.items()))
