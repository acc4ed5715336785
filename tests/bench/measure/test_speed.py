"""`speed`: what is counted is right, what is measured is written down, and the hours follow from it."""

import pytest
import torch

import models
from bench.errors import UsageError
from bench.measure import ceilings, speed
from bench.measure.speed import Speed
from bench.store.files import read_json
from bench.train import environment
from models import native

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    environment.configure("tf32")


def test_conv_outputs_are_those_of_the_layers():
    side = 32
    stem, first = 16 * side**2, 2 * 16 * side**2
    second, third = (2 * 32 + 32) * (side // 2) ** 2, (2 * 64 + 64) * (side // 4) ** 2  # with the shortcut's convolution
    assert ceilings.conv_outputs("resnet8") == stem + first + second + third


def test_work_counts_three_passes_of_students_and_one_of_the_teacher():
    one = ceilings.work("resnet14", ["resnet8"], 64, "tf32")
    assert one["flop"] == 64 * (6 * models.macs("resnet8") + 2 * models.macs("resnet14"))
    assert ceilings.work(None, ["resnet8"] * 3, 64, "bf16")["bytes"] == 64 * 3 * 22 * 2 * ceilings.conv_outputs("resnet8")


def test_fraction_is_of_the_nearer_roof():
    roof = {"flop_per_second": 1e9, "bytes_per_second": 1e8}
    assert ceilings.fraction({"flop": 1e6, "bytes": 1e6, "step_ms_median": 20.0}, roof) == pytest.approx(0.5)
    assert ceilings.fraction({"flop": 4e7, "bytes": 1e6, "step_ms_median": 50.0}, roof) == pytest.approx(0.8)


def row(step: float, methods: int, engine: str = "graph", student: str = "resnet20") -> dict:
    names = [f"m{i}" for i in range(methods)]
    return {"teacher": "t", "student": student, "precision": "tf32", "engine": engine, "methods": names, "step_ms_median": step, "test_ms": 100.0}


def test_hours_of_the_table():
    """One millisecond a step over six pairs and three seeds is nearly an hour."""
    rows = [row(1.0, 9, student=f"s{i}") for i in range(6)] + [row(0.5, 1)]
    (entry,) = speed.hours(rows, (1, 2, 3), 6)
    training, tests = 6 * 3 * 187_680 / 3.6e6, 6 * 3 * 9 * 240 * 0.1 / 3600
    assert entry["hours"] == pytest.approx(training + tests) and entry["pairs"] == 6
    assert entry["hours_of_one_run"] == {"t-resnet20": pytest.approx((187_680 * 0.5 + 240 * 100) / 3.6e6)}
    assert "6 pairs x 3 seeds x 9 rows" in speed.sentence(entry)
    assert "1 (of 6) pairs" in speed.sentence(speed.hours([row(1.0, 9)], (1, 2, 3), 6)[0])


def test_a_small_measurement_is_written_and_printed(tmp_path, capsys):
    chosen = {"pairs": ("resnet14-resnet8",), "methods": ("student", "kd"), "engines": ("eager",), "device": "cpu"}
    options = Speed(**chosen, steps=2, quick=True, results=tmp_path, threads=1)
    assert options.main() == 0
    (path,) = (tmp_path / "costs").glob("*/speed.json")
    record = read_json(path)
    assert record["kind"] == "speed" and set(record["ceilings"]) == {"tf32", "bf16"}
    assert [(r["precision"], r["engine"], len(r["methods"])) for r in record["steps"]] == [(p, "eager", n) for p in ("tf32", "bf16") for n in (2, 1)]
    assert all(r["steps_timed"] == 2 and r["step_ms_median"] > 0 and r["roofline"] > 0 for r in record["steps"])
    assert [entry["pairs_in_table"] for entry in record["table_hours"]] == [6, 6]
    said = capsys.readouterr().out
    assert "measured ceilings" in said and "kd alone" in said and str(path) in said


def test_defaults():
    on_cpu, quick = (speed.filled(Speed(quick=q), CPU) for q in (False, True))
    assert len(on_cpu.pairs) == 6 and len(on_cpu.methods) == 9 and on_cpu.precisions == ("tf32", "bf16")
    assert on_cpu.engines == (("eager", "native") if native.reason() is None else ("eager",))
    assert quick.pairs == ("resnet56-resnet20",) and quick.steps == 2
    assert speed.filled(Speed(), torch.device("cuda")).engines == ("eager", "graph")


@pytest.mark.parametrize("changes", [{"precisions": ("fp64",)}, {"pairs": ("resnet56",)}, {"engines": ("graph",)}, {"steps": 0}])
def test_bad_input(tmp_path, changes):
    with pytest.raises(UsageError):
        Speed(results=tmp_path, device="cpu", **changes).main()
    assert not (tmp_path / "costs").exists()


def test_preparations_are_made_quickly_for_methods_that_need_one():
    options = speed.filled(Speed(methods=("skd", "kd"), steps=1, quick=True), CPU)
    rows = speed._measure(speed.Pair("resnet14", "resnet8"), "tf32", [speed.engine.Eager], options, CPU)
    assert rows[0]["methods"] == ["skd", "kd"]
