# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Rows whose teacher reads another prompt than the student: the tokens of that prompt, from the preparation on.

The two rows share what is trained on. So the teacher's is known by what stands before the first of these tokens.
"""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..chat import chat_prompt, template_arguments, text_prompt
from ..compat import common_prefix_length
from ..errors import UsageError
from ..row_formats import CONTEXTS, TEACHER_PROMPT, TEACHER_PROMPTS
from .options import RolloutOptions
from .rows import IGNORED


TOKENS = "teacher_tokens"  # column of rows while they are prepared: context and prompt


def check_own_prompts(args: RolloutOptions, columns: list[str], formatting_func: Any, name: str) -> None:
    """
    Stop at a `teacher_prompt` where the part that is trained on isn't an answer alone.

    Raises:
        [`UsageError`]: Names the option and the way out.
    """
    start = f"The {name} data have a `{TEACHER_PROMPT}`, and the teacher reads it in the place of the prompt"
    if formatting_func is not None:
        raise UsageError(
            f"{start}, but `formatting_func` makes one text of a row. Give rows `prompt` and `completion`."
        )
    if args.completion_only_loss is False:
        raise UsageError(
            f"{start}, but `completion_only_loss` is False, so that the prompt is trained on too: the teacher says "
            "nothing of it. Leave it unset."
        )
    if "messages" in columns and "prompt" not in columns and not args.assistant_only_loss:
        raise UsageError(
            f"{start}, but of `messages` every turn is trained on while `assistant_only_loss` is False. Set it to "
            "True, or give rows `prompt` and `completion`."
        )
    if args.packing and args.packing_strategy != "bfd":
        raise UsageError(
            f"{start}, and `packing_strategy` {args.packing_strategy!r} cuts rows into pieces that don't start with "
            "their prompt. Use 'bfd'."
        )


def teacher_tokens(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str | None, assistant_only: bool
) -> dict[str, Any]:
    """
    The teacher's tokens before the row's own answer, and before one that is generated: both empty where it reads the
    student's. They differ as TRL's own do, by what a chat template opens and the answer doesn't go on with.

    Args:
        row (`dict`):
            A row in one of TRL's formats.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the data.
        template (`str`, *optional*):
            Chat template that TRL trains with in place of the tokenizer's.
        assistant_only (`bool`):
            Whether of an answer only the assistant's words are trained on.
    """
    own = row[TEACHER_PROMPT]
    context: list[int] = []
    prompt: list[int] = []
    if own is not None:
        chat = not isinstance(own, str)
        prompt = chat_prompt(own, row, tokenizer, fallback=template) if chat else text_prompt(own, tokenizer)
        answer: Any = row.get("completion") if "prompt" in row else _last_turn(row)
        before = _before_turns if chat else _before_text
        context = prompt if answer is None else before(own, answer, row, tokenizer, template, assistant_only)
        if not prompt or not context:
            raise UsageError(f"a row has {own!r} in `{TEACHER_PROMPT}`, of which no token is left before the answer.")
    return {TOKENS: [np.asarray(part, dtype=np.int32) for part in (context, prompt)]}


def _last_turn(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    turns = row.get("messages") or []
    return turns[-1:] if turns and turns[-1]["role"] == "assistant" else None


def _before_text(own: str, answer: str, row: Any, tokenizer: Any, template: Any, assistant_only: bool) -> list[int]:
    end = tokenizer.eos_token or ""
    prompt, whole = (tokenizer(text=text)["input_ids"] for text in (own, own + answer.removesuffix(end) + end))
    return whole[: common_prefix_length(prompt, whole)]


def _before_turns(
    own: list, answer: list, row: dict[str, Any], tokenizer: Any, template: str | None, assistant_only: bool
) -> list[int]:
    kwargs = {"chat_template": template, **template_arguments(row), "tokenize": True, "return_dict": True}
    # Of `messages` TRL trains on the header of an answer too, if the template counts it among the assistant's words
    prompt = tokenizer.apply_chat_template(own, add_generation_prompt="prompt" in row, **kwargs)["input_ids"]
    whole = tokenizer.apply_chat_template([*own, *answer], return_assistant_tokens_mask=assistant_only, **kwargs)
    start = common_prefix_length(prompt, whole["input_ids"])
    if assistant_only:  # the answer may begin with something that isn't trained on
        words = whole["assistant_masks"]
        start = next((i for i in range(start, len(words)) if words[i]), start)
    return whole["input_ids"][:start]


def first_target(labels: list[int]) -> int | None:
    """Where the first token is that is trained on. The first of all isn't, as nothing predicts it."""
    return next((i for i in range(1, len(labels)) if labels[i] != IGNORED), None)


def context_of(row: dict[str, Any], kept: slice | None) -> list[int]:
    """What the teacher reads before the first token that is trained on, of those that are `kept` of a row."""
    ids, labels = row["input_ids"], row["labels"]
    first = first_target(labels)
    left = range(len(ids))[kept or slice(None)]
    now = first_target(labels[left.start : left.stop])
    if first is None or now is None:
        return []
    context = [int(token) for token in row[TOKENS][0]] or list(ids[:first])
    return [*context, *ids[first : left.start + now]]  # of the answer what was cut off before its rest


def carried_columns(
    row: dict[str, Any], kept: slice | None, prompt: list[int] | None, length: int, packing: bool
) -> dict[str, Any]:
    """
    The columns of a prepared row. To be packed they are as long as the row, with all of it at the first token.

    Args:
        row (`dict`):
            The row, whole.
        kept (`slice`, *optional*):
            What is left of it.
        prompt (`list[int]`, *optional*):
            The student's prompt, if completions are generated for it.
        length (`int`):
            How many tokens are left.
        packing (`bool`):
            Whether it will be packed.
    """
    context = context_of(row, kept)
    parts = {CONTEXTS: np.asarray([len(context), *context], dtype=np.int32)}
    if prompt is not None:
        parts[TEACHER_PROMPTS] = np.asarray([*row[TOKENS][1]] or prompt, dtype=np.int32)
    if not packing:
        return {name: part if name == CONTEXTS else [part] for name, part in parts.items()}
    return {name: [part, *[None] * (length - 1)] for name, part in parts.items()}


def unpacked_contexts(row: dict[str, Any]) -> dict[str, Any]:
    """The contexts of a packed row, one after the other."""
    parts = [np.asarray(part, dtype=np.int32) for part in row[CONTEXTS] if part is not None]
    return {CONTEXTS: np.concatenate([np.zeros(0, dtype=np.int32), *parts])}
