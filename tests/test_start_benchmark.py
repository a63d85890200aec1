# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""benchmarks/start.py times commands here and at another revision."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
HEAD = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], cwd=ROOT, capture_output=True).returncode == 0


def run(*options):
    command = [sys.executable, "benchmarks/start.py", "--rounds", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not HEAD, reason="this is no clone of the repository")
def test_here_and_before():
    done = run("--before", "HEAD", "--commands", "trl-tempkd --help")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["trl-tempkd --help"]
    for where in ("here", "before"):
        assert found[where]["cpu_s"] > 0 and found[where]["wall_s"] > 0
    assert all(found["ratio"][kind] > 0 for kind in ("wall", "cpu"))


def test_a_revision_that_is_not_there():
    done = run("--before", "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("--before nowhere: ") and "Traceback" not in done.stderr


def test_a_step_is_waited_for(monkeypatch, tmp_path):
    """Of a command that trains, until it logs its first loss: it is stopped there, with all that it has started."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import start

    (tmp_path / "child.py").write_text(
        "import subprocess, sys\n"
        "below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(below.pid, {'loss': 2.0})\n"
        "below.wait()\n"
    )
    seen = []
    monkeypatch.setattr(start, "spent_by", lambda process: seen.extend(process.children()) or 1.0)
    wall, spent = start.seconds_of(["child.py"], tmp_path, tmp_path / "output")
    assert 0 < wall < 60 and spent == 1.0
    (below,) = seen
    deadline = time.monotonic() + 60  # it has been killed, and ends in a moment
    while below.is_running() and below.status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "child.py").write_text("print('nothing to train')")
    with pytest.raises(SystemExit, match="ended before its first step:\nnothing to train"):
        start.seconds_of(["child.py"], tmp_path, tmp_path / "output")
