"""`run --teacher`: a file becomes the plan's teacher in the same command, measured first; what cannot be it is refused before anything is written."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch

import models
from bench import data
from bench.__main__ import main, parse, split
from bench.data.augment import Augmenter
from bench.errors import DONE, UsageError
from bench.launch import run as launch
from bench.plan.names import parse_teacher
from bench.plan.protocols import PROTOCOLS
from bench.store import teachers
from bench.store.files import read_json, write_json
from bench.store.weights import read_state, safetensors, state_hash
from bench.train import teacher_networks
from models.randomness import keyed

COMMAND = ("run", "--profile", "smoke", "--pairs", "resnet14-resnet8", "--methods", "kd", "--seeds", "1", "--cluster", "local", "--device", "cpu")
CPU = torch.device("cpu")


def network(seed: int = 1) -> models.network.Network:
    with keyed(seed, "init"):
        found = models.build("resnet14", 20)
        found(torch.randn(16, 3, 16, 16))
    return found.eval()


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    """A small part of the profile's data whose test labels are what `network()` says of the images."""
    protocol = dataclasses.replace(PROTOCOLS["smoke"], train_images=100, test_images=100)
    made = data.load(protocol)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (made.mean, made.std))
    with torch.no_grad():
        labels = network()((made.test_images / 255 - mean) / std).logits.argmax(1)
    return dataclasses.replace(made, test_labels=labels)


@pytest.fixture
def launched(dataset, monkeypatch, tmp_path):
    """The ledger of each launch in an empty folder; nothing is trained."""
    books = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.data, "load", lambda *arguments: dataset)
    monkeypatch.setattr(launch, "_run_here", lambda options, plan, book, *rest: books.append(book) or DONE)
    return books


def exported(path: Path, seed: int = 1, **said) -> Path:
    path.write_bytes(safetensors(network(seed).state_dict(), {"network": {"architecture": "resnet14", "dataset": "shapes20", **said}}))
    return path


def bare(path: Path, seed: int = 1) -> Path:
    torch.save(network(seed).state_dict(), path)
    return path


