# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What `make gpu` runs on a machine with a CUDA device, in under ten minutes: tests, then the benchmark of the loss.

    python tests/on_a_gpu.py                        # all parts
    python tests/on_a_gpu.py loss training          # some of them
    GPU_TESTS_ON_CPU=1 python tests/on_a_gpu.py loss       # tries them out on a CPU

One line a part: what became of it, how long it took, and where its output is. A part that takes too long is ended,
with all that it has started, and the next one begins. The exit status is 0 if every part is well.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parent.parent
BUDGET = 570.0  # seconds, of ten minutes
ON_CPU = "GPU_TESTS_ON_CPU"
TRY_OUT = "--device cpu --tokens 32 --vocabularies 500 --hidden 16 --dtype float32 --repeats 2"


@dataclass(frozen=True)
class Part:
    """Something that is run by itself, for so many seconds at most."""

    command: tuple[str, ...]
    seconds: float


def tests_of(group: str) -> tuple[str, ...]:
    return (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/test_gpu.py",
        "-k",
        f"test_{group}_",
    )


def parts(output: Path) -> dict[str, Part]:
    """In the order of what is wanted first where time runs out."""
    benchmark = (sys.executable, "benchmarks/gpu.py", "--output", str(output))
    if os.environ.get(ON_CPU) == "1":
        benchmark += tuple(TRY_OUT.split())
    return {
        "loss": Part(tests_of("loss"), 150),
        "training": Part(tests_of("training"), 150),
        "benchmark": Part(benchmark, 300),
        "processes": Part(tests_of("processes"), 120),
        "vllm": Part(tests_of("vllm"), 120),
    }


def run(part: Part, log: Path, seconds: float) -> tuple[str, float]:
    """What became of it, and the seconds it took."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # whatever it has left running goes with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = "timed out" if code is None else "passed" if code == 0 else f"failed ({code})"
    return said, time.monotonic() - start


def last_line(log: Path) -> str:
    """pytest's count, or where a benchmark has got to."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts(Path())))
    parser.add_argument(
        "--output", type=Path, default=ROOT / "outputs/gpu", help="folder of logs and of the benchmark"
    )
    args = parser.parse_args(argv)
    output = args.output.resolve()
    known = parts(output)
    if unknown := [name for name in args.parts if name not in known]:
        parser.error(f"there is no part {unknown[0]!r}: use {', '.join(known)}")
    import torch

    if not torch.cuda.is_available() and os.environ.get(ON_CPU) != "1":
        print(f"No CUDA device is here. {ON_CPU}=1 tries the parts out on a CPU.", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + BUDGET, False
    for name in args.parts or known:
        left = end - time.monotonic()
        if left < 10:
            print(f"{name:10} no time left", flush=True)
            failed = True
            continue
        log = output / f"{name}.log"
        said, seconds = run(known[name], log, min(known[name].seconds, left))
        failed |= said != "passed"
        print(f"{name:10} {said:12} {seconds:4.0f} s   {last_line(log)[:90]}   {log}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
