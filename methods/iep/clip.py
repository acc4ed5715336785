"""Gradient clipping: each knowledge gradient is at most as long as the cross-entropy gradient (Lee and Song 2021, Eq. 20-21)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def clip_factors(target: Sequence[Tensor], knowledge: Sequence[Tensor], ratio: Tensor | float, whole: bool = False) -> list[Tensor]:
    """min(1, ratio |target| / |knowledge|) per tensor, or one factor from the norms over all tensors (`whole`).

    Eq. 21 prints max, which would never shorten a gradient; the authors' code family clips by norm, the minimum. A zero knowledge
    gradient stays zero. Tensors pairwise of any shape -> list of scalars, on their device, no host read.
    """
    main = torch.stack(torch._foreach_norm(list(target)))
    norms = torch.stack(torch._foreach_norm(list(knowledge)))
    if whole:
        main, norms = (torch.linalg.vector_norm(n).expand_as(n) for n in (main, norms))
    factors = (ratio * main / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
    return list(factors.unbind())


def write_clipped(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], ratio: Tensor | float, whole: bool = False, target: str = "ce"
) -> None:
    """Write `.grad` of `parameters`: the target loss's gradient plus every other loss's, each clipped by the target's (Eq. 20).

    One backward pass per loss over the same graph. A parameter that a loss does not reach takes nothing from it. A parameter that the
    target does not reach (a width adapter) has no bound: it takes the knowledge gradients as they are. One that no loss reaches gets
    None, as after a plain backward pass.
    """
    parameters = list(parameters)
    others = [name for name in losses if name != target and losses[name].requires_grad]
    last = others[-1] if others else target
    main = torch.autograd.grad(losses[target], parameters, retain_graph=bool(others), allow_unused=True)
    total = list(main)
    for name in others:
        found = torch.autograd.grad(losses[name], parameters, retain_graph=name != last, allow_unused=True)
        clipped = [i for i, g in enumerate(found) if g is not None and main[i] is not None]
        if clipped:
            knowledge = [found[i] for i in clipped]
            factors = clip_factors([main[i] for i in clipped], knowledge, ratio, whole)
            sums = torch._foreach_add([total[i] for i in clipped], torch._foreach_mul(knowledge, factors))
            for i, value in zip(clipped, sums, strict=True):
                total[i] = value
        for i, g in enumerate(found):
            if g is not None and main[i] is None:
                total[i] = g if total[i] is None else total[i] + g
    for parameter, g in zip(parameters, total, strict=True):
        # Fused optimisers walk gradient and parameter in memory order; `backward` matches the two, `autograd.grad` does not.
        if g is not None and g.stride() != parameter.stride():
            g = torch.empty_like(parameter).copy_(g)
        parameter.grad = g
