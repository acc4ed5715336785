"""Dissection against hand-made masks, random maps and a planted network whose channels are known detectors."""

import pytest
import torch
from torch import nn

from bench.analysis.frame import registry, subjects
from bench.analysis.frame.context import obtain
from bench.analysis.maths import passes
from bench.analysis.maths.dissection import Counts, TopQuantile, active, detectors
from bench.errors import UsageError
from models.outputs import Outputs
from tests.bench.analysis import small


def counts(on: torch.Tensor, label: torch.Tensor, over: str = "concept") -> torch.Tensor:
    """Set IoU of channels on (B, C, S, S) with one concept, label bool (B, S, S)."""
    made = Counts(on.shape[1], [0])
    made.add(on.bool(), [label.long()[:, None]], torch.zeros(len(on), 0, dtype=torch.int64))
    return made


def test_hand_made_masks_give_1_0_and_a_third():
    label = torch.zeros(1, 4, 4)
    label[0, :2, :2] = 1
    same, apart, third = label.clone(), torch.zeros_like(label), torch.zeros_like(label)
    apart[0, 2:, 2:] = 1
    third[0, :2, 1:3] = 1  # 2 pixels shared, 6 in all
    found = counts(torch.stack([same, apart, third], 1), label)
    for iou in (found.iou_set("concept"), found.iou_individual()):
        assert iou[:, 0].tolist() == pytest.approx([1, 0, 1 / 3])


def test_the_set_ratio_is_pooled_and_not_the_mean_of_ratios():
    label = torch.zeros(2, 4, 4)
    label[0], label[1, 0, 0] = 1, 1
    on = label.clone()[:, None]
    on[1, 0, 0, 0], on[1, 0, 3] = 0, 1
    found = counts(on, label)
    assert found.iou_set("concept").item() == pytest.approx(16 / (16 + 1 + 4))
    assert found.iou_individual().item() == pytest.approx((1 + 0) / 2)


def test_images_without_the_concept_count_for_its_category_only():
    labels = torch.zeros(3, 1, 2, 2, dtype=torch.int64)  # image 0 shows concept 1, image 1 concept 2, image 2 nothing
    labels[0], labels[1] = 1, 2
    on = torch.ones(3, 1, 2, 2, dtype=torch.bool)
    made = Counts(1, [0, 0])
    made.add(on, [labels], torch.zeros(3, 0, dtype=torch.int64))
    assert made.iou_set("concept").tolist() == [[1.0, 1.0]]
    assert made.iou_set("category").tolist() == [[0.5, 0.5]]


def test_labels_of_whole_images_are_full_masks():
    on = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    on[0, 0, 0] = True
    by_image, by_pixel = Counts(1, [0]), Counts(1, [0])
    by_image.add(on, [], torch.tensor([[1], [0]]))
    by_pixel.add(on, [torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)]).long()], torch.zeros(2, 0, dtype=torch.int64))
    assert by_image.iou_set().item() == by_pixel.iou_set().item() == by_image.iou_individual().item() == 0.5


def test_two_labels_on_a_pixel_count_once_each():
    planes = torch.tensor([[[[1, 1]], [[2, 1]]]])  # a pixel with both, a pixel that names the first twice
    made = Counts(1, [0, 0])
    made.add(torch.ones(1, 1, 1, 2, dtype=torch.bool), [planes], torch.zeros(1, 0, dtype=torch.int64))
    assert made.tensors["label"].tolist() == [2, 1] and made.iou_set().tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize("quantile", [0.005, 0.2])
def test_the_streamed_threshold_is_the_exact_quantile(quantile):
    values = torch.randn(3, 7000, generator=torch.Generator().manual_seed(1))
    top = TopQuantile(3, 7000, quantile)
    for part in values.split(450, 1):
        top.add(part)
    share = (values > top.value()[:, None]).float().mean(1)
    assert ((share - quantile).abs() <= 1 / 7000 + 1e-6).all()
    assert torch.equal(top.value(), values.sort(descending=True).values[:, int(quantile * 7000)])


def test_the_threshold_keeps_a_bounded_number_of_values():
    top = TopQuantile(1, 100_000, 0.005)
    for i in range(100):  # rising values: every one is a candidate
        top.add(torch.arange(1000.0)[None] + 1000 * i)
        assert len(top._kept[0]) <= 2 * (top.keep + 1000)
    assert top.value().item() == 100_000 - 501


