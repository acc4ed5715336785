"""The declared pairs and profiles: one entry each."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bench.errors import check_known


@dataclass(frozen=True)
class Pair:
    """A teacher and a student architecture."""

    teacher: str
    student: str

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}"

    @property
    def title(self) -> str:
        return f"{self.teacher} -> {self.student}"


PAIRS = (
    Pair("wrn_40_2", "wrn_16_2"),
    Pair("resnet56", "resnet20"),
    Pair("resnet110", "resnet20"),
    Pair("resnet110", "resnet32"),
    Pair("resnet32x4", "resnet8x4"),
    Pair("vgg13", "vgg8"),
)
"""The six pairs of one style that the papers share, in the order of their tables."""

CRD_PAIRS = (PAIRS[0], Pair("wrn_40_2", "wrn_40_1"), *PAIRS[1:])
"""The seven pairs of one style of CRD's Table 1, in its order."""

UNLIKE_PAIRS = (
    Pair("vgg13", "mobilenetv2"),
    Pair("resnet50", "mobilenetv2"),
    Pair("resnet50", "vgg8"),
    Pair("resnet32x4", "shufflev1"),
    Pair("resnet32x4", "shufflev2"),
    Pair("wrn_40_2", "shufflev1"),
)
"""The six pairs of unlike networks of CRD's Table 2, in its order."""

ALL_PAIRS = (*CRD_PAIRS, *UNLIKE_PAIRS)
"""Every pair, in the order of tables."""

CRD_ROWS = ("student", "kd", "fitnet", "at", "rkd", "sp", "cc", "vid", "pkt", "ab", "ft", "fsp", "nst", "crd")
"""The rows of CRD's Table 1 beside the teacher."""

LATER_ROWS = ("dkd", "reviewkd", "ofd", "dist", "kd_ls", "ickd", "itrd", "ctkd", "ttm", "wttm", "ikl", "rlkd", "simkd", "catkd", "srrl")

ROWS = (*CRD_ROWS, "iep", "skd", *LATER_ROWS)
"""The order of rows in tables; rows that are not named here follow."""


DEFAULT_PROFILE = "paper"


@dataclass(frozen=True)
class Profile:
    """A named plan of runs."""

    name: str
    summary: str
    protocol: str
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...] | None = None  # rows in their order; None: every registered method
    teacher_protocol: str = ""  # what a missing teacher is trained under; empty: the profile's own
    precision: str = "tf32"
    hyper: tuple[tuple[str, str, object], ...] = ()  # (method, field, value) that differ from the methods' defaults
    variant: tuple[tuple[str, str, object], ...] = ()  # the same for an ablation: its rows are variants, never the method's own row


_WRN = (Pair("wrn_40_4", "wrn_16_4"),)
_IEP_ROWS = ("student", "at", "rkd", "iep", "iep_bb")
_IEP_BATCH = (("iep", "phase_batch", 128), ("iep_bb", "phase_batch", 128))  # phase I has the protocol's batch
_SEEDS = (1, 2, 3)
_PAPER_ROWS = ("student", "kd", "fitnet", "at", "rkd", "sp", "cc", "iep", "skd")
_CRD_CROSS_ROWS = tuple(row for row in CRD_ROWS if row != "fsp")  # FSP compares maps of equal width: CRD's Table 2 has no such row


def _iep(name: str, summary: str, protocol: str, pairs: tuple[Pair, ...] = _WRN, rows: tuple[str, ...] = _IEP_ROWS, **rest: Any) -> Profile:
    """An experiment of Lee and Song 2021. The paper does not say how its teacher is trained: here under the same protocol, dropout
    included, on all images."""
    return Profile(name, summary, protocol, pairs, _SEEDS, rows, teacher_protocol="iep", hyper=_IEP_BATCH, **rest)


def _ablation(name: str, summary: str, method: str = "iep", **changes: object) -> Profile:
    """A row of IEP's Tables 4 to 6, at 25 % of the images, beside the plain student."""
    variant = tuple((method, field, value) for field, value in changes.items())
    return _iep(name, summary, "iep_quarter", rows=("student", method), variant=variant)


PROFILES = MappingProxyType(
    {
        p.name: p
        for p in (
            Profile(
                "paper",
                "Table 1: the six pairs under the CRD protocol, 240 epochs",
                "crd",
                PAIRS,
                _SEEDS,
                _PAPER_ROWS,
            ),
            Profile("skd", "the 100-epoch schedule of SKD", "skd", PAIRS, _SEEDS, ("student", "kd", "at", "skd"), teacher_protocol="crd"),
            Profile(
                "skd_table",
                "SKD's Table 1: fifteen rows beside the teacher; 240 epochs, as the rows that it copies from CRD (100: --profile skd)",
                "crd",
                PAIRS,
                _SEEDS,
                (*CRD_ROWS, "skd"),
            ),
            Profile("crd_table", "CRD's Table 1: fourteen rows on seven pairs, five seeds as there", "crd", CRD_PAIRS, (1, 2, 3, 4, 5), CRD_ROWS),
            Profile("crd_cross", "CRD's Table 2: thirteen rows on six pairs of unlike networks", "crd", UNLIKE_PAIRS, _SEEDS, _CRD_CROSS_ROWS),
            Profile("field", "every registered method on all thirteen pairs", "crd", ALL_PAIRS, _SEEDS),
            _iep("iep_full", "IEP's Table 1, all images", "iep"),
            _iep("iep_half", "IEP's Table 1, 50 % of the images", "iep_half"),
            _iep("iep_quarter", "IEP's Table 1, 25 % of the images", "iep_quarter"),
            _iep("iep_tenth", "IEP's Table 1, 10 % of the images", "iep_tenth"),
            _iep(
                "iep_students",
                "IEP's Table 3: students of other widths, 25 % of the images",
                "iep_quarter",
                (Pair("wrn_40_4", "wrn_16_2"), Pair("wrn_40_4", "wrn_16_1")),
            ),
            _ablation("iep_int_only", "IEP's Table 4: K^int alone", alteration=False),
            _ablation("iep_alt_only", "IEP's Table 4: K^alt alone", intermediate=False),
            _ablation("iep_bb_only", "IEP's Table 4: K^BB alone", "iep_bb", intermediate=False, alteration=False),
            _ablation("iep_pca_batch", "IEP's Table 5: the second PCA on each batch alone", pca="batch"),
            *(_ablation(f"iep_iterations_{n}", f"IEP's Table 6: {n} iteration{'s' * (n > 1)} of message passing", iterations=n) for n in (1, 3, 4)),
            Profile(
                "smoke",
                "minutes on two CPU cores, embedded data, the rows of Table 1",
                "smoke",
                (Pair("resnet20", "resnet8"),),
                _SEEDS,
                _PAPER_ROWS,
                teacher_protocol="smoke_teacher",
            ),
        )
    }
)


def get_profile(name: str) -> Profile:
    """The declared profile of that name. Raises UsageError."""
    check_known("profile", name, PROFILES)
    return PROFILES[name]
