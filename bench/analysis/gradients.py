"""Why a method helps or hurts: how strongly each of its loss terms pulls at the student, and whether it pulls the labels' way."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.by_method import BASELINE, mean_and_sd
from bench.analysis.frame.registry import register
from bench.errors import UsageError

LABELS = "ce"
"""The term that the others are compared with."""
WHEN = ("initial", "trained")


@dataclass(frozen=True)
class Options:
    """The first minibatches of the first epoch, of the runs' own size, augmented as the runs saw them."""

    batches: int = 3

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError("gradients: batches is at least 1")


@register("gradients")
class Gradients(Analysis):
    title = "Gradients of the loss terms"
    question = "How strong is the gradient of each loss term beside that of the labels, and do the two point the same way?"
    version = 3
    before = {
        1: "where students have dropout, its masks were not those of training; and as version 2",
        2: "a memory bank (crd) began the trained pass with what the initial one had left in it",
    }
    needs = Needs(students=True)
    scope = "group"
    Options = Options

    def made_of(self, context) -> dict[str, Any]:
        """The code of the losses, and of what they prepare."""
        from methods import registry

        return {"sources": registry.sources({student.method for student in context.students})}

    def run(self, context) -> Result:
        from methods import registry

        methods, rows = context.rows(), []
        for student in (s for by_seed in methods.values() for s in by_seed.values()):
            known = _view(student).known
            if known.method_version != (here := registry.get(student.method).version):
                old = f"version {known.method_version} of {student.method}"
                raise UsageError(f"{student.label} is of {old}, and here is version {here}: train it again")
        for method in (m for m in methods if m != BASELINE):
            for seed, student in methods[method].items():
                found = context.part(f"network-{student.hash}", lambda student=student: _of_run(context, student, self.options.batches))
                for key, values in found.items():
                    when, term = key.split(".", 1)
                    ratio, cosine = values.mean(0).tolist()
                    row = {"method": method, "seed": seed, "label": student.label, "term": term, "when": when}
                    rows.append(row | {"ratio": ratio, "cosine": cosine})
        if all(r["term"] == LABELS for r in rows):
            raise UsageError(f"no loss term beside the labels' in the training of {', '.join(methods)}: name runs of other methods")
        return Result({"rows": rows})

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        header = ("method", "seeds", "term", *(f"{what}, {when}" for when in WHEN for what in ("ratio", "cosine")))
        rows = []
        for (method, term), cell in _cells(stored).items():
            shown = [mean_and_sd(cell[when, what], 3 if what == "ratio" else 2) for when in WHEN for what in ("ratio", "cosine")]
            rows.append((method, str(len(cell[WHEN[0], "ratio"])), term, *shown))
        notes = [
            "Norm of each weighted term's gradient on the student's parameters over that of the labels' (the method's cross-entropy; of a method "
            f"without one, the student's plain one), and cosine between the two: mean over {stored.options['batches']} training batches, then mean ± "
            "standard deviation over seeds. Initial: in the first epoch, before any pre-training; trained: the finished student with the method's "
            "own modules as they ended, in the last epoch; memory banks begin anew. A method's clipping of gradients is left out.",
        ]
        if alone := {r["method"] for r in stored.facts["rows"]} - {method for method, _ in _cells(stored)}:
            notes.append(f"No term beside the labels' in the main stage: {', '.join(sorted(alone))}.")
        return [Table("Gradients of the loss terms, relative to the labels'", header, rows, notes)]

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        cells = _cells(stored)
        figure, said = drawing.figure(0.8 + 0.17 * len(cells)), []
        for axes, what in zip(panels := figure.subplots(1, 2, sharey=True), ("ratio", "cosine"), strict=True):
            for when, fill in zip(WHEN, ("none", "full"), strict=True):
                means = [float(np.mean(cell[when, what])) for cell in cells.values()]
                axes.plot(means, range(len(means)), "o", color="black", markersize=3.5, fillstyle=fill, label=when)
                said += [f"{' '.join(key)}, {what}, {when}: {mean:.3g}" for key, mean in zip(cells, means, strict=True)]
            axes.axvline(1 if what == "ratio" else 0, color="0.6", linewidth=0.8)
            drawing.label(axes, x="ratio of norms" if what == "ratio" else "cosine")
        panels[0].set_xscale("log")
        panels[0].set_yticks(range(len(cells)), [drawing.plain(m if t == m else f"{m}: {t}", 30) for m, t in cells], fontsize=drawing.SMALL)
        panels[0].set_ylim(len(cells) - 0.5, -0.5)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=drawing.SMALL, frameon=False)
        caption = f"Gradient of each loss term beside the labels', {stored.subject}: norm, and cosine; means over seeds"
        return [Drawing("gradients", caption, "; ".join(said) + ".", figure)]


