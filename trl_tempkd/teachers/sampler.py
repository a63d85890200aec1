# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""From prompts to completions of a teacher that is served."""

from collections.abc import Callable
from typing import Any

from ..errors import UsageError


class ServedSampler:
    """
    Completions from the server of a teacher, all asked for at once.

    Args:
        completions (`Callable`):
            Asks the server, as [`AskedTeacher.completions`].
        positions (`int`, *optional*):
            How many tokens a text may have there, where the server says so.
        args ([`~trl_tempkd.rollouts.RolloutOptions`]):
            How to sample.
        stops (`list[int]`):
            Tokens that end a completion.
        vocabulary (`int`):
            Number of tokens that both models know. A completion ends before one that they don't.
    """

    def __init__(
        self,
        completions: Callable[[list[list[int]], dict[str, Any], list[int]], list[list[int]]],
        positions: int | None,
        args: Any,
        stops: list[int],
        vocabulary: int,
    ):
        if args.generation_kwargs:
            raise UsageError(
                f"`generation_kwargs` is {args.generation_kwargs!r}, and with `seq_kd` and `teacher_server_url` the "
                "teacher's server generates, which takes other ones. Leave it unset."
            )
        self.positions, self._completions, self._vocabulary = positions, completions, vocabulary
        self.options: dict[str, Any] = {
            "max_tokens": args.max_new_tokens,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k or -1,
            "min_p": args.min_p or 0.0,
            "repetition_penalty": args.repetition_penalty,
            "stop_token_ids": stops,
        }
        completions([[0]], {**self.options, "max_tokens": 1}, [0])  # or it is refused now

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        seeds = [(seed + i) % 2**31 for i in range(len(prompts))]
        return [self._known(tokens) for tokens in self._completions(prompts, self.options, seeds)]

    def _known(self, tokens: list[int]) -> list[int]:
        return tokens[: next((i for i, token in enumerate(tokens) if token >= self._vocabulary), len(tokens))]
