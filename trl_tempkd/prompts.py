# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows of a data set, in any of TRL's formats or as instructions -> prompts, references, and texts to compare at."""

import hashlib
import json
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from .chat import chat_prompt, template_arguments
from .errors import UsageError
from .fingerprint import plain
from .row_formats import conversion, problem_of_turns
from .vision import Processing, read_row


# As in MiniLLM's tools/process_data_dolly.py, to the letter
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
PROMPT_FORMATS = ("auto", "alpaca")


def alpaca_prompt(instruction: str, input: str | None = None) -> str:
    """The prompt of Stanford Alpaca in MiniLLM's words, which leave the line after `### Response:` to the model."""
    # Not by `str.format` on both: an instruction may hold braces
    template = ALPACA_WITH_INPUT if input else ALPACA
    head, tail = template.split("{instruction}")
    return head + instruction + tail.replace("{input}", input or "")


def read_rows(
    dataset: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: str = "auto",
    processing: Processing | None = None,
) -> list[dict[str, Any]]:
    """
    Read the rows of a data set as what a model is asked and what it should say.

    | columns | prompt | references |
    | --- | --- | --- |
    | `prompt`, `completion` (or `chosen`) | as it is | the completion, one or a list of several |
    | the same, conversational | by the chat template | the assistant's turn |
    | `messages` | all before the last turn of the assistant | this turn |
    | `instruction`, `input` or `context`, `output` or `response` | Alpaca's | the output, one or a list of several |
    | `text` | none | none: only compared with the teacher |

    A column `references` wins over what is said here of references.

    Args:
        dataset (`Iterable[dict[str, Any]]`):
            Rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with the chat template.
        prompt_format (`str`, *optional*, defaults to `"auto"`):
            `"alpaca"` puts the Alpaca prompt around prompts of plain text too.
        processing ([`~trl_tempkd.vision.Processing`], *optional*):
            The model's processor, for rows with images.

    Returns:
        `list[dict[str, Any]]`: For each row `prompt` (text or `None`), `references` (texts), `completion` (text to
        compare at, or `None`), `bytes` (how many the completion has in UTF-8, what the chat template or the end adds
        not counted) and `templated`: whether the chat template has put in the special tokens already. Where the
        completion doesn't follow the prompt to the letter, `context` is what stands before it. Of rows with images
        `row` is the row itself, without `bytes`: what is compared and completed is made of it.
    """
    if prompt_format not in PROMPT_FORMATS:
        raise UsageError(f"`prompt_format` must be one of {', '.join(PROMPT_FORMATS)}, got {prompt_format!r}.")
    rows = []
    for number, row in enumerate(dataset):
        check_row(number, row)
        if processing is not None:
            rows.append(_read_pictured(number, row, processing))
            continue
        item = _read_row({name: value for name, value in row.items() if value is not None}, tokenizer, prompt_format)
        item.setdefault("bytes", len((item["completion"] or "").removesuffix(tokenizer.eos_token or "").encode()))
        if item["prompt"] == "":
            raise UsageError(f"Row {number} has an empty prompt.")
        rows.append(item)
    if not rows:
        raise UsageError("The data set has no rows.")
    return rows


