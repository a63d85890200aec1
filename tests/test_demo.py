# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The demo on stand-ins for its models and data, and the benchmark of a step on tiny sizes."""

import importlib.util
import json
import os
import sys
import time
from io import StringIO
from pathlib import Path

import psutil
import pytest
from datasets import DatasetDict
from rich.console import Console
from standins import save_pair

from trl_tempkd.commands import distill
from trl_tempkd.fingerprint import fingerprint
from trl_tempkd.processes import LAUNCHER
from trl_tempkd.tiny import demo, jobs


ROOT = Path(__file__).parent.parent
CELLS = ["forward_kl-tau1", "forward_kl-tau2", "reverse_kl-tau1", "reverse_kl-tau2"]


def results(**rouge: list[float]) -> dict:
    """Figures as results.json has them, the ROUGE-L of some models by name of the cell."""
    models = [{"label": demo.STUDENT, "kl_tau1": 2.0, "parameters": 2_100_000}]
    models += [{**cell._asdict(), "label": cell.label, "kl_tau1": 0.5 + 0.1 * i} for i, cell in enumerate(demo.CELLS)]
    models += [{"label": demo.TEACHER, "kl_tau1": 0.0}]
    for model, name in zip(models, ["student", *CELLS, "teacher"], strict=True):
        model |= {"perplexity": 12.345, "rouge_l": rouge.get(name.replace("-", "_"), [10.0, 20.0] * 8)}
    fingerprints = {"train": "0123456789abcdef", "test": "fedcba9876543210"}
    return {"rows": 16, "steps": 30, "fingerprints": fingerprints, "models": models}


def rendered(table) -> str:
    stream = StringIO()
    Console(file=stream, width=120).print(table)
    return stream.getvalue()


class TestTable:
    def test_rows_and_figures(self):
        lines = rendered(demo.table_of(results(teacher=[40.0] * 16))).splitlines()
        labels = ["student before", "forward KL, tau 1", "forward KL, tau 2", "reverse KL, tau 1", "reverse KL, tau 2"]
        found = [line for line in lines if "12.35" in line or "12.34" in line]
        assert len(found) == 6
        for line, label in zip(found, [*labels, "teacher"], strict=True):
            assert label in line
        assert "2.000" in found[0] and "0.500" in found[1] and "0.800" in found[4]
        assert "40.0 [40.0, 40.0]" in found[5]
        mean, (low, high) = demo.interval_of([10.0, 20.0] * 8)
        assert mean == 15 and low < 15 < high
        assert f"15.0 [{low:.1f}, {high:.1f}]" in found[0]
        assert any("train 0123456789abcdef, test fedcba9876543210" in line for line in lines)

    def test_statements(self):
        shown, not_shown = demo.statements(results(forward_kl_tau2=[11.0, 21.0] * 8, reverse_kl_tau2=[21.0, 9.0] * 8))
        assert "4 of 4 students came closer" in shown
        assert "2.000 nats before, from 0.500 (forward KL, tau 1) to 0.800 (reverse KL, tau 2) after" in shown
        assert "+1.0 (+1.0 to +1.0: a difference on these rows) with forward KL" in shown
        assert "+0.0" in shown and "no difference seen) with reverse KL" in shown
        assert "one seed" in not_shown and "2.1 million" in not_shown and "16 rows" in not_shown

    def test_says_so_where_it_failed(self):
        worse = results()
        worse["models"][1]["kl_tau1"] = 3.0
        assert "3 of 4 students came closer" in demo.statements(worse)[0]