def refused(capsys, *arguments: str) -> str:
    assert main([*COMMAND, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("form", ["exported", "bare"])
def test_a_file_becomes_the_teacher_of_the_plan(launched, tmp_path, capsys, form):
    given = str(exported(tmp_path / "x.safetensors")) if form == "exported" else f"resnet14={bare(tmp_path / 'x.pth')}"
    assert main([*COMMAND, "--teacher", given]) == DONE
    (book,) = launched
    found = teachers.find(tmp_path / "results", "shapes20", "resnet14")
    assert found.hash == state_hash(network().state_dict()) and found.record.source == "imported" and found.record.test_top1 > 95
    assert book.teachers_missing() == [] and all(book.runs().values())
    assert f"teacher resnet14: measuring {tmp_path}" in (said := capsys.readouterr().out) and "0 teachers to train" in said
    assert main([*COMMAND, "--teacher", given]) == DONE  # the same once more: nothing to import
    assert "measuring" not in capsys.readouterr().out and teachers.find(tmp_path / "results", "shapes20", "resnet14").hash == found.hash


def test_a_dry_run_counts_it_and_writes_nothing(launched, tmp_path, capsys):
    path = exported(tmp_path / "x.safetensors")
    assert main([*COMMAND, "--teacher", str(path), "--dry-run"]) == DONE
    said = capsys.readouterr().out
    assert "0 teachers to train" in said and f"teacher resnet14: measured and imported first, from {path}" in said
    assert not launched and not (tmp_path / "results").exists()


def test_another_teacher_in_its_place_is_kept_and_the_command_that_replaces_it_is_named(launched, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("KD_BENCH_DATA", raising=False)
    assert main([*COMMAND, "--teacher", str(exported(tmp_path / "one.safetensors"))]) == DONE
    before = teachers.find(tmp_path / "results", "shapes20", "resnet14")
    other = exported(tmp_path / "other one.safetensors", seed=2)
    line = refused(capsys, "--teacher", str(other))
    assert "holds another resnet14" in line and teachers.find(tmp_path / "results", "shapes20", "resnet14").hash == before.hash
    words = shlex.split(line.partition("in its place with: ")[2])
    options = parse(*split(words[3:]))
    assert (options.file, options.architecture, options.protocol) == (other, "resnet14", "smoke") and options.replace
    assert options.results == tmp_path / "results" and options.data_folder == Path("data")


def test_what_cannot_be_the_teacher_is_refused_and_nothing_written(launched, tmp_path, capsys):
    path, plain = exported(tmp_path / "x.safetensors"), bare(tmp_path / "x.pth")
    foreign = exported(tmp_path / "foreign.safetensors", dataset="cifar100")
    untaught = exported(tmp_path / "untaught.safetensors", seed=3)
    for arguments, said in (
        ((str(plain),), "does not say which network it is of; name it, as in --teacher resnet56="),
        ((f"resnet15={plain}",), "unknown network 'resnet15'"),
        (("resnet14=",), "names no file"),
        ((str(tmp_path / "nowhere"),), "nowhere does not exist"),
        ((f"resnet20={plain}",), "is not of a resnet20"),
        ((f"resnet8={path}",), "is of a resnet14, not of a resnet8"),
        ((str(path), str(path)), "is a resnet14 too"),
        ((str(foreign),), "says its dataset is cifar100, not shapes20"),
        ((str(untaught),), "near chance"),
    ):
        line = refused(capsys, *(word for text in arguments for word in ("--teacher", text)))
        assert said in line, line
    assert not launched and not list((tmp_path / "results").glob("teachers/*/*"))


def test_a_teacher_of_no_run_of_the_plan_is_refused(tmp_path):
    path = exported(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="a resnet14 teaches no run of this plan; its teachers: resnet20"):
        teacher_networks.given([(None, path)], ("resnet20",), tmp_path, PROTOCOLS["smoke"], tmp_path)


def test_a_student_of_a_trial_is_a_trials_teacher(dataset, tmp_path):
    path = exported(tmp_path / "x.safetensors", protocol="smoke", trial="2 of 50 epochs")
    teacher_networks.import_given({"resnet14": path}, tmp_path, dataset, CPU)
    record = teachers.find(tmp_path, "shapes20", "resnet14").record
    assert (record.source, record.protocol, record.trial) == ("imported", "smoke", "2 of 50 epochs")


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path):
    path = tmp_path / "lr=0.05.safetensors"
    path.touch()
    assert parse_teacher(str(path)) == (None, path) and parse_teacher(f"resnet14={path}") == ("resnet14", path)


def test_importing_a_teachers_own_weights_forgets_nothing(dataset, tmp_path):
    """That it was trained in a trial, above all."""
    facts = {"source": "trained", "trained": True, "protocol": "crd", "trial": "1 of 240 epochs", "precision": "bf16"}
    state, measured = network().state_dict(), {"top1": 100.0}
    before = teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", state, measured, facts)
    images = Augmenter(dataset, CPU, channels_last=True)
    found = teacher_networks.import_file(before.folder / "teacher.pt", "resnet14", tmp_path, dataset, images, CPU)
    assert found.record == teachers.find(tmp_path, dataset.name, "resnet14").record == before.record
    assert "1 of 240 epochs" in teachers.unfit(found, PROTOCOLS["crd"])
    whole, path = bare(tmp_path / "again.pt"), before.folder / "teacher.pt"
    for damage in (lambda: path.write_bytes(b"junk"), path.unlink):  # it mends what is damaged, too
        damage()
        assert teacher_networks.import_file(whole, "resnet14", tmp_path, dataset, images, CPU).record == before.record
        assert state_hash(read_state(path)) == before.hash


def test_a_teacher_stays_where_its_successors_files_cannot_all_be_made(dataset, tmp_path, monkeypatch):
    facts = {"source": "imported", "trained": True}
    before = teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network().state_dict(), {"top1": 100.0}, facts)

    def unreadable() -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(models, "source_hash", unreadable)
    with pytest.raises(PermissionError):
        teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network(2).state_dict(), {"top1": 90.0}, facts)
    assert teachers.find(tmp_path, dataset.name, "resnet14").record == before.record
    assert state_hash(read_state(before.folder / "teacher.pt")) == before.hash


