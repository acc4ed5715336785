"""Reading the semantic vectors: nearest neighbours (Han et al. 2022, Fig. 2) and compositions of two channels (Fig. 3)."""

import torch
from torch import Tensor

from methods.skd.loss import relation


def neighbours(vectors: Tensor, count: int = 3) -> Tensor:
    """The `count` channels most similar to each, itself left out: vectors (C, K) -> int64 (C, count), nearest first."""
    cosines = relation(vectors)
    return cosines.fill_diagonal_(-2).topk(count, dim=1).indices


def composition_scores(vectors: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """How near two channels together come to a third: score = cos(u_a + u_b, u_c) of unit vectors u, and its gain over one alone.

    vectors (C, K), pairs int64 (n, 2) of channels a, b -> score and gain (n, C). In the relation G the score is
    (G_ac + G_bc) / sqrt(2 + 2 G_ab); gain = score - max(G_ac, G_bc), without which near-duplicates of c win. c = a or b gives -inf;
    the score of opposite vectors is 0.
    """
    cosines = relation(vectors)
    a, b = pairs.unbind(1)
    length = (2 + 2 * cosines[a, b]).clamp_min(1e-12).sqrt()
    score = (cosines[a] + cosines[b]) / length.unsqueeze(1)
    gain = score - torch.maximum(cosines[a], cosines[b])
    for channel in (a, b):
        for values in (score, gain):
            values.scatter_(1, channel.unsqueeze(1), -torch.inf)
    return score, gain
