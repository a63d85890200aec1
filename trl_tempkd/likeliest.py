# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The likeliest tokens of a distribution that hold a given mass, without a sort.

A sort of the vocabulary costs more than the loss's matmuls. The probability at which the mass is reached is searched
for instead, as a float's bits: those of positive floats are ordered as the floats are, so that the search ends at the
very value of a token after a number of passes that is known beforehand, and never asks a device how far it is.
"""

import torch
from torch import Tensor


# Thresholds that are tried in a pass: a pass costs the time of reading the row, and as many sums are made meanwhile
TRIALS = 4
# Tokens of a group, when tokens are counted in their order: groups first, then those of one group
GROUP = 256


@torch.no_grad()
def head_mask(log_p: Tensor, mu: float) -> Tensor:
    """
    Mask of the most likely tokens whose cumulative mass, themselves included, is at most `mu`; rank 1 always in it.

    Equally likely tokens are taken in their order, as a stable sort would have them.

    Args:
        log_p (`torch.Tensor`): log-probabilities, shape `(..., V)`.
        mu (`float`): from 0 to 1; with 1 every token is in it.
    """
    if mu >= 1:
        return torch.ones_like(log_p, dtype=torch.bool)
    p = log_p.exp()
    p = p.to(torch.promote_types(p.dtype, torch.float32))
    last = _threshold(p, mu)  # the probability of which not every token fits, be it none of them
    above, tied = p > last, p == last
    mass = torch.where(above, p, 0).sum(-1, keepdim=True)
    room = ((mu - mass) / last.clamp(min=torch.finfo(p.dtype).tiny)).floor()  # so many fit; and if rounded wrongly:
    room = room + (mass + (room + 1) * last <= mu).to(p.dtype) - (mass + room * last > mu).to(p.dtype)
    room = torch.where(mass > 0, room, room.clamp(min=1))
    index = torch.arange(p.shape[-1], device=p.device, dtype=torch.int32)  # twice as fast on a CPU as int64
    return above | (tied & (room > 0) & (index <= _index_of(tied, room).to(index.dtype)))


def _threshold(p: Tensor, mu: float) -> Tensor:
    """The largest value that all tokens as likely, and more likely ones, hold more than `mu` with; `(..., 1)`."""
    of_two, integer = (1024 << 52, torch.int64) if p.dtype == torch.float64 else (128 << 23, torch.int32)
    bits, width = torch.zeros_like(p[..., :1], dtype=integer), of_two  # from 0 to 2, which no probability reaches
    while width > 1:
        width = -(-width // (TRIALS + 1))
        trials = [(bits + width * i).view(p.dtype) for i in range(1, TRIALS + 1)]
        masses = torch.cat([torch.where(p >= trial, p, 0).sum(-1, keepdim=True) for trial in trials], -1)
        bits = bits + width * (masses > mu).sum(-1, keepdim=True, dtype=integer)  # those that are too low come first
    return bits.view(p.dtype)


def _index_of(mask: Tensor, count: Tensor) -> Tensor:
    """Where the `count`-th token of a mask is, `(..., 1)`; at or past the end if it has fewer."""
    groups = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    sizes = groups.sum(-1, dtype=torch.int32)
    before = sizes.cumsum(-1) - sizes
    group = (before + sizes < count).sum(-1, keepdim=True).clamp(max=sizes.shape[-1] - 1)
    inside = groups.gather(-2, group.unsqueeze(-1).expand(*group.shape, GROUP)).squeeze(-2)
    rank = before.gather(-1, group) + inside.cumsum(-1)
    return group * GROUP + (rank < count).sum(-1, keepdim=True)
