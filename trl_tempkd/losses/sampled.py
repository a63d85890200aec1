# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Teachers of which some tokens a position were drawn at random: forward KL without bias, at the price of noise.

The gradient of forward KL in the logits is q - p, linear in p, so that any weights whose mean is p give it without
bias, whatever the tail weighs. Other divergences aren't linear in p.

Independent draws from p have the variance (1 - sum p^2) / S, and no other proposal pi has less: sum p^2 / pi is
smallest at pi = p. What lowers it is to draw no token twice. A token that is likelier than what is left over for each
draw is taken for certain and weighs p; of the others each is taken with the probability p / c and weighs c, the same
for all (Duffield et al., Priority sampling, 2007; one uniform number for all draws of a row, as in systematic
sampling). So a peaked row has next to no noise, where independent draws take its first token again and again.

Shape suffixes: N positions, V vocabulary, S draws, T temperatures of the grid.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..temperature import LOG_FLOOR, log_softmax
from .truncated import Truncated


def draw(p_NV: Tensor, samples: int, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """
    Draw tokens with weights whose mean is p.

    Args:
        p_NV (`torch.Tensor`): probabilities, in fp64.
        samples (`int`): how many, at most V.
        uniform_N (`torch.Tensor`): a number in [0, 1) for each row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: tokens, each once, and weights that sum to 1, of shape `(N, S)`.
    """
    top_NS, ids_NS = p_NV.topk(samples, dim=-1)
    if samples == p_NV.shape[-1]:
        return ids_NS, top_NS
    slots = torch.arange(samples, device=p_NV.device)
    left_NS = (1 - top_NS.cumsum(-1) + top_NS).clamp(min=0)  # without the tokens before
    certain_NS = (top_NS >= left_NS / (samples - slots)).cumprod(-1).bool()
    n_certain = certain_NS.sum(-1, keepdim=True)
    rest_NV = p_NV.scatter(-1, ids_NS, torch.where(certain_NS, 0, top_NS)).cumsum(-1)
    weight_N1 = rest_NV[:, -1:] / (samples - n_certain).clamp(min=1)
    # Points one weight apart in the cumulative mass: no token is as long as that, so none is hit twice
    points_NS = (uniform_N.unsqueeze(-1) + slots - n_certain) * weight_N1
    hit_NS = torch.searchsorted(rest_NV, torch.minimum(points_NS, rest_NV[:, -1:] * (1 - 1e-12)), right=True)
    return torch.where(certain_NS, ids_NS, hit_NS), torch.where(certain_NS, top_NS, weight_N1)


@dataclass(frozen=True)
class Sampled(Truncated):
    """
    Tokens drawn from a teacher at each temperature of a grid, as [`draw`] does, and its entropy there.

    The loss is forward KL in the mean over draws, and so may be negative at a position.

    Attributes:
        ids, weights (`torch.Tensor` of shape `(N, T, S)`):
            The tokens, each once for a temperature, and what they weigh.
        entropy (`torch.Tensor` of shape `(N, T)`):
            The teacher's entropy, in nats.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor

    why = "tokens were drawn from the teacher at these temperatures alone"

    @staticmethod
    def check(divergence: str, kwargs: dict[str, Any] | None) -> None:
        if divergence != "forward_kl":
            raise UsageError(
                f"`divergence` {divergence} can't be had from tokens drawn from the teacher, only forward_kl: its "
                "gradient q - p is linear in p, so that draws give it without bias, and that of any other isn't. "
                "Use a cache of --mode topk for some of them, or of --mode hidden for all."
            )

    @staticmethod
    def metrics_of(taus: tuple[float, ...]) -> tuple[str, ...]:
        return ("kd", "student_entropy", "ce")

    def at(self, tau: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
        i = self.index(tau)
        log_weights = self.weights[:, i].to(dtype).log().clamp(min=LOG_FLOOR)
        # k + 1 bins of which the last is empty: their forward KL but for the entropy, which is that of the draws
        log_p = log_softmax(torch.nn.functional.pad(log_weights, (0, 1), value=-math.inf))
        return self.ids[:, i], log_p, -(log_p.exp() * log_p).sum(-1) - self.entropy[:, i].to(dtype)
