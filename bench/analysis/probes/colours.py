"""The eleven basic colour terms (Berlin and Kay 1969) from pixels: the nearest of eleven prototypes in CIELAB."""

import torch
from torch import Tensor

PROTOTYPES = {
    "black": (20, 20, 20),
    "blue": (45, 80, 190),
    "brown": (110, 70, 40),
    "grey": (128, 128, 128),
    "green": (60, 140, 60),
    "orange": (235, 130, 40),
    "pink": (240, 160, 190),
    "purple": (120, 60, 150),
    "red": (190, 30, 40),
    "white": (245, 245, 245),
    "yellow": (235, 215, 60),
}
"""sRGB; chosen here, muted as colours in photographs are."""
_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)  # D65


def lab(rgb: Tensor) -> Tensor:
    """sRGB of 0..255 (..., 3) -> CIELAB (..., 3) under D65 (IEC 61966-2-1, CIE 15)."""
    value = rgb.float() / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ torch.tensor(_XYZ, device=rgb.device).T / torch.tensor(_WHITE, device=rgb.device)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def name_pixels(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the number of the colour (order of PROTOTYPES) int64 (B, H, W)."""
    prototypes = lab(torch.tensor(list(PROTOTYPES.values()), device=images.device))
    points = lab(images.movedim(1, -1))
    return torch.cdist(points.flatten(0, -2), prototypes).argmin(1).view(points.shape[:-1])
