"""How `--set` values become hyper-parameters: in the type of their annotation, inside their declared range."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from bench.errors import UsageError
from bench.plan import registries
from bench.plan.expand import expand
from bench.plan.groups import Group
from bench.plan.members import hyper_of
from bench.plan.profiles import PROFILES
from bench.plan.protocols import PROTOCOLS
from bench.plan.selection import Selection, typed
from methods import registry
from methods.base import Method, MethodError, check_hyper, named_hyper, ranged

PAIR = ("resnet56", "resnet20")


@dataclass(frozen=True)
class Hyper:
    weight: float = ranged(1.0, at_least=0)
    share: float = ranged(0.5, above=0, at_most=1)
    decay: float | None = ranged(None, at_least=0)
    steps: int = ranged(3, at_least=1, added=True)
    fast: bool = False
    kind: Literal["rows", "columns"] = "rows"
    order: Literal[1, 2] = 1
    label: str | None = None
    layers: tuple[int, ...] = (1, 2)
    size: tuple[int, float] = (8, 0.5)
    note: str = ranged("", added=True)


class Toy(Method):
    name = "toy"
    Hyper = Hyper


def of(**overrides):
    return hyper_of(Toy, None, "resnet8", overrides)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("weight", "2", 2.0),
        ("weight", 2, 2.0),
        ("weight", "1e-3", 1e-3),
        ("decay", "0.1", 0.1),
        ("decay", "none", None),
        ("decay", None, None),
        ("steps", "7", 7),
        ("fast", "yes", True),
        ("fast", False, False),
        ("kind", "columns", "columns"),
        ("order", "2", 2),
        ("label", "a b", "a b"),
        ("label", "None", None),
        ("layers", "3,4,5", (3, 4, 5)),
        ("layers", (3,), (3,)),
        ("layers", "()", ()),
        ("size", "(4, 0.25)", (4, 0.25)),
    ],
)
def test_a_value_takes_the_type_of_its_annotation(field, text, value):
    found = getattr(of(**{field: text}), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("weight", "heavy", "expected a float, as in 1.0"),
        ("decay", "little", "expected a float or none, as in None"),
        ("steps", "2.5", "expected an int, as in 3"),
        ("fast", "maybe", "expected a bool, as in False"),
        ("kind", "cells", "expected one of rows, columns, as in 'rows'"),
        ("layers", "1,x", "expected an int or several with commas"),
        ("size", "4", r"expected \(an int, a float\)"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(field, text, words):
    with pytest.raises(UsageError, match=rf"^--set toy\.{field}={text}: {words}") as error:
        of(**{field: text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("weight", "-1", "toy.weight is -1.0; it must be at least 0"),
        ("weight", "nan", "toy.weight is nan; it must be at least 0"),
        ("weight", "inf", "toy.weight is inf; it must be at least 0"),
        ("share", "0", "toy.share is 0.0; it must be above 0 and at most 1"),
        ("share", "1.5", "toy.share is 1.5; it must be above 0 and at most 1"),
        ("decay", "-0.5", "toy.decay is -0.5; it must be at least 0"),
        ("steps", "0", "toy.steps is 0; it must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(field, text, words):
    with pytest.raises(UsageError) as error:
        of(**{field: text})
    assert str(error.value) == f"--set toy: {words}"


def test_the_ends_of_a_range():
    check_hyper("toy", Hyper(weight=0, share=1, decay=0, steps=1))
    with pytest.raises(MethodError, match="toy.share is 0; it must be above 0 and at most 1"):
        check_hyper("toy", Hyper(share=0))


def test_a_range_is_no_part_of_an_identity():
    assert set(named_hyper(Hyper())) == {f.name for f in dataclasses.fields(Hyper)} - {"steps", "note"}
    assert named_hyper(Hyper(steps=4))["steps"] == 4


@pytest.mark.parametrize("name", registry.names())
def test_every_number_of_every_method_states_its_range(name):
    method = registry.get(name)
    hyper = method.Hyper()
    check_hyper(name, hyper)
    for f in dataclasses.fields(hyper):
        if isinstance(f.default, int | float) and not isinstance(f.default, bool):
            assert "range" in f.metadata, f"{name}.{f.name} has no range"


@pytest.mark.parametrize(
    ("name", "field", "text"), [("kd", "temperature", "-1"), ("at", "power", "0"), ("skd", "dimensions", "0"), ("iep_bb", "heads", "0")]
)
def test_registered_methods_refuse(name, field, text):
    method = registry.get(name)
    with pytest.raises(UsageError, match=rf"--set {method.name}: {method.name}\.{field} is {text}\b.*; it must be a"):
        hyper_of(method, "resnet56", "resnet20", {field: text})


def test_defaults_out_of_their_own_range_are_the_files_fault():
    """Nobody typed --set, or typed it for another field."""
    loose = dataclasses.make_dataclass("Loose", [("weight", float, ranged(0.5, at_least=1)), ("power", int, ranged(2, at_least=1))], frozen=True)
    wrong = type("Wrong", (Method,), {"name": "wrong", "Hyper": loose})
    for overrides in ({}, {"power": "3"}):
        with pytest.raises(MethodError) as error:
            hyper_of(wrong, *PAIR, overrides)
        assert str(error.value) == "wrong.weight is 0.5; it must be at least 1; the method's file says both: mend its default or its range"


@dataclass(frozen=True)
class Undecided:
    weight: float


@dataclass(frozen=True)
class Misspelt:
    weight: "flaot" = 1.0  # noqa: F821


def raising(cls, hyper, setting):
    raise KeyError("in two\nlines")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"by_pair": {PAIR: {"wieght": 1.0}}}, "TypeError: Hyper.__init__() got an unexpected keyword argument 'wieght'"),
        ({"Hyper": Undecided}, "TypeError: Undecided.__init__() missing 1 required positional argument: 'weight'"),
        ({"Hyper": Misspelt}, "NameError: name 'flaot' is not defined"),
        *(({hook: classmethod(raising)}, r"KeyError: 'in two\nlines'") for hook in ("unsupported", "preparation", "pretraining")),
    ],
    ids=["by_pair", "default", "annotation", "unsupported", "preparation", "pretraining"],
)
def test_what_a_methods_own_code_raises_is_one_line_with_its_name(monkeypatch, fields, said):
    monkeypatch.setitem(registry._methods, "toy", type("Own", (Toy,), fields))
    group = Group(*PAIR, 1, PROTOCOLS["crd"], "tf32", ("student", "toy"), (("toy", "weight", "2"),))
    with pytest.raises(MethodError) as error:
        registries.of_group(group)
    assert str(error.value) == f"toy: {said}"


def test_a_refusal_of_a_methods_own_passes_as_it_is(monkeypatch):
    def refuse(cls, hyper, setting):
        raise MethodError("toy wants other stages")

    monkeypatch.setitem(registry._methods, "toy", type("Own", (Toy,), {"preparation": classmethod(refuse)}))
    with pytest.raises(MethodError, match="^toy wants other stages$"):
        registries.of_group(Group(*PAIR, 1, PROTOCOLS["crd"], "tf32", ("toy",)))


def test_a_broken_file_is_said_to_be_broken_where_its_name_is_asked_for(monkeypatch):
    registry.discover()
    monkeypatch.setitem(registry._broken, "lsr", "SyntaxError: invalid syntax (lsr.py, line 3)")
    facts = registries.read(PROTOCOLS["smoke"])
    for row in ("+lsr", "+lsr+kd"):
        with pytest.raises(MethodError, match="method file 'lsr' is broken: SyntaxError: invalid syntax"):
            expand(PROFILES["smoke"], Selection(methods=(row,)), facts)
    assert "lsr" not in list(facts.methods)


def test_text_without_a_known_annotation_is_refused():
    with pytest.raises(ValueError, match="expected a dict"):
        typed("{}", dict)


def test_a_joined_row_is_planned_and_not_listed():
    facts = registries.read(PROTOCOLS["smoke"])
    assert "at+kd" in facts.methods and "at+kd" not in list(facts.methods) and "gone" not in facts.methods
    plan = expand(PROFILES["smoke"], Selection(methods=("student", "+at+kd"), hyper=(("at+kd", "kd_weight", "2"),)), facts)
    assert plan.rows == (("student", "Student"), ("at+kd", "AT + KD"))
    assert {cell.changed for cell in plan.cells if cell.method == "at+kd"} == {(("kd_weight", 1.0, 2.0),)}
    with pytest.raises(MethodError, match=r"att\+kd: unknown method 'att'; did you mean at"):
        expand(PROFILES["smoke"], Selection(methods=("att+kd",)), facts)
