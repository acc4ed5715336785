"""Network dissection: which channels detect which human concepts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.registry import register

SHOWN, ACROSS = 4, 5
"""Detectors that are drawn for the last layer, and images of each."""


@dataclass(frozen=True)
class Options:
    """NetDissect's values, and Net2Vec's order of thresholding and upsampling."""

    quantile: float = 0.005  # fraction of a channel's activations above its threshold
    detector: float = 0.04  # IoU above which a channel is a detector
    order: str = "threshold"  # or upsample (NetDissect)
    over: str = "category"  # or concept: over which images a channel's activations enter the union
    layers: tuple[str, ...] = ()  # none: every stage
    images: int = 10000  # at most
    probe: str = "data"  # or a Broden folder

    def __post_init__(self) -> None:
        for name, allowed in (("order", ("threshold", "upsample")), ("over", ("category", "concept"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"dissect.{name} is {getattr(self, name)!r}; it is {' or '.join(allowed)}")
        if not 0 < self.quantile < 1 or self.images < 1:
            raise ValueError("dissect.quantile lies between 0 and 1, dissect.images is at least 1")


class Probing(Analysis):
    """An analysis with an option `probe`: a folder names the result by what it holds, not by where it lies."""

    def identity(self) -> dict[str, Any]:
        """Raises UsageError for a folder without its tables."""
        found = super().identity()
        if self.options.probe != "data":
            from bench.analysis.probes.broden import fingerprint

            found["options"]["probe"] = f"broden {fingerprint(Path(self.options.probe))}"
        return found


@register("dissect")
class Dissect(Probing):
    title = "Network dissection"
    question = "Which channels of each layer are detectors of a concept that people have a word for?"
    source = "Bau et al., Network Dissection: Quantifying Interpretability of Deep Visual Representations, CVPR 2017"
    needs = Needs(concepts=True)
    Options = Options

    def run(self, context) -> Result:
        from bench.analysis.maths.dissection import Counts, detectors
        from bench.analysis.maths.passes import counted, strongest_images, thresholds
        from bench.analysis.probes.base import categories
        from bench.analysis.probes.own import probe

        options, subject = self.options, context.teacher
        layers = context.layers(subject, options.layers)
        images = probe(options.probe, context, options.images)
        names, group_of = categories(images.concepts)
        first = context.part("thresholds", lambda: thresholds(context, subject, layers, images, options.quantile))
        sums = context.part("counts", lambda: counted(context, subject, layers, images, first, group_of, options.order))
        rows, best, arrays = [], [], {}
        for layer in layers:
            channels = len(first[f"{layer}.thresholds"])
            counts = Counts.of(sums, layer, channels, group_of)
            iou = counts.iou_set(options.over)
            concept, is_detector, unique = detectors(iou, group_of, options.detector)
            silent = int((first[f"{layer}.strongest"].max(0) <= 0).sum())
            by_category = {names[g]: n for g, n in unique.items()}
            rows.append({"layer": layer, "channels": channels, "silent": silent, "detectors": int(is_detector.sum()), "unique": by_category})
            arrays |= {f"{layer}.iou_set": iou.numpy(), f"{layer}.iou_individual": counts.iou_individual().numpy()}
            arrays[f"{layer}.thresholds"] = first[f"{layer}.thresholds"]
            order = iou.max(1).values.argsort(descending=True, stable=True)
            for channel in order[:10].tolist():
                value, k = iou[channel].max().item(), int(concept[channel])
                best.append({"layer": layer, "channel": channel, "concept": images.concepts[k].name, "category": images.concepts[k].category})
                best[-1] |= {"iou": value, "individual": arrays[f"{layer}.iou_individual"][channel, k].item()}
        last = list(layers)[-1]
        drawn = [row["channel"] for row in best if row["layer"] == last][:SHOWN]
        arrays |= strongest_images(context, subject, layers[last], images, first, last, drawn, ACROSS, options.order)
        facts = {"layers": rows, "best": best, "categories": list(names), "concepts": [[c.name, c.category] for c in images.concepts]}
        return Result({**facts, "images": images.count, "probe": images.name, "drawn": drawn, "drawn_layer": last}, arrays)

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts, options = stored.facts, stored.options
        rows = []
        for r in facts["layers"]:
            unique = [str(r["unique"][c]) for c in facts["categories"]]
            rows.append((r["layer"], str(r["channels"]), str(r["silent"]), str(r["detectors"]), str(sum(r["unique"].values())), *unique))
        header = ("layer", "channels", "silent", "detectors", "unique concepts", *facts["categories"])
        notes = (
            f"Detector: set IoU above {options['detector']:g} with its best concept. Active: the top {options['quantile']:.1%} of a channel's "
            f"activations over {facts['images']} images. Probe: {facts['probe']}, {len(facts['concepts'])} concepts.",
        )
        best = [
            (r["layer"], str(r["channel"]), r["concept"], r["category"], f"{r['iou']:.3f}", f"{r['individual']:.3f}")
            for layer in facts["layers"]
            for r in [b for b in facts["best"] if b["layer"] == layer["layer"]][:5]
        ]
        header_best = ("layer", "channel", "best concept", "category", "set IoU", "individual IoU")
        return [Table("Detectors by layer", header, rows, notes), Table("The five best channels of each layer", header_best, best)]

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        facts, layers = stored.facts, stored.facts["layers"]
        figure = drawing.figure(2.0)
        axes = figure.subplots()
        said = []
        for i, row in enumerate(layers):
            curve = np.sort(stored.arrays[f"{row['layer']}.iou_set"].max(1))[::-1]
            share = 100 * (np.arange(len(curve)) + 0.5) / len(curve)
            axes.plot(share, curve, linewidth=1.1, markersize=3, markevery=max(1, len(curve) // 8), label=row["layer"], **drawing.look(i))
            said.append(f"{row['layer']}: {row['detectors']} of {row['channels']} channels are detectors, best IoU {curve[0]:.3f}")
        axes.axhline(stored.options["detector"], color="0.5", linewidth=0.8)
        axes.annotate("detector", (100, stored.options["detector"]), ha="right", va="top", fontsize=drawing.SMALL, color="0.3")
        axes.set_ylim(0)
        drawing.label(axes, "channels, best first (%)", "set IoU with best concept")
        axes.legend(fontsize=drawing.SMALL, frameon=False)
        out = [Drawing("iou", f"IoU of every channel with its best concept, {stored.subject}", "; ".join(said) + ".", figure)]
        best = {r["channel"]: r for r in facts["best"] if r["layer"] == facts["drawn_layer"]}
        labels = [f"{channel}: {best[channel]['concept'].split('/')[0]} {best[channel]['iou']:.2f}" for channel in facts["drawn"]]
        pictures = drawing.tiles(stored.arrays["drawn.images"], stored.arrays["drawn.masks"], labels)
        words = f"The images on which the best channels of {facts['drawn_layer']} are strongest, bright where they are active: "
        words += "; ".join(f"channel {label.replace(':', ' for', 1)} IoU" for label in labels) + "."
        out.append(Drawing("detectors", f"Best detectors of {facts['drawn_layer']}, {stored.subject}: channel, concept, IoU", words, pictures))
        return out
