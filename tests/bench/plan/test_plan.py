"""The plan is a pure function of profile, selection and facts."""

import dataclasses
from types import SimpleNamespace

import pytest

from bench.errors import UsageError
from bench.launch import estimate
from bench.plan import protocols
from bench.plan.expand import MethodFacts, Plan, Registries, as_json, expand, group_macs, images, narrowed
from bench.plan.groups import Group
from bench.plan.names import check_methods, check_rows
from bench.plan.profiles import ALL_PAIRS, CRD_PAIRS, PAIRS, PROFILES, UNLIKE_PAIRS, Pair, Profile
from bench.plan.rows import method_of, row_of, settings_of
from bench.plan.selection import Selection, parse_pair, parse_seeds, parse_set, words
from bench.text import duration

MACS = {"big": 100, "mid": 50, "small": 10, "tiny": 5}
TITLES = {"student": "Student", "kd": "KD", "at": "AT", "ab": "AB"}


def of_group(group: Group) -> dict[str, MethodFacts]:
    """`student` needs no teacher; `at` cannot do the tiny student; `ab` has 30 epochs before the main stage."""
    found = {}
    for row in group.methods:
        method = method_of(row)
        alone = method == "student"
        settings = ({"temperature": "4", "alpha": "0.9"} if method == "kd" else {}) | group.overrides(row)
        key = f"{'' if alone else group.teacher}-{group.student}-{method}-{group.seed}-{settings}"
        reason = "too small" if method == "at" and group.student == "tiny" else None
        found[row] = MethodFacts(key, reason, not alone, 30 if method == "ab" else 0, settings)
    return found


FACTS = Registries(TITLES, tuple(MACS), of_group, MACS.__getitem__)
PROFILE = Profile("p", "a test", "crd", (Pair("mid", "small"), Pair("big", "small"), Pair("big", "tiny")), (1, 2), ("student", "kd", "at"))


def plan_of(profile: Profile = PROFILE, **selection) -> Plan:
    return expand(profile, Selection(**selection), FACTS)


def test_cells_are_every_pair_seed_and_row():
    cells = plan_of().cells
    assert len(cells) == 3 * 2 * 3 and len(set(cells)) == len(cells)
    assert {(c.student, c.method) for c in cells if c.skipped} == {("tiny", "at")}


def test_a_run_that_no_teacher_changes_stands_in_one_group():
    groups = plan_of().groups
    assert sum("student" in g.methods for g in groups if g.student == "small" and g.seed == 1) == 1
    assert all("at" not in g.methods for g in groups if g.student == "tiny")
    runs = [(g.teacher if m != "student" else None, g.student, m, g.seed) for g in groups for m in g.methods]
    assert len(runs) == len(set(runs)) == 2 * (2 * 2 + 1 + 2)


def test_groups_are_longest_first_and_teachers_largest_first():
    found = plan_of()
    lengths = [group_macs(g, found.needs_teacher(g), MACS.__getitem__) for g in found.groups]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 1
    assert found.teachers == ("big", "mid")


def test_no_teacher_is_asked_for_where_no_row_needs_one():
    found = plan_of(methods=("student",))
    assert found.teachers == () and not any(found.needs_teacher(g) for g in found.groups)
    assert {(g.student, g.seed) for g in found.groups} == {(s, n) for s in ("small", "tiny") for n in (1, 2)}


def test_selection_replaces_and_joins_rows():
    assert [m for m, _ in plan_of(methods=("kd",)).rows] == ["kd"]
    shorter = dataclasses.replace(PROFILE, methods=("student",))
    assert [m for m, _ in plan_of(shorter, methods=("+at",)).rows] == ["student", "at"]
    more = dataclasses.replace(FACTS, methods={name: name for name in ("zz", "dkd", "at", "aa", "student")})
    every = expand(dataclasses.replace(PROFILE, methods=None), Selection(), more)
    assert [m for m, _ in every.rows] == ["student", "at", "dkd", "zz", "aa"]  # the order of tables, then the registry's


