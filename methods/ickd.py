"""ICKD: which channels respond together at the end of the last stage, image by image.

Liu et al.: Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, ICCV 2021, the variant ICKD-C for
classification. Rows of norm 1, the mean over channels and images, and weight 2.5 for every pair are the authors' code's, on which the
published numbers rest (one version of its script has weight 4). Their row "with KL" is `ickd+kd`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from methods._maps import EPS, Weighted, batch_normalised, only_weight
from methods.base import Needs, Prepared, Setting
from methods.registry import register
from models.outputs import Outputs


def ickd_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """1 / (C B) * sum (G_s - G_t)^2, G an image's matrix F F^T (C, C) of channels F (C, H * W) with each row scaled to norm 1 -> scalar.

    (Liu et al. 2021.) Maps (B, C, H, W) of equal B and C; H and W may differ. A channel that is 0 has row 0, and no gradient.
    No (B, C, C) tensor is made: a row's norm and the product of two rows are f_c' (sum_k f_k g_k') g_c, through matrices of pixels.
    """
    s, t = (maps.movedim(1, -1).flatten(1, 2) for maps in (student_maps, teacher_maps))  # (B, H * W, C), views of channels-last maps
    (s_scale, s_rows), (t_scale, t_rows) = (_scale(_row_products(x, x)) for x in (s, t))
    cosines = _row_products(s, t) * s_scale * t_scale
    return (s_rows + t_rows - 2 * cosines).mean()


def _row_products(f: Tensor, g: Tensor) -> Tensor:
    """sum_k (f_c . f_k) (g_c . g_k) of channels; (B, P, C), (B, Q, C) -> (B, C)."""
    return (f * ((f @ g.mT) @ g)).sum(1)


def _scale(squares: Tensor) -> tuple[Tensor, Tensor]:
    """One over the root, 0 where there is nothing to scale, and where there is something as 0 or 1."""
    rows = squares > EPS**2
    return rows * torch.where(rows, squares, 1.0).rsqrt(), rows.to(squares.dtype)


@register("ickd")
class ICKD(Weighted):
    title = "ICKD"
    paper = "Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, ICCV 2021"
    Hyper = only_weight(2.5)  # the authors'
    teacher_outputs = Needs(maps=("stage",))
    term = "ickd"

    def __init__(self, hyper: Any, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError without a teacher."""
        super().__init__(hyper, setting, prepared)
        narrow, wide = setting.student.maps["stage"][-1][0], setting.teacher.maps["stage"][-1][0]
        self.embed = nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        convolution, norm = self.embed
        embedded = batch_normalised(norm, convolution(student.maps["stage"][-1]), relu=False)
        return ickd_loss(embedded, teacher.maps["stage"][-1])
