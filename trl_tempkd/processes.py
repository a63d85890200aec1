# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Processes that end with whoever started them, and commands that end with a line when they are told to stop."""

import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any


LAUNCHER = "TRL_TEMPKD_LAUNCHER"  # environment variable: the id of the process that has started this one to train
VERBOSITY = "TRL_TEMPKD_VERBOSITY"  # environment variable: `quiet`, `verbose`, or not set
# By their programs and by their modules, as `python -m` starts them
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "deepspeed", "trl-tempkd", "trl_tempkd"}
_LAUNCHERS |= {"accelerate.commands.launch", "torch.distributed.run", "deepspeed.launcher.launch"}
_SECONDS = 0.5  # between two looks at the parent

_watched: int | None = None  # the process that has been seen to already: this one, or the one that it is a fork of


class Stopped(KeyboardInterrupt):
    """A signal told this process to stop. What tidies up after Ctrl-C does so after any of them."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(error: KeyboardInterrupt) -> int:
    """The exit status that a shell gives to a process that a signal has ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def say_stopped(prog: str, error: KeyboardInterrupt, again: str = "") -> int:
    """Say on one line that a command was told to stop, and what the same command does `again`. Returns its status."""
    how = f"stopped by {error}" if isinstance(error, Stopped) and error.number != signal.SIGINT else "interrupted"
    start = "\n" if sys.stderr.isatty() else ""  # behind the terminal's ^C
    print(f"{start}{prog}: {how}" + (f"; {again}" if again else ""), file=sys.stderr)
    return status_of(error)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """
    A library that handles signals for itself when it starts, as Ray does, has given them back at the end. A fork that
    ends inside keeps its own.
    """
    here = os.getpid()
    ours = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = {number: signal.getsignal(number) for number in signal.valid_signals() if ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: one that isn't Python's
            if handler is not None and signal.getsignal(number) is not handler and os.getpid() == here:
                signal.signal(number, handler)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """
    Inside, SIGTERM and SIGHUP raise [`Stopped`], as Ctrl-C raises `KeyboardInterrupt`. One that is ignored, as SIGHUP
    is under `nohup`, or that somebody handles already is left alone.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with handlers_kept():
        for number in [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]:
            if signal.getsignal(number) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
                signal.signal(number, stop)
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """
    Inside, nothing is looked through for garbage: the import of large libraries makes none, and takes a third less.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@cache  # counting what is left alone would take as long as a look at it
def freeze() -> None:
    """Have the garbage collector leave alone what is there, the first time: a look at all takes the time of a step."""
    gc.freeze()


def may_fork() -> bool:
    """
    Whether a fork of this process can go on with what is imported here: nowhere but on Linux do all libraries allow
    it, and a thread of Python's is missing in a fork, with what it holds.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def fork() -> int:
    """
    `os.fork`, which warns of threads from Python 3.12 on. Those that are here belong to OpenBLAS and jemalloc, which
    see to forks themselves; Python has no other than this one.
    """
    freeze()  # collecting in a fork would copy all of it
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return os.fork()


def run_in_fork(work: Callable[[], object], environment: dict[str, str]) -> int:
    """
    Do work in a fork of this process, in an environment of its own.

    Returns:
        `int`: The fork's exit status, or the signal that has ended it as a negative number. In the fork this doesn't
            return: it ends as a program would, by `SystemExit`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number in (signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):  # of `stopped_by_signals`: it is the other process that says so
            signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    try:
        work()
    except KeyboardInterrupt:  # the other process says so
        sys.exit(128 + signal.SIGINT)
    except Exception:  # said here: nobody who calls this is to see it
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    sys.exit(0)


def quiet_on_cpu() -> None:
    """Before it is imported: DeepSpeed warns wherever there is no GPU, be it used or not."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


@contextmanager
def quiet_when_interrupted() -> Iterator[None]:
    """
    In one of many processes: Ctrl-C ends it without a word, as whoever started it says what there is to say.

    The first process that goes takes away what the others wait for, and so what they end with may be any error.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:  # a terminal sends it to all processes, and the launcher hands it on to them once more
            interrupted = True
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException:
        if not interrupted:
            raise
        sys.exit(128 + signal.SIGINT)


def end_with_input() -> None:
    """
    End this process, and those below it, when whoever holds the other end of its input is gone, killed or not.
    """
    _end_when(lambda: os.read(0, 1))  # not through sys.stdin, whose lock a process cannot end with


def end_with_launcher() -> None:
    """
    End this process, and those below it, when the launcher that has started it is gone, killed or not: that of
    `trl-tempkd`, which says who it is, or one that is known by its name, as `accelerate launch` and `torchrun`. It
    ends without a word, also by an error: the first process that goes takes away what the others wait for.

    Any other parent may go: a shell that was left, or a scheduler that ends its jobs itself.
    """
    global _watched
    told = os.environ.pop(LAUNCHER, None)  # not for those that this process starts
    if _watched == os.getpid():
        return
    _watched = os.getpid()
    launcher = _known_launcher() if told is None else int(told)
    if launcher is not None:
        _end_when(lambda: _wait_for(launcher))
        sys.excepthook = partial(_say_unless_alone, launcher, sys.excepthook)


def pass_on(error: KeyboardInterrupt) -> None:
    """
    Tell the processes that this one has started to stop, as it was told itself, and wait until they have. Those that
    are left below them then are killed; a second Ctrl-C, or any signal that raises, kills them all at once.
    """
    import psutil

    below, started = descendants(), psutil.Process().children()
    try:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(status_of(error) - 128)
        psutil.wait_procs(started)
    finally:
        kill(below)


def _known_launcher() -> int | None:
    """The parent, if it is a launcher."""
    import psutil

    parent = os.getppid()
    try:
        words = psutil.Process(parent).cmdline()
    except psutil.Error:  # gone, or not ours to look at
        return None
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    program = next((Path(word).name for word in words if not word.startswith("-")), None)
    return parent if program in _LAUNCHERS else None


def _wait_for(parent: int) -> None:
    while os.getppid() == parent:  # another one takes its children over
        time.sleep(_SECONDS)


def _say_unless_alone(launcher: int, say: Callable[..., object], *error: Any) -> None:
    if os.getppid() != launcher:
        _end()
    say(*error)


def _end_when(gone: Callable[[], object]) -> None:
    def watch() -> None:
        gone()
        _end()

    threading.Thread(target=watch, daemon=True).start()


def _end() -> None:
    try:
        kill(descendants())
    finally:
        os._exit(1)


def descendants() -> list:
    """The processes below this one, of class `psutil.Process`."""
    import psutil

    return psutil.Process().children(recursive=True)


def kill(processes: list) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
