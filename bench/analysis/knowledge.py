"""What IEP calls knowledge: how the relations between images change from stage to stage, in the teacher and in its students (Fig. 5)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.by_method import BASELINE, compared, mean_and_sd, shown
from bench.analysis.frame.registry import register
from bench.errors import UsageError

PREDICTORS = ("network", "identity", "uniform")
OVER_POINTS = ("affinity", "correlation")
DIGITS = {"affinity": 3, "correlation": 3, "alteration": 3, "int": 4, "alt": 3}


@dataclass(frozen=True)
class Options:
    """Batches of IEP's size under the CRD protocol; phase I as in its code."""

    images: int = 640  # test images, for the numbers
    batch: int = 64
    classes: int = 8  # of the batch that is drawn, with as many images each as fill it
    power_steps: int = 12
    phase_epochs: int = 20  # of the teacher's preparation, as the runs' own to use it
    phase_batch: int = 64
    phase_steps: int = 0
    check_batches: int = 50

    def __post_init__(self) -> None:
        if self.batch < 2 or self.images < self.batch or not 1 <= self.classes <= self.batch:
            raise ValueError("knowledge: a batch has at least 2 images and as many as classes, and images is at least a batch")
        if min(self.power_steps, self.phase_epochs, self.check_batches) < 1 or self.phase_batch < 2 or self.phase_steps < 0:
            raise ValueError("knowledge: power_steps, phase_epochs, check_batches are at least 1, phase_batch at least 2, phase_steps at least 0")


