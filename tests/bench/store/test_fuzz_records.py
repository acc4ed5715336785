"""Some hundred hostile records, always the same ones; more by hand, see `fuzz`."""

from tests.bench.store import fuzz


def test_hostile_records_are_named_and_take_nothing_with_them(tmp_path):
    found = fuzz.run(tmp_path, 300, seed=1)
    assert {"config.json", "record.json", "epochs.jsonl", "status.json", "plan.json", "teacher.json", "cost", "skd.json"} <= set(found)
    assert 100 < found["refused"] < 300  # most are refused, and what does no harm is read
