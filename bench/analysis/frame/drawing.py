"""How figures look: a paper's column wide, legible in print, told apart without colour. matplotlib is loaded with the first figure."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.store.files import write_bytes
from bench.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.3
"""Inches: a column of a two-column paper."""
SMALL, NORMAL = 6.5, 7.5
"""Points: ticks and legends; labels and titles."""
MARKERS = "osD^vP<X>*hp"
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1)), (0, (6, 2, 2, 2)))
GREYS = ("0.15", "0.75", "0.45", "0.9", "0.3", "0.6")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---")


def figure(height: float, width: float = COLUMN) -> "Figure":
    """An empty figure, a column wide unless said."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def look(index: int) -> dict[str, Any]:
    """Marker, colour and line style of the series with that number."""
    return {"marker": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def fill(index: int) -> dict[str, Any]:
    """Grey and hatch of the bar with that number."""
    return {"facecolor": GREYS[index % len(GREYS)], "hatch": HATCHES[index % len(HATCHES)], "edgecolor": "black", "linewidth": 0.5}


def plain(text: object, limit: int = 60) -> str:
    """Text that starts no formula."""
    return clean(text, limit).replace("$", r"\$")


def save(made: "Figure", path: Path) -> bytes:
    """Write a figure to `path`.png (300 dpi) and `path`.pdf, each atomically; the bytes of the PNG. Raises OSError."""
    for ending, settings in (("pdf", {"metadata": {"CreationDate": None}}), ("png", {"dpi": 300})):
        buffer = io.BytesIO()
        made.savefig(buffer, format=ending, **settings)
        write_bytes(path.parent / f"{path.name}.{ending}", buffer.getvalue())
    return buffer.getvalue()


def label(axes, x: str = "", y: str = "", title: str = "") -> None:
    """Labels, title and tick sizes of one panel."""
    axes.set_xlabel(x, fontsize=NORMAL)
    axes.set_ylabel(y, fontsize=NORMAL)
    if title:
        axes.set_title("\n".join(textwrap.wrap(title, 52)), fontsize=NORMAL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)


def masked(images: np.ndarray, masks: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Pictures (n, 3, S, S) uint8 and masks bool (n, S, S) -> (n, S, S, 3): outside the mask darkened, its edge white, or grey where the mask is not
    `strong` (n,). Works in grey."""
    shown = images.transpose(0, 2, 3, 1).astype(float) / 255
    inner = masks.copy()
    inner[:, 1:] &= masks[:, :-1]
    inner[:, :-1] &= masks[:, 1:]
    inner[:, :, 1:] &= masks[:, :, :-1]
    inner[:, :, :-1] &= masks[:, :, 1:]
    out = np.where(masks[..., None], shown, 0.3 * shown)
    edge = np.broadcast_to(np.where(strong, 1.0, 0.55)[:, None, None], masks.shape)
    out[masks & ~inner] = edge[masks & ~inner][:, None]
    return out


def tiles(images: np.ndarray, masks: np.ndarray, rows: Sequence[str], strong: np.ndarray | None = None) -> "Figure":
    """A grid of masked pictures with a label before each row: images (R, n, 3, S, S) uint8, masks bool (R, n, S, S), `strong` bool (R, n): all."""
    count, across = masks.shape[:2]
    side = (COLUMN - 0.85) / across
    made = figure(count * side + 0.05)
    strong = np.ones((count, across), dtype=bool) if strong is None else strong
    panels = made.subplots(count, across, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for r in range(count):
        for c, picture in enumerate(masked(images[r], masks[r], strong[r])):
            panels[r, c].imshow(picture, interpolation="nearest")
            panels[r, c].set(xticks=[], yticks=[])
        text = "\n".join(textwrap.wrap(plain(rows[r]), 14))
        panels[r, 0].set_ylabel(text, fontsize=SMALL, rotation=0, ha="right", va="center", labelpad=4)
    return made
