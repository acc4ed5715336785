"""Data sets: `load` gives the images a protocol names as uint8 tensors, with a hash of their content.

`cifar100` is read from official files below a data root; `shapes100` and `shapes20` are embedded (drawn by the suite). None is ever
put in the place of another.
"""

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from bench.data import subset
from bench.errors import UsageError
from bench.plan import datasets
from bench.plan.protocols import Protocol


@dataclass(frozen=True)
class Dataset:
    """Images and labels in memory. Tensors are contiguous and on the CPU.

    `mean` and `std` are those of the normalisation, on the 0..1 scale. Masks and concepts exist for embedded data only:
    masks bool (N, S, S), the object's pixels; concepts uint8 (N, 3, S, S), one plane each for shape, texture and colour,
    0 = none, else 1 + the position in `concept_names[plane]`.
    """

    name: str
    train_images: Tensor  # uint8 (N, 3, S, S)
    train_labels: Tensor  # int64 (N,)
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    coarse: tuple[int, ...]  # coarse class of each fine class
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    hash: str  # 16 hex digits, see `content_hash`
    train_masks: Tensor | None = None
    train_concepts: Tensor | None = None
    test_masks: Tensor | None = None
    test_concepts: Tensor | None = None
    concept_names: tuple[tuple[str, ...], ...] = ()

    @property
    def image_size(self) -> int:
        return self.train_images.shape[-1]


def content_hash(tensors: tuple[Tensor, ...], mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """First 16 hex digits of the SHA-256 over the tensors' types, shapes and bytes and the normalisation: what a run is fed."""
    sha = hashlib.sha256(repr((mean, std)).encode())
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(memoryview(tensor.contiguous().numpy()).cast("B"))
    return sha.hexdigest()[:16]


def load(protocol: Protocol, data_root: Path | None = None, download: bool = False) -> Dataset:
    """The data of a protocol, its training set sub-sampled to `protocol.sample_rate`.

    Files are read from `data_root` (and fetched to it with `download`) where the data set has any. Raises UsageError for an unknown
    data set, missing or damaged files and sizes the data set cannot have.
    """
    datasets.get(protocol.dataset).check(protocol.dataset, protocol.train_images, protocol.test_images, protocol.image_size)
    fields = import_module(f"bench.data.{protocol.dataset}").read(protocol, data_root, download)
    if protocol.sample_rate < 1:
        kept = torch.from_numpy(subset.balanced(fields["train_labels"].numpy(), protocol.sample_rate))
        fields |= {name: fields[name][kept] for name in fields if name.startswith("train_") and fields[name] is not None}
    used = tuple(fields[name] for name in ("train_images", "train_labels", "test_images", "test_labels"))
    return Dataset(name=protocol.dataset, hash=content_hash(used, fields["mean"], fields["std"]), **fields)


def normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that a data set's images are normalised with, on the 0..1 scale. Raises UsageError for an unknown one."""
    datasets.get(name)
    module = import_module(f"bench.data.{name}")
    if not (hasattr(module, "MEAN") and hasattr(module, "STD")):
        raise UsageError(f"bench/data/{name}.py has no MEAN and STD: name there what its images are normalised with")
    return module.MEAN, module.STD
