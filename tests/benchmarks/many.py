"""Thousands of finished runs that cost little disk: the epochs of a hundred runs are linked under many names."""

import hashlib
import os
import tempfile
from pathlib import Path

from bench.store.files import read_json, write_json
from tests.bench import synthetic

SOURCES = 100


def copies(results: Path, count: int, epochs: int) -> None:
    """`count` finished runs of `epochs` epochs in `results`, their accuracies from 70.00 to 70.99; written without fsync, as reading is timed."""
    protocol = synthetic.CRD.scaled(epochs)
    with tempfile.TemporaryDirectory(dir=results.parent) as scratch:
        shared = [synthetic.run_of("kd", "resnet56", "resnet20", seed, protocol) for seed in range(SOURCES)]
        sources = [synthetic.add_run(Path(scratch), run, 70 + i / 100) for i, run in enumerate(shared)]
        configs, records = ([read_json(folder / name) for folder in sources] for name in ("config.json", "record.json"))
        (results / "runs").mkdir(parents=True, exist_ok=True)
        rows = [(t, s, m) for t, s in synthetic.PAIRS for m in synthetic.METHODS[1:]]
        for made in range(count):
            seed, source = 1 + made // len(rows), made % SOURCES
            teacher, student, method = rows[made % len(rows)]
            run = synthetic.run_of(method, teacher, student, seed, protocol)
            name = run.id
            folder = results / "runs" / name
            folder.mkdir()
            os.link(sources[source] / "epochs.jsonl", folder / "epochs.jsonl")
            settings = {**configs[source], "identity": run.identity(), "title": synthetic.TITLES[method]}
            data = write_json(folder / "config.json", settings, durable=False)
            record = {**records[source], "run": name, "config_sha256": hashlib.sha256(data).hexdigest()}
            record["teacher"] = {**record["teacher"], "architecture": teacher, "hash": run.teacher_hash}
            write_json(folder / "record.json", record, durable=False)
