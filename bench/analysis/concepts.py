"""Net2Vec: a concept as a vector of weights over the channels of a layer."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.dissect import Probing
from bench.analysis.frame import drawing
from bench.analysis.frame.base import Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.registry import register
from bench.errors import UsageError

SUMS = ("red+yellow", "red+white", "black+white", "green+blue")
"""Arithmetic that is tried where its concepts are there and none is asked for."""


@dataclass(frozen=True)
class Options:
    """Net2Vec's values; images, concepts and the share of the filters bound the work."""

    quantile: float = 0.005
    rate: float = 1e-4  # at 112 x 112 pixels
    epochs: int = 30
    batch: int = 16
    layers: tuple[str, ...] = ()  # none: every stage
    images: int = 4000  # of the probe: half of them, drawn, train, the others test
    most_images: int = 500  # of a concept, to train a segmentation on
    least_images: int = 10  # of a concept in each half; others are left out
    most_concepts: int = 40  # that are segmented, the most frequent
    share: float = 0.9  # of the IoU of all channels that "channels needed" reaches
    arithmetic: tuple[str, ...] = ()  # as red+white-yellow
    probe: str = "data"  # or a Broden folder
    seed: int = 0  # of the weights' initial values and the order of images

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1 or not 0 < self.share <= 1:
            raise ValueError("concepts.quantile and concepts.share lie between 0 and 1")
        if min(self.epochs, self.batch, self.images, self.most_images, self.least_images, self.most_concepts) < 1 or self.rate <= 0:
            raise ValueError("concepts: counts are at least 1, rate above 0")


