"""Names, options, errors, exact counts of parameters, state entries and multiply-accumulates, and shapes per kind."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from bench.plan.profiles import ALL_PAIRS
from models import source
from models.outputs import STAGE_KINDS

ROOT = Path(__file__).parents[2]

# name: parameters, BN affine parameters, convolutions, BNs, state entries, MACs at 32x32. Published code's networks, counted
# outside this project; None where no such count is at hand.
COUNTS = {
    "resnet8": (83_892, None, 9, 9, 56, None),
    "resnet14": (181_108, None, 15, 15, 92, None),
    "resnet20": (278_324, 1_568, 21, 21, 128, 40_818_944),
    "resnet32": (472_756, 2_464, 33, 33, 200, 69_130_496),
    "resnet44": (667_188, None, 45, 45, 272, None),
    "resnet56": (861_620, 4_256, 57, 57, 344, 125_753_600),
    "resnet110": (1_736_564, 8_288, 111, 111, 668, 253_155_584),
    "resnet8x4": (1_233_540, 2_752, 10, 10, 62, 177_071_104),
    "resnet32x4": (7_433_860, 9_920, 34, 34, 206, 1_083_040_768),
    "wrn_16_1": (180_916, 928, 15, 13, 82, 26_663_168),
    "wrn_16_2": (703_284, 1_824, 16, 13, 83, 101_118_464),
    "wrn_40_1": (569_780, 2_720, 39, 37, 226, 83_286_272),
    "wrn_40_2": (2_255_156, 5_408, 40, 37, 227, 327_610_880),
    "vgg8": (3_965_028, 2_944, 5, 5, 37, 96_192_512),
    "vgg11": (9_277_284, None, 8, 8, 58, None),
    "vgg13": (9_462_180, 5_888, 10, 10, 72, 284_936_192),
    "vgg16": (14_774_436, None, 13, 13, 93, None),
    "vgg19": (20_086_692, None, 16, 16, 114, None),
    "resnet50": (23_705_252, 53_120, 53, 53, 320, 1_298_014_208),
    "mobilenetv2": (812_836, 18_368, 53, 53, 320, 6_523_648),
    "shufflev1": (949_258, 23_736, 49, 49, 296, 38_691_456),
    "shufflev2": (1_355_528, 16_180, 56, 56, 338, 44_504_448),
}
MILLION_MACS = {"resnet8": 12.507, "resnet14": 26.663, "resnet44": 97.442, "vgg11": 209.439, "vgg16": 398.182, "vgg19": 511.429}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **options)


def of_type(network: nn.Module, kind: type) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, kind)]


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    parameters, affine, convolutions, norms, entries, macs = COUNTS[name]
    network = on_meta(name)
    bns = of_type(network, nn.BatchNorm2d)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(of_type(network, nn.Conv2d)) == convolutions
    assert len(bns) == norms
    assert all(bn.eps == 1e-5 and bn.momentum == 0.1 for bn in bns)
    assert len(network.state_dict()) == entries
    if affine is not None:
        assert sum(p.numel() for bn in bns for p in bn.parameters()) == affine
    if macs is not None:
        assert models.macs(name) == macs


@pytest.mark.parametrize("name", MILLION_MACS)
def test_macs_to_the_thousand(name):
    assert models.macs(name) / 1e6 == pytest.approx(MILLION_MACS[name], abs=5.1e-4)


@pytest.mark.parametrize(("name", "blocks"), [("wrn_16_4", 2), ("wrn_40_4", 6)])
def test_wrn_of_width_4_by_arithmetic(name, blocks):
    parameters, macs = 3 * 9 * 16, 3 * 9 * 16 * 1024
    inputs = 16
    for width, pixels in ((64, 1024), (128, 256), (256, 64)):
        weights = 9 * inputs * width + 9 * width * width * (2 * blocks - 1) + inputs * width
        parameters += weights + 2 * (inputs + width * (2 * blocks - 1))
        macs += weights * pixels
        inputs = width
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters + 2 * 256 + 256 * 100 + 100
    assert models.macs(name) == macs + 256 * 100


def test_macs_follow_image_size_and_classes():
    at_32, at_16 = models.macs("resnet20"), models.macs("resnet20", image_size=16)
    assert at_32 - 6_400 == 4 * (at_16 - 6_400)
    assert models.macs("resnet20", 10) == at_32 - 90 * 64


def test_every_network_of_a_declared_pair_is_counted_here():
    counted = {*COUNTS, "wrn_16_4", "wrn_40_4"}
    assert {name for pair in ALL_PAIRS for name in (pair.teacher, pair.student)} <= counted <= set(models.names())


@pytest.mark.parametrize(
    ("name", "embedding", "maps"),
    [
        ("resnet20", 64, ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))),
        ("resnet8x4", 256, ((32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8))),
        ("wrn_40_2", 128, ((16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8))),
        ("wrn_16_1", 64, ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))),
        ("vgg13", 512, ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4))),
        ("resnet50", 2048, ((64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4))),
        ("mobilenetv2", 1280, ((16, 16, 16), (12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2))),
        ("shufflev1", 960, ((24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4))),
        ("shufflev2", 1024, ((24, 32, 32), (116, 16, 16), (232, 8, 8), (464, 4, 4))),
    ],
)
def test_shapes(name, embedding, maps):
    shapes = models.shapes(name)
    assert (shapes.name, shapes.classes, shapes.embedding) == (name, 100, embedding)
    assert all(shapes.maps[kind] == maps for kind in STAGE_KINDS)
    assert models.shapes(name) is shapes


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize(
    ("name", "halved"), [("resnet8", 2), ("wrn_16_1", 2), ("vgg8", 3), ("resnet50", 3), ("mobilenetv2", 4), ("shufflev1", 3), ("shufflev2", 3)]
)
def test_smaller_images(name, halved, size):
    shapes = models.shapes(name, 10, size)
    assert shapes.classes == 10
    assert shapes.embedding == models.shapes(name).embedding
    assert [c for c, _, _ in shapes.maps["stage"]] == [c for c, _, _ in models.shapes(name).maps["stage"]]
    assert shapes.maps["stage"][-1][1:] == (-(-size // 2**halved),) * 2


def test_vgg_pools_once_more_for_64_pixels():
    assert [h for _, h, _ in models.shapes("vgg8", image_size=64).maps["stage"]] == [64, 32, 16, 8, 4]


def test_dry_runs_leave_the_ambient_generator_alone():
    before = torch.random.get_rng_state()
    models.shapes("wrn_16_2", 7)
    models.macs("wrn_16_2", 7)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("wrong", "close"), [("resnet-20", "resnet20"), ("WRN-40-2", "wrn_40_2"), ("vgg-13", "vgg13"), ("resnet_8x4", "resnet8x4")])
def test_unknown_name_lists_close_ones(wrong, close):
    for call in (models.build, models.shapes, models.macs, models.options):
        with pytest.raises(models.NetworkError, match=f"unknown network '{wrong}'; did you mean .*{close}"):
            call(wrong)


def test_unknown_name_without_close_ones_lists_all():
    with pytest.raises(models.NetworkError, match=r"known: resnet8, .*vgg19, .*shufflev2\b"):
        models.build("transformer")


def test_options():
    assert models.options("wrn_16_2") == ("dropout",)
    assert models.options("resnet8") == models.options("vgg8") == ()
    assert on_meta("wrn_16_2", dropout=0.3).block2.layer[1].dropout == 0.3
    for name in ("resnet8", "vgg8"):
        with pytest.raises(models.NetworkError, match=f"{name} has no option 'dropout'"):
            models.build(name, dropout=0.3)
    with pytest.raises(models.NetworkError, match="no option 'width'; it has dropout"):
        models.build("wrn_16_2", width=3)
    with pytest.raises(models.NetworkError, match="below 1"):
        models.build("wrn_16_1", dropout=1.0)


def test_shapes_and_macs_load_no_decompositions():
    """sympy is what the meta device loads first, two seconds' worth."""
    code = "import sys, models; models.shapes('resnet8', 7), models.macs('vgg8', 7); print([name for name in sys.modules if name == 'sympy'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


