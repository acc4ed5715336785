"""On the trained resnet56 and real images: what the method rests on, and a short phase I."""

import os
from pathlib import Path

import pytest
import torch

import models
from bench import data as images
from bench.data.augment import Augmenter
from bench.plan.protocols import get
from bench.store.weights import read_state
from bench.train.preparations import TrainingImages
from methods.base import Setting
from methods.iep import IEP
from methods.iep.phase_one import sensed
from methods.iep.spca import first_component

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("KD_BENCH_DATA" not in os.environ, reason="KD_BENCH_DATA names no data root"),
    pytest.mark.skipif("KD_BENCH_TEACHER" not in os.environ, reason="KD_BENCH_TEACHER (a trained resnet56) is not set"),
]


@pytest.fixture(scope="module")
def teacher():
    net = models.build("resnet56")
    net.load_state_dict(read_state(Path(os.environ["KD_BENCH_TEACHER"])))
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def training():
    dataset = images.load(get("crd"), Path(os.environ["KD_BENCH_DATA"]))
    return TrainingImages(dataset, Augmenter(dataset, channels_last=True)).named("test")


def test_first_components_of_the_teachers_maps_converge_in_the_steps_of_the_default(teacher, training):
    batch, _ = next(training.batches(32, shuffle=True))
    for m in sensed(teacher(batch, ("relu",)).maps["relu"]):
        found, exact = first_component(m, IEP.Hyper().power_steps), first_component(m, 1, check=True, tolerance=0.0)
        assert found.residual.max() < 1e-3 and found.v.min() >= 0
        assert (found.v * exact.v).sum(1).min() > 1 - 1e-5


@pytest.mark.slow
def test_networks_beat_identity_and_uniform_on_the_teacher(teacher, training):
    shapes = models.shapes("resnet56")
    hyper = IEP.Hyper.quick(phase_epochs=1, phase_steps=60)
    for pair in IEP.preparation(hyper, Setting(shapes, shapes)).build(teacher, training).facts["kl_per_image"]:
        assert pair["network"] < pair["identity"] and pair["network"] < 0.9 * max(pair["identity"], pair["uniform"])
