# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a served teacher writes: token ids in, token ids out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .faults import Malformed
from .questions import NO_HEADERS, WRONG_FORM, parse


@dataclass(frozen=True)
class Completion:
    """
    The completion of a prompt.

    Attributes:
        model (`str`):
            Name of the model.
        prompt (`Sequence[int]`):
            Its token ids.
        options (`Mapping[str, Any]`):
            How to sample, as fields of the request: `max_tokens`, `temperature`, `stop_token_ids`, ...
        seed (`int`):
            Of the sampling.
    """

    model: str
    prompt: Sequence[int]
    options: Mapping[str, Any]
    seed: int

    method = "POST"
    path = "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        own = {"model": self.model, "prompt": list(self.prompt), "seed": self.seed, "return_token_ids": True}
        return {**own, **self.options}

    @property
    def limit(self) -> int:
        return 2**20 + 512 * (len(self.prompt) + int(self.options["max_tokens"]))

    def read(self, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> list[int]:
        """Its token ids, with the one that stopped it, if one did."""
        try:
            (choice,) = parse(content)["choices"]
            tokens, longest = choice.get("token_ids"), int(self.options["max_tokens"])
            if tokens is None:
                raise Malformed("it has no token ids, which vLLM gives from version 0.10.2 on (`return_token_ids`)")
            if not {*map(type, tokens)} <= {int} or min(tokens, default=0) < 0:
                raise Malformed("it has token ids that are none")
        except WRONG_FORM as error:
            raise Malformed(f"it has another form than vLLM's ({type(error).__name__})") from None
        if len(tokens) > longest:
            raise Malformed(f"it has {len(tokens)} tokens, where {longest} were asked for at most")
        return tokens

    def hint(self, status: int, said: str) -> str | None:
        if status in (404, 405):
            return (
                "It must generate, as vLLM does without --runner pooling: let `teacher_server_generation_url` name a "
                "server that does, or set `seq_kd` to False; for `trl-tempkd generate` that is `teacher_server_url`."
            )
        return None
