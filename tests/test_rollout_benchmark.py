# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""benchmarks/rollouts.py runs, in a process of its own: it silences warnings and leaves variables set."""

import json

import ranks


def run(folder, *options):
    return ranks.script("benchmarks/rollouts.py", [*options], folder / "log")


def test_one_round(tmp_path):
    sizes = "--vocabulary 4096 --hidden 96 --layers 1 --new-tokens 4 --rows 2 --accumulation 2 --rounds 1 --threads 1"
    status, said = run(tmp_path, *sizes.split(), "--checkpointing", "off", "--output", str(tmp_path / "rollouts.json"))
    assert status == 0, said[-2000:]
    found = json.loads((tmp_path / "rollouts.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["results"]}
    assert list(rows) == ["GKD", "Distillation", "ours", "ours, replayed", "ours, half replayed"]
    assert all(row["seconds"] > 0 and row["speedup_to_gkd"] > 0 for row in rows.values())
    assert all(0 < rows[name]["tokens"] <= 16 for name in ("GKD", "Distillation", "ours"))
    assert rows["ours, replayed"]["tokens"] == 0
    assert all(name in said for name in ("GKD", "ours", "x Distillation"))


def test_errors(tmp_path):
    status, said = run(tmp_path, "--hidden", "100")
    assert status == 2 and "--hidden must be a multiple of 96, got 100" in said
