"""`doctor` finds what the other tests of this folder break, names it, and says how to mend it; on a sound folder it finds nothing."""

import dataclasses
import os
import shlex
import shutil
from pathlib import Path

import pytest

from bench import doctor
from bench.__main__ import main, parse, split
from bench.data import cifar100
from bench.plan import protocols, registries
from bench.plan.expand import expand
from bench.plan.profiles import get_profile
from bench.plan.selection import Selection, parse_seeds
from bench.store.files import Problem, write_json
from bench.store.runs import TEACHER, scan
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
        ("teachers/*/teacher.pt", "teacher.pt", "launch again as before"),
        ("teachers/*/teacher.json", "teacher.json", "launch again as before"),
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


IMPORT = "python -m bench teachers import FILE --architecture resnet56 --protocol crd --results 'my results' --data-root data"
TRAIN = "python -m bench teachers train resnet56 --protocol skd --precision fp32 --results 'my results' --data-root data"
EITHER = f", then launch again as before, which trains it; one that was imported: {IMPORT}"


@pytest.mark.parametrize(
    ("record", "mend"),
    [
        ({"source": "trained", "protocol": "skd", "precision": "fp32"}, f"; {TRAIN}"),
        ({"source": "imported"}, f"; {IMPORT}"),
        ({"source": "trained", "protocol": "crd", "trial": "3 of 240 epochs"}, EITHER),
        ({"source": "trained", "protocol": "own"}, EITHER),
        ({"source": 1}, EITHER),  # a record that cannot be read
    ],
)
def test_a_damaged_teacher_comes_back_the_way_it_came(tmp_path, monkeypatch, record, mend):
    monkeypatch.chdir(tmp_path)
    place = Path("my results") / "teachers" / "cifar100-resnet56"
    place.mkdir(parents=True)
    facts = {"format": 1, "architecture": "resnet56", "dataset": "cifar100", "hash": "0", "test_top1": 72.0, "test_top5": 92.0}
    write_json(place / "teacher.json", facts | {"test_top1_data": "d", "trained": True} | record)
    (place / "teacher.pt").write_bytes(b"")
    assert [finding.mend for finding in doctor.check_teachers(Path("my results"), Path("data"))] == [f"rm -r '{place}'{mend}"]


def stale(results: Path) -> list[doctor.Finding]:
    """What is said of sources that changed: those of made-up runs are no method's."""
    return [finding for finding in doctor.check_runs(results, Path("data")) if "the source of" in finding.what]


def planned(command: str) -> set[tuple[str, str, str, int]]:
    """The cells that a command would train."""
    name, rest = split(shlex.split(command)[3:])
    options = parse(name, rest)
    options.check()
    assert name == "run" and options.redo
    selection = Selection(options.methods, options.pairs, parse_seeds(options.seeds), epochs=options.epochs, precision=options.precision)
    plan = expand(get_profile(options.profile), selection, registries.read(protocols.get("crd")))
    assert plan.protocol == synthetic.SHORT
    return {(cell.teacher, cell.student, cell.row, cell.seed) for cell in plan.cells}


def test_runs_of_a_changed_source_are_trained_again_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Path("my results")
    cells = {("resnet56", "resnet20", 1), ("resnet56", "resnet20", 2), ("resnet110", "resnet20", 1), ("resnet110", "resnet32", 1)}
    for teacher, student, seed in cells:
        synthetic.add_run(results, synthetic.run_of("kd", teacher, student, seed), 70.0)
    hot = {"temperature": 2.0}
    synthetic.add_run(results, synthetic.run_of("kd", "vgg13", "vgg8", 3, hyper=hot), 70.0, changed=hot)
    synthetic.add_run(results, synthetic.run_of("student", None, "resnet20", 1), 70.0)
    synthetic.add_run(results, synthetic.run_of("kd", "resnet56", "resnet20", 9, method_version=0), 70.0)  # what no launch trains
    common, end = "python -m bench run --redo --profile paper --epochs 3 --precision tf32 --pairs", "--results 'my results' --data-root data"
    kd, student = stale(results)
    assert kd.what == "the source of kd changed since its runs were done"
    commands = [
        f"{common} resnet110-resnet20 resnet110-resnet32 --seeds 1 --methods kd {end}",
        f"{common} resnet56-resnet20 --seeds 1,2 --methods kd {end}",
        f"{common} vgg13-vgg8 --seeds 3 --methods kd:temperature=2.0 {end}",
    ]
    assert kd.mend == f"{'; '.join(commands)}, or raise its version"
    assert set().union(*map(planned, commands)) == {(t, s, "kd", seed) for t, s, seed in cells} | {("vgg13", "vgg8", "kd:temperature=2.0", 3)}
    ((teacher, *rest),) = planned(student.mend.removesuffix(", or raise its version"))
    assert rest == ["resnet20", "student", 1] and teacher in ("resnet56", "resnet110")  # which, is the same to a plain student


def test_a_changed_source_where_no_options_say_which_runs(tmp_path):
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1, dataclasses.replace(synthetic.SHORT, lr=0.1)), 70.0)
    (finding,) = stale(tmp_path)
    assert finding.mend == "launch again as before, with --redo --methods kd, or raise its version"


def test_a_teacher_of_a_changed_source_is_told_apart(tmp_path):
    synthetic.add_run(tmp_path, synthetic.run_of("student", None, "resnet56", 0), 70.0, title=TEACHER)
    (finding,) = stale(tmp_path)
    assert finding.what == "the source of student changed since the teacher resnet56 was trained"
    command = f"python -m bench teachers train resnet56 --redo --protocol crd --epochs 3 --precision tf32 --results {tmp_path} --data-root data"
    assert finding.mend == f"{command}, after which a launch trains its students anew; or raise its version"


def test_runs_of_another_teacher_are_of_before(tmp_path):
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1), 70.0)
    assert len(stale(tmp_path)) == 1
    place = tmp_path / "teachers" / "cifar100-resnet56"
    place.mkdir(parents=True)
    facts = {"format": 1, "architecture": "resnet56", "dataset": "cifar100", "hash": "another", "test_top1": 72.0, "test_top5": 92.0}
    write_json(place / "teacher.json", facts | {"test_top1_data": "d", "trained": True, "source": "imported"})
    assert not stale(tmp_path)


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


def test_saves_that_go_on_and_files_that_go_are_left_alone(tmp_path, capsys):
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    old, young, gone = (run / f".status.json.{name}.tmp" for name in ("old", "young", "gone"))
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    gone.symlink_to("nowhere")
    _, lines = ask(capsys, tmp_path)
    said = [line for line in lines if "of a save that was killed" in line]
    assert len(said) == 1 and ".status.json.old.tmp" in said[0]


def test_what_cannot_be_read_is_not_to_be_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "scan", lambda folder: ([], [Problem("runs", "cannot be read (Permission denied)")]))
    monkeypatch.setattr(doctor.teachers, "available", lambda folder: ([], [Problem("teachers", "cannot be read (Permission denied)")]))
    found = [*doctor.check_runs(tmp_path), *doctor.check_teachers(tmp_path)]
    assert [finding.mend.partition(": ")[2] for finding in found] == [f"chmod -R u+rwX {tmp_path / part}" for part in ("runs", "teachers")]


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