def _view(student):
    from bench.store.runs import read_run

    return read_run(student.file.parent)


def _of_run(context, student, batches: int) -> dict[str, np.ndarray]:
    """"<when>.<term>" -> (batches, 2): norm relative to the labels' gradient, and cosine."""
    from bench.plan.groups import Group
    from bench.store.weights import read_state
    from bench.train.context import runs_of
    from bench.train.learner import Learner

    view, teacher = _view(student), context.teacher
    hyper = tuple((view.method, name, value) for name, value in view.known.hyper.items())
    group = Group(teacher.architecture, view.student, view.seed, view.protocol, view.precision, (view.method,), hyper)
    (member,) = runs_of(group, context.dataset, teacher.hash)
    if member.skipped:
        raise UsageError(f"{student.label}: {member.skipped}")
    wanted = member.method.preparation(member.hyper, member.setting)
    prepared, found = wanted and context.preparation(teacher, wanted), {}
    for when, epoch in zip(WHEN, (1, view.protocol.epochs), strict=True):
        learner = Learner(member.run, member.method, member.hyper, member.setting, prepared, context.device)
        learner.start(context.images.train_labels)
        if when == "trained":
            learner.student.load_state_dict(read_state(student.file))
            if (own := student.file.with_name("method.pt")).exists():
                learner.method.load_state_dict(read_state(own), strict=False)  # what is not released, a memory bank, is not there
        learner.begin_epoch(epoch)
        sums: dict[str, list] = {}
        for losses, plain in _losses(context, learner, batches):
            for term, values in _compared(losses, plain, list(learner.student.parameters())).items():
                sums.setdefault(f"{when}.{term}", []).append(values)
        found |= {name: np.array(values) for name, values in sums.items()}
    return found


def _losses(context, learner, batches: int):
    """The method's named loss terms and the plain cross-entropy, for each of the first batches of the first epoch."""
    from torch.nn import functional as F

    from bench.data import augment
    from bench.train.learner import teacher_forward
    from methods.base import Batch

    images, size = context.images, learner.run.protocol.batch
    draws = augment.draws(learner.run.seed, 1, len(images.train_labels)).to(context.device)
    for i in range(min(batches, -(-len(draws.order) // size))):
        index = draws.order[i * size : (i + 1) * size]
        pictures = images.train_batch(index, draws.dy, draws.dx, draws.flip)
        labels = images.train_labels[index]
        if learner.draws_in_steps:
            learner.begin_step(index, i * size)
        needs = learner.teacher_needs
        known = teacher_forward(context.network(context.teacher), pictures, needs, learner.run.precision) if needs else None
        learner.seed_dropout(i * size)
        outputs, losses = learner.forward(pictures, known, Batch(labels, index))
        yield losses, F.cross_entropy(outputs.logits, labels)


def _compared(losses, plain, parameters) -> dict[str, tuple[float, float]]:
    """Each term's gradient: its norm over that of the labels' term (of the plain cross-entropy where that is not there or has no weight), and
    the cosine between the two."""
    import torch
    from torch.nn import functional as F

    def gradient(loss) -> torch.Tensor:
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else [None] * len(parameters)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)]).double()

    gradients = {term: gradient(loss) for term, loss in losses.items()}
    labels = gradients.get(LABELS)
    if labels is None or not labels.any():
        labels = gradient(plain)
    return {term: ((g.norm() / labels.norm()).item(), F.cosine_similarity(g, labels, dim=0).item()) for term, g in gradients.items()}


def _cells(stored: Stored) -> dict[tuple[str, str], dict[tuple[str, str], list[float]]]:
    """(method, term) -> (when, "ratio" or "cosine") -> values of the seeds; all terms but the labels'."""
    cells: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for r in (r for r in stored.facts["rows"] if r["term"] != LABELS):
        for what in ("ratio", "cosine"):
            cells.setdefault((r["method"], r["term"]), {}).setdefault((r["when"], what), []).append(r[what])
    return cells
