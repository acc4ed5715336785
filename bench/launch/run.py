"""`run`: from the command line's options to a plan, what is left of it, the jobs that do it, and the report."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import data
from bench.errors import DONE, INTERRUPTED, STOPPED_IN_TIME, TROUBLE, UsageError, check_known
from bench.launch import estimate, jobs, ledger
from bench.launch.description import Forecast, describe
from bench.launch.ledger import Ledger
from bench.launch.local import Pool
from bench.launch.options import Run
from bench.launch.progress import Progress
from bench.launch.slurm import on_slurm, submit_slurm
from bench.launch.tasks import Outcome, Slot, Task, fresh_folder, others_cannot_write
from bench.launch.threads import cores as usable_cores
from bench.plan import protocols, registries
from bench.plan.expand import TEACHER_SEED, Plan, expand
from bench.plan.groups import Group
from bench.plan.names import parse_teacher
from bench.plan.profiles import DEFAULT_PROFILE, get_profile
from bench.plan.selection import Selection, parse_seeds, parse_set, words
from bench.store.lease import check_locks
from bench.store.runs import scan
from bench.text import duration, say, table
from bench.train import engine, environment, teacher_networks
from bench.train.execution import Execution

DAY = 24 * 3600.0


def make_plan(options: Run) -> Plan:
    """The plan that the options ask for. Raises UsageError, MethodError or NetworkError."""
    profile = get_profile(options.profile or DEFAULT_PROFILE)
    selection = Selection(
        words(options.methods),
        words(options.pairs),
        parse_seeds(options.seeds),
        options.protocol,
        options.epochs,
        options.sample_rate,
        options.precision,
        tuple(parse_set(text) for text in options.overrides),
    )
    return expand(profile, selection, registries.read(protocols.get(options.protocol or profile.protocol)))


def run(options: Run) -> int:
    """The command. Returns an exit code. Raises UsageError for bad input, before anything is written."""
    started = time.monotonic()
    the_plan = make_plan(options)
    slurm = options.cluster == "slurm" or (options.cluster == "auto" and on_slurm())
    if options.cluster == "slurm" and not on_slurm():
        raise UsageError("--cluster slurm: no Slurm controller answers here (sinfo), or this is already a job of it; use --cluster local")
    check_known("engine", options.engine, ("auto", *engine.NAMES))
    if not slurm and not options.dry_run:
        engine.choose(options.engine, environment.select(options.device))  # refused, or compiled, before any job starts
    slots, device = slots_for(options, len(the_plan.groups)) if not slurm else ([Slot(None, options.threads or options.cpus)], None)
    root = options.data_folder
    results = options.results.absolute()
    options.results_there()
    keep_epochs = _kept(options, the_plan)
    named = [parse_teacher(text) for text in options.teacher]
    files = teacher_networks.given(named, the_plan.teachers, results, the_plan.protocol, root)
    dataset = None
    try:
        dataset = data.load(the_plan.protocol, root, options.download and not options.dry_run)
    except UsageError as error:
        if not options.dry_run:
            raise
        print(f"note: {error}\n      (what is already done cannot be told without the data)")
    book = Ledger(results, the_plan, dataset, options.redo, files, root)
    book.check_teachers()
    _refuse_unknown(options, book)
    kind = device["type"] if device else "cpu" if options.device == "cpu" else "cuda"
    left = forecast(the_plan, book, slots, device, kind)
    print(describe(the_plan, book, slots, device, "slurm" if slurm else "this machine", left))
    for warning in ledger.changed_sources(results, scan(results)[0]):
        say(f"warning: {warning}")
    if options.dry_run:
        return DONE
    execution = Execution(
        results=str(results),
        data_root=str(root.absolute()),
        device=kind,
        threads=options.threads,
        engine=options.engine,
        deterministic=options.deterministic,
        checkpoint_seconds=options.checkpoint_seconds,
        keep_epochs=keep_epochs,
    )
    _ask_first(options, left, jobs.on_cluster(options, the_plan, book, execution) if slurm else [], slurm)
    check_locks(next(place for place in (results, *results.parents) if place.exists()))
    if files:
        with others_cannot_write():
            teacher_networks.import_given(files, results, dataset, environment.select("auto" if slurm else options.device))
    if options.redo:
        if book.resumes_redo():
            print("an earlier --redo of some of these runs was stopped: this goes on with it, and with the runs that it did not cover")
        book.begin_redo()
    folder = fresh_folder(results)
    book.write_plan()
    if slurm:  # with the teachers at hand more may be known to be done
        return _submit(options, jobs.on_cluster(options, the_plan, book, execution), execution, folder)
    until = started + 60 * options.time_budget if options.time_budget is not None else None
    return _run_here(options, the_plan, book, execution, folder, slots, until)


def _kept(options: Run, the_plan: Plan) -> tuple[int, ...]:
    """The epochs whose weights are kept. Raises UsageError for one after the end."""
    epochs, last = parse_seeds(options.keep_epochs, "--keep-epochs"), the_plan.protocol.epochs
    if late := [epoch for epoch in epochs if epoch > last]:
        raise UsageError(f"--keep-epochs {late[0]}: training ends with epoch {last}; name epochs from 0 to {last}")
    return epochs


def slots_for(options: Run, groups: int) -> tuple[list[Slot], dict]:
    """The slots of this machine and the device's facts. Raises UsageError where the device asked for is not there.

    On the CPU the threads of a job follow from the whole plan, not from what is left of it: another count would be other bits.
    """
    chosen = environment.select(options.device)
    cores = usable_cores()
    if chosen.type == "cpu":
        count = max(1, min(groups, cores if options.threads is None else cores // options.threads))
        if options.threads is None and cores < groups < 2 * cores:
            count = groups  # all at once share the cores to the end; one after the other, the last would leave some idle
        return [Slot(None, options.threads or max(1, cores // count))] * count, environment.device_facts(chosen)
    names = visible_gpus()
    if options.device not in ("auto", "cuda"):
        names = [names[chosen.index]]
    count = len(names) * options.groups_per_gpu
    threads = options.threads or max(1, cores // count)
    return [Slot(name, threads) for _ in range(options.groups_per_gpu) for name in names], environment.device_facts(chosen)


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them (indices or UUIDs)."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(count)])[:count]


def _names(options: Run) -> list[str]:
    """The names of the devices that jobs of this machine may meet."""
    chosen = environment.select(options.device)
    whole = chosen.type == "cuda" and options.device in ("auto", "cuda")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if whole else [chosen]
    return list(dict.fromkeys(environment.device_facts(device)["name"] for device in devices))


def forecast(the_plan: Plan, book: Ledger, slots: list[Slot], device: dict | None, kind: str) -> Forecast:
    """What is left and how long it will take on a device of that kind (cpu or cuda), from measured costs where there are any."""
    todo, missing, threads = book.groups_left(), book.teachers_missing(), slots[0].threads
    known = estimate.load_costs(book.results, device["name"]) if device else {}
    macs = registries.read(the_plan.protocol).macs
    cost = estimate.training([(g, the_plan.needs_teacher(g), the_plan.before(g)) for g in todo], known, macs, kind, threads)
    trained = [Group(None, name, TEACHER_SEED, the_plan.teacher_protocol, the_plan.precision, ("student",)) for name in missing]
    own = estimate.training([(g, False, {}) for g in trained], known, macs, kind, threads)
    at_once = len(slots) if kind == "cuda" else min(len(slots), max(1, usable_cores() // threads))
    elapsed = estimate.spread(own.by_group, at_once) + max(estimate.spread(cost.by_group, len(slots)), cost.seconds / at_once)
    return Forecast(missing, todo, cost.by_group, own.seconds + cost.seconds, elapsed, cost.source or own.source, kind)


def _run_here(
    options: Run, the_plan: Plan, book: Ledger, execution: Execution, folder: Path, slots: list[Slot], until: float | None
) -> int:
    """Train, probe and report on this machine. Returns the launch's exit code."""
    ours: set[str | None] = set()

    def counted(run: str) -> bool | None:
        if run not in ours:  # one that needs a teacher has its id once that is there
            ours.update(book.runs().values())
        if run in ours:
            return True
        return False if f"-s{TEACHER_SEED}-" in run else None  # a teacher's, or of another plan

    show = Progress(book.results, book.counts, counted=counted, labels=book.labels)
    locks = book.results / "locks"

    def ended(task: Task) -> None:
        if not folder.exists():
            return  # the results folder was removed: it is not made anew for a plan
        if task.name.startswith("teacher-") or task.succeeded():
            _leave_plan(book, show.say)
        show.say(f"{task.name}: {'done' if task.succeeded() else 'ended, not all done'}")

    pool = Pool(slots, folder, locks, show.update, show.say)
    try:
        outcome = pool.run(jobs.teacher_tasks(the_plan, book, execution) + jobs.group_tasks(the_plan, book, execution), until, ended)
        show.update(force=True)
    finally:
        show.close()
    probed = Outcome()
    if not outcome.code and options.costs:
        alone = list({slot.gpu: slot for slot in slots}.values())  # one job on each device, nothing beside it
        pool = Pool(alone, folder / "costs", locks, show.update, show.say)
        execution = dataclasses.replace(execution, threads=alone[0].threads)  # as the pool will have it: costs are named by it
        try:
            probed = pool.run(jobs.probe_tasks(the_plan, execution, _names(options)), until, ended)
        finally:
            show.close()
    if not folder.exists():
        raise UsageError(f"{book.results} was removed while its runs were trained; nothing more was written")
    code, troubles = outcome.code or probed.code, book.troubles() | outcome.reasons() | probed.reasons()
    written = _leave_plan(book, print)
    done, planned = book.counts()
    if troubles:
        print("\n".join(table(sorted(troubles.items()), ("not finished", "reason"))))
    print(f"{done} of {planned} runs done in {book.results}")
    if code == INTERRUPTED:
        print("interrupted; the same command goes on from here")
        return code
    if code == STOPPED_IN_TIME:
        print("time budget used up; the same command goes on from here")
    if options.redo and not code:
        jobs.end_redo(book)
    reported = jobs.write_report(execution)
    return code or (reported if done == planned and written and not probed.unfinished else TROUBLE)


