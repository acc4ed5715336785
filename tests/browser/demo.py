"""Made-up results that look like a finished paper profile: accuracies drawn around the published ones, so the page can be seen and tested.

`python -m tests.browser.demo FOLDER` writes it; nothing in it was measured, and the device's name says so.
"""

import math
import random
import sys
from pathlib import Path

from bench.nightly import history
from bench.plan.protocols import Protocol
from bench.report import published
from tests.bench import synthetic

DEVICE = {"type": "cuda", "name": "Made-up GPU"}
SPEED = {"student": 1.0, "kd": 0.93, "fitnet": 0.86, "at": 0.9, "rkd": 0.88, "sp": 0.91, "cc": 0.92, "iep": 0.62, "skd": 0.55}


def fill(results: Path, protocol: Protocol = synthetic.CRD, pairs=synthetic.PAIRS, methods=synthetic.METHODS, seeds=(1, 2, 3)) -> Path:
    """Runs, costs and a plan; one run diverged and one still runs, where there are as many."""
    index = published.load()
    draw = random.Random(5)
    for t, (teacher, student) in enumerate(pairs):
        for method in methods:
            known = index.get(("crd", "cifar100", 1.0, teacher, student, method)) or index.get(("skd", "cifar100", 1.0, teacher, student, method))
            plain = index["crd", "cifar100", 1.0, teacher, student, "student"].top1
            centre = (known.top1 if known else plain + 0.8) + draw.gauss(0.1, 0.15)
            for seed in seeds:
                run = synthetic.run_of(method, teacher, student, seed, protocol)
                if (results / "runs" / run.id).exists():
                    continue
                state = {("rkd", 1, 3): "diverged", ("skd", 5, 3): "running"}.get((method, t, seed), "done")
                shared = random.Random(f"{student}{seed}").gauss(0, 0.15)
                taught = {"architecture": teacher, "hash": run.teacher_hash, "trained": True}
                taught["test_top1"] = index["crd", "cifar100", 1.0, teacher, student, "teacher"].top1
                _run(results, run, round(centre + shared + draw.gauss(0, 0.14), 2), state, taught if run.teacher else None)
            speed = 24000 / (1 + t / 3) * SPEED.get(method, 0.8) * draw.uniform(0.97, 1.03)
            memory = int((420 << 20) * (1 + 0.12 * methods.index(method)))
            preparation = 240.0 + 60 * t if method in ("iep", "skd") else None
            synthetic.add_cost(results, teacher, student, method, speed, memory, preparation, device=DEVICE)
    synthetic.add_plan(results, pairs, methods, seeds, protocol)
    return results


def _run(results: Path, run, top1: float, state: str, teacher: dict | None) -> None:
    """One run with a curve that climbs, jumps at the milestones and jitters."""
    epochs = run.protocol.epochs
    noise = random.Random(run.id)
    count = epochs if state == "done" else max(1, epochs // 3)

    def at(epoch: int) -> float:
        if epoch == epochs:
            return top1
        level = sum(epoch > m for m in run.protocol.milestones)
        base = (top1 - 15) * (1 - math.exp(-epoch / (epochs / 30))) if level == 0 else top1 - (2.5, 0.6, 0.1)[level - 1]
        return round(max(1.0, base + noise.gauss(0, (2.2, 0.35, 0.15, 0.08)[level])), 2)

    synthetic.add_run(results, run, top1, state, rows=count, curve=at, device=DEVICE, commit="0123abcd", teacher=teacher)


def nights(results: Path, count: int = 30) -> None:
    """A history of nightly runs: a quiet metric, and one that steps down for the last five nights."""
    draw = random.Random(1)
    place = history.folder(results, "made-up-cpu")
    place.mkdir(parents=True)
    for number in range(1, count + 1):
        row = {"format": 1, "night": number, "date": f"2025-01-{number:02d}T03:00:00+00:00", "commit": f"{number:08x}" * 5, "plan": "p"}
        row |= {"parts": ["accuracy", "cost"], "facts": {}, "sources": {}, "failures": {}, "metrics": {}}
        for key, unit, scale, level in (("top-1", "%", "linear", 61.0), ("step time", "× student", "log", 1.2 + 0.2 * (number > count - 5))):
            metric = {"method": "kd", "pair": "resnet20 -> resnet8", "metric": key, "unit": unit, "part": row["parts"][scale == "log"]}
            metric |= {"worse": "higher" if scale == "log" else "lower", "scale": scale, "bits": {}}
            row["metrics"][f"kd/{key}"] = {**metric, "values": {str(k): level * (1 + draw.gauss(0, 0.004)) for k in (1, 2, 3)}}
        history.append(place, row)
        if number == 1:
            history.set_baseline(place, row, "first night")


if __name__ == "__main__":
    print(fill(Path(sys.argv[1])))
    nights(Path(sys.argv[1]))
