# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a row asks of whoever completes it, and the row that its completion makes."""

from pathlib import Path
from typing import Any

from .chat import chat_prompt, context_of, text_prompt
from .errors import UsageError
from .files import whole_file
from .row_formats import problem_of
from .vision import is_pictured, read_row, to_png


IMAGES = "images"  # the folder of rows' images
_MARK = "\u241f"  # stands for an answer, to see where a chat template puts it


def prompt_of(row: dict[str, Any], tokenizer: Any, room: int | None) -> tuple[list[int], str, Any]:
    """
    Tokens of a row's prompt, what of the answer stands in it already, which some chat templates open, and of a row
    with images what its prompt is made of.

    Raises:
        [`UsageError`]: If the row has none that the teacher can complete.
    """
    problem = problem_of(row)
    if problem is not None:
        raise UsageError(problem)
    if is_pictured(row):
        question = read_row(row).question
        if not question.asked:
            raise UsageError("has no prompt: neither `prompt` nor a turn of `messages` stands before an answer.")
        return [0], "", question
    asked = asked_in(row)
    if not asked:
        raise UsageError(
            "has no prompt: neither `prompt` nor a turn of `messages` stands before what is to be written."
        )
    try:
        tokens = text_prompt(asked, tokenizer) if isinstance(asked, str) else chat_prompt(asked, row, tokenizer)
        opened = "" if isinstance(asked, str) else _opening(asked, row, tokenizer)
    except Exception as error:  # the template's, about this row
        raise UsageError(f"the chat template can't write it: {error}") from error
    if not tokens:
        raise UsageError("has an empty prompt.")
    if room is not None and len(tokens) > room:
        raise UsageError(
            f"has a prompt of {len(tokens)} tokens, and the teacher has room for {room} before `max_new_tokens`."
        )
    return tokens, opened, None


def asked_in(row: dict[str, Any]) -> Any:
    """What a row asks, as text or turns: its `prompt`, or the turns of `messages` before the answer."""
    return row["prompt"] if "prompt" in row else context_of(row.get("messages") or [])


def _opening(turns: list[dict[str, Any]], row: dict[str, Any], tokenizer: Any) -> str:
    """
    What a chat template puts into the answer that it asks for, such as `<think>`. It belongs to what the assistant has
    said: a template writes it again only where it stands in the message.
    """
    asks = chat_prompt(turns, row, tokenizer, tokenize=False)
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": _MARK}], tokenize=False)
    before, mark, _ = answered.partition(_MARK)
    return asks[len(before) :] if mark and asks.startswith(before) else ""


def new_row(row: dict[str, Any], line: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row of `prompt` and `completion`, with what its chat template needs, its images, and where it comes from."""
    asked, text = asked_in(row), line["text"]
    completion = text if isinstance(asked, str) else [{"role": "assistant", "content": text}]
    also = {name: row[name] for name in ("tools", "chat_template_kwargs") if row.get(name) is not None}
    origin = {name: line[name] for name in ("row", "sample", "tokens", "stopped")}
    images = {"images": _files(row, line["row"], folder)} if is_pictured(row) else {}
    return {**images, "prompt": asked, "completion": completion, **also, **origin}


def _files(row: dict[str, Any], number: int, folder: Path) -> list[str]:
    """The images of a row as files beside the data, by their paths."""
    paths = []
    for place, image in enumerate(read_row(row).question.images):
        path = folder.absolute() / IMAGES / f"{number:06d}_{place}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as name:
                Path(name).write_bytes(to_png(image))
        paths.append(str(path))
    return paths
