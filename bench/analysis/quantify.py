"""How much a student knows: concepts on and beside the object, how directly they were learned (Cheng et al., CVPR 2020)."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.by_method import BASELINE, mean_and_sd
from bench.analysis.frame.registry import register
from bench.analysis.maths import concept_counts as counting
from bench.errors import UsageError
from bench.store import snapshots
from bench.store.runs import read_run

WORDS = {"fg": "N_fg", "bg": "N_bg", "ratio": "ratio", "d_mean": "D_mean", "d_var": "D_var", "rho": "rho"}
HYPOTHESIS = {"fg": "1", "bg": "1", "ratio": "1", "d_mean": "2", "d_var": "2", "rho": "3"}
DIGITS = {"fg": 1, "bg": 1}  # others have three
FINAL = ("fg", "bg", "ratio")
"""Metrics of the last checkpoint alone."""
UNUSED = {"match": ("weight",), "penalty": ("target",), "code": ("steps", "rate")}
"""Options that a search does not read."""
TARGETS = (-5.4, 1.4)
"""Mean entropies that can be held, in nats: sigma lies from 0.001 to 1."""
LATE = 40 / 150
"""The code's selection looks at checkpoints from epoch 40 of 150 on."""
DRAWN = 4


@dataclass(frozen=True)
class Options:
    """Cells, threshold and target of the authors' code; the search for sigma is ours."""

    images: int = 50
    grid: int = 16  # cells across
    layer: str = "embedding"  # or stage1, stage2, ...
    foreground: str = "masks"  # or centre, or a folder of masks
    learning: bool = True  # learning speed and detours, from snapshots
    epochs: tuple[int, ...] = ()  # of the snapshots; none: all that all students have
    b: float = 0.2
    mode: str = "match"  # match, penalty or code: see maths.discarding
    definitions: str = "ours"  # ours, printed or code
    steps: int = 60
    draws: int = 32
    rate: float = 0.05
    target: float = -2.8
    weight: float = 6.0
    bootstrap: int = 2000
    chunk: int = field(default=8, metadata={"speed": True})  # images searched at once: chunk x draws are in memory

    def __post_init__(self) -> None:
        for name, known in (("mode", ("match", "penalty", "code")), ("definitions", ("ours", "printed", "code"))):
            if getattr(self, name) not in known:
                raise ValueError(f"quantify.{name} is {getattr(self, name)!r}: one of {', '.join(known)}")
        if min(self.images, self.grid, self.steps, self.bootstrap, self.chunk) < 1 or self.draws < 2 or self.draws % 2:
            raise ValueError("quantify: images, grid, steps, bootstrap, chunk are at least 1, draws are even")
        if not (self.rate > 0 and TARGETS[0] <= self.target <= TARGETS[1]):
            raise ValueError(f"quantify: rate is above 0, target from {TARGETS[0]} to {TARGETS[1]} nats")
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in (*UNUSED[self.mode], *(() if self.learning else ("epochs",))):
            if getattr(self, name) != defaults[name]:
                why = f"mode={self.mode}" if name in UNUSED[self.mode] else "learning=false"
                raise ValueError(f"quantify.{name} has no effect with {why}; leave it out")


