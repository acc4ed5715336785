"""Stages of two networks side by side: which pairs can be compared one to one, and at which size their maps meet."""

from torch import Tensor
from torch.nn import functional as F

from methods.base import Setting


def unlike_stages(name: str, setting: Setting, kind: str = "stage") -> str | None:
    """Why method `name` cannot pair the stages of these networks one to one, or None."""
    if setting.teacher is None:
        return f"{name} needs a teacher: name one"
    student, teacher = len(setting.student.maps[kind]), len(setting.teacher.maps[kind])
    if student != teacher:
        return f"{name} pairs stages one to one: {setting.teacher.name} and {setting.student.name} have {teacher - 1} and {student - 1}"
    return None


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps (B, C, H, W), widths may differ, at one height and width: the larger is average-pooled to the smaller one's."""
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return pooled(student, height, width), pooled(teacher, height, width)


def pooled(maps: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling of maps (B, C, H, W) to (height, width)."""
    if maps.shape[2:] == (height, width):
        return maps
    if maps.shape[2] % height == 0 and maps.shape[3] % width == 0:  # the same values, and deterministic on GPUs
        return F.avg_pool2d(maps, (maps.shape[2] // height, maps.shape[3] // width))
    return F.adaptive_avg_pool2d(maps, (height, width))