@pytest.fixture
def in_process(tmp_path, make_model, tokenizer, prompt_dataset, monkeypatch):
    """`in_process(*options)` runs the demo on stand-ins in this process; `.ran` are the cells that it trained."""

    def here(left):
        for job in left:
            run.ran += [job.cell.name] if job.cell else []
            jobs.do(job, os.getpid())

    def distilled(name, options):
        os.environ.pop(LAUNCHER)  # this process, which ends with nobody
        options = [*options, "--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1"]
        values, _, _ = distill.make_parser().parse(options, launched=True)
        assert name == "distill" and Path(values[1].output_dir).name == run.ran[-1]
        distill.main(*values)

    def run(*options: str) -> int:
        run.ran = []
        return demo.main([*fixed, *options])

    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    fixed = ["--output_dir", str(tmp_path / "demo"), "--student", student, "--teacher", teacher, "--rows", "4"]
    fixed += ["--steps", "2"]
    run.rows = DatasetDict(train=prompt_dataset, test=prompt_dataset)
    monkeypatch.setattr(demo, "load_tiny_dataset", lambda: run.rows)
    for module in (demo, jobs):
        monkeypatch.setattr(module, "GENERATION", {**jobs.GENERATION, "max_new_tokens": 4})
    monkeypatch.setattr(demo, "run_jobs", here)
    monkeypatch.setattr(jobs, "log_to", lambda path: None)
    monkeypatch.setattr(jobs.rank, "main", distilled)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    monkeypatch.setenv(LAUNCHER, "")  # which a job sets
    monkeypatch.chdir(ROOT)
    return run


