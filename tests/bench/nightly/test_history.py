"""The files of a history: checked, appended, replaced whole."""

import json

import pytest

from bench.errors import StoreError, UsageError
from bench.nightly import history
from bench.store.rows import append_row
from tests.bench.nightly.rows import night


@pytest.fixture
def place(tmp_path):
    folder = history.folder(tmp_path, "machine")
    folder.mkdir(parents=True)
    return folder


def test_rows_come_back_as_written(place):
    assert history.read(place) == []
    rows = [night(1), night(2)]
    for row in rows:
        history.append(place, row)
    assert history.read(place) == rows


def test_a_torn_last_line_is_left_out_and_mended_by_the_next_night(place):
    history.append(place, night(1))
    with open(place / "history.jsonl", "ab") as file:
        file.write(b'{"format":1,"night":2')
    assert [r["night"] for r in history.read(place)] == [1]
    history.append(place, night(2))
    assert [r["night"] for r in history.read(place)] == [1, 2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data.replace(b"commit1", b"commit9", 1), "checksum"),
        (lambda data: b"nonsense\n" + data, "not JSON"),
        (lambda data: b"[]\n" + data, "not a JSON object"),
        (lambda data: data + data, "stands after night"),
    ],
)
def test_damage_is_named(place, damage, said):
    history.append(place, night(1))
    path = place / "history.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=said) as error:
        history.read(place)
    assert str(path) in str(error.value)


def test_a_row_of_a_newer_version_is_refused(place):
    append_row(place / "history.jsonl", night(1, format=99))
    with pytest.raises(StoreError, match="format 99"):
        history.read(place)


def test_earlier_baselines_stay_listed(place):
    assert history.read_baseline(place) is None
    history.set_baseline(place, night(1), "first")
    history.set_baseline(place, night(5), "meant to be slower")
    kept = history.read_baseline(place)
    assert (kept["night"], kept["commit"], kept["reason"]) == (5, "commit5", "meant to be slower")
    assert [(b["night"], b["reason"]) for b in kept["earlier"]] == [(1, "first")]
    assert sorted(p.name for p in place.iterdir()) == ["baseline.json"]  # no temporary file is left


def test_a_damaged_baseline_is_named_and_can_be_replaced(place):
    (place / "baseline.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(StoreError, match="--accept"):
        history.read_baseline(place)
    history.set_baseline(place, night(2), "again")
    assert history.read_baseline(place)["night"] == 2


def test_machine_class_is_the_processor_and_not_the_host():
    cpu = {"type": "cpu", "name": "Intel(R) Xeon(R) @ 2.20GHz", "cores": 2}
    assert history.machine_class(cpu, 1) == "intel-r-xeon-r-2-20ghz-2-cores-1-threads"
    assert history.machine_class({**cpu, "cores": 4}, 1) != history.machine_class(cpu, 1)
    assert history.machine_class({"type": "cuda", "name": "NVIDIA H200", "driver": "1"}, 1) == "nvidia-h200"


def test_one_nightly_at_a_time(place):
    with history.alone(place), pytest.raises(UsageError, match="another nightly"), history.alone(place):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"), history.alone(tmp_path / "file" / "x"):
        pass
