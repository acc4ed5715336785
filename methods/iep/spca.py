"""Stacked PCA: an image's map becomes its first principal component, the components of a batch become a few coordinates.

Lee and Song, Interpretable Embedding Procedure Knowledge Transfer, AAAI 2021, Eq. 1-7. Maps are taken after ReLU: then the first
component is non-negative and the stereographic projection around the positive diagonal never blows up.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Forming the Gram matrix costs m / (2 steps) times the arithmetic of the steps it replaces, but runs as matrix products; measured on
# CPU it pays up to about twelve times the arithmetic.
_GRAM_ADVANTAGE = 24


class Component(NamedTuple):
    """First singular pair of each image's map."""

    v: Tensor  # (B, D) unit direction over channels, sign rule applied
    u: Tensor  # (B, HW) unit spatial pattern, same sign
    residual: Tensor  # (B,) |G y - l y| / l of the iterated vector: 0 = converged


def uses_gram(channels: int, positions: int, steps: int) -> bool:
    """Whether `first_component` forms the Gram matrix of the smaller side (by shape alone, so a captured step stays the same)."""
    return min(channels, positions) <= _GRAM_ADVANTAGE * steps


def first_component(maps: Tensor, steps: int = 12, check: bool = False, tolerance: float = 1e-3) -> Component:
    """First right (channel) and left (spatial) singular vector of each map, not centred (Eq. 1-3), by batched power iteration.

    Args:
        maps: (B, D, H, W) or (B, D, HW), float.
        steps: power steps from the mean over the other side; the error shrinks by (sigma_2 / sigma_1)^2 a step.
        check: read the residual on the host and decompose the images above `tolerance` with `eigh`. Not for captured steps.

    An all-zero map gives zero vectors. No gradient: the result is detached.
    """
    with torch.no_grad():
        x = maps.flatten(2).float()
        channels, positions = x.shape[1:]
        over_channels = channels <= positions  # iterate on the shorter vector
        a = x if over_channels else x.transpose(1, 2)
        at = a.transpose(1, 2)
        gram = torch.bmm(a, at) if uses_gram(channels, positions, steps) else None
        y = F.normalize(a.mean(2, keepdim=True), dim=1)
        z = y
        for step in range(steps + 1):
            y = z if step == 0 else F.normalize(z, dim=1)
            z = torch.bmm(gram, y) if gram is not None else torch.bmm(a, torch.bmm(at, y))
        value = (y * z).sum(1, keepdim=True)
        residual = (torch.linalg.vector_norm(z - value * y, dim=1) / value[:, 0].clamp_min(torch.finfo(x.dtype).tiny)).squeeze(1)
        if check:
            y, residual = _decomposed(a, y, residual, tolerance)
        other = F.normalize(torch.bmm(at, y), dim=1).squeeze(2)
        v, u = (y.squeeze(2), other) if over_channels else (other, y.squeeze(2))
        sign = sign_rule(v)
        return Component(v * sign, u * sign, residual)


