"""The data sets: one declared entry each, with what the plan must know of one before its images are at hand.

A data set is added by an entry here and a file `bench/data/NAME.py` whose `read(protocol, data_root, download)` gives the fields of a
bench.data.Dataset, and whose MEAN and STD are those of the normalisation.
"""

from dataclasses import dataclass
from types import MappingProxyType

from bench.errors import UsageError, check_known


@dataclass(frozen=True)
class DataSpec:
    """Facts of a data set. `drawn`: made by the suite itself, so that a protocol says how many images and how large; else as the files are."""

    classes: int
    train_images: int
    test_images: int
    image_sizes: tuple[int, int]  # smallest and largest
    drawn: bool = False

    def check(self, name: str, train_images: int | None, test_images: int | None, image_size: int) -> None:
        """Raises UsageError for numbers and sizes of images that the data set cannot have."""
        smallest, largest = self.image_sizes
        if not self.drawn and (train_images or test_images or image_size != largest):
            raise UsageError(
                f"{name} has {self.train_images} + {self.test_images} images of {largest}x{largest}; "
                f"set image_size={largest} of the protocol, and leave its train_images and test_images unset"
            )
        if not smallest <= image_size <= largest:
            raise UsageError(f"{name}: image size {image_size}; choose one from {smallest} to {largest}")


DATASETS = MappingProxyType(
    {
        "cifar100": DataSpec(100, 50_000, 10_000, (32, 32)),
        "shapes100": DataSpec(100, 10_000, 2_000, (16, 64), drawn=True),
        "shapes20": DataSpec(20, 10_000, 2_000, (16, 64), drawn=True),
    }
)


def get(name: str) -> DataSpec:
    """The entry of that name. Raises UsageError naming close matches."""
    check_known("data set", name, DATASETS)
    return DATASETS[name]
