# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The processes that run cells: one after the other in forks of one process is the same as each in its own."""

import json
import os
import signal
from pathlib import Path

import pytest
from datasets import DatasetDict
from safetensors.torch import load_file
from standins import save_pair

from trl_tempkd.study.runs import pool
from trl_tempkd.study.runs.cell import EVALUATION, Cell
from trl_tempkd.study.runs.processes import ForkingProcess, OwnProcess


ROOT = Path(__file__).parent.parent
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "tokens_per_second")


@pytest.fixture
def make_cells(tmp_path, make_model, tokenizer, prompt_dataset):
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": str(tmp_path / "data"),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "lmbda": 1.0,  # sampled from the student: seeds matter
        "max_new_tokens": 4,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    few = {**EVALUATION, "rows": 4, "max_new_tokens": 4, "diagnostics_rows": 0}

    def make(results: Path, *names: str) -> None:
        for name in names:
            divergence = name.partition("-")[0]
            cell = Cell(name, {"seed": 1}, {**options, "divergence": divergence, "seed": 1, "data_seed": 1}, few)
            pool.prepare(cell, results)

    return make


def result_of(results: Path, name: str) -> dict:
    found = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    log = [{key: value for key, value in entry.items() if key not in TIMES} for entry in found["log_history"]]
    return {key: found[key] for key in ("hashes", "scores", "means", "completions", "versions")} | {"log": log}


@pytest.mark.distributed
def test_forks_are_as_processes_of_their_own(make_cells, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own, forks = tmp_path / "own", tmp_path / "forks"
    make_cells(own, "jsd")
    make_cells(forks, "tvd", "jsd", "jsd-again", "broken")
    assert pool.run_cell(str(own), "jsd", OwnProcess(str(ROOT))) == pool.DONE

    process = ForkingProcess(str(ROOT))
    try:
        (forks / "broken" / "cell.json").write_text("{", encoding="utf-8")
        statuses = [pool.run_cell(str(forks), name, process) for name in ("tvd", "broken", "jsd")]
        assert statuses == [pool.DONE, pool.FAILED, pool.DONE]
        assert "JSONDecodeError" in (forks / "broken.error.txt").read_text(encoding="utf-8")
        assert result_of(forks, "jsd") == result_of(own, "jsd") != result_of(forks, "tvd")
        expected, found = (load_file(folder / "jsd" / "model.safetensors") for folder in (own, forks))
        assert expected.keys() == found.keys() and all(expected[name].equal(found[name]) for name in expected)
        # What Python says of a fork from 3.12 on, where the worker itself writes: in the log of its first cell
        assert "multi-threaded" not in (forks / "tvd" / "output.log").read_text(encoding="utf-8")
        # Each has its own log, with one training in it
        assert (forks / "jsd" / "output.log").read_text(encoding="utf-8").count("Model saved to") == 1

        # Where the process itself is gone, its cell fails, and the next one has a new process
        assert process.process is not None
        os.kill(process.process.pid, signal.SIGKILL)
        assert pool.run_cell(str(forks), "jsd-again", process) == pool.FAILED
        assert "exit status -9" in (forks / "jsd-again.error.txt").read_text(encoding="utf-8")
        assert pool.run_cell(str(forks), "jsd-again", process) == pool.DONE
        assert result_of(forks, "jsd-again") == result_of(own, "jsd")
    finally:
        process.close()
    assert process.process is None
