# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Processes that train, each a fork of one that has imported the libraries: they start at once, where by themselves they
import for ten seconds. Those that train together see the environment that `accelerate launch` gives them.
"""

import json
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate.utils.other import get_free_port

from trl_tempkd.commands import rank
from trl_tempkd.compat import launch_command, launch_command_parser
from trl_tempkd.launch import quiet_elastic, resolve_config
from trl_tempkd.processes import LAUNCHER, handlers_kept


TIMEOUT = 900  # seconds that a run may take on a machine that others use
LAUNCHED = ("ACCELERATE_", "FSDP_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")  # what a launcher says
TWO = "--num_processes 2 --num_machines 1 --dynamo_backend no --mixed_precision no --main_process_port 0".split()
SHOW = """
import json, os, sys
with open(f"{sys.argv[1]}/environment_of_{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump(dict(os.environ), file)
"""


def launched(options: list[str], folder: Path) -> list[dict[str, str]]:
    """What `accelerate launch` with these options has each of two processes see."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "show.py").write_text(SHOW)
    with patch.dict(os.environ, inherited(), clear=True), handlers_kept():
        quiet_elastic()
        command = [*TWO, *resolve_config(options), str(folder / "show.py"), str(folder)]
        launch_command(launch_command_parser().parse_args(command))
    # The store of that launcher is gone with it
    own = {"MASTER_PORT": str(get_free_port()), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return [{**json.loads(path.read_text()), **own} for path in sorted(folder.glob("environment_of_*.json"))]


def inherited() -> dict[str, str]:
    """The environment of a process that trains alone."""
    device = os.environ.get("KD_DEVICE", "cpu")  # test_gpu.py asks for another one
    here = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    return {**here, "KD_DEVICE": device, "DS_ACCELERATOR": device, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def begin(variables: dict[str, str], log: str, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    """In a fork: what it prints goes to a file, and it ends with the process that it is a fork of."""
    with open(log, "a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(variables | {LAUNCHER: str(os.getppid())})
    work(*args)


def run(work: Callable[..., object], args: tuple[Any, ...], environments: list[dict[str, str]], log: Path) -> int:
    """
    Do the work in a process for each of these environments. What they print is added to `log`. Returns the exit
    status of the first one that failed, or 0.
    """
    # A GPU's driver doesn't go on in a fork, and outside of Linux not all libraries do
    forks = sys.platform == "linux" and inherited()["KD_DEVICE"] == "cpu"
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload(["imported"])
    processes = [context.Process(target=begin, args=(seen, str(log), work, args)) for seen in environments]
    # Of the process that is forked, when it starts. It looks where Python does for what to import
    with patch.dict(os.environ, {**inherited(), "PYTHONPATH": os.pathsep.join(sys.path)}, clear=True):
        for process in processes:
            process.start()
    until, status = time.monotonic() + TIMEOUT, 0
    try:
        while not status and (left := [process.sentinel for process in processes if process.is_alive()]):
            assert wait(left, until - time.monotonic()), f"no end after {TIMEOUT} seconds:\n{log.read_text()[-5000:]}"
            status = next((process.exitcode for process in processes if process.exitcode), 0)
    finally:
        for process in processes:  # the other one waits for the one that has failed
            process.terminate()
            process.join(30)
            process.kill()
    return status


def command(
    name: str, options: list[str], folder: Path, processes: int = 2, config: str = "multi_gpu"
) -> tuple[int, str]:
    """`trl-tempkd NAME OPTIONS` in one process or in two: its exit status, and what it has printed."""
    folder.mkdir(parents=True, exist_ok=True)
    environments = [inherited()] if processes == 1 else launched(["--accelerate_config", config], folder)
    (folder / "log").write_text("")
    status = run(rank.main, (name, options), environments, folder / "log")
    return status, (folder / "log").read_text(errors="replace")


def script(path: str, options: list[str], log: Path) -> tuple[int, str]:
    """`python PATH OPTIONS` in the repository: its exit status, and what it has printed."""
    status = run(program, (path, options), [inherited()], log)
    return status, log.read_text(errors="replace")


def program(path: str, options: list[str]) -> None:
    os.chdir(Path(__file__).parent.parent)
    sys.argv = [path, *options]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")