def hash_of(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows that [`read_rows`] has read, and of their images, without sizes, which follow from the rest."""
    own = [{name: value for name, value in row.items() if name != "bytes"} for row in rows]
    return hashlib.sha256(json.dumps(own, default=plain).encode()).hexdigest()


def _read_pictured(number: int, row: dict[str, Any], processing: Processing) -> dict[str, Any]:
    """A row that a processor reads, with images or without."""
    try:
        read = read_row(row, opened=False)
        turns = read.pictured.asked
        answer = read.answer if read.answer is not None else turns[-1:] if read.whole else None
        prompt = processing.text(read.question) if read.question.asked else None
        written = processing.texts(read.pictured, read.answer)[1] if isinstance(read.answer, list) else read.answer
    except UsageError as error:
        raise UsageError(f"Row {number} {error}") from error
    said = answer if isinstance(answer, str | None) else _said(answer)
    whole = processing.text(read.pictured, whole=True) if read.whole else None
    item = _item(prompt, row.get("references") or said, whole or written, templated=True)
    return {**item, "row": row}


def _said(turns: Any) -> str | None:
    """The text of what the assistant says, or `None` if it says nothing."""
    if not isinstance(turns, list) or not turns or turns[-1]["role"] != "assistant":
        return None
    return " ".join(part["text"] for part in turns[-1]["content"] if part.get("type") == "text")


def check_rows(dataset: Iterable[dict[str, Any]]) -> None:
    """Stop at the first row that [`read_rows`] has no use for, which can be seen without a tokenizer."""
    for number, row in enumerate(dataset):
        check_row(number, row)


def check_row(number: int, row: dict[str, Any]) -> None:
    """As [`check_rows`], of one row."""
    found = {name: value for name, value in row.items() if value is not None}
    if not {"prompt", "messages", "instruction", "text"} & set(found) and not _is_chat(found.get("chosen")):
        raise UsageError(
            f"Row {number}: a row needs `prompt` and `completion`, `messages`, `instruction` and `output`, or `text`; "
            f"it has {', '.join(found) or 'nothing'}.{conversion(found)}"
        )
    for name in ("prompt", "messages", "chosen", "completion"):
        if (name == "messages" and name in found) or _is_chat(found.get(name)):
            problem = problem_of_turns(name, found[name])
            if problem is not None:
                raise UsageError(f"Row {number} {problem}")


def _read_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, prompt_format: str) -> dict[str, Any]:
    prompt, answer = row.get("prompt"), row.get("completion", row.get("chosen"))
    turns = row.get("messages", prompt if _is_chat(prompt) else None)
    if turns is None and prompt is None and _is_chat(answer):  # preference rows without a prompt column
        turns, answer = answer, None
    if turns is not None:
        if prompt_format == "alpaca":
            raise UsageError("`prompt_format='alpaca'` is for plain text, but the rows are conversations.")
        return _read_chat(turns, answer, row, tokenizer)
    if prompt is not None or "instruction" in row:
        if prompt is None or (prompt_format == "alpaca" and "instruction" in row):
            prompt = alpaca_prompt(row["instruction"], row.get("input", row.get("context")))
        elif prompt_format == "alpaca":
            prompt = alpaca_prompt(prompt)
        answer = next((row[name] for name in ("completion", "chosen", "output", "response") if name in row), None)
        return _item(prompt, row.get("references", answer), answer, templated=False)
    if "text" in row and prompt_format == "auto":
        return _item(None, None, row["text"], templated=False)
    raise UsageError("`prompt_format='alpaca'` is for prompts, but the rows are text.")


def _read_chat(turns: list[dict], answer: Any, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    if answer is None:  # the last turn of the assistant, and nothing after it
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
        turns, answer = (turns, None) if last is None else (turns[:last], turns[last : last + 1])
    elif isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The rows are conversations, but the model's tokenizer has no chat template.")
    prompt = chat_prompt(turns, row, tokenizer, tokenize=False)
    if not answer:
        return _item(prompt, row.get("references"), None, templated=True)
    whole = tokenizer.apply_chat_template([*turns, *answer], **template_arguments(row), tokenize=False)
    # A prompt may open thoughts that the text doesn't have: it is compared as TRL trains on it, from where they differ
    shared = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    item = _item(prompt, row.get("references", answer[-1]["content"]), whole.removeprefix(shared), templated=True)
    item["bytes"] = sum(len(str(turn.get("content") or "").encode()) for turn in answer)
    return item if shared == prompt else {**item, "context": shared}


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _item(prompt: str | None, references: Any, completion: Any, templated: bool) -> dict[str, Any]:
    references = [references] if isinstance(references, str) else list(references or [])
    if isinstance(completion, list):
        completion = completion[0] if completion else None
    return {"prompt": prompt, "references": references, "completion": completion, "templated": templated}


def tokenize(
    dataset: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> list[dict[str, list[int]]]:
    """
    Tokenize prompt-completion rows as [`~trl.SFTTrainer`] does, the loss being on the completion and its end token.

    Args:
        dataset (`Iterable[dict[str, Any]]`):
            Rows with the texts `prompt` and `completion`. With `templated` they are out of a chat template, which has
            put in the special tokens, the end among them. With `context`, it stands in the place of `prompt`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        max_length (`int`, *optional*):
            Where to cut the rows off.

    Returns:
        `list[dict[str, list[int]]]`: Rows with `input_ids` and `labels`, the latter -100 in the prompt.
    """
    rows = []
    for row in dataset:
        text, special = row["completion"], not row.get("templated")
        if special:
            end = tokenizer.eos_token or ""
            text = text.removesuffix(end) + end
        before = row.get("context", row["prompt"])
        prompt, ids = (tokenizer(part, add_special_tokens=special)["input_ids"] for part in (before, before + text))
        # Tokens may merge across the boundary: the completion starts where the two differ
        start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        rows.append({"input_ids": ids[:max_length], "labels": ([-100] * start + ids[start:])[:max_length]})
    return rows
