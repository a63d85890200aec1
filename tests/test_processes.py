# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Processes end with whoever started them, told or killed, and say one line at most."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from datasets import Dataset, DatasetDict
from ranks import launched, run
from standins import save_pair

from trl_tempkd import caching, cli, launch, processes
from trl_tempkd.commands import cache, distill, rank
from trl_tempkd.processes import LAUNCHER, Stopped, stopped_by_signals


ROOT = Path(__file__).parent.parent
SECONDS = 45  # that a process may take to end

# A launcher, its worker, and what that has started; each writes its id
LAUNCH = """
import os, subprocess, sys, time
if {told}:
    os.environ["TRL_TEMPKD_LAUNCHER"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", '''{worker}'''])
time.sleep(60)
"""
WORKER = """
import os, subprocess, sys, time
from trl_tempkd.processes import end_with_launcher
end_with_launcher()
assert "TRL_TEMPKD_LAUNCHER" not in os.environ
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), below.pid, flush=True)
time.sleep(60)
"""


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def all_end(below: list[psutil.Process], seconds: float = SECONDS) -> bool:
    """Whether all of these end by themselves. They are gone afterwards in any case."""
    until = time.monotonic() + seconds
    while not all(map(gone, below)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [process for process in below if not gone(process)]
    processes.kill(left)
    return not left


@pytest.mark.parametrize(
    ("program", "told", "ends"),
    [("any.py", True, True), ("accelerate", False, True), ("shell.py", False, False)],
)
def test_a_worker_ends_with_a_launcher(program, told, ends, tmp_path):
    """With ours, which says who it is, and with others, by their names; not with a shell that somebody leaves."""
    (tmp_path / program).write_text(LAUNCH.format(told=told, worker=WORKER))
    line = [sys.executable, "-u", str(tmp_path / program), "torchrun"]  # an argument isn't what is run
    parent = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    below = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(below) == 2
    assert all_end(below, SECONDS if ends else 2) == ends
    parent.stdout.close()


# The work of a fork, and what is said of it. Each of the forks ends by itself, and the process behind them goes on
FORKS = """
import atexit, os, signal, sys
from trl_tempkd.processes import run_in_fork, stopped_by_signals
def end(by):
    os.kill(os.getpid(), by)
def fail():
    raise ValueError("why")
def read():
    print(os.environ["OF_THE_FORK"], "HOME_ALONE" in os.environ, flush=True)
def keep():
    signal.signal(signal.SIGINT, lambda *_: None)  # as a process does that is told twice
atexit.register(lambda: print("at exit", signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True))
os.environ["HOME_ALONE"] = "1"
print("before, and once")
works = [read, fail, keep, lambda: sys.exit(3)]
works += [lambda by=by: end(by) for by in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)]
with stopped_by_signals():
    try:
        print([run_in_fork(work, {"OF_THE_FORK": "its own"}) for work in works], flush=True)
    except ValueError:
        print("nobody who has started it sees this")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_ends_as_a_program_does():
    """Its status and its last words are its own, and signals that its starter has a line for end it."""
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["before, and once", "its own False"]
    assert "[0, 1, 0, 3, -15, -9, 130]" in lines
    assert lines.count("at exit True") == 5 and lines.count("at exit False") == 1  # none that a signal has ended
    assert done.stderr.count("ValueError: why") == done.stderr.count("Traceback") == 1


def test_what_is_forked(monkeypatch):
    """A training of one process on a machine without a GPU, in a process that has no other threads."""
    started = []
    monkeypatch.setattr("trl_tempkd.launch.run_in_fork", lambda work, environment: started.append(environment) or 7)
    monkeypatch.setattr("trl_tempkd.launch.may_fork", lambda: True)
    monkeypatch.setattr("accelerate.commands.launch.simple_launcher", lambda args: started.append("a process"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    line = "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no".split()

    def how(work=print):
        status = launch.launch("rank", line, [], work=work)
        return started.pop(), status

    environment, status = how()
    assert status == 7 and environment["ACCELERATE_USE_CPU"] == "True" and LAUNCHER in environment
    assert how(None) == ("a process", 0)
    with monkeypatch.context() as patch:
        patch.setattr("torch.accelerator.device_count", lambda: 1)
        assert how() == ("a process", 0)
    monkeypatch.setattr("trl_tempkd.launch.may_fork", lambda: False)
    assert how() == ("a process", 0)
    assert not started


def test_a_thread_forbids_forks():
    code = """
import threading
from trl_tempkd.processes import may_fork
before, stop = may_fork(), threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
print(before, may_fork())
stop.set()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(sys.platform == "linux"), "False"]


