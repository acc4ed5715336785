"""`completion`: a script with which bash or zsh completes the commands of kd-bench and their options."""

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_type_hints

import tyro

from bench.commands import COMMANDS
from bench.plan import names
from bench.plan.profiles import ALL_PAIRS, PROFILES

VALUES = {
    "--profile": sorted(PROFILES),
    "--methods": sorted(names.methods()),
    "--pairs": [pair.name for pair in ALL_PAIRS],
    "--architecture": list(names.networks()),
}


@dataclass(frozen=True)
class Completion:
    """Print a script that completes commands and options: source it, as in `source <(kd-bench completion bash)`."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Of which shell."""

    def main(self) -> int:
        print(script(self.shell))
        return 0


def flags(name: str) -> list[str]:
    """The options of a command as they are typed."""
    module, _, kind = COMMANDS[name].options.partition(":")
    options = getattr(import_module(module), kind)
    hints = get_type_hints(options, include_extras=True)
    found = ["--help"]
    for field in dataclasses.fields(options):
        marks = getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Positional in marks or any("Positional" in str(mark) for mark in marks):
            continue
        given = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name)
        flag = f"--{given.replace('_', '-')}"
        found += [flag, f"--no-{flag[2:]}"] if hints[field.name] is bool else [flag]
    return found


def script(shell: str) -> str:
    """The script: words by what stands before the cursor."""
    cases = [f'        "{name}") words="{" ".join(flags(name))}" ;;' for name in COMMANDS]
    values = [f'        {flag}) words="{" ".join(words)}" ;;' for flag, words in VALUES.items()]
    first = " ".join(dict.fromkeys(name.split()[0] for name in COMMANDS))
    after: dict[str, str] = {}  # the second words of each first one
    for before, word in (name.split() for name in COMMANDS if " " in name):
        after[before] = f"{after[before]} {word}" if before in after else word
    seconds = " ".join(after.values())
    lines = [
        *(["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []),
        "_kd_bench() {",
        '    local words="" command="${COMP_WORDS[1]}" current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        f'    case " {seconds} " in *" ${{COMP_WORDS[2]}} "*) command="$command ${{COMP_WORDS[2]}}" ;; esac',
        '    case "$command" in',
        *cases,
        "    esac",
        '    case "$before" in',
        *values,
        "    esac",
        f'    [ "$COMP_CWORD" = 1 ] && words="{first}"',
        *(f'    [ "$COMP_CWORD" = 2 ] && [ "${{COMP_WORDS[1]}}" = {before} ] && words="{words} $words"' for before, words in after.items()),
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -F _kd_bench kd-bench",
    ]
    return "\n".join(lines)
