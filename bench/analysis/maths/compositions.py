"""How channels relate on activation maps, and which two add up to a third (Han et al. 2022, Fig. 3): found in the semantic vectors, tried on maps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.skd.loss import relation, rows

CHUNK = 2**22
"""Scores made at a time: 16 MB in fp32."""


class MeanCosines:
    """E over images of the cosines between channels. A channel that is 0 on an image has cosine 0 there, with itself too."""

    def __init__(self) -> None:
        self.total, self.count = None, 0

    def add(self, maps: Tensor) -> None:
        """maps (B, C, H, W)."""
        summed = relation(rows(maps)).sum(0, dtype=torch.float64).cpu()
        self.total, self.count = summed if self.total is None else self.total + summed, self.count + len(maps)

    def __add__(self, other: "MeanCosines") -> "MeanCosines":
        """Over the images of both."""
        both = MeanCosines()
        both.total, both.count = self.total + other.total, self.count + other.count
        return both

    def value(self) -> Tensor:
        """(C, C) fp64, on the CPU."""
        return self.total / self.count


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


def best_pairs(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each channel c the pair a < b with the largest gain: vectors (C, K) -> pairs int64 (C, 2), scores (C,), gains (C,).

    Score cos(u_a + u_b, u_c) of unit vectors, gain = score - max(cos_ac, cos_bc). Needs 3 channels; all pairs are tried, CHUNK scores at a time.
    """
    count = len(vectors)
    every = torch.combinations(torch.arange(count), 2)
    gains = torch.full((count,), -torch.inf, dtype=vectors.dtype)
    scores, pairs = torch.zeros(count, dtype=vectors.dtype), torch.zeros(count, 2, dtype=torch.int64)
    for some in every.split(max(1, CHUNK // count)):
        score, gain = composition_scores(vectors, some)
        value, at = gain.max(0)
        better = value > gains
        gains, pairs = torch.where(better, value, gains), torch.where(better[:, None], some[at], pairs)
        scores = torch.where(better, score.gather(0, at[None])[0], scores)
    return pairs, scores, gains


def matched_pairs(vectors: Tensor, triple: tuple[int, int, int], count: int, generator: torch.Generator) -> Tensor:
    """`count` random pairs int64 (n, 2) as near to c as the triple (a, b, c): drawn from the twentieth of all pairs whose max(cos_ac, cos_bc)
    is nearest to the triple's, itself left out."""
    a, b, c = triple
    near = relation(vectors)[c]
    every = torch.combinations(torch.arange(len(vectors)), 2)
    every = every[(every != c).all(1) & ~((every[:, 0] == min(a, b)) & (every[:, 1] == max(a, b)))]
    distance = (near[every].amax(1) - torch.maximum(near[a], near[b])).abs()
    pool = distance.argsort(stable=True)[: max(count, len(every) // 20)]
    return every[pool[torch.randperm(len(pool), generator=generator)[:count]]]


@dataclass
class OnMaps:
    """Score and gain of triples (n, 3) = (a, b, c) on maps, each map of unit length; a map that is 0 adds nothing.

    Score: the mean over images of cos(A_a + A_b, A_c). Gain: score less the larger of the means of cos(A_a, A_c) and cos(A_b, A_c), as for vectors;
    the larger one image by image would count the noise of single images.
    """

    triples: Tensor
    sums: Tensor | int = 0  # (3, n): of the sum with c, a with c, b with c
    count: int = 0

    def add(self, maps: Tensor) -> None:
        """maps (B, C, H, W)."""
        cosines = relation(rows(maps)).cpu()
        a, b, c = self.triples.unbind(1)
        length = (cosines[:, a, a] + cosines[:, b, b] + 2 * cosines[:, a, b]).clamp_min(1e-12).sqrt()
        with_a, with_b = cosines[:, a, c], cosines[:, b, c]
        self.sums = self.sums + torch.stack([(with_a + with_b) / length, with_a, with_b]).sum(1, dtype=torch.float64)
        self.count += len(maps)

    def means(self) -> tuple[Tensor, Tensor]:
        """Score and gain, (n,) fp64."""
        score, with_a, with_b = self.sums / self.count
        return score, score - torch.maximum(with_a, with_b)