def test_what_fails_without_the_launcher_says_nothing(tmp_path):
    """Of ranks that wait for each other the first that goes lets the others fail, whichever has noticed first."""
    work = """
import os, sys, time
from trl_tempkd import processes
processes._SECONDS = 60  # whoever watches comes too late
processes.end_with_launcher()
print(os.getpid(), flush=True)
parent = os.getppid()
if sys.argv[1] == "alone":
    while os.getppid() == parent:
        time.sleep(0.01)
raise RuntimeError("Connection reset by peer")
"""
    (tmp_path / "work.py").write_text(work)
    start = "import os, subprocess, sys, time; os.environ[{!r}] = str(os.getpid()); {}; time.sleep(60)"
    for how, said in (("alone", False), ("led", True)):
        code = start.format(LAUNCHER, f"subprocess.Popen([sys.executable, {str(tmp_path / 'work.py')!r}, {how!r}])")
        with (tmp_path / how).open("w") as log:
            parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=log, stderr=log)
        until = time.monotonic() + 600
        while not (output := (tmp_path / how).read_text()).endswith("\n"):
            assert time.monotonic() < until, output
            time.sleep(0.05)
        below = psutil.Process(parent.pid).children()
        if not said:
            parent.kill()
        try:
            assert all_end(below)
        finally:
            parent.kill()
            parent.wait()
        assert ("Connection reset" in (tmp_path / how).read_text()) == said


def test_a_launcher_that_is_gone_already():
    """It may be killed before its worker has looked."""
    gone_one = subprocess.Popen([sys.executable, "-c", ""])
    gone_one.wait()
    code = "from trl_tempkd.processes import end_with_launcher; import time; end_with_launcher(); time.sleep(60)"
    late = subprocess.run([sys.executable, "-c", code], env={**os.environ, LAUNCHER: str(gone_one.pid)}, timeout=30)
    assert late.returncode == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", ["distill", "evaluate", "sweep", "report"])
def test_every_command_is_stopped_by_a_line(command, number, status, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert cli.main([command]) == status
    assert signal.getsignal(number) is before
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"trl-tempkd {command}: {how}")
    assert ("the same command goes on" in line) == (command != "report")


def test_a_reader_that_has_had_enough():
    line = [sys.executable, "-m", "trl_tempkd", "divergences", "--format", "markdown"]
    command = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(600) == 141
    command.stderr.close()


def test_nohup_is_kept():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        launch.quiet_elastic()
        assert "SIGHUP" not in os.environ.pop("PET_SIGNALS_TO_HANDLE")
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    launch.quiet_elastic()
    assert "PET_SIGNALS_TO_HANDLE" not in os.environ


@pytest.mark.parametrize(
    ("statuses", "status", "said"),
    [
        ([2, -15], 2, ""),  # it has said why
        ([1, -9, -15], 137, "a process was ended by SIGKILL; the machine may have run out of memory"),
        ([-11, 1], 139, "a process was ended by SIGSEGV\n"),
        ([-15], 143, ""),
    ],
)
def test_how_processes_ended(statuses, status, said, capsys):
    assert launch.ended(statuses) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("module", [distill, cache])
def test_trainings_look_for_their_launcher(module, monkeypatch):
    """Also those that `accelerate launch` has started by hand, as it does `examples/distill.py`."""

    class Looked(Exception):
        pass

    def look():
        raise Looked

    monkeypatch.setattr("trl_tempkd.caching.end_with_launcher", look)
    monkeypatch.setattr("trl_tempkd.job.end_with_launcher", look)
    options = "--dataset_name tiny --model_name_or_path tiny:student --use_cpu --bf16 false --output_dir nowhere"
    more = ["--output", "nowhere"] if module is cache else []
    values, _, _ = module.make_parser().parse([*options.split(), *more], launched=True)
    with pytest.raises(Looked):
        module.main(*values)