def _decomposed(a: Tensor, y: Tensor, residual: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The iterated vectors (B, m, 1) with those that did not converge replaced by the top eigenvector of their Gram matrix."""
    bad = (residual > tolerance).nonzero().squeeze(1)
    if bad.numel() == 0:
        return y, residual
    rows = a[bad]
    top = torch.linalg.eigh(torch.bmm(rows, rows.transpose(1, 2))).eigenvectors[:, :, -1:]
    return y.index_copy(0, bad, top), residual.index_fill(0, bad, 0.0)


def sign_rule(v: Tensor) -> Tensor:
    """Sign of max(v) + min(v) of each row, +1 at zero (Eq. 2): v (..., D) -> (..., 1)."""
    return torch.where(v.amax(-1, keepdim=True) + v.amin(-1, keepdim=True) < 0, -1.0, 1.0).to(v.dtype)


def student_component(maps: Tensor, u: Tensor) -> Tensor:
    """The student's component along the teacher's spatial pattern (Eq. 16): maps (B, D, H, W), u (B, HW) -> unit (B, D).

    Linear plus a normalisation: gradients pass through no decomposition. An image whose product is zero gives a zero vector.
    """
    return F.normalize(torch.bmm(maps.flatten(2), u.unsqueeze(2)).squeeze(2), dim=1, eps=1e-6)


def stereographic(p: Tensor) -> Tensor:
    """Unit vectors (B, D) to the plane orthogonal to o = 1 / sqrt(D) (Eq. 4): 2 (p + o) / (1 + p.o) - 2 o.

    The same as Eq. 4 by cos^2(t / 2) = (1 + cos t) / 2, without the arc cosine, whose gradient is infinite at p = o. A zero vector
    maps to the origin.
    """
    o = 1.0 / math.sqrt(p.shape[-1])
    return 2.0 * (p + o) / (1.0 + p.sum(-1, keepdim=True) * o) - 2.0 * o


def affinity(c: Tensor) -> Tensor:
    """Cosine of every pair of rows (Eq. 7): (N, K) -> (N, N)."""
    unit = F.normalize(c, dim=1)
    return unit @ unit.T


class Projection(nn.Module):
    """The second PCA as the networks see it: c = (stereographic(p) - mean) basis [* sigma]; all buffers, frozen in training.

    `scale` multiplies by sigma (Eq. 5 as printed; the student's Eq. 17 has none); applied to teacher and student alike.
    """

    def __init__(self, dim: int, keep: int, scale: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.zeros(dim, keep))
        self.register_buffer("sigma", torch.ones(keep))

    @torch.no_grad()
    def set(self, mean: Tensor, basis: Tensor, sigma: Tensor) -> None:
        """Take over the state of a PCA: mean (D,), orthonormal basis (D, K), sigma (K,) standard deviations."""
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.sigma.copy_(sigma)

    def forward(self, flat: Tensor) -> Tensor:
        """Points on the plane (N, D) -> coordinates (N, K)."""
        c = (flat - self.mean) @ self.basis
        return c * self.sigma if self.scale else c


def _principal(covariance: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` leading eigenvectors (D, K), signed by `sign_rule`, and standard deviations (K,) of a covariance matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :keep]
    return basis * sign_rule(basis.T).T, values.flip(0)[:keep].clamp_min(0).sqrt()


class _Stream:
    """What a PCA of a stream has seen, to be kept and taken up again; attributes named in `kept`."""

    kept: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Tensor | int]:
        return {name: getattr(self, name) for name in self.kept}

    def load(self, state: Mapping[str, Tensor | int]) -> None:
        for name in self.kept:
            value, present = state[name], getattr(self, name)
            setattr(self, name, value.to(present) if isinstance(value, Tensor) else value)


class CovariancePCA(_Stream):
    """PCA of a stream by its exact mean and covariance in float64; the order of the batches does not matter."""

    kept = ("count", "mean", "scatter")

    def __init__(self, dim: int, keep: int, device: torch.device | str = "cpu") -> None:
        self.keep, self.count = keep, 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Add a batch (N, D)."""
        x = rows.double()
        n, mean = x.shape[0], x.mean(0)
        centred, shift = x - mean, mean - self.mean
        total = self.count + n
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count = total

    def solve(self, near: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, basis (D, K), sigma (K,)) in float32. With `near` (D, K) the basis is turned inside its own span towards it, so that
        coordinates of nearly equal variance do not swap under a network that reads them."""
        basis, sigma = _principal(self.scatter / max(self.count, 1), self.keep)
        if near is not None:
            left, _, right = torch.linalg.svd(basis.T @ near.double())
            basis = basis @ (left @ right)
        return self.mean.float(), basis.float(), sigma.float()


class IncrementalPCA(_Stream):
    """PCA of a stream by one small SVD a batch (Ross et al., IJCV 2008): rows [X - mean_batch; S V^T; w (mean_old - mean_batch)].

    Args:
        old_mean: weight of the old mean in the moving average; None = the exact cumulative mean.
        ross: weigh the mean row by sqrt(n m / (n + m)) as Ross et al.; False = 1, as IEP's code; 0 in the first batch either way.
    """

    kept = ("count", "mean", "basis", "values")

    def __init__(self, dim: int, keep: int, device: torch.device | str = "cpu", old_mean: float | None = 0.9, ross: bool = True) -> None:
        self.keep, self.count, self.old_mean, self.ross = keep, 0, old_mean, ross
        self.mean = torch.zeros(dim, device=device)
        self.basis = torch.zeros(dim, keep, device=device)
        self.values = torch.zeros(keep, device=device)  # singular values of all rows so far

    def update(self, rows: Tensor) -> None:
        """Add a batch (N, D)."""
        n, mean = rows.shape[0], rows.mean(0)
        weight = math.sqrt(n * self.count / (n + self.count)) if self.ross else float(self.count > 0)  # before the first there is no old mean
        stack = torch.cat([rows - mean, self.values[:, None] * self.basis.T, weight * (self.mean - mean)[None]])
        _, values, vt = torch.linalg.svd(stack, full_matrices=False)
        kept = min(self.keep, values.shape[0])
        basis = vt[:kept].T
        self.basis = F.pad(basis * sign_rule(basis.T).T, (0, self.keep - kept))
        self.values = F.pad(values[:kept], (0, self.keep - kept))
        old = self.count / (self.count + n) if self.old_mean is None else self.old_mean
        self.mean = old * self.mean + (1.0 - old) * mean
        self.count += n

    def solve(self, near: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, basis (D, K), sigma (K,)); `near` is ignored, the basis follows the stream by itself."""
        return self.mean, self.basis, self.values / math.sqrt(max(self.count, 1))


def batch_pca(rows: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """PCA of one mini-batch alone (the ablation of Table 5): rows (N, D) -> (mean, basis (D, K), sigma (K,)). Reads the host."""
    mean = rows.mean(0)
    centred = rows - mean
    return mean, *_principal(centred.T @ centred / rows.shape[0], keep)
