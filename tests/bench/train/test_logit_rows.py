"""Rows that change from epoch to epoch, and rows of two losses, from the group to the table."""

import dataclasses
from shutil import copytree

from bench.errors import DONE, STOPPED_IN_TIME
from bench.launch.ledger import changed_sources
from bench.report import table
from bench.store.runs import scan
from bench.train import group_job
from methods import registry
from tests.bench.train.test_training import Interrupting, execution, group, numbers, one_thread, records, with_teacher  # noqa: F401

ROWS = ("at+kd", "ctkd", "dkd")


def test_resumed_equals_unbroken_bit_for_bit(tmp_path, monkeypatch):
    """Stopped inside the second of two epochs: the temperature, its strength and the warm-up go on where they were."""
    whole = with_teacher(tmp_path / "whole")
    broken = copytree(whole, tmp_path / "broken")
    assert group_job.run_group(group(*ROWS), execution(whole)) == DONE
    with monkeypatch.context() as patch:
        Interrupting(patch, 5)
        assert group_job.run_group(group(*ROWS), execution(broken)) == STOPPED_IN_TIME
    assert group_job.run_group(group(*ROWS), execution(broken)) == DONE
    expected, found = records(whole), records(broken)
    assert expected.keys() == found.keys() == set(ROWS)
    assert all(numbers(found[row]) == numbers(expected[row]) for row in ROWS)
    views = {view.method: view for view in scan(whole)[0]}
    assert views["at+kd"].id.startswith("resnet14-resnet8-at+kd-s1-") and views["at+kd"].title == "AT + KD"
    (results, *_) = table.build(whole)
    assert "AT + KD" in [row.title for row in results.tables[0].rows]
    assert changed_sources(whole, scan(whole)[0]) == []
    monkeypatch.setattr(registry, "source_hash", lambda name: "0" * 16)
    assert any(line.startswith("the source of at+kd changed since 1 of its runs") for line in changed_sources(whole, scan(whole)[0]))
    monkeypatch.setattr(registry.get("at+kd"), "version", 2)
    said = changed_sources(whole, scan(whole)[0])
    assert len(said) == 2 and not any("at+kd" in line for line in said)  # no launch trains the earlier version again, nor the teacher


def test_a_joined_row_needs_a_teacher(tmp_path):
    """A joined row is skipped with the reason where there is no teacher, as KD is."""
    alone = dataclasses.replace(group("student", "student+kd"), teacher=None)
    assert group_job.run_group(alone, execution(tmp_path)) == DONE
    assert set(records(tmp_path)) == {"student"}
