"""The frame: what it refuses, with one line; results that cannot be trusted; the report's section."""

from types import SimpleNamespace

import numpy as np
import pytest

from bench.__main__ import main
from bench.analysis.frame import registry, results, subjects
from bench.analysis.frame.base import Analysis, Needs, Result, Table, options_of
from bench.analysis.frame.commands import check, lines
from bench.analysis.frame.context import identity, obtain
from bench.errors import StoreError, UsageError
from bench.plan import names
from bench.report import analysis_section
from bench.report.table import OWN, ResultSet
from methods import registry as method_registry
from methods.base import MethodError
from tests.bench.analysis import small

NETWORK = {"label": "resnet8", "test_top1": 1.0}
IDENTITY = {"name": "sync", "version": 1, "options": {}, "networks": [NETWORK], "data": {"name": "shapes100"}}
COST = {"seconds": 1.0, "cpu_seconds": 1.0, "device": "x", "threads": 1}


@pytest.fixture(scope="module")
def images():
    return small.dataset()


@pytest.fixture
def place(tmp_path, images, monkeypatch):
    small.add_teacher(tmp_path, images)
    monkeypatch.setattr("bench.plan.protocols.PROTOCOLS", {"smoke": small.PROTOCOL, "crd": small.PROTOCOL})
    return tmp_path


def said(capsys, *arguments) -> str:
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    return stderr


def test_bad_input_is_one_line_and_exit_2(place, images, capsys):
    for arguments, text in (
        (("snc", "resnet8"), "unknown analysis 'snc'; did you mean sync"),
        (("sync", "resnet9"), "unknown network 'resnet9'; did you mean"),
        (("sync", "resnet20"), "no resnet20 teacher for shapes100"),
        (("dissect", "resnet8", "--set", "layers=stage9"), "resnet8 has no layer 'stage9'; it has stem, stage1"),
        (("sync", "resnet8", "--set", "epz=1"), "unknown option of sync 'epz'; did you mean eps"),
        (("sync", "resnet8", "--set", "eps=wide"), "--set eps=wide: expected a float or several with commas"),
        (("sync", "resnet8", "--set", "eps=nan"), "--set eps=nan: expected finite numbers"),
        (("sync", "resnet8", "--set", "images=1"), "at least 2"),
        (("agreement", "resnet8-resnet8", "--set", "images=3"), "images is 0 or at least 4"),
        (("sync", "resnet8", "--set", "layers=stem"), "resnet8 has no layer 'stem'; it has stage1"),
        (("concepts", "resnet8", "--set", "least_images=99"), "no concept has 99 images in each half of 100: take more with --set images=N"),
        (("sync", "resnet8-resnet8-kd-s1-0123456789"), "no runs in"),
    ):
        assert text in said(capsys, "analyse", *arguments, "--results", str(place), "--device", "cpu"), arguments
    assert not list((place / "analysis").glob("*/result.json"))
    assert "is no folder" in said(capsys, "analyse", "sync", "--results", str(place / "nowhere"))


def test_a_student_of_another_data_set_is_refused(place, images, capsys):
    other = small.add_student(place, images, data_hash="f" * 16)
    assert "was trained on other data (hash ffffffffffffffff" in said(capsys, "analyse", "sync", other, "--results", str(place), "--device", "cpu")


def test_a_student_whose_weights_are_gone_or_changed_is_refused(place, images, capsys):
    run = small.add_student(place, images)
    weights = place / "runs" / run / "student.pt"
    weights.write_bytes((place / "teachers" / "shapes100-resnet8" / "teacher.pt").read_bytes())
    assert "its record says" in said(capsys, "analyse", "sync", run, "--results", str(place), "--device", "cpu")
    weights.unlink()
    assert "student.pt) are not there" in said(capsys, "analyse", "sync", run, "--results", str(place), "--device", "cpu")


def test_a_pair_is_its_teacher_and_its_finished_students(place, images, capsys):
    small.add_student(place, images)
    arguments = ("analyse", "sync", "resnet8-resnet8", "--results", str(place), "--device", "cpu", "--set", "images=4", "--set", "dimensions=2")
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.count("Synchrony of channels: ") == 2 and "done before" not in first and "CPU s" in first
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert main(("analyses", "--results", str(place))) == 0
    assert "2 results" in capsys.readouterr().out
    assert main(("report", str(place), "--figures")) == 0
    page = (place / "report" / "index.html").read_text()
    assert "What the networks know" in page and page.count("data:image/png;base64,") == 2 and "Channels within eps" in page
    assert len(list((place / "report" / "figures").glob("sync-*.pdf"))) == len(list((place / "report" / "figures").glob("sync-*.png"))) == 2
    assert "Synchrony of channels" in (place / "report" / "analyses.txt").read_text()


