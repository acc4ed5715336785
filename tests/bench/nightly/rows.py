"""Made-up nights as rows of a history."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

METHODS = ("student", "kd", "at")
PAIR = "resnet14 -> resnet8"


def bits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def night(
    number: int, code: str = "a", worse: dict[str, float] | None = None, methods: Any = METHODS, noise: float = 0.01, **changes: Any
) -> dict[str, Any]:
    """One row. Accuracies are drawn by `code` (the state of the code: the same code gives the same bits) and method; `worse` takes points off a
    method's top-1, or multiplies a step time by exp(value) under "METHOD/speed"; costs are drawn by night."""
    worse = worse or {}
    metrics: dict[str, Any] = {}
    for method in methods:
        hurt = worse.get(method, 0.0)
        draw = np.random.default_rng(list(f"{code if not hurt else (code, hurt)}{method}".encode()))
        values = {str(s): 18.0 + float(draw.normal()) - hurt for s in (1, 2, 3, 4)}
        marks = {s: bits(f"{code} {method} {hurt} {s}") for s in values}
        common = {"method": method, "pair": PAIR}
        accuracy = {"metric": "test top-1", "unit": "points", "part": "accuracy", "worse": "lower", "scale": "linear"}
        metrics[f"{method}/p/test top-1"] = {**common, **accuracy, "values": values, "bits": marks}
        draw = np.random.default_rng([number, *method.encode()])
        ratio = 1.5 * float(np.exp(draw.normal() * noise + worse.get(f"{method}/speed", 0.0)))
        speed = {"metric": "step time / student", "unit": "ratio", "part": "speed", "worse": "higher", "scale": "log", "noise": 0.002}
        metrics[f"{method}/p/step time"] = {**common, **speed, "values": {"0": ratio}}
    row = {
        "format": 1,
        "night": number,
        "date": (datetime(2025, 3, 1, 3, tzinfo=UTC) + timedelta(days=number)).isoformat(timespec="seconds"),
        "commit": f"commit{number}",
        "plan": "plan",
        "parts": ["accuracy", "speed"],
        "facts": {"torch": "2.9.0"},
        "sources": dict.fromkeys(methods, "source"),
        "failures": {},
        "metrics": metrics,
    }
    return {**row, **changes}


def baseline(row: dict[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in ("night", "commit", "date")}
    return {"format": 1, **facts, "reason": "first night", "row": row, "earlier": []}
