"""The message-passing network that turns the relations of one stage into those of the next (Lee and Song 2021, Eq. 8-12)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM, EPS = 0.1, 1e-5  # of batch normalisation


class Knowledge(NamedTuple):
    """What the network says of a batch of N images."""

    start: Tensor  # (N, N) cosines of the mapped front coordinates: the readout before any message
    readout: Tensor  # (N, N) estimated affinity of the back stage (K^int, Eq. 12)
    messages: tuple[Tensor, ...]  # I tensors (N, N, D) (K^alt, Eq. 15)


class Gate(nn.Module):
    """BN(FC [h_v - h_w, x_vw]) over all N^2 pairs, FC without bias; weights shared over the iterations.

    The layer on the outer difference is a difference of node-wise layers, W h_v - W h_w, so no (N, N, D + 1) input is formed and the
    products shrink from N^2 to N rows. The running statistics are kept for each iteration by itself: edges are distributed otherwise
    before and after a message, and one average of both fits neither.
    """

    def __init__(self, dim: int, iterations: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim + 1, dim, bias=False)
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(iterations, dim))
        self.register_buffer("running_var", torch.ones(iterations, dim))

    def forward(self, nodes: Tensor, edges: Tensor, iteration: int) -> Tensor:
        """Nodes (N, D) and edge means (N, N) -> (N, N, D)."""
        n, dim = nodes.shape
        weight = self.fc.weight
        mapped = nodes @ weight[:, :-1].T
        slope = weight[:, -1]
        mean, var = self.running_mean[iteration], self.running_var[iteration]
        if self.training:
            z = torch.addcmul(mapped[:, None] - mapped[None], edges[:, :, None], slope)
            return F.batch_norm(z.view(n * n, dim), mean, var, self.weight, self.bias, True, MOMENTUM, EPS).view(n, n, dim)
        # Frozen statistics: the normalisation is an affine map and goes into the node-wise terms.
        gain = self.weight * torch.rsqrt(var + EPS)
        mapped = mapped * gain
        offset = mapped + (self.bias - mean * gain)
        return torch.addcmul(offset[:, None] - mapped[None], edges[:, :, None], slope * gain)


class MPNN(nn.Module):
    """Estimates the back stage's affinity from both stages' coordinates; D = width of the back coordinates.

    Edges start as D * cbar_v * cbar_w with cbar = normalise(BN(FC c_front)), so their mean is the cosine (the factor D is in the
    authors' code, not in Eq. 8). Each iteration adds m = BN(FC z) * sigmoid(BN(FC' z)), z = [h_v - h_w, mean edge], h = c_back; the
    weights are shared over the iterations, as in the code. Only the mean of an edge is ever read, so edges are kept as means (N, N).
    Train mode needs at least 2 images.
    """

    def __init__(self, front: int, back: int, iterations: int = 2) -> None:
        super().__init__()
        self.iterations = iterations
        self.lm = nn.Linear(front, back, bias=False)
        self.lm_bn = nn.BatchNorm1d(back)
        self.value = Gate(back, iterations)
        self.gate = Gate(back, iterations)

    def forward(self, front: Tensor, back: Tensor) -> Knowledge:
        """Coordinates (N, K_front) and (N, K_back) of the same N images."""
        mapped = F.normalize(self.lm_bn(self.lm(front)), dim=1)
        start = edges = mapped @ mapped.T
        messages = []
        for i in range(self.iterations):
            message = self.value(back, edges, i) * torch.sigmoid(self.gate(back, edges, i))
            messages.append(message)
            edges = edges + message.mean(2)
        return Knowledge(start, edges, tuple(messages))
