"""Preparations of every method that has a long one: stopped after any part that it keeps, it ends with the same bits."""

import dataclasses

import pytest
import torch

from methods import registry
from models.randomness import keyed
from tests.methods import cases

NAMES = [name for name in registry.names() if registry.get(name).preparation(cases.hyper_of(registry.get(name)), cases.setting())]
LONG = {"ft", "iep", "iep_bb", "skd"}
"""They save where they stand; one that is a moment's work need not."""
SETTINGS = {"skd": {"mode": "paper", "paper_epochs": 3}, "iep": {"phase_epochs": 3}}  # the quick ones have one part


def build(name, images):
    method = registry.get(name)
    hyper = dataclasses.replace(cases.hyper_of(method), **SETTINGS.get(name, {}))
    with keyed(0, "preparation"):
        return method.preparation(hyper, cases.setting()).build(cases.frozen_teacher(), images)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_stopped_after_any_save_ends_with_the_same_bits(name):
    """And one that is built again from the start, which is all there is of those that save nothing on the way."""
    images = cases.Images()
    whole = build(name, images)
    for stop in range(max(1, len(images.saved))):
        halted = cases.Images()
        if stop:
            halted.stop_after = stop
            with pytest.raises(cases.Halted):
                build(name, halted)
        found = build(name, halted)
        assert found.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(found.tensors[k], whole.tensors[k]) for k in whole.tensors)


def test_a_long_stage_is_among_them():
    saved = {}
    for name in NAMES:
        images = cases.Images()
        build(name, images)
        saved[name] = len(images.saved)
    assert saved["skd"] == 3 and saved["iep"] == 3 and LONG <= {name for name, count in saved.items() if count}
