# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""benchmarks/rules.py runs, and has a figure for every rule and objective."""

import json
import subprocess
import sys
from pathlib import Path

from trl_tempkd import OBJECTIVES, TEMPERATURE_RULES


def test_it_runs(tmp_path):
    small = "--shape 32x64x8 --rounds 2".split()
    command = [sys.executable, "benchmarks/rules.py", *small, "--output", str(tmp_path / "rules.json")]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    records = {record["name"]: record for record in json.loads((tmp_path / "rules.json").read_text())["records"]}
    assert {f"rule {name}" for name in TEMPERATURE_RULES} | set(OBJECTIVES) < set(records)
    assert records["forward_kl"]["ratio"] == 1
    assert all(record["seconds"] > 0 and record["ratio"] > 0 for record in records.values())
