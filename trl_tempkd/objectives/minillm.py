# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""MiniLLM: reverse KL of whole completions, of which what a token does to the later ones is a policy gradient."""

from typing import Any

import torch

from ..errors import UsageError
from .objective import Objective
from .tokens import Tokens


class MiniLLM(Objective):
    """
    reverse_kl of each token over the full vocabulary (the single step), plus -A_t log q(y_t) with
    A_t = sum over t' > t of log p(y_t') / q(y_t'), divided by the number of these t' (length normalisation).

    On text of the data set or the teacher it is reverse_kl alone.

    Source: Gu et al., MiniLLM, arXiv 2306.08543, section 2.2. What differs: completions are the student's alone, so
    there are no importance weights (there: a mixture with the teacher, in every token), and one update is made with
    each (there: PPO's clipped ratio over several; its code whitens A as well, and counts the token itself in); the
    language-modelling loss on a corpus is `kd_ratio`'s cross-entropy on the run's own data.
    """

    divergence = "reverse_kl"
    measures = ("ce", "teacher_ce")
    needs_student_text = True

    def __init__(self, long_term: float = 1.0):
        if not long_term >= 0:
            raise UsageError(f"`long_term` must not be negative, got {long_term}.")
        self.long_term = long_term
        self.state = {}

    def needed(self, on_policy: bool) -> tuple[str, ...]:
        return self.measures if on_policy else ()

    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        if not tokens.on_policy:
            return {"divergence": "reverse_kl"}
        reward = tokens.measured["ce"] - tokens.measured["teacher_ce"]  # log p(y) - log q(y)
        advantage = tokens.after(reward) / tokens.after(torch.ones_like(reward)).clamp(min=1)
        return {"divergence": "reverse_kl", "ce_weight": self.long_term * advantage}
