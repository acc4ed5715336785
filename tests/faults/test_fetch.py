"""Faults 14 and 15: an error page or half a file in the place of the data; the wrong teacher in the right place."""

import http.server
import shutil
import threading
from pathlib import Path

import pytest
import torch

from bench import data
from bench.data import cifar100
from bench.errors import UsageError
from bench.launch import jobs
from bench.plan.protocols import get
from bench.store.weights import read_state
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


def test_an_error_page_in_a_files_place_is_named(tmp_path):
    (tmp_path / cifar100.FOLDER).mkdir()
    for name in cifar100.FILES:
        (tmp_path / cifar100.FOLDER / name).write_bytes(PAGE)
    with pytest.raises(UsageError, match=r"cifar-100-python/train is truncated .*; get it with: python -m bench run --download"):
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
        (spoil_architecture, "resnet14", r"teacher.json is damaged or of another version; remove"),
        (spoil_architecture, "resnet8", r"no resnet8 teacher for shapes100 in .*teachers train resnet8"),
    ],
)
def test_the_wrong_teacher_is_named_before_a_run_begins(results, spoil, teacher, said):
    spoil(results)
    with pytest.raises(UsageError, match=said):
        jobs.run_group(lives.group(teacher=teacher), lives.execution(results))
    assert not (results / "runs").exists()


def test_a_teacher_of_another_accuracy_is_refused(results):
    """The right weights under a record that belongs to others."""
    from bench.store.files import read_json, write_json

    record = read_json(place(results) / "teacher.json")
    write_json(place(results) / "teacher.json", {**record, "test_top1": 90.0})
    (place(results) / "verified.json").unlink()
    with pytest.raises(UsageError, match=r"tests at .* % top-1, its record says 90.00 %"):
        jobs.run_group(lives.group(), lives.execution(results))
