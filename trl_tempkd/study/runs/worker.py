# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Cells one after the other: `python -m trl_tempkd.study.runs.worker`, which reads their folders from its input, a JSON
string a line, and answers each with an exit status.

Every cell is a process of its own, a fork of this one, which has imported all that a cell needs and does nothing else.
So the import is paid once, and nothing of a cell can reach the next.
"""

import importlib
import importlib.util
import json
import os
from pathlib import Path

from ...processes import end_with_input, fork, uncollected
from .work import run


# What a cell imports as it goes; accelerate takes DeepSpeed along where it is installed
USED = ("trl", "accelerate.commands.launch", "transformers.models.llama.modeling_llama")
OURS = ("trl_tempkd.trainer", "trl_tempkd.study.runs.measure", "trl_tempkd.study.one_model")
OPTIONAL = ("deepspeed",)


def main() -> int:
    """Runs cells until the input ends. Returns the exit status: in a fork, that of its cell."""
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing but answers goes there
    with uncollected():
        for name in (*USED, *OURS, *filter(importlib.util.find_spec, OPTIONAL)):
            importlib.import_module(name)
    while line := read_line():
        folder = Path(json.loads(line))
        child = fork()
        if not child:
            os.close(answers)
            return run_here(folder)
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def read_line() -> bytes:
    """A line of the input, byte by byte: what a buffer holds, a fork would have too."""
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line


def run_here(folder: Path) -> int:
    """Run the cell of a folder in this process, what it prints going to `output.log`."""
    log = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    end_with_input()  # the input is silent while a cell runs, and ends with whoever started the worker
    return run(folder / "cell.json")


if __name__ == "__main__":
    raise SystemExit(main())
