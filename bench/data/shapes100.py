"""shapes100: embedded images, drawn by the suite itself, with exact masks and per-pixel concepts.

An image shows one object on a cluttered, muted, noisy background. Its class is a sentence of three words:

    fine class (100)  = family + texture + shape        e.g. "warm checked ring"
    coarse class (20) = family + shape                  e.g. "warm ring"; five fine classes, one per texture
    family (2)        = warm (red, orange, yellow) or cool (green, cyan, blue); the colour within it is free
    texture (5)       = solid, rows, columns, checked, dotted: bright and dark shades of the one colour
    shape (10)        = disc, square, triangle, cross, ring, diamond, bar, hourglass, arch, tee

fine = 10 * shape + 5 * family + texture, coarse = fine // 5. Every word is unchanged by mirroring left to right, so horizontal flips
keep the class. Position, size, a small rotation, texture period and phase, colour, light, clutter and noise vary freely.
Annotations are exact: the mask is every pixel of the object (nothing covers it), and each of its pixels carries three concepts. The
background carries none: its colours are muted.

Everything is integer arithmetic on raw Philox output, which numpy promises never to change, so pixels are the same on every machine
and numpy version. Image i of a split depends on (split, i, size) alone: a larger set begins with the smaller one.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.errors import UsageError
from bench.plan.datasets import DATASETS
from bench.plan.protocols import Protocol

SHAPES = ("disc", "square", "triangle", "cross", "ring", "diamond", "bar", "hourglass", "arch", "tee")
TEXTURES = ("solid", "rows", "columns", "checked", "dotted")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue")
FAMILIES = ("warm", "cool")
CONCEPTS = (SHAPES, TEXTURES, COLOURS)
"""Names by concept plane; a plane holds 1 + the position here, and 0 on the background."""
CLASSES = tuple(f"{family} {texture} {shape}" for shape in SHAPES for family in FAMILIES for texture in TEXTURES)
COARSE = tuple(fine // len(TEXTURES) for fine in range(len(CLASSES)))
SPLITS = ("train", "test")
MEAN = (0.4567, 0.4579, 0.4365)
STD = (0.2254, 0.2126, 0.2283)
"""Rounded moments of the first 10000 training images (32 x 32), on the 0..1 scale."""
SIZES = DATASETS["shapes100"].image_sizes

VERSION = 1  # of the drawing: a change of any number below is another data set
RGB = ((215, 55, 45), (230, 140, 45), (220, 205, 65), (65, 180, 75), (60, 190, 195), (65, 95, 215))
COLOUR_JITTER = 35  # +- per channel, of 255
LIGHT = (180, 256)  # brightness of the object, of 256
DARK = (80, 125)  # brightness of the dark shade against the bright one, of 256
RADIUS = (76, 104)  # of 256 image sides
TURN = 10  # +- degrees
PERIOD = (130, 170)  # of the texture, of 256 radii
GRID = 4  # cells of the background along a side
STROKES = 4  # clutter
NOISE = 28  # of 256; the standard deviation is 0.41 of it in grey levels


class Drawing(NamedTuple):
    """Images and their annotations."""

    images: np.ndarray  # uint8 (N, 3, S, S)
    labels: np.ndarray  # int64 (N,)
    masks: np.ndarray  # bool (N, S, S)
    concepts: np.ndarray  # uint8 (N, 3, S, S): planes shape, texture, colour


def read(protocol: Protocol, data_root: Path | None = None, download: bool = False) -> dict[str, Any]:
    """Fields of a Dataset, as many images as the protocol says. Raises UsageError for sizes it cannot draw."""
    usual = DATASETS["shapes100"]
    train = draw("train", usual.train_images if protocol.train_images is None else protocol.train_images, protocol.image_size)
    test = draw("test", usual.test_images if protocol.test_images is None else protocol.test_images, protocol.image_size)
    fields = {f"{split}_{name}": torch.from_numpy(part) for split, d in zip(SPLITS, (train, test), strict=True) for name, part in d._asdict().items()}
    return {**fields, "classes": CLASSES, "coarse": COARSE, "mean": MEAN, "std": STD, "concept_names": CONCEPTS}


def draw(split: str, count: int, size: int = 32) -> Drawing:
    """The first `count` images of a split, `size` pixels square; image i is of fine class i % 100. Raises UsageError."""
    if split not in SPLITS:
        raise UsageError(f"shapes100 has the splits {' and '.join(SPLITS)}, not {split!r}")
    if count < 1:
        raise UsageError(f"shapes100: {count} {split} images; ask for at least 1")
    if not SIZES[0] <= size <= SIZES[1]:
        raise UsageError(f"shapes100: image size {size}; choose one from {SIZES[0]} to {SIZES[1]}")
    blocks = -(-count // len(CLASSES))
    out = Drawing(
        np.empty((blocks, 100, 3, size, size), np.uint8),
        np.tile(np.arange(100, dtype=np.int64), (blocks, 1)),
        np.empty((blocks, 100, size, size), bool),
        np.empty((blocks, 100, 3, size, size), np.uint8),
    )
    for block in range(blocks):
        stream = _Stream((VERSION << 96) | (SPLITS.index(split) << 64) | block)
        out.images[block], out.masks[block], out.concepts[block] = _block(stream, size)
    return Drawing(*(part.reshape(-1, *part.shape[2:])[:count] for part in out))


class _Stream:
    """Integers from raw Philox output."""

    def __init__(self, key: int) -> None:
        self._source = np.random.Philox(key=key)

    def between(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int32, uniform on low..high - 1."""
        raw = self._source.random_raw(math.prod(shape)) >> np.uint64(32)
        return (((raw * np.uint64(high - low)) >> np.uint64(32)).astype(np.int32) + np.int32(low)).reshape(shape)

    def octets(self, *shape: int) -> np.ndarray:
        """uint8, uniform."""
        count = math.prod(shape)
        return self._source.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)


