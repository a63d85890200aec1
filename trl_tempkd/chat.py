# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a model in use is asked: the text or the tokens that end where its answer begins."""

import json
from typing import Any, Literal, overload

from transformers import PreTrainedTokenizerBase


Turns = list[dict[str, Any]]


def context_of(turns: Turns) -> Turns:
    """What stands before the answer of a conversation: all but its last turn if that is the assistant's, else all."""
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says to the chat template beside its turns: `tools`, also as JSON, and `chat_template_kwargs`."""
    tools = row.get("tools")
    given = row.get("chat_template_kwargs") or {}
    # A table has `None` in each row for the arguments that only other rows have
    given = {name: value for name, value in given.items() if value is not None}
    return {"tools": json.loads(tools) if isinstance(tools, str) else tools, **given}


@overload
def chat_prompt(
    turns: Turns,
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokenize: Literal[True] = True,
    fallback: str | None = None,
) -> list[int]: ...
@overload
def chat_prompt(
    turns: Turns, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, tokenize: Literal[False]
) -> str: ...
def chat_prompt(
    turns: Turns,
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokenize: bool = True,
    fallback: str | None = None,
) -> Any:
    """
    A conversation as the tokenizer's own chat template puts it before the model, the opening of the answer included.

    Args:
        turns (`list[dict]`):
            The conversation up to the answer.
        row (`dict`):
            The row that it comes from, with its `tools` and `chat_template_kwargs`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with the chat template.
        tokenize (`bool`, *optional*, defaults to `True`):
            Whether to return tokens or their text.
        fallback (`str`, *optional*):
            Chat template for turns that the tokenizer's can't write. DeepSeek-V3's can't where the arguments of a tool
            call are a dict; its training variant, with which TRL trains, can.

    Returns:
        `list[int]` or `str`: The prompt.
    """
    kwargs = {**template_arguments(row), "add_generation_prompt": True, "tokenize": tokenize, "return_dict": False}
    try:
        return tokenizer.apply_chat_template(turns, **kwargs)
    except TypeError:
        if fallback is None:
            raise
        return tokenizer.apply_chat_template(turns, **{**kwargs, "chat_template": fallback})


def prompt_of(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, fallback: str | None = None) -> list[int]:
    """
    The prompt of a row in one of TRL's formats, which are told apart as TRL does; empty if there is none.

    Args:
        row (`dict`):
            The row.
        tokenizer, fallback:
            As in [`chat_prompt`].
    """
    asked = row["prompt"] if "prompt" in row else context_of(row.get("messages") or [])
    if isinstance(asked, str):
        return text_prompt(asked, tokenizer)
    return chat_prompt(asked, row, tokenizer, fallback=fallback) if asked else []


def text_prompt(text: str, tokenizer: PreTrainedTokenizerBase, special: bool = True) -> list[int]:
    """
    The tokens of a text that a model is to go on with.

    Args:
        text (`str`):
            The text.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer. An end token that it puts behind every text is left out: after it there is nothing to say.
        special (`bool`, *optional*, defaults to `True`):
            Whether the tokenizer adds its special tokens. A chat template has put them in already.

    Returns:
        `list[int]`: The tokens.
    """
    ids: list[int] = tokenizer(text=text, add_special_tokens=special)["input_ids"]
    ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if ended else ids
