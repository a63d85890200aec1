# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The tokens of a batch, and which of them stand in one completion.

A completion is a run of tokens with a label: packed and padding-free batches need no more than that, since a label of
-100 parts two samples, be it a prompt or the first token, which nothing predicts. Shape suffixes: B rows, L positions,
N = B * L tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """
    What an objective is told of a batch.

    Attributes:
        targets (`torch.Tensor` of shape `(B, L)`): the token that each position predicts, -100 where none counts.
        on_policy (`bool`): whether the student has written the completions itself.
        measured (`dict[str, torch.Tensor]`): what the objective has asked for, of shape `(N,)` each.
    """

    targets: Tensor
    on_policy: bool
    measured: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kept(self) -> Tensor:
        return (self.targets != -100).flatten()

    def runs(self) -> Tensor:
        """The number of each token's completion, of shape `(N,)`; N - 1 where there is none, which nobody reads."""
        kept = self.targets != -100
        starts = kept & ~torch.nn.functional.pad(kept, (1, 0))[:, :-1]
        number = starts.flatten().cumsum(0) - 1
        return torch.where(kept.flatten(), number, kept.numel() - 1)

    def total(self, values: Tensor) -> Tensor:
        """Of each completion the sum of its tokens' `values`, of shape `(N,)`: as many places as there may be runs."""
        kept = self.kept
        zeros = torch.zeros(len(kept), dtype=torch.float64, device=values.device)
        return zeros.index_add(0, self.runs(), torch.where(kept, values.double(), 0))

    def mean(self, values: Tensor) -> Tensor:
        """Of each completion the mean of its tokens' `values`, of shape `(N,)`."""
        return self.total(values) / self.total(torch.ones_like(values)).clamp(min=1)

    def after(self, values: Tensor) -> Tensor:
        """Of each token the sum of `values` over the later tokens of its completion, of shape `(N,)`."""
        values = torch.where(self.kept, values.double(), 0)
        total = self.total(values)
        before = (total.cumsum(0) - total)[self.runs()]  # of the completions before this one
        return torch.where(self.kept, total[self.runs()] - (values.cumsum(0) - before), 0)