def test_a_channel_silent_nearly_everywhere_is_active_where_it_is_not():
    maps = torch.zeros(1, 1, 20, 20)
    maps[0, 0, 3, 4] = 0.5
    top = TopQuantile(1, 400, 0.005)
    top.add(maps.flatten(1))
    assert top.value().item() == 0 and active(maps, top.value(), 20).sum() == 1


def test_orders_of_upsampling_and_thresholding():
    maps = torch.tensor([[[[5.0, 0.0], [0.0, 0.0]]]])
    before = active(maps, torch.tensor([1.0]), 4)
    assert before[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]  # 1, 0.75, 0.75, 0.5625: strictly above 0.5
    assert active(maps, torch.tensor([1.0]), 4, "upsample").sum() > before.sum()


def test_detectors_and_unique_concepts():
    iou = torch.tensor([[0.5, 0.1, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, 0.2], [0.04, 0.0, 0.01]])
    best, found, unique = detectors(iou, [0, 0, 1])
    assert best.tolist() == [0, 0, 2, 0] and found.tolist() == [True, True, True, False] and unique == {0: 1, 1: 1}


class Planted(nn.Module):
    """Channel c of stage 1 is 1 exactly where the pixel shows the concept c (the images carry their concepts as pixel values)."""

    def __init__(self, channels: tuple[int, ...], plane_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.planes = channels, [(p, v + 1) for p, n in enumerate(plane_sizes) for v in range(n)]

    def forward(self, images, kinds):
        codes = (images * 255 / 20).round()
        on = torch.stack([(codes[:, p] == v).float() for p, v in self.planes], 1)
        maps = [images.new_zeros(len(images), c, *images.shape[2:]) for c in self.channels]
        kept = min(self.channels[1], on.shape[1])
        maps[1][:, :kept] = on[:, :kept]
        return Outputs(images.new_zeros(len(images), 100), images.new_zeros(len(images), 8), {"stage": tuple(maps)})


def test_a_planted_network_is_read_exactly(tmp_path):
    import dataclasses

    images = small.dataset()
    coded = dataclasses.replace(images, test_images=images.test_concepts * 20, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    small.add_teacher(tmp_path, coded)
    subject = subjects.teacher(tmp_path, coded.name, small.TEACHER)
    context = small.context(tmp_path, coded, [subject])
    channels = tuple(c for c, _, _ in context.shapes(subject).maps["stage"])
    context._networks[subject.hash] = Planted(channels, tuple(map(len, coded.concept_names)))
    dissect = registry.get("dissect")
    stored = obtain(dissect(dissect.Options(layers=("stage1",), quantile=0.5, images=100)), context)
    iou = stored.arrays["stage1.iou_set"]
    assert iou.diagonal().tolist() == [1.0] * channels[1]
    row = stored.facts["layers"][0]
    assert row["detectors"] == channels[1] and sum(row["unique"].values()) == channels[1] and row["unique"]["shape"] == 10
    assert {(b["channel"], b["iou"]) for b in stored.facts["best"]} <= {(c, 1.0) for c in range(channels[1])}


def test_options_that_cannot_be_are_refused():
    options = registry.get("dissect").Options
    wrong = {"order": ("none", "threshold or upsample"), "quantile": (1.0, "between 0 and 1"), "over": ("all", "category or concept")}
    for name, (value, said) in wrong.items():
        with pytest.raises(ValueError, match=said):
            options(**{name: value})


def test_a_broden_folder_that_is_none_is_refused(tmp_path):
    dissect = registry.get("dissect")
    with pytest.raises(UsageError, match="index.csv: cannot be read"):
        dissect(dissect.Options(probe=str(tmp_path))).identity()


def test_a_map_that_is_nowhere_above_0_has_an_upper_half_too():
    maps = torch.tensor([[[[-2.0, -3.0], [-4.0, -8.0]], [[0.0, 1.0], [3.0, 4.0]]]])
    assert passes._half(maps).tolist() == [-5.0, 2.0]
    assert active(maps, passes._half(maps), 2)[0].flatten(1).tolist() == [[True, True, True, False], [False, False, True, True]]
