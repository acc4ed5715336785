"""A made-up results folder, written through the store: valid runs, costs and a plan with numbers that are known."""

import json
import os
import random
from pathlib import Path
from typing import Any
from unittest import mock

from bench.plan import identity
from bench.plan.protocols import PROTOCOLS, Protocol
from bench.store import costs
from bench.store.files import write_json
from bench.store.rows import row_line
from bench.store.runs import write_config, write_record, write_status

PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
METHODS = ("student", "kd", "fitnet", "at", "rkd", "sp", "cc", "iep", "skd")
TITLES = {"student": "Student", "kd": "KD", "fitnet": "FitNet", "at": "AT", "rkd": "RKD", "sp": "SP", "cc": "CC", "iep": "IEP", "skd": "SKD"}
CRD = PROTOCOLS["crd"]
SHORT = CRD.scaled(3)
DEVICE = {"type": "cuda", "name": "Test GPU"}
VERSIONS = {"python": "3.11.0", "torch": "2.9.0"}


def run_of(method: str, teacher: str | None, student: str, seed: int, protocol: Protocol = SHORT, **changes: Any) -> identity.Run:
    """A Run; the plain student has no teacher. `changes`: fields of Run."""
    if method == "student":
        teacher = None
    fields = {"precision": "tf32", "data_hash": "d" * 16, "teacher": teacher, "teacher_hash": f"{teacher}-hash" if teacher else None, **changes}
    return identity.Run(student, method, seed, protocol, **fields)


@mock.patch.object(os, "fsync", lambda handle: None)  # nothing here must survive a crash
def add_run(results: Path, run: identity.Run, top1: float, status: str = "done", rows: int | None = None, **record: Any) -> Path:
    """Write one run folder; `status` other than done leaves no record. `rows`: epochs written (all of them unless said). Returns the folder."""
    folder = results / "runs" / run.id
    source = record.pop("method_source", "a" * 16)
    curve = record.pop("curve", None)  # epoch -> top-1, in place of the plain one
    write_config(folder, run.identity(), source, record.pop("title", TITLES.get(run.method, run.method)), record.pop("changed", {}))
    epochs = run.protocol.epochs
    count = epochs if rows is None else rows
    tops: list[float] = []
    lines: list[bytes] = []
    name = run.id  # takes a while
    for epoch in range(1, count + 1):
        tops.append(curve(epoch) if curve else round(max(0.0, top1 - 40 * (1 - epoch / epochs) ** 2), 2))
        row = {"run": name, "attempt": 1, "epoch": epoch, "lr": run.protocol.rate(epoch, small=False), "loss": 4.6 - 3 * epoch / epochs}
        row |= {"losses": {"ce": 1.0}, "train_top1": tops[-1], "test_top1": tops[-1], "test_top5": 90.0, "test_loss": 1.2, "seconds": 1.5}
        lines.append(row_line(row))
    if lines:
        with open(folder / "epochs.jsonl", "ab") as file:
            file.write(b"".join(lines))
    if status == "done":
        teacher = {"architecture": run.teacher, "hash": run.teacher_hash, "test_top1": 74.5, "trained": True} if run.teacher else None
        made = {"epochs": epochs, "test_top1": tops[-1], "test_top5": 90.0, "best_top1": max(tops)}
        made |= {"best_epoch": 1 + tops.index(max(tops)), "attempts": 1, "train_seconds": 360.0, "test_loss": 1.2}
        made |= {"device": DEVICE, "versions": VERSIONS, "engine": "eager", "threads": 1, "deterministic": False}
        made |= {"commit": "abc1234", "method_source": source, "weights_sha256": "0" * 64, "teacher": teacher, "preparation": None}
        made |= {"finished": "2025-01-01T00:00:00Z"}
        write_record(folder, {**made, **record})
    write_status(folder, status, reason="loss is not finite" if status == "diverged" else "", epoch=count, test_top1=tops[-1] if tops else None)
    return folder


