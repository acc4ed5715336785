"""Checkpoints of a training group: one file a member, published together by one manifest, two generations kept.

A file carries no trust of its own: the manifest holds each file's SHA-256 (`torch.load` does not notice a flipped bit), and a
member whose file is damaged falls back to the previous generation, then to the start, saying so.
"""

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.errors import StoreError
from bench.store.files import read_bytes, read_json, typed, write_bytes, write_json
from bench.store.records import Manifest
from bench.text import clean
from bench.train.engine import is_of_device, is_short_of_memory
from bench.train.learner import Learner
from models.files import LIMIT

FORMAT = 1
WRITERS = 4
"""Members' files that are hashed and written at once."""
CURRENT, PREVIOUS = "manifest.json", "manifest.previous.json"
_KEY = re.compile(r"[0-9a-f]{16}")
"""The key of a group: a digest of its members."""


@dataclass(frozen=True, order=True)
class Position:
    """Where training stands: `step` steps of `epoch` (from 1) are done; (1, 0) is the start. Epochs of a stage before it end with 0."""

    epoch: int = 1
    step: int = 0


START = Position()


@dataclass(frozen=True)
class Restored:
    """A member's newest sound checkpoint."""

    position: Position
    state: Mapping[str, Any] | None  # None at the start
    notes: tuple[str, ...] = ()  # what was damaged, for the log


class GroupCheckpoint:
    """Writes the generations of one group below results/groups/<key>/ and the members' run folders."""

    def __init__(self, results: Path, key: str) -> None:
        self.results, self.folder = results, results / "groups" / key
        self.key = key

    def save(self, position: Position, states: Mapping[str, Callable[[], Mapping[str, Any]]]) -> int:
        """Write one generation: every member's file, then the manifest. `states`: run id -> state maker. Returns the bytes written.

        Raises OSError; the older generations then stand.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        current, previous = (read_manifest(self.folder / which) for which in (CURRENT, PREVIOUS))
        serial = 1 + max((m["serial"] for m in (current, previous) if m), default=0)
        name = f"checkpoint-{serial}-{self.key}.pt"

        def write(run_id: str, content: bytes) -> dict[str, Any]:
            write_bytes(self.results / "runs" / run_id / name, content)
            return {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

        try:
            # Disks are waited for while the next state is taken: training stands still meanwhile.
            with ThreadPoolExecutor(WRITERS) as pool:
                written = {}
                for run_id, make in states.items():
                    content = serialise({"format": FORMAT, "run": run_id, "epoch": position.epoch, "step": position.step, **make()})
                    written[run_id] = pool.submit(write, run_id, content)
            members = {run_id: future.result() for run_id, future in written.items()}
        except OSError:  # a full disk: what is left of it is not for files that no manifest will name
            for run_id in states:
                (self.results / "runs" / run_id / name).unlink(missing_ok=True)
            raise
        if current:
            # One that failed while the others went on keeps its generations: it is taken up where it stood.
            behind = [run for run in current["members"] if run not in states and _last_group(self.results / "runs" / run) == self.key]
            older = {run: previous["members"][run] for run in behind if previous and run in previous["members"]}
            write_json(self.folder / PREVIOUS, {**current, "members": current["members"] | older})
            members |= {run: current["members"][run] for run in behind}
        manifest = {"format": FORMAT, "serial": serial, "epoch": position.epoch, "step": position.step, "members": members}
        write_json(self.folder / CURRENT, manifest)
        # Members that come from another group leave it now: until here its manifest is the one that names a sound state of theirs.
        left = {_last_group(self.results / "runs" / run_id) for run_id in states} - {None, self.key}
        for run_id in states:
            write_json(self.results / "runs" / run_id / "group.json", {"format": FORMAT, "group": self.key})
        for key in left:
            _remove_if_left(self.results, key)
        for run_id in states:
            kept = {m["members"][run_id]["file"] for m in (current, manifest) if m and run_id in m["members"]}
            for path in (self.results / "runs" / run_id).glob("checkpoint-*.pt"):
                if path.name not in kept:
                    path.unlink(missing_ok=True)
        return sum(members[run_id]["bytes"] for run_id in states)


def serialise(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # most of the time of a save, and the manifest has a SHA-256
    try:
        torch.save(dict(state), buffer)
    finally:
        torch.serialization.set_crc32_options(computed)
    return buffer.getvalue()


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest, or None where it is absent or damaged (a generation that cannot be read is no generation)."""
    try:
        manifest = read_json(path)
        if manifest is not None:
            typed(path, manifest, Manifest)
        return manifest
    except StoreError:
        return None


