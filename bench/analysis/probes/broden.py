"""Broden (Bau et al. 2017) from a folder: index.csv (image, split, ih, iw, sh, sw, then a column for each category), label.csv, c_<category>.csv.

A cell of a category labelled by pixel names PNG files, ";" between them; a pixel's label is R + 256 G, 0 = none. A cell of a category of whole
images holds label numbers. Images and masks are brought to the network's size (images bilinear, masks nearest). The column
`material` is not read: the categories are NetDissect-Lite's.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.analysis.probes.base import Annotated, Concept
from bench.data.augment import Augmenter, normal_table
from bench.errors import UsageError

CATEGORIES = ("object", "part", "scene", "texture", "color")


def fingerprint(folder: Path) -> str:
    """16 hex digits that name it in a result: of its tables, and of the names and sizes of its images, which are too many to be read for it.

    Raises UsageError where a table is missing.
    """
    sha, images = hashlib.sha256(), folder / "images"
    for name in ("index.csv", "label.csv", *sorted(file.name for file in folder.glob("c_*.csv"))):
        table = _read(folder / name)
        sha.update(f"{name}|{len(table)}|".encode() + table)
    for file in sorted(images.rglob("*")):
        sha.update(f"{file.relative_to(images).as_posix()}|{file.stat().st_size if file.is_file() else ''}|".encode())
    return sha.hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); a Broden folder has index.csv, label.csv and images/") from None


def _rows(path: Path) -> list[dict[str, str]]:
    """Raises UsageError for a table that is no text, and for a row that is cut short."""
    try:
        rows = list(csv.DictReader(_read(path).decode().splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a table ({error})") from None
    for number, row in enumerate(rows, 1):
        if None in row.values():
            raise UsageError(f"{path}: row {number} of {len(rows)}, below the first line, is cut short")
    return rows


class Broden:
    """The images of a Broden folder in the order of its index, the first `count` of them."""

    name = "Broden"

    def __init__(self, folder: Path, dataset, images: Augmenter, count: int) -> None:
        """Raises UsageError for a table, a column or an image that is missing."""
        self.folder, self.size, self.device = folder, dataset.image_size, images.device
        index = _rows(folder / "index.csv")[:count]
        if not index or "image" not in index[0]:
            raise UsageError(f"{folder / 'index.csv'}: no images, or no column image")
        self._used = [c for c in CATEGORIES if c in index[0] and any(row[c] for row in index)]
        if not self._used:
            raise UsageError(f"{folder / 'index.csv'}: none of the columns {', '.join(CATEGORIES)}")
        names = self._names()
        found = {c: sorted(self._labels_of(c)) for c in self._used}
        self.concepts = tuple(Concept(names.get(number, str(number)), c) for c in self._used for number in found[c])
        # A label that two categories share is a concept of each.
        order = [(c, number) for c in self._used for number in found[c]]
        self._place = {pair: 1 + i for i, pair in enumerate(order)}
        self._index, self.count = index, len(index)
        for row in index:
            if not (folder / "images" / row["image"]).exists():
                raise UsageError(f"{folder / 'images' / row['image']}: missing, and index.csv names it")
        self._table = normal_table(dataset.mean, dataset.std)

    def _names(self) -> dict[int, str]:
        try:
            return {int(row["number"]): row["name"] for row in _rows(self.folder / "label.csv")}
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{self.folder / 'label.csv'}: not the columns number and name") from None

    def _labels_of(self, category: str) -> list[int]:
        """The labels that c_<category>.csv declares (code, number, name, frequency, coverage), without 0 = none."""
        path = self.folder / f"c_{category}.csv"
        try:
            return [number for row in _rows(path) if (number := int(row["number"]))]
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{path}: not the column number of whole numbers") from None

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Annotated]:
        stop = min(stop or self.count, self.count)
        for at in range(start, stop, batch):
            rows = self._index[at : min(at + batch, stop)]
            shown = torch.stack([self._image(row["image"]) for row in rows])
            pixels, whole = [], []
            for category in self._used:
                cells = [[part for part in row[category].split(";") if part] for row in rows]
                masks = [[self._mask(part, category) for part in cell if not part.isdigit()] for cell in cells]
                if any(masks):
                    pixels.append(_stacked(masks, (self.size, self.size)))
                numbers = [[torch.tensor(self._number(int(part), category)) for part in cell if part.isdigit()] for cell in cells]
                if any(numbers):
                    whole.append(_stacked(numbers, ()))
            labels = torch.cat(whole, 1) if whole else torch.zeros(len(rows), 0, dtype=torch.int64)
            normal = torch.stack([self._table[c][shown[:, c].long()] for c in range(3)], 1)
            moved = tuple(p.to(self.device) for p in pixels)
            yield Annotated(normal.to(self.device, memory_format=torch.channels_last), moved, labels.to(self.device), shown)

    def _open(self, name: str) -> Image.Image:
        path = self.folder / "images" / name
        try:
            with Image.open(path) as file:
                return file.convert("RGB")
        except OSError as error:
            raise UsageError(f"{path}: cannot be read as an image ({error}), and index.csv names it") from None

    def _image(self, name: str) -> Tensor:
        resized = self._open(name).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def _mask(self, name: str, category: str) -> Tensor:
        values = np.array(self._open(name).resize((self.size, self.size), Image.Resampling.NEAREST)).astype(np.int64)
        numbers = values[..., 0] + 256 * values[..., 1]
        placed = np.zeros_like(numbers)
        for number in np.unique(numbers[numbers > 0]).tolist():
            placed[numbers == number] = self._number(number, category, name)
        return torch.from_numpy(placed)

    def _number(self, number: int, category: str, where: str = "index.csv") -> int:
        try:
            return self._place[category, number]
        except KeyError:
            raise UsageError(f"{self.folder / where}: label {number} is not in c_{category}.csv") from None


def _stacked(parts: list[list[Tensor]], shape: tuple[int, ...]) -> Tensor:
    """Lists of labels of images, padded with 0 to the longest: int64 (B, n, *shape)."""
    longest = max(map(len, parts))
    padded = [part + [torch.zeros(shape, dtype=torch.int64)] * (longest - len(part)) for part in parts]
    return torch.stack([torch.stack(part) for part in padded])
