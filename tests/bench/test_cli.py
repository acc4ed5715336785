"""The command line: bad input is one line and exit code 2, and leaves nothing behind. One case of each kind runs as a process of its own."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.errors import UsageError
from bench.plan.listing import Pairs
from bench.plan.protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = PROTOCOLS["smoke"].epochs


def bench(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("KD_BENCH_DATA", "SLURM_JOB_ID")}
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=cwd, env=kept, capture_output=True, text=True, timeout=300)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """A command line in this process, in an empty folder without data: its exit code, what it said and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_BENCH_DATA", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(arguments), *capsys.readouterr()

    return call


LOCAL = ("--cluster", "local", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rum",), "unknown command 'rum'; did you mean run"),
        (("run", "--foo"), "--foo"),
        (("run", "--methods", ""), "--methods names nothing"),
        (("report", "--format", "pdf"), "--format"),
        (("report", "--explain", "kd"), "--explain takes METHOD PAIR, as in --explain kd resnet56/resnet20"),
        (("run", "--epochs", "x"), "--epochs"),
        (("run", "--profile", "papr"), "unknown profile 'papr'; did you mean paper"),
        (("run", "--profile", "smoke", *LOCAL, "--methods", "kdd"), "unknown method 'kdd'; did you mean kd"),
        (("run", "--profile", "smoke", *LOCAL, "--pairs", "resnet20-resnet9"), "unknown network 'resnet9'"),
        (("run", "--profile", "smoke", *LOCAL, "--checkpoint-seconds", "nan"), "--checkpoint-seconds nan: at least 0"),
        (("equivalence", "--time-budget", "-5"), "--time-budget -5.0: minutes, above 0"),
        (("equivalence", "--no-train", "--results", "nowhere"), "nowhere is no folder, and --no-train reads what is done there"),
        (("nightly", "--workers", "0"), "--workers 0: at least 1"),
        (("speed", "--methods", "kdd"), "unknown method 'kdd'; did you mean kd"),
        (("speed", "--quick", "--device", "cpu", "--threads", "0"), "--threads 0: at least 1"),
        (("doctor", "--results", __file__), "is no folder; choose another --results folder"),
        *(((*command, "--results", "x" * 300), "File name too long; choose another --results folder") for command in (
            ("status",), ("doctor",), ("run", "--profile", "smoke", *LOCAL, "--dry-run"), ("analyse", "dissect")
        )),
        (("run", "--device", "gpu"), "--device 'gpu': auto, cpu, cuda or cuda:N"),
        (("run", "--cpus", "0"), "--cpus 0: at least 1"),
        (("run", "--time", "-1"), "--time -1: at least 1"),
        (("run", "--time", "4"), "--time 4: at least 5 minutes"),
        (("run", "--groups-per-gpu", "0"), "--groups-per-gpu 0: at least 1"),
        (("run", "--profile", "smoke", *LOCAL, "--methods", "kd", "--set", "kd.temprature=2"), "'temprature'; did you mean temperature"),
        (("run", "--profile", "smoke", *LOCAL, "--methods", "kd", "--set", "kd.temperature=hot"), "expected a float"),
        (("run", "--profile", "smoke", *LOCAL, "--seeds", "one"), "--seeds one"),
        (("run", "--profile", "smoke", *LOCAL, "--epochs", "0"), "--epochs 0: at least 1"),
        (("run", "--profile", "smoke", *LOCAL, "--precision", "fp8"), "unknown precision 'fp8'"),
        (("run", "--profile", "smoke", *LOCAL, "--time-budget", "0"), "--time-budget"),
        (("run", "--profile", "smoke", *LOCAL, "--time-budget", "nan"), "--time-budget nan: minutes, above 0"),
        (("teachers", "train", "resnet20", "--time-budget", "nan"), "--time-budget nan: minutes, above 0"),
        (("run", "--profile", "smoke", *LOCAL, "--threads", "0"), "at least 1"),
        (("run", "--profile", "smoke", "--cluster", "local", "--device", "tpu"), "--device 'tpu'"),
        (("speed", "--methods", "fsp", "--pairs", "wrn_40_2-wrn_40_1", "--device", "cpu"), "--methods fsp: none of them can do wrn_40_2-wrn_40_1"),
        (("run", "--pairs", "resnet20-resnet8", "--methods", "kd", *LOCAL), "cifar-100-python"),
        (("teachers", "import", "nowhere.pt", "--architecture", "resnet20"), "nowhere.pt does not exist"),
        (("teachers", "import", "nowhere.pt", "--architecture", "resnet21"), "resnet21"),
        (("teachers", "train", "resnet20", "--protocol", "crdd"), "unknown protocol 'crdd'"),
        (("status",), "results is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_BENCH_DATA", raising=False)
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and said in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--profile", "papr"), "did you mean paper"),
        (("run", "--foo"), "--foo"),
        (("run", "--methods", ""), "--methods names nothing"),
        (("report", "--format", "pdf"), "--format"),
        (("run", "--methods", "kdd"), "did you mean kd"),
        (("run", "--profile", "smoke", "--cluster", "local", "--device", "cuda"), "device 'cuda' was asked for"),
        (("run", "--profile", "smoke", "--cluster", "local", "--device", "cpu", "--engine", "grahp"), "did you mean graph"),
        (("run", "--profile", "smoke", "--cluster", "local", "--device", "cpu", "--engine", "graph"), "needs a CUDA device"),
    ],
    ids=["profile", "option", "no method", "format", "method", "device", "unknown engine", "engine"],
)
def test_bad_input_in_a_process(tmp_path, arguments, said):
    got = bench(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert got.returncode == 2, got.stderr
    assert got.stderr.startswith("error: ") and got.stderr.count("\n") == 1 and said in got.stderr
    assert not list(tmp_path.iterdir())


HINT = "; free some space or choose another --results folder"


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.EROFS, "r/costs/speed.json", f"r/costs/speed.json: Read-only file system{HINT}"),
        (errno.ENOSPC, None, f"No space left on device{HINT}"),
        (errno.EDQUOT, "r/a", f"r/a: Disk quota exceeded{HINT}"),
        (errno.EACCES, "r/a", f"r/a: Permission denied{HINT}"),
        (errno.EPERM, "r/a\nb", f"r/a b: Operation not permitted{HINT}"),
    ],
)
def test_a_folder_that_takes_no_file_is_one_line(monkeypatch, capsys, number, file, said):
    monkeypatch.setattr(Pairs, "main", lambda self: raising(OSError(number, os.strerror(number), file)))
    assert main(["pairs"]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error", "r/a"), OSError(errno.EACCES, "Permission denied"), OSError("odd")])
def test_other_errors_of_the_system_are_not_hidden(monkeypatch, error):
    monkeypatch.setattr(Pairs, "main", lambda self: raising(error))
    with pytest.raises(OSError) as raised:
        main(["pairs"])
    assert raised.value is error


def raising(error: Exception) -> int:
    raise error


def test_overview_and_lists_do_without_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lists = {"": "first steps", "methods": "Hinton", "pairs": "resnet56-resnet20", "profiles": "240 epochs", "teachers": "no teachers"}
    for command, said in lists.items():
        assert main([command] if command else []) == 0
        assert said in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_command_has_help(capsys):
    from bench.commands import COMMANDS

    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([*name.split(), "--help"])
        assert not end.value.code and f"usage: python -m bench {name}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("kd-bench ")


def test_a_shell_completes_commands_options_and_names():
    script = subprocess.run([sys.executable, "-m", "bench", "completion", "bash"], cwd=ROOT, capture_output=True, text=True, timeout=120).stdout

    def completed(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in ("kd-bench", *words))
        code = f'{script}COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _kd_bench; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.split()

    assert completed("nigh") == ["nightly"] and completed("run", "--dry") == ["--dry-run"]
    assert completed("teachers", "imp") == ["import"] and "--architecture" in completed("teachers", "import", "--a")
    assert completed("run", "--profile", "smo") == ["smoke"] and "--set" in completed("run", "--s")


def test_what_takes_days_is_asked_for(monkeypatch, capsys):
    from bench.launch import run as launch
    from bench.launch.options import Run

    days = launch.Forecast([], [], (), 3e6, 3e6, "", "cpu")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(UsageError, match="about 34 days .* start it with --profile paper"):
        launch._refuse_days(Run(), days)
    for asked in (Run(profile="paper"), Run(yes=True), Run(time_budget=60)):
        launch._refuse_days(asked, days)
    launch._refuse_days(Run(), launch.Forecast([], [], (), 60, 60, "", "cpu"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer in (lambda question: "n", lambda question: (_ for _ in ()).throw(EOFError)):  # no, and Ctrl-D
        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(UsageError, match="nothing was started"):
            launch._refuse_days(Run(), days)


def test_the_plan_says_where_a_row_is_not_one_of_its_own(tmp_path, here):
    """beta is 0.05 on vgg13 -> vgg8 anyway: beside the method's own row, and without it."""
    common = ("run", *LOCAL, "--results", str(tmp_path), "--pairs", "vgg13-vgg8", "resnet56-resnet20", "--seeds", "1", "--dry-run")
    _, beside, _ = here(*common, "--methods", "skd", "skd:beta=0.05")
    assert "skd:beta=0.05 on vgg13-vgg8: the same run as skd, which stands for it" in beside and "own row" not in beside
    _, alone, _ = here(*common, "--methods", "skd:beta=0.05")
    assert "skd:beta=0.05 on vgg13-vgg8: the settings of skd's own row, in which it stands there" in alone


def test_the_plan_shows_every_changed_setting(here):
    changes = ("--methods", "student,kd,skd", "--set", "kd.temperature=2", "--set", "skd.sum_over=rows", "--epochs", str(2 * EPOCHS))
    code, said, errors = here("run", "--profile", "smoke", *LOCAL, *changes, "--dry-run")
    assert code == 0, errors
    assert "set: kd.temperature = 2.0 instead of 4.0" in said and "skd.sum_over = rows instead of its default" in said
    assert f"{2 * EPOCHS} epochs, more than the protocol's {EPOCHS}" in said


def test_overview_imports_no_torch():
    code = "import sys, bench.__main__ as m; m.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def test_a_python_without_the_packages_is_told_in_one_line():
    for arguments in (["bench", "run", "--dry-run"], ["bench.report", "results"]):  # -S: nothing that is installed is found
        got = subprocess.run([sys.executable, "-S", "-m", *arguments], cwd=ROOT, env={}, capture_output=True, text=True, timeout=60)
        assert got.returncode == 2 and "has no package tyro; source .venv/bin/activate" in got.stderr and got.stderr.count("\n") == 1, got.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    got = bench("run", "--profile", "smoke", *LOCAL, "--methods", "student,kd", "--seeds", "1-2", "--dry-run", cwd=tmp_path)
    assert got.returncode == 0, got.stderr
    for part in ("4 runs, 0 done; 2 groups and 1 teacher to train", "group resnet20-resnet8-s2: student, kd", "total: ", "estimated: "):
        assert part in got.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_of_table_1_needs_no_data(here):
    code, said, errors = here("run", "--dry-run", *LOCAL)
    assert code == 0 and "18 groups and 5 teachers" in said and "note: " in said, errors


def test_results_that_cannot_be_written_are_a_named_error(tmp_path, here):
    (tmp_path / "file").touch()
    code, _, errors = here("run", "--profile", "smoke", *LOCAL, "--methods", "student", "--results", "file")
    assert code == 2 and "choose another --results" in errors and errors.count("\n") == 1


def test_slurm_without_anybody_to_ask_submits_nothing(tmp_path, monkeypatch, here):
    (tmp_path / "bin").mkdir()
    for name, code in (("sbatch", "touch called; exit 1"), ("srun", "exit 0"), ("sinfo", "exit 0")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    command = ("run", "--profile", "smoke", "--cluster", "slurm", "--methods", "student", "--seeds", "1", "--device", "cpu")
    code, said, errors = here(*command, "--dry-run")
    assert code == 0 and "of one CPU slot of 4 cores (slurm)" in said and "120 GMAC/s assumed" in said, errors
    code, _, errors = here(*command)
    assert code == 2 and "add --yes" in errors and not (tmp_path / "called").exists()
    got = bench(*command, "--yes", cwd=tmp_path)
    assert got.returncode == 2 and "Slurm took 0 of" in got.stderr and (tmp_path / "called").exists()


@pytest.mark.parametrize(("inside", "profile"), [(False, "paper"), (True, "smoke")])
def test_run_all_knows_that_it_is_a_job_itself(tmp_path, inside, profile):
    """On a node without a GPU: a controller answers there too, and nothing would be submitted."""
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 0\n")
    python = '#!/bin/sh\ncase "$1" in -) exit 0 ;; -c) exit 1 ;; *) echo "$@"; echo "total: 1 h" ;; esac\n'  # no CUDA; commands are told
    (tmp_path / "python").write_text(python)
    for name in ("sinfo", "python"):
        (tmp_path / name).chmod(0o755)
    here = {k: v for k, v in os.environ.items() if k != "SLURM_JOB_ID"} | ({"SLURM_JOB_ID": "7"} if inside else {})
    here |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "KD_BENCH_PYTHON": str(tmp_path / "python")}
    got = subprocess.run(["bash", ROOT / "run_all.sh"], cwd=tmp_path, env=here, capture_output=True, text=True, timeout=60)
    started = [line for line in got.stdout.splitlines() if line.startswith("-m bench run") and "--dry-run" not in line]
    assert got.returncode == 0 and [line.split()[4] for line in started] == [profile], got.stdout + got.stderr


def test_a_trial_runs_to_its_report_and_a_second_launch_finds_it_done(tmp_path, here):
    small = ("--methods", "student", "--seeds", "1", "--epochs", "1", "--sample-rate", "0.1", "--no-costs")
    command = ("run", "--profile", "smoke", *LOCAL, *small)
    first = bench(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    written = json.loads((tmp_path / "results" / "plan.json").read_text())
    run = written["cells"][0]["run"]
    assert (tmp_path / "results" / "runs" / run / "record.json").exists() and f"1 of {EPOCHS} epochs" in written["protocol"]["trial"]
    again = bench(*command, cwd=tmp_path)
    assert again.returncode == 0 and "1 run, 1 done; 0 groups and 0 teachers" in again.stdout
    assert here("status")[1].startswith("1 done\n")


def test_what_an_encoding_lacks_ends_nothing(monkeypatch):
    """Reasons may hold any character, and the log of a job any encoding."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["--version"]) == 0
    print("cut…")
    out.flush()
    assert out.buffer.getvalue().endswith(b"cut?\n")