def test_overrides_reach_the_group_and_the_cells_say_so():
    found = plan_of(hyper=(("kd", "temperature", "2"), ("kd", "alpha", "0.9")))
    assert all(g.overrides("kd") == {"temperature": "2", "alpha": "0.9"} and not g.overrides("at") for g in found.groups)
    assert {c.method: c.changed for c in found.cells} == {"student": (), "kd": (("temperature", "4", "2"),), "at": ()}
    assert all(g.variant("kd") == {"temperature": "2"} and not g.variant("at") for g in found.groups)  # alpha is the own row's
    written = as_json(found, {})["cells"]
    assert [c.get("changed") for c in written[:3]] == [None, {"temperature": ["4", "2"]}, None]


def test_rows_of_one_method_with_settings_of_their_own_stand_side_by_side():
    rows = ("student", "kd", "kd:temperature=2", "kd:temperature=8:alpha=0")
    found = plan_of(methods=rows, hyper=(("kd", "alpha", "0.5"),))
    assert {c.row: c.changed for c in found.cells} == {
        "student": (),
        "kd": (("alpha", "0.9", "0.5"),),
        "kd:temperature=2": (("alpha", "0.9", "0.5"), ("temperature", "4", "2")),
        "kd:temperature=8:alpha=0": (("alpha", "0.9", "0"), ("temperature", "4", "8")),  # its own setting wins
    }
    assert [row for row, _ in found.rows] == ["student", "kd"] and {c.method for c in found.cells} == {"student", "kd"}
    group = found.full_groups[0]
    assert group.methods == rows and group.variant(rows[2]) == {"alpha": "0.5", "temperature": "2"}
    alone = narrowed(group, rows[2:3])
    assert alone.overrides(rows[2]) == {"alpha": "0.5", "temperature": "2"} and alone.variant(rows[2]) == group.variant(rows[2])
    written = as_json(found, {})["cells"][1:4]
    assert [c["method"] for c in written] == ["kd"] * 3 and [len(c["changed"]) for c in written] == [1, 2, 2]
    assert [c.changed for c in plan_of(methods=("+kd:temperature=2",)).cells if c.method == "kd"][:2] == [(), (("temperature", "4", "2"),)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("kd", "kd:temperature=4"), "--methods kd:temperature=4: the same runs as kd; leave one of the two out"),
        (("kd:temperature=2:alpha=0", "kd:alpha=0:temperature=2"), "the same runs as kd:temperature=2:alpha=0"),
        (("kd:temperature",), "--methods kd:temperature: expected method:setting=value, as in kd:temperature=2"),
        (("kd:=2",), "expected method:setting=value"),
        (("kd:temperature=2:temperature=3",), "temperature stands there twice"),
        (("kdd:temperature=2",), "unknown method 'kdd'"),
    ],
)
def test_rows_that_are_refused(rows, message):
    with pytest.raises(UsageError) as refused:
        plan_of(methods=rows)
    assert message in str(refused.value)


def test_a_row_that_is_another_on_one_pair_stands_on_the_others():
    def of(group):
        alike = group.teacher == "mid"  # alpha is 0 there anyway
        return {row: dataclasses.replace(f, run=f"{group.seed}") if alike and method_of(row) == "kd" else f for row, f in of_group(group).items()}

    facts = dataclasses.replace(FACTS, of=of)
    found = expand(PROFILE, Selection(methods=("kd", "kd:alpha=0")), facts)
    assert found.twins == (("mid-small", "kd:alpha=0", "kd"),)
    assert {(c.teacher, c.row) for c in found.cells} == {("mid", "kd"), ("big", "kd"), ("big", "kd:alpha=0")}
    assert all(("kd:alpha=0" in g.methods) == (g.teacher == "big") for g in (*found.groups, *found.full_groups))


def test_a_setting_that_no_row_takes_is_refused():
    with pytest.raises(UsageError, match="--set kd.temperature: every row of kd has a temperature of its own"):
        plan_of(methods=("student", "kd:temperature=2"), hyper=(("kd", "temperature", "8"),))
    assert plan_of(methods=("kd", "kd:temperature=2"), hyper=(("kd", "temperature", "8"),)).cells[0].changed == (("temperature", "4", "8"),)