@register("concepts")
class Concepts(Probing):
    title = "Concept vectors"
    question = "Is a concept in one channel or spread over many, and do the weights of concepts relate as the words do?"
    source = "Fong and Vedaldi, Net2Vec: Quantifying and Explaining how Concepts are Encoded by Filters, CVPR 2018"
    version = 2
    before = {1: "images at even places trained, at odd ones tested; a concept of which all channels find nothing needed one"}
    needs = Needs(concepts=True)
    Options = Options

    def run(self, context) -> Result:
        from bench.analysis.maths.concept_fits import classified, gather, labelled, segmented
        from bench.analysis.maths.passes import thresholds
        from bench.analysis.probes.own import probe

        options, subject = self.options, context.teacher
        layers = context.layers(subject, options.layers)
        images = probe(options.probe, context, options.images)
        names = [c.name for c in images.concepts]
        asked = [(text, *_terms(text, names)) for text in options.arithmetic]
        labels = labelled(images, options)
        if not labels.segmented and not labels.told:
            few = f"no concept has {options.least_images} images in each half of {images.count}"
            raise UsageError(f"{few}: take more with --set images=N, or ask for fewer of a concept with --set least_images=N")
        first = context.part("thresholds", lambda: thresholds(context, subject, layers, images, options.quantile))
        seen = context.part("maps", lambda: gather(context, subject, layers, images, first))
        tried = asked or [(t, *_terms(t, names)) for t in SUMS if set(re.split(r"[+-]", t)) <= set(names)]
        facts, segments, told, sums, arrays = [], [], [], [], {}
        for layer in layers:
            one, vectors = segmented(context, layer, seen, labels, options)
            two, classes = classified(layer, seen, labels)
            groups = {"segmentation": (labels.segmented, vectors, one), "classification": (labels.told, classes, two)}
            for kind, (which, found, _) in groups.items():
                arrays[f"{layer}.{kind}"] = found
                arrays[f"{layer}.{kind}.concepts"] = np.array(which, dtype=np.int64)
                sums += _arithmetic(layer, kind, which, found, tried, names)
            segments += [{"layer": layer, "concept": names[k], **row} for k, row in zip(labels.segmented, one, strict=True)]
            told += [{"layer": layer, "concept": names[k], **row} for k, row in zip(labels.told, two, strict=True)]
            facts.append({"layer": layer, **_summary(one, two), **_same_group(context.dataset, images.concepts, labels.told, classes)})
        return Result(
            {
                "layers": facts,
                "segmentation": segments,
                "classification": told,
                "arithmetic": sums,
                "concepts": names,
                "images": images.count,
                "probe": images.name,
                "left_out": labels.left_out,
            },
            arrays,
        )

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts = stored.facts
        rows = []
        for r in facts["layers"]:
            ratio = "–" if r["ratio"] is None else f"{r['ratio']:.1f}"
            seg = (f"{r['single']:.3f}", f"{r['all']:.3f}", ratio, _count(r["needed"])) if r["segmented"] else ("–",) * 4
            told = (f"{r['auc_single']:.3f}", f"{r['auc_all']:.3f}") if r["told"] else ("–", "–")
            near = "–" if r.get("same_group") is None else f"{r['same_group']:.0%} ({r['chance']:.0%})"
            rows.append((r["layer"], str(r["segmented"]), *seg, str(r["told"]), *told, near))
        header = ("layer", "segmented", "IoU, one", "IoU, all", "all / one", "channels needed", "told", "AUC, one", "AUC, all", "nearest in group")
        notes = (
            f"Mean over concepts, on images not trained on ({facts['images']} in all; probe: {facts['probe']}; {facts['left_out']} concepts with "
            f"too few images left out). Channels needed: median, for {stored.options['share']:.0%} of the IoU of all, tried by doubling. "
            "AUC: chance is 0.5. Nearest in group: classes whose nearest vector is one of the same coarse class (by chance).",
        )
        out = [Table("One channel against all", header, rows, notes)]
        last = facts["layers"][-1]["layer"]
        seg = [r for r in facts["segmentation"] if r["layer"] == last]
        if seg:
            lines = [
                (r["concept"], str(r["channel"]), f"{r['single']:.3f}", f"{r['all']:.3f}", _count(r["needed"]), _nearest(r))
                for r in sorted(seg, key=lambda r: -r["all"])
            ]
            out.append(Table(f"Segmentation by {last}", ("concept", "best channel", "IoU, one", "IoU, all", "channels needed", "nearest"), lines))
        told = sorted((r for r in facts["classification"] if r["layer"] == last), key=lambda r: -r["cosine"])[:10]
        if told:
            lines = [(r["concept"], f"{r['single']:.3f}", f"{r['all']:.3f}", _nearest(r)) for r in told]
            title = f"Classification by {last}: the ten nearest neighbours of one category"
            out.append(Table(title, ("concept", "AUC, one", "AUC, all", "nearest"), lines))
        if facts["arithmetic"]:
            lines = [(r["layer"], r["kind"], r["text"], _nearest(r)) for r in facts["arithmetic"]]
            out.append(Table("Arithmetic", ("layer", "vectors", "sum", "nearest"), lines))
        return out

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        facts = stored.facts
        kinds = [k for k in ("segmentation", "classification") if facts[k]]
        if not kinds:
            return []
        figure = drawing.figure(2.0)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        said = []
        for axes, kind in zip(panels, kinds, strict=True):
            for i, row in enumerate(facts["layers"]):
                points = [(r["single"], r["all"]) for r in facts[kind] if r["layer"] == row["layer"]]
                style = {**drawing.look(i), "linestyle": ""}
                axes.plot(*zip(*points, strict=True), markersize=2.6, alpha=0.8, label=row["layer"], markeredgewidth=0.3, **style)
                better = sum(b > a for a, b in points)
                said.append(f"{kind}, {row['layer']}: all channels are better than the best one for {better} of {len(points)} concepts")
            low, high = min(*axes.get_xlim(), *axes.get_ylim()), max(*axes.get_xlim(), *axes.get_ylim())
            axes.plot([low, high], [low, high], color="0.5", linewidth=0.8, zorder=0)
            name = "IoU" if kind == "segmentation" else "AUC"
            drawing.label(axes, f"{name}, one channel", f"{name}, all channels")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=drawing.SMALL, frameon=False)
        caption = f"Each concept by its best channel and by all, {stored.subject}: segmentation (IoU) and classification (AUC)"
        out = [Drawing("all-single", caption, "; ".join(said) + ".", figure)]
        last = facts["layers"][-1]["layer"]
        which = stored.arrays[f"{last}.segmentation.concepts"]
        if len(which) > 2:
            out.append(_matrix(stored, last, [facts["concepts"][k] for k in which]))
        return out


