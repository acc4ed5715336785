"""Generations of a group's checkpoints when not all members are in each."""

import pytest

from bench.store.files import write_json
from bench.train.checkpoint import START, GroupCheckpoint, Position, discard, restore, sweep

KEY = "0123456789abcdef"


@pytest.fixture
def group(tmp_path):
    """Saves members at an epoch; what a member had then is told by its state."""
    saved = GroupCheckpoint(tmp_path, KEY)
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
    assert files(tmp_path, "a") == [f"checkpoint-4-{KEY}.pt", f"checkpoint-5-{KEY}.pt"]
    assert files(tmp_path, "b") == [f"checkpoint-1-{KEY}.pt", f"checkpoint-2-{KEY}.pt"]
    key, found = restore(tmp_path, "b")
    assert (key, found.position, found.state["what"], found.notes) == (KEY, Position(2), "b2", ())
    (tmp_path / "runs" / "b" / f"checkpoint-2-{KEY}.pt").write_bytes(b"damaged")
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
    assert not (tmp_path / "groups" / KEY).exists() and files(tmp_path, "a") == files(tmp_path, "b") == []


def test_a_group_that_names_a_run_no_more_is_said(tmp_path, group):
    group(1, "b")
    for path in (tmp_path / "groups" / KEY).iterdir():
        path.unlink()
    _, found = restore(tmp_path, "b")
    assert found.state is None and found.notes == ("no sound checkpoint; starting over",)


@pytest.mark.parametrize("key", ["k" * 300, "a\0b", "..", "0123456789ABCDEF", "", 5])
def test_a_group_of_another_form_is_none(tmp_path, group, key):
    group(1, "a")
    write_json(tmp_path / "runs" / "a" / "group.json", {"format": 1, "group": key})
    assert restore(tmp_path, "a")[1].notes == ("group.json is damaged; starting over",) and restore(tmp_path, "a")[1].position == START
    assert sweep(tmp_path, "a") > 0 and files(tmp_path, "a") == []
    group(2, "a")  # it is saved again all the same
    assert restore(tmp_path, "a")[1].state["what"] == "a2"
    write_json(tmp_path / "runs" / "a" / "group.json", {"format": 1, "group": key})
    discard(tmp_path, "a")
    assert not (tmp_path / "runs" / "a" / "group.json").exists()