def test_rows_are_refused_before_anything_is_imported():
    check_rows(["+kd:temperature=2", "at+kd:kd_weight=2"])
    for rows, message in ((["kdd:temperature=2"], "'kdd'"), (["kd:temperature"], "method:setting=value")):
        with pytest.raises(UsageError, match=message):
            check_rows(rows)
    with pytest.raises(UsageError, match="kd:temperature=2: name the method alone"):  # of other commands
        check_methods(["kd:temperature=2"])
    assert settings_of("kd") == {} and method_of("at+kd:kd_weight=2") == "at+kd"
    assert row_of("kd", {"temperature": 2.0, "alpha": 0}) == "kd:alpha=0:temperature=2.0" and row_of("kd", None) == "kd"


def test_an_ablation_is_a_variant_and_the_profiles_own_settings_are_none():
    own, varied = (("kd", "temperature", "1"), ("skd", "beta", 1.0)), (("kd", "alpha", "0"), ("skd", "seed", 1))
    found = plan_of(dataclasses.replace(PROFILE, hyper=own, variant=varied))
    assert {c.method: c.changed for c in found.cells} == {"student": (), "kd": (("alpha", "0.9", "0"),), "at": ()}
    assert all(g.overrides("kd") == {"temperature": "1", "alpha": "0"} for g in found.groups)
    assert all(h[0] == "kd" for g in found.full_groups for h in g.hyper)


def test_a_profile_may_change_settings_and_the_command_line_still_wins():
    quick = dataclasses.replace(PROFILE, hyper=(("kd", "fast", True), ("skd", "beta", 1.0)))
    assert all(g.overrides("kd") == {"fast": True} for g in plan_of(quick).groups)
    assert plan_of(quick, hyper=(("kd", "fast", "no"),)).groups[0].overrides("kd") == {"fast": "no"}
    assert not plan_of().groups[0].overrides("kd")


def test_scaled_schedule_scales_the_missing_teachers_too():
    profile = dataclasses.replace(PROFILE, protocol="skd", teacher_protocol="crd")
    found = plan_of(profile, epochs=10)
    assert (found.protocol.epochs, found.teacher_protocol.epochs) == (10, 24) and found.protocol.trial and found.teacher_protocol.trial
    assert plan_of(profile).teacher_protocol == protocols.get("crd")


def test_a_profiles_own_protocol_by_its_name_changes_nothing():
    profile = dataclasses.replace(PROFILE, protocol="skd", teacher_protocol="crd")
    assert plan_of(profile, protocol="skd") == plan_of(profile) and plan_of(profile, protocol="skd", epochs=10) == plan_of(profile, epochs=10)
    assert plan_of(profile, protocol="iep").teacher_protocol == protocols.get("iep")  # another one trains its own
    assert plan_of(protocol="crd") == plan_of()


def test_sample_rate_is_for_students_only():
    found = plan_of(sample_rate=0.25)
    assert found.protocol.sample_rate == 0.25 and found.teacher_protocol.sample_rate == 1.0
    assert images(found.protocol) == 12_500


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"methods": ("kdd",)}, "unknown method 'kdd'; did you mean kd"),
        ({"pairs": ("bigg-small",)}, "unknown network 'bigg'; did you mean big"),
        ({"pairs": ("nothing",)}, "unknown network 'nothing'"),
        ({"pairs": ("no-thing",)}, "unknown pair 'no-thing'"),
        ({"protocol": "crdd"}, "unknown protocol 'crdd'; did you mean crd"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"epochs": 0}, "--epochs 0: at least 1"),
        ({"sample_rate": 2.0}, "--sample-rate 2.0"),
        ({"hyper": (("kd", "t", "1"),), "methods": ("at",)}, "kd is not among the rows at"),
        ({"hyper": (("k", "t", "1"),)}, "unknown method 'k'"),
    ],
)
def test_bad_selection_is_one_line(selection, said):
    with pytest.raises(UsageError) as error:
        plan_of(**selection)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_seeds_and_names_are_read_in_the_forms_people_write():
    assert parse_seeds(["1-3", "7,2"]) == (1, 2, 3, 7)
    assert words(["kd,at", "sp", "kd"]) == ("kd", "at", "sp")
    assert parse_set("kd.temperature=2=3") == ("kd", "temperature", "2=3")
    for pair in ("big-small", "big/small", "big -> small"):
        assert parse_pair(pair, list(MACS)) == Pair("big", "small")
    for bad in ("x", "1-", "3-1", "-1", "1.5"):
        with pytest.raises(UsageError, match="--seeds"):
            parse_seeds([bad])
    largest = 2**63 - 1  # what a record can hold
    assert parse_seeds([str(largest), "1-9999"])[0] == largest
    for bad in (str(largest + 1), f"1,{largest}-{largest + 1}", "9" * 5000, "1-10001", "1-10000000000", f"0-{largest}", "1-6000,10001-16000"):
        with pytest.raises(UsageError, match="--seeds .*: at most 10,000 numbers, none above 9223372036854775807") as error:
            parse_seeds([bad])
        assert len(str(error.value)) < 200
    for bad in ("kd", "kd.t", "kd=1", ".t=1"):
        with pytest.raises(UsageError, match="expected method.field=value"):
            parse_set(bad)


