# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What `make gpu` runs, as far as it can be seen without a GPU: the page, and parts that come to an end."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import on_a_gpu
import pytest
import torch


ROOT = Path(__file__).parent.parent
SMALL = "--device cpu --tokens 40 --vocabularies 300 --hidden 16 --dtype float32 --repeats 3 --each 0".split()


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(benchmark, folder, *options):
    code = benchmark.main([*SMALL, *options, "--output", str(folder)])
    return code, json.loads((folder / "loss.json").read_text())["results"], (folder / "loss.md").read_text()


def test_every_contender_computes_the_same(benchmark, tmp_path, capsys):
    code, rows, page = run(benchmark, tmp_path, "--vocabularies", "300", "500")
    assert code == 0
    keys = {(row["vocabulary"], row["tau"]) for row in rows}
    assert keys == {(size, tau) for size in (300, 500) for tau in (1.0, 2.0)}
    for key in keys:
        own = [row for row in rows if (row["vocabulary"], row["tau"]) == key]
        assert {row["contender"] for row in own} == {
            *("bare matmuls", "trl_tempkd", "TRL's kernel", "plain torch", "Liger, fused", "Liger, chunked")
        }
        ours = {row["divergence"]: row["loss"] for row in own if row["contender"] == "trl_tempkd"}
        assert set(ours) == set(benchmark.OURS) and min(ours.values()) > 0
        for row in own:
            if row["contender"] in ("TRL's kernel", "plain torch"):
                assert row["loss"] == pytest.approx(ours[row["divergence"]], rel=1e-3) and row["ms"] > 0
            if row["contender"].startswith("Liger") and importlib.util.find_spec("liger_kernel") is None:
                assert row["note"] == "not installed"
    assert page.count("| bare matmuls |") == 4 and "300" in page
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_the_gradients_are_the_same_too(benchmark):
    problem = benchmark.Problem(40, 300, 16, torch.float32, torch.device("cpu"))
    found = {}
    for name, divergence, go in benchmark.contenders(problem, 2.0):
        if name in ("trl_tempkd", "TRL's kernel", "plain torch"):
            benchmark.once(go, problem)
            found[name, divergence] = problem.hidden.grad, problem.weight.grad
    for (_, divergence), gradients in found.items():
        torch.testing.assert_close(gradients, found["trl_tempkd", divergence], rtol=1e-2, atol=1e-6)


def test_out_of_memory_is_a_line_and_no_end(benchmark, tmp_path, monkeypatch):
    def full(self, divergence, tau):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100 GiB")

    monkeypatch.setattr(benchmark.Problem, "plain", full)
    code, rows, page = run(benchmark, tmp_path)
    notes = [row.get("note") for row in rows if row["contender"] == "plain torch"]
    assert code == 0 and notes == ["out of memory"] * 6 and "| out of memory |" in page
    monkeypatch.setattr(benchmark.Problem, "ours", full)
    assert run(benchmark, tmp_path / "ours")[0] == 1


def test_time_that_is_up_is_a_line_too(benchmark, tmp_path):
    code, rows, _ = run(benchmark, tmp_path, "--seconds", "-1")
    assert code == 1 and {row["note"] for row in rows} == {"no time left"}


def test_without_a_device_both_say_so(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(on_a_gpu.ON_CPU, raising=False)
    assert benchmark.main(["--output", str(tmp_path)]) == 2
    assert on_a_gpu.main(["--output", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 2 and not [*tmp_path.iterdir()]


HANG = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
HANG += "; print(p.pid, flush=True); time.sleep(600)"


def test_a_part_that_hangs_is_ended_with_all_it_has_started(tmp_path):
    log = tmp_path / "log"
    said, seconds = on_a_gpu.run(on_a_gpu.Part((sys.executable, "-c", HANG), 5), log, 5)
    assert said == "timed out" and seconds < 60
    child = int(log.read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.1)
    pytest.fail("what it had started is still there")


def test_the_parts_and_what_became_of_them(monkeypatch, capsys, tmp_path):
    parts = {
        "good": on_a_gpu.Part((sys.executable, "-c", "print('all is well')"), 60),
        "bad": on_a_gpu.Part((sys.executable, "-c", "import sys; sys.exit('all is lost')"), 60),
    }
    monkeypatch.setattr(on_a_gpu, "parts", lambda output: parts)
    monkeypatch.setenv(on_a_gpu.ON_CPU, "1")
    assert on_a_gpu.main(["good", "--output", str(tmp_path)]) == 0
    assert on_a_gpu.main(["--output", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["good", "passed"], ["good", "passed"], ["bad", "failed"]]
    assert "all is well" in lines[0] and "all is lost" in lines[2]
    monkeypatch.setattr(on_a_gpu, "BUDGET", 0.0)
    assert on_a_gpu.main(["good", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().out.split() == ["good", "no", "time", "left"]
    with pytest.raises(SystemExit):
        on_a_gpu.main(["best"])


def test_all_parts_fit_into_ten_minutes_and_have_their_tests():
    assert on_a_gpu.BUDGET < 600
    groups = [part.command[-1] for part in on_a_gpu.parts(Path()).values() if "pytest" in part.command]
    named = (ROOT / "tests/test_gpu.py").read_text()
    assert groups and all(f"def {group}" in named for group in groups)


def test_without_a_device_the_tests_are_skipped_for_one_reason():
    import test_gpu

    tests = [value for name, value in vars(test_gpu).items() if name.startswith("test_")]
    marks = [*test_gpu.pytestmark, *(mark for test in tests for mark in getattr(test, "pytestmark", []))]
    skipping = [mark for mark in marks if mark.name == "skipif" and mark.args[0]]
    if test_gpu.CUDA:
        assert test_gpu.NONE not in {mark.kwargs["reason"] for mark in skipping}
    else:
        assert {mark.kwargs["reason"] for mark in skipping} == {test_gpu.NONE}
    assert len(tests) > 15