def test_masks_that_are_not_there_are_refused(images):
    wanting = type("Wanting", (Analysis,), {"name": "wanting", "needs": Needs(masks=True)})
    check(wanting, images)
    with pytest.raises(UsageError, match="needs masks of the objects, and cifar100 has none; embedded images have"):
        check(wanting, small.cifar_like(images))


def test_a_class_that_breaks_the_contract_is_refused():
    add = registry.register("sync")
    with pytest.raises(ValueError, match="is taken by bench.analysis.sync"):
        add(type("Other", (Analysis,), {}))
    for name, fields, said in (
        ("No Name", {}, "lower case"),
        ("other", {"scope": "world"}, "scope of network or group"),
        ("other", {"Options": int}, "not a frozen dataclass"),
        ("other", {"needs": Needs(students=True)}, "its scope is group"),
    ):
        with pytest.raises(ValueError, match=said):
            registry.register(name)(type("Other", (Analysis,), fields))
    assert "other" not in registry.names()


class Grouped(Analysis):
    """Scope "group": labels of the networks it was given; by its own clock it takes 2 s, and 5 s go to what has a cost of its own."""

    name, title, question, scope, needs = "grouped", "Grouped", "Who?", "group", Needs(students=True)

    clock = 0.0

    def run(self, context) -> Result:
        with context._apart():
            Grouped.clock += 5
        Grouped.clock += 2
        return Result({"labels": [s.label for s in context.subjects]})


def test_a_group_is_one_result_and_costs_of_others_are_left_out(place, images, monkeypatch):
    monkeypatch.setattr("bench.train.environment.clocks", lambda: (Grouped.clock, 2 * Grouped.clock))
    subjects_found = small.subjects_of(place, images)
    stored = obtain(Grouped(Grouped.Options()), small.context(place, images, subjects_found))
    assert len(stored.facts["labels"]) == 3 and stored.subject == "resnet8 and 2 more"
    assert (stored.cost["seconds"], stored.cost["cpu_seconds"]) == (2, 4)


@pytest.mark.parametrize("name", ["sync", "neurons", "alignment", "relations", "knowledge"])
def test_what_a_preparation_is_made_by_names_the_result(place, images, monkeypatch, name):
    """Its code, version or settings changed: what was found with the old one is not done before."""
    analysis = registry.get(name)
    one, found = analysis(analysis.Options()), []
    context = small.context(place, images, small.subjects_of(place, images))
    source = method_registry.source_of
    for text in (None, "f" * 16):
        if text:
            monkeypatch.setattr(method_registry, "source_of", lambda function, text=text: text)
        found.append(identity(one, context)["prepared"])
    assert list(found[0]) == list(found[1]) == list(one.prepares()) and found[0] != found[1]
    monkeypatch.setattr(method_registry, "source_of", source)
    assert identity(one, context)["prepared"] == found[0]


def test_alignment_is_named_by_the_dissection_that_it_reads(place, images, monkeypatch):
    one = registry.get("alignment")(registry.get("alignment").Options())
    context = small.context(place, images, small.subjects_of(place, images))
    before = identity(one, context)["dissect"]
    monkeypatch.setattr(registry.get("dissect"), "version", 99)
    assert identity(one, context)["dissect"] != before


def test_a_group_needs_one_teacher_and_students(place, images):
    words = subjects.read(("resnet8",), place, names.networks(), "smoke")
    with pytest.raises(UsageError, match="no finished student of resnet8"):
        subjects.choose(words, place, images.name, images.hash, "group", True)
    with pytest.raises(UsageError, match="none is named: name a pair"):
        subjects.choose(subjects.read((), place, names.networks(), "smoke"), place, images.name, images.hash, "group", False)


def test_students_of_another_teacher_are_refused_and_those_of_none_are_not(place, images):
    def chosen():
        words = subjects.read(("resnet8-resnet8",), place, names.networks(), "smoke")
        return subjects.choose(words, place, images.name, images.hash, "group", True)

    small.add_student(place, images)
    small.add_student(place, images, "student", teacher=None, teacher_hash=None)
    assert [s.method for s in chosen()[0]] == ["", "kd", "student"]
    other = small.add_student(place, images, seed=2, teacher_hash="another")
    with pytest.raises(UsageError, match=rf"{other} had another teacher \(another\) than the resnet8 in"):
        chosen()


