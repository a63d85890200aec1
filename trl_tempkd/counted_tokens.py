# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which tokens of a row are trained on, known from the row and the tokenizer alone, as TRL's preparation has it."""

import copy
import json
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import maybe_convert_to_chatml

from .compat import common_prefix_length
from .errors import UsageError
from .rollouts.options import RolloutOptions
from .row_formats import Row, is_chat, is_from_value


class UnwritableError(UsageError):
    """A conversation that the chat template refuses."""


def counted_tokens(row: Row, tokenizer: PreTrainedTokenizerBase, args: RolloutOptions) -> list[bool]:
    """
    Which tokens of a row are trained on, before it is cut.

    Args:
        row (`Mapping[str, Any]`):
            A row in one of TRL's formats. One with a prompt has a completion.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, with the chat template of the run.
        args ([`RolloutOptions`]):
            What is masked.

    Returns:
        `list[bool]`: One for each token.

    Raises:
        [`UnwritableError`]: If the chat template refuses the row.
    """
    if is_from_value(row.get("conversations")):
        row = maybe_convert_to_chatml(copy.deepcopy(dict(row)))
    if "labels" in row:
        return [label != -100 for label in row["labels"]]
    whole: dict[str, Any]
    if "input_ids" in row:
        whole = dict(row)
    elif "prompt" in row:
        whole = _written(row, row["prompt"] + row["completion"], tokenizer, args)
        prompt = _written(row, row["prompt"], tokenizer, args, prompt=True)
        start = common_prefix_length(prompt["input_ids"], whole["input_ids"])
        whole["completion_mask"] = [i >= start for i in range(len(whole["input_ids"]))]
    else:
        text = row["messages"] if is_chat(row) else row[args.dataset_text_field]
        whole = _written(row, text, tokenizer, args)
    only = "prompt" in row if args.completion_only_loss is None else args.completion_only_loss
    names = ["assistant_masks", "completion_mask"] if only else ["assistant_masks"]
    masks = [whole[mask] for mask in names if mask in whole]
    return [all(bits) for _, *bits in zip(whole["input_ids"], *masks, strict=False)]


def has_target(counted: list[bool], args: RolloutOptions) -> bool:
    """Whether a token is left to train on once a row is cut. The first one isn't, as nothing predicts it."""
    size = args.max_length or len(counted)
    return any((counted[:size] if args.truncation_mode == "keep_start" else counted[-size:])[1:])


def described(counted: list[bool]) -> str:
    """How long the first row is, in words."""
    start = next((i for i, counts in enumerate(counted) if counts and i), None)
    first = "none of which is trained on" if start is None else f"and number {start + 1} is the first to be trained on"
    return f"The first row has {len(counted)} tokens, {first}."


def _written(row: Row, what: Any, tokenizer: Any, args: RolloutOptions, prompt: bool = False) -> dict[str, Any]:
    """The tokens of a text or a conversation, with its end unless it is a prompt, as TRL's preparation makes them."""
    if isinstance(what, str):
        return dict(tokenizer(text=what if prompt else what + (tokenizer.eos_token or "")))
    tools = row.get("tools")
    kwargs = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **({"add_generation_prompt": True} if prompt else {"return_assistant_tokens_mask": args.assistant_only_loss}),
        **(row.get("chat_template_kwargs") or {}),
    }
    try:
        return dict(tokenizer.apply_chat_template(what, tokenize=True, return_dict=True, **kwargs))
    except Exception as error:  # whatever a template does with what it doesn't expect
        raise UnwritableError(f"the chat template can't write it: {error}") from error
