"""FitNet: a small regressor on a middle map of the student predicts the teacher's map of the same stage.

Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015. As in the CRD protocol, hint and cross-entropy are trained together from the
first epoch, where the paper trains the hint first; the hint is stage 2, and the regressor ends in BN and ReLU.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import Weighted
from methods.base import Needs, Prepared, Setting, ranged
from methods.registry import register
from models.native import normalised
from models.outputs import Outputs

Size = tuple[int, int, int]


def hint_loss(regressed: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean over all elements of (r(f_s) - f_t)^2; maps (B, C, H, W) of one shape -> scalar (Romero et al. 2015, Eq. 3, up to its factor)."""
    return F.mse_loss(regressed.movedim(1, -1), teacher_map.movedim(1, -1))  # so its gradient is channels last, as the maps are


def convolution(student: Size, teacher: Size) -> nn.Module | None:
    """The convolution from a student's map to a teacher's, each (C, H, W): 3x3 of stride 2 from twice the size, 4x4 transposed from half of
    it, else one without padding (1x1 at equal sizes). None where the student's map is smaller, but not half the teacher's."""
    (narrow, height, width), (wide, *target) = student, teacher
    if [height, width] == [2 * target[0], 2 * target[1]]:
        return nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
    if [2 * height, 2 * width] == target:
        return nn.ConvTranspose2d(narrow, wide, 4, stride=2, padding=1)
    if height >= target[0] and width >= target[1]:
        return nn.Conv2d(narrow, wide, (1 + height - target[0], 1 + width - target[1]))
    return None


def unreachable(name: str, setting: Setting, kind: str, layer: int) -> str | None:
    """Why no such convolution leads from the student's map of this kind and layer to the teacher's, or None."""
    student, teacher = setting.student.maps[kind][layer], setting.teacher.maps[kind][layer]
    if convolution(student, teacher) is not None:
        return None
    sizes = f"{student[1:]} in {setting.student.name} and {teacher[1:]} in {setting.teacher.name}"
    return f"{name} needs student maps that are no smaller than the teacher's, or half its size: layer {layer} has {sizes}"


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's weight and layer."""

    weight: float = ranged(100.0, at_least=0)
    layer: int = ranged(2, at_least=0)  # index into maps["stage"]; 2 is the output of stage 2


@register("fitnet")
class FitNet(Weighted):
    title = "FitNet"
    paper = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    term = "hint"

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        student, teacher = setting.student.maps["stage"], setting.teacher.maps["stage"]
        if not 0 <= hyper.layer < min(len(student), len(teacher)):
            return f"fitnet.layer is {hyper.layer}: the networks have layers 0 to {min(len(student), len(teacher)) - 1}"
        return unreachable("fitnet", setting, "stage", hyper.layer)

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported."""
        super().__init__(hyper, setting, prepared)
        student, teacher = setting.student.maps["stage"][hyper.layer], setting.teacher.maps["stage"][hyper.layer]
        self.regressor = nn.Sequential(convolution(student, teacher), nn.BatchNorm2d(teacher[0]), nn.ReLU())

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        convolution, norm, _ = self.regressor
        regressed = normalised(norm, convolution(student.maps["stage"][self.hyper.layer]))
        return hint_loss(regressed, teacher.maps["stage"][self.hyper.layer])
