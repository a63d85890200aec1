# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is read out of documents: blocks of code, and commands, which are parsed as the command line would."""

import re
import shlex
from pathlib import Path

from trl_tempkd.cli import COMMANDS
from trl_tempkd.commands import cache, diagnose, distill, evaluate, report, student, sweep, tune


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^[ ]*```{language}\n(.*?)^[ ]*```", text, flags=re.DOTALL | re.MULTILINE)


def commands_in(text: str) -> list[list[str]]:
    """The lines that start a command of ours, with those that go on behind a backslash."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"^\s*((?:trl-tempkd|accelerate launch) .*)$", joined, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def check_command(command: list[str]) -> None:
    """Parse a command in the present folder, with its recipe."""
    if command[0] == "accelerate":
        arguments = command[command.index("examples/distill.py") + 1 :]
    elif command[1] == "distill":
        arguments = command[2:]
    elif command[1] == "cache":
        values, _, _ = cache.make_parser().parse([*command[2:], "--use_cpu", "--bf16", "false"])
        assert values[0].output
        return
    elif command[1] == "evaluate":
        evaluate.make_parser().parse_here(command[2:])
        return
    elif command[1] == "diagnose":
        diagnose.make_parser().parse_here(command[2:])
        return
    elif command[1] == "student":
        assert student.make_parser().parse_args(command[2:]).output
        return
    elif command[1] == "report":
        assert report.make_parser().parse_args(command[2:]).results_dirs
        return
    elif command[1] == "sweep":
        assert Path(sweep.make_parser().parse_args(command[2:]).config).is_file()
        return
    elif command[1] == "tune":
        assert Path(tune.make_parser().parse_args(command[2:]).config).is_file()
        return
    else:
        assert command[1] in {"COMMAND", *(each.name for each in COMMANDS)}, command
        return
    # No value of it may change what is read, but this machine may have no GPU.
    _, for_launch, _ = distill.make_parser().parse([*arguments, "--use_cpu", "--bf16", "false"])
    assert not for_launch or command[0] != "accelerate"
