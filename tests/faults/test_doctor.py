"""`doctor` finds what the other tests of this folder break, names it, and says how to mend it; on a sound folder it finds nothing."""

import shutil
from pathlib import Path

import pytest

from bench import doctor
from bench.__main__ import main
from bench.data import cifar100
from bench.plan import protocols, registries
from bench.plan.expand import expand
from bench.plan.profiles import get_profile
from bench.plan.selection import Selection
from bench.store.runs import scan
from tests.bench import synthetic
from tests.faults import lives


def ask(capsys, folder: Path, *more: str) -> tuple[int, list[str]]:
    """Exit code under --strict, and the findings with their cures."""
    code = main(["doctor", "--results", str(folder), "--strict", *(more or ("--profile", "smoke"))])
    said = capsys.readouterr().out
    return code, [line for line in said.splitlines() if not line.endswith(": ok")]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def finished(teacher_folder, memory) -> Path:
    """A results folder with everything in it: a teacher, done runs, a plan, costs, and a set that was kept, without weights."""
    folder = memory / "finished"
    shutil.copytree(teacher_folder / "teachers", folder / "teachers")
    assert lives.train(folder) == 0
    synthetic.add_plan(folder, [("resnet8", "resnet8")], ("student", "kd"), (1,))
    synthetic.add_cost(folder, "resnet8", "resnet8", "kd", 1000.0, 1 << 20)
    for part in ("runs", "costs"):
        shutil.copytree(folder / part, folder / "evidence" / "kept" / part, ignore=shutil.ignore_patterns("*.pt", "status.json", "log.txt"))
    return folder


def test_a_sound_folder_and_a_new_one_have_no_findings(finished, tmp_path, capsys):
    assert ask(capsys, finished) == (0, ["all is well"])
    assert ask(capsys, tmp_path / "new") == (0, ["all is well"]) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("pattern", "said", "mend"),
    [
        ("runs/*-kd-*/record.json", "record.json", "rm -r"),
        ("runs/*-kd-*/epochs.jsonl", "epochs.jsonl:", "rm -r"),
        ("runs/*-kd-*/config.json", "config.json", "rm -r"),
        ("runs/*-kd-*/student.pt", "student.pt", "rm -r"),
        ("teachers/*/teacher.pt", "teacher.pt", "teachers train resnet8"),
        ("teachers/*/teacher.json", "teacher.json", "teachers train resnet8"),
        ("costs/*/*.json", "resnet8-resnet8-kd-tf32.json", "measures it"),
        ("plan.json", "plan.json", "writes it"),
        ("evidence/kept/runs/*-kd-*/record.json", "evidence: kept: ", "git checkout"),
        ("evidence/kept/runs/*-kd-*/epochs.jsonl", "evidence: kept: ", "git checkout"),
        ("evidence/kept/costs/*/*.json", "evidence: kept: ", "git checkout"),
    ],
)
def test_each_damage_is_named_with_its_cure(finished, tmp_path, capsys, pattern, said, mend):
    folder = tmp_path / "results with spaces"
    shutil.copytree(finished, folder)
    (path,) = folder.glob(pattern)
    flip(path)
    code, lines = ask(capsys, folder)
    assert code == 1 and lines[-1] == "1 thing to mend"
    assert said in lines[0] and lines[1].startswith("    mend: ") and mend in lines[1]
    assert main(["doctor", "--results", str(folder), "--profile", "smoke"]) == 0  # without --strict it tells only


def test_a_killed_group_is_told_and_so_is_its_damage(halfway, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(halfway, folder)
    code, lines = ask(capsys, folder)
    assert code == 1 and sum("says it is running, and nobody runs it" in line for line in lines) == 2
    newest = max(folder.glob("runs/*s1*/checkpoint-*.pt"))
    flip(newest)
    flip(next(folder.glob("groups/*/manifest.previous.json")))
    _, lines = ask(capsys, folder)
    assert any(newest.name in line for line in lines) and any("manifest.previous.json is damaged" in line for line in lines)


def test_data_and_disk_of_the_profile(tmp_path, capsys, monkeypatch):
    (tmp_path / "data" / cifar100.FOLDER).mkdir(parents=True)
    arguments = ("--profile", "paper", "--data-root", str(tmp_path / "data"))
    code, lines = ask(capsys, tmp_path / "r", *arguments)
    assert code == 1 and sum("is absent" in line for line in lines) == 3 and "python -m bench data fetch --data-root" in lines[1]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12 - 10**8, 10**8))
    _, lines = ask(capsys, tmp_path / "r", *arguments)
    assert any("profile paper takes up to" in line and "0.1 GB left" in line for line in lines)


def test_space_is_dominated_by_the_checkpoints_of_the_largest_group():
    """vgg8 has 3.9 million parameters; nine learners' weights and momentum are 285 MB a generation."""
    wanted = Selection(pairs=("vgg13-vgg8",), seeds=(1,))
    one = expand(get_profile("paper"), wanted, registries.read(protocols.get("crd")))
    assert doctor.space_needed(one, 1) - doctor.space_needed(one, 0) == pytest.approx(3 * 285e6, rel=0.02)


def test_an_unknown_profile_is_bad_input(capsys):
    assert main(["doctor", "--profile", "papr"]) == 2 and "did you mean paper" in capsys.readouterr().err


def test_names_from_outside_are_escaped(tmp_path, capsys):
    (tmp_path / "runs" / "evil\x1b[31m\nrun").mkdir(parents=True)
    _, lines = ask(capsys, tmp_path)
    assert "\x1b" not in "".join(lines) and len(lines) == 3
    assert scan(tmp_path)[1]
