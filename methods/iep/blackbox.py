"""Black-box knowledge: multi-head graph distillation with one injected head (Lee and Song 2021, section "Black-box knowledge").

The estimator follows the authors' code, since the paper leaves its structure to the supplement: attention of the back stage's images
(rows, sender) on the front stage's (columns, receiver), seven learned heads and one given by the message-passing network.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.iep.mpnn import Knowledge


def injected_head(knowledge: Knowledge) -> Tensor:
    """The given head: sum over iterations of the mean message = readout - start, (N, N), without gradient and without softmax."""
    return (knowledge.readout - knowledge.start).detach()


class Estimator(nn.Module):
    """Attention heads between two stages, trained by estimating the back coordinates from the front ones.

    Width D = (front + back) // 2. Logits are inner products of BN(FC) features, not divided by sqrt(D).
    """

    def __init__(self, front: int, back: int, heads: int = 7) -> None:
        super().__init__()
        self.heads, self.dim = heads, max(1, (front + back) // 2)
        self.sender = nn.Linear(back, self.dim * heads, bias=False)
        self.sender_bn = nn.BatchNorm1d(self.dim * heads)
        self.receiver = nn.Linear(front, self.dim * heads, bias=False)
        self.receiver_bn = nn.BatchNorm1d(self.dim * heads)
        self.value = nn.Linear(front, self.dim, bias=False)
        self.value_bn = nn.BatchNorm1d(self.dim)
        self.out = nn.Linear(self.dim * (heads + 1), back)

    def logits(self, front: Tensor, back: Tensor) -> Tensor:
        """K^BB: coordinates (N, front) and (N, back) -> attention logits of the learned heads (heads, N, N), rows = back images.

        The injected head is not among them: it is K^int and K^alt already.
        """
        n = front.shape[0]
        sent = self.sender_bn(self.sender(back)).view(n, self.heads, self.dim).transpose(0, 1)
        received = self.receiver_bn(self.receiver(front)).view(n, self.heads, self.dim).transpose(0, 1)
        return torch.bmm(sent, received.transpose(1, 2))

    def estimate(self, front: Tensor, back: Tensor, injected: Tensor, noise: Tensor | None = None) -> Tensor:
        """Unit estimate (N, back) of the back coordinates. `injected` (N, N); `noise` (heads + 1, N, 1) standard normal drops, image
        by image, the heads whose noise is below the mean over heads; None keeps all."""
        attention = torch.cat([self.logits(front, back).softmax(-1), injected[None]])
        if noise is not None:
            attention = attention * (noise > noise.mean(0, keepdim=True))
        values = F.relu(self.value_bn(self.value(front)))
        mixed = (attention @ values).transpose(0, 1).flatten(1)  # (N, (heads + 1) * D)
        return F.normalize(self.out(mixed), dim=1)
