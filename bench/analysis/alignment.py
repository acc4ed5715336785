"""Whether semantic vectors come nearer to human concepts while they are learned (SKD, Fig. 4)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis import dissect
from bench.analysis.frame import drawing
from bench.analysis.frame.base import Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.registry import register


@dataclass(frozen=True)
class Options:
    """The paper's SGD; NetDissect's thresholds."""

    epochs: int = 100
    batch: int = 64  # gives the steps of an epoch
    dimensions: int = 16
    layers: tuple[str, ...] = ()  # none: every stage
    controls: int = 10  # sets of random vectors, and shuffles
    images: int = 10000  # of the probe, for the concept vectors
    quantile: float = 0.005
    over: str = "category"
    probe: str = "data"  # or a Broden folder

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.dimensions, self.images) < 1 or self.controls < 2:
            raise ValueError("alignment: epochs, batch, dimensions, images are at least 1, controls at least 2")
        dissect.Options(**self.concepts())  # what it refuses is refused here

    def concepts(self) -> dict[str, Any]:
        """Options of dissect, whose concept vectors are read."""
        return {"images": self.images, "quantile": self.quantile, "over": self.over, "probe": self.probe}


@register("alignment")
class Alignment(dissect.Probing):
    title = "Alignment with concepts"
    question = "Do semantic vectors learned without words come to relate the channels as human concepts do?"
    source = "Han et al., Static Knowledge Distillation, 2022, Fig. 4"
    needs = Needs(preparation="skd", concepts=True)
    Options = Options

    def prepares(self) -> dict[str, dict[str, Any]]:
        return {"skd": {"dimensions": self.options.dimensions}}

    def made_of(self, context) -> dict[str, Any]:
        return {"dissect": context.named_by("dissect", self.options.concepts())}

    def run(self, context) -> Result:
        import torch

        from bench.analysis.maths import alignment as maths
        from models.randomness import generator

        options, subject = self.options, context.teacher
        layers = context.layers(subject, options.layers, stem=False)  # there are no vectors of it
        found = context.result("dissect", options.concepts())
        tensors = context.prepared(subject, "skd", self.prepares()["skd"]).tensors
        steps, count = -(-len(context.dataset.train_labels) // options.batch), len(context.layers(subject))
        rows, arrays = [], {}
        for layer in layers:
            t, kept = maths.target(torch.from_numpy(found.arrays[f"{layer}.iou_set"]))
            p, channels = tensors[f"P.{layer}"], len(tensors[f"P.{layer}"])
            row = {"layer": layer, "channels": channels, "dropped": channels - len(kept)}
            if len(kept) < 3:
                rows.append(row)
                continue

            def curve(layer=layer, t=t, kept=kept, p=p, channels=channels) -> dict[str, np.ndarray]:
                start = torch.randn(channels, options.dimensions, generator=generator(0, f"alignment/start/{layer}"))
                path = context.progress(maths.sgd(start, p.float(), options.epochs, steps, count), options.epochs + 1, f"{layer}, epochs of SGD")
                values, last = [], start
                for vectors in path:
                    values.append((maths.divergence(t, vectors, kept), maths.divergence(p, vectors, torch.arange(channels))))
                    last = vectors
                return {"curve": np.array(values), "vectors": last.numpy()}

            made = context.part(f"sgd-{layer}", curve)
            learned = torch.from_numpy(made["vectors"])
            random, shuffled = maths.controls(t, learned, kept, lambda i, layer=layer: generator(i, f"alignment/control/{layer}"), options.controls)
            start = torch.randn(len(kept), options.dimensions, generator=generator(0, f"alignment/bound/{layer}"))
            bound = maths.divergence(t, maths.fitted(start, t), torch.arange(len(kept)))
            row |= {"start": made["curve"][0, 0].item(), "learned": made["curve"][-1, 0].item(), "bound": bound}
            row |= {"converged": maths.divergence(t, tensors[f"S.{layer}"], kept)}
            for name, values in (("random", random), ("shuffled", shuffled)):
                row |= {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
            rows.append(row)
            arrays |= {f"{layer}.curve": made["curve"], f"{layer}.random": np.array(random), f"{layer}.shuffled": np.array(shuffled)}
        return Result({"layers": rows, "steps": steps, "images": found.facts["images"], "concepts": len(found.facts["concepts"])}, arrays)

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        rows = []
        for r in stored.facts["layers"]:
            if "learned" not in r:
                rows.append((r["layer"], f"{r['channels'] - r['dropped']} of {r['channels']}", *["–"] * 6, "too few channels"))
                continue
            spread = [f"{1e3 * r[name]:.2f} ± {1e3 * r[f'{name}_sd']:.2f}" for name in ("random", "shuffled")]
            values = [f"{1e3 * r[name]:.2f}" for name in ("bound", "learned", "converged")]
            rows.append((r["layer"], f"{r['channels'] - r['dropped']} of {r['channels']}", *values, *spread, f"{1e3 * r['start']:.2f}", _order(r)))
        header = ("layer", "channels", "bound", "learned", "converged", "random", "shuffled", "at start", "learned against controls")
        options = stored.options
        notes = (
            f"KL to the concept target in 0.001 nats. Concept vectors: IoU with {stored.facts['concepts']} concepts over {stored.facts['images']} "
            f"images; channels without any are dropped. Learned: SGD, {options['epochs']} epochs of {stored.facts['steps']} steps; converged: the "
            "stored preparation. Random: vectors N(0, 1); shuffled: the learned ones given to other channels; mean and standard deviation over "
            f"{options['controls']}. Bound: vectors of the same length fitted to the target.",
        )
        return [Table("KL to the concept target", header, rows, notes)]

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        rows = [r for r in stored.facts["layers"] if "learned" in r]
        if not rows:
            return []
        figure = drawing.figure(0.8 + 1.25 * len(rows))
        panels = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
        said = []
        for axes, row in zip(panels, rows, strict=True):
            curve = 1e3 * stored.arrays[f"{row['layer']}.curve"][:, 0]
            epochs = np.arange(len(curve))
            axes.plot(epochs, curve, linewidth=1.3, color="black", label="learned")
            for name, style, shade in (("random", "--", "0.75"), ("shuffled", "-.", "0.85")):
                mean, spread = 1e3 * row[name], 1e3 * row[f"{name}_sd"]
                axes.axhspan(mean - spread, mean + spread, color=shade, linewidth=0)
                axes.axhline(mean, color="0.3", linewidth=1, linestyle=style, label=name)
            axes.axhline(1e3 * row["bound"], color="#0072b2", linewidth=1, linestyle=":", label="bound")
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(0, len(curve) - 1)
            axes.xaxis.set_major_formatter("{x:g}")
            drawing.label(axes, y="KL (0.001 nats)", title=f"{row['layer']}, {row['channels'] - row['dropped']} channels")
            said.append(f"{row['layer']}: from {curve[0]:.2f} to {curve[-1]:.2f}, {_order(row)}")
        panels[-1].set_xlabel("epoch", fontsize=drawing.NORMAL)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=drawing.SMALL, frameon=False)
        caption = f"KL of semantic vectors to the concept target over training, {stored.subject}; "
        caption += f"bands: standard deviation over {stored.options['controls']} sets"
        return [Drawing("curves", caption, "KL in 0.001 nats. " + "; ".join(said) + ".", figure)]


def _order(row: dict[str, Any]) -> str:
    """Whether the learned vectors are nearer than the controls, by more than two standard deviations of these."""
    words = []
    for name in ("random", "shuffled"):
        away = (row["learned"] - row[name]) / max(row[f"{name}_sd"], 1e-12)
        words.append(f"{'nearer than' if away < -2 else 'farther than' if away > 2 else 'as far as'} {name}")
    return ", ".join(words)
