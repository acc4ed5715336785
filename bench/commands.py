"""The table of commands. A command is added by one entry; its class, a frozen dataclass with `main() -> exit code`, stands beside its code."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Command:
    """Where a command's options are ("module:Class"), what it does, and the function that takes them; none: their `main`."""

    options: str
    summary: str
    function: str = ""


COMMANDS = MappingProxyType(
    {
        "run": Command("bench.launch.options:Run", "train what is missing of a profile, measure costs, write the report", "bench.launch.run:run"),
        "status": Command("bench.launch.status:Status", "what is done, running, failed"),
        "teachers": Command("bench.train.teacher_commands:Teachers", "list the teachers at hand"),
        "teachers import": Command("bench.train.teacher_commands:TeachersImport", "bring in a trained teacher from a file"),
        "teachers train": Command("bench.train.teacher_commands:TeachersTrain", "train one teacher"),
        "data fetch": Command("bench.train.data_commands:DataFetch", "get CIFAR-100, and nothing else"),
        "data check": Command("bench.train.data_commands:DataCheck", "whether the files of CIFAR-100 are whole"),
        "export": Command("bench.train.export:Export", "write a finished run's student to take away: weights, and a card that says what they are"),
        "prepare": Command("bench.train.prepare:Prepare", "build what a method prepares from a teacher, and print its figures"),
        "analyse": Command("bench.analysis.frame.commands:Analyse", "ask trained networks what they know: see analyses"),
        "analyses": Command("bench.analysis.frame.commands:Analyses", "list the analyses: what each asks and needs"),
        "doctor": Command("bench.doctor:Doctor", "what is wrong with data, devices, disk, records, and the command that mends it"),
        "speed": Command("bench.measure.speed:Speed", "step times for each engine, precision and pair here, and the hours for the whole table"),
        "equivalence": Command("bench.measure.equivalence:Equivalence", "whether a faster precision may stand in for a slower one"),
        "report": Command("bench.report.command:Report", "print and write the tables, figures and page of a results folder"),
        "nightly": Command("bench.nightly.command:Nightly", "a fixed small plan against its history; exits 1 on a regression"),
        "tensorboard": Command("bench.report.tensorboard:Tensorboard", "write the epochs of runs as TensorBoard event files"),
        "methods": Command("bench.measure.method_pages:Methods", "list the methods, or say what one is, needs and adds"),
        "new method": Command("bench.plan.new:NewMethod", "write a file that a method of your own can begin with"),
        "pairs": Command("bench.plan.listing:Pairs", "list the declared pairs and the networks"),
        "profiles": Command("bench.plan.listing:Profiles", "list the profiles and protocols"),
        "completion": Command("bench.completion:Completion", "print a script with which a shell completes commands and options"),
    }
)


def overview() -> str:
    """What `python -m bench` alone prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "A benchmark suite for knowledge distillation on CIFAR-100.",
            "",
            "usage: python -m bench COMMAND [OPTIONS], or kd-bench COMMAND [OPTIONS]; COMMAND --help lists the options",
            "       python -m bench.report RESULTS is python -m bench report RESULTS",
            "",
            *lines,
            "",
            "first steps:",
            "  python -m bench run --profile smoke                      everything once, in minutes, without a GPU or data",
            "  python -m bench run --profile paper --dry-run            what Table 1 takes on this machine",
            "  python -m bench run --pairs resnet56-resnet20 --seeds 1  one pair, one seed",
        ]
    )
