"""Not in the paper: a target for a student with fewer channels than the teacher, from centroids of the teacher's semantic vectors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.skd.loss import distribution, relation
from models.randomness import generator


def centroids(vectors: Tensor, count: int, seed: int, rounds: int = 50) -> Tensor:
    """Spherical k-means: unit centroids (count, K) of the directions of `vectors` (C, K), count <= C; a lost cluster keeps its centroid."""
    points = F.normalize(vectors.double(), dim=1)
    centres = points[torch.randperm(len(points), generator=generator(seed, f"skd-assign/{len(points)}/{count}"))[:count]]
    for _ in range(rounds):
        member = F.one_hot((points @ centres.T).argmax(1), count).double()
        moved = member.T @ points
        moved = torch.where(moved.norm(dim=1, keepdim=True) > 0, F.normalize(moved, dim=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def assigned_distribution(vectors: Tensor, count: int, temperature: float, diagonal: bool, seed: int) -> Tensor:
    """The row distribution (count, count) fp32 of the centroids of `vectors` (C, K)."""
    return distribution(relation(centroids(vectors, count, seed)), temperature, diagonal).float()
