"""Every declared pair takes real steps with every registered method, from the group to the record, with an untrained teacher
that is recorded as such and enters no table. KD_BENCH_REAL_STEPS=1: on 100 images of CIFAR-100, two minutes a pair.
"""

import dataclasses

import pytest
import torch

import models
from bench import data
from bench.data.augment import Augmenter
from bench.errors import DONE
from bench.plan import members
from bench.plan.groups import Group
from bench.plan.profiles import PROFILES, ROWS
from bench.report import table
from bench.store.runs import scan
from bench.train import group_job, teacher_networks
from bench.train.context import _calibrate
from bench.train.execution import Execution
from bench.train.learner import evaluate
from methods import registry
from models.randomness import keyed

PHASE = {"phase_epochs": 1, "phase_steps": 2, "check_batches": 1}
SHORT = {"ab": {"epochs": 1}, "fsp": {"epochs": 1}, "ft": {"epochs": 1, "rate": 0.01}} | dict.fromkeys(("iep", "iep_bb"), PHASE)


def quick(teacher: str, student: str, image_size: int) -> tuple[tuple[str, str, object], ...]:
    """Overrides that make preparations and stages before the main one short."""
    changes = []
    for name in registry.names():
        hyper = registry.get(name).hyper_for(teacher, student)
        small = dataclasses.asdict(type(hyper).quick()) if hasattr(hyper, "quick") else {}
        small = {field: value for field, value in small.items() if value != getattr(hyper, field) and field != "beta"}
        changes += [(name, field, value) for field, value in (small | SHORT.get(name, {})).items()]
    if student == "mobilenetv2" and image_size == 16:  # its last maps are one pixel: PKT's weight of 30,000 diverges under an untrained teacher
        changes.append(("pkt", "weight", 300.0))
    return tuple(changes)


PAPER = PROFILES["paper"].pairs
CONTROLS = ("cc_paper", "iep_bb", "kd_shifted", "kd_weight", "kd_weight6")
"""Methods of the suite that stand in no published table."""


@pytest.mark.parametrize("pair", PAPER, ids=lambda pair: pair.name)
def test_every_method_takes_steps(tmp_path, pair, few, preparations):
    takes_steps(tmp_path, pair, few, preparations)


def takes_steps(tmp_path, pair, few, preparations):
    """One epoch of a few images with every method that can do the pair."""
    torch.set_num_threads(1)
    (tmp_path / "preparations").symlink_to(preparations)
    dataset = data.load(few)
    with keyed(0, "untrained"):
        network = models.build(pair.teacher, 100)
    inputs = Augmenter(dataset)
    _calibrate(network, inputs.test_batch(slice(0, 20)))  # with no statistics its outputs are so large that CC, which has no bound, diverges
    measured = evaluate(network.eval(), inputs.test_batches(100), "tf32")
    facts = {"source": "untrained", "trained": False}
    teacher_networks.publish(tmp_path, dataset.name, dataset.hash, pair.teacher, network.state_dict(), measured, facts)
    methods = tuple(registry.names())
    group = Group(pair.teacher, pair.student, 1, few, "tf32", methods, quick(pair.teacher, pair.student, few.image_size))
    assert group_job.run_group(group, Execution(str(tmp_path), device="cpu", threads=1, checkpoint_seconds=600.0)) == DONE
    views = {view.method: view for view in scan(tmp_path)[0]}
    found = [m for m in members.resolve(group, dataset.hash, 100, few.image_size, len(dataset.train_labels), None) if not m.skipped]
    able = [m.run.method for m in found]
    alone = {m.run.method for m in found if not m.method.depends_on_teacher(m.hyper, m.setting)}
    assert "student" in alone and not alone & {*ROWS} - {"student"}
    assert pair not in PAPER or {*ROWS, *CONTROLS} <= {*able}
    assert {name: view.status for name, view in views.items()} == dict.fromkeys(able, "done")
    assert len({view.record.weights_sha256 for view in views.values()}) == len(able)  # each method moved the student its own way
    for name, view in views.items():
        teacher = view.record.teacher
        assert (teacher is None) == (name in alone)
        assert teacher is None or teacher.trained is False
    (only,) = table.build(tmp_path)[0].tables
    filled = {row.method for row in only.rows for cell in row.cells if cell.values}
    assert filled == alone and len(only.excluded) == len(able) - len(alone)
