"""Keyed randomness: every random quantity is drawn under a generator named by what it is for.

Nothing is drawn from the ambient global generator, so a run that resumes needs no generator state, and a new draw never
shifts an existing one.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def key(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed that depends on (seed, purpose, epoch) alone, the same on every machine and Python."""
    text = f"{seed}|{purpose}|{epoch}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator for one purpose: draws are made on the CPU so that every device sees the same stream."""
    return torch.Generator().manual_seed(key(seed, purpose, epoch))


@contextlib.contextmanager
def keyed(seed: int, purpose: str, epoch: int = 0) -> Iterator[None]:
    """Inside, the global CPU generator is the keyed one (layer initialisers use it); outside it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(key(seed, purpose, epoch))
        yield