def test_plan_json_names_every_cell_with_its_run_or_its_reason():
    found = plan_of()
    first = found.cells[0]
    written = as_json(found, {first: "some-run"})
    assert [r["method"] for r in written["rows"]] == ["student", "kd", "at"] and len(written["cells"]) == len(found.cells)
    assert written["cells"][0]["run"] == "some-run" and written["cells"][1]["run"] is None
    assert {c["skipped"] for c in written["cells"]} == {None, "too small"}
    assert written["protocol"]["milestones"] == [150, 180, 210]


def test_declared_profiles_name_what_exists():
    pytest.importorskip("torch")
    import models
    from bench.plan import registries
    from methods import registry

    for profile in PROFILES.values():
        assert protocols.get(profile.protocol) and protocols.get(profile.teacher_protocol or profile.protocol)
        assert {n for pair in profile.pairs for n in (pair.teacher, pair.student)} <= set(models.names())
        assert set(profile.methods or ()) <= set(registry.names())
        shown = expand(profile, Selection(seeds=(1,)), registries.read(protocols.get(profile.protocol)))
        assert not shown.protocol.trial and not shown.teacher_protocol.trial
        changed = {(c.method, name, here) for c in shown.cells for name, _, here in c.changed}
        assert changed == set(profile.variant), profile.name  # every ablation differs from the method's own settings
    assert len(PROFILES["paper"].pairs) * len(PROFILES["paper"].seeds) * len(PROFILES["paper"].methods) == 162


@pytest.mark.parametrize(
    ("name", "rows", "pairs", "seeds"),
    [("skd_table", 15, PAIRS, 3), ("crd_table", 14, CRD_PAIRS, 5), ("crd_cross", 13, UNLIKE_PAIRS, 3), ("field", None, ALL_PAIRS, 3)],
)
def test_profiles_of_the_wider_tables(name, rows, pairs, seeds):
    pytest.importorskip("torch")
    from bench.plan import registries
    from bench.report import published

    profile = PROFILES[name]
    facts = registries.read(protocols.get(profile.protocol))
    found = expand(profile, Selection(), facts)
    assert (found.protocol, found.teacher_protocol) == (protocols.get("crd"),) * 2 and found.pairs == pairs and len(found.seeds) == seeds
    assert [m for m, _ in found.rows][0] == "student" and len(found.rows) == (rows or len(facts.methods))
    if name == "skd_table":
        assert {m for m, _ in found.rows} - {"skd"} == set(PROFILES["crd_table"].methods)
        assert not any(c.skipped for c in found.cells)  # as printed: every row stands on every pair
    if rows:  # the source prints a number for every cell that can run, and none for one that cannot
        index = published.load()
        for c in found.cells:
            printed = ("crd", "cifar100", 1.0, c.teacher, c.student, c.method) in index
            assert printed != bool(c.skipped), c


def test_the_paper_profile_is_left_as_it_was():
    paper, skd = PROFILES["paper"], PROFILES["skd_table"]
    assert paper.methods == ("student", "kd", "fitnet", "at", "rkd", "sp", "cc", "iep", "skd")
    assert set(paper.methods) - {"iep"} <= set(skd.methods) and paper.pairs == skd.pairs and paper.seeds == skd.seeds


