"""Synchrony of channels (Sync, slides by Han): the graph that joins channels whose distance is at most eps, its metrics, the loss, the dynamics.

A point is a channel: its semantic vector, or its activations. Distance is 1 - cosine. A channel is not its own neighbour.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor


def neighbours(distances: Tensor, eps: float) -> Tensor:
    """Who is whose neighbour: distances (C, C) -> bool (C, C), the diagonal False."""
    near = distances <= eps
    return near & ~torch.eye(len(distances), dtype=torch.bool, device=distances.device)


def components(near: Tensor) -> list[int]:
    """Sizes of the connected components of a symmetric graph bool (C, C), largest first; a channel alone is a component of 1."""
    _, owners = connected_components(near.cpu().numpy(), directed=False)
    return sorted(np.bincount(owners).tolist(), reverse=True)


@dataclass(frozen=True)
class Metrics:
    """Of one eps-graph."""

    with_neighbours: int  # channels that have at least one
    mean_neighbours: float  # over all channels
    largest_cluster: int  # channels in the largest connected component
    mean_distance: float | None  # between neighbours, over ordered pairs; None where there is no pair
    loss: float


def metrics(distances: Tensor, eps: float) -> Metrics:
    """distances (C, C) symmetric -> its metrics at `eps`."""
    near = neighbours(distances, eps)
    counts = near.sum(1)
    mean = distances[near].mean().item() if near.any() else None
    return Metrics(int((counts > 0).sum()), counts.double().mean().item(), components(near)[0], mean, loss(distances, eps).item())


def loss(distances: Tensor, eps: float) -> Tensor:
    """L_sync = (1/N) sum_i (1/|Nb_i|) sum_{j in Nb_i} d_ij -> scalar; a channel without neighbours adds 0. The neighbour set carries no gradient."""
    near = neighbours(distances.detach(), eps)
    return ((distances * near).sum(1) / near.sum(1).clamp_min(1)).mean()


def kuramoto_step(points: Tensor, eps: float) -> Tensor:
    """One step x_i + mean over its neighbours of sin(x_j - x_i), a coordinate each: points (C, K) -> (C, K). Without neighbours x_i stays."""
    unit = points / points.norm(dim=1, keepdim=True).clamp_min(1e-12)
    near = neighbours(1 - unit @ unit.T, eps).to(points.dtype)
    moves = torch.stack([(near[i, :, None] * torch.sin(points - points[i])).sum(0) for i in range(len(points))])
    return points + moves / near.sum(1, keepdim=True).clamp_min(1)
