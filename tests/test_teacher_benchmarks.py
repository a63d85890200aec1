# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Benchmarks of teachers, truncated targets, sources and tokenizers run as programs, and say what they should."""

import json

import pytest
import ranks
from vocabulary_pairs import TEXT, metaspace


def run(script, output, options):
    options = [*options.split(), "--threads", "1", "--output", str(output)]
    status, said = ranks.script(f"benchmarks/{script}.py", options, output.with_suffix(".log"))
    assert status == 0, said[-3000:]
    return json.loads(output.read_text(encoding="utf-8")), said


def test_teachers(tmp_path):
    small = "--rounds 3 --rows 2 --tokens 8 --vocabulary 300 --hidden 96 --count 8"
    found, _ = run("teachers", tmp_path / "teachers.json", small)
    rows = {row["name"]: row for row in found["results"]}
    assert list(rows) == ["live", "hidden", "topk", "sampled", "served", "no teacher", "SFT", "head"]
    # fp32 states; 2 temperatures, and 8 times a logit and an id; for each of 2 temperatures 8 weights and ids
    sizes = {"hidden": 96 * 4, "topk": 2 * 4 + 8 * 6, "sampled": 2 * (4 + 8 * 6)}
    assert {name: rows[name]["bytes_per_token"] for name in sizes} == sizes
    for name, size in sizes.items():
        assert rows[name]["files_per_token"] > size and rows[name]["build_tokens_per_second"] > 0
    assert rows["served"]["bytes_per_token"] == 96 * 4 * (8 + 4) / 8 and rows["served"]["ratio_to_hidden"] > 0
    assert rows["no teacher"]["ratio_to_least"] == rows["no teacher"]["ratio_to_no_teacher"] == 1
    assert rows["hidden"]["ratio_to_least"] < rows["hidden"]["ratio_to_no_teacher"]


def test_sources(tmp_path):
    """Every source learns, those that are exact the same as the live teacher, and what can't be served is said."""
    small = "--config recipes/tiny/distill.yaml --max_steps 4 --max_length 32 --per_device_train_batch_size 2 "
    small += (
        "--warmup_steps 0 --logging_steps 1 --rows 8 --eval_rows 4 --cache_dtype float32 --objectives reverse_kl:2"
    )
    found, said = run("sources", tmp_path / "sources.json", small)
    records = {record["source"]: record for record in found["records"]}
    assert list(records) == ["live", "hidden", "topk", "served"]
    assert "sampled, reverse_kl at 2: `divergence` reverse_kl can't be had" in said
    live = records["live"]
    for name in ("hidden", "served"):
        for key in ("first_loss", "last_loss", "kl_tau1_after"):
            assert records[name][key] == pytest.approx(live[key], rel=1e-2), (name, key)
    assert 0 < records["topk"]["first_loss"] < live["first_loss"]
    assert live["kl_tau1_after"] != live["kl_tau1_before"]


def test_on_policy_served(tmp_path):
    small = "--rows 4 --micro 2 --requests 2 --delay 0.1 --new_tokens 8 --steps 4"
    found, _ = run("on_policy_served", tmp_path / "served.json", small)
    assert found["waiting"] == pytest.approx(0.2) and found["step"] > found["waiting"]
    assert found["ratio"] == found["step"] / max(found["waiting"], found["generation_and_training"])


def test_truncated(tmp_path):
    found, _ = run("truncated", tmp_path / "truncated.json", "--tokens 64 --counts 8 4096 --taus 2 --rounds 1")
    records = {(record["method"], record["count"]): record for record in found["records"]}
    assert next(iter(records)) == ("hidden bf16", None) and len(records) == 7
    assert 0 < records["hidden bf16", None]["token"] < 0.01 < records["top-k", 8]["token"]
    for method in ("top-k", "drawn"):  # the whole vocabulary
        assert max(records[method, 4096][kind] for kind in ("loss", "token", "batch")) < 1e-3
    assert records["drawn", 8]["batch"] < records["independent", 8]["batch"]


def test_other_tokenizer(tmp_path):
    small = "--rounds 1 --rows 2 --tokens 48 --vocabulary 2100 --hidden 96 --alignments bytes uld"
    found, _ = run("other_tokenizer", tmp_path / "other_tokenizer.json", small)
    rows = {row["name"]: row for row in found["results"]}
    assert list(rows) == ["own tokenizer", "bytes", "uld"]
    assert rows["own tokenizer"]["ratio"] == 1 and all(row["seconds"] > 0 for row in rows.values())
    assert 0.3 < rows["bytes"]["aligned_share"] < 1 and rows["bytes"]["teacher_tokens_per_token"] != 1


def test_tokenizer_coverage(tmp_path):
    """A tokenizer has everything in common with itself, and something with another one."""
    metaspace(seed=1).save_pretrained(tmp_path / "other")
    TEXT.to_json(tmp_path / "rows.jsonl")
    sources = ["built-in=tiny:student", "again=tiny:student", f"other={tmp_path / 'other'}"]
    texts = [f"rows={tmp_path / 'rows.jsonl'}:completion"]
    options = ["--tokenizers", *sources, "--texts", *texts]
    status, said = ranks.script("benchmarks/tokenizer_coverage.py", options, tmp_path / "log")
    assert status == 0, said[-3000:]
    lines = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")]
    rows = {(row[0], row[1]): [float(value) for value in row[3].split(", ")] for row in lines[2:]}
    assert len(rows) == 6 and rows["built-in", "again"] == [1.0, 1.0, pytest.approx(1, abs=0.3)]
    assert all(0.1 < value < 1 for value in rows["built-in", "other"][:2])
