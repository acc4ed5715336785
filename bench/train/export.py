"""`export`: a finished run's student to take away, as safetensors and in RepDistiller's form, with a card that says what it is."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import tyro

from bench.errors import UsageError
from bench.options import ResultsOption
from bench.plan.datasets import DATASETS
from bench.store.files import folders, write_bytes
from bench.store.runs import RunView, read_run
from bench.text import count

SAFETENSORS = "model.safetensors"
CARD = "README.md"
LICENCE = (
    "MIT, as the suite that trained it. CIFAR-100 and a teacher that was imported have terms of their own; neither is part of these files."
)


@dataclass(frozen=True, kw_only=True)
class Export(ResultsOption):
    """Write a finished run's student: weights as safetensors and in RepDistiller's form, and a card that says how it was trained."""

    run: tyro.conf.Positional[str]
    """The run's id, or the beginning of one."""
    out: Path | None = None
    """Folder for the export, which gets a folder of its own there, named by the run; default: export/ in the results folder."""

    def main(self) -> int:
        view = find(self.results, self.run)
        for path in export(view, self.out or self.results / "export"):
            print(path)
        return 0


def find(results: Path, name: str) -> RunView:
    """The finished run of that id, or the one whose id so begins. Raises UsageError, or StoreError for one that cannot be trusted."""
    runs = results / "runs"
    ids, problems = folders(results, "runs")
    if problems or not runs.is_dir():
        raise UsageError(f"{runs} {problems[0].reason if problems else 'is no folder'}; name the results folder with --results")
    found = [one for one in ids if one == name] or [one for one in ids if name and one.startswith(name)]
    if not found:
        listing = f"python -m bench status --all --results {shlex.quote(str(results))}"
        raise UsageError(f"no run in {runs} is named {name!r} or begins so; ids are listed by: {listing}")
    if len(found) > 1:
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise UsageError(f"{len(found)} runs in {runs} begin with {name!r}: {shown}; write more of the id")
    view = read_run(runs / found[0])
    if view.record is None:
        because = f" ({view.reason})" if view.reason else ""
        raise UsageError(f"{view.id} is {view.status}{because}: only a finished run is exported")
    return view


def export(view: RunView, out: Path) -> list[Path]:
    """Write a finished run's student to a folder of its own in `out`; what was written.

    Raises UsageError where the weights are not there or not those of the record, or are not all that was evaluated.
    """
    import models
    from bench import data
    from bench.store.weights import pickled, plain, read_state, safetensors, state_hash

    record, protocol, source = view.record, view.protocol, view.folder / "student.pt"
    if not source.exists():
        raise UsageError(f"{view.id}: {source} is not there (evidence sets keep records and no weights); export from the folder it was trained in")
    if record.inference:
        raise UsageError(f"{view.id} is evaluated with modules of {view.method} beside the student: the student alone is not what was tested")
    cure = f"see what mends it with: python -m bench doctor --results {shlex.quote(str(view.folder.parents[1]))}"
    try:
        state = read_state(source)
    except UsageError as error:
        raise UsageError(f"{str(error).partition(';')[0]}; {cure}") from None
    if (found := state_hash(state)) != record.weights_sha256:
        raise UsageError(f"{source} has hash {found}, its record says {record.weights_sha256}: it is not what was trained; {cure}")
    mean, std = data.normalisation(protocol.dataset)
    network = {"architecture": view.student, "classes": len(state[f"{models.head(view.student)}.weight"])}
    network |= {"image_size": protocol.image_size, "mean": mean, "std": std, "dataset": protocol.dataset}
    network |= {"protocol": protocol.name, "trial": protocol.trial, "run": view.id}
    # RepDistiller reads the architecture from the folder's name.
    theirs = Path(f"{view.student}_{view.method}") / f"ckpt_epoch_{record.epochs}.pth"
    contents = {
        Path(SAFETENSORS): safetensors(state, {"network": network, "run": facts(view)}),
        theirs: pickled({"model": plain(state)}),
        Path(CARD): card(view, network, theirs).encode(),
    }
    folder = out / view.id
    try:
        for path, content in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / path, content)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}; choose another folder with --out") from None
    return [folder / path for path in contents]


