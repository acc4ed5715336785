"""Weights in files: read from the forms that people have, and opened as the network they belong to. Nothing in a file is executed."""

import argparse
import json
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.layers import NetworkError
from models.network import Network
from models.registry import build, head

NETWORK = "network"
"""The entry of a safetensors header, a JSON object, that says which network the weights are of: architecture, classes, image_size, mean and
std of the normalisation (on the 0..1 scale), dataset, protocol, trial (why the training was not
that protocol; empty: it was), run."""

LIMIT = 4 << 30
"""Bytes of a file of weights, and of its tensors."""


def read(path: str | Path) -> dict[str, Tensor]:
    """A state dict on the CPU: from safetensors, or from what torch.save wrote, bare or under "model", "state_dict" or "net".

    Raises NetworkError where the file is unreadable or holds something else.
    """
    content = _read(Path(path))[0]
    for name in ("model", "state_dict", "net"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise NetworkError(f"{path} holds no state dict of tensors")
    for name, value in content.items():
        if odd := _oddity(value):
            raise NetworkError(f"{path} holds no plain tensors ({str(name)[:80]} is {odd})")
    if (size := sum(v.numel() * v.element_size() for v in content.values())) > LIMIT:
        raise NetworkError(f"{path} holds tensors of {size:,} bytes, more than the {LIMIT:,} that are read")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def _oddity(value: Tensor) -> str:
    """Why a tensor is not values in memory, one after the other; empty: it is."""
    kinds = {"nested": value.is_nested, "quantized": value.is_quantized, "conjugated": value.is_conj(), "negated": value.is_neg()}
    kinds |= {f"on the device {value.device.type}": value.device.type != "cpu", str(value.layout): value.layout != torch.strided}
    return ", ".join(kind for kind, found in kinds.items() if found)


def described(path: str | Path) -> dict[str, Any]:
    """What a safetensors file says of its network (see NETWORK); empty where the file has another form or says nothing.

    Raises NetworkError where it is unreadable, or what it says names no architecture.
    """
    path = Path(path)
    text = _read(path, values=False)[1].get(NETWORK)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("architecture"), str):
        raise NetworkError(f'{path}: the entry "{NETWORK}" of its header names no architecture')
    return found


def load(path: str | Path, architecture: str | None = None) -> Network:
    """The network of a file with its weights, in eval mode on the CPU; classes are counted from its classifier.

    A safetensors file that `python -m bench export` wrote names its architecture; any other file needs `architecture`.
    Raises NetworkError where the file is unreadable, names none, or is of another network. The ambient generator is left as it was.
    """
    said = described(path).get("architecture")
    if said is None and architecture is None:
        raise NetworkError(f'{path} does not say which network it is of; name it, as in models.load({str(path)!r}, architecture="resnet20")')
    if said is not None and architecture not in (None, said):
        raise NetworkError(f"{path} is of a {said}, not of a {architecture}")
    name = said or architecture
    state, classifier = read(path), f"{head(name)}.weight"
    if classifier not in state or state[classifier].ndim != 2:
        raise NetworkError(f"{path} is not of a {name}: it has no {classifier} of two dimensions")
    with torch.random.fork_rng(devices=[]):
        network = build(name, len(state[classifier]))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).split("\n")
        raise NetworkError(f"{path} is not of a {name}: {lines[min(1, len(lines) - 1)].strip()[:160]}") from None
    return network.eval()


def _read(path: Path, values: bool = True) -> tuple[Any, dict[str, str]]:
    """What is in a file and, of safetensors, its header's texts; without `values` the header alone."""
    try:
        with _open(path) as file:
            safe = file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON object
            file.seek(0)
            if not safe and not values:
                return None, {}
            if not safe:
                _check_archive(path, file)
                with torch.serialization.safe_globals([argparse.Namespace]):  # RepDistiller's files carry their options along
                    return torch.load(file, map_location="cpu", weights_only=True), {}
        with safe_open(str(path), "pt") as whole:
            return {name: whole.get_tensor(name) for name in (whole.keys() if values else ())}, whole.metadata() or {}
    except FileNotFoundError:
        raise NetworkError(f"{path} does not exist") from None
    except NetworkError:
        raise
    except SafetensorError as error:
        raise NetworkError(f"{path} cannot be read as weights ({str(error)[:120]}); fetch it again") from None
    except Exception as error:  # a stranger's bytes make torch.load raise many things
        said = str(error).split("\n")[0][:120]
        if isinstance(error, pickle.UnpicklingError):  # torch's words are on its own options
            said = "neither safetensors nor tensors that torch.save wrote"
        raise NetworkError(f"{path} cannot be read as weights ({said}); fetch it again") from None


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Refuse an archive that is larger unpacked than as a file: torch.save packs nothing, and torch.load unpacks whatever it finds. `file` stands
    at its beginning, then and now. Raises NetworkError, and BadZipFile where it cannot be read as an archive."""
    archive = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if archive:
        with zipfile.ZipFile(file) as whole:
            entries = whole.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise NetworkError(f"{path} cannot be read as weights (its entries are compressed)")
        if (size := sum(entry.file_size for entry in entries)) > LIMIT:
            raise NetworkError(f"{path} cannot be read as weights ({size:,} bytes unpacked, more than the {LIMIT:,} that are read)")
        file.seek(0)


def _open(path: Path) -> BinaryIO:
    """A regular file opened for reading, or a link to one; never waits, whatever stands there. Raises NetworkError, OSError."""
    found = os.stat(path)  # before it is opened: a device may act on that
    if not stat.S_ISREG(found.st_mode):
        raise NetworkError(f"{path} cannot be read as weights (it is no regular file)")
    if found.st_size > LIMIT:
        raise NetworkError(f"{path} cannot be read as weights ({found.st_size:,} bytes, more than the {LIMIT:,} that are read)")
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
