# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tasks of the LM evaluation harness, run on the built-in student."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_tempkd import cli
from trl_tempkd.tiny import resolve


pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness
ROWS = [("is a cat an animal? ", 0), ("is a stone an animal? ", 1), ("is a dog an animal? ", 0)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a task of our own: the likelier of two answers."""
    pytest.importorskip("lm_eval")
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    task = {
        "task": "tiny_words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tiny_words.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def evaluate(folder: Path, *flags: str) -> int:
    line = (
        f"evaluate --model_name_or_path tiny:student --dataset_name tiny --num_rows 2 --output {folder / 'out.json'}"
    )
    line += f" --device cpu --dtype float32 --max_new_tokens 2 --lm_eval_include_path {folder}"
    return cli.main([*line.split(), *flags])


def test_its_scores_stand_beside_ours(folder, capsys):
    """As the two answers' log-probabilities say; started again, they aren't measured a second time."""
    flags = ("--lm_eval", "tiny_words", "--seeds", "1", "--no_greedy")
    assert evaluate(folder, *flags) == 0
    model = AutoModelForCausalLM.from_pretrained(resolve("tiny:student"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny:student"))
    right = 0
    for question, answer in ROWS:
        scores = []
        for choice in ("yes", "no"):
            start = tokenizer(question.rstrip(), return_tensors="pt").input_ids
            whole = tokenizer(question + choice, return_tensors="pt").input_ids
            logits = model(whole).logits[0, :-1].log_softmax(-1)
            scores.append(logits.gather(-1, whole[0, 1:, None])[start.shape[1] - 1 :].sum().item())
        right += scores.index(max(scores)) == answer
    found = json.loads((folder / "out.json").read_text())
    task = found["lm_eval"]["tiny_words"]
    assert task["scores"]["acc,none"] == pytest.approx(right / 3)
    assert task["rows"] == 3 and found["runs"]
    assert "tiny_words acc,none" in capsys.readouterr().out
    (folder / "rows.jsonl").unlink()
    assert evaluate(folder, *flags) == 0
    assert json.loads((folder / "out.json").read_text())["lm_eval"] == found["lm_eval"]


def test_a_task_that_there_is_not(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate(folder, "--lm_eval", "tiny_word")
    (line,) = capsys.readouterr().err.splitlines()
    assert "--lm_eval tiny_word: there is no such task" in line and "tiny_words" in line


def test_it_is_asked_for_only_where_it_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit, match="2"):
        evaluate(tmp_path, "--lm_eval", "hellaswag")
    assert '--lm_eval needs lm-eval: pip install ".[lm-eval]"' in capsys.readouterr().err