def test_networks_without_values_are_left_as_their_memory_is():
    """Nothing of torch's or the networks' own initialisation runs: each of these calls would draw or write."""
    with models.without_values():
        for fill in (nn.init.kaiming_normal_, nn.init.uniform_, torch.Tensor.normal_, torch.Tensor.zero_):
            x = torch.full((2, 2), 7.0)
            assert fill(x) is x and bool((x == 7).all())


def test_the_hash_of_the_code_is_that_of_every_file(tmp_path, monkeypatch):
    """Whatever was imported before, and whatever a folder of compiled files holds."""
    code = "from models.source import source_hash; print(source_hash())"
    other = "import models.vgg, models.registry; " + code
    apart = {subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() for c in (code, other)}
    assert apart == {models.source_hash()} and len(models.source_hash()) == 16
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "ROOT", tmp_path / "models")
    hashed = source.source_hash.__wrapped__
    (tmp_path / "models" / ".#resnet.py").symlink_to("an editor's lock")
    assert hashed() == models.source_hash()
    found = [hashed()]
    for name in ("resnet.py", "native/__init__.py"):
        with open(tmp_path / "models" / name, "a") as file:
            file.write("# changed\n")
        found.append(hashed())
    (tmp_path / "models" / "resnet.py").rename(tmp_path / "models" / "resnet_again.py")
    assert len({*found, hashed()}) == 4
