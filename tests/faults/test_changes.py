"""Faults 10, 19 and 20: a folder of another configuration, code that changed between seeds, rows that contradict each other."""

import shutil

import pytest
from msgspec.structs import asdict

from bench.__main__ import main
from bench.errors import TROUBLE, UsageError
from bench.report import published, table
from bench.store.files import read_json, write_json
from bench.store.rows import append_row, read_rows
from bench.train import group_job
from tests.bench import synthetic
from tests.faults import lives


def test_a_folder_whose_configuration_was_edited_is_refused(halfway, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(halfway, folder)
    (path,) = folder.glob("runs/*-student-s1-*/config.json")
    config = read_json(path)
    config["identity"]["protocol"]["lr"] = 0.5
    write_json(path, config)
    before = sorted((p, p.read_bytes()) for p in path.parent.iterdir() if "lease" not in p.name)
    with pytest.raises(UsageError, match=r"protocol.lr is 0.5 there and 0.05 here\); move that folder away"):
        group_job.run_group(lives.group(), lives.execution(folder))
    assert sorted((p, p.read_bytes()) for p in path.parent.iterdir() if "lease" not in p.name) == before


def test_code_that_changed_between_the_seeds_of_a_cell_is_warned_of(tmp_path, capsys):
    for seed, commit in ((1, "aaaaaaa"), (2, "bbbbbbb")):
        synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", seed), 70.0 + seed, commit=commit)
    warnings = table.build_set(table.OWN, tmp_path, published.load(None)).tables[0].warnings
    assert len(warnings) == 1 and "aaaaaaa (1 run)" in warnings[0] and "bbbbbbb (1 run)" in warnings[0]
    assert main(["report", str(tmp_path), "--no-write"]) == 0 and main(["report", str(tmp_path), "--no-write", "--strict"]) == 1
    assert "different commits" in capsys.readouterr().out


def test_rows_of_a_run_that_contradict_each_other_are_left_alone(halfway, tmp_path, capfd):
    folder = tmp_path / "results"
    shutil.copytree(halfway, folder)
    (path,) = folder.glob("runs/*-student-s1-*/epochs.jsonl")
    row = read_rows(path).rows[0]
    append_row(path, {**asdict(row), "test_top1": row.test_top1 + 1})
    assert lives.train(folder) == TROUBLE
    assert "epochs.jsonl:2: epoch 1 written twice by attempt 1 with different numbers" in capfd.readouterr().out
    assert lives.statuses(folder)["kd"][0] == "done"