def test_declared_pairs():
    torch = pytest.importorskip("torch")
    import models

    assert PROFILES["paper"].pairs == PAIRS and len(PAIRS) == 6
    assert set(CRD_PAIRS) - set(PAIRS) == {Pair("wrn_40_2", "wrn_40_1")} and [p for p in CRD_PAIRS if p in PAIRS] == list(PAIRS)
    assert len(set(ALL_PAIRS)) == len(ALL_PAIRS) == 13
    for pair in ALL_PAIRS:
        assert parse_pair(pair.name, models.names()) == pair
        of_teacher, of_student = ([c for c, _, _ in models.shapes(name).maps["stage"][1:]] for name in (pair.teacher, pair.student))
        assert len(of_teacher) == len(of_student)  # as many stages on both sides
        with torch.device("meta"):
            kinds = {type(models.build(name)) for name in (pair.teacher, pair.student)}
        assert (pair in UNLIKE_PAIRS) == (len(kinds) == 2)


@pytest.mark.parametrize(("name", "rates"), [("crd", (0.05, 0.01)), ("skd", (0.1, 0.01)), ("iep", (0.1, 0.1))])
def test_the_small_rate(name, rates):
    protocol = protocols.get(name)
    assert tuple(protocol.base_rate(small=small) for small in (False, True)) == rates
    last, after = (protocol.rate(epoch, small=True) for epoch in (protocol.milestones[0], protocol.milestones[0] + 1))
    assert last == rates[1] and after == pytest.approx(rates[1] * protocol.decay)


def test_profiles_of_ieps_experiments():
    pytest.importorskip("torch")
    from bench.plan import members, registries

    rates = {"iep_full": 1.0, "iep_half": 0.5, "iep_quarter": 0.25, "iep_tenth": 0.1, "iep_students": 0.25, "iep_iterations_4": 0.25}
    for name, rate in rates.items():
        found = expand(PROFILES[name], Selection(), registries.read(protocols.get("iep")))
        p = found.protocol
        assert (p.sample_rate, p.batch, p.epochs, p.milestones, p.decay, p.nesterov, p.dropout) == (rate, 128, 100, (30, 60, 80), 0.2, True, 0.3)
        assert found.teacher_protocol == protocols.get("iep") and found.teachers == ("wrn_40_4",) and not any(c.skipped for c in found.cells)
        for group in found.full_groups:
            for member in members.resolve(group, "", 100, 32, images(p), None):
                if member.run.method.startswith("iep"):
                    assert member.hyper.phase_batch == p.batch and (member.hyper.iterations == 4) == (name == "iep_iterations_4")


def probed(method, teacher, **changes):
    """A cost record of big -> small, as one that is found in a results folder."""
    made = {"speed": 1000.0, "student_macs": 10, "teacher_macs": 0, "precision": "tf32", "threads": 1, "finished": "", "hyper": {}}
    p = protocols.get("crd")
    made |= {"dataset": p.dataset, "image_size": 32, "train_images": 50_000, "batch": 64, "momentum": 0.9, "nesterov": False, "dropout": 0.0}
    return SimpleNamespace(**{**made, "method": method, "teacher": teacher, "student": "small", **changes})


def test_an_estimate_takes_no_cost_of_another_condition():
    (group,) = plan_of(methods=("kd",), pairs=("big-small",), seeds=(1,)).groups
    own = probed("kd", "big", finished="2025")
    for change in ({"image_size": 24}, {"batch": 128}, {"dataset": "shapes100"}, {"train_images": 5000}, {"dropout": 0.3}, {"precision": "bf16"}):
        other = probed("kd", "big", finished="2026", **change)
        assert estimate.cost_of([own, other], group, "kd") is own and estimate.cost_of([other], group, "kd") is None
    old = probed("kd", "big", image_size=None, train_images=None, momentum=None, nesterov=None, dropout=None)  # does not say
    assert estimate.cost_of([old], group, "kd") is old and estimate.cost_of([old, own], group, "kd") is own
    hot = dataclasses.replace(group, hyper=(("kd", "temperature", 8.0),))
    assert estimate.cost_of([own, warm := probed("kd", "big", hyper={"temperature": 8.0})], hot, "kd") is warm
    many = probed("kd", "big", threads=2, finished="2026")
    assert estimate.cost_of([own, many], group, "kd", threads=1) is own and estimate.cost_of([own, many], group, "kd", threads=2) is many


