"""Faults 14 and 15: an error page or half a file in the place of the data; the wrong teacher in the right place."""

import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import data
from bench.__main__ import main
from bench.data import cifar100
from bench.errors import UsageError
from bench.plan.protocols import get
from bench.store.weights import read_state
from bench.train import group_job
from tests.faults import lives

PAGE = b"<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head><body>come back later</body></html>\n" * 40


@pytest.fixture
def server(request):
    """Serves one body on 127.0.0.1 under every path; `truncate` announces more than it sends."""
    body, announced = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    one = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{one.server_address[1]}/cifar-100-python.tar.gz"
    one.shutdown()
    one.server_close()


GZIP = b"\x1f\x8b\x08\x00" + bytes(range(256)) * 200


BODIES = {"error page": (PAGE, len(PAGE)), "other archive": (GZIP, len(GZIP)), "cut off": (GZIP, 2 * len(GZIP)), "nothing": (b"", 0)}


@pytest.mark.parametrize("server", list(BODIES.values()), ids=list(BODIES), indirect=True)
def test_what_is_no_data_set_is_refused_and_nothing_of_it_is_unpacked(server, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", server)
    with pytest.raises(UsageError) as caught:
        data.load(get("crd"), tmp_path, download=True)
    assert "CIFAR-100" in str(caught.value) and "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert server in capsys.readouterr().out and not (tmp_path / cifar100.FOLDER).exists()
    with pytest.raises(UsageError, match="is absent; get it with"):  # what was fetched does not pass for data later either
        data.load(get("crd"), tmp_path)


def archive() -> tuple[bytes, dict[str, tuple[str, int]]]:
    """A made-up archive in the official layout, and MD5 and size of its files."""
    made = {"train": b"images" * 1000, "test": b"more" * 500, "meta": b"names"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in made.items():
            entry = tarfile.TarInfo(f"{cifar100.FOLDER}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue(), {name: (hashlib.md5(content).hexdigest(), len(content)) for name, content in made.items()}


WHOLE, SUMS = archive()


@pytest.mark.parametrize("server", [(WHOLE, len(WHOLE))], indirect=True)
def test_data_fetch_gets_the_data_and_nothing_else(server, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(cifar100, "FILES", SUMS)
    for name, value in (("url", server), ("tgz_md5", hashlib.md5(WHOLE).hexdigest())):
        monkeypatch.setattr(CIFAR100, name, value)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", SUMS["train"][0]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", SUMS["test"][0]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": SUMS["meta"][0]})
    monkeypatch.setattr(CIFAR100, "_load_meta", lambda self: None)
    monkeypatch.setattr("pickle.load", lambda *arguments, **options: {"data": np.zeros((1, 3072), dtype=np.uint8), "fine_labels": [0]})
    root = tmp_path / "new" / "root"
    monkeypatch.chdir(tmp_path)
    assert main(["data", "fetch", "--data-root", str(root)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (server, "169 MB", str(root)))
    assert all(f"{cifar100.FOLDER}/{name}  {size} bytes  MD5 {md5}" in said for name, (md5, size) in SUMS.items())
    assert f"CIFAR-100 is whole in {root / cifar100.FOLDER}\n" in said
    assert sorted(p.name for p in (root / cifar100.FOLDER).iterdir()) == sorted(SUMS) and [p.name for p in tmp_path.iterdir()] == ["new"]

    def never(*arguments, **options):
        raise AssertionError("fetched again")

    monkeypatch.setattr(CIFAR100, "__init__", never)
    assert main(["data", "fetch", "--data-root", str(root)]) == 0
    assert capsys.readouterr().out == f"CIFAR-100 is whole in {root / cifar100.FOLDER}: nothing was fetched\n"


@pytest.mark.parametrize("server", [BODIES["error page"]], ids=["error page"], indirect=True)
def test_data_fetch_that_fails_is_one_line_and_exit_2(server, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", server)
    assert main(["data", "fetch", "--data-root", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: CIFAR-100: the download to {tmp_path} failed") and not (tmp_path / cifar100.FOLDER).exists()


def test_an_error_page_in_a_files_place_is_named(tmp_path):
    (tmp_path / cifar100.FOLDER).mkdir()
    for name in cifar100.FILES:
        (tmp_path / cifar100.FOLDER / name).write_bytes(PAGE)
    with pytest.raises(UsageError, match=r"cifar-100-python/train is truncated .*; get it with: python -m bench data fetch --data-root"):
        data.load(get("crd"), tmp_path)


def place(results: Path) -> Path:
    return results / "teachers" / "shapes100-resnet8"


def spoil_page(results: Path) -> None:
    (place(results) / "teacher.pt").write_bytes(PAGE)


def spoil_absent(results: Path) -> None:
    (place(results) / "teacher.pt").unlink()


def spoil_other_weights(results: Path) -> None:
    state = read_state(place(results) / "teacher.pt")
    torch.save({name: value + 1 if value.is_floating_point() else value for name, value in state.items()}, place(results) / "teacher.pt")


def spoil_architecture(results: Path) -> None:
    shutil.move(place(results), place(results).with_name("shapes100-resnet14"))


@pytest.mark.parametrize(
    ("spoil", "teacher", "said"),
    [
        (spoil_page, "resnet8", "teacher.pt cannot be read as weights"),
        (spoil_absent, "resnet8", "teacher.pt does not exist"),
        (spoil_other_weights, "resnet8", r"teacher.pt has hash [0-9a-f]{16}, its record says [0-9a-f]{16}; remove .* and import or train it again"),
        (spoil_architecture, "resnet14", r"teacher.json is damaged or of another version .*; remove"),
        (spoil_architecture, "resnet8", r"no resnet8 teacher for shapes100 in .*teachers train resnet8"),
    ],
)
def test_the_wrong_teacher_is_named_before_a_run_begins(results, spoil, teacher, said):
    spoil(results)
    with pytest.raises(UsageError, match=said):
        group_job.run_group(lives.group(teacher=teacher), lives.execution(results))
    assert not (results / "runs").exists()


def test_a_teacher_of_another_accuracy_is_refused(results):
    """The right weights under a record that belongs to others."""
    from bench.store.files import read_json, write_json

    record = read_json(place(results) / "teacher.json")
    write_json(place(results) / "teacher.json", {**record, "test_top1": 90.0})
    (place(results) / "verified.json").unlink()
    with pytest.raises(UsageError, match=r"tests at .* % top-1, its record says 90.00 %"):
        group_job.run_group(lives.group(), lives.execution(results))
