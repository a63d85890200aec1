# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Locks go with their process, however it ends, and keep two jobs out of one folder."""

import errno
import inspect
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

import pytest
from transformers import Trainer

from trl_tempkd import locks, training
from trl_tempkd.commands import cache, distill
from trl_tempkd.errors import UsageError
from trl_tempkd.files import whole_file, write_atomically
from trl_tempkd.job import job
from trl_tempkd.locks import OWNER, locked, owned


OWN = """
import os, sys, time
from trl_tempkd.locks import owned
with owned(sys.argv[1], "--output_dir"):
    {inside}
    print("taken", flush=True)
    sys.stdin.read()
"""
# As the workers of a data loader, which are forks: one that outlives its parent
FORK = (
    "begun, begin = os.pipe(); "
    "os.fork() or (os.write(begin, b'.'), os.close(1), os.read(0, 1), os._exit(0)); os.read(begun, 1)"
)


def take(folder) -> None:
    with owned(folder, "--output_dir"):
        pass


@pytest.fixture
def start_owner():
    """`start_owner(FOLDER, CODE)`: a process that owns a folder until its input ends."""
    started = []

    def start(folder, inside: str = "pass") -> subprocess.Popen:
        command = [sys.executable, "-c", OWN.format(inside=inside), str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "taken\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_has_one_owner(tmp_path, start_owner):
    folder = tmp_path / "new" / "out"
    owner = start_owner(folder)
    who = f"process {owner.pid} on {socket.gethostname()} since 2"
    with pytest.raises(UsageError, match=f"out is in use by {who}.* give another --output_dir"):
        take(folder)
    owner.communicate()
    assert list(folder.iterdir()) == []  # it leaves nothing
    with owned(folder, "--output_dir"):
        assert json.loads((folder / OWNER).read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
def test_a_killed_owner_loses_the_folder(tmp_path, start_owner):
    owner = start_owner(tmp_path, FORK)  # although a process lives on that it has forked
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / OWNER).exists()
    with owned(tmp_path, "--output_dir"):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_may_take_it_again(tmp_path):
    with owned(tmp_path, "--output_dir"):
        with owned(f"{tmp_path}/../{tmp_path.name}", "--output_dir"):
            pass
        assert (tmp_path / OWNER).exists()
        with locked(tmp_path / OWNER, wait=False) as free:
            assert not free
    assert not (tmp_path / OWNER).exists()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_is_no_owner(tmp_path):
    """What it does on its way out leaves its parent's lock alone."""

    def leave(stack):
        stack.close()
        (tmp_path / "left").touch()

    with ExitStack() as stack:
        stack.enter_context(owned(tmp_path, "--output_dir"))
        fork = multiprocessing.get_context("fork").Process(target=leave, args=(stack,))
        fork.start()
        fork.join(20)
        assert (tmp_path / "left").exists() and (tmp_path / OWNER).exists()
        with locked(tmp_path / OWNER, wait=False) as free:
            assert not free


def test_a_file_that_is_no_lock(tmp_path):
    (tmp_path / OWNER).write_text("from an earlier, killed process, or half written")
    take(tmp_path)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cannot write to .*file.*; give another --output_dir"):
            take(folder)


def test_the_hub_is_not_sent_the_lock():
    """The trainer uploads its folder while it is locked."""
    assert fnmatch(OWNER, "_*")
    for upload in (Trainer.push_to_hub, Trainer._push_from_checkpoint):
        assert 'ignore_patterns=["_*"' in inspect.getsource(upload)


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with owned(tmp_path, "--output_dir"), locked(tmp_path / "lock", wait=False) as free:
        assert free
    assert "file system without locks" in caplog.text
    monkeypatch.setattr(locks, "fcntl", None)  # Windows
    with owned(tmp_path, "--output_dir"), locked(tmp_path / "lock", wait=False) as free:
        assert free


def test_two_write_one_file(tmp_path):
    """One after the other, and each writes the whole of it."""
    read, begun = [], threading.Event()

    def first():
        with whole_file(tmp_path / "file") as name:
            with open(name, "w") as file:
                file.write("first, ")
                begun.set()
                time.sleep(0.3)
                file.write("whole")
            read.append(Path(name).read_text())

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(20)
    write_atomically(tmp_path / "file", "second")
    thread.join()
    assert read == ["first, whole"]
    assert (tmp_path / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_has_left_does_not_pile_up(tmp_path):
    code = (
        "import os, sys, signal; from trl_tempkd.files import whole_file\n"
        "with whole_file(sys.argv[1]) as name, open(name, 'w') as file:\n"
        "    file.write('half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")])
        assert [path.name for path in tmp_path.iterdir()] == [".file.tmp"]
    write_atomically(tmp_path / "file", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_training_has_left_is_deleted(tmp_path, make_config):
    """By the next one in the folder. safetensors writes beside the file, under another name each time."""
    code = (
        "import os, signal, sys, threading, time, torch; from safetensors.torch import save_file\n"
        "def kill():\n"
        "    while not any(name.startswith('.tmp') for name in os.listdir(sys.argv[1])): pass\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
        "while True: save_file({'a': torch.zeros(2**22)}, sys.argv[1] + '/model.safetensors')"
    )
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, str(out)], timeout=600)
    left = [path.name for path in out.iterdir() if path.name.startswith(".tmp")]
    assert len(left) == 1
    for name in (".tmp_notes", ".tmpfolder"):
        (out / name).mkdir()
    with job(make_config()):
        assert {path.name for path in out.iterdir()} - {"model.safetensors"} == {".tmp_notes", ".tmpfolder", OWNER}


class Reached(Exception):
    pass


@pytest.mark.parametrize("command", ["distill", "cache"])
def test_two_jobs_in_one_folder(command, tmp_path, monkeypatch, start_owner):
    """The second is refused before it loads anything. A build of a cache may have the `output_dir` of a training."""

    def load(*_):
        raise Reached

    monkeypatch.setattr(training, "make_trainer", load)
    module = {"distill": distill, "cache": cache}[command]
    recipe = "--dataset_name tiny --model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher"
    out = f"--use_cpu --bf16 false --output_dir {tmp_path / 'out'}"
    values, _, _ = module.make_parser().parse(
        [*recipe.split(), *out.split(), *(["--output", str(tmp_path / "cache")] if command == "cache" else [])],
        launched=True,
    )
    option, folder = {"distill": ("--output_dir", "out"), "cache": ("--output", "cache")}[command]
    others = start_owner(tmp_path / ("cache" if command == "distill" else "out"))
    with pytest.raises(Reached):
        module.main(*values)
    others.communicate()
    start_owner(tmp_path / folder)
    with pytest.raises(UsageError, match=rf"{folder} is in use by process .* give another {option}"):
        module.main(*values)


def test_a_trainer_in_python_keeps_its_folder_too(make_trainer, tmp_path, start_owner):
    """Where it saves checkpoints: others may share a folder."""
    start_owner(tmp_path / "out")
    make_trainer(max_steps=1).train()
    with pytest.raises(UsageError, match="is in use by process"):
        make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))
