# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""DistiLLM-2: one divergence on the teacher's text, another on the student's, each with a skew that adapts."""

from typing import Any

import torch

from ..errors import UsageError
from .objective import Objective, Reduce
from .tokens import Tokens


class DistiLLM2(Objective):
    """
    skew_forward_kl on text of the data set or the teacher, skew_reverse_kl on the student's own.

    For each completion alpha = 1 - (1 - alpha_0) m / d, within [alpha_min, alpha_0]. d is how much likelier its writer
    finds it than the other model, as a difference of geometric means of its tokens' probabilities, and m is the mean
    of d over the first step that has such text. Until then alpha is alpha_0.

    Source: Ko et al., DistiLLM-2, arXiv 2503.07067, and its released code for m and the bounds. What differs: the two
    texts come in turns of a step, in the shares that `lmbda` says, and weigh the same per token (there: the same per
    completion, with a growing weight of the student's); the student inside the mixture isn't detached.
    """

    divergence = "skew_forward_kl"
    measures = ("ce", "teacher_ce")
    needs_student_text = True

    def __init__(self, alpha: float = 0.1, alpha_min: float = 0.01):
        if not 0 < alpha_min <= alpha < 1:
            raise UsageError(f"`alpha_min` and `alpha` must be in (0, 1), in this order, got {alpha_min} and {alpha}.")
        self.alpha, self.alpha_min = alpha, alpha_min
        self.state: dict[str, Any] = {"teacher": None, "student": None}  # m of the text of each
        self._sums: dict[str, Any] = {"teacher": 0.0, "student": 0.0}

    @staticmethod
    def _margin(tokens: Tokens) -> torch.Tensor:
        """Of each completion, how much likelier it is to its writer."""
        p, q = (tokens.mean(-tokens.measured[name]).exp() for name in ("teacher_ce", "ce"))
        return q - p if tokens.on_policy else p - q

    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        anchor = self.state["student" if tokens.on_policy else "teacher"]
        alpha = torch.full((), self.alpha, device=tokens.targets.device)
        if anchor is not None:
            margin = self._margin(tokens) + 1e-5
            alpha = (1 - (1 - self.alpha) * anchor / margin).clamp(self.alpha_min, self.alpha)[tokens.runs()]
        name = "skew_reverse_kl" if tokens.on_policy else "skew_forward_kl"
        return {"divergence": name, "divergence_kwargs": {"alpha": alpha}}

    def observe(self, tokens: Tokens, divergence: torch.Tensor) -> None:
        side = "student" if tokens.on_policy else "teacher"
        if self.state[side] is None:
            there = tokens.total(tokens.kept.double()) > 0
            margin = torch.where(there, self._margin(tokens), 0)
            self._sums[side] = self._sums[side] + torch.stack([margin.sum(), there.sum().double()])

    def step(self, reduce: Reduce, progress: float) -> None:
        for side, sums in self._sums.items():
            if isinstance(sums, torch.Tensor):
                total, count = reduce(sums).tolist()
                self.state[side] = total / count if count else None
        self.reset()

    def reset(self) -> None:
        self._sums = dict.fromkeys(self._sums, 0.0)

    def logs(self) -> dict[str, float]:
        return {f"distillm2_anchor_{side}": value for side, value in self.state.items() if value is not None}
