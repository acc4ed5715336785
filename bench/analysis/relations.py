"""What SKD's loss is there for: do the student's channels come to relate as the teacher's semantic vectors do?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.frame import drawing
from bench.analysis.frame.base import Analysis, Drawing, Needs, Result, Stored, Table
from bench.analysis.frame.by_method import BASELINE, compared, mean_and_sd, shown
from bench.analysis.frame.registry import register
from bench.errors import UsageError

MEASURES = {"images": "each image's relations", "mean": "the images' mean relations"}
INITIAL = "initial"
"""The row of the students before training; one network a seed, whatever the method."""
BATCH = 100


@dataclass(frozen=True)
class Options:
    """The paper's temperature and length of a semantic vector."""

    images: int = 2000  # of the test set; 0: all
    temperature: float = 1.0
    dimensions: int = 16

    def __post_init__(self) -> None:
        if self.images < 0 or self.temperature <= 0 or self.dimensions < 1:
            raise ValueError("relations: images is at least 0, temperature above 0, dimensions at least 1")


@register("relations")
class Relations(Analysis):
    title = "Relations between channels"
    question = "Do the channels of students relate as the teacher's semantic vectors do, and does training for it bring them nearer?"
    source = "Han et al., Static Knowledge Distillation, 2022, Eq. 2"
    needs = Needs(students=True, preparation="skd")
    scope = "group"
    Options = Options

    def prepares(self) -> dict[str, dict[str, Any]]:
        return {"skd": {"dimensions": self.options.dimensions, "temperature": self.options.temperature}}

    def run(self, context) -> Result:
        from methods.skd.loss import kl_left

        options, teacher, methods = self.options, context.teacher, context.rows()
        layers, count = context.layers(teacher), context.count(options.images or None)
        known, own = ([c for c, _, _ in context.shapes(one).maps["stage"][1:]] for one in (teacher, context.students[0]))
        if known != own:
            found = f"the stages of {teacher.architecture} have {_listed(known)} channels and those of the students {_listed(own)}"
            raise UsageError(f"{found}: only equal numbers can be compared")
        tensors = context.prepared(teacher, "skd", self.prepares()["skd"]).tensors
        target = {layer: tensors[f"p.{layer}"].to(context.device) for layer in layers}

        def seen(name: str, network) -> dict[str, list[float]]:
            made = context.part(name, lambda: _distances(context, network(), layers, target, count, options.temperature))
            return {measure: made[measure].tolist() for measure in MEASURES}

        trained = {"teacher": seen(f"trained-{teacher.hash}", lambda: context.network(teacher))}
        for s in context.students:
            trained[s.label] = seen(f"trained-{s.hash}", lambda s=s: context.network(s))
        initial = {s.seed: s for by_seed in methods.values() for s in by_seed.values()}
        rows = [
            {"method": INITIAL, "seed": seed, **seen(f"initial-{seed}", lambda seed=seed, s=s: _initial(context, s.architecture, seed))}
            for seed, s in sorted(initial.items())
        ]
        rows += [{"method": m, "seed": seed, "label": s.label, **trained[s.label]} for m, by_seed in methods.items() for seed, s in by_seed.items()]
        uniform = [kl_left(p, p.new_full(p.shape, 1 / len(p))).item() for p in target.values()]
        return Result({"teacher": trained["teacher"], "uniform": uniform, "rows": rows, "layers": list(layers), "images": count})

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        facts, out = stored.facts, []
        for measure, title in MEASURES.items():
            cells = _cells(stored, measure)
            rows = [("uniform", "", *_thousandths(facts["uniform"]), ""), ("teacher", "", *_thousandths(facts["teacher"][measure]), "")]
            plain = {seed: float(np.mean(values)) for seed, values in cells.get(BASELINE, {}).items()}
            for method, by_seed in cells.items():
                values = 1e3 * np.array(list(by_seed.values()))
                mean = {seed: 1e3 * (float(np.mean(v)) - plain[seed]) for seed, v in by_seed.items() if seed in plain}
                over = "" if method in (BASELINE, INITIAL) else shown(compared(mean, dict.fromkeys(mean, 0.0)))
                rows.append((method, str(len(by_seed)), *(mean_and_sd(v, 2) for v in (*values.T, values.mean(1))), over))
            header = ("method", "seeds", *facts["layers"], "mean", "minus plain student")
            out.append(Table(f"KL of {title} to the semantic vectors', 0.001 nats", header, rows))
        note = (
            f"KL(vectors' distribution || network's), mean over the rows of a layer, temperature {stored.options['temperature']:g}, "
            f"{facts['images']} test images; mean ± standard deviation over seeds. Each image's: what the loss of SKD is made of, and the mean over "
            "images. Uniform: a network that knows nothing of its channels. Initial: the students before training, with the statistics of the "
            "minibatch. Minus plain student: of the mean over layers, paired by seed, with its 95 % interval from three seeds on."
        )
        out[-1] = Table(out[-1].title, out[-1].header, out[-1].rows, (note,))
        return out

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        facts, cells, said = stored.facts, _cells(stored, "images"), []
        figure = drawing.figure(0.8 + 0.22 * len(cells))
        panels = figure.subplots(1, len(facts["layers"]), sharey=True, squeeze=False)[0]
        for at, (axes, layer) in enumerate(zip(panels, facts["layers"], strict=True)):
            for i, (method, by_seed) in enumerate(cells.items()):
                found = [1e3 * v[at] for v in by_seed.values()]
                axes.plot(found, [i] * len(found), "o", color="0.5", markersize=3, fillstyle="none")
                axes.plot([np.mean(found)], [i], "|", color="black", markersize=9, markeredgewidth=1.6)
                said.append(f"{method}, {layer}: {mean_and_sd(found, 2)}")
            axes.axvline(1e3 * facts["teacher"]["images"][at], color="#0072b2", linestyle="--", linewidth=1)
            axes.axvline(1e3 * facts["uniform"][at], color="0.3", linestyle=":", linewidth=1)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)
            drawing.label(axes, x="KL (0.001 nats)", title=layer)
        panels[0].set_yticks(range(len(cells)), [drawing.plain(m, 30) for m in cells], fontsize=drawing.SMALL)
        panels[0].set_ylim(len(cells) - 0.5, -0.5)
        of = stored.subject.split(" ")[0]
        caption = f"KL of each image's channel relations to those of the semantic vectors of {of}: circles are seeds, bars their means, "
        caption += f"the dashed line {of} itself, the dotted line a network that knows nothing"
        return [Drawing("relations", caption, "KL in 0.001 nats. " + "; ".join(said) + ".", figure)]