def test_estimate_uses_probes_where_every_method_has_one_and_says_what_it_rests_on():
    found = plan_of(methods=("student", "kd"), pairs=("big-small",), seeds=(1,))
    groups = [(g, found.needs_teacher(g), found.before(g)) for g in found.groups]
    plain, kd = probed("student", None), probed("kd", "big")  # the student's serves every pair
    both = [plain, kd]
    cost = estimate.training(groups, both, MACS.__getitem__, "cpu", 1)
    tested = 10_000 / 3  # after each epoch, at a third of the cost
    assert cost.seconds == pytest.approx(2 * (50_000 + tested) * 240 / 1000) and "1 of 1 groups from cost probes" in cost.source
    one = estimate.training(groups, [kd], MACS.__getitem__, "cpu", 1)
    macs = ((3 * 10 * 2 + 100) * 50_000 + 10 * 2 * 10_000) * 240
    assert one.seconds == pytest.approx(macs / (3 * 10 * 1000)) and "median of 1 cost probes" in one.source
    stated = estimate.training(groups, [], MACS.__getitem__, "cpu", 2)
    assert stated.seconds == pytest.approx(macs / (2 * estimate.STATED["cpu"])) and "assumed" in stated.source


def test_an_estimate_counts_the_epochs_before_the_main_stage():
    """They read the teacher, which the main stage of `ab` does not; no test follows them; runs that have them share its pass."""
    found = plan_of(methods=("student", "ab"), pairs=("big-small",), seeds=(1,))
    ((group, *_),) = groups = [(g, found.needs_teacher(g), found.before(g)) for g in found.groups]
    assert found.before(group) == {"ab": 30}
    main, before = ((3 * 10 * 2 + 100) * 50_000 + 10 * 2 * 10_000) * 240, (3 * 10 + 100) * 50_000 * 30
    assert group_macs(group, True, MACS.__getitem__, [30]) == main + before
    assert group_macs(group, True, MACS.__getitem__, [30, 30]) == main + before + 3 * 10 * 50_000 * 30
    stated = estimate.training(groups, [], MACS.__getitem__, "cpu", 1)
    assert stated.seconds == pytest.approx((main + before) / estimate.STATED["cpu"])
    probes = [probed("student", None), probed("ab", "big")]
    cost = estimate.training(groups, probes, MACS.__getitem__, "cpu", 1)
    assert cost.seconds == pytest.approx((2 * (50_000 + 10_000 / 3) * 240 + 50_000 * 30 * (30 + 100) / 30) / 1000)


def test_epochs_before_the_main_stage_are_scaled_with_the_schedule():
    """30 of the protocols; as large a part of a trial or of the embedded data's short schedule, at least one."""
    pytest.importorskip("torch")
    from bench.plan import registries

    for protocol, epochs, expected in (("crd", None, 30), ("crd", 24, 3), ("crd", 2, 1), ("skd", None, 30), ("smoke", None, 6), ("smoke", 60, 8)):
        choice = Selection(pairs=("resnet56-resnet20",), methods=("student", "ab", "fsp"), seeds=(1,), protocol=protocol, epochs=epochs)
        found = expand(PROFILES["paper"], choice, registries.read(protocols.get(protocol)))
        assert found.before(found.groups[0]) == {"ab": expected, "fsp": expected}


def test_spread_is_the_time_until_the_last_slot_is_free():
    assert estimate.spread([5, 4, 3, 3], 2) == 8 and estimate.spread([1, 2], 5) == 2 and estimate.spread([], 2) == 0


def test_durations_are_for_people():
    assert [duration(s) for s in (40, 720, 11_100, 1_051_200)] == ["40 s", "12 min", "3 h 05 min", "12 days 4 h"]
