# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""TAID: a target that moves from the student to the teacher, the faster the better the student follows."""

import math
from typing import Any

import torch

from ..errors import UsageError
from ..temperature_rules import sigmoid
from .objective import Objective, Reduce
from .tokens import Tokens


class Taid(Objective):
    """
    The divergence [`~trl_tempkd.divergences.taid`] whose t rises from `t` to `t_end`, never slower than linearly.

    With J the loss of a step, delta = (J_before - J) / J_before, m = momentum m + (1 - momentum) delta, and t grows by
    alpha sigmoid(m) (1 - t).

    Source: Shing et al., TAID, arXiv 2501.16937, algorithm 1. Its released code takes the cross-entropy with the
    target for J, we the divergence, and there a step is a micro-batch.
    """

    divergence = "taid"

    def __init__(self, t: float = 0.4, t_end: float = 1.0, alpha: float = 5e-4, momentum: float = 0.99):
        if not 0 <= t <= t_end <= 1:
            raise UsageError(f"`t` and `t_end` must be in [0, 1], the second no less, got {t} and {t_end}.")
        if not (0 <= alpha <= 1 and 0 <= momentum < 1):
            raise UsageError(f"`alpha` must be in [0, 1] and `momentum` in [0, 1), got {alpha} and {momentum}.")
        self.start, self.end, self.alpha, self.momentum = t, t_end, alpha, momentum
        self.state = {"t": t, "momentum": 0.0, "loss": math.inf}
        self._used = t
        self._sums: torch.Tensor | float = 0.0

    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        self._used = self.state["t"]
        t = torch.full((), self._used, device=tokens.targets.device)
        return {"divergence": "taid", "divergence_kwargs": {"t": t}}

    def observe(self, tokens: Tokens, divergence: torch.Tensor) -> None:
        self._sums = self._sums + torch.stack([divergence.double().sum(), tokens.kept.sum().double()])

    def step(self, reduce: Reduce, progress: float) -> None:
        assert isinstance(self._sums, torch.Tensor)
        total, count = reduce(self._sums).tolist()
        self.reset()
        if not count:
            return
        loss, state = total / count, self.state
        if math.isfinite(state["loss"]):
            if state["loss"] > 0:  # it is 0 where the student starts as the teacher
                change = (state["loss"] - loss) / (state["loss"] + 1e-15)
                state["momentum"] = self.momentum * state["momentum"] + (1 - self.momentum) * change
            faster = state["t"] + self.alpha * sigmoid(state["momentum"]) * (1 - state["t"])
            linear = self.start + (self.end - self.start) * progress
            state["t"] = min(self.end, max(linear, faster))
        state["loss"] = loss

    def reset(self) -> None:
        self._sums = 0.0

    def logs(self) -> dict[str, float]:
        return {"taid_t": self._used}
