"""State dicts: read from files of other hands, written as those hands read them, and hashed."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bench.errors import UsageError
from bench.plan.identity import canonical
from models import NetworkError, files


def state_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) of a state dict's names, types, shapes and values, independent of the file it came in."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()[:16]


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file people have: see models.files.read. Nothing in the file is executed.

    Raises UsageError where it is unreadable or holds something else.
    """
    try:
        return files.read(path)
    except NetworkError as error:
        raise UsageError(str(error)) from None


def told(path: Path) -> dict[str, Any]:
    """What a file says of its network, as models.files.described, for a file that has another form too. Raises UsageError."""
    try:
        return files.described(path)
    except NetworkError as error:
        raise UsageError(str(error)) from None


def safetensors(state: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """A state dict as a safetensors file whose header holds `metadata`: each value as JSON, a text as it is."""
    texts = {name: value if isinstance(value, str) else canonical(value) for name, value in metadata.items()}
    return save(plain(state), {"format": "pt", **texts})


def pickled(content: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, contiguous on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