@register("quantify")
class Quantify(Analysis):
    title = "Quantified knowledge"
    version = 2
    before = {1: "the search for sigma cut sharp maps off and found too few concepts in such networks"}
    question = "Do students learn more concepts on the object, fewer beside it, faster and with fewer detours than plain students?"
    source = "Cheng et al., Explaining Knowledge Distillation by Quantifying the Knowledge, CVPR 2020"
    needs = Needs(students=True)
    scope = "group"
    Options = Options

    def made_of(self, context) -> dict[str, Any]:
        """Snapshots by their weights, foregrounds by their content: neither follows from the networks named. Raises UsageError."""
        from bench.analysis.probes.foregrounds import CENTRE, MASKS, fingerprint

        chosen = self.options.foreground
        found: dict[str, Any] = {} if chosen in (CENTRE, MASKS) else {"foreground": fingerprint(Path(chosen))}
        if self.options.learning:
            found["snapshots"] = {s.label: {str(e): one.hash for e, one in self._path(context, s).items()} for s in context.students}
        return found

    def _path(self, context, student) -> dict[int, Any]:
        """Epoch -> the student then. Raises UsageError where snapshots are missing."""
        if not self.options.learning:
            return {0: student}
        all_kept = {s.label: snapshots.kept(s.file.parent) for s in context.students}
        shared = sorted(set.intersection(*(set(kept) for kept in all_kept.values())))
        wanted = sorted(self.options.epochs) or shared
        alone = "or ask for the concepts alone with --set learning=false"
        run = read_run(student.file.parent)
        again = f"add --redo --keep-epochs 0-{run.protocol.epochs} to the python -m bench run that trained it, {alone}"
        for label, kept in all_kept.items():
            if not kept:
                raise UsageError(f"{label} has no snapshots, and learning speed and detours need them: {again}")
            if missing := [e for e in wanted if e not in kept]:
                raise UsageError(f"{label} has no snapshot of epoch {missing[0]}, only of {', '.join(map(str, kept))}: {again}")
        kept = all_kept[student.label]
        if len(wanted) < 2 or wanted[0] != 0 or kept[wanted[-1]] != student.hash:
            raise UsageError(f"snapshots of {student.label} must begin with epoch 0 and end with the last, and all have only {shared}: {again}")
        return {e: dataclasses.replace(student, hash=kept[e], file=snapshots.place(student.file.parent, e)) for e in wanted}

    def run(self, context) -> Result:
        import torch

        from bench.analysis.probes import foregrounds
        from models.randomness import generator

        options, teacher, methods = self.options, context.teacher, context.rows()
        size = context.dataset.image_size
        if size % options.grid:
            fits = [str(g) for g in range(2, size + 1) if size % g == 0]
            raise UsageError(f"--set grid={options.grid}: does not divide images of {size} pixels; {', '.join(fits)} do")
        ids = torch.randperm(len(context.dataset.test_labels), generator=generator(0, "quantify/images"))[: options.images].tolist()
        masks = foregrounds.pixels(options.foreground, context.dataset, ids)
        fg = foregrounds.cells(masks, options.grid)
        usable = fg.any((1, 2)) & ~fg.all((1, 2))
        entropy: dict[str, np.ndarray] = {}
        paths = {s.label: self._path(context, s) for s in context.students}
        for path in ({0: teacher}, *paths.values()):
            for epoch, one in path.items():
                made = context.part(f"entropy-{one.hash}", lambda one=one, epoch=epoch: self._entropy(context, one, epoch, ids))
                entropy[one.hash] = made["entropy"]
                usable &= made["valid"]
        if not usable.any():
            raise UsageError("no image has cells on and beside the object that the networks react to: give more with --set images=200")
        at = np.flatnonzero(usable)
        fg = fg[at]
        maps = {label: np.stack([entropy[one.hash][at] for one in path.values()]) for label, path in paths.items()}
        epochs = list(next(iter(paths.values())))
        late = [i for i, e in enumerate(epochs) if e >= LATE * epochs[-1]]
        kept = {label: counting.effective(h[late], fg) for label, h in maps.items()}
        chosen = np.logical_and.reduce(list(kept.values())) if options.definitions == "code" else np.ones(len(at), dtype=bool)
        if not chosen.any():
            raise UsageError("the code's selection leaves no image in all networks: give more with --set images=200, or --set definitions=ours")
        lengths = {label: self._lengths(context, list(path.values())) for label, path in paths.items()}
        values = {label: self._values(h[:, chosen], fg[chosen], lengths[label]) for label, h in maps.items()}
        known = self._values(entropy[teacher.hash][at][None][:, chosen], fg[chosen], [0.0])
        rows = [
            {"method": m, "seed": seed, "label": s.label, "kept": float(kept[s.label].mean()), **self._summary(values[s.label])}
            for m, by_seed in methods.items()
            for seed, s in by_seed.items()
        ]
        facts = {"rows": rows, "teacher": self._summary({n: known[n] for n in FINAL}), "epochs": epochs if options.learning else []}
        facts |= {"asked": len(ids), "usable": len(at), "images": int(chosen.sum()), "hypotheses": self._hypotheses(methods, values)}
        facts |= {"cells": {"fg": float(fg[chosen].sum((1, 2)).mean()), "all": options.grid**2}}
        arrays = {f"{label}.entropy": h[-1][:DRAWN] for label, h in maps.items()} | {f"{teacher.label}.entropy": entropy[teacher.hash][at][:DRAWN]}
        arrays |= {f"{label}.{n}": v[f"{n}_path"] for label, v in values.items() for n in ("fg", "bg")}
        shown = [ids[i] for i in at[:DRAWN]]
        arrays |= {"drawn.images": context.dataset.test_images[shown].numpy(), "drawn.masks": masks[at[:DRAWN]]}
        return Result(facts, arrays)

    def _entropy(self, context, subject, epoch: int, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """H (N, G, G) fp32 of the images, and whether each is valid (N,)."""
        import torch

        from bench.analysis.maths.discarding import Search, discarded, noise
        from models.randomness import generator

        o = self.options
        search = Search(o.mode, o.steps, o.draws, o.rate, o.target, o.weight)
        network = context.network(subject)
        at = None if o.layer == "embedding" else context.layers(subject, (o.layer,), "relu")[o.layer]
        size, like = context.dataset.image_size, torch.zeros((), device=context.device)

        def feature(x):
            x = x.contiguous(memory_format=torch.channels_last)
            return network(x).embedding if at is None else network(x, ("relu",)).maps["relu"][at].flatten(1)

        def draw(step: int, draws: int):
            return noise(generator(0, "quantify/noise", step + 1), draws, size, like)

        pieces = [ids[i : i + o.chunk] for i in range(0, len(ids), o.chunk)]
        what = f"{subject.label}, epoch {epoch}" if o.learning and subject.role == "student" else subject.label
        found = []
        for piece in context.progress(pieces, len(pieces), f"{what}, {o.chunk} images at a time"):
            images = torch.cat([context.images.test_batch(slice(i, i + 1)) for i in piece])
            found.append(discarded(feature, images, o.grid, search, draw))
        return {"entropy": torch.cat([h for h, _ in found]).cpu().numpy(), "valid": torch.cat([v for _, v in found]).cpu().numpy()}

    def _lengths(self, context, path: Sequence[Any]) -> list[float]:
        """|w_k - w_(k-1)| / |w_0| over all trainable weights, from the first checkpoint's 0 on."""
        import torch

        weights = [torch.cat([p.detach().double().flatten() for p in context.network(one).parameters()]) for one in path]
        return [0.0] + [((b - a).norm() / weights[0].norm()).item() for a, b in zip(weights, weights[1:], strict=False)]

    def _values(self, entropy: np.ndarray, fg: np.ndarray, lengths: Sequence[float]) -> dict[str, np.ndarray]:
        """Of each image (N,): the metrics; and the counts over the checkpoints, fg_path and bg_path (K, N)."""
        o = self.options
        found = counting.concepts(entropy, fg, o.b, per_image=o.definitions == "printed")
        counts = counting.counts(found, fg)
        values = {n: counts[n][-1] for n in FINAL} | {"fg_path": counts["fg"], "bg_path": counts["bg"]}
        if o.learning:
            rho = counting.detours(found, fg)
            values |= {"d_mean": counting.distances(counts["fg"], lengths), "rho": np.nan_to_num(rho) if o.definitions == "code" else rho}
            values["never"] = np.isnan(rho)
            values["d_var"] = values["d_mean"]
        return values

    def _summary(self, values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        with np.errstate(invalid="ignore"):
            found = {n: float(counting.statistic(n, values[n])) for n in counting.METRICS if n in values and not np.isnan(values[n]).all()}
        never = {"never": int(values["never"].sum())} if "never" in values else {}
        return {n: found.get(n) for n in counting.METRICS} | never

    def _hypotheses(self, methods, values) -> list[dict[str, Any]]:
        """S - B for each method and metric, with intervals over images, and over seeds and images from three seeds on."""
        found = []
        for method, by_seed in methods.items():
            seeds = sorted(by_seed.keys() & methods.get(BASELINE, {}).keys())
            for metric in counting.METRICS if seeds and method != BASELINE else ():
                pair = [np.stack([values[m[s].label].get(metric, [np.nan]) for s in seeds]) for m in (by_seed, methods[BASELINE])]
                if not counting.numbered(*pair).any():
                    continue  # not measured, or no image that ever had a concept in both
                row = {"method": method, "metric": metric, "seeds": len(seeds)}
                for over in ("images", "both") if len(seeds) > 2 else ("images",):
                    rng = np.random.default_rng(0)
                    mean, low, high = counting.interval(metric, *pair, rng, self.options.bootstrap, over == "both")
                    row |= {"mean": mean, over: [low, high], f"{over}_verdict": counting.verdict(metric, low, high)}
                found.append(row)
        return found

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts, options = stored.facts, stored.options
        cells: dict[str, list[dict[str, Any]]] = {}
        for r in facts["rows"]:
            cells.setdefault(r["method"], []).append(r)
        names = [n for n in counting.METRICS if any(r[n] is not None for r in facts["rows"])]
        columns = [(WORDS[n], n, 1.0) for n in names]
        if "d_var" in names:
            columns.insert(names.index("d_var") + 1, ("D_std", "d_var", 0.5))
        rows = [("teacher", "", *(_number(n, v if (v := facts["teacher"][n]) is None else v**power) for _, n, power in columns), "")]
        for method, found in cells.items():
            means = [_over_seeds(n, [r[n] ** power for r in found if r[n] is not None]) for _, n, power in columns]
            rows.append((method, str(len(found)), *means, f"{100 * np.mean([r['kept'] for r in found]):.0f} %"))
        never = {f"{r['label']}: {r['never']}" for r in facts["rows"] if r.get("never")}
        counted = "0" if options["definitions"] == "code" else "left out of rho"
        without = f"Images that never had a concept on the object ({counted}): {', '.join(sorted(never))}. " if never else ""
        learned = f"Snapshots of epochs {', '.join(map(str, facts['epochs']))}. " if facts["epochs"] else ""
        applied = "images that all networks keep are used" if options["definitions"] == "code" else "it is not applied"
        notes = (
            f"Means over images, ± standard deviation over seeds; {facts['images']} test images ({facts['asked']} asked, {facts['usable']} with "
            f"cells on and beside the object), {facts['cells']['fg']:.0f} of {facts['cells']['all']} cells on the object; layer {options['layer']}, "
            f"definitions: {options['definitions']}, sigma: {options['mode']}. {learned}"
            f"D_var: variance over images (called D_std in the paper), D_std its root. {without}Kept: by the code's selection; {applied}.",
        )
        out = [Table("Concepts and how they were learned", ("network", "seeds", *(word for word, _, _ in columns), "kept"), rows, notes)]
        rows = []
        for h in facts["hypotheses"]:
            n = h["metric"]
            both = [_span(n, h["both"]), h["both_verdict"]] if "both" in h else ["too few seeds", ""]
            better = "more" if counting.UP[n] > 0 else "less"
            shown = [f"{WORDS[n]} ({better})", _number(n, h["mean"], "+"), _span(n, h["images"]), h["images_verdict"]]
            rows.append((HYPOTHESIS[n], h["method"], *shown, *both))
        if rows:
            header = ("hypothesis", "method", "better is", "S - B", "95 % over images", "S is", "over seeds and images", "S is")
            note = (
                "S: the method; B: the plain student of the same seed. Bootstrap, paired by image and seed; over images alone the networks are "
                "taken as they are; rho over images that had a concept in all of them. 1: more concepts on the object, fewer beside it; "
                f"2: learned faster and more at once; 3: fewer detours. Not corrected for the {len(rows)} comparisons."
            )
            out.append(Table("Hypotheses: student of the method against plain student", header, rows, (note,)))
        return out

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        learned = [_learning(stored)] if stored.facts["epochs"] else []
        return [_maps(stored), *learned]


def _number(metric: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.{DIGITS.get(metric, 3)}f}"


def _span(metric: str, interval: Sequence[float]) -> str:
    return " to ".join(_number(metric, v, "+") for v in interval)


def _over_seeds(metric: str, values: Sequence[float]) -> str:
    return mean_and_sd(values, DIGITS.get(metric, 3)) if values else "–"


def _maps(stored: Stored) -> Drawing:
    teacher = stored.identity["networks"][0]["label"]
    first = {"teacher": teacher}
    for r in stored.facts["rows"]:
        first.setdefault(r["method"], r["label"])
    images, masks = stored.arrays["drawn.images"], stored.arrays["drawn.masks"]
    maps = {name: stored.arrays[f"{label}.entropy"] for name, label in first.items()}
    low, high = (float(np.quantile(np.stack(list(maps.values())), q)) for q in (0.02, 0.98))
    side = drawing.COLUMN / (1 + len(maps))
    figure = drawing.figure(len(images) * side + 0.25)
    panels = figure.subplots(len(images), 1 + len(maps), squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    size = masks.shape[-1]
    for r, picture in enumerate(images):
        panels[r, 0].imshow(picture.transpose(1, 2, 0), interpolation="nearest", extent=(0, size, size, 0))
        for axes, (name, found) in zip(panels[r, 1:], maps.items(), strict=True):
            axes.imshow(found[r], cmap="gray", vmin=low, vmax=high, interpolation="nearest", extent=(0, size, size, 0))
            if r == 0:
                axes.set_title(drawing.plain(name, 12), fontsize=drawing.SMALL)
        for axes in panels[r]:
            if masks[r].any() and not masks[r].all():
                for colour, width in (("black", 1.5), ("white", 0.7)):  # seen on light and on dark
                    axes.contour(np.arange(size) + 0.5, np.arange(size) + 0.5, masks[r], levels=[0.5], colors=colour, linewidths=width)
            axes.set(xticks=[], yticks=[])
    said = [f"{name}: H from {found.min():.2f} to {found.max():.2f}" for name, found in maps.items()]
    caption = f"Entropy of each cell, dark where the network uses it ({low:.1f} to {high:.1f} nats), the object outlined: {stored.subject}"
    return Drawing("maps", caption, f"{len(images)} images. " + "; ".join(said) + ".", figure)


def _learning(stored: Stored) -> Drawing:
    figure = drawing.figure(2.0)
    panels, epochs, said = figure.subplots(1, 2), stored.facts["epochs"], []
    labels: dict[str, list[str]] = {}
    for r in stored.facts["rows"]:
        labels.setdefault(r["method"], []).append(r["label"])
    for axes, name, title in zip(panels, ("fg", "bg"), ("on the object", "beside it"), strict=True):
        for i, (method, runs) in enumerate(labels.items()):
            curve = np.mean([stored.arrays[f"{label}.{name}"].mean(1) for label in runs], 0)
            axes.plot(epochs, curve, markersize=3, linewidth=1.1, label=drawing.plain(method), **drawing.look(i))
            said.append(f"{method}, {title}: " + ", ".join(f"{v:.1f}" for v in curve))
        drawing.label(axes, x="epoch", y="concepts an image", title=title)
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax + 0.1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=drawing.SMALL, frameon=False)
    text = f"Epochs {', '.join(map(str, epochs))}. " + "; ".join(said) + "."
    return Drawing("learning", f"Concepts over training, mean over images and seeds, {stored.subject}", text, figure)
