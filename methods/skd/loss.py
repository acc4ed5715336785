"""Pure functions of SKD: relations between channels, row distributions, entropies and the static loss (Han et al. 2022, Eq. 1 and 2).

Words: C channels, K dimensions of a semantic vector, D = H * W pixels. A relation is the matrix of cosines between channels; a row
distribution is its row softmax. Everything is in nats.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-8
"""Added to squared norms: a zero map gets cosine 0 with all maps, itself too, and a finite gradient."""

CHUNK = (2**18, 2**23)
"""Elements of the relations made at a time, on a CPU and on a GPU: 1 MB (its cache) and 32 MB."""


def rows(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) -> (B, C, H * W), at least fp32; a view for contiguous and channels-last maps alike."""
    flat = maps.flatten(2)
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat


def relation(x: Tensor) -> Tensor:
    """Cosines between rows, x (..., C, D) -> (..., C, C): x_i . x_j / (n_i n_j), n_i = sqrt(|x_i|^2 + 1e-8). Differentiable.

    The product is taken first and scaled after, so that no normalised copy of the maps is made.
    """
    gram = x @ x.mT
    inverse = (gram.diagonal(dim1=-2, dim2=-1) + EPS).rsqrt()
    return gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)


def _masked(logits: Tensor, diagonal: bool) -> Tensor:
    if diagonal:
        return logits
    return logits.masked_fill(torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device), -math.inf)


def distribution(cosines: Tensor, temperature: float = 1.0, diagonal: bool = True) -> Tensor:
    """p(j|i) = softmax_j(cos_ij / T), (..., C, C) -> (..., C, C); without `diagonal` j = i is left out (p(i|i) = 0)."""
    return _masked(cosines / temperature, diagonal).softmax(-1)


def embedding_loss(vectors: Tensor, target: Tensor, temperature: float = 1.0, diagonal: bool = True) -> Tensor:
    """Eq. 1 for one layer: -1/C sum_ij p_ij log q_ij, q the distribution of `vectors` (C, K), target p (C, C) -> scalar.

    Linear in p: the mean over images equals this loss at the mean of the images' distributions.
    """
    logits = relation(vectors) / temperature
    level = _masked(logits, diagonal).logsumexp(-1)
    return (level - (target * logits).sum(-1)).mean()  # the rows of p sum to 1, and p_ii = 0 without the diagonal


def mean_distribution(maps: Tensor, temperature: float = 1.0, diagonal: bool = True) -> Tensor:
    """P = mean over images of p(j|i), maps (B, C, H, W) -> (C, C) float64: where Eq. 1 has its unconstrained optimum (q = P)."""
    p = distribution(relation(rows(maps)), temperature, diagonal)
    return p.sum(0, dtype=torch.float64) / len(maps)


def entropy(target: Tensor) -> Tensor:
    """Mean entropy of the rows of P (C, C) -> scalar; entries of 0 count 0."""
    return torch.special.entr(target).sum(-1).mean()


def kl_left(target: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of KL(P_i || q_i), both (C, C) -> scalar: what a fit leaves of its target (L_emb - H(P))."""
    return (torch.special.xlogy(target, target) - torch.special.xlogy(target, q)).sum(-1).mean()


class _StaticLoss(torch.autograd.Function):
    """The forward pass makes the gradient too, a few images at a time: a symmetric (C, C) matrix times each image's map. No relation
    is kept for the backward pass, and on a CPU the relations of a chunk stay in the cache."""

    @staticmethod
    def forward(ctx, maps: Tensor, target: Tensor, temperature: float, diagonal: bool) -> Tensor:
        chunk = max(1, CHUNK[maps.device.type != "cpu"] // target.numel())
        gradient = torch.empty_like(maps) if ctx.needs_input_grad[0] else None  # in the maps' memory format
        with torch.autocast(maps.device.type, enabled=False):
            parts = [
                _chunk_loss(x, target, temperature, diagonal, None if gradient is None else gradient[i * chunk : (i + 1) * chunk])
                for i, x in enumerate(maps.split(chunk))
            ]
            ctx.scale = 1 / (maps.shape[0] * maps.shape[1])
            if gradient is not None:
                ctx.save_for_backward(gradient)
            return torch.stack(parts).sum() * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * (grad * ctx.scale), None, None, None


def _chunk_loss(maps: Tensor, target: Tensor, temperature: float, diagonal: bool, gradient: Tensor | None) -> Tensor:
    """Sum of the row losses of some images, (b, C, H, W); its gradient is written to `gradient`, of the same shape and strides.

    With u_i = x_i / n_i, z_ij = u_i . u_j / T and E = q - p, d/dx_i = (sum_j M_ij u_j - (sum_j M_ij T z_ij) u_i) / (n_i T), M = E + E^T.
    """
    x = maps.flatten(2)
    z = torch.bmm(x, x.mT)
    inverse = (z.diagonal(dim1=1, dim2=2) + EPS).rsqrt()  # 1 / n
    column, row = inverse.unsqueeze(2), inverse.unsqueeze(1)
    z.mul_(column / temperature).mul_(row)
    linear = (z.sum(0) * target).sum()  # p_ii = 0 without the diagonal
    if not diagonal:
        z.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    top = z.amax(2, keepdim=True)
    error = (z - top).exp_()
    total = error.sum(2, keepdim=True)
    loss = (top + total.log()).sum() - linear
    if gradient is None:
        return loss
    error.div_(total).sub_(target)
    if not diagonal:
        z.diagonal(dim1=1, dim2=2).zero_()
    weight = error + error.mT
    radial = z.mul_(weight).sum(2)
    weight.mul_(column / temperature).mul_(row)
    weight.diagonal(dim1=1, dim2=2).sub_(radial.mul_(inverse.square()))
    out = gradient.flatten(2)
    if x.stride(1) == 1:  # channels last
        torch.bmm(x.mT, weight, out=out.mT)
    else:
        torch.bmm(weight, x, out=out)
    return loss


def static_loss(maps: Tensor, target: Tensor, temperature: float = 1.0, diagonal: bool = True) -> Tensor:
    """Eq. 2 for one layer: mean over images and rows of -sum_j p(j|i) log q(j|i), q the images' own distributions -> scalar.

    maps (B, C, H, W) of the student, target p (C, C) constant. Row loss: logsumexp_j(cos_ij / T) - sum_j p_ij cos_ij / T. At least
    fp32 whatever autocast says. Kept for the backward pass: the gradient, as large as the maps, and
    no (B, C, C) relation. Differentiable once.
    """
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    if not maps.is_contiguous(memory_format=torch.channels_last):
        maps = maps.contiguous()
    return _StaticLoss.apply(maps, target, temperature, diagonal)


def skd_loss(
    maps: Sequence[Tensor], targets: Sequence[Tensor], temperature: float = 1.0, diagonal: bool = True, sum_over: str = "none"
) -> Tensor:
    """Eq. 2: the mean of `static_loss` over layers; maps[l] (B, C_l, H_l, W_l), targets[l] (C_l, C_l) -> scalar.

    `sum_over`: "images" or "rows" takes the sum over the batch's images (x B) or over a layer's rows (x C_l) in place of the mean.
    """
    factors = {"none": lambda x: 1, "images": len, "rows": lambda x: x.shape[1]}[sum_over]
    terms = [factors(x) * static_loss(x, p, temperature, diagonal) for x, p in zip(maps, targets, strict=True)]
    return torch.stack(terms).mean()
