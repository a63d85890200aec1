# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What starts a real vLLM for the tests says what was in the way, and leaves nothing: with a stand-in for vLLM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import real_servers


ROOT = Path(__file__).parent.parent
# It has a child, as vLLM has its workers, and both would rather stay
VLLM = """#!{python}
import http.server, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stay = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
child = subprocess.Popen([sys.executable, "-c", stay])
with open({pids!r}, "a") as file:
    print(os.getpid(), child.pid, file=file, flush=True)
if {mode!r} == "ends":
    child.kill()
    sys.exit("this machine has no such instruction")
if {mode!r} == "waits":
    time.sleep(120)

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`stand_in(mode)`: a stand-in for vLLM, and the file of the ids of its processes."""
    monkeypatch.setattr(real_servers, "SERVERS", {"states": []})
    monkeypatch.setattr(real_servers, "MEMORY", 0)
    monkeypatch.setattr(real_servers, "STOPPING", 0.2)

    def make(mode):
        path, pids = tmp_path / "vllm", tmp_path / "pids"
        path.write_text(VLLM.format(python=sys.executable, pids=str(pids), mode=mode))
        path.chmod(0o755)
        return str(path), pids

    return make


def all_gone(pids: Path) -> bool:
    numbers = [int(number) for number in pids.read_text().split()]
    until = time.monotonic() + 60
    while any(map(psutil.pid_exists, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    return len(numbers) == 2 and not any(map(psutil.pid_exists, numbers))


@pytest.mark.parametrize(("mode", "said"), [("ends", "has ended with status 1"), ("waits", "isn't ready after 2 s")])
def test_a_server_that_does_not_start(mode, said, stand_in, monkeypatch, capsys):
    monkeypatch.setattr(real_servers, "PATIENCE", 2)
    vllm, pids = stand_in(mode)
    assert real_servers.main(vllm) == real_servers.UNTRIED
    assert said in capsys.readouterr().out.splitlines()[-1]
    if mode == "waits":
        assert all_gone(pids)


def test_a_program_that_is_not_there(stand_in, capsys, tmp_path):
    assert real_servers.main(str(tmp_path / "nothing")) == real_servers.UNTRIED
    assert "can't be started" in capsys.readouterr().out


def test_too_little_memory(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(real_servers, "MEMORY", 2**60)
    vllm, pids = stand_in("serves")
    assert real_servers.main(vllm) == real_servers.UNTRIED
    assert "GiB of memory are free" in capsys.readouterr().out
    assert not pids.exists()


@pytest.mark.parametrize("passes", [True, False])
def test_the_status_is_that_of_the_tests(passes, stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(real_servers, "TESTS", tmp_path / "test_it.py")
    seen = "assert json.loads(os.environ['TEACHER_SERVERS'])['states'].startswith('http')"
    (tmp_path / "test_it.py").write_text(f"import json, os\ndef test_it():\n    {seen}\n    assert {passes}\n")
    vllm, pids = stand_in("serves")
    assert real_servers.main(vllm) == (0 if passes else 1)
    assert all_gone(pids)


def test_told_to_stop(stand_in):
    vllm, pids = stand_in("waits")
    code = "import real_servers as r; r.SERVERS, r.MEMORY, r.STOPPING = {'states': []}, 0, 0.2; "
    code += f"raise SystemExit(r.main({vllm!r}))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    until = time.monotonic() + 600
    while not pids.exists() or not pids.read_text().endswith("\n"):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert all_gone(pids)
