# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Processes that run cells: one that a cell has to itself from its start, and one that forks itself for every cell."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO


def _launch(
    command: list[str], working_dir: str, environment: dict[str, str] | None, out: IO[str] | int, log: IO[str]
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=working_dir,
        env={**os.environ, **(environment or {})},
        bufsize=0,
        stdin=subprocess.PIPE,  # closed when this process ends, and the other ends with it
        stdout=out,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the other
    )


class OwnProcess:
    """
    Starts a process for every cell. It ends with this one.

    Args:
        working_dir (`str`):
            Where paths in the recipe start.
        environment (`dict[str, str]`, *optional*):
            Variables that it has beside the ones of this process.
    """

    process: "subprocess.Popen[bytes] | None" = None
    stopped = False  # whether its cells are wanted no more

    def __init__(self, working_dir: str, environment: dict[str, str] | None = None):
        self.working_dir = working_dir
        self.environment = environment

    def run(self, folder: Path) -> int:
        """Run the cell of this folder, what it prints going to `output.log`. Returns its exit status."""
        with (folder / "output.log").open("w", encoding="utf-8") as log:
            command = ["trl_tempkd.study.runs.work", str(folder / "cell.json")]
            self.process = _launch(command, self.working_dir, self.environment, out=log, log=log)
        try:
            return self.process.wait()  # meanwhile the pipe says that somebody waits
        finally:
            self.close()

    def close(self) -> None:
        """End the process, if there is one, and with it the cell that it runs."""
        process, self.process = self.process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()  # it ends with its input
            process.wait()

    def stop(self) -> None:
        """End the process for good: a cell that it was running is interrupted, and hasn't failed."""
        self.stopped = True
        self.close()


class ForkingProcess(OwnProcess):
    """
    Starts one process, which imports what cells need and then forks itself for every cell. The cells are apart as with
    [`OwnProcess`], without its seconds of importing. Not for cells on a GPU: CUDA does not survive a fork.
    """

    def run(self, folder: Path) -> int:
        (folder / "output.log").write_text("", encoding="utf-8")
        if self.process is None:
            with (folder / "output.log").open("a", encoding="utf-8") as log:
                command = ["trl_tempkd.study.runs.worker"]
                self.process = _launch(command, self.working_dir, self.environment, out=subprocess.PIPE, log=log)
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{json.dumps(str(folder))}\n".encode())
            answer = process.stdout.readline()
        except (OSError, ValueError):  # it is gone, or its pipe is closed, between two cells
            answer = b""
        if answer:
            return int(answer)
        self.close()  # the next cell has a new process
        return process.wait() or 1

    def close(self) -> None:
        process = self.process
        super().close()  # a fork has the same input, and ends with it too
        if process is not None and process.stdout is not None:
            process.stdout.close()
