"""The commands about the data: get CIFAR-100, and hold its files against their sums."""

from dataclasses import dataclass

from bench.errors import DONE, TROUBLE
from bench.options import DataOption


@dataclass(frozen=True)
class DataFetch(DataOption):
    """Get CIFAR-100 (169 MB) and nothing else. Files that are there and whole are not fetched again."""

    def main(self) -> int:
        from bench.data import cifar100

        fetched = cifar100.fetch(self.data_folder)
        print(f"CIFAR-100 is whole in {self.data_folder / cifar100.FOLDER}{'' if fetched else ': nothing was fetched'}")
        return DONE


@dataclass(frozen=True)
class DataCheck(DataOption):
    """Hold the files of CIFAR-100 against their sums; exits with 1 where one is not the official one."""

    def main(self) -> int:
        from bench.data import cifar100

        faults = 0
        for name, (md5, size) in cifar100.FILES.items():
            _, wrong = cifar100.examine(self.data_folder, name)
            faults += bool(wrong)
            print(wrong or f"{self.data_folder / cifar100.FOLDER / name}: {size} bytes, MD5 {md5}: the official file")
        if faults:
            print(f"get CIFAR-100 with: {cifar100.fetch_command(self.data_folder)}")
        return TROUBLE if faults else DONE
