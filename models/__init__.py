"""Networks for small images, by name, with the outputs that distillation methods ask for."""

from models.layers import NetworkError
from models.registry import build, macs, names, options, shapes

__all__ = ["NetworkError", "build", "macs", "names", "options", "shapes"]