def add_cost(
    results: Path, teacher: str, student: str, method: str, speed: float, memory: int, preparation: float | None = None, **changes: Any
) -> Path:
    """Write one cost file of the older kind, which does not say how it was measured: images a second, bytes, seconds of preparation."""
    cost = _cost(None if method == "student" else teacher, student, method, speed, memory, preparation) | changes
    folder = results / "costs" / "test-gpu"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{teacher}-{student}-{method}-{cost['precision']}.json"
    write_json(path, cost)
    return path


def _cost(teacher: str | None, student: str, method: str, speed: float, memory: int, preparation: float | None) -> dict[str, Any]:
    cost = {"format": 1, "teacher": teacher, "student": student, "method": method, "precision": "tf32"}
    cost |= {"device": DEVICE, "versions": VERSIONS, "images_per_second": speed, "step_ms_median": 64e3 / speed}
    cost |= {"step_ms_iqr": [64e3 / speed, 65e3 / speed]}
    cost |= {"steps_timed": 100, "warmup_steps": 20, "batch": 64, "peak_memory_bytes": memory, "peak_memory_kind": "allocated"}
    cost |= {"preparation_seconds": preparation, "preparation_peak_bytes": None, "protocol": "crd"}
    cost |= {"student_macs": 1, "teacher_macs": 1, "teacher_trained": True, "threads": 1, "engine": "eager"}
    return cost | {"finished": "2025-01-01T00:00:00Z"}


def add_measured(results: Path, run: identity.Run, speed: float, threads: int = 1, engine: str = "eager", **changes: Any) -> Path:
    """Write the cost of a run's step as a probe does: named by everything that can change it, all of which it says."""
    what = costs.measured(run, threads, engine)
    path = costs.record_path(results, DEVICE["name"], what)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _cost(run.teacher, run.student, run.method, speed, 1 << 20, None) | what | {"protocol": run.protocol.name, **changes})
    return path


def add_plan(results: Path, pairs: Any, methods: Any, seeds: Any, protocol: Protocol = SHORT) -> None:
    """Write plan.json for all of pairs x methods x seeds."""
    cells = [
        {"teacher": t, "student": s, "method": m, "seed": seed, "run": run_of(m, t, s, seed, protocol).id, "skipped": None}
        for t, s in pairs
        for m in methods
        for seed in seeds
    ]
    plan = {"format": 1, "profile": "paper", "protocol": json.loads(json.dumps(run_of("kd", "t", "s", 1, protocol).identity()["protocol"]))}
    plan |= {"precision": "tf32", "seeds": list(seeds), "pairs": [{"teacher": t, "student": s, "title": f"{t} -> {s}"} for t, s in pairs]}
    plan |= {"rows": [{"method": m, "title": TITLES.get(m, m)} for m in methods], "cells": cells}
    write_json(results / "plan.json", plan)


def fill(results: Path, pairs: Any = PAIRS, methods: Any = METHODS, seeds: Any = (1, 2, 3), protocol: Protocol = SHORT, seed: int = 0) -> Path:
    """A whole table: every run done, every cost, a plan. Accuracies are drawn; KD is 1.5 above the student and so on."""
    results.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    students: dict[str, float] = {}
    for teacher, student in pairs:
        base = students.setdefault(student, 69 + 4 * draw.random())
        for index, method in enumerate(methods):
            for s in seeds:
                run = run_of(method, teacher, student, s, protocol)
                if not (results / "runs" / run.id).exists():
                    add_run(results, run, round(base + (1.8 - 0.25 * index if index else 0) + draw.gauss(0, 0.2), 2))
            preparation = 90.0 if method in ("iep", "skd") else None
            add_cost(results, teacher, student, method, 20000 / (1 + 0.2 * index), (300 + 40 * index) << 20, preparation)
    add_plan(results, pairs, methods, seeds, protocol)
    return results
