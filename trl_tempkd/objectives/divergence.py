# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The simplest objective: a divergence of the two distributions."""

from typing import Any

from .objective import Objective
from .tokens import Tokens


class Divergence(Objective):
    """
    A divergence of each token, which is all that there is to it.

    Args:
        name (`str`): a name of `DIVERGENCES`.
        kwargs (`dict[str, Any]`, *optional*): its parameters.
    """

    def __init__(self, name: str, kwargs: dict[str, Any] | None = None):
        self.divergence, self._kwargs = name, kwargs
        self.state = {}

    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        return {"divergence": self.divergence, "divergence_kwargs": self._kwargs}
