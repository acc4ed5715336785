"""`export`: what it writes opens again as the same network, and what it must not export is refused with one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

import models
from bench.__main__ import main
from bench.data import shapes100
from bench.plan.protocols import PROTOCOLS, Protocol
from bench.store.weights import read_state, state_hash
from models.randomness import keyed
from tests.bench import synthetic

EMBEDDED = Protocol("smoke", dataset="shapes100", epochs=2, milestones=(1,), image_size=24, trial="2 of 15 epochs")


def trained(results: Path, method: str = "kd", seed: int = 1, protocol: Protocol = synthetic.SHORT, **record) -> Path:
    """A finished run of a resnet8 with weights; its folder."""
    with keyed(seed, "init"):
        network = models.build("resnet8")
        network(torch.randn(8, 3, 32, 32))
    state = network.state_dict()
    run = synthetic.run_of(method, "resnet14", "resnet8", seed, protocol)
    folder = synthetic.add_run(results, run, 70.25, weights_sha256=state_hash(state), **record)
    torch.save(state, folder / "student.pt")
    return folder


def refused(capsys, *arguments: str) -> str:
    """The one line with which a command line is refused."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_the_files_open_as_the_network_that_was_trained(tmp_path, capsys):
    run = trained(tmp_path)
    assert main(["export", run.name, "--results", str(tmp_path)]) == 0
    safe, theirs, card = (Path(line) for line in capsys.readouterr().out.splitlines())
    assert safe == tmp_path / "export" / run.name / "model.safetensors"
    state = read_state(run / "student.pt")
    for found in (models.load(safe), models.load(theirs, architecture="resnet8")):
        assert state_hash(found.state_dict()) == state_hash(state) and not found.training
    assert set(torch.load(theirs, weights_only=True)) == {"model"}
    assert theirs.parent.name.split("_")[0] == "resnet8"  # where RepDistiller looks for the architecture
    assert card.name == "README.md"


def test_the_header_says_what_the_network_needs_and_how_it_came_about(tmp_path):
    run = trained(tmp_path / "r")
    main(["export", run.name[:20], "--results", str(tmp_path / "r"), "--out", str(tmp_path / "o")])
    safe = tmp_path / "o" / run.name / "model.safetensors"
    network = models.described(safe)
    assert {key: network[key] for key in ("architecture", "classes", "image_size")} == {"architecture": "resnet8", "classes": 100, "image_size": 32}
    assert network["mean"] == [0.5071, 0.4867, 0.4408] and network["std"] == [0.2675, 0.2565, 0.2761] and network["dataset"] == "cifar100"
    with safe_open(str(safe), "pt") as file:
        kept = json.loads(file.metadata()["run"])
    record = json.loads((run / "record.json").read_text())
    assert all(kept[key] == record[key] for key in ("test_top1", "best_top1", "best_epoch", "weights_sha256", "commit", "teacher"))
    assert kept["versions"]["torch"] == record["versions"]["torch"]
    assert (kept["id"], kept["method"], kept["seed"], kept["protocol"]["name"]) == (run.name, "kd", 1, "crd")


def test_the_card_says_it_all_and_the_same_each_time(tmp_path):
    run = trained(tmp_path, curve={1: 60.0, 2: 71.0, 3: 70.25}.get)
    card = tmp_path / "export" / run.name / "README.md"
    texts = []
    for _ in range(2):
        assert main(["export", run.name, "--results", str(tmp_path)]) == 0
        texts.append(card.read_text())
    assert texts[0] == texts[1]
    record = json.loads((run / "record.json").read_text())
    for said in (
        "resnet14 (teacher) to resnet8 (student)", "KD (`kd`, version 1)", "70.25 %: that of these weights", "71.00 % (epoch 2)", "3 epochs", "tf32",
        "learning rate 0.05 times 0.1 after epochs 2, 2, 3", record["weights_sha256"], "d" * 16, "resnet14-hash", "abc1234", "torch 2.9.0",
        "| Seed | 1 |", "| Licence | MIT", "TRIAL, not the protocol: 3 of 240 epochs", run.name,
    ):  # fmt: skip
        assert said in texts[0], said
    assert "embedded" not in texts[0]


