"""Generations of a group's checkpoints when not all members are in each."""

import pytest

from bench.train.checkpoint import GroupCheckpoint, Position, discard, restore, sweep


@pytest.fixture
def group(tmp_path):
    """Saves members at an epoch; what a member had then is told by its state."""
    saved = GroupCheckpoint(tmp_path, "group")
    for run in "ab":
        (tmp_path / "runs" / run).mkdir(parents=True)

    def save(epoch: int, *members: str) -> None:
        saved.save(Position(epoch), {run: lambda run=run: {"what": f"{run}{epoch}"} for run in members})

    return save


def files(results, run: str) -> list[str]:
    return sorted(path.name for path in (results / "runs" / run).glob("checkpoint-*"))


def test_a_member_that_stays_behind_keeps_both_generations(tmp_path, group):
    group(1, "a", "b")
    group(2, "a", "b")
    for epoch in (3, 4, 5):  # b failed, and a goes on
        group(epoch, "a")
    for run in "ab":
        sweep(tmp_path, run)
    assert files(tmp_path, "a") == ["checkpoint-4-group.pt", "checkpoint-5-group.pt"]
    assert files(tmp_path, "b") == ["checkpoint-1-group.pt", "checkpoint-2-group.pt"]
    key, found = restore(tmp_path, "b")
    assert (key, found.position, found.state["what"], found.notes) == ("group", Position(2), "b2", ())
    (tmp_path / "runs" / "b" / "checkpoint-2-group.pt").write_bytes(b"damaged")
    key, found = restore(tmp_path, "b")
    assert (found.position, found.state["what"], len(found.notes)) == (Position(1), "b1", 1)
    assert restore(tmp_path, "a")[1].state["what"] == "a5"


def test_one_that_is_done_is_in_no_later_generation(tmp_path, group):
    group(1, "a", "b")
    discard(tmp_path, "b")
    group(2, "a")
    group(3, "a")
    assert restore(tmp_path, "b")[0] is None and restore(tmp_path, "b")[1].state is None
    discard(tmp_path, "a")
    assert not (tmp_path / "groups" / "group").exists() and files(tmp_path, "a") == files(tmp_path, "b") == []


def test_a_group_that_names_a_run_no_more_is_said(tmp_path, group):
    group(1, "b")
    for path in (tmp_path / "groups" / "group").iterdir():
        path.unlink()
    _, found = restore(tmp_path, "b")
    assert found.state is None and found.notes == ("no sound checkpoint; starting over",)