def test_runs_and_goes_on(in_process, tmp_path, capsys, prompt_dataset):
    output = tmp_path / "demo"
    assert in_process() == 0
    assert in_process.ran == CELLS
    said = capsys.readouterr().out
    assert "4 held-out rows after 2 steps" in said and "Shown: " in said and "Not shown: " in said
    assert (output / "kl.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert len(found["models"]) == 6
    before, *cells, teacher = found["models"]
    assert teacher["kl_tau1"] == pytest.approx(0, abs=1e-4) and teacher["agreement"] == 1
    for cell in cells:
        assert [step for step, _ in cell["curve"]] == [0, 1, 2]
        # All start from the same student, and the trainer's last figure is the table's
        assert cell["curve"][0][1] == pytest.approx(before["kl_tau1"], rel=1e-2)
        assert cell["curve"][-1][1] == pytest.approx(cell["kl_tau1"], rel=1e-2)
        assert len(cell["rouge_l"]) == len(cell["completions"]) == 4
    assert len({cell["kl_tau1"] for cell in cells}) == 4

    # All is there: nothing runs, and the results are the same
    assert in_process() == 0
    assert in_process.ran == []
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == found
    # One is cut off
    (output / CELLS[2] / "result.json").write_text('{"label": "rev', encoding="utf-8")
    assert in_process() == 0
    assert in_process.ran == CELLS[2:3]
    # Another number of steps is another run
    assert in_process("--steps", "1") == 0
    assert in_process.ran == CELLS
    assert in_process("--steps", "1", "--fresh") == 0
    assert in_process.ran == CELLS
    # And so are other rows, as another version of a package has them
    assert found["fingerprints"] == {split: fingerprint(rows) for split, rows in
                                     (("train", prompt_dataset), ("test", prompt_dataset.take(4)))}  # fmt: skip
    in_process.rows["train"] = prompt_dataset.take(7)
    assert in_process("--steps", "1") == 0
    assert in_process.ran == CELLS


@pytest.fixture
def three(tmp_path, monkeypatch):
    """`three(work)`: three jobs in processes, whose work is a function of the job that gives a result."""

    def run(work):
        def do(job, launcher):
            jobs.log_to(job.log)
            os.write(1, b"what it says\n")  # not through what captures it here
            result = work(job)
            job.result.write_text(json.dumps({"label": job.label, "kl_tau1": 0.5, "seconds": 1.0, **(result or {})}))

        monkeypatch.setattr(jobs, "do", do)
        cells = [None, *demo.CELLS[:2]]
        jobs.run_jobs(
            [
                jobs.Job(f"job {number}", "", "", cell, ["a", "command"], tmp_path / str(number), tmp_path, {})
                for number, cell in enumerate(cells)
            ]
        )

    monkeypatch.setattr(jobs, "USED", ())
    monkeypatch.setattr(jobs, "freeze", lambda: None)
    return run


forks = pytest.mark.skipif(sys.platform != "linux", reason="its processes are forks of this one on Linux alone")


@forks
def test_jobs_are_processes(three, tmp_path, monkeypatch, capfd):
    """As many at a time as there are cores, those that train first, and what they say is in their logs."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    started = time.monotonic_ns()
    three(lambda job: {"at": [time.monotonic_ns(), os.getpid()]})
    found = [json.loads((tmp_path / str(number) / "result.json").read_text())["at"] for number in range(3)]
    assert started < found[1][0] < found[2][0] < found[0][0]
    assert len({os.getpid(), *(pid for _, pid in found)}) == 4
    assert all((tmp_path / str(number) / "output.log").read_text() == "what it says\n" for number in range(3))
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["job 1: $ a command", "job 1: 0.500 nats to the teacher, trained in 1 s; 2 left"]
    assert lines[-1] == "job 0: 0.500 nats to the teacher; 0 left"


@forks
def test_a_run_that_fails_stops_it(three, tmp_path, monkeypatch, capfd):
    """And ends the others, which are at work."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def work(job):
        (tmp_path / f"{job.label}.pid").write_text(str(os.getpid()))
        while job.label == "job 2" or not (tmp_path / "job 2.pid").exists():
            time.sleep(0.01)
        raise SystemExit(3)

    with pytest.raises(jobs.DemoError, match="the run job 1 ended with exit status 3"):
        three(work)
    assert "what it says" in capfd.readouterr().err
    assert not psutil.pid_exists(int((tmp_path / "job 2.pid").read_text()))


def test_a_failure_is_one_line(in_process, monkeypatch, capsys):
    def fail(left):
        raise jobs.DemoError("the run forward KL, tau 1 ended with exit status 3")

    monkeypatch.setattr(demo, "run_jobs", fail)
    assert in_process() == 1
    assert capsys.readouterr().err == "demo: error: the run forward KL, tau 1 ended with exit status 3\n"


def test_an_interruption_is_one_line(in_process, monkeypatch, capsys):
    def interrupted(left):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_jobs", interrupted)
    assert in_process() == 130
    assert "goes on where it stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--student", "nowhere"], "--student: there is no model in nowhere"),
        (["--teacher", "tiny:nobody"], "--teacher: The built-in models are tiny:teacher, tiny:student"),
        (["--rows", "9"], "--rows: the built-in data has 8 held-out rows, got 9"),
    ],
)
def test_errors_are_one_line(options, message, in_process, capsys):
    assert in_process(*options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_steps_are_checked(steps, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--steps", steps])
    assert "expected a whole number above 0" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        demo.main(["--help"])
    said = capsys.readouterr().out
    assert "--fresh" in said and "make demo" in said


class TestStepBenchmark:
    @pytest.fixture
    def step(self):
        spec = importlib.util.spec_from_file_location("step_benchmark", ROOT / "benchmarks" / "step.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_one_round(self, step, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # which the benchmark sets, and leaves set
        sizes = {"vocabulary": 300, "hidden": 96, "tokens": 8, "rows": 2, "rounds": 1, "threads": 1}
        options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
        step.main([*options, "--divergences", "forward_kl", "jsd", "--output", str(tmp_path / "step.json")])
        found = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
        names = ["SFT", "GKD forward_kl", "ours forward_kl", "GKD jsd", "ours jsd"]
        assert [row["name"] for row in found["results"]] == names
        assert found["vocabulary"] == 300 and found["dtype"] == "float32"
        for row in found["results"]:
            assert row["seconds"] > 0 and row["ratio_to_sft"] > 0
            assert (row["ratio_to_gkd"] is None) == (row["name"] == "SFT")
        said = capsys.readouterr().out
        assert all(name in said for name in names)

    def test_help_and_errors(self, step, capsys):
        with pytest.raises(SystemExit, match="0"):
            step.main(["--help"])
        assert "bfloat16" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="2"):
            step.main(["--hidden", "100"])
        assert "--hidden must be a multiple of 96, got 100" in capsys.readouterr().err
