"""The networks written once more from their state dicts alone, with other operators where there is a choice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.outputs import STAGE_KINDS


class Reference:
    """The networks as functions of a state dict; returns logits, embedding and every map by kind.

    `training`: normalisations take the batch's statistics; what the running ones become is left in `statistics`.
    """

    def __init__(self, state: dict[str, Tensor], training: bool = False) -> None:
        self.state, self.training = state, training
        self.statistics: dict[str, Tensor] = {}

    def of(self, name: str, x: Tensor):
        families = {"resnet50": self.resnet50, "mobilenetv2": self.mobilenet, "shufflev1": self.shuffle_v1, "shufflev2": self.shuffle_v2}
        return (families[name] if name in families else getattr(self, name.rstrip("x1234567890_")))(x)

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """Each group of channels by a convolution of its own; the number of groups follows from the weight."""
        weight = self.state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        if groups == x.shape[1]:  # depthwise: nine shifted products
            height, width = ((side + stride - 1) // stride for side in x.shape[2:])
            padded = F.pad(x, (1, 1, 1, 1))
            shifted = [[padded[:, :, i : i + x.shape[2] : stride, j : j + x.shape[3] : stride] for j in range(3)] for i in range(3)]
            assert shifted[2][2].shape[2:] == (height, width)
            return sum(weight[:, 0, i, j, None, None] * shifted[i][j] for i in range(3) for j in range(3))
        parts = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
        out = torch.cat([F.conv2d(part, own, stride=stride, padding=weight.shape[-1] // 2) for part, own in parts], 1)
        bias = self.state.get(f"{name}.bias")
        return out if bias is None else out + bias[:, None, None]

    def bn(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        if self.training:
            count = x.numel() / x.shape[1]
            own_mean = x.mean((0, 2, 3))
            own_var = (x - own_mean[:, None, None]).square().mean((0, 2, 3))
            self.statistics[f"{name}.running_mean"] = 0.9 * mean + 0.1 * own_mean.detach()
            self.statistics[f"{name}.running_var"] = 0.9 * var + 0.1 * own_var.detach() * count / (count - 1)
            mean, var = own_mean, own_var
        mean, var, weight, bias = (value[:, None, None] for value in (mean, var, weight, bias))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def head(self, name: str, x: Tensor, maps: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
        embedding = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return embedding @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"], embedding, maps

    def count(self, prefix: str) -> int:
        return sum(f"{prefix}.{i}.conv1.weight" in self.state for i in range(20))

    def resnet(self, x: Tensor):
        x = self.bn("bn1", self.conv("conv1", x)).relu()
        maps = {kind: [x] for kind in STAGE_KINDS}
        for stage in (1, 2, 3):
            for i in range(self.count(f"layer{stage}")):
                at, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
                y = self.bn(f"{at}.bn1", self.conv(f"{at}.conv1", x, stride)).relu()
                y = self.bn(f"{at}.bn2", self.conv(f"{at}.conv2", y))
                if f"{at}.downsample.0.weight" in self.state:
                    x = self.bn(f"{at}.downsample.1", self.conv(f"{at}.downsample.0", x, stride))
                total = x + y
                x = total.relu()
            for kind, value in (("stage", x), ("preact", total), ("relu", x)):
                maps[kind].append(value)
        return self.head("fc", x, maps)

    def wrn(self, x: Tensor):
        x = self.conv("conv1", x)
        maps = {kind: [x] for kind in STAGE_KINDS}
        for stage, following in ((1, "block2.layer.0.bn1"), (2, "block3.layer.0.bn1"), (3, "bn1")):
            for i in range(self.count(f"block{stage}.layer")):
                at, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
                shared = self.bn(f"{at}.bn1", x).relu()
                y = self.bn(f"{at}.bn2", self.conv(f"{at}.conv1", shared, stride)).relu()
                y = self.conv(f"{at}.conv2", y)
                x = y + (self.conv(f"{at}.convShortcut", shared, stride) if f"{at}.convShortcut.weight" in self.state else x)
            preact = self.bn(following, x)
            for kind, value in (("stage", x), ("preact", preact), ("relu", preact.relu())):
                maps[kind].append(value)
        return self.head("fc", preact.relu(), maps)

    def vgg(self, x: Tensor):
        maps: dict[str, list[Tensor]] = {kind: [] for kind in STAGE_KINDS}
        for block in range(5):
            units = [i for i in range(0, 12, 3) if f"block{block}.{i}.weight" in self.state]
            for i in units:
                preact = self.bn(f"block{block}.{i + 1}", self.conv(f"block{block}.{i}", x))
                x = preact.relu()
            for kind, value in (("stage", x), ("preact", preact if block else x), ("relu", x)):
                maps[kind].append(value)
            if block < 3:
                x = F.max_pool2d(x, 2)
        return self.head("classifier", x, maps)

    def stages(self, prefix: str, x: Tensor, stages: int, unit, maps: dict[str, list[Tensor]]) -> Tensor:
        """Stages of units called as unit(name, x, stride) -> (output, the same before its last ReLU)."""
        for stage in range(1, stages + 1):
            for i in range(self.count(f"{prefix}{stage}")):
                x, preact = unit(f"{prefix}{stage}.{i}", x, 2 if i == 0 and (stage > 1 or stages == 3) else 1)
            for kind, value in (("stage", x), ("preact", preact), ("relu", x)):
                maps[kind].append(value)
        return x

    def resnet50(self, x: Tensor):
        def unit(at: str, x: Tensor, stride: int):
            y = self.bn(f"{at}.bn1", self.conv(f"{at}.conv1", x)).relu()
            y = self.bn(f"{at}.bn2", self.conv(f"{at}.conv2", y, stride)).relu()
            y = self.bn(f"{at}.bn3", self.conv(f"{at}.conv3", y))
            if f"{at}.shortcut.0.weight" in self.state:
                x = self.bn(f"{at}.shortcut.1", self.conv(f"{at}.shortcut.0", x, stride))
            return (x + y).relu(), x + y

        x = self.bn("bn1", self.conv("conv1", x)).relu()
        maps = {kind: [x] for kind in STAGE_KINDS}
        return self.head("linear", self.stages("layer", x, 4, unit, maps), maps)

    def mobilenet(self, x: Tensor):
        x = self.bn("conv1.1", self.conv("conv1.0", x, 2)).relu()
        maps = {kind: [x] for kind in STAGE_KINDS}
        for group, stride in enumerate((1, 1, 2, 2, 1, 2, 1)):
            for i in range(sum(f"blocks.{group}.{i}.conv.0.weight" in self.state for i in range(9))):
                at, step = f"blocks.{group}.{i}.conv", stride if i == 0 else 1
                y = self.bn(f"{at}.1", self.conv(f"{at}.0", x)).relu()
                y = self.bn(f"{at}.4", self.conv(f"{at}.3", y, step)).relu()
                y = self.bn(f"{at}.7", self.conv(f"{at}.6", y))
                x = x + y if step == 1 and x.shape == y.shape else y
            if group in (1, 2, 4, 6):
                for kind in STAGE_KINDS:
                    maps[kind].append(x)
        return self.head("classifier.0", self.bn("conv2.1", self.conv("conv2.0", x)).relu(), maps)

    def shuffle_v1(self, x: Tensor):
        def unit(at: str, x: Tensor, stride: int):
            groups = x.shape[1] // self.state[f"{at}.conv1.weight"].shape[1]
            assert groups == (1 if x.shape[1] == 24 else 3)
            y = dealt(self.bn(f"{at}.bn1", self.conv(f"{at}.conv1", x)).relu(), groups)
            y = self.bn(f"{at}.bn2", self.conv(f"{at}.conv2", y, stride)).relu()
            y = self.bn(f"{at}.bn3", self.conv(f"{at}.conv3", y))
            y = torch.cat([y, averaged(x)], 1) if stride == 2 else x + y
            return y.relu(), y

        x = self.bn("bn1", self.conv("conv1", x)).relu()
        maps = {kind: [x] for kind in STAGE_KINDS}
        return self.head("linear", self.stages("layer", x, 3, unit, maps), maps)

    def shuffle_v2(self, x: Tensor):
        def unit(at: str, x: Tensor, stride: int):
            if stride == 2:
                left = self.bn(f"{at}.bn2", self.conv(f"{at}.conv2", self.bn(f"{at}.bn1", self.conv(f"{at}.conv1", x, 2)))).relu()
                y = self.bn(f"{at}.bn3", self.conv(f"{at}.conv3", x)).relu()
                y = self.bn(f"{at}.bn5", self.conv(f"{at}.conv5", self.bn(f"{at}.bn4", self.conv(f"{at}.conv4", y, 2))))
            else:
                half = x.shape[1] // 2
                left, y = x[:, :half], self.bn(f"{at}.bn1", self.conv(f"{at}.conv1", x[:, half:])).relu()
                y = self.bn(f"{at}.bn3", self.conv(f"{at}.conv3", self.bn(f"{at}.bn2", self.conv(f"{at}.conv2", y))))
            return dealt(torch.cat([left, y.relu()], 1), 2), torch.cat([left, y], 1)

        x = self.bn("bn1", self.conv("conv1", x)).relu()
        maps = {kind: [x] for kind in STAGE_KINDS}
        x = self.stages("layer", x, 3, unit, maps)
        return self.head("linear", self.bn("bn2", self.conv("conv2", x)).relu(), maps)


def dealt(x: Tensor, groups: int) -> Tensor:
    """The channels dealt out: the first of each group in turn, then the second of each, and so on."""
    each = x.shape[1] // groups
    return torch.stack([x[:, group * each + place] for place in range(each) for group in range(groups)], 1)


def averaged(x: Tensor) -> Tensor:
    """The mean of each 3x3 neighbourhood at every second place, zeros outside counted."""
    padded = F.pad(x, (1, 1, 1, 1))
    return sum(padded[:, :, i : i + x.shape[2] : 2, j : j + x.shape[3] : 2] for i in range(3) for j in range(3)) / 9