def facts(view: RunView) -> dict[str, Any]:
    """How the weights came about, from the run's configuration and record."""
    kept = ("epochs", "test_top1", "test_top5", "best_top1", "best_epoch", "weights_sha256", "commit", "versions", "device", "teacher", "finished")
    record = msgspec.to_builtins(view.record)
    return {"id": view.id, **view.identity, **{name: record[name] for name in kept}, "licence": LICENCE}


def card(view: RunView, network: dict[str, Any], theirs: Path) -> str:
    """The model card, in Markdown."""
    import models

    known, record, protocol, teacher = view.known, view.record, view.protocol, view.record.teacher
    versions = msgspec.to_builtins(record.versions)
    best = "the same" if record.best_epoch == record.epochs else f"{record.best_top1:.2f} % (epoch {record.best_epoch})"
    rate = protocol.small_lr if models.small_rate(view.student) else protocol.lr
    rows = {
        "Architecture": f"{view.student}, {network['classes']} classes, {network['image_size']} x {network['image_size']} pixels",
        "Method": f"{view.title} (`{view.method}`, version {known.method_version})",
        "Settings": ", ".join(f"{name} {value}" for name, value in known.hyper.items()) or "none",
        "Pair": f"{view.teacher} (teacher) to {view.student} (student)" if teacher else f"{view.student}, without a teacher",
        "Test top-1, last epoch": f"{record.test_top1:.2f} %: that of these weights",
        "Test top-1, best epoch": f"{best}; picked on the test set, and never what these weights are chosen by",
        "Protocol": f"`{protocol.name}`: {count(record.epochs, 'epoch')}, batch {protocol.batch}, SGD with momentum {protocol.momentum}, "
        f"weight decay {protocol.weight_decay}, learning rate {rate} times {protocol.decay} after epochs {', '.join(map(str, protocol.milestones))}",
        "Images": f"{protocol.dataset}, hash `{known.data_hash}`",
        "Normalisation": f"mean {network['mean']}, std {network['std']} on the 0..1 scale",
        "Seed": view.seed,
        "Precision": view.precision,
        "Device": record.device.name,
        "Versions": ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "python", "cuda") if versions[name]),
        "Suite": f"kd-bench, commit {record.commit or 'unknown'}",
        "Run": f"`{view.id}`, finished {record.finished}",
        "Weights (SHA-256 of names, shapes and values, 16 digits)": f"`{record.weights_sha256}`",
        "Teacher": f"{teacher.architecture}, {teacher.test_top1:.2f} % test top-1, hash `{teacher.hash}`" if teacher else "none",
        "Licence": LICENCE,
    }
    banners = [f"**TRIAL, not the protocol: {protocol.trial}.**"] if protocol.trial else []
    if DATASETS[protocol.dataset].drawn:
        banners.append("**Trained and tested on embedded data: its accuracy says nothing about CIFAR-100.**")
    lines = [
        *("---", "license: mit", "---", f"# {view.student} by {view.title}", ""),
        *(line for banner in banners for line in (banner, "")),
        *("| what | value |", "|---|---|"),
        *(f"| {name} | {str(value).replace('|', ' ')} |" for name, value in rows.items()),
        *("", "```python", "import torch", "", "import models", "", f'network = models.load("{SAFETENSORS}")  # in eval mode'),
        f"mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({network['mean']}, {network['std']}))",
        "logits = network((images - mean) / std).logits  # images (N, 3, H, W) on the 0..1 scale",
        *("```", "", f"`{theirs.as_posix()}` holds the same in RepDistiller's form (`--path_t`). It reads the network's name from the folder's;"),
        "rename the folder where it has another one, as in ResNet50 or ShuffleV1.",
    ]
    return "\n".join(lines) + "\n"
