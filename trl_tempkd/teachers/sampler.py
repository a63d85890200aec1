# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""From prompts to completions of a teacher that is served."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from .client import CompletionsClient, TeacherServerError
from .generation import Completion


class ServedSampler:
    """
    Completions from the server of a teacher, all asked for at once.

    Args:
        completions (`Callable`):
            Asks the server, as [`AskedTeacher.completions`]. A refusal in the place of a completion is passed on.
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
        completions: Callable[[list[list[int]], dict[str, Any], list[int]], list[Any]],
        positions: int | None,
        args: Any,
        stops: list[int],
        vocabulary: int,
    ):
        if args.generation_kwargs:
            raise UsageError(
                f"`generation_kwargs` is {args.generation_kwargs!r}, and the teacher's server generates, which takes "
                "other ones. Leave it unset."
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
        (first,) = completions([[0]], {**self.options, "max_tokens": 1}, [0])  # or it is refused now
        if isinstance(first, UsageError):
            raise first

    def __call__(self, prompts: list[list[int]], seed: int) -> list[Any]:
        seeds = [(seed + i) % 2**31 for i in range(len(prompts))]
        found = self._completions(prompts, self.options, seeds)
        return [each if isinstance(each, UsageError) else self._known(each) for each in found]

    def _known(self, tokens: list[int]) -> list[int]:
        return tokens[: next((i for i, token in enumerate(tokens) if token >= self._vocabulary), len(tokens))]


def writing_server(args: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[ServedSampler, str]:
    """
    What has the server write that options name, and the name of the model there.

    Args:
        args ([`~trl_tempkd.generating.GenerateConfig`]):
            Where it is, and how to sample.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the teacher.

    Raises:
        `ValueError`: If it doesn't generate.
        [`TeacherServerError`]: If it doesn't answer, now or later. What it says of one prompt alone is returned.
    """
    client = CompletionsClient(
        args.teacher_server_url,
        args.teacher_server_model or args.teacher_model_name_or_path,
        None,
        args.teacher_server_requests,
        args.teacher_server_timeout,
        args.teacher_server_patience,
        or_checkpoint=not args.teacher_server_model,
        option="teacher_server_model" if args.teacher_server_model else "teacher_model_name_or_path",
    )

    def completions(prompts: list[list[int]], options: dict[str, Any], seeds: list[int]) -> list[Any]:
        asked = [client.run(Completion(client.model, p, options, s)) for p, s in zip(prompts, seeds, strict=True)]
        return [_answer(request) for request in asked]

    stops = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return ServedSampler(completions, client.card.positions, args, stops, len(tokenizer)), client.model


def _answer(request: "Future[list[int]]") -> list[int] | TeacherServerError:
    try:
        return request.result()
    except TeacherServerError as error:
        if not error.of_request:
            raise
        return error
