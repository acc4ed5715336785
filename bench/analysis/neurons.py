"""Semantic neighbours and additions of channels, seen on images and measured on activation maps (SKD, Fig. 2 and 3)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.registry import register
from bench.errors import UsageError

ACROSS = 5
"""Images of each channel that are drawn."""


@dataclass(frozen=True)
class Options:
    """The paper's three neighbours; the rest is chosen here."""

    layer: str = ""  # whose channels are drawn; none: the last stage
    channels: tuple[int, ...] = ()  # that are drawn; none: three, evenly spaced over the layer, so not chosen by result
    neighbours: int = 3
    relations: int = 20  # additions that are listed and tried on maps, the largest gains, one a channel at most
    matched: int = 20  # random pairs for each of them
    images: int = 2000  # test images: the vectors were fitted on training images
    quantile: float = 0.005  # of a channel's activations that lie in its mask (NetDissect's)
    dimensions: int = 16

    def __post_init__(self) -> None:
        if min(self.neighbours, self.relations, self.matched, self.images, self.dimensions) < 1 or not 0 < self.quantile < 1:
            raise ValueError("neurons: counts are at least 1, quantile lies between 0 and 1")


@register("neurons")
class Neurons(Analysis):
    title = "Semantic neurons"
    question = "Do channels with similar semantic vectors look at the same things, and do vectors that add up belong to maps that add up?"
    source = "Han et al., Static Knowledge Distillation, 2022, Fig. 2 and 3"
    needs = Needs(preparation="skd")
    Options = Options

    def prepares(self) -> dict[str, dict[str, Any]]:
        return {"skd": {"dimensions": self.options.dimensions}}

    def run(self, context) -> Result:
        import torch

        from bench.analysis.maths import passes
        from bench.analysis.maths.compositions import best_pairs, neighbours
        from bench.analysis.probes.own import probe
        from methods.skd.loss import relation

        options, subject = self.options, context.teacher
        layers = context.layers(subject)
        shown = next(iter(context.layers(subject, (options.layer,)))) if options.layer else list(layers)[-1]
        if shown not in layers:
            raise UsageError(f"neurons draws a stage: {', '.join(layers)}, not {shown}")
        width = context.shapes(subject).maps["stage"][layers[shown]][0]
        if wrong := [c for c in options.channels if not 0 <= c < width]:
            raise UsageError(f"{shown} of {subject.architecture} has channels 0 to {width - 1}, not {wrong[0]}")
        vectors = {name: t.double() for name, t in context.prepared(subject, "skd", self.prepares()["skd"]).tensors.items()}
        similar = {layer: neighbours(vectors[f"S.{layer}"], min(options.neighbours, len(vectors[f"S.{layer}"]) - 1)) for layer in layers}
        pairs = {layer: best_pairs(vectors[f"S.{layer}"]) for layer in layers}
        triples = {layer: _triples(vectors[f"S.{layer}"], pairs[layer], options, layer) for layer in layers}
        count = context.count(options.images)
        measured = context.part("maps", lambda: _on_maps(context, subject, layers, triples, count))
        facts, relations, arrays = [], [], {}
        for layer in layers:
            mean = torch.from_numpy(measured[f"{layer}.cosines"])
            cosines = relation(vectors[f"S.{layer}"])
            row, listed = _measured(layer, similar[layer], cosines, mean, measured, triples[layer], pairs[layer])
            facts.append(row)
            relations += listed
            arrays |= {f"{layer}.vectors": cosines.numpy(), f"{layer}.maps": mean.numpy()}
            for name in ("score", "gain"):
                arrays[f"{layer}.{name}"] = measured[f"{layer}.{name}"]
        images = probe("data", context, count)
        first = context.part("thresholds", lambda: passes.thresholds(context, subject, {shown: layers[shown]}, images, options.quantile))
        drawn = list(options.channels) or np.linspace(0, width, 5)[1:4].astype(int).tolist()
        groups = [("neighbours", c, [c, *similar[shown][c].tolist()]) for c in drawn]
        groups += [("addition", r["c"], [r["a"], r["b"], r["c"]]) for r in relations if r["layer"] == shown][:2]
        limit = torch.from_numpy(first[f"{shown}.thresholds"]).to(context.device)
        for i, (_, centre, rows) in enumerate(groups):
            ids = np.argsort(-first[f"{shown}.strongest"][:, centre], kind="stable")[: min(ACROSS, count)].tolist()
            found = passes.images_and_masks(context, subject, layers[shown], images, ids, limit, rows, "threshold")
            arrays |= {f"drawn{i}.images": found[0], f"drawn{i}.masks": found[1], f"drawn{i}.strong": found[2]}
        said = [{"kind": kind, "channel": c, "rows": rows, "cosines": arrays[f"{shown}.vectors"][c, rows].tolist()} for kind, c, rows in groups]
        return Result({"layers": facts, "relations": relations, "drawn": said, "drawn_layer": shown, "images": count}, arrays)

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts, options = stored.facts, stored.options
        similar = [
            (r["layer"], str(r["channels"]), f"{r['similar']:.3f}", f"{r['random']:.3f}", f"{r['share']:.0%}", f"{r['rank_correlation']:.3f}")
            for r in facts["layers"]
        ]
        header = ("layer", "channels", "similar", "random", "similar above random", "rank correlation")
        notes = (
            f"Mean over channels and {facts['images']} test images of the cosine between a channel's map and those of its "
            f"{options['neighbours']} nearest by semantic vector, and of as many random ones. "
            "Rank correlation (Spearman) of D^S and E[D^A] over pairs of channels.",
        )
        sums = [
            (r["layer"], str(r["found"]), f"{r['score']:.3f}", f"{r['gain']:+.3f}", f"{r['gain_random']:+.3f}", f"{r['above_matched']:.0%}")
            for r in facts["layers"]
        ]
        header_sums = ("layer", "additions", "cos on maps", "gain on maps", "gain, matched pairs", "above its matched pairs")
        notes_sums = (
            f"The {options['relations']} additions a + b ~ c with the largest gain by vectors, one a channel c at most. Gain: cosine of "
            f"the sum with c, less the larger of the two single ones. Matched: {options['matched']} random pairs each, "
            "as near to c as the better of a and b.",
        )
        few = [
            (r["layer"], f"{r['a']} + {r['b']} ~ {r['c']}", *(f"{r[name]:+.3f}" for name in ("score", "gain", "map_score", "map_gain")))
            for layer in facts["layers"]
            for r in [x for x in facts["relations"] if x["layer"] == layer["layer"]][:3]
        ]
        header_few = ("layer", "channels", "cos of vectors", "gain of vectors", "cos on maps", "gain on maps")
        return [
            Table("Neighbours: similarity on maps", header, similar, notes),
            Table("Additions on maps", header_sums, sums, notes_sums),
            Table("The three largest gains of each layer", header_few, few),
        ]

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        facts, layer = stored.facts, stored.facts["drawn_layer"]
        out = [_bars(stored)]
        for i, group in enumerate(facts["drawn"]):
            rows, cosines = group["rows"], group["cosines"]
            images = stored.arrays[f"drawn{i}.images"]
            masks, strong = stored.arrays[f"drawn{i}.masks"], stored.arrays[f"drawn{i}.strong"]
            if group["kind"] == "neighbours":
                labels = [f"channel {c}" if n == 0 else f"{c} (cos {v:.2f})" for n, (c, v) in enumerate(zip(rows, cosines, strict=True))]
                caption = f"Channel {group['channel']} of {layer} and its nearest by semantic vector, {stored.subject}"
            else:
                labels = [f"channel {rows[0]}", f"+ {rows[1]}", f"~ {rows[2]}"]
                caption = f"Addition {rows[0]} + {rows[1]} ~ {rows[2]} of {layer}, {stored.subject}"
            figure = drawing.tiles(np.broadcast_to(images, (len(rows), *images.shape)), masks, labels, strong)
            shares = [f"{label}: {100 * m.mean():.0f} % of the pixels" for label, m in zip(labels, masks, strict=True)]
            overlap = (masks[0] & masks[-1]).sum() / max(1, (masks[0] | masks[-1]).sum())
            text = f"The images on which channel {group['channel']} is strongest, bright where each channel is active. {'; '.join(shares)}; "
            text += f"overlap of the last with the first, as IoU: {overlap:.2f}. A grey edge: the channel is nowhere above its "
            text += f"threshold there ({int((~strong).sum())} of {strong.size} pictures), shown is what lies above half of its maximum on that image."
            out.append(Drawing(f"{group['kind']}-{'-'.join(map(str, rows))}", caption, text, figure))
        return out