@register("knowledge")
class KnowledgeAlteration(Analysis):
    title = "Knowledge and its alteration"
    question = "Do the relations between images change from stage to stage in a student as they do in its teacher?"
    source = "Lee and Song, Interpretable Embedding Procedure Knowledge Transfer, AAAI 2021, Fig. 5"
    needs = Needs(students=True, preparation="iep")
    scope = "group"
    Options = Options

    def prepares(self) -> dict[str, dict[str, Any]]:
        names = ("power_steps", "phase_epochs", "phase_batch", "phase_steps", "check_batches")
        return {"iep": {name: getattr(self.options, name) for name in names}}

    def run(self, context) -> Result:
        import torch

        from bench.analysis.maths import knowledge as maths
        from methods.iep.hyper import Hyper
        from methods.iep.phase_one import KIND, restore, sensed
        from models.randomness import generator

        options, teacher, methods = self.options, context.teacher, context.rows()
        wanted = _points(context, teacher)
        for student in context.students:
            if (found := _points(context, student)) != wanted:
                shown_as = " against ".join(", ".join("x".join(map(str, p)) for p in ps) for ps in (found, wanted))
                raise UsageError(
                    f"knowledge is read through the teacher's PCA and needs stages of its shapes; {student.label} and {teacher.label}: {shown_as}"
                )
        changes = self.prepares()["iep"]
        prepared = context.prepared(teacher, "iep", changes)
        stages = restore(Hyper(**changes), [p[0] for p in wanted], prepared).to(context.device)
        labels = context.images.test_labels.cpu()
        batches = list(torch.randperm(len(labels), generator=generator(0, "knowledge/images"))[: options.images].split(options.batch))
        batches = [b for b in batches if len(b) == options.batch] or batches[:1]
        each = -(-options.batch // options.classes)  # images of each of the first classes, sorted by class: a batch of them where there are so many
        drawn = torch.cat([(labels == c).nonzero()[:each, 0] for c in labels.unique()[: options.classes]])[: options.batch]

        def maps(subject, ids):
            return sensed(context.outputs(subject, context.images.test_batch(ids.to(context.device)), (KIND,)).maps[KIND])

        def of(subject) -> dict[str, np.ndarray]:
            """The numbers of each batch, and the affinities of the drawn one; the teacher's numbers: itself with images in another order."""
            sums: dict[str, list] = {}
            with torch.inference_mode():
                for i, ids in enumerate(context.progress([drawn, *batches], len(batches) + 1, f"{subject.label}, batches")):
                    known, patterns = maths.of_teacher(stages, maps(teacher, ids), options.power_steps)
                    if subject is teacher:
                        order = torch.randperm(len(ids), generator=generator(i, "knowledge/shuffle")).to(context.device)
                        other = maths.shuffled(known, order)
                    else:
                        other = maths.of_student(stages, maps(subject, ids), patterns)
                    if i == 0:
                        affinities = (known if subject is teacher else other).affinities
                        continue
                    for name, value in maths.apart(known, other).items():
                        sums.setdefault(name, []).append(value.cpu().numpy())
            return {"affinities": affinities.float().cpu().numpy()} | {name: np.stack(values) for name, values in sums.items()}

        def row(subject, method: str) -> dict[str, Any]:
            found = context.part(f"network-{subject.hash}", lambda: of(subject))
            arrays[f"{subject.label}.affinities"] = found["affinities"].astype(np.float16)
            return {"method": method, "seed": subject.seed, "label": subject.label} | {n: found[n].mean(0).tolist() for n in DIGITS}

        arrays: dict[str, np.ndarray] = {}
        shuffled = row(teacher, "")
        rows = [row(student, method) for method, by_seed in methods.items() for student in by_seed.values()]
        facts = {"rows": rows, "shuffled": shuffled, "points": [list(p) for p in wanted], "images": sum(map(len, batches))}
        return Result(facts | {"phase_one": prepared.facts["kl_per_image"], "drawn_labels": labels[drawn].tolist()}, arrays)

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts, cells = stored.facts, _cells(stored)
        count = len(facts["points"])
        steps = [f"{i} to {i + 1}" for i in range(1, count)]
        titles = {
            "correlation": "Affinities A of the student and the teacher: correlation over pairs of images",
            "alteration": "Alteration of affinities between stages: correlation with the teacher's",
            "int": "K^int: KL(teacher || student), nats an image",
            "alt": "K^alt: mean L1 distance of messages",
        }
        out = []
        for name, title in titles.items():
            header = [f"stage {i}" for i in range(1, count + 1)] if name in OVER_POINTS else [f"stage {s}" for s in steps]
            rows = [("teacher, other images", "", *(f"{v:.{DIGITS[name]}f}" for v in facts["shuffled"][name]), "")]
            mean = {m: {seed: float(np.mean(values)) for seed, values in by_seed.items()} for m, by_seed in cells[name].items()}
            for method, by_seed in cells[name].items():
                over = "" if method == BASELINE else shown(compared(mean[method], mean.get(BASELINE, {})), DIGITS[name])
                said = [mean_and_sd(values, DIGITS[name]) for values in np.array(list(by_seed.values())).T]
                rows.append((method, str(len(by_seed)), *said, over))
            notes = (
                f"Mean ± standard deviation over seeds; {facts['images']} test images in batches of {stored.options['batch']}. Last column: "
                "mean over stages, minus that of the plain student of the same seed, 95 % t-interval from three seeds on.",
            )
            out.append(Table(title, ("method", "seeds", *header, "minus plain student"), rows, notes))
        rows = [(f"stage {s}", *(f"{r[n]:.4f}" for n in PREDICTORS)) for s, r in zip(steps, facts["phase_one"], strict=True)]
        title = "How well phase I predicts the teacher's next affinities on its training images, beside no change and nothing (KL, nats an image)"
        return [*out, Table(title, ("", *PREDICTORS), rows)]

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        return [_affinities(stored), _apart(stored)]


def _points(context, subject) -> list[tuple[int, int, int]]:
    from methods.iep.phase_one import KIND, sensed

    return list(sensed(context.shapes(subject).maps[KIND]))


def _cells(stored: Stored) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Measure -> method -> seed -> values."""
    cells: dict[str, dict[str, dict[int, list[float]]]] = {name: {} for name in DIGITS}
    for r in stored.facts["rows"]:
        for name in DIGITS:
            cells[name].setdefault(r["method"], {})[r["seed"]] = r[name]
    return cells


def _affinities(stored: Stored) -> Drawing:
    first: dict[str, str] = {stored.facts["shuffled"]["label"]: stored.facts["shuffled"]["label"]}
    for r in stored.facts["rows"]:
        first.setdefault(r["method"], r["label"])
    count = len(stored.facts["points"])
    across = 2 * count - 1
    side = (drawing.COLUMN - 0.6) / across
    figure = drawing.figure(len(first) * side + 0.3)
    panels = figure.subplots(len(first), across, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for r, (name, label) in enumerate(first.items()):
        a = stored.arrays[f"{label}.affinities"].astype(float)
        for c in range(across):
            shown_now, title = (a[c // 2], f"$A_{c // 2 + 1}$") if c % 2 == 0 else (a[c // 2 + 1] - a[c // 2], f"$A_{c // 2 + 2}-A_{c // 2 + 1}$")
            panels[r, c].imshow(shown_now, cmap="Greys", vmin=-1, vmax=1, interpolation="nearest")
            panels[r, c].set(xticks=[], yticks=[])
            if r == 0:
                panels[r, c].set_title(title, fontsize=drawing.SMALL)
        panels[r, 0].set_ylabel(drawing.plain(name, 12), fontsize=drawing.SMALL, rotation=0, ha="right", va="center", labelpad=3)
    size = len(stored.facts["drawn_labels"])
    caption = f"Affinities of {size} images sorted by class, and their change from stage to stage: {stored.subject} (first seed of each method); "
    said = [f"{r['method']} seed {r['seed']}: " + ", ".join(f"{v:.2f}" for v in r["alteration"]) for r in stored.facts["rows"]]
    text = "Correlation of the change from stage to stage with the teacher's, over all batches. " + "; ".join(said) + "."
    return Drawing("affinities", caption + "black 1, white -1", text, figure)


def _apart(stored: Stored) -> Drawing:
    cells, shuffled = _cells(stored), stored.facts["shuffled"]
    methods = list(cells["int"])
    names = {"alteration": "correlation of\nalterations", "int": "K$^{int}$: KL (nats)", "alt": "K$^{alt}$: L1"}
    figure, said = drawing.figure(0.9 + 0.3 * len(methods)), []
    panels = figure.subplots(1, len(names), sharey=True)
    steps = len(stored.facts["points"]) - 1
    for axes, (name, title) in zip(panels, names.items(), strict=True):
        for i, method in enumerate(methods):
            values = np.array(list(cells[name][method].values()))
            for step in range(steps):
                where = i + 0.36 * ((step + 0.5) / steps - 0.5)
                look = {"color": ("black", "0.6")[step % 2], "label": f"stage {step + 1} to {step + 2}" if i == 0 else None}
                axes.plot(values[:, step], [where] * len(values), drawing.MARKERS[step], markersize=3, fillstyle="none", **look)
            said.append(f"{method}, {name}: " + ", ".join(f"{v:.{DIGITS[name]}f}" for v in values.mean(0)))
        said.append(f"teacher on other images, {name}: " + ", ".join(f"{v:.{DIGITS[name]}f}" for v in shuffled[name]))
        drawing.label(axes, x=title)
        axes.locator_params(axis="x", nbins=3)
        axes.margins(x=0.1)
    panels[0].set_yticks(range(len(methods)), [drawing.plain(m) for m in methods], fontsize=drawing.NORMAL)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=drawing.SMALL, frameon=False)
    caption = f"How far the students' knowledge is from the teacher's, {stored.subject}: a marker a seed"
    return Drawing("apart", caption, "; ".join(said) + ".", figure)