def _group_of(folder: Path) -> str | None:
    """The group that a run was last saved in, or None. Raises StoreError for a damaged group.json."""
    content = read_json(folder / "group.json")
    if content is None:
        return None
    key = content.get("group")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise StoreError(f"{folder / 'group.json'}: names no group")
    return key


def _last_group(folder: Path) -> str | None:
    """As `_group_of`; None for a damaged group.json too."""
    with contextlib.suppress(StoreError):
        return _group_of(folder)
    return None


def _remove_if_left(results: Path, key: str) -> None:
    """Remove the manifests of a group that no member was last saved in."""
    group = results / "groups" / key
    members = {r for name in (CURRENT, PREVIOUS) for r in ((read_manifest(group / name) or {}).get("members") or {})}
    if any(_last_group(results / "runs" / r) == key for r in members):
        return
    for name in (CURRENT, PREVIOUS):
        (group / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        group.rmdir()


def restore(results: Path, run_id: str, rows: int | None = None) -> tuple[str | None, Restored]:
    """The group a run was last saved in (None: never) and its newest sound checkpoint, weights on the CPU.

    `rows`: how many epochs have their row; a checkpoint beyond them is left out, for those rows would be missing for ever.
    """
    folder = results / "runs" / run_id
    try:
        key = _group_of(folder)
    except StoreError:
        return None, Restored(START, None, ("group.json is damaged; starting over",))
    if key is None:
        return None, Restored(START, None)
    notes: list[str] = []
    tried: set[str] = set()
    for name in (CURRENT, PREVIOUS):
        path = results / "groups" / key / name
        manifest = read_manifest(path)
        if manifest is None:
            if path.exists():
                notes.append(f"{path.name} of group {key} is damaged")
            continue
        entry = manifest["members"].get(run_id)
        if entry is None or entry["file"] in tried:
            continue
        tried.add(entry["file"])
        state, problem = _load(folder / Path(entry["file"]).name, entry["sha256"], run_id)
        if state is not None and rows is not None and state["epoch"] > rows + 1:
            state, problem = None, f"stands in epoch {state['epoch']}, and only {rows} epochs have their row"
        if state is not None:
            return key, Restored(Position(state["epoch"], state["step"]), state, tuple(notes))
        notes.append(f"{entry['file']}: {problem}")
    return None, Restored(START, None, (*notes, "no sound checkpoint; starting over"))


def _load(path: Path, sha256: str, run_id: str) -> tuple[dict[str, Any] | None, str]:
    try:
        content = read_bytes(path, LIMIT)
    except FileNotFoundError:
        return None, "is missing"
    except StoreError as error:
        return None, str(error)
    if hashlib.sha256(content).hexdigest() != sha256:
        return None, "content differs from its SHA-256"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        sound = isinstance(state["epoch"], int) and isinstance(state["step"], int)
    except Exception as error:  # a stranger's bytes make torch.load raise many things
        return None, f"cannot be read as a checkpoint ({type(error).__name__})"
    if not sound or state.get("format") != FORMAT or state.get("run") != run_id:
        return None, "is another run's or another version's"
    return state, ""


def load_into(learner: Learner, state: Mapping[str, Any]) -> None:
    """Give a learner the state that was restored. Raises StoreError where it does not fit the code as it is now."""
    try:
        learner.load(state)
    except Exception as error:  # a stranger's module may raise anything
        if is_short_of_memory(error) or is_of_device(error):
            raise
        said = clean(" ".join(str(error).split()), 150)
        cure = "--redo starts it over; one that is pending already: empty its folder in redo/runs"
        raise StoreError(f"{said}; its checkpoint is of other code; {cure}") from error


def sweep(results: Path, run_id: str) -> int:
    """Remove what killed saves left of a run whose lease is ours: temporary files, and checkpoints that no manifest names. Returns the bytes."""
    folder = results / "runs" / run_id
    key = _last_group(folder)
    group = results / "groups" / (key or "-")
    manifests = [manifest for name in (CURRENT, PREVIOUS) if (manifest := read_manifest(group / name))]
    named = {entry["file"] for manifest in manifests for member, entry in manifest["members"].items() if member == run_id}
    left = [path for place in (folder, group) for path in place.glob(".*.tmp")]
    left += [path for path in folder.glob("checkpoint-*.pt") if path.name not in named]
    size = 0
    for path in left:
        with contextlib.suppress(OSError):  # another member's writer may have taken it away
            size += path.stat().st_size
            path.unlink()
    return size


def discard(results: Path, run_id: str) -> None:
    """Remove a finished run's checkpoints; its group's manifests go with the last member."""
    folder = results / "runs" / run_id
    key = _last_group(folder)
    for path in folder.glob("checkpoint-*.pt"):
        path.unlink(missing_ok=True)
    (folder / "group.json").unlink(missing_ok=True)
    if key:
        _remove_if_left(results, key)