def test_another_teacher_that_came_while_this_one_was_measured_stays(dataset, tmp_path, monkeypatch):
    measure, facts = teacher_networks._measure, {"source": "imported", "trained": True}

    def while_another_comes(*arguments):
        teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network(2).state_dict(), {"top1": 50.0}, facts)
        return measure(*arguments)

    monkeypatch.setattr(teacher_networks, "_measure", while_another_comes)
    images = Augmenter(dataset, CPU, channels_last=True)
    with pytest.raises(UsageError, match="another launch has put .* here meanwhile"):
        teacher_networks.import_file(bare(tmp_path / "given.pt"), "resnet14", tmp_path, dataset, images, CPU)
    assert teachers.find(tmp_path, dataset.name, "resnet14").hash == state_hash(network(2).state_dict())


def test_a_record_that_cannot_be_written_leaves_the_old_teacher(dataset, tmp_path):
    facts, measured = {"source": "imported", "trained": True}, {"top1": 100.0}
    before = teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network(2).state_dict(), measured, facts)
    kept = {path.name: path.read_bytes() for path in before.folder.iterdir()}
    for odd in ({"run": "\ud800"}, {"run": {"loss": float("nan")}}):
        with pytest.raises(UsageError, match=r"teacher.json cannot be written \(.*\); nothing was changed") as caught:
            teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network().state_dict(), measured, {**facts, **odd})
        assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in before.folder.iterdir()} == kept


def test_odd_text_in_the_name_and_header_of_a_file_is_shown_as_such(dataset, tmp_path):
    images, facts = Augmenter(dataset, CPU, channels_last=True), {"source": "x", "trained": True}
    named = bare(tmp_path / "caf\udce9.pth")
    told = exported(tmp_path / "x.safetensors", protocol="smoke", trial="\ud800 of 50\x1b epochs")
    for path, name, trial in ((named, "caf?.pth", None), (told, "x.safetensors", "? of 50? epochs")):
        teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network(2).state_dict(), {"top1": 9.0}, facts)
        found = teacher_networks.import_file(path, "resnet14", tmp_path, dataset, images, CPU, replace=True)
        assert teachers.find(tmp_path, dataset.name, "resnet14") == found and found.record.trial == trial
        assert read_json(found.folder / "teacher.json")["file"] == name


def test_an_accuracy_is_measured_again_where_the_networks_code_changed_and_held_against_the_record(dataset, tmp_path, monkeypatch):
    facts, images = {"source": "imported", "trained": True}, Augmenter(dataset, CPU, channels_last=True)
    found = teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", network().state_dict(), {"top1": 100.0}, facts)
    measure, asked = teacher_networks._measure, []
    monkeypatch.setattr(teacher_networks, "_measure", lambda *arguments: asked.append(1) or measure(*arguments))

    def load():
        return teacher_networks.load(found, dataset, images, CPU)

    load()
    assert not asked
    monkeypatch.setattr(models, "source_hash", lambda: "f" * 16)
    load()
    load()
    assert len(asked) == 1
    verified = found.folder / "verified.json"
    whole = read_json(verified)
    write_json(verified, {name: value for name, value in whole.items() if name != "networks"})  # of an older version
    load()
    assert len(asked) == 2 and read_json(verified) == whole
    write_json(verified, whole | {"data": {dataset.hash: 42.0}})
    with pytest.raises(UsageError, match="teacher.pt tests at 42.00 % top-1, its record says 100.00 %"):
        load()
    assert len(asked) == 2


@pytest.mark.parametrize(("of", "protocol"), [("cifar100", "crd"), ("shapes20", "smoke_teacher")])
def test_the_commands_that_get_a_missing_teacher_mean_its_data_and_its_folder(tmp_path, of, protocol):
    with pytest.raises(UsageError) as error:
        teachers.require(tmp_path / "my results", of, "resnet14")
    train, bring = (parse(*split(shlex.split(command))) for command in re.findall("`python -m bench (.*?)`", str(error.value)))
    assert (train.architecture, train.protocol, train.results) == ("resnet14", protocol, tmp_path / "my results")
    assert (bring.architecture, bring.protocol, bring.results) == ("resnet14", protocol, tmp_path / "my results")
