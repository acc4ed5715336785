"""State dicts: read from files of other hands, and hashed."""

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import StoreError, UsageError
from bench.store.files import open_regular

LIMIT = 4 << 30
"""Bytes of a file of weights."""


def state_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) of a state dict's names, types, shapes and values, independent of the file it came in."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()[:16]


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file people have: bare, or under "model", "state_dict" or "net". Nothing in the file is executed.

    Raises UsageError where it is unreadable or holds something else.
    """
    try:
        with open_regular(path, LIMIT) as file, torch.serialization.safe_globals([argparse.Namespace]):  # RepDistiller's carry their options
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"teacher file {path} does not exist") from None
    except StoreError as error:
        raise UsageError(f"teacher file {error}; give another") from None
    except Exception as error:  # a stranger's bytes make torch.load raise many things
        first = str(error).split("\n")[0][:120]
        raise UsageError(f"teacher file {path} cannot be read as weights ({type(error).__name__}: {first}); fetch it again") from None
    for name in ("model", "state_dict", "net"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"teacher file {path} holds no state dict of tensors")
    return {str(k).removeprefix("module."): v for k, v in content.items()}