@pytest.mark.parametrize("name", [name for name in registry.names() if registry.get(name).scope == "group"])
def test_every_analysis_of_a_group_is_asked_about_students_of_its_teacher(place, images, capsys, name):
    small.add_student(place, images, teacher_hash="another")
    assert "had another teacher (another)" in said(capsys, "analyse", name, "resnet8-resnet8", "--results", str(place), "--device", "cpu")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("alignment", "over=foo", "dissect.over is 'foo'; it is category or concept"),
        ("alignment", "quantile=2", "dissect.quantile lies between 0 and 1"),
        ("concepts", "rate=-1", "rate above 0"),
        ("knowledge", "phase_epochs=0", "phase_epochs, check_batches are at least 1"),
        ("knowledge", "phase_batch=0", "phase_batch at least 2"),
        ("neurons", "dimensions=0", "counts are at least 1"),
        ("sync", "dimensions=0", "dimensions at least 1"),
        ("sync", "eps=", "eps is at least one value"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_runs(name, text, words):
    with pytest.raises(UsageError, match=words):
        options_of(registry.get(name), [text])


def test_what_an_analysis_asks_of_others_is_held_to_their_ranges(place, images):
    subject = subjects.teacher(place, images.name, small.TEACHER)
    context = small.context(place, images, [subject])
    with pytest.raises(UsageError, match="dissect.over is 'foo'"):
        context.result("dissect", {"over": "foo"})
    with pytest.raises(MethodError, match="iep.phase_epochs is 0; it must be at least 1"):
        context.prepared(subject, "iep", {"phase_epochs": 0})


def test_options_keep_their_types():
    options = options_of(registry.get("sync"), ["eps=0.1, 0.5", "sync.images=7", "layers=stage1"])
    assert (options.eps, options.images, options.layers) == ((0.1, 0.5), 7, ("stage1",))
    with pytest.raises(UsageError, match="expected field=value; sync has eps"):
        options_of(registry.get("sync"), ["eps"])


def test_a_result_round_trips_and_what_is_damaged_is_said(tmp_path):
    folder = results.place(tmp_path, IDENTITY)
    results.write(folder, IDENTITY, Result({"a": [1, None]}, {"x": np.arange(3.0)}), COST)
    stored = results.find(tmp_path, IDENTITY)
    assert stored.facts == {"a": [1, None]} and np.array_equal(stored.arrays["x"], np.arange(3.0))
    (folder / "arrays.npz").write_bytes(b"PK" + b"x" * 20)
    with pytest.raises(StoreError, match="differs from its SHA-256; remove"):
        results.read(folder)
    assert results.scan(tmp_path)[1][0][0] == folder.name
    other = folder.with_name("sync-resnet8-0000000000")
    folder.rename(other)
    with pytest.raises(StoreError, match="does not belong to this folder"):
        results.read(other)
    small.damaged_json(other / "result.json")
    with pytest.raises(StoreError, match="not a result of an analysis"):
        results.read(other)


def test_a_long_note_is_printed_whole(tmp_path, monkeypatch):
    note = ", ".join(f"epoch {n}" for n in range(241))
    stored = SimpleNamespace(subject="resnet8", identity=IDENTITY, cost=COST)
    monkeypatch.setattr(results, "tables", lambda analysis, stored: [Table("Concepts", ("network",), [("resnet8",)], [note])])
    monkeypatch.setattr(results, "place", lambda root, identity: root)
    assert note in lines(SimpleNamespace(title="Quantified knowledge"), stored, tmp_path)


def test_facts_without_json_and_arrays_of_objects_are_refused(tmp_path):
    folder = results.place(tmp_path, IDENTITY)
    with pytest.raises(ValueError):
        results.write(folder, IDENTITY, Result({"a": float("nan")}), COST)
    with pytest.raises(ValueError, match="objects"):
        results.write(folder, IDENTITY, Result({}, {"x": np.array([{}])}), COST)
    assert results.read(folder) is None


def test_the_page_shows_the_newest_answer_to_a_question(tmp_path, monkeypatch):
    """The code that prepared it changed, and it was asked again; other options are another question."""
    monkeypatch.setattr(registry.get("sync"), "tables", lambda stored: [])
    for made, finished, options in (("a", "2025-01-02", {}), ("b", "2025-01-03", {}), ("c", "2025-01-01", {}), ("a", "2025-01-01", {"images": 5})):
        one = {**IDENTITY, "options": options, "prepared": {"skd": made}}
        results.write(results.place(tmp_path, one), one, Result({"x": 1}), {**COST, "finished": finished})
    found, problems = analysis_section.found([ResultSet(OWN, tmp_path, [], [], [])])
    assert not problems and {(f.stored.identity["prepared"]["skd"], len(f.stored.options)) for f in found} == {("b", 0), ("a", 1)}


def test_a_file_that_ends_the_program_is_listed_and_harmless(tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text("import sys\nsys.exit('no')")
    monkeypatch.setattr("bench.analysis.__path__", [str(tmp_path)])
    for name, value in (("_analyses", {}), ("_broken", {}), ("_discovered", False)):
        monkeypatch.setattr(registry, name, value)
    assert registry.names() == [] and registry.broken() == {"ending": "SystemExit: no"}