def _leave_plan(book: Ledger, tell: Callable[[str], None]) -> bool:
    """Leave plan.json as far as the runs are known now. False, with a warning, where that cannot be written: no reason to end what runs."""
    try:
        book.write_plan()
    except UsageError as error:
        tell(f"warning: {error}")
        return False
    return True


def _submit(options: Run, tasks: list[Task], execution: Execution, folder: Path) -> int:
    """Submit everything to Slurm and return."""
    if not tasks:
        return jobs.write_report(execution)
    for name, job in submit_slurm(tasks, options, 0 if execution.device == "cpu" else 1, folder).items():
        print(f"  {job}  {name}")
    print("submitted; see `squeue --me` and `python -m bench status`; the report is written by the last job")
    return DONE


def _refuse_unknown(options: Run, book: Ledger) -> None:
    """--redo marks runs by their ids, which a missing teacher's students do not have. Raises UsageError where there are such runs."""
    missing = book.teachers_missing() if options.redo else ()
    ours = (book.plan.protocol, book.plan.precision)
    here = {view.teacher for view in scan(book.results)[0] if view.status == "done" and (view.protocol, view.precision) == ours} if missing else ()
    for name in missing:
        if name in here:
            raise UsageError(
                f"--redo: runs that learnt from a {name} teacher are here and the teacher is not, so that nobody knows which of them this plan "
                "means; train it by a launch without --redo, or give it with --teacher, then say --redo"
            )


def _ask_first(options: Run, left: Forecast, tasks: list[Task], slurm: bool) -> None:
    """The questions before anything is started or marked. Raises UsageError where the answer to one is no."""
    if not slurm:
        _refuse_days(options, left)
        return
    if options.redo and not options.yes:
        _ask("Train these runs again on Slurm? The old results stay until the new ones are there.", "add --yes")
    if tasks and not options.yes:
        _ask(f"Submit {len(tasks)} jobs to Slurm?", "add --yes")


def _refuse_days(options: Run, left: Forecast) -> None:
    """A run that nobody named and that takes days is asked for first. Raises UsageError."""
    if options.profile is None and left.elapsed > DAY and not (options.yes or options.time_budget):
        question = f"the paper profile takes about {duration(left.elapsed)} here. Start it?"
        _ask(question, "start it with --profile paper; --profile smoke takes minutes")


def _ask(question: str, otherwise: str) -> None:
    """Raises UsageError where the answer is no, or nobody is there to ask."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question.rstrip('?')}? Nobody is there to ask; {otherwise}")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl-D
        print()
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was started")
