# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows of every format become the prompt and the references that TRL and MiniLLM make of them."""

import pytest
from trl import maybe_apply_chat_template

from trl_tempkd.prompts import alpaca_prompt, read_rows
from trl_tempkd.study.evaluation import tokenize


QUESTION, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}


def only(row, tokenizer, **kwargs):
    (item,) = read_rows([row], tokenizer, **kwargs)
    return item


def test_alpaca_to_the_letter():
    # Spelled out: these lines are what MiniLLM's tools/process_data_dolly.py writes
    assert alpaca_prompt("Name a {city}.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nName a {city}.\n\n### Response:\n"
    )
    assert alpaca_prompt("Translate {input}.", "{instruction} chat") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n"
        "\n### Instruction:\nTranslate {input}.\n\n### Input:\n{instruction} chat\n\n### Response:\n"
    )
    assert alpaca_prompt("a", "") == alpaca_prompt("a")


@pytest.mark.parametrize(
    ("row", "prompt", "references"),
    [
        ({"prompt": "a cat", "completion": " sat"}, "a cat", [" sat"]),
        ({"prompt": "a cat", "completion": [" sat", " ran"]}, "a cat", [" sat", " ran"]),
        ({"prompt": "a cat", "completion": " sat", "references": ["x", "y"]}, "a cat", ["x", "y"]),
        ({"prompt": "a cat", "chosen": " sat", "rejected": " flew"}, "a cat", [" sat"]),
        ({"prompt": "a cat"}, "a cat", []),
        ({"instruction": "Go.", "input": "", "output": "gone"}, alpaca_prompt("Go."), ["gone"]),
        ({"instruction": "Go.", "input": None, "output": ["gone", "went"]}, alpaca_prompt("Go."), ["gone", "went"]),
        ({"instruction": "Go.", "context": "far", "response": "gone"}, alpaca_prompt("Go.", "far"), ["gone"]),
        # MiniLLM's own processed files
        ({"instruction": "Go.", "prompt": "Go!\n", "input": "", "output": "gone"}, "Go!\n", ["gone"]),
        ({"text": "a cat sat"}, None, []),
    ],
)
def test_plain_rows(row, prompt, references, tokenizer):
    item = only(row, tokenizer)
    assert (item["prompt"], item["references"], item["templated"]) == (prompt, references, False)
    expected = "a cat sat" if "text" in row else next(iter([" sat"] if "references" in row else references), None)
    assert item["completion"] == expected


def test_alpaca_around_a_prompt(tokenizer):
    processed = {"instruction": "Go.", "prompt": "Go!", "output": "gone"}
    assert only(processed, tokenizer, prompt_format="alpaca")["prompt"] == alpaca_prompt("Go.")
    assert only({"prompt": "Go.", "completion": "x"}, tokenizer, prompt_format="alpaca")["prompt"] == alpaca_prompt(
        "Go."
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, ANSWER, QUESTION]},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [QUESTION]},
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION]},
    ],
)
def test_conversations(row, tokenizer):
    item = only(row, tokenizer)
    expected = maybe_apply_chat_template({"prompt": [QUESTION], "completion": [ANSWER]}, tokenizer)
    assert {name: item[name] for name in expected} == expected
    assert item["references"] == ["sat on the mat"]
    assert item["templated"]
    (ids,) = tokenize([item], tokenizer)
    whole = tokenizer.apply_chat_template([QUESTION, ANSWER])["input_ids"]
    assert ids["input_ids"] == whole  # no second end token
    answer = [label for label in ids["labels"] if label != -100]
    assert answer == tokenizer(expected["completion"])["input_ids"]


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        ([], {}, "no rows"),
        ([{"prompt": "", "completion": "x"}], {}, "Row 0 has an empty prompt"),
        ([{"question": "a", "answer": "b"}], {}, "it has question, answer"),
        ([{"messages": [QUESTION, ANSWER]}], {"prompt_format": "alpaca"}, "are conversations"),
        ([{"text": "a"}], {"prompt_format": "chat"}, "must be one of auto, alpaca, got 'chat'"),
    ],
)
def test_refused(rows, kwargs, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        read_rows(rows, tokenizer, **kwargs)


def test_conversations_need_a_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        read_rows([{"messages": [QUESTION, ANSWER]}], tokenizer)
