"""What is added in how many files: a network in one (and its import), a pair or a profile by an entry. Data sets, methods, analyses: elsewhere.

The networks' generic tests read the registry, so one that is added needs no edit of a list in a test; here it is added and used.
"""

import sys
import types
from functools import partial

import pytest
import torch

import models
from bench.plan import profiles, registries
from bench.plan.expand import expand
from bench.plan.protocols import PROTOCOLS
from bench.plan.selection import Selection
from models import registry
from models.resnet import ResNet


@pytest.fixture
def added(monkeypatch):
    """A file of networks beside the others."""
    module = types.ModuleType("models.narrow")
    module.NETWORKS = {"narrow8": partial(ResNet, 8, (4, 4, 8, 16))}
    monkeypatch.setitem(sys.modules, "models.narrow", module)
    monkeypatch.setattr(registry, "FILES", (*registry.FILES, module))
    monkeypatch.setattr(registry, "NETWORKS", registry._merged())


def test_a_network_is_a_file_and_its_import(added):
    assert models.names()[-1] == "narrow8" and models.macs("narrow8") > 0
    network = models.build("narrow8").eval()
    assert network(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 100)
    assert models.shapes("narrow8").maps["stage"][-1][0] == 16 and models.classifier(network).in_features == 16


def test_a_pair_and_a_profile_are_entries(added, monkeypatch):
    pair = profiles.Pair("resnet20", "narrow8")
    mine = profiles.Profile("mine", "a test", "crd", (pair,), (1, 2), ("student", "kd", "skd"))
    monkeypatch.setattr(profiles, "PROFILES", {**profiles.PROFILES, "mine": mine})
    plan = expand(profiles.get_profile("mine"), Selection(), registries.read(PROTOCOLS["crd"]))
    assert [(g.teacher, g.student, g.seed) for g in plan.full_groups] == [("resnet20", "narrow8", 1), ("resnet20", "narrow8", 2)]
    assert plan.teachers == ("resnet20",) and {c.method for c in plan.cells if c.skipped} == {"skd"}  # whose widths must agree
