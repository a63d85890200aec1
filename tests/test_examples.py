# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The examples beside examples/distill.py, which tests/test_cli.py runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent.parent / "examples/quality_diversity.py"


def write(folder: Path, model: str, points: list[tuple[float, float, float]]) -> list[str]:
    files = []
    for temperature, self_bleu, rouge_l in points:
        means = {"rouge_l": rouge_l, "self_bleu": self_bleu, "distinct_2": 0.5}
        results = {
            "settings": {"model_name_or_path": model, "temperature": temperature},
            "means": {name: {"mean": value} for name, value in means.items()},
        }
        files.append(str(folder / f"{model}-{temperature}.json"))
        Path(files[-1]).write_text(json.dumps(results), encoding="utf-8")
    return files


def run(*files: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *files], capture_output=True, text=True)


def test_quality_at_equal_diversity(tmp_path):
    """Two models on the same line, of which one is sharper: nothing is between them at equal diversity."""
    files = write(tmp_path, "soft", [(0.5, 30.0, 13.0), (1.0, 10.0, 11.0), (0.7, 20.0, 12.0)])
    files += write(tmp_path, "sharp", [(1.0, 15.0, 11.5), (0.5, 40.0, 14.0)])
    lines = run(*files).stdout.splitlines()
    assert lines[2] == "| soft | 1 | 11.00 | 10.0 | 0.500 |"
    assert lines[-4:] == [f"| {x:.1f} | {10 + x / 10:.2f} | {10 + x / 10:.2f} |" for x in (15, 20, 25, 30)]


@pytest.mark.parametrize(
    "points, message", [(None, "Give the result files"), ((50.0, 60.0), "no self-BLEU in common")]
)
def test_what_cannot_be_compared(points, message, tmp_path):
    files = []
    if points:
        files = write(tmp_path, "a", [(1.0, 10.0, 1.0), (0.5, 20.0, 2.0)])
        files += write(tmp_path, "b", [(1.0, points[0], 1.0), (0.5, points[1], 2.0)])
    found = run(*files)
    assert found.returncode == 1 and message in found.stderr
