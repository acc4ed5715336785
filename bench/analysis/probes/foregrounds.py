"""Which cells of an image are the object: exact masks, the authors' centre box, or a folder of masks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.errors import StoreError, UsageError
from bench.store.files import read_bytes

MASKS, CENTRE = "masks", "centre"
HALF = 0.5
"""A cell is the object where at least this share of its pixels is."""


def fingerprint(folder: Path) -> str:
    """Of what a folder's masks hold, 16 hex digits. Raises UsageError where it has none."""
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    if not files:
        raise UsageError(f"--set foreground={folder}: not {MASKS}, not {CENTRE}, and no folder of masks (<index of the test image>.png)")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}|".encode() + _bytes(file))
    return total.hexdigest()[:16]


def _bytes(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except (StoreError, OSError) as error:
        raise UsageError(f"{file}: cannot be read as a mask: {error}") from None


def pixels(chosen: str, dataset, ids: Sequence[int]) -> np.ndarray:
    """bool (N, S, S) of the test images `ids`. Raises UsageError for what is not there or of another size."""
    size = dataset.image_size
    if chosen == MASKS:
        if dataset.test_masks is None:
            cure = "the middle of the image, with --set foreground=centre, or a folder of masks, with --set foreground=FOLDER"
            raise UsageError(f"{dataset.name} has no masks of the objects: take {cure}")
        return dataset.test_masks[list(ids)].numpy()
    if chosen == CENTRE:  # cells 2 to 13 of 16 in the authors' code: the middle three quarters, since crops are centred
        edge = round(size / 8)
        box = np.zeros((size, size), dtype=bool)
        box[edge : size - edge, edge : size - edge] = True
        return np.repeat(box[None], len(ids), 0)
    return np.stack([_read(Path(chosen) / f"{i}.png", size) for i in ids])


def _read(file: Path, size: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if not file.exists():
        raise UsageError(f"{file}: missing; every image that is analysed needs its mask, named by the index of the test image")
    try:
        with Image.open(file) as image:
            found, bands = np.asarray(image), image.getbands()
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f"{file}: cannot be read as a picture ({type(error).__name__})") from None
    if found.shape[:2] != (size, size):
        raise UsageError(f"{file}: {found.shape[1]} x {found.shape[0]} pixels, the images have {size} x {size}")
    found = found.reshape(size, size, -1)
    if bands[-1] == "A":  # how opaque a pixel is, not what it shows
        if found[..., -1].min() != found[..., -1].max():
            raise UsageError(f"{file}: parts of it are transparent; save the mask without an alpha channel, the object white on black")
        found = found[..., :-1]
    return found.max(2) > 0


def cells(masks: np.ndarray, grid: int) -> np.ndarray:
    """bool (N, S, S) -> bool (N, G, G): cells with at least half of their pixels on the object."""
    n, size, _ = masks.shape
    side = size // grid
    return masks.reshape(n, grid, side, grid, side).mean((2, 4)) >= HALF
