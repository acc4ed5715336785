"""The Python that the shell scripts choose, the .venv they make with it, and what run_all.sh says where it cannot tell the cost."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = """#!/bin/sh
case "$*" in *version_info*) exit {old} ;; esac
echo "$(basename "$0") $*" >>"{log}"
case "$*" in *"--clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""


def fake(path: Path, log: Path, old: bool = False) -> Path:
    """An interpreter that writes down its arguments, and makes a .venv of itself where it is asked for a clear one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.format(old=int(old), log=log))
    path.chmod(0o755)
    return path


def sourced(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = f"set -euo pipefail; . {ROOT / 'bench' / 'python.sh'}; {words}"
    return subprocess.run(["bash", "-c", script], cwd=folder, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)


def bash_alone(folder: Path) -> str:
    """A PATH on which no Python stands but those that a test puts there."""
    folder.mkdir()
    (folder / "bash").symlink_to("/bin/bash")
    return str(folder)


def test_the_base_of_a_venv_is_the_named_python_where_python3_is_too_old(tmp_path):
    path, log = bash_alone(tmp_path / "bin"), tmp_path / "log"
    fake(tmp_path / "bin" / "python3", log, old=True)
    named = fake(tmp_path / "elsewhere" / "python3.11", log)
    assert sourced('find_base; echo "$base"', tmp_path, PATH=path, KD_BENCH_PYTHON=str(named)).stdout == f"{named}\n"
    none = sourced('find_base; echo "$base"', tmp_path, PATH=path)
    assert none.returncode == 2 and none.stdout == "" and none.stderr.startswith("error: Python 3.11 or newer is needed and none was found")


@pytest.mark.parametrize("state", ["absent", "too old", "gone", "serves"])
def test_a_venv_is_made_anew_where_its_interpreter_does_not_serve(tmp_path, state):
    log, inside = tmp_path / "log", tmp_path / ".venv" / "bin" / "python"
    base = fake(tmp_path / "base", log)
    if state == "gone":
        inside.parent.mkdir(parents=True)
        inside.symlink_to(tmp_path / "nothing")
    elif state != "absent":
        fake(inside, log, old=state == "too old")
    assert sourced(f"install_into {base} '.[test]'", tmp_path).returncode == 0
    made = [] if state == "serves" else ["base -m venv --clear .venv"]
    assert log.read_text().splitlines() == [*made, "python -m pip --version", "python -m pip install -q --disable-pip-version-check -e .[test]"]


def test_run_all_goes_on_to_smoke_where_the_cost_cannot_be_told(tmp_path):
    python = tmp_path / "python"  # it has the packages and no CUDA, and refuses the dry run
    refused = 'case "$*" in *--dry-run*) echo "error: a trial stands here" >&2; exit 2 ;; *) echo "$@" ;; esac'
    python.write_text(f'#!/bin/sh\ncase "$1" in -) exit 0 ;; -c) exit 1 ;; *) {refused} ;; esac\n')
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    for name in ("sinfo", "python"):
        (tmp_path / name).chmod(0o755)
    here = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "KD_BENCH_PYTHON": str(python)}
    got = subprocess.run(["bash", ROOT / "run_all.sh"], cwd=tmp_path, env=here, capture_output=True, text=True, timeout=60)
    assert got.returncode == 0 and "cannot be told, for the reason above\n" in got.stdout, got.stdout + got.stderr
    assert got.stdout.splitlines()[-1].startswith("-m bench run --profile smoke ") and "error: a trial stands here" in got.stderr
