"""Passes over a probe's images that several analyses make: thresholds of channels, counts for IoU, the images that excite a channel."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bench.analysis.maths.dissection import Counts, TopQuantile, active
from bench.analysis.probes.base import Probe

BATCH = 100


def _maps(context, subject, probe: Probe, layers: Mapping[str, int], what: str):
    """(annotated batch, maps of each layer) over the probe, with progress."""
    steps = -(-probe.count // BATCH)
    for batch in context.progress(probe.batches(BATCH), steps, f"{what}, batches of {BATCH}"):
        maps = context.outputs(subject, batch.images, ("stage",)).maps["stage"]
        yield batch, {layer: maps[at] for layer, at in layers.items()}


def thresholds(context, subject, layers: Mapping[str, int], probe: Probe, quantile: float) -> dict[str, np.ndarray]:
    """For each layer "<layer>.thresholds" (C,) fp32 and "<layer>.strongest" (N, C) fp32, each channel's largest activation on each image."""
    shapes = context.shapes(subject).maps["stage"]
    tops = {layer: TopQuantile(shapes[at][0], probe.count * shapes[at][1] * shapes[at][2], quantile) for layer, at in layers.items()}
    strongest: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for _, maps in _maps(context, subject, probe, layers, "thresholds"):
        for layer, found in maps.items():
            tops[layer].add(found.transpose(0, 1).flatten(1))
            strongest[layer].append(found.amax((2, 3)).cpu().numpy())
    out = {f"{layer}.thresholds": top.value().numpy() for layer, top in tops.items()}
    return out | {f"{layer}.strongest": np.concatenate(parts) for layer, parts in strongest.items()}


def counted(
    context, subject, layers: Mapping[str, int], probe: Probe, first: Mapping[str, np.ndarray], categories: Sequence[int], order: str
) -> dict[str, np.ndarray]:
    """The sums of `Counts` for each layer, as "<layer>.<sum>"; `first`: what `thresholds` gave."""
    limits = {layer: torch.from_numpy(first[f"{layer}.thresholds"]).to(context.device) for layer in layers}
    counts = {layer: Counts(len(limits[layer]), categories) for layer in layers}
    for batch, maps in _maps(context, subject, probe, layers, "IoU"):
        for layer, found in maps.items():
            counts[layer].add(active(found, limits[layer], probe.size, order), batch.pixels, batch.whole)
    return {f"{layer}.{name}": value.numpy() for layer, one in counts.items() for name, value in one.tensors.items()}


def strongest_images(
    context, subject, at: int, probe: Probe, first: Mapping[str, np.ndarray], layer: str, channels: Sequence[int], count: int, order: str
) -> dict[str, np.ndarray]:
    """"drawn.images" uint8 (R, count, 3, S, S) and "drawn.masks" bool (R, count, S, S): for each channel the images on which it is strongest."""
    count = min(count, probe.count)
    wanted = [np.argsort(-first[f"{layer}.strongest"][:, c], kind="stable")[:count].tolist() for c in channels]
    limit = torch.from_numpy(first[f"{layer}.thresholds"]).to(context.device)
    found = [images_and_masks(context, subject, at, probe, ids, limit, [c], order) for c, ids in zip(channels, wanted, strict=True)]
    return {"drawn.images": np.stack([images for images, _, _ in found]), "drawn.masks": np.stack([masks[0] for _, masks, _ in found])}


def _half(maps: torch.Tensor) -> torch.Tensor:
    """Half of the maximum of each channel of (1, C, H, W), or the middle of its range where that is not above 0: (C,)."""
    high, low = maps.amax((0, 2, 3)), maps.amin((0, 2, 3))
    return torch.where(high > 0, high, high + low) / 2


def images_and_masks(
    context, subject, at: int, probe: Probe, ids: Sequence[int], limit: torch.Tensor, channels: Sequence[int], order: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images `ids` uint8 (n, 3, S, S), where each of the R channels is active on them bool (R, n, S, S), and whether that is above its
    threshold, bool (R, n): on an image where it is nowhere, the mask is where its map lies above half of its maximum there,
    or, of a map that is nowhere above 0, in the upper half of its range."""
    shown, masks, strong = [], [], []
    for i in ids:
        batch = next(iter(probe.batches(1, i, i + 1)))
        found = context.outputs(subject, batch.images, ("stage",)).maps["stage"][at]
        shown.append(batch.shown[0].cpu().numpy())
        on = active(found, limit, probe.size, order)[0, list(channels)]
        half = active(found, _half(found), probe.size, order)[0, list(channels)]
        above = on.any(2).any(1)
        masks.append(torch.where(above[:, None, None], on, half).cpu().numpy())
        strong.append(above.cpu().numpy())
    return np.stack(shown), np.stack(masks, 1), np.stack(strong, 1)
