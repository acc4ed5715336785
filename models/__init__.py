"""Networks for small images, by name, with the outputs that distillation methods ask for."""

from models.folding import folded
from models.layers import NetworkError
from models.registry import build, macs, names, options, shapes

__all__ = ["NetworkError", "build", "folded", "macs", "names", "options", "shapes"]
