"""CAT-KD: the class activation maps, where in the image each class is seen, match the teacher's.

Guo et al.: Class Attention Transfer Based Knowledge Distillation, CVPR 2023. The classifier at each place of the last map gives one map
a class, whose mean is the logit. Weight, resolution and whether maps are normalised are those of the authors' configurations, pair by
pair, on which the published numbers rest. None is known for resnet110/resnet20 (here as
resnet110/resnet32) and resnet50/vgg8; what is not listed has the defaults below, which are nobody's.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods._maps import Weighted, pooled_to, unit
from methods.base import Needs, ranged
from methods.registry import register
from models.outputs import Outputs


def catkd_loss(student_maps: Tensor, teacher_maps: Tensor, resolution: int, normalise: bool) -> Tensor:
    """Mean over all elements of (A_s - A_t)^2, A the maps (B, classes, H, W) average-pooled to `resolution` squared, each class's then
    scaled to norm 1 where `normalise`; H and W may differ -> scalar (Guo et al. 2023)."""
    s, t = (pooled_to(maps, resolution, resolution).flatten(2) for maps in (student_maps, teacher_maps))
    return F.mse_loss(unit(s), unit(t)) if normalise else F.mse_loss(s, t)


@dataclass(frozen=True)
class Hyper:
    """Values by pair as said above."""

    weight: float = ranged(1.0, at_least=0)
    resolution: int = ranged(2, at_least=1)
    normalise: bool = False


HYPER = {
    ("resnet56", "resnet20"): {"weight": 0.7},
    ("resnet110", "resnet20"): {"weight": 1.8},
    ("resnet110", "resnet32"): {"weight": 1.8},
    ("resnet32x4", "resnet8x4"): {"weight": 15.0},
    ("wrn_40_2", "wrn_16_2"): {"weight": 12.0},
    ("wrn_40_2", "wrn_40_1"): {"weight": 1.5},
    ("vgg13", "vgg8"): {"weight": 4.5},
    ("vgg13", "mobilenetv2"): {"weight": 15.0, "normalise": True},
    ("resnet50", "mobilenetv2"): {"weight": 40.0, "normalise": True},
    ("resnet32x4", "shufflev1"): {"weight": 600.0, "resolution": 4, "normalise": True},
    ("resnet32x4", "shufflev2"): {"weight": 600.0, "resolution": 4, "normalise": True},
    ("wrn_40_2", "shufflev1"): {"weight": 80.0, "resolution": 4, "normalise": True},
}


@register("catkd")
class CATKD(Weighted):
    title = "CAT-KD"
    paper = "Guo et al., Class Attention Transfer Based Knowledge Distillation, CVPR 2023"
    Hyper = Hyper
    by_pair = HYPER
    teacher_outputs = Needs(maps=("cam",))
    term = "cat"

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        return catkd_loss(student.maps["cam"][0], teacher.maps["cam"][0], self.hyper.resolution, self.hyper.normalise)
