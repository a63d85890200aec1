# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a person waits for before the first step of the tiny recipe, here and at another revision of this repository.

    python benchmarks/start.py --before main~20 --rounds 5

A run starts with its command and ends with the first loss that it logs: the imports, the checks, data and models, and
one optimizer step. Each round takes every command at both revisions, one after another, so that a busy machine is as
busy for both. The processor's seconds are those of all processes that the command starts.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

from trl_tempkd.command_line import positive


ROOT = Path(__file__).parents[1]
RUN = "--config recipes/tiny/distill.yaml --logging_steps 1 --output_dir"
COMMANDS = {
    "trl-tempkd distill": ["-m", "trl_tempkd", "distill"],
    "accelerate launch examples/distill.py": [
        *"-m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no".split(),
        *"--dynamo_backend no examples/distill.py".split(),
    ],
    "trl-tempkd --help": ["-m", "trl_tempkd", "--help"],
    "trl-tempkd distill --help": ["-m", "trl_tempkd", "distill", "--help"],
}


def seconds_of(arguments: list[str], folder: Path, output: Path) -> tuple[float, float]:
    """Wall and processor's seconds until a command logs its first loss, or ends."""
    training = "--help" not in arguments
    command = [sys.executable, *arguments, *(f"{RUN} {output}".split() if training else [])]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = []
        for line in process.stdout or []:
            said.append(line)
            if training and "'loss'" in line:
                wall, spent = time.perf_counter() - start, spent_by(psutil.Process(process.pid))
                stop(process)
                return wall, spent
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if training or process.returncode:
            raise SystemExit(f"{' '.join(command)} in {folder} ended before its first step:\n{''.join(said)}")
        return time.perf_counter() - start, used.ru_utime + used.ru_stime


def spent_by(process: psutil.Process) -> float:
    """The processor's seconds of a process and of all below it, those that have ended included."""
    return sum(sum(each.cpu_times()[:4]) for each in [process, *process.children(recursive=True)])


def stop(process: subprocess.Popen) -> None:
    for each in psutil.Process(process.pid).children(recursive=True):
        each.kill()
    process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="git revision to compare with (default: none)")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds, of which the median counts (default: 3)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="default: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"here": ROOT}
        if args.before:
            folders["before"] = Path(scratch, "before")
            unpack(args.before, folders["before"])
        found = measure(folders, args.commands, args.rounds, Path(scratch, "output"))
    print(json.dumps({"machine": machine(), "before": args.before, "rounds": args.rounds, **found}, indent=1))


def unpack(revision: str, folder: Path) -> None:
    """Write the files of a revision of this repository to a folder."""
    archive = subprocess.run(["git", "archive", "--format=tar", revision], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(f"--before {revision}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def measure(folders: dict[str, Path], names: list[str], rounds: int, output: Path) -> dict:
    """Medians over the rounds, and the median of the ratios within a round."""
    times: dict[str, dict[str, list]] = {name: {where: [] for where in folders} for name in names}
    for number in range(rounds):
        for name in names:
            for where, folder in folders.items():
                times[name][where].append(seconds_of(COMMANDS[name], folder, output / f"{where}-{number}"))
    found = {}
    for name in names:
        found[name] = {
            where: {kind: round(median(run[k] for run in runs), 2) for k, kind in enumerate(("wall_s", "cpu_s"))}
            for where, runs in times[name].items()
        }
        if "before" in folders:
            pairs = list(zip(times[name]["here"], times[name]["before"], strict=True))
            found[name]["ratio"] = {
                kind: round(median(here[k] / before[k] for here, before in pairs), 2)
                for k, kind in enumerate(("wall", "cpu"))
            }
    return found


def machine() -> dict:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": version("torch"),
    }


if __name__ == "__main__":
    main()
