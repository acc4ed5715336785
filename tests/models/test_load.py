"""models.load: one line from a file to its network, whatever form the file has; a clear error where it has none."""

import argparse
import copy
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import models
from models import NetworkError, files
from models.randomness import keyed


def made(name: str = "resnet8", classes: int = 100) -> models.network.Network:
    """A network whose every parameter and buffer has left its initial value."""
    with keyed(1, "init"):
        network = models.build(name, classes)
        network(torch.randn(8, 3, 32, 32))  # running moments and counts move
    return network.eval()


def same(a, b) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


FORMS = {
    "bare": lambda state: state,
    "repdistiller": lambda state: {"epoch": 240, "model": state, "opt": argparse.Namespace(lr=0.05)},
    "data parallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2"])
def test_what_torch_saved_needs_a_name(tmp_path, form, name):
    network = made(name, 7)
    torch.save(FORMS[form](network.state_dict()), tmp_path / "x.pth")
    found = models.load(tmp_path / "x.pth", architecture=name)
    assert same(found, network) and not found.training and models.classifier(found).out_features == 7
    assert models.described(tmp_path / "x.pth") == {}
    with pytest.raises(NetworkError, match=r"does not say which network it is of; name it, as in models.load\(.*x.pth', architecture="):
        models.load(tmp_path / "x.pth")


def test_safetensors_that_say_their_architecture_need_none(tmp_path):
    network, said = made(), {"architecture": "resnet8", "mean": [0.5, 0.5, 0.5]}
    save_file(network.state_dict(), tmp_path / "x.safetensors", {"network": json.dumps(said)})
    images = torch.randn(2, 3, 32, 32)
    found = models.load(str(tmp_path / "x.safetensors"))
    assert same(found, network) and torch.equal(found(images).logits, network(images).logits)
    assert models.described(tmp_path / "x.safetensors") == said
    assert same(models.load(tmp_path / "x.safetensors", "resnet8"), network)
    with pytest.raises(NetworkError, match="is of a resnet8, not of a resnet14"):
        models.load(tmp_path / "x.safetensors", "resnet14")


def test_safetensors_of_other_hands_need_a_name(tmp_path):
    save_file(made().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(NetworkError, match="does not say which network"):
        models.load(tmp_path / "x.safetensors")
    assert same(models.load(tmp_path / "x.safetensors", "resnet8"), made())


def test_the_ambient_generator_is_left_as_it_was(tmp_path):
    torch.save(made().state_dict(), tmp_path / "x.pth")
    before = torch.get_rng_state()
    models.load(tmp_path / "x.pth", "resnet8")
    assert torch.equal(before, torch.get_rng_state())


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"model": made().state_dict(), "more": Trap(tmp_path / "sprung")}, tmp_path / "x.pth")
    with pytest.raises(NetworkError, match="x.pth cannot be read as weights"):
        models.load(tmp_path / "x.pth", "resnet8")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("resnet14", "is not of a resnet14: "), ("vgg8", r"has no classifier.weight"), ("resnet9", "unknown network 'resnet9'")]
)
def test_another_network_is_refused(tmp_path, name, said):
    torch.save(made().state_dict(), tmp_path / "x.pth")
    with pytest.raises(NetworkError, match=said):
        models.load(tmp_path / "x.pth", name)


def test_what_holds_no_weights_is_refused(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file(made().state_dict(), whole, {"network": '{"architecture": "resnet8"}'})
    content = whole.read_bytes()
    broken = {"cut": content[:-100], "header": content[:40], "page": b"<!DOCTYPE html>" * 40, "empty": b"", "folder": None}
    for name, bad in broken.items():
        path = tmp_path / name
        path.mkdir() if bad is None else path.write_bytes(bad)
        with pytest.raises(NetworkError, match=f"{name} cannot be read as weights") as caught:
            models.load(path, "resnet8")
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(NetworkError, match="list.pth holds no state dict"):
        models.load(tmp_path / "list.pth", "resnet8")
    with pytest.raises(NetworkError, match="nowhere.pth does not exist"):
        models.load(tmp_path / "nowhere.pth", "resnet8")
    for text in ("no JSON", "[1]", '{"classes": 3}', "[" * 100_000):
        save_file(made().state_dict(), whole, {"network": text})
        with pytest.raises(NetworkError, match='entry "network" of its header names no architecture'):
            models.load(whole)


ODD = {
    "meta": lambda: torch.empty(3, device="meta"),
    "torch.sparse_coo": lambda: torch.eye(3).to_sparse(),
    "torch.sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "conjugated": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.zeros(3, dtype=torch.complex64).conj().imag,
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_not_plain_values_are_refused(tmp_path, kind):
    torch.save({"model": {"right": torch.zeros(3), "odd": ODD[kind]()}}, tmp_path / "x.pth")
    with pytest.raises(NetworkError, match=f"x.pth holds no plain tensors .odd is .*{kind}") as caught:
        files.read(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_tensors_that_are_larger_than_their_file_are_refused(tmp_path):
    torch.save({"one": torch.zeros(1).expand(10)}, tmp_path / "x.pth")
    assert files.read(tmp_path / "x.pth")["one"].tolist() == [0.0] * 10
    for state in ({"one": torch.zeros(1).expand(10**14)}, {str(i): torch.zeros(1).expand(files.LIMIT // 8) for i in range(3)}):
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(NetworkError, match="x.pth holds tensors of .* bytes, more than the 4,294,967,296 that are read"):
            files.read(tmp_path / "x.pth")


def test_an_archive_that_is_larger_unpacked_than_as_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("unpacked"))
    for name, way in (("packed", zipfile.ZIP_DEFLATED), ("shared", zipfile.ZIP_STORED)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", way) as archive:
            archive.writestr("x/data.pkl", b"0" * 5000)
            for i in range(9 if name == "shared" else 0):  # names for the same bytes
                again = copy.copy(archive.filelist[0])
                again.filename = f"x/data/{i}"
                archive.filelist.append(again)
        (tmp_path / name).write_bytes(buffer.getvalue())
    with pytest.raises(NetworkError, match=r"packed cannot be read as weights \(its entries are compressed\)"):
        files.read(tmp_path / "packed")
    monkeypatch.setattr(files, "LIMIT", 10_000)
    with pytest.raises(NetworkError, match=r"shared cannot be read as weights \(50,000 bytes unpacked, more than the 10,000"):
        files.read(tmp_path / "shared")
