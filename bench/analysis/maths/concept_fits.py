"""The fits of concept vectors for one network and probe: what is gathered, the segmentations, the classifications."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.analysis.maths import concept_vectors as cv
from bench.analysis.probes.base import Probe, categories
from models.randomness import generator

BATCH = 100


def gather(context, subject, layers: Mapping[str, int], probe: Probe, first: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each layer "<layer>.on": where channels are above their thresholds, packed bits, "<layer>.shape" its shape (N, C, H, W), and
    "<layer>.pooled" (N, C), the mean activation."""
    bits: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    pooled: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    shapes = {}
    for batch in context.progress(probe.batches(BATCH), -(-probe.count // BATCH), f"maps, batches of {BATCH}"):
        maps = context.outputs(subject, batch.images, ("stage",)).maps["stage"]
        for layer, at in layers.items():
            limit = torch.from_numpy(first[f"{layer}.thresholds"]).to(maps[at].device)
            on = (maps[at] > limit[:, None, None]).cpu().contiguous().numpy()
            shapes[layer] = on.shape[1:]
            bits[layer].append(np.packbits(on.reshape(len(on), -1), axis=1))
            pooled[layer].append(maps[at].mean((2, 3)).cpu().numpy())
    out = {}
    for layer in layers:
        out |= {f"{layer}.on": np.concatenate(bits[layer]), f"{layer}.pooled": np.concatenate(pooled[layer])}
        out[f"{layer}.shape"] = np.array((probe.count, *shapes[layer]))
    return out


def unpacked(seen: Mapping[str, np.ndarray], layer: str, ids: Tensor) -> Tensor:
    """Where channels are active on the images `ids`: bool (n, C, H, W)."""
    _, *shape = seen[f"{layer}.shape"].tolist()
    flat = np.unpackbits(seen[f"{layer}.on"][ids.numpy()], axis=1, count=int(np.prod(shape)))
    return torch.from_numpy(flat.reshape(-1, *shape).astype(bool))


@dataclass
class Labels:
    """What the images show, and which concepts there are images enough for."""

    planes: list[Tensor]  # of each image int16 (n, S, S), all categories labelled by pixel
    has: Tensor  # bool (N, K): whether an image shows a concept
    train: Tensor  # places of the images that train, in the order drawn
    test: Tensor  # and of those that test
    segmented: list[int]  # concepts labelled by pixel, to be segmented
    told: list[int]  # concepts to be told from images without
    left_out: int
    options: Any
    names: list[str]
    groups: list[int]  # the category of each concept

    def halves(self, concept: int) -> tuple[Tensor, Tensor]:
        """The images that show it, to train (at most options.most_images) and to test."""
        train, test = (half[self.has[half, concept]] for half in (self.train, self.test))
        return train[: self.options.most_images], test

    def masks(self, concept: int, ids: Tensor) -> Tensor:
        """bool (n, S, S)."""
        return torch.stack([(self.planes[i] == concept + 1).any(0) for i in ids.tolist()])


def halves(count: int) -> tuple[Tensor, Tensor]:
    """Places of the images that train and of those that test, drawn: embedded images have their classes in turn, so that even and odd places
    share none of them."""
    order = torch.randperm(count, generator=generator(0, "concepts/halves"))
    return order[::2], order[1::2]


def labelled(probe: Probe, options) -> Labels:
    """Read the probe's labels. By pixel: segmented. Of whole images, or where there are none by pixel too: told from images without."""
    planes: list[Tensor] = []
    count = len(probe.concepts)
    has = torch.zeros(probe.count, count + 1, dtype=torch.bool)
    by_pixel, whole = torch.zeros(count + 1, dtype=torch.bool), torch.zeros(count + 1, dtype=torch.bool)
    for batch in probe.batches(BATCH):
        start = len(planes)
        stacked = torch.cat(batch.pixels, 1).to("cpu", torch.int16) if batch.pixels else torch.zeros(len(batch.images), 1, 1, 1, dtype=torch.int16)
        planes += list(stacked)
        for i, one in enumerate(stacked):
            shown = one.unique().long()
            has[start + i, shown], by_pixel[shown] = True, True
        labels = batch.whole.cpu()
        if labels.shape[1]:
            has[start : start + len(labels)].scatter_(1, labels, True)
            whole[labels.unique()] = True
    has, by_pixel, whole = has[:, 1:], by_pixel[1:], whole[1:]
    train, test = halves(probe.count)
    often = torch.minimum(has[train].sum(0), has[test].sum(0))
    enough = often >= options.least_images
    candidates = (by_pixel & enough).nonzero().flatten()
    segmented = candidates[often[candidates].argsort(descending=True, stable=True)[: options.most_concepts]].sort().values.tolist()
    without = torch.minimum((~has[train]).sum(0), (~has[test]).sum(0)) >= options.least_images
    told = ((whole if whole.any() else by_pixel) & enough & without).nonzero().flatten().tolist()
    left_out = int(((by_pixel | whole) & ~enough).sum())
    return Labels(planes, has, train, test, segmented, told, left_out, options, [c.name for c in probe.concepts], categories(probe.concepts)[1])


def segmented(context, layer: str, seen: Mapping[str, np.ndarray], labels: Labels, options) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Facts of each concept, and its vector: (K, C). A concept's fit is a part of its own."""
    found = []
    for concept in context.progress(labels.segmented, len(labels.segmented), f"{layer}, concepts segmented"):
        found.append(context.part(f"{layer}-{concept}", lambda concept=concept: _segment(layer, seen, labels, concept, options)))
    channels = int(seen[f"{layer}.shape"][1])
    vectors = np.stack([f["weights"] for f in found]) if found else np.zeros((0, channels), np.float32)
    near = _nearest(vectors, labels.segmented, labels.names)
    rows = []
    for f, (nearest, cosine) in zip(found, near, strict=True):
        row = {name: int(f[name]) for name in ("channel", "needed", "train", "test")} | {name: float(f[name]) for name in ("single", "all")}
        rows.append(row | {"needed": row["needed"] or None, "nearest": nearest, "cosine": cosine})
    return rows, vectors


def _segment(layer: str, seen, labels: Labels, concept: int, options) -> dict[str, np.ndarray]:
    train, test = labels.halves(concept)
    on, label = unpacked(seen, layer, train), labels.masks(concept, train)
    on_test, label_test = unpacked(seen, layer, test), labels.masks(concept, test)
    draw = generator(options.seed, f"concepts/{layer}/{concept}")
    weights = cv.fit(on, label, torch.ones(on.shape[1], dtype=torch.bool), options, draw)
    channel = int(cv.single(on, label).argmax())
    every = cv.iou(on_test, label_test, weights)
    needed, count = len(weights) if every else 0, 1  # 0: where all channels reach nothing, no number of them is needed
    while every and count < len(weights):
        few = cv.fit(on, label, cv.strongest(weights, count), options, draw)
        if cv.iou(on_test, label_test, few) >= options.share * every:
            needed = count
            break
        count *= 2
    alone = cv.single(on_test, label_test)[channel]
    counts = {"needed": needed, "train": len(train), "test": len(test), "channel": channel}
    return {"weights": weights.numpy(), "single": alone.numpy(), "all": np.array(every), **{n: np.array(v) for n, v in counts.items()}}


def classified(layer: str, seen: Mapping[str, np.ndarray], labels: Labels) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Facts of each concept, and its vector: (K, C)."""
    pooled = torch.from_numpy(seen[f"{layer}.pooled"])
    train, test = pooled[labels.train], pooled[labels.test]
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    train, test = (train - mean) / spread, (test - mean) / spread
    y_train, y_test = labels.has[labels.train][:, labels.told], labels.has[labels.test][:, labels.told]
    if not labels.told:
        return [], np.zeros((0, pooled.shape[1]), np.float32)
    weights, bias = cv.classify(train, y_train)
    every = cv.auc(test @ weights.T + bias, y_test).diagonal()
    channel = cv.auc(train, y_train).argmax(1)
    single = cv.auc(test, y_test).gather(1, channel[:, None])[:, 0]
    groups = torch.tensor([labels.groups[k] for k in labels.told])
    near = _nearest(weights.numpy(), labels.told, labels.names, groups[:, None] == groups)  # a class lies in its coarse class
    rows = [
        {"channel": c, "single": s, "all": a, "nearest": name, "cosine": cosine}
        for c, s, a, (name, cosine) in zip(channel.tolist(), single.tolist(), every.tolist(), near, strict=True)
    ]
    return rows, weights.numpy()


def _nearest(vectors: np.ndarray, which: list[int], names: list[str], among: Tensor | None = None) -> list[tuple[str, float]]:
    """For each vector the name of the one with the largest cosine to it, of those that `among` bool (K, K) allows, and that cosine; "–" and 0
    where there is none."""
    if len(which) < 2:
        return [("–", 0.0)] * len(which)
    unit = cv.unit(torch.from_numpy(vectors))
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    value, at = (cosines if among is None else cosines.masked_fill(~among, -2)).max(1)
    return [(names[which[i]], v) if v > -2 else ("–", 0.0) for i, v in zip(at.tolist(), value.tolist(), strict=True)]
