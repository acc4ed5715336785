"""What each network declares of itself, over the whole registry: classifier, trunk, normalisations behind the stages, the pooled map and
its class activation maps."""

import ast
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from models import registry
from models.network import Network
from models.outputs import KINDS, STAGE_KINDS
from models.randomness import generator, keyed

NAMES = models.names()
WITHOUT_NORMS = {"shufflev2": "half of the channels pass"}
"""Networks without a normalisation behind each stage, and what is said of them."""


def images(name: str, count: int = 2) -> torch.Tensor:
    """Small ones, but that mobilenetv2's last map is more than a pixel."""
    size = 32 if name == "mobilenetv2" else 16
    return torch.randn(count, 3, size, size, generator=generator(1, "images"), dtype=torch.float64)


def build(name: str) -> Network:
    """A network in float64 whose normalisations have parameters and statistics of their own."""
    with keyed(1, "init"):
        network = models.build(name, 10)
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.normal_(norm.weight, mean=0.7, std=0.2)
            nn.init.normal_(norm.bias, std=0.2)
    return network.double()


@pytest.mark.parametrize("name", NAMES)
def test_classifier(name):
    with torch.device("meta"):
        network = models.build(name)
    assert isinstance(network, Network)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert linear == [models.classifier(network)]
    assert (linear[0].in_features, linear[0].out_features) == (models.shapes(name).embedding, 100)


@pytest.mark.parametrize("name", NAMES)
def test_pooled_map_and_class_activation_maps(name):
    network = build(name).eval()
    with torch.no_grad():
        outputs = network(images(name), ("last", "cam"))
        plain = network(images(name))
        (last,), (cam,) = outputs.maps["last"], outputs.maps["cam"]
        assert torch.equal(outputs.logits, plain.logits)
        torch.testing.assert_close(last.mean((2, 3)), outputs.embedding)
        torch.testing.assert_close(cam.mean((2, 3)), outputs.logits)
        torch.testing.assert_close(cam, models.classifier(network)(last.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_trunk_is_what_the_last_stage_depends_on(name):
    """In the order of the forward pass, without what stands behind the last stage: that has no part in the gradient of the last map."""
    network = build(name).train()
    last = network(images(name), ("stage",)).maps["stage"][-1]
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(last.square().sum(), list(parameters.values()), allow_unused=True)
    reached = {key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    trunk = models.trunk(network)
    inside = [id(p) for module in trunk for p in module.parameters()]
    assert len(inside) == len(set(inside))
    assert {key for key, p in parameters.items() if id(p) in inside} == reached
    names = {id(module): key for key, module in network.named_modules()}
    order: list[str] = []
    for module in trunk:
        first = next(iter(module.modules() if not list(module.children()) else (m for m in module.modules() if isinstance(m, nn.Conv2d))))
        first.register_forward_hook(lambda module, inputs, output: order.append(names[id(module)]))
    network(images(name))
    assert [key.split(".")[0] for key in dict.fromkeys(order)] == [names[id(module)].split(".")[0] for module in trunk]


@pytest.mark.parametrize("name", NAMES)
def test_norms_behind_the_stages(name):
    """Their weight and bias move the map of kind `preact` that they stand behind, by as much as they are moved."""
    network = build(name).eval()
    if name in WITHOUT_NORMS:
        with pytest.raises(models.NetworkError, match=WITHOUT_NORMS[name]):
            models.preact_norms(network)
        return
    norms = models.preact_norms(network)
    with torch.no_grad():
        before = network(images(name), ("preact",)).maps["preact"][1:]
        assert len(norms) == len(before)
        for place, (norm, map_before) in enumerate(zip(norms, before, strict=True)):
            assert norm.num_features == map_before.shape[1]
            norm.bias += 0.5
            after = network(images(name), ("preact",)).maps["preact"][1:]
            torch.testing.assert_close(after[place], map_before + 0.5)
            assert all(torch.equal(a, b) for a, b in zip(after[:place], before[:place], strict=True))
            norm.bias -= 0.5


def test_norms_of_a_folded_network_are_refused():
    with pytest.raises(models.NetworkError, match="a folded network has no normalisations left"):
        models.preact_norms(models.folded(models.build("resnet8").eval()))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_every_kind(name):
    shapes = models.shapes(name, 10)
    assert set(shapes.maps) == set(KINDS)
    assert len({shapes.maps[kind] for kind in STAGE_KINDS}) == 1
    (last,), (cam,) = shapes.maps["last"], shapes.maps["cam"]
    assert last[0] == shapes.embedding and cam == (10, *last[1:])
    sides = [height for _, height, width in shapes.maps["stage"] if height == width]
    assert len(sides) == len(shapes.maps["stage"]) >= 4 and sides == sorted(sides, reverse=True)
    assert all(math.log2(32 / side).is_integer() for side in sides)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_one_and_sixteen(name, count):
    """In training, with every kind of maps, each normalisation runs once, and every parameter has a gradient."""
    with keyed(1, "init"):
        network = models.build(name).to(memory_format=torch.channels_last).train()
    batch = images(name, count).float().contiguous(memory_format=torch.channels_last)
    outputs = network(batch, KINDS)
    (outputs.logits.square().mean() + outputs.maps["cam"][0].square().mean()).backward()
    assert torch.isfinite(outputs.logits).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert all(norm.num_batches_tracked == 1 for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for maps in outputs.maps.values() for m in maps)


def test_names_can_be_read_without_importing():
    """Each file's entries are a literal with literal names."""
    found: list[str] = []
    for file in registry.FILES:
        tree = ast.parse(Path(file.__file__).read_text())
        (entries,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", None) == "NETWORKS"]
        found += [ast.literal_eval(key) for key in entries.keys]
    assert found == NAMES


def test_every_file_that_declares_networks_is_merged():
    folder = Path(registry.__file__).parent
    declaring = {path.stem for path in folder.glob("*.py") if "\nNETWORKS = {" in path.read_text()}
    assert declaring == {file.__name__.removeprefix("models.") for file in registry.FILES}


def test_a_name_declared_twice_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "FILES", (*registry.FILES, registry.vgg))
    with pytest.raises(models.NetworkError, match="models.vgg declares vgg11, .*vgg8, which another file has declared"):
        registry._merged()


def test_small_rate_is_declared_by_the_network():
    assert [name for name in NAMES if models.small_rate(name)] == ["mobilenetv2", "shufflev1", "shufflev2"]
    with pytest.raises(models.NetworkError, match="unknown network 'resnet-20'"):
        models.small_rate("resnet-20")
