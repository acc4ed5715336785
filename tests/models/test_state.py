"""Initialisation by layer type, and state-dict keys as in the checkpoints people have."""

import math
import os

import pytest
import torch
from torch import nn

import models
from models.randomness import keyed

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def build(name: str, seed: int = 1) -> nn.Module:
    with keyed(seed, "init"):
        return models.build(name)


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_2", "vgg8", "resnet50", "mobilenetv2"])
def test_convolutions_are_kaiming_normal_by_fan_out(name):
    for layer, conv in build(name).named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        weight = conv.weight.detach()
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        tolerance = 4 / math.sqrt(2 * weight.numel())  # four standard errors of a normal's standard deviation
        assert weight.std().item() == pytest.approx(expected, rel=tolerance), layer
        assert abs(weight.mean().item()) < 4 * expected / math.sqrt(weight.numel()), layer
        if weight.numel() > 5_000:  # a uniform distribution would end at 1.73 standard deviations
            assert weight.abs().max() > 2.8 * expected, layer
        assert (conv.bias is not None) == (name == "vgg8"), layer
        assert conv.bias is None or not conv.bias.any(), layer


@pytest.mark.parametrize("name", ["shufflev1", "shufflev2"])
def test_convolutions_of_the_shuffle_networks_are_torchs_default(name):
    """Uniform up to 1 / sqrt(fan-in), a group's own."""
    for layer, conv in build(name).named_modules():
        if isinstance(conv, nn.Conv2d):
            weight = conv.weight.detach()
            bound = 1 / math.sqrt(weight[0].numel())
            assert weight.abs().max() <= bound and conv.bias is None, layer
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(weight.numel())), layer


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8", "resnet50", "mobilenetv2", "shufflev1", "shufflev2"])
def test_batch_norms_start_at_one_and_zero(name):
    for bn in build(name).modules():
        if isinstance(bn, nn.BatchNorm2d):
            assert (bn.weight == 1).all() and (bn.bias == 0).all()


@pytest.mark.parametrize(("name", "bias"), [("resnet20", True), ("wrn_16_1", False), ("resnet50", True), ("shufflev1", True), ("shufflev2", True)])
def test_fc_weight_is_torch_default(name, bias):
    fc = models.classifier(build(name))
    bound = 1 / math.sqrt(fc.in_features)
    for tensor in (fc.weight, fc.bias) if bias else (fc.weight,):
        assert 0.95 * bound < tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02 if tensor.ndim == 2 else 0.3)
    if not bias:
        assert (fc.bias == 0).all()


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2"])
def test_narrow_normal_classifiers(name):
    classifier = models.classifier(build(name))
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert classifier.weight.abs().max() > 0.03  # a uniform one would end at 0.0173
    assert (classifier.bias == 0).all()


def test_the_ambient_generator_decides():
    one, same, other = build("wrn_16_1").state_dict(), build("wrn_16_1").state_dict(), build("wrn_16_1", seed=2).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def keys_of(*, plain: list[str], bns: list[str]) -> set[str]:
    return {*plain, *(f"{bn}.{entry}" for bn in bns for entry in BN)}


def test_resnet_keys():
    plain, bns = ["conv1.weight", "fc.weight", "fc.bias"], ["bn1"]
    for stage in (1, 2, 3):
        for i in range(3):
            plain += [f"layer{stage}.{i}.conv1.weight", f"layer{stage}.{i}.conv2.weight"]
            bns += [f"layer{stage}.{i}.bn1", f"layer{stage}.{i}.bn2"]
    plain += ["layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight"]
    bns += ["layer2.0.downsample.1", "layer3.0.downsample.1"]
    assert set(build("resnet20").state_dict()) == keys_of(plain=plain, bns=bns)
    assert "layer1.0.downsample.0.weight" in build("resnet8x4").state_dict()


@pytest.mark.parametrize(("name", "shortcuts"), [("wrn_16_1", (2, 3)), ("wrn_16_2", (1, 2, 3))])
def test_wrn_keys(name, shortcuts):
    plain, bns = ["conv1.weight", "fc.weight", "fc.bias"], ["bn1"]
    for stage in (1, 2, 3):
        for i in range(2):
            plain += [f"block{stage}.layer.{i}.conv1.weight", f"block{stage}.layer.{i}.conv2.weight"]
            bns += [f"block{stage}.layer.{i}.bn1", f"block{stage}.layer.{i}.bn2"]
    plain += [f"block{stage}.layer.0.convShortcut.weight" for stage in shortcuts]
    assert set(build(name).state_dict()) == keys_of(plain=plain, bns=bns)


@pytest.mark.parametrize(("name", "units"), [("vgg8", (1, 1, 1, 1, 1)), ("vgg13", (2, 2, 2, 2, 2)), ("vgg16", (2, 2, 3, 3, 3))])
def test_vgg_keys(name, units):
    plain, bns = ["classifier.weight", "classifier.bias"], []
    for block, count in enumerate(units):
        for i in range(count):
            plain += [f"block{block}.{3 * i}.weight", f"block{block}.{3 * i}.bias"]
            bns += [f"block{block}.{3 * i + 1}"]
    with torch.device("meta"):
        assert set(models.build(name).state_dict()) == keys_of(plain=plain, bns=bns)


def test_resnet50_keys():
    plain, bns = ["conv1.weight", "linear.weight", "linear.bias"], ["bn1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            plain += [f"layer{stage}.{i}.conv{n}.weight" for n in (1, 2, 3)]
            bns += [f"layer{stage}.{i}.bn{n}" for n in (1, 2, 3)]
        plain.append(f"layer{stage}.0.shortcut.0.weight")
        bns.append(f"layer{stage}.0.shortcut.1")
    assert keys("resnet50") == keys_of(plain=plain, bns=bns)


def test_mobilenet_keys():
    plain, bns = ["conv1.0.weight", "conv2.0.weight", "classifier.0.weight", "classifier.0.bias"], ["conv1.1", "conv2.1"]
    for group, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for i in range(blocks):
            plain += [f"blocks.{group}.{i}.conv.{n}.weight" for n in (0, 3, 6)]
            bns += [f"blocks.{group}.{i}.conv.{n}" for n in (1, 4, 7)]
    assert keys("mobilenetv2") == keys_of(plain=plain, bns=bns)


@pytest.mark.parametrize(("name", "top", "opening", "units"), [("shufflev1", 1, 3, (4, 8, 4)), ("shufflev2", 2, 5, (4, 8, 4))])
def test_shuffle_keys(name, top, opening, units):
    plain, bns = ["linear.weight", "linear.bias"], [f"bn{n}" for n in range(1, top + 1)]
    plain += [f"conv{n}.weight" for n in range(1, top + 1)]
    for stage, count in enumerate(units, start=1):
        for i in range(count):
            convolutions = range(1, (3 if i else opening) + 1)
            plain += [f"layer{stage}.{i}.conv{n}.weight" for n in convolutions]
            bns += [f"layer{stage}.{i}.bn{n}" for n in convolutions]
    assert keys(name) == keys_of(plain=plain, bns=bns)


def keys(name: str) -> set[str]:
    with torch.device("meta"):
        return set(models.build(name).state_dict())


@pytest.mark.real
def test_real_resnet56_loads():
    path = os.environ.get("KD_BENCH_TEACHER")
    if not path:
        pytest.skip("KD_BENCH_TEACHER (a trained resnet56) is not set")
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = models.build("resnet56")
    network.load_state_dict(state, strict=True)
    assert list(network.state_dict()) == list(state)
    assert torch.equal(network.layer3[8].conv2.weight, state["layer3.8.conv2.weight"])