def _triples(vectors, pairs, options: Options, layer: str):
    """The found triples, largest gain first, then the matched ones of each: int64 (n, 3) and (n, matched, 3)."""
    import torch

    from bench.analysis.maths.compositions import matched_pairs
    from models.randomness import generator

    best, _, gains = pairs
    chosen = gains.argsort(descending=True, stable=True)[: options.relations]
    found = torch.cat([best[chosen], chosen[:, None]], 1)
    draw = generator(0, f"neurons/matched/{layer}")
    others = []
    for a, b, c in found.tolist():
        drawn = matched_pairs(vectors, (a, b, c), options.matched, draw)
        others.append(torch.cat([drawn, torch.full((len(drawn), 1), c)], 1))
    return found, torch.stack(others)


def _on_maps(context, subject, layers: dict[str, int], triples, count: int) -> dict[str, np.ndarray]:
    """For each layer E[D^A] "cosines" (C, C), and "score" and "gain" of found and matched triples (n, 1 + matched), the found one first."""
    import torch

    from bench.analysis.maths.compositions import MeanCosines, OnMaps

    cosines = {layer: MeanCosines() for layer in layers}
    every = {layer: torch.cat([found[:, None], matched], 1) for layer, (found, matched) in triples.items()}
    sums = {layer: OnMaps(one.flatten(0, 1)) for layer, one in every.items()}
    batches = context.progress(context.batches(count), -(-count // 100), "maps, batches of 100")
    for images, _ in batches:
        maps = context.outputs(subject, images, ("stage",)).maps["stage"]
        for layer, at in layers.items():
            cosines[layer].add(maps[at])
            sums[layer].add(maps[at])
    out = {f"{layer}.cosines": one.value().numpy() for layer, one in cosines.items()}
    for layer, one in sums.items():
        for name, value in zip(("score", "gain"), one.means(), strict=True):
            out[f"{layer}.{name}"] = value.view(every[layer].shape[:2]).numpy()
    return out


def _measured(layer: str, similar, cosines, mean, measured, triples, pairs):
    """The facts of a layer, and its additions as a list."""
    import torch
    from scipy.stats import spearmanr

    from models.randomness import generator

    count = len(cosines)
    draws = torch.rand(count, count, generator=generator(0, f"neurons/random/{layer}")).fill_diagonal_(2)
    near = mean.gather(1, similar).mean(1)
    far = mean.gather(1, draws.argsort(1)[:, : similar.shape[1]]).mean(1)
    above = torch.triu(torch.ones(count, count, dtype=torch.bool), 1)
    score, gain = measured[f"{layer}.score"], measured[f"{layer}.gain"]
    found = triples[0].tolist()
    row = {
        "layer": layer,
        "channels": count,
        "similar": near.mean().item(),
        "similar_sd": near.std().item(),
        "random": far.mean().item(),
        "random_sd": far.std().item(),
        "share": (near > far).double().mean().item(),
        "rank_correlation": float(spearmanr(cosines[above].numpy(), mean[above].numpy()).statistic),
        "found": len(found),
        "score": float(score[:, 0].mean()),
        "gain": float(gain[:, 0].mean()),
        "gain_random": float(gain[:, 1:].mean()),
        "above_matched": float((gain[:, 0] > gain[:, 1:].mean(1)).mean()),
    }
    listed = [
        {"layer": layer, "a": a, "b": b, "c": c, "score": pairs[1][c].item(), "gain": pairs[2][c].item(), "map_score": s, "map_gain": g}
        for (a, b, c), s, g in zip(found, score[:, 0].tolist(), gain[:, 0].tolist(), strict=True)
    ]
    return row, listed


def _bars(stored: Stored) -> Drawing:
    """Similar against random, found against matched, a layer each."""
    rows = stored.facts["layers"]
    figure = drawing.figure(1.9)
    panels = figure.subplots(1, 2)
    place = np.arange(len(rows))
    for i, (kind, spread) in enumerate((("similar", "similar_sd"), ("random", "random_sd"))):
        panels[0].bar(place + 0.4 * i - 0.2, [r[kind] for r in rows], 0.38, yerr=[r[spread] for r in rows], label=kind, capsize=2, **drawing.fill(i))
    gains = [[stored.arrays[f"{r['layer']}.gain"][:, :1].mean(1), stored.arrays[f"{r['layer']}.gain"][:, 1:].mean(1)] for r in rows]
    for i, kind in enumerate(("found", "matched")):
        values, spread = [g[i].mean() for g in gains], [g[i].std(ddof=len(g[i]) > 1) for g in gains]
        panels[1].bar(place + 0.4 * i - 0.2, values, 0.38, yerr=spread, label=kind, capsize=2, **drawing.fill(i))
    for axes, label in zip(panels, ("cosine of maps", "gain on maps"), strict=True):
        axes.set_xticks(place, [r["layer"] for r in rows])
        drawing.label(axes, y=label)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.legend(fontsize=drawing.SMALL, frameon=False, handlelength=1.2, ncols=2, columnspacing=1, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    words = [
        f"{r['layer']}: similar {r['similar']:.3f}, random {r['random']:.3f}; gain of additions {r['gain']:+.3f}, matched {r['gain_random']:+.3f}"
        for r in rows
    ]
    caption = f"Maps of similar and of random channels; additions found by vectors and matched pairs, {stored.subject}; bars: standard deviation"
    return Drawing("measured", caption, "; ".join(words) + ".", figure)
