"""Additions of channels: against brute force, on planted vectors and maps; neighbours against random ones on a planted network."""

import itertools

import pytest
import torch

from bench.analysis.frame import registry, subjects
from bench.analysis.frame.context import obtain
from bench.analysis.maths import compositions
from bench.errors import UsageError
from methods.skd.loss import relation
from tests.bench.analysis import small


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_best_pairs_are_those_of_brute_force(monkeypatch):
    vectors = drawn(7, 4)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    monkeypatch.setattr(compositions, "CHUNK", 20)  # several pieces
    pairs, scores, gains = compositions.best_pairs(vectors)
    for c in range(7):
        tried = {}
        for a, b in itertools.combinations([i for i in range(7) if i != c], 2):
            total = unit[a] + unit[b]
            score = (total @ unit[c] / total.norm()).item()
            tried[a, b] = (score - max((unit[a] @ unit[c]).item(), (unit[b] @ unit[c]).item()), score)
        best = max(tried, key=tried.get)
        assert tuple(pairs[c].tolist()) == best
        assert (gains[c].item(), scores[c].item()) == pytest.approx(tried[best], abs=1e-6)


def test_a_planted_sum_is_found():
    vectors = torch.eye(6, dtype=torch.float64)[:5]
    vectors = torch.cat([vectors, (vectors[1] + vectors[3])[None]])
    pairs, scores, gains = compositions.best_pairs(vectors)
    assert pairs[5].tolist() == [1, 3] and scores[5].item() == pytest.approx(1) and gains[5].item() == pytest.approx(1 - 0.5**0.5)


def test_matched_pairs_are_as_near_and_others():
    vectors = drawn(30, 5)
    near = relation(vectors)
    found = compositions.matched_pairs(vectors, (3, 8, 11), 10, torch.Generator().manual_seed(0))
    assert len(found) == 10 and not (found == 11).any() and not ((found[:, 0] == 3) & (found[:, 1] == 8)).any()
    wanted = max(near[11, 3], near[11, 8])
    assert (near[11][found].amax(1) - wanted).abs().max() < 0.1


def test_scores_on_maps_are_those_of_unit_maps_added():
    maps = drawn(3, 4, 2, 5).abs()
    maps[1, 2] = 0  # a silent map
    sums = compositions.OnMaps(torch.tensor([[0, 1, 3], [0, 2, 3]]))
    sums.add(maps[:2])
    sums.add(maps[2:])
    score, gain = sums.means()
    flat = maps.flatten(2)
    unit = flat / flat.norm(dim=2, keepdim=True).clamp_min(1e-12)
    for i, (a, b, c) in enumerate(((0, 1, 3), (0, 2, 3))):
        total = unit[:, a] + unit[:, b]
        each = (total * unit[:, c]).sum(1) / total.norm(dim=1)
        single = max((unit[:, a] * unit[:, c]).sum(1).mean().item(), (unit[:, b] * unit[:, c]).sum(1).mean().item())
        assert score[i].item() == pytest.approx(each.mean().item(), abs=1e-6)
        assert gain[i].item() == pytest.approx(each.mean().item() - single, abs=1e-6)


class Planted(torch.nn.Module):
    """Every stage has four groups of channels; a group's maps are one random pattern of the image, times a factor of the channel."""

    def __init__(self, shapes) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, images, kinds):
        from models.outputs import Outputs

        maps = []
        for channels, height, width in self.shapes:
            source = torch.Generator().manual_seed(int(images.double().abs().sum() * 1000) % 2**31)
            patterns = torch.rand(len(images), 4, height, width, generator=source).square()
            factor = 1 + torch.arange(channels)[:, None, None] / channels
            maps.append(patterns[:, torch.arange(channels) % 4] * factor)
        return Outputs(images.new_zeros(len(images), 100), images.new_zeros(len(images), 8), {"stage": tuple(maps)})


def test_a_planted_network_has_its_groups_as_neighbours(tmp_path):
    images = small.dataset()
    small.add_teacher(tmp_path, images)
    subject = subjects.teacher(tmp_path, images.name, small.TEACHER)
    context = small.context(tmp_path, images, [subject])
    context._networks[subject.hash] = Planted(context.shapes(subject).maps["stage"])
    neurons = registry.get("neurons")
    stored = obtain(neurons(neurons.Options(images=40, relations=2, matched=2, channels=(5,))), context)
    for row in stored.facts["layers"]:
        assert row["similar"] == pytest.approx(1, abs=1e-3) and row["random"] < 0.97
    assert {c % 4 for c in stored.facts["drawn"][0]["rows"]} == {1}
    assert torch.equal(torch.from_numpy(stored.arrays["drawn0.masks"][0]), torch.from_numpy(stored.arrays["drawn0.masks"][1]))


def test_an_unknown_channel_or_layer_is_refused(tmp_path):
    images = small.dataset()
    small.add_teacher(tmp_path, images)
    context = small.context(tmp_path, images, [subjects.teacher(tmp_path, images.name, small.TEACHER)])
    neurons = registry.get("neurons")
    for changes, said in (({"channels": (1, 64)}, "has channels 0 to 63, not 64"), ({"layer": "stage9"}, "no layer 'stage9'")):
        with pytest.raises(UsageError, match=said):
            obtain(neurons(neurons.Options(**changes)), context)
