"""The forward pass against an independent one written from the state dict, the relations of the maps, and how often a BN runs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from models.outputs import KINDS as ALL
from models.outputs import STAGE_KINDS as KINDS
from models.randomness import generator, keyed
from tests.models.reference import Reference, dealt

UNLIKE = ("resnet50", "mobilenetv2", "shufflev1", "shufflev2")
NAMES = ("resnet8", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "vgg11", *UNLIKE)
SOME = ("resnet8", "wrn_16_2", "vgg8", *UNLIKE)
ASKED = [k for n in range(4) for k in itertools.combinations(KINDS, n)]


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator(1, "images"))


def build(name: str, **options) -> nn.Module:
    """A network whose BNs have statistics and affine parameters of their own, so that a skipped or swapped one shows."""
    with keyed(1, "init"):
        network = models.build(name, 10, **options)
        for bn in network.modules():
            if isinstance(bn, nn.BatchNorm2d):
                nn.init.normal_(bn.running_mean, std=0.2)
                nn.init.uniform_(bn.running_var, 0.5, 1.5)
                nn.init.normal_(bn.weight, mean=0.7, std=0.2)
                nn.init.normal_(bn.bias, std=0.2)
    return network


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    network = build(name).eval().double()
    x = images().double()
    with torch.no_grad():
        outputs = network(x, KINDS)
        logits, embedding, maps = Reference(network.state_dict()).of(name, x)
    torch.testing.assert_close(outputs.logits, logits)
    torch.testing.assert_close(outputs.embedding, embedding)
    assert set(outputs.maps) == set(KINDS)
    for kind in KINDS:
        assert len(outputs.maps[kind]) == len(maps[kind])
        for ours, theirs in zip(outputs.maps[kind], maps[kind], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_relations_and_signs_of_the_maps(name):
    outputs = build(name).train()(images(), KINDS)
    stage, preact, relu = (outputs.maps[kind] for kind in KINDS)
    assert torch.equal(stage[0], preact[0]) and torch.equal(stage[0], relu[0])
    assert (stage[0].min() < 0) == name.startswith("wrn")
    for s, p, r in zip(stage[1:], preact[1:], relu[1:], strict=True):
        assert p.min() < 0
        if name == "mobilenetv2":  # no ReLU follows
            assert torch.equal(s, p) and torch.equal(p, r)
            continue
        assert torch.equal(r, dealt(p.clamp(min=0), 2) if name == "shufflev2" else p.clamp(min=0))
        assert torch.equal(s, r) != name.startswith("wrn") and (s.min() < 0) == name.startswith("wrn")


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8", "resnet50", "shufflev1"])
def test_the_last_map_after_relu_is_the_pooled_one(name):
    """Not so where a convolution stands behind the last stage."""
    maps = build(name).eval()(images(), ("relu", "last")).maps
    assert torch.equal(maps["relu"][-1], maps["last"][0])


@pytest.mark.parametrize(
    ("name", "kinds"),
    [*itertools.product(("resnet8", "wrn_16_2", "vgg8"), (*ASKED, ALL)), *itertools.product(UNLIKE, (("preact",), ("relu", "cam"), ALL))],
    ids=str,
)
def test_what_is_asked_for_changes_nothing_else(name, kinds):
    """Each BN runs once whatever is asked, the numbers and gradients are the same, and nothing that was not asked for is returned."""
    results = []
    for asked in ((), kinds):
        network = build(name).train()
        outputs = network(images(), asked)
        assert tuple(outputs.maps) == asked
        assert all(bn.num_batches_tracked == 1 for bn in network.modules() if isinstance(bn, nn.BatchNorm2d))
        outputs.logits.square().sum().backward()
        results.append((outputs, [*network.state_dict().values(), *(p.grad for p in network.parameters())]))
    (plain, plain_tensors), (asked_for, tensors) = results
    assert torch.equal(plain.logits, asked_for.logits) and torch.equal(plain.embedding, asked_for.embedding)
    assert all(torch.equal(a, b) for a, b in zip(plain_tensors, tensors, strict=True))
    everything = build(name).train()(images(), ALL)
    for kind in kinds:
        assert all(torch.equal(a, b) for a, b in zip(asked_for.maps[kind], everything.maps[kind], strict=True)), kind


@pytest.mark.parametrize("name", SOME)
def test_gradients_flow_through_every_map(name):
    network = build(name).train()
    outputs = network(images(), (*KINDS, "last"))
    for kind, maps in outputs.maps.items():
        gradients = torch.autograd.grad(outputs.logits.sum(), maps[1:] or maps, retain_graph=True, allow_unused=True)
        a_copy = name == "shufflev2" and kind == "preact"
        assert all((g is None) == a_copy for g in gradients), kind
    total = sum(m.square().mean() for maps in outputs.maps.values() for m in maps)
    total.backward()
    assert all(p.grad is not None for key, p in network.named_parameters() if not key.startswith(("fc", "classifier", "linear")))


@pytest.mark.parametrize("name", SOME)
def test_channels_last_is_kept_and_gives_the_same(name):
    network = build(name).eval()
    with torch.no_grad():
        plain = network(images(size=32), KINDS)
        network.to(memory_format=torch.channels_last)
        last = network(images(size=32).contiguous(memory_format=torch.channels_last), KINDS)
    torch.testing.assert_close(last.logits, plain.logits, rtol=1e-4, atol=1e-4)
    for kind in KINDS:
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in last.maps[kind])


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet8", 8), ("wrn_16_1", 8), ("vgg8", 4), ("resnet50", 4), ("mobilenetv2", 2), ("shufflev1", 4), ("shufflev2", 4)],
)
def test_same_numbers_as_fixed_pooling_at_32(name, side):
    network = build(name).eval()
    with torch.no_grad():
        outputs = network(images(size=32), ("last",))
    torch.testing.assert_close(outputs.embedding, F.avg_pool2d(outputs.maps["last"][0], side).flatten(1))


def test_one_image_and_repeated_kinds():
    outputs = build("resnet8").eval()(images(1), ("relu", "relu"))
    assert outputs.logits.shape == (1, 10) and list(outputs.maps) == ["relu"] and len(outputs.maps["relu"]) == 4


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8"])
def test_unknown_kind(name):
    with pytest.raises(models.NetworkError, match="unknown kind of maps 'post'; known: stage, preact, relu, last, cam"):
        build(name)(images(1), ("stage", "post"))


def test_dropout_acts_in_training_only_between_the_convolutions():
    plain, dropped = build("wrn_16_1"), build("wrn_16_1", dropout=0.5)
    dropped.load_state_dict(plain.state_dict())
    x = images()
    assert torch.equal(plain.eval()(x).logits, dropped.eval()(x).logits)
    seen = []
    block = dropped.block1.layer[0]
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block.bn2.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    with keyed(1, "dropout"):
        first = dropped.train()(x).logits
    after_bn, before_conv = seen[0].relu(), seen[1]
    kept = before_conv != 0
    assert torch.equal(before_conv[kept], 2 * after_bn[kept])
    assert 0.4 < kept.sum() / (after_bn > 0).sum() < 0.6
    with keyed(1, "dropout"):
        assert torch.equal(dropped(x).logits, first)
    with keyed(2, "dropout"):
        assert not torch.equal(dropped(x).logits, first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SOME)
def test_a_step_can_be_captured(name):
    """Forward and backward inside a CUDA graph: a host read or a changing shape would raise, a lost dependency would change the numbers."""
    network = build(name).cuda().to(memory_format=torch.channels_last).train()
    static = images(8, 32).cuda().contiguous(memory_format=torch.channels_last)
    state = {key: value.clone() for key, value in network.state_dict().items()}

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        outputs = network(static, KINDS)
        loss = outputs.logits.square().mean() + sum(m.square().mean() for maps in outputs.maps.values() for m in maps)
        loss.backward()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    network.load_state_dict(state)
    eager = step()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.load_state_dict(state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    network.load_state_dict(state)
    graph.replay()
    torch.testing.assert_close(captured, eager, rtol=1e-3, atol=1e-4)
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        assert (p.grad - gradient).norm() <= 1e-2 * gradient.norm() + 1e-5
    assert all(bn.num_batches_tracked == 1 for bn in network.modules() if isinstance(bn, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["resnet20", "vgg8", "wrn_16_2", *UNLIKE])
def test_gradients_keep_the_memory_order_of_the_maps(name):
    """A gradient in another order would be copied at every layer below."""
    network = models.build(name).to(memory_format=torch.channels_last).train()
    outputs = network(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last), ("stage",))
    orders = []
    for stage in outputs.maps["stage"]:
        stage.register_hook(lambda grad: orders.append(grad.is_contiguous(memory_format=torch.channels_last)))
    torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4)).backward()
    assert len(orders) == len(outputs.maps["stage"]) and all(orders)
