"""How far the channels of a layer are in step: the eps-graph of their semantic vectors and of their activations."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.registry import register

GRID = tuple(round(0.02 * i, 2) for i in range(51))
"""eps of the curves that are drawn."""
BATCH = 100


@dataclass(frozen=True)
class Options:
    """The slides' values of eps."""

    eps: tuple[float, ...] = (0.1, 0.2, 0.3)  # distances 1 - cosine
    layers: tuple[str, ...] = ()  # none: every stage
    images: int = 2000  # test images for the activations
    dimensions: int = 16  # of the semantic vectors
    steps: int = 0  # of the Kuramoto dynamics on the vectors, at each eps, before they are measured once more

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError("sync.images is at least 2: the stability compares two halves")
        if not self.eps or self.dimensions < 1 or self.steps < 0:
            raise ValueError("sync: eps is at least one value, dimensions at least 1, steps at least 0")


@register("sync")
class Sync(Analysis):
    title = "Synchrony of channels"
    question = "Which channels of a layer point the same way, in semantic vectors and in activations, and do they form clusters?"
    source = "Han, Net2Vec and Sync (slides)"
    version = 2
    before = {1: "the stability took in the cosine of each channel with itself; between C channels it is C / (C - 1) times that"}
    needs = Needs(preparation="skd")
    Options = Options

    def prepares(self) -> dict[str, dict[str, Any]]:
        return {"skd": {"dimensions": self.options.dimensions}}

    def run(self, context) -> Result:
        import torch

        from bench.analysis.maths import eps_graph
        from methods.skd.loss import relation
        from models.randomness import generator

        options, subject = self.options, context.teacher
        layers = context.layers(subject, options.layers, stem=False)  # there are no vectors of it
        vectors = context.prepared(subject, "skd", self.prepares()["skd"]).tensors
        halves = _halves(context, subject, layers, count := context.count(options.images))
        facts, arrays = [], {}
        for layer in layers:
            s = vectors[f"S.{layer}"].double()
            random = torch.randn(s.shape, generator=generator(0, f"sync/random/{layer}"), dtype=torch.float64)
            first, second, whole = halves[layer]
            spaces = {
                "vectors": (1 - relation(s), None),
                "activations": (1 - torch.from_numpy(whole), _stability(first, second)),
                "random vectors": (1 - relation(random), None),
            }
            for space, (distances, stability) in spaces.items():
                found = [eps_graph.metrics(distances, e) for e in GRID]
                arrays[f"{layer}.{space}.curve"] = np.array([(m.with_neighbours, m.largest_cluster) for m in found], float)
                for eps in options.eps:
                    facts.append(_row(layer, space, eps, len(s), eps_graph.metrics(distances, eps), stability))
            for eps in options.eps if options.steps else ():
                moved = s / s.norm(dim=1, keepdim=True)
                for _ in range(options.steps):
                    moved = eps_graph.kuramoto_step(moved, eps)
                facts.append(_row(layer, f"vectors after {options.steps} steps", eps, len(s), eps_graph.metrics(1 - relation(moved), eps), None))
        return Result({"rows": facts, "images": count, "layers": list(layers)}, arrays)

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        rows = []
        for r in stored.facts["rows"]:
            distance = "–" if r["mean_distance"] is None else f"{r['mean_distance']:.3f}"
            stability = "" if r["stability"] is None else f"{r['stability']:.4f}"
            count = f"{r['with_neighbours']} of {r['channels']}"
            shown = (count, f"{r['mean_neighbours']:.1f}", str(r["largest_cluster"]), distance, stability)
            rows.append((r["layer"], r["space"], f"{r['eps']:g}", *shown))
        header = ("layer", "space", "eps", "with neighbours", "mean neighbours", "largest cluster", "mean distance", "stability (L1)")
        notes = (
            f"Distance: 1 - cosine; neighbours: at most eps apart. Activations: mean cosine over {stored.facts['images']} test images. "
            "Stability (our reading): mean change of a cosine between two halves of these images.",
        )
        return [Table("Channels within eps of each other", header, rows, notes)]

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        layers = stored.facts["layers"]
        figure = drawing.figure(1.0 + 1.25 * len(layers))
        panels = figure.subplots(len(layers), 1, squeeze=False, sharex=True)[:, 0]
        spaces = ("vectors", "activations", "random vectors")
        channels = {r["layer"]: r["channels"] for r in stored.facts["rows"]}
        said = []
        for axes, layer in zip(panels, layers, strict=True):
            for i, space in enumerate(spaces):
                curve = 100 * stored.arrays[f"{layer}.{space}.curve"][:, 1] / channels[layer]
                axes.plot(GRID, curve, markersize=3, markevery=(3 * i, 10), linewidth=1.1, label=space, **drawing.look(i))
                half = next((e for e, v in zip(GRID, curve, strict=True) if v >= 50), None)
                where = "at no eps up to 1" if half is None else f"at eps {half:g}"
                said.append(f"{layer}, {space}: half of the channels are in one cluster {where}")
            drawing.label(axes, y="largest\ncluster (%)", title=f"{layer}, {channels[layer]} channels")
            axes.set_ylim(-3, 103)
        panels[-1].set_xlabel("eps (1 - cosine)", fontsize=drawing.NORMAL)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=drawing.SMALL, frameon=False)
        caption = f"Largest cluster of the eps-graph against eps, {stored.subject}: semantic vectors, activations, random vectors"
        return [Drawing("clusters", caption, "; ".join(said) + ".", figure)]


def _halves(context, subject, layers: dict[str, int], count: int) -> dict[str, list[np.ndarray]]:
    """E[D^A] of each layer over the even batches of the test images, over the odd ones and over all, (C, C) fp64."""
    from bench.analysis.maths.compositions import MeanCosines

    sums = {layer: (MeanCosines(), MeanCosines()) for layer in layers}
    for i, (images, _) in enumerate(context.batches(count, min(BATCH, max(1, count // 2)))):
        maps = context.outputs(subject, images, ("stage",)).maps["stage"]
        for layer, at in layers.items():
            sums[layer][i % 2].add(maps[at])
    return {layer: [part.value().numpy() for part in (*both, both[0] + both[1])] for layer, both in sums.items()}


def _stability(first: np.ndarray, second: np.ndarray) -> float:
    """Mean change of the cosine of two channels, (C, C) twice; a channel's with itself, 1 on all images but those where it is silent, is left out."""
    return float(np.abs(first - second)[~np.eye(len(first), dtype=bool)].mean())


def _row(layer: str, space: str, eps: float, channels: int, metrics, stability: float | None) -> dict[str, Any]:
    return {"layer": layer, "space": space, "eps": eps, "channels": channels, **dataclasses.asdict(metrics), "stability": stability}
