"""What readers of distillation expect beside top-1: do students answer, err and represent as their teacher does?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.by_method import BASELINE, compared, half_width, mean_and_sd, shown
from bench.analysis.frame.registry import register
from bench.statistics import CLAIM

MEASURES = {"top1": "top-1 (%)", "agreement": "agreement (%)", "kl": "KL (nats)", "ece": "ECE (%)"}
EXTREMES = 3
"""Classes shown from either end."""


@dataclass(frozen=True)
class Options:
    """Fifteen bins as Guo et al.; CKA on a part of the images, since its cost is quadratic in the minibatch."""

    images: int = 0  # of the test set; 0: all
    bins: int = 15  # of the calibration error
    cka_images: int = 2000
    cka_batch: int = 250  # minibatch of the kernels

    def __post_init__(self) -> None:
        if not (self.images == 0 or self.images > 3) or self.bins < 1 or self.cka_images < 4 or self.cka_batch < 4:
            raise ValueError("agreement: images is 0 or at least 4, bins at least 1, cka_images and cka_batch at least 4")


@register("agreement")
class Agreement(Analysis):
    title = "Agreement with the teacher"
    question = "Do students of each method answer, err and represent as their teacher does, more than plain students?"
    source = "Guo et al., ICML 2017 (calibration); Kornblith et al., ICML 2019, and Nguyen et al., ICLR 2021 (CKA)"
    needs = Needs(students=True)
    scope = "group"
    Options = Options

    def run(self, context) -> Result:
        import torch

        from bench.analysis.maths import similarity as maths

        options, teacher, methods = self.options, context.teacher, context.rows()
        count = context.count(options.images or None)
        labels, classes = context.images.test_labels[:count].cpu(), len(context.dataset.classes)
        shown = min(options.cka_images, count)
        batch = min(options.cka_batch, shown)
        kernels = shown // batch

        def seen(subject) -> dict[str, torch.Tensor]:
            make = lambda: _seen(context, subject, count, batch, kernels)  # noqa: E731
            return {name: torch.from_numpy(value) for name, value in context.part(f"seen-{subject.hash}", make).items()}

        def facts(found) -> dict[str, Any]:
            error, bins = maths.calibration(found["logits"], labels, options.bins)
            right = (found["logits"].argmax(1) == labels).double().mean().item()
            return {"top1": 100 * right, "ece": 100 * error}, bins, maths.class_accuracy(found["logits"], labels, classes)

        layers = {"teacher": list(context.layers(teacher)), "student": list(context.layers(context.students[0]))}
        known = seen(teacher)
        own, bins, accuracy = facts(known)
        arrays = {"teacher.bins": bins, "teacher.classes": accuracy}
        rows = []
        for method, by_seed in methods.items():
            for seed, student in by_seed.items():
                found = seen(student)
                row, arrays[f"{student.label}.bins"], arrays[f"{student.label}.classes"] = facts(found)
                both = known["logits"], found["logits"]
                row |= {"agreement": 100 * maths.agreement(*both), "kl": maths.divergence(*both)}
                rows.append({"method": method, "seed": seed, "label": student.label, "recorded": student.test_top1, **row})
                pairs = [[maths.cka(known[f"gram.{t}"], found[f"gram.{s}"]) for s in layers["student"]] for t in layers["teacher"]]
                arrays[f"{student.label}.cka"] = np.array(pairs)
        names = list(context.dataset.classes)
        cka = {"cka_images": kernels * batch, "cka_batch": batch}
        return Result({"teacher": own, "rows": rows, "layers": layers, "images": count, **cka, "classes": names}, arrays)

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts, cells = stored.facts, _cells(stored)
        rows = [("teacher", "", f"{facts['teacher']['top1']:.2f}", "", "", f"{facts['teacher']['ece']:.2f}")]
        for method, values in cells.items():
            rows.append((method, str(len(values["top1"])), *(mean_and_sd([*values[name].values()], 3 if name == "kl" else 2) for name in MEASURES)))
        notes = [
            f"Mean ± standard deviation over seeds, {facts['images']} test images. Agreement: same most probable class as the teacher; KL(teacher || "
            f"student) at temperature 1; ECE: expected calibration error, {stored.options['bins']} bins."
        ]
        if other := [r["label"] for r in facts["rows"] if abs(r["top1"] - r["recorded"]) > 0.5]:
            why = "its method adds to it, or not all images are seen"
            notes.append(f"The network alone does not give the recorded top-1 ({why}): {', '.join(other)}.")
        out = [Table("Answers, by method", ("method", "seeds", *MEASURES.values()), rows, notes)]
        layers = facts["layers"]
        header = ("method", *(f"{a} / {b}" for a, b in zip(layers["teacher"], layers["student"], strict=False)), "over all pairs of stages")
        cka = {m: np.stack([stored.arrays[f"{label}.cka"] for label in values["label"].values()]) for m, values in cells.items()}
        rows = [(m, *(mean_and_sd(c[:, i, i], 3) for i in range(len(header) - 2)), mean_and_sd(c.mean((1, 2)), 3)) for m, c in cka.items()]
        batch = facts.get("cka_batch", stored.options["cka_batch"])
        note = f"Linear CKA of the whole maps, unbiased, {facts['cka_images']} test images in minibatches of {batch}."
        out.append(Table("CKA of the teacher's stages (first) and the student's (second)", header, rows, (note,)))
        if gains := _gains(stored):
            change = {m: [shown(compared(v[name], cells[BASELINE][name]), 3 if name == "kl" else 2) for name in MEASURES] for m, v in cells.items()}
            note = "95 % t-intervals of the mean paired difference, from three seeds on; they are not corrected for the number of comparisons."
            rows = [(m, *change[m]) for m in gains]
            out.append(Table("Method minus plain student of the same seed", ("method", *MEASURES.values()), rows, (note,)))
            rows = []
            for method, (mean, half, n) in gains.items():
                order = np.argsort(-mean, kind="stable")
                ends = [", ".join(_class(facts["classes"][c], mean[c], half, c) for c in part) for part in (order[:EXTREMES], order[::-1][:EXTREMES])]
                clear = "" if half is None else f"{int((mean - half > 0).sum())} up, {int((mean + half < 0).sum())} down"
                rows.append((method, str(n), f"{mean.std():.2f}", *ends, clear))
            note = f"Mean paired gain in top-1 points; of {len(facts['classes'])} classes, 5 % would be clear of 0 by chance alone."
            out.append(Table("Gains by class", ("method", "seeds", "sd over classes", "most", "least", "interval clear of 0"), rows, (note,)))
        return out

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        drawings = [_answers(stored), _cka(stored)]
        return drawings + ([_classes(stored, gains)] if (gains := _gains(stored)) else [])


def _seen(context, subject, count: int, batch: int, kernels: int) -> dict[str, np.ndarray]:
    """logits (N, K) fp32 and, for each stage, gram.<stage> (kernels, batch, batch) fp32 of the first minibatches."""
    from bench.analysis.maths.similarity import gram

    layers = context.layers(subject)
    logits, grams = [], {layer: [] for layer in layers}
    steps = -(-count // batch)
    for i, (images, _) in enumerate(context.progress(context.batches(count, batch), steps, f"{subject.label}, batches of {batch}")):
        outputs = context.outputs(subject, images, ("stage",) if i < kernels else ())
        logits.append(outputs.logits.float().cpu().numpy())
        for layer, at in layers.items() if i < kernels else ():
            grams[layer].append(gram(outputs.maps["stage"][at].float()).cpu().numpy())
    return {"logits": np.concatenate(logits)} | {f"gram.{layer}": np.stack(found) for layer, found in grams.items()}


def _cells(stored: Stored) -> dict[str, dict[str, dict[int, Any]]]:
    """Method -> measure (and "label") -> seed -> value."""
    cells: dict[str, dict[str, dict[int, Any]]] = {}
    for r in stored.facts["rows"]:
        for name in (*MEASURES, "label"):
            cells.setdefault(r["method"], {}).setdefault(name, {})[r["seed"]] = r[name]
    return cells


def _gains(stored: Stored) -> dict[str, tuple[np.ndarray, np.ndarray | None, int]]:
    """Method -> gain of each class over the plain student of the same seed (K,), half the interval (None below three seeds), seeds."""
    cells = _cells(stored)
    plain = cells.get(BASELINE, {}).get("label", {})
    found = {}
    for method, values in cells.items():
        seeds = sorted(values["label"].keys() & plain.keys())
        if method == BASELINE or not seeds:
            continue
        d = np.stack([stored.arrays[f"{values['label'][s]}.classes"] - stored.arrays[f"{plain[s]}.classes"] for s in seeds])
        found[method] = (d.mean(0), half_width(d) if len(seeds) >= CLAIM else None, len(seeds))
    return found


def _class(name: str, mean: float, half: np.ndarray | None, c: int) -> str:
    return f"{name} {mean:+.1f}" + ("" if half is None else f" ± {half[c]:.1f}")


def _answers(stored: Stored) -> Drawing:
    cells, said = _cells(stored), []
    figure = drawing.figure(0.7 + 0.55 * len(cells))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, name in zip(panels, ("agreement", "kl", "ece"), strict=True):
        for i, (method, values) in enumerate(cells.items()):
            found = list(values[name].values())
            axes.plot(found, [i] * len(found), "o", color="0.5", markersize=3, fillstyle="none")
            axes.plot([np.mean(found)], [i], "|", color="black", markersize=10, markeredgewidth=1.6)
            said.append(f"{method}, {MEASURES[name]}: {mean_and_sd(found, 3 if name == 'kl' else 2)}")
        if name in stored.facts["teacher"]:
            axes.axvline(stored.facts["teacher"][name], color="#0072b2", linestyle="--", linewidth=1)
            said.append(f"teacher, {MEASURES[name]}: {stored.facts['teacher'][name]:.2f}")
        drawing.label(axes, x=MEASURES[name])
        axes.locator_params(axis="x", nbins=3)
        axes.margins(x=0.15)
    panels[0].set_yticks(range(len(cells)), [drawing.plain(m) for m in cells], fontsize=drawing.NORMAL)
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    caption = f"Students of {stored.subject.split(' ')[0]}: circles are seeds, bars their means, the dashed line the teacher"
    return Drawing("answers", caption, "; ".join(said) + ".", figure)


def _cka(stored: Stored) -> Drawing:
    cells, layers, said = _cells(stored), stored.facts["layers"], []
    across = min(3, len(cells))
    down = -(-len(cells) // across)
    figure = drawing.figure(0.3 + 1.15 * down)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(cells) :]:
        axes.set_visible(False)
    for axes, (method, values) in zip(panels, cells.items(), strict=False):
        mean = np.mean([stored.arrays[f"{label}.cka"] for label in values["label"].values()], 0)
        axes.imshow(mean, cmap="Greys", vmin=0, vmax=1)
        for t, s in np.ndindex(mean.shape):
            axes.text(s, t, f"{mean[t, s]:.2f}", ha="center", va="center", fontsize=drawing.SMALL, color="white" if mean[t, s] > 0.5 else "black")
            said.append(f"{method}, {layers['teacher'][t]} and {layers['student'][s]}: {mean[t, s]:.2f}")
        drawing.label(axes, title=drawing.plain(method))
        axes.grid(False)
        axes.set_xticks(range(mean.shape[1]), [str(i + 1) for i in range(mean.shape[1])])
        axes.set_yticks(range(mean.shape[0]), [str(i + 1) for i in range(mean.shape[0])])
    figure.supxlabel("stage of the student", fontsize=drawing.NORMAL)
    figure.supylabel("stage of the teacher", fontsize=drawing.NORMAL)
    caption = f"Linear CKA between the stages of {stored.subject.split(' ')[0]} and of its students, mean over seeds"
    return Drawing("cka", caption, "; ".join(said) + ".", figure)


def _classes(stored: Stored, gains) -> Drawing:
    figure = drawing.figure(2.4)
    axes, said = figure.subplots(), []
    for i, (method, (mean, _, n)) in enumerate(gains.items()):
        look = drawing.look(i)
        axes.plot(np.sort(mean)[::-1], markersize=3, markevery=(2 * i, 14), linewidth=1.1, label=drawing.plain(method), **look)
        said.append(f"{method}: {int((mean > 0).sum())} of {len(mean)} classes gain, {int((mean < 0).sum())} lose, {n} seeds")
    axes.axhline(0, color="black", linewidth=0.6)
    drawing.label(axes, x="classes, each method's own order", y="gain in top-1 (points)")
    figure.legend(loc="outside upper center", ncols=4, fontsize=drawing.SMALL, frameon=False)
    caption = f"Gain of each class over the plain student of the same seed, mean over seeds, {stored.subject}"
    return Drawing("classes", caption, "; ".join(said) + ".", figure)
