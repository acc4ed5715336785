"""Stage A: the neuron embedding (Eq. 1) against closed forms, planted groups and its two modes."""

import json
import math

import pytest
import torch
from torch import Tensor

from methods.skd.embedding import BATCH, layer_indices, paper_rate
from methods.skd.loss import distribution, embedding_loss, entropy, kl_left, mean_distribution, relation


def closed_form(target: Tensor, temperature: float = 1.0) -> Tensor:
    """The relation whose row distribution is P (C, C), diagonal included: cos_ij = 1 + T log(P_ij / P_ii) -> (C, C)."""
    return 1 + temperature * (target / target.diagonal().unsqueeze(-1)).log()


def test_linear_in_p(planted):
    """The mean over images of loss and gradient is the loss and gradient at the mean distribution."""
    maps = planted(10, 3, images=6).maps.double()
    s = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = s.clone().requires_grad_(), s.clone().requires_grad_()
    each = torch.stack([embedding_loss(a, mean_distribution(m.unsqueeze(0))) for m in maps]).mean()
    once = embedding_loss(b, mean_distribution(maps))
    each.backward()
    once.backward()
    assert each.item() == pytest.approx(once.item(), abs=1e-12)
    assert torch.allclose(a.grad, b.grad, atol=1e-14) and a.grad.abs().max() > 1e-5
    # Not at the distribution of the mean cosines.
    c = s.clone().requires_grad_()
    embedding_loss(c, distribution(relation(maps.flatten(2)).mean(0))).backward()
    assert not torch.allclose(a.grad, c.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("diagonal", [True, False])
def test_loss_is_the_printed_cross_entropy(diagonal):
    g = torch.Generator().manual_seed(0)
    s, other = torch.randn(6, 3, generator=g).double(), torch.randn(6, 3, generator=g).double()
    p = distribution(relation(other), 0.5, diagonal)
    total = 0.0
    for i in range(6):
        kept = [j for j in range(6) if diagonal or j != i]
        cosines = torch.stack([torch.nn.functional.cosine_similarity(s[i], s[j], dim=0) for j in kept])
        total -= (p[i, kept] * (cosines / 0.5).log_softmax(0)).sum() / 6
    assert embedding_loss(s, p, 0.5, diagonal).item() == pytest.approx(total.item(), abs=1e-7)


def test_stream_equals_the_closed_form(toy, images, embedding):
    """P accumulated over batches and a remainder = the mean over all images at once, in double precision."""
    assert images.count % BATCH
    found = embedding().stream(toy, images)
    maps = toy(images.images, kinds=("stage",)).maps["stage"]
    for i in (1, 2):
        x = maps[i].double().flatten(2)
        norm = (x.square().sum(2, keepdim=True) + 1e-8).sqrt()
        p = ((x / norm) @ (x / norm).mT).softmax(2).mean(0)
        assert found[f"stage{i}"].dtype == torch.float64
        assert torch.allclose(found[f"stage{i}"], p, rtol=1e-6, atol=0)
    assert images.passes == [{"batch": BATCH, "epoch": 0, "augment": False, "shuffle": False}]
    assert toy.calls == math.ceil(images.count / BATCH) + 1


@pytest.mark.parametrize(("channels", "groups"), [(32, 4), (64, 6), (128, 8)])
def test_planted_groups_are_found(planted, embedding, channels, groups):
    data = planted(channels, groups)
    target = mean_distribution(data.maps)
    start = torch.randn(channels, 16, generator=torch.Generator().manual_seed(0))
    vectors, steps = embedding()._fit(start, target)
    cosines = relation(vectors)
    same = data.group[:, None] == data.group
    off = ~torch.eye(channels, dtype=torch.bool)
    nearest = cosines.masked_fill(~off, -2).argmax(1)
    assert (data.group[nearest] == data.group).double().mean() == 1.0
    assert cosines[same & off].mean() > cosines[~same].mean() + 0.3
    wanted = closed_form(target)
    assert torch.corrcoef(torch.stack((cosines[off], wanted[off])))[0, 1] > 0.99
    left, random = (kl_left(target, distribution(relation(s.double()))) for s in (vectors, start))
    assert 0 <= left < 0.1 * (math.log(channels) - entropy(target)) and left < 0.1 * random
    assert 1 <= steps <= 500


def test_embedding_is_equivariant_to_permutations(planted, embedding):
    data = planted(24, 4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    start = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    target, permuted = mean_distribution(data.maps), mean_distribution(data.maps[:, order])
    assert torch.allclose(permuted, target[order][:, order], atol=1e-7)
    a, b = embedding()._fit(start, target)[0], embedding()._fit(start[order], permuted)[0]
    assert torch.allclose(relation(b), relation(a)[order][:, order], atol=5e-3)


def test_mean_distribution_ignores_positive_scaling(planted):
    maps = planted(12, 3).maps.double()
    factors = 0.1 + torch.rand(len(maps), 12, 1, 1, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mean_distribution(maps * factors), mean_distribution(maps), atol=1e-8)


def test_streaming_result(toy, images, embedding):
    prepared = embedding(steps=400).build(toy, images)
    assert set(prepared.tensors) == {f"{n}.stage{i}" for n in "SpP" for i in (1, 2)}
    json.dumps(dict(prepared.facts), allow_nan=False)
    for layer, channels, fit in zip(("stage1", "stage2"), (12, 20), prepared.facts["fits"], strict=True):
        s, p, mean = (prepared.tensors[f"{n}.{layer}"] for n in "SpP")
        assert s.shape == (channels, 16) and p.dtype == torch.float32
        assert torch.allclose(p, distribution(relation(s)), atol=1e-6)
        assert fit["layer"] == layer and fit["channels"] == channels
        assert fit["kl_left"] == pytest.approx(kl_left(mean, p.double()).item(), abs=1e-6)
        assert fit["kl_signal"] == pytest.approx(math.log(channels) - entropy(mean).item())
        assert fit["kl_left"] < 0.5 * fit["kl_signal"] and fit["kl_left"] < 0.5 * fit["kl_random"]
        assert fit["converged"]
    assert not any("NOT CONVERGED" in line for line in images.lines)


def test_a_fit_that_stopped_early_says_so(toy, images, embedding):
    prepared = embedding(steps=2).build(toy, images)
    assert not prepared.facts["fits"][1]["converged"] and prepared.facts["fits"][1]["kl_gap"] > 0
    assert any("NOT CONVERGED" in line for line in images.lines)


def test_layers_are_independent(toy, images, embedding):
    both, one = embedding(steps=20).build(toy, images), embedding(steps=20, layers={"stage2": 2}).build(toy, images)
    assert torch.equal(both.tensors["S.stage2"], one.tensors["S.stage2"])


def test_same_bits_twice_and_other_bits_for_another_seed(toy, images, embedding):
    a, b, c = (embedding(steps=20, seed=s).build(toy, images) for s in (0, 0, 1))
    assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    assert not torch.allclose(a.tensors["S.stage1"], c.tensors["S.stage1"])
    assert torch.equal(a.tensors["P.stage1"], c.tensors["P.stage1"])


@pytest.mark.parametrize("changes", [{"kind": "relu"}, {"temperature": 0.5}, {"diagonal": False}])
def test_options_change_the_target(toy, images, embedding, changes):
    plain, other = embedding(steps=5).build(toy, images), embedding(steps=5, **changes).build(toy, images)
    assert not torch.allclose(plain.tensors["P.stage1"], other.tensors["P.stage1"], atol=1e-3)
    assert torch.allclose(other.tensors["P.stage1"].sum(1), torch.ones(12, dtype=torch.float64))
    if "diagonal" in changes:
        assert other.tensors["P.stage1"].diagonal().abs().max() == 0
        assert math.isfinite(other.facts["fits"][0]["kl_left"])


def test_paper_mode_is_sgd_over_the_images(toy, images, embedding):
    """Two epochs against a loop written from the paper: image by image losses, torch's SGD, the schedule's rates."""
    prepared = embedding(mode="paper", epochs=2, layers={"stage2": 2}).build(toy, images)
    assert images.passes == [{"batch": 64, "epoch": e, "augment": True, "shuffle": True} for e in (1, 2)]
    s = torch.randn(20, 16, generator=images.generator("skd-embedding/stage2/0")).requires_grad_()
    optimiser = torch.optim.SGD([s], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch, rate in ((1, 0.1), (2, 0.01)):  # milestones 0.5, 0.75, 0.9 of two epochs: 1, 2, 2
        optimiser.param_groups[0]["lr"] = rate
        for batch, _ in images.batches(64, epoch=epoch, augment=True, shuffle=True):
            maps = toy(batch, kinds=("stage",)).maps["stage"][2]
            p = relation(maps.flatten(2)).softmax(2)
            q = relation(s).softmax(1)
            optimiser.zero_grad()
            (-(p * q.log()).sum(2).mean()).backward()
            optimiser.step()
    assert torch.allclose(prepared.tensors["S.stage2"], s.detach(), atol=1e-5)
    assert prepared.facts["fits"][0]["steps"] == 6
    assert not prepared.facts["fits"][0]["converged"]


def test_paper_schedule():
    assert [paper_rate(e, 100) for e in (1, 50)] == [0.1, 0.1]
    assert [paper_rate(e, 100) for e in (51, 75, 76, 90, 91, 100)] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert [paper_rate(e, 10) for e in (5, 6, 8, 9, 10)] == pytest.approx([1e-1, 1e-2, 1e-2, 1e-3, 1e-4])


def test_settings_leave_out_what_the_mode_does_not_use(embedding):
    assert embedding(epochs=3).settings() == embedding().settings()
    assert embedding(mode="paper", steps=3).settings() == embedding(mode="paper").settings()
    for change in ({"seed": 1}, {"dimensions": 8}, {"temperature": 2.0}, {"kind": "relu"}, {"diagonal": False}, {"mode": "paper"}, {"steps": 3}):
        assert embedding(**change).settings() != embedding().settings()


def test_layer_names():
    stages = ((64, 32, 32), (128, 16, 16), (256, 8, 8))
    assert layer_indices(stages, False) == {"stage1": 1, "stage2": 2}
    assert list(layer_indices(stages, True).items()) == [("block0", 0), ("stage1", 1), ("stage2", 2)]


def test_learned_vectors_lie_between_random_ones_and_the_upper_bound(planted, embedding):
    """KL to the relations of the channels' true concepts: vectors fitted to the concepts <= to the activations <= random."""
    data = planted(48, 6)
    concepts = torch.nn.functional.one_hot(data.group).double()
    truth = distribution(relation(concepts))
    start = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    upper, learned = (embedding()._fit(start, target)[0] for target in (truth, mean_distribution(data.maps)))
    left = [kl_left(truth, distribution(relation(s.double()))).item() for s in (upper, learned, start)]
    assert left[0] < 0.1 * left[1] and left[1] < 0.5 * left[2]
