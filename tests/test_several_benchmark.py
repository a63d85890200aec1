# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""benchmarks/several_teachers.py measures what it says. That less memory is held is in test_several_sources.py."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of a process that goes on
def test_a_setting_is_measured(tmp_path, monkeypatch):
    path = Path(__file__).parent.parent / "benchmarks/several_teachers.py"
    spec = importlib.util.spec_from_file_location("several_teachers", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    args = Namespace(
        teachers=2, hidden=64, layers=1, vocabulary=4096, rows=2, tokens=4, accumulation=1, steps=3, mixed=False,
        device="cpu", threads=1, one="disk", folder=str(tmp_path),
    )  # fmt: skip
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # of this process, which has other tests
    benchmark.save_models(args, tmp_path)
    found = benchmark.measured(args)
    size = sum(file.stat().st_size for file in tmp_path.glob("[12]/model.safetensors"))
    assert found["weights"] == pytest.approx(size / 2**20) and found["peak"] > 10 and found["step"] > 0
