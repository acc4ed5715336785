import hashlib
import os
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import data
from bench.__main__ import main, parse
from bench.data import cifar100
from bench.errors import UsageError
from bench.plan.protocols import Protocol, get


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def official(count: int, shift: int) -> dict:
    """The layout of an official file."""
    fine = [(i + shift) % 100 for i in range(count)]
    images = np.random.Generator(np.random.PCG64(shift)).integers(256, size=(count, 3072), dtype=np.uint8)
    return {"data": images, "fine_labels": fine, "coarse_labels": [f // 5 for f in fine]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root of small made-up files that are declared the official ones."""
    folder = tmp_path / cifar100.FOLDER
    folder.mkdir()
    contents = {"train": official(200, 0), "test": official(100, 7), "meta": {"fine_label_names": [f"c{i}" for i in range(100)]}}
    sums = {}
    for name, content in contents.items():
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        sums[name] = (hashlib.md5(raw).hexdigest(), len(raw))
    monkeypatch.setattr(cifar100, "FILES", sums)
    return tmp_path


def test_reads_images_labels_and_names(root):
    dataset = data.load(get("crd"), root)
    assert dataset.name == "cifar100" and dataset.train_images.shape == (200, 3, 32, 32) and dataset.train_images.is_contiguous()
    assert torch.equal(dataset.test_images.reshape(100, -1), torch.from_numpy(official(100, 7)["data"]))
    assert dataset.test_labels[0] == 7 and dataset.train_labels.dtype == torch.int64
    assert dataset.classes[99] == "c99" and dataset.coarse == tuple(i // 5 for i in range(100))
    assert dataset.test_masks is None and dataset.concept_names == ()


def test_sub_sampling_changes_the_hash_and_keeps_the_test_set(root):
    whole, half = data.load(get("crd"), root), data.load(get("crd").sampled(0.5), root)
    assert torch.bincount(half.train_labels).tolist() == [1] * 100
    assert torch.equal(half.test_images, whole.test_images) and half.hash != whole.hash
    assert whole.hash == data.load(get("skd"), root).hash


def spoil(root: Path, name: str, how: str) -> None:
    path = root / cifar100.FOLDER / name
    raw = path.read_bytes()
    if how == "absent":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "flipped":
        path.write_bytes(raw[:50] + bytes([raw[50] ^ 1]) + raw[51:])
    else:
        path.write_bytes(pickle.dumps((Trap(root / "sprung"), "x" * len(raw))))


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize(
    ("how", "said"),
    [("absent", "is absent"), ("empty", "is truncated"), ("truncated", "is truncated"), ("flipped", "wrong sum"), ("garbage", "wrong sum")],
)
def test_damage_is_named_with_the_path_and_the_remedy(root, name, how, said):
    spoil(root, name, how)
    with pytest.raises(UsageError) as caught:
        data.load(get("crd"), root)
    text = str(caught.value)
    assert said in text and str(root / cifar100.FOLDER / name) in text and "\n" not in text
    assert f"get it with: python -m bench data fetch --data-root {root}" in text
    assert not (root / "sprung").exists()  # nothing of a wrong sum is unpickled


def test_a_folder_in_a_files_place_is_bad_input(root):
    spoil(root, "meta", "absent")
    (root / cifar100.FOLDER / "meta").mkdir()
    with pytest.raises(UsageError, match="meta: is no regular file; get it with"):
        data.load(get("crd"), root)


def test_a_pipe_in_a_files_place_is_named_and_not_waited_for(root, monkeypatch):
    spoil(root, "meta", "absent")
    os.mkfifo(root / cifar100.FOLDER / "meta")
    with pytest.raises(UsageError, match=r"meta: is no regular file; get it with"):
        data.load(get("crd"), root)
    monkeypatch.setattr(cifar100, "_download", lambda root: pytest.fail("unpacked into it"))
    with pytest.raises(UsageError, match="meta is no regular file; remove it"):
        data.load(get("crd"), root, download=True)


def test_no_data_root_is_bad_input():
    with pytest.raises(UsageError, match="--data-root"):
        data.load(get("crd"), None)


@pytest.mark.parametrize("change", [{"train_images": 100}, {"test_images": 100}, {"image_size": 24}])
def test_sizes_are_the_real_ones(change, tmp_path):
    with pytest.raises(UsageError, match="cifar100 has"):
        data.load(Protocol("x", **change), tmp_path)


def test_an_unknown_data_set_lists_close_names():
    with pytest.raises(UsageError, match="cifar100"):
        data.load(Protocol("x", dataset="cifar10"), None)


def test_a_download_says_what_it_fetches_and_only_when_needed(root, monkeypatch, capsys):
    import torchvision.datasets

    asked, whole = [], (root / cifar100.FOLDER / "train").read_bytes()

    class Fake:
        url, tgz_md5 = "https://example.org/cifar.tar.gz", "0123"

        def __init__(self, folder: str, download: bool) -> None:
            asked.append((folder, download, capsys.readouterr().out))
            (root / cifar100.FOLDER / "train").write_bytes(whole)

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Fake)
    data.load(get("crd"), root, download=True)
    assert asked == []
    spoil(root, "train", "truncated")
    assert len(data.load(get("crd"), root, download=True).train_labels) == 200
    (folder, download, printed), *more = asked
    assert not more and folder == str(root) and download
    assert all(word in printed for word in (Fake.url, "169 MB", "0123", cifar100.FILES["train"][0], str(cifar100.FILES["train"][1])))


def test_a_failed_download_is_one_line(root, monkeypatch):
    import torchvision.datasets

    class Fake:
        url, tgz_md5 = "https://example.org/cifar.tar.gz", "0123"

        def __init__(self, folder: str, download: bool) -> None:
            raise RuntimeError("File not found\nor corrupted.")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Fake)
    spoil(root, "test", "absent")
    with pytest.raises(UsageError, match="failed .File not found or corrupted"):
        data.load(get("crd"), root, download=True)


def test_the_command_to_copy_holds_for_any_folder(root):
    spaced = root / "my data"
    with pytest.raises(UsageError) as caught:
        data.load(get("crd"), spaced)
    words = shlex.split(str(caught.value).partition("get it with: ")[2])
    assert words[:5] == ["python", "-m", "bench", "data", "fetch"] and parse("data fetch", words[5:]).data_folder == spaced


def test_data_check_names_every_file(root, capsys):
    assert main(["data", "check", "--data-root", str(root)]) == 0
    assert capsys.readouterr().out.count("the official file") == 3
    spoil(root, "train", "flipped")
    spoil(root, "meta", "absent")
    assert main(["data", "check", "--data-root", str(root)]) == 1
    train, test, meta, cure = capsys.readouterr().out.splitlines()
    assert "wrong sum" in train and "the official file" in test and "is absent" in meta
    assert cure.endswith(f"python -m bench data fetch --data-root {root}")


@pytest.mark.parametrize("name", ["cifar100", "shapes100"])
def test_the_normalisation_is_that_of_the_images(root, name):
    small = {"train_images": 100, "test_images": 100} if name == "shapes100" else {}
    dataset = data.load(Protocol("p", dataset=name, **small), root)
    assert data.normalisation(name) == (dataset.mean, dataset.std)


@pytest.mark.real
@pytest.mark.skipif("KD_BENCH_DATA" not in os.environ, reason="KD_BENCH_DATA names no data root")
def test_the_real_files():
    from torchvision.datasets import CIFAR100

    dataset = data.load(get("crd"), Path(os.environ["KD_BENCH_DATA"]))
    assert dataset.train_images.shape == (50_000, 3, 32, 32) and dataset.test_images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(dataset.train_labels).tolist() == [500] * 100
    theirs = CIFAR100(os.environ["KD_BENCH_DATA"], train=False)
    assert np.array_equal(theirs.data, dataset.test_images.permute(0, 2, 3, 1).numpy()) and theirs.targets == dataset.test_labels.tolist()
    assert tuple(theirs.classes) == dataset.classes
    assert [dataset.classes[i] for i, c in enumerate(dataset.coarse) if c == 0] == ["beaver", "dolphin", "otter", "seal", "whale"]
