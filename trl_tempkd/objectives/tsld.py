# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""TSLD: logit distillation that weighs each token by how unsure of its label the teacher is."""

from typing import Any

from ..errors import UsageError
from .objective import Objective
from .tokens import Tokens


class Tsld(Objective):
    """
    forward_kl with the weights softmax(CE_teacher / scale) over the tokens of a completion, times their number.

    Source: Kim et al., Token-Scaled Logit Distillation, arXiv 2308.06744, and its released code for the scale of 10.
    What differs: the softmax runs over the labelled tokens alone (there: over the whole row), and the weights have
    mean 1, so that the loss stays a mean over tokens (there: it is a sum over completions).
    """

    divergence = "forward_kl"
    measures = ("teacher_ce",)

    def __init__(self, scale: float = 10.0):
        if not scale > 0:
            raise UsageError(f"`scale` must be positive, got {scale}.")
        self.scale = scale
        self.state = {}

    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        scores = (tokens.measured["teacher_ce"] / self.scale).clamp(max=60.0).double().exp()
        return {"divergence": "forward_kl", "kd_weight": scores / tokens.mean(scores).clamp(min=1e-30)[tokens.runs()]}
