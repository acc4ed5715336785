"""Fault 12: four launchers over twenty runs at once; every run is executed once."""

import os
import random

from bench.errors import DONE, TROUBLE
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import group_job
from tests.faults import lives


def test_four_launchers_over_twenty_runs_execute_each_once(results):
    groups = [lives.group("student", "kd", seed=seed) for seed in range(1, 11)]

    def launch(number: int) -> None:
        order = random.Random(number).sample(groups, len(groups))
        codes = [group_job.run_group(group, lives.execution(results, checkpoint_seconds=60.0)) for group in order]
        os._exit(0 if set(codes) <= {DONE, TROUBLE} else 1)  # trouble: another launcher had it

    children = [lives.FORK.Process(target=launch, args=(number,)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(900)
    assert [child.exitcode for child in children] == [0] * 4
    views, problems = scan(results)
    assert not problems and len(views) == 20 and {v.status for v in views} == {"done"}
    for view in views:
        rows = read_rows(view.folder / "epochs.jsonl", view.id)
        assert view.record.attempts == 1 and rows.superseded == 0 and [r.epoch for r in rows.rows] == [1, 2, 3]
        assert (view.folder / "epochs.jsonl").read_text().count("\n") == 3
        assert (view.folder / "log.txt").read_text().count(": started") == 1
    assert not list(results.glob("runs/*/lease.json"))