def _listed(channels: list[int]) -> str:
    return ", ".join(map(str, channels))


def _initial(context, architecture: str, seed: int):
    """The student of a seed before training, in training mode: its running statistics are not there yet."""
    import models
    from models.randomness import keyed

    with keyed(seed, f"init/{architecture}"):
        return models.build(architecture, len(context.dataset.classes)).to(context.device).train()


def _distances(context, network, layers: dict[str, int], target: dict[str, Any], count: int, temperature: float) -> dict[str, np.ndarray]:
    """Measure -> KL in nats of each layer, over the first `count` test images."""
    import torch

    from methods.skd.loss import entropy, kl_left, mean_distribution, static_loss

    sums = {layer: [0.0, torch.zeros_like(p, dtype=torch.float64)] for layer, p in target.items()}
    for images, _ in context.progress(context.batches(count, BATCH), -(-count // BATCH), f"batches of {BATCH}"):
        with torch.inference_mode():
            maps = network(images, ("stage",)).maps["stage"]
            for layer, at in layers.items():
                sums[layer][0] += len(images) * (static_loss(maps[at], target[layer], temperature) - entropy(target[layer])).item()
                sums[layer][1] += len(images) * mean_distribution(maps[at], temperature)
    pairs = [(value / count, kl_left(target[layer].double(), total / count).item()) for layer, (value, total) in sums.items()]
    return dict(zip(MEASURES, np.array(pairs).T, strict=True))


def _thousandths(values: list[float]) -> list[str]:
    """Of each layer, and their mean."""
    return [f"{1e3 * v:.2f}" for v in (*values, float(np.mean(values)))]


def _cells(stored: Stored, measure: str) -> dict[str, dict[int, list[float]]]:
    """Row -> seed -> KL of each layer (nats)."""
    cells: dict[str, dict[int, list[float]]] = {}
    for r in stored.facts["rows"]:
        cells.setdefault(r["method"], {})[r["seed"]] = r[measure]
    return cells
