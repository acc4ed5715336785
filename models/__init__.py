"""Networks for small images, by name, with the outputs that distillation methods ask for."""

from models.files import described, load
from models.folding import folded
from models.layers import NetworkError
from models.network import classifier, preact_norms, trunk
from models.registry import build, counted, head, macs, names, options, shapes, small_rate, without_values
from models.source import source_hash

__all__ = [
    "NetworkError",
    "build",
    "classifier",
    "counted",
    "described",
    "folded",
    "head",
    "load",
    "macs",
    "names",
    "options",
    "preact_norms",
    "shapes",
    "small_rate",
    "source_hash",
    "trunk",
    "without_values",
]

source_hash()  # now: the files may change while a network trains