def _count(needed: float | None) -> str:
    """Of channels; none where all of them find nothing."""
    return "–" if needed is None else f"{needed:g}"


def _nearest(row: dict[str, Any]) -> str:
    return f"{row['nearest']} ({row['cosine']:+.2f})"


def _matrix(stored: Stored, layer: str, names: list[str]) -> Drawing:
    """Cosines between the concept vectors of a layer."""
    vectors = stored.arrays[f"{layer}.segmentation"]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    figure = drawing.figure(3.0)
    axes = figure.subplots()
    shown = axes.imshow(cosines, cmap="Greys", vmin=min(0.0, float(cosines.min())), vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=drawing.SMALL)
    axes.set_yticks(range(len(names)), names, fontsize=drawing.SMALL)
    figure.colorbar(shown, ax=axes, shrink=0.7).ax.tick_params(labelsize=drawing.SMALL)
    pairs = sorted(((cosines[i, j], names[i], names[j]) for i in range(len(names)) for j in range(i)), reverse=True)
    words = "Most alike: " + ", ".join(f"{a} and {b} ({v:.2f})" for v, a, b in pairs[:3])
    words += "; least alike: " + ", ".join(f"{a} and {b} ({v:.2f})" for v, a, b in pairs[-3:]) + "."
    return Drawing("cosines", f"Cosines between concept vectors (segmentation), {layer} of {stored.subject}", words, figure)


def _terms(text: str, names: list[str]) -> tuple[list[int], list[int]]:
    """Concepts added and taken away, as positions. Raises UsageError for a concept that is not there."""
    name = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"  # a name may hold a hyphen
    term, places, at = re.compile(rf"\s*([+-]?)\s*({name})\s*(?=[+-]|$)"), [], 0
    while at < len(text) or not places:
        found = term.match(text, at)
        if found is None or (places and not found[1]):
            known = f"{', '.join(names[:12])}{', ...' * (len(names) > 12)}"
            missing = text[at:].strip().lstrip("+-") or text
            raise UsageError(f"arithmetic {text!r}: this probe has no concept {missing!r}; it has {known}")
        places.append((found[1], names.index(found[2])))
        at = found.end()
    return [k for sign, k in places if sign != "-"], [k for sign, k in places if sign == "-"]


def _arithmetic(layer: str, kind: str, which: list[int], vectors: np.ndarray, tried, names: list[str]) -> list[dict[str, Any]]:
    import torch

    from bench.analysis.maths.concept_vectors import combine

    out = []
    for text, plus, minus in tried:
        if {*plus, *minus} <= set(which) and len(which) > len(plus) + len(minus):
            at, cosine = combine(torch.from_numpy(vectors), [which.index(k) for k in plus], [which.index(k) for k in minus])
            out.append({"layer": layer, "kind": kind, "text": text, "nearest": names[which[at]], "cosine": cosine})
    return out


def _summary(segments: list[dict[str, Any]], told: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(rows: list[dict[str, Any]], name: str) -> float | None:
        return float(np.mean([r[name] for r in rows])) if rows else None

    one, every = mean(segments, "single"), mean(segments, "all")
    found = {"segmented": len(segments), "single": one, "all": every, "ratio": every / one if one else None}
    needed = [r["needed"] for r in segments if r["needed"] is not None]
    found["needed"] = float(np.median(needed)) if needed else None
    return found | {"told": len(told), "auc_single": mean(told, "single"), "auc_all": mean(told, "all")}


def _same_group(dataset, concepts, which: list[int], vectors: np.ndarray) -> dict[str, Any]:
    """How many classes have a class of their own coarse class as nearest vector, and what chance gives; nothing without classes."""
    coarse = dict(zip(dataset.classes, dataset.coarse, strict=True))
    kept = [i for i, k in enumerate(which) if concepts[k].category == "class"]
    if len(kept) < 2:
        return {"same_group": None, "chance": None}
    unit = vectors[kept] / np.maximum(np.linalg.norm(vectors[kept], axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    groups = np.array([coarse[concepts[which[i]].name] for i in kept])
    same = groups[:, None] == groups
    chance = (same.sum(1) - 1) / (len(kept) - 1)
    return {"same_group": float((groups[cosines.argmax(1)] == groups).mean()), "chance": float(chance.mean())}