def _turns() -> np.ndarray:
    """Cosine and sine in units of 1/1024, int32 (2 * TURN + 1, 2), by whole degrees."""
    angles = [math.radians(d) for d in range(-TURN, TURN + 1)]
    return np.array([[round(1024 * math.cos(a)), round(1024 * math.sin(a))] for a in angles], np.int32)


def _block(stream: _Stream, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image of each fine class: images uint8 (100, 3, S, S), masks (100, S, S), concepts uint8 (100, 3, S, S).

    Lengths are in 1/64 pixel.
    """
    side = 64 * size
    radius = stream.between(side * RADIUS[0] // 256, side * RADIUS[1] // 256, 100)
    room = side - 2 * radius  # so placed, the circle of that radius lies inside the image
    centre = radius[:, None] + ((stream.between(0, 1 << 12, 100, 2) * room[:, None]) >> 12)
    turn = _turns()[stream.between(0, 2 * TURN + 1, 100)]
    period = radius * stream.between(*PERIOD, 100) >> 8
    phase = stream.between(0, 1 << 12, 100, 2)
    pixel = 64 * np.arange(size, dtype=np.int32) + 32
    x = (pixel - centre[:, :1])[:, None, :]
    y = (pixel - centre[:, 1:])[:, :, None]
    cos, sin = turn[:, 0, None, None], turn[:, 1, None, None]
    along, across = (cos * x + sin * y) >> 10, (cos * y - sin * x) >> 10  # the object's own axes, (100, S, S)

    unit = radius[:, None, None]
    u, v = (along << 10) // unit, (across << 10) // unit  # 1024 = the radius
    masks = np.concatenate([_inside(shape, u[k * 10 : k * 10 + 10], v[k * 10 : k * 10 + 10]) for k, shape in enumerate(SHAPES)])

    step = period[:, None, None]
    a = (along + ((phase[:, 0] * period) >> 12)[:, None, None]) % step
    b = (across + ((phase[:, 1] * period) >> 12)[:, None, None]) % step
    bright = np.empty_like(masks)
    for k, texture in enumerate(TEXTURES):
        bright[k :: len(TEXTURES)] = _bright(texture, a[k :: len(TEXTURES)], b[k :: len(TEXTURES)], step[k :: len(TEXTURES)])

    label = np.arange(100)
    colour = 3 * (label // 5 % 2) + stream.between(0, 3, 100)
    paint = np.array(RGB, np.int32)[colour] + stream.between(-COLOUR_JITTER, COLOUR_JITTER + 1, 100, 3)
    paint = np.clip(paint, 0, 255) * stream.between(*LIGHT, 100)[:, None] >> 8
    shade = paint * stream.between(*DARK, 100)[:, None] >> 8
    object_pixels = np.where(bright[:, None], paint[:, :, None, None], shade[:, :, None, None])

    canvas = np.where(masks[:, None], object_pixels, _background(stream, size))
    noise = stream.octets(2, 100, 3, size, size).astype(np.int32).sum(0) - 255
    images = np.clip(canvas + ((noise * NOISE) >> 8), 0, 255).astype(np.uint8)
    words = np.stack([label // 10, label % 5, colour], 1).astype(np.uint8) + np.uint8(1)
    return images, masks, words[:, :, None, None] * masks[:, None]


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape; u to the right, v down, in 1/1024 of the radius."""
    au, av, square = abs(u), abs(v), u * u + v * v
    if shape == "disc":
        return square <= 960**2
    if shape == "square":
        return (au <= 760) & (av <= 760)
    if shape == "triangle":
        return (v <= 700) & (100 * au <= 55 * (v + 940))
    if shape == "cross":
        return ((au <= 300) & (av <= 960)) | ((av <= 300) & (au <= 960))
    if shape == "ring":
        return (square <= 1010**2) & (square >= 520**2)
    if shape == "diamond":
        return au + av <= 1020
    if shape == "bar":
        return (au <= 940) & (av <= 380)
    if shape == "hourglass":
        return (av <= 820) & (100 * au <= 85 * av + 9000)
    if shape == "arch":
        return ((v <= 0) & (square <= 960**2) & (square >= 440**2)) | ((v > 0) & (v <= 760) & (au <= 960) & (au >= 440))
    return ((v >= -860) & (v <= -320) & (au <= 860)) | ((v > -320) & (v <= 860) & (au <= 270))  # tee


def _bright(texture: str, a: np.ndarray, b: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Where a texture shows its bright shade; a and b are positions within its period."""
    first, second = 2 * a < period, 2 * b < period
    if texture == "solid":
        return np.ones_like(first)
    if texture == "rows":
        return second
    if texture == "columns":
        return first
    if texture == "checked":
        return first ^ second
    return 4 * ((2 * a - period) ** 2 + (2 * b - period) ** 2) <= 2 * period**2  # dotted


def _background(stream: _Stream, size: int) -> np.ndarray:
    """Muted clutter: a smooth field of greys with strokes and patches over it, int32 (100, 3, S, S)."""
    nodes = GRID + 1
    field = stream.between(50, 200, 100, 1, 1, 1) + stream.between(-50, 51, 100, 1, nodes, nodes) + stream.between(-22, 23, 100, 3, nodes, nodes)
    place = np.arange(size, dtype=np.int32) * (GRID << 8) // size
    cell, part = place >> 8, place & 255
    field = (field[..., cell] * (256 - part) + field[..., cell + 1] * part) >> 8
    field = (field[..., cell, :] * (256 - part)[:, None] + field[..., cell + 1, :] * part[:, None]) >> 8
    side = 64 * size
    pixel = 64 * np.arange(size, dtype=np.int32) + 32
    for _ in range(STROKES):
        centre = stream.between(0, side, 100, 2)
        reach = stream.between(side // 24, side // 5, 100, 2)
        slant = stream.between(-1024, 1025, 100)[:, None, None]
        x, y = (pixel - centre[:, :1])[:, None, :], (pixel - centre[:, 1:])[:, :, None]
        covered = (abs(x + (slant * y >> 10)) <= reach[:, :1, None]) & (abs(y - (slant * x >> 10)) <= reach[:, 1:, None])
        paint = stream.between(30, 226, 100, 1) + stream.between(-22, 23, 100, 3)
        field = np.where(covered[:, None], paint[:, :, None, None], field)
    return field
