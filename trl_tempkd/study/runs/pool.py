# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Runs cells, each in a process of its own: on this machine or on a Ray cluster. Sweeps and studies use it alike."""

import json
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError, UsageImportError
from ...extensions import IMPORTS
from ...files import write_atomically
from ...processes import handlers_kept
from .cell import Cell, error_file
from .processes import ForkingProcess, OwnProcess
from .work import BUSY, DONE, FAILED, UNWRITABLE, claim


# Gives the name of the next cell whenever there is room for one, or `None` where there is none to start now
Take = Callable[[], str | None]


def run_cell(results_dir: str, name: str, process: OwnProcess) -> int:
    """
    Run a cell in a process of its own, what it prints going to `RESULTS_DIR/NAME/output.log`. The process ends with
    this one.

    Returns:
        `int`: `DONE`, `FAILED` (`RESULTS_DIR/NAME.error.txt` says why) or `BUSY` (another process runs it).

    Raises:
        [`UsageError`]: If the disk takes no more. That is no result, of whatever cell.
    """
    results, folder = Path(results_dir), Path(results_dir, name)
    with claim(folder) as free:  # spares the start of a process, which looks again
        if not free:
            return BUSY
    error = error_file(results, name)
    error.unlink(missing_ok=True)
    status = process.run(folder)
    if status in (DONE, BUSY):
        return status
    said = (folder / "output.log").read_text(encoding="utf-8", errors="replace").rstrip()
    if status == UNWRITABLE:
        last = said.rpartition("\n")[2]
        why = last if last.startswith("cannot write") else f"cannot write to {folder}, is the disk full?"
        raise UsageError(f"{name}: {why}; the same command goes on where it stopped")
    if not error.exists() and not process.stopped:
        text = f"The process of the cell ended with exit status {status}. Its last output:\n\n{said[-4000:]}\n"
        write_atomically(error, text)
    return FAILED


@dataclass(frozen=True)
class Launcher:
    """
    Where cells run.

    Args:
        kind (`str`):
            `local`, this machine, or `ray`, an existing cluster, which is filled.
        workers (`int`):
            Cells at a time on this machine.
        gpus (`float`, *optional*):
            The GPUs of a cell, or its share of one. If left out, on this machine one where there is one.
    """

    kind: str = "local"
    workers: int = 1
    gpus: float | None = None

    def run(self, take: Take, results_dir: Path) -> Iterator[tuple[str, int]]:
        """Run the cells that `take` gives. Yields their names and how they ended."""
        if self.kind == "ray":
            return run_ray(take, results_dir, self.gpus or 0)
        return run_local(take, results_dir, self.workers, _gpus_here() if self.gpus is None else self.gpus)

    def said(self, left: int) -> str:
        """In words, how many of those that are left run."""
        return f"{left} left" if self.kind == "ray" else f"{min(left, self.workers)} running"


def _gpus_here() -> float:
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def run_local(take: Take, results_dir: Path, workers: int, gpus_per_cell: float) -> Iterator[tuple[str, int]]:
    """
    Run cells on this machine, `workers` at a time, each on its own GPU. Yields their names and how they ended; what
    has ended is yielded before the next cell is taken.
    """
    forks = not gpus_per_cell and sys.platform == "linux"  # elsewhere a fork of what has threads isn't safe
    kind = ForkingProcess if forks else OwnProcess
    processes = [kind(os.getcwd(), share_of_machine(worker, workers, gpus_per_cell)) for worker in range(workers)]
    slots: queue.Queue[OwnProcess] = queue.Queue()
    for process in processes:
        slots.put(process)

    def run(name: str) -> tuple[str, int]:
        process = slots.get()
        try:
            return name, run_cell(str(results_dir), name, process)
        finally:
            slots.put(process)

    pool = ThreadPoolExecutor(workers)
    running: set[Future[tuple[str, int]]] = set()
    try:
        while True:
            while len(running) < workers and (name := take()) is not None:
                running.add(pool.submit(run, name))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.stop()
        while not all(future.done() for future in running):  # interrupted: a cell may have begun meanwhile
            time.sleep(0.1)
            for process in processes:
                process.stop()


def share_of_machine(worker: int, workers: int, gpus_per_cell: float) -> dict[str, str]:
    """The share of this machine that a worker's cells have: processor cores, unless these are set, and a GPU."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    found = {"OMP_NUM_THREADS": threads}
    if not gpus_per_cell:
        return found
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        gpus = [str(number) for number in range(torch.cuda.device_count())]
    else:
        gpus = [part for part in visible.split(",") if part]
    if workers * gpus_per_cell > len(gpus):
        raise UsageError(
            f"{workers} workers with {gpus_per_cell:g} GPUs per cell need {workers * gpus_per_cell:g} GPUs, got "
            f"{len(gpus)}. Give fewer --workers, or let cells share a GPU, as with --gpus_per_cell 0.5."
        )
    return {**found, "CUDA_VISIBLE_DEVICES": gpus[int(worker * gpus_per_cell)]}


def run_ray(take: Take, results_dir: Path, gpus_per_cell: float) -> Iterator[tuple[str, int]]:
    """Run cells on an existing Ray cluster, as many at a time as it has room for. The results' folder is shared."""
    ray = import_ray()
    if not ray.is_initialized():
        try:
            with handlers_kept():  # its own ends the sweep without a line
                ray.init(address="auto", log_to_driver=False)
        except ConnectionError as error:
            raise UsageError(
                "There is no Ray cluster to connect to: start one with `ray start --head`, or set RAY_ADDRESS."
            ) from error
    task = ray.remote(num_cpus=1, num_gpus=gpus_per_cell, max_retries=0)(run_cell)
    imports = {IMPORTS: os.environ[IMPORTS]} if IMPORTS in os.environ else {}
    process = OwnProcess(os.getcwd(), imports)  # a worker of Ray is somewhere else
    running: dict[Any, str] = {}
    try:
        while True:
            while (taken := take()) is not None:
                running[task.remote(str(results_dir), taken, process)] = taken
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                name = running.pop(reference)
                try:
                    yield name, ray.get(reference)
                except ray.exceptions.RayError as error:  # a worker or a machine that died
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, UsageError):
                        raise cause from error
                    write_atomically(error_file(results_dir, name), f"{error}\n")
                    yield name, FAILED
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageImportError(
            "--launcher ray needs Ray: pip install '.[ray]' where you installed trl_tempkd from."
        ) from error
    return ray


def prepare(cell: Cell, results_dir: Path) -> None:
    """Write what the process of a cell reads, unless a process is running it already."""
    with claim(results_dir / cell.name) as free:
        if free:
            write_atomically(results_dir / cell.name / "cell.json", json.dumps(cell.settings, indent=1))


def wait_until_free(names: list[str], results_dir: Path, seconds: float = 2.0) -> None:
    """Wait for another process to leave one of these cells, finished or not."""
    while names:
        for name in names:
            with claim(results_dir / name) as free:
                if free:
                    return
        time.sleep(seconds)
