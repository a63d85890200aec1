# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The tests' server of a teacher in a process of its own, for the benchmarks that ask one."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen


SCRIPT = Path(__file__).parent.parent / "tests" / "teacher_server.py"
PATIENCE = 120  # seconds until it answers


@contextmanager
def running(model: str, *options: str) -> Iterator[str]:
    """The address of a server, on loopback, for the duration of the context. It gives last hidden states."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, str(SCRIPT), model, "--port", str(port), "--runner", "pooling", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server of {model} doesn't start: {command}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/v1/models", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    print(__doc__)
