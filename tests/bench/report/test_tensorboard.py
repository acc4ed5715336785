"""Event files of runs, on request only."""

import importlib.util
import sys
from types import ModuleType

import pytest

from bench.errors import UsageError
from bench.report.tensorboard import SCALARS, Tensorboard
from tests.bench.synthetic import add_run, run_of


@pytest.fixture
def written(monkeypatch):
    """Stands in for the package, which need not be installed: what each writer was given."""
    calls: dict[str, list[tuple[str, float, int]]] = {}

    class Writer:
        def __init__(self, folder):
            self.rows = calls.setdefault(folder, [])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def add_scalar(self, name, value, step):
            self.rows.append((name, value, step))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "tensorboard" else find(name))
    return calls


def test_every_epoch_of_every_run(tmp_path, written):
    folders = [add_run(tmp_path, run_of("kd", "resnet56", "resnet20", seed), 70.0) for seed in (1, 2)]
    assert Tensorboard(tmp_path, tmp_path / "events").main() == 0
    assert set(written) == {str(tmp_path / "events" / folder.name) for folder in folders}
    rows = next(iter(written.values()))
    assert {step for _, _, step in rows} == {1, 2, 3}
    assert {name for name, _, _ in rows} == {*SCALARS, "losses/ce"}
    assert ("test_top1", 70.0, 3) in rows
    assert Tensorboard(tmp_path, tmp_path / "events").main() == 0  # it may replace its own


def test_a_damaged_run_is_named_and_left_out(tmp_path, written, capsys):
    good, bad = (add_run(tmp_path, run_of("kd", "resnet56", "resnet20", seed), 70.0) for seed in (1, 2))
    (bad / "epochs.jsonl").write_text("{}\n")
    Tensorboard(tmp_path, tmp_path / "events").main()
    assert set(written) == {str(tmp_path / "events" / good.name)}
    assert "left out" in capsys.readouterr().out


def test_refusals(tmp_path, written):
    with pytest.raises(UsageError, match="no runs"):
        Tensorboard(tmp_path, tmp_path / "events").main()
    add_run(tmp_path, run_of("student", None, "resnet20", 1), 70.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        Tensorboard(tmp_path, tmp_path / "mine").main()
    assert (tmp_path / "mine" / "thesis.tex").exists()
    for taken in (tmp_path / "mine" / "thesis.tex", tmp_path / "mine" / "thesis.tex" / "events"):  # a file, and what would lie below one
        with pytest.raises(UsageError, match="choose another --out"):
            Tensorboard(tmp_path, taken).main()


def test_files_lie_below_the_results_they_were_made_of(tmp_path, written):
    folder = add_run(tmp_path, run_of("kd", "resnet56", "resnet20", 1), 70.0)
    Tensorboard(tmp_path).main()
    assert list(written) == [str(tmp_path / "report" / "tensorboard" / folder.name)]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        Tensorboard(tmp_path, tmp_path / "events").main()
    assert not (tmp_path / "events").exists()