def test_the_code_on_the_card_runs(tmp_path, monkeypatch):
    run = trained(tmp_path)
    assert main(["export", run.name, "--results", str(tmp_path)]) == 0
    monkeypatch.chdir(tmp_path / "export" / run.name)
    images = torch.rand(4, 3, 32, 32)
    here = {"images": images}
    exec(Path("README.md").read_text().split("```python\n")[1].split("```")[0], here)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))
    network = models.build("resnet8").eval()
    network.load_state_dict(torch.load(run / "student.pt", weights_only=True))
    assert torch.equal(here["logits"], network((images - mean) / std).logits)


def test_a_card_of_the_protocol_bears_no_banner_and_one_of_embedded_data_does(tmp_path):
    protocol = dataclasses.replace(PROTOCOLS["crd"], epochs=3, milestones=(1, 2))
    for results, chosen in ((tmp_path / "a", protocol), (tmp_path / "b", EMBEDDED)):
        run = trained(results, "student", 1, chosen)
        assert main(["export", run.name, "--results", str(results)]) == 0
        text = (results / "export" / run.name / "README.md").read_text()
        assert ("TRIAL" in text, "says nothing about CIFAR-100" in text) == ((False, False) if chosen is protocol else (True, True))
        assert "| Teacher | none |" in text and "without a teacher" in text
    assert models.described(tmp_path / "b" / "export" / run.name / "model.safetensors")["mean"] == list(shapes100.MEAN)


def test_what_is_ambiguous_unknown_or_not_finished_is_refused(tmp_path, capsys):
    first, second = trained(tmp_path, seed=1), trained(tmp_path, seed=2)
    late = synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet14", "resnet8", 3), 60, status="diverged", rows=1)
    line = refused(capsys, "export", "resnet14-resnet8-kd", "--results", str(tmp_path))
    assert "3 runs" in line and first.name in line and second.name in line
    line = refused(capsys, "export", "resnet20", "--results", str(tmp_path))
    assert "no run" in line and f"python -m bench status --all --results {tmp_path}" in line
    assert "no run" in refused(capsys, "export", "", "--results", str(tmp_path))
    line = refused(capsys, "export", late.name, "--results", str(tmp_path))
    assert "is diverged (loss is not finite): only a finished run" in line
    assert "is no folder" in refused(capsys, "export", "x", "--results", str(tmp_path / "nowhere"))
    assert not (tmp_path / "export").exists()


def test_a_whole_id_wins_over_longer_ones(tmp_path, capsys):
    run = trained(tmp_path)
    shutil.copytree(run, run.with_name(f"{run.name}-copy"))
    assert main(["export", run.name, "--results", str(tmp_path)]) == 0
    assert "belongs to a run" in refused(capsys, "export", f"{run.name}-c", "--results", str(tmp_path))


def test_weights_that_are_damaged_or_not_there_are_refused(tmp_path, capsys):
    run = trained(tmp_path)
    arguments = ("export", run.name, "--results", str(tmp_path))
    state = read_state(run / "student.pt")
    torch.save({**state, "fc.bias": state["fc.bias"] + 1}, run / "student.pt")
    line = refused(capsys, *arguments)
    assert "its record says" in line and f"python -m bench doctor --results {tmp_path}" in line
    (run / "student.pt").write_bytes(b"\0" * 50)
    line = refused(capsys, *arguments)
    assert "cannot be read as weights" in line and f"python -m bench doctor --results {tmp_path}" in line
    (run / "student.pt").unlink()
    assert "evidence sets keep records and no weights" in refused(capsys, *arguments)
    (run / "epochs.jsonl").write_bytes((run / "epochs.jsonl").read_bytes().replace(b'"seconds":1.5', b'"seconds":2.5'))
    assert "epochs.jsonl" in refused(capsys, *arguments)
    assert not (tmp_path / "export").exists()


def test_a_student_that_was_tested_with_more_than_itself_is_refused(tmp_path, capsys):
    run = trained(tmp_path, inference={"parameters": 100, "macs": 10})
    assert "evaluated with modules of kd beside the student" in refused(capsys, "export", run.name, "--results", str(tmp_path))


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    run = trained(tmp_path)
    (tmp_path / "file").touch()
    assert "choose another folder with --out" in refused(capsys, "export", run.name, "--results", str(tmp_path), "--out", str(tmp_path / "file"))
