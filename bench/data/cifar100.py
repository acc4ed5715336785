"""CIFAR-100 from its official python files, checked by MD5 before anything is unpickled. Nothing is cached on disk."""

import hashlib
import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.errors import StoreError, UsageError
from bench.plan.protocols import Protocol
from bench.store.files import read_bytes

FOLDER = "cifar-100-python"
FILES = {
    "train": ("16019d7e3df5f24257cddd939b257f8d", 155_249_918),
    "test": ("f0ef6b0ae62326f3e7ffdfab6717acfc", 31_049_707),
    "meta": ("7973b15100ade9c7d40fb424638fde48", 1_473),
}
"""MD5 and size in bytes of each file."""
ARCHIVE_BYTES = 169_001_437
LIMIT = 1 << 30
"""Bytes of a file that is looked at."""
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
"""The rounded constants of the CRD protocol, on the 0..1 scale."""


def read(protocol: Protocol, data_root: Path | None, download: bool = False) -> dict[str, Any]:
    """Fields of a Dataset: all 50000 + 10000 images.

    Raises UsageError where a file is absent, truncated or not the official one. With `download`, what is missing or damaged is fetched
    first.
    """
    if data_root is None:
        raise UsageError("cifar100 needs a data root; name it with --data-root DIR; get the files with: python -m bench data fetch --data-root DIR")
    root = Path(data_root)
    if download:
        fetch(root)
    files = {name: checked(root, name) for name in FILES}
    # Python 2 pickles: strings and the array's bytes are latin-1. The bytes unpickled are the bytes whose sum was checked.
    train, test, meta = (pickle.loads(files[name], encoding="latin1") for name in FILES)
    coarse = np.zeros(100, dtype=np.int64)
    coarse[train["fine_labels"]] = train["coarse_labels"]
    return {
        "train_images": _images(train),
        "train_labels": torch.tensor(train["fine_labels"], dtype=torch.int64),
        "test_images": _images(test),
        "test_labels": torch.tensor(test["fine_labels"], dtype=torch.int64),
        "classes": tuple(meta["fine_label_names"]),
        "coarse": tuple(coarse.tolist()),
        "mean": MEAN,
        "std": STD,
    }


def _images(content: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(content["data"]).reshape(-1, 3, 32, 32))


def examine(root: Path, name: str) -> tuple[bytes, str]:
    """One file's bytes, and what is wrong with them; empty: it is the official one."""
    path = root / FOLDER / name
    md5, size = FILES[name]
    try:
        content = read_bytes(path, LIMIT)
    except FileNotFoundError:
        return b"", f"{path} is absent"
    except StoreError as error:
        return b"", str(error)
    if len(content) < size:
        return content, f"{path} is truncated ({len(content)} of {size} bytes)"
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return content, "" if found == md5 else f"{path} has the wrong sum (MD5 {found}, not {md5})"


def checked(root: Path, name: str) -> bytes:
    """One official file's bytes. Raises UsageError where they are not that."""
    content, wrong = examine(root, name)
    if wrong:
        raise UsageError(f"CIFAR-100: {wrong}; get it with: {fetch_command(root)}")
    return content


def fetch_command(root: Path) -> str:
    """What a user types to get the files."""
    return f"python -m bench data fetch --data-root {shlex.quote(str(root))}"


def fetch(root: Path) -> bool:
    """Have torchvision fetch what is missing or damaged, which is printed before; whether anything was. Raises UsageError where that fails."""
    if not any(examine(root, name)[1] for name in FILES):
        return False
    for path in (root / FOLDER / name for name in FILES):
        if path.exists() and not path.is_file():  # unpacking would write into it
            raise UsageError(f"CIFAR-100: {path} is no regular file; remove it")
    _download(root)
    for name in FILES:
        checked(root, name)
    return True


def _download(root: Path) -> None:
    """Download and unpack the archive. Raises UsageError where that fails."""
    from torchvision.datasets import CIFAR100

    print(f"fetching {CIFAR100.url} ({ARCHIVE_BYTES / 1e6:.0f} MB, MD5 {CIFAR100.tgz_md5}) to {root}", flush=True)
    for name, (md5, size) in FILES.items():
        print(f"  {FOLDER}/{name}  {size} bytes  MD5 {md5}", flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        CIFAR100(str(root), download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise UsageError(
            f"CIFAR-100: the download to {root} failed ({' '.join(str(error).split())}); try again, or put {FOLDER}/ there yourself"
        ) from None
