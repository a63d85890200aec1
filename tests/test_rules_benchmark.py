# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""benchmarks/rules.py runs, and has a figure for every rule and objective."""

import json

import ranks

from trl_tempkd import OBJECTIVES, TEMPERATURE_RULES


def test_it_runs(tmp_path):
    small = "--shape 32x64x8 --rounds 2".split()
    options = [*small, "--output", str(tmp_path / "rules.json")]
    status, said = ranks.script("benchmarks/rules.py", options, tmp_path / "log")
    assert status == 0, said
    records = {record["name"]: record for record in json.loads((tmp_path / "rules.json").read_text())["records"]}
    assert {f"rule {name}" for name in TEMPERATURE_RULES} | set(OBJECTIVES) < set(records)
    assert records["forward_kl"]["ratio"] == 1
    assert all(record["seconds"] > 0 and record["ratio"] > 0 for record in records.values())
