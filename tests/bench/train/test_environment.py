"""What a record says of the code it was made with."""

import subprocess

import pytest

from bench.train import environment


@pytest.fixture
def code(tmp_path):
    """A checkout of one commit with a file in each package."""
    for package in environment.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("hello\n")
    return tmp_path


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], check=True, capture_output=True)


def test_each_state_of_a_checkout_has_its_name(code):
    git(code, "init")
    git(code, "add", ".")
    git(code, "commit", "-m", "first")
    clean = environment.commit_of(code)
    assert len(clean) == 12 and int(clean, 16) >= 0
    (code / "README.md").write_text("no code\n")
    (code / "notes.txt").write_text("not tracked\n")
    (code / "methods" / "mine.py").write_text("told by the runs of that method\n")
    assert environment.commit_of(code) == clean
    (code / "models" / "mine.py").write_text("x = 1\n")  # a network that is not tracked yet
    new = environment.commit_of(code)
    (code / "models" / "mine.py").write_text("x = 2\n")
    assert len({clean, new, environment.commit_of(code)}) == 3
    (code / "models" / "mine.py").unlink()
    (code / "models" / ".#a.py").symlink_to("an editor's lock")
    assert environment.commit_of(code) == clean
    said = []
    for text in ("x = 2\n", "x = 3\n", "x = 2\n"):
        (code / "models" / "a.py").write_text(text)
        said.append(environment.commit_of(code))
    assert said[0] == said[2] != said[1] and all(one.startswith(f"{clean}+") and len(one) == 21 for one in said)


def test_outside_of_a_checkout_the_files_are_told(code, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(code.parent))
    (code / "models" / ".#a.py").symlink_to("an editor's lock")
    first = environment.commit_of(code)
    assert first.startswith("files-") and first == environment.commit_of(code)
    (code / "bench" / "a.py").write_text("x = 2\n")
    assert environment.commit_of(code) not in (first, "")


def test_a_checkout_around_it_is_another_projects(code):
    git(code, "init")
    (code / ".gitignore").write_text("suite/\n")
    (code / "suite").mkdir()
    for package in environment.PACKAGES:
        (code / package).rename(code / "suite" / package)
    git(code, "add", ".")
    git(code, "commit", "-m", "theirs")
    assert environment.commit_of(code / "suite").startswith("files-")


def test_this_suite_has_one():
    assert environment.commit() == environment.commit() != ""
