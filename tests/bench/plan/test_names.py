"""Names read from the sources: those of the registries, and wrong ones are refused before torch is loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import models
from bench.plan import names
from methods import registry

ROOT = Path(__file__).resolve().parents[3]


def test_the_sources_name_what_the_registries_hold():
    assert set(registry.names()) == names.methods()  # each file is a method or says by its first letter that it is none
    assert set(names.networks()) == set(models.names())


@pytest.mark.parametrize(
    ("decorator", "found"),
    [
        ('register("mine")', ["mine"]),
        ('register(name="mine")', ["mine"]),
        ('registry.register("mine")', ["mine"]),
        ('methods.registry.register(name="mine")', ["mine"]),
        ("register(NAME)", []),  # told by the registry
        ("register()", []),
        ("register(**options)", []),
        ("register(3)", []),
        ('other("mine")', []),
        ("register", []),
    ],
)
def test_a_method_may_be_registered_in_every_way_that_python_has(decorator, found):
    assert list(names._decorated(ast.parse(f"@{decorator}\nclass Mine:\n    pass\n"))) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run --methods kdd", "unknown method 'kdd'; did you mean kd"),
        ("run --methods at+kdd", "unknown method 'kdd'"),
        ("run --pairs resnet56-resnet2", "unknown network 'resnet2'"),
        ("run --set kdd.temperature=2", "unknown method 'kdd'"),
        ("run --profile papr", "unknown profile 'papr'; did you mean paper"),
        ("run --protocol crdd", "unknown protocol 'crdd'; did you mean crd"),
        ("run --precision fp8", "unknown precision 'fp8'"),
        ("prepare skdd resnet56", "unknown method 'skdd'"),
        ("teachers train resnet57", "unknown network 'resnet57'; did you mean"),
        ("teachers import x.pt --architecture resnet57", "unknown network 'resnet57'"),
    ],
)
def test_a_wrong_name_is_refused_before_torch_is_loaded(arguments, said):
    code = f"import sys; from bench.__main__ import main; code = main({arguments.split()!r}); sys.exit(99 if 'torch' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