@pytest.fixture
def command(tmp_path, make_model, tokenizer, prompt_dataset) -> list[str]:
    """The options of a run that goes on and on, on a random pair."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=Dataset.from_list(prompt_dataset.to_list() * 50)).save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "output",
        "max_steps": 100_000,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "report_to": "none",
        "dataloader_num_workers": 1,
    }
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return [*flags, "--use_cpu", "--bf16", "false", "--disable_tqdm", "true"]


TWO = "--accelerate_config multi_gpu --num_processes 2 --main_process_port 0".split()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("options", "number", "status", "said"),
    [
        ([], signal.SIGTERM, 143, "stopped by SIGTERM"),
        (TWO, signal.SIGKILL, -9, ""),
        (TWO, signal.SIGINT, 130, "interrupted"),
    ],
    ids=["SIGTERM", "SIGKILL-two", "SIGINT-two"],
)
def test_trainings_end_with_their_launcher(options, number, status, said, command, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        line = [sys.executable, "-m", "trl_tempkd", "distill", *command, *options]
        launcher = subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    below: list[psutil.Process] = []
    try:
        until = time.monotonic() + 900
        while "'loss'" not in (output := (tmp_path / "log").read_text()):
            assert launcher.poll() is None and time.monotonic() < until, output[-3000:]
            time.sleep(0.1)
        below = psutil.Process(launcher.pid).children(recursive=True)
        assert len(below) >= (4 if options else 2)  # ranks, and the workers of their data loaders
        assert (tmp_path / "output" / "_in_use.json").exists()
        if number == signal.SIGINT:
            os.killpg(launcher.pid, number)  # as a terminal does
        else:
            launcher.send_signal(number)
        assert launcher.wait(600) == status
        assert all_end(below)
    finally:
        processes.kill([*below, *([psutil.Process(launcher.pid)] if launcher.poll() is None else [])])
        launcher.wait()
    after = (tmp_path / "log").read_text().rsplit("}\n", 1)[-1]  # of the last step that was logged
    assert said in after
    assert len([line for line in after.splitlines() if line.strip()]) == (1 if said else 0), after


def rank_and_what_is_left(name: str, options: list[str]) -> None:
    """A rank of a command, and which of gloo's threads are left when it is done."""
    rank.main(name, options)
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    print("left:", [name for name in names if "gloo" in name])


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are looked for as Linux shows them")
@pytest.mark.parametrize("name", ["distill", "generate"])
def test_no_thread_of_a_process_group_is_left(name, command, tmp_path):
    """One that drops a tensor after Python has ended is a SIGABRT: `terminate called without an active exception`."""
    flags = dict(zip(command[:-5:2], command[1:-5:2], strict=True))
    common = [part for key in ("--teacher_model_name_or_path", "--dataset_name") for part in (key, flags[key])]
    own = {
        "distill": [*command, "--max_steps", "2", "--save_strategy", "no"],
        "generate": [*common, *f"--num_rows 4 --max_new_tokens 2 --device cpu --output_dir {tmp_path}/new".split()],
    }[name]
    environments = [{**seen, "ACCELERATE_USE_CPU": "true"} for seen in launched(["--multi_gpu"], tmp_path / "run")]
    assert run(rank_and_what_is_left, (name, own), environments, log := tmp_path / "run/log") == 0, log.read_text()
    assert [line for line in log.read_text().splitlines() if line.startswith("left:")] == ["left: []"] * 2


def test_a_build_of_a_cache_leaves_its_group_too(monkeypatch, tmp_path):
    done = []
    for name in ("end_with_launcher", "check_started", "check", "_build", "end_group"):
        monkeypatch.setattr(caching, name, lambda *_, name=name: done.append(name))
    options = "--dataset_name tiny --model_name_or_path tiny:student --use_cpu --bf16 false --output_dir nowhere"
    values, _, _ = cache.make_parser().parse([*options.split(), "--output", str(tmp_path / "cache")], launched=True)
    cache.main(*values)
    assert done[-2:] == ["_build", "end_group"]


def test_stopping_is_an_interruption():
    """So that what tidies up after Ctrl-C does after SIGTERM too."""
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        raise Stopped(signal.SIGTERM)
