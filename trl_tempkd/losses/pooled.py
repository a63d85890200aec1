# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Teachers of another vocabulary, compared with the student on bins that both are pooled into.

Each side's logits are softened and normalised over its own vocabulary first, and pooled then: the mass of a bin is the
sum over its tokens, a scatter-add. The gradient is the transpose, a gather: each token of a bin has its share
q_v / q_bin of the gradient of the bin. With ranks in the place of bins both are a sort.

Shape suffixes: N positions of the student, M of them aligned, R rows of a block, V a vocabulary (each side's own),
B bins, A tokens of the teacher in stretches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..temperature import LOG_FLOOR, centred, log_softmax, soften
from .truncated import F_DIVERGENCES, ON_BINS


# What means something on bins, but isn't bounded by what it is on strings
ON_POOLED = {
    **ON_BINS,
    "adaptive_kl": "bins are sorted into head and tail in the place of tokens",
    "todi": "a bin has one weight for all of its tokens",
    "alpha_beta": "with alpha + beta other than 1 it isn't an f-divergence",
    "entropy_aware": "the entropy that is held against the threshold is that of the bins",
    "diversity_reverse_kl": "the target is the bin of the student's next token",
    "decoupled_kl": "the target is the bin of the student's next token",
}
METRICS = (
    "kd", "kl_tau1_coarse", "student_entropy", "agreement", "ce", "aligned", "student_shared_mass",
    "teacher_shared_mass",
)  # fmt: skip
# Metrics that there are only where rows are aligned: their means are over those
OF_ALIGNED = ("kd", "kl_tau1_coarse", "agreement", "student_shared_mass", "teacher_shared_mass")

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Stretches:
    """
    What lies between aligned positions, for a term on its likelihood.

    Attributes:
        weight (`float`): factor of the term.
        student (`torch.Tensor` of shape `(N,)`): number of the stretch that each position's next token is in, or -1.
        hidden (`torch.Tensor` of shape `(A, H_t)`): the teacher's last hidden states before its tokens in them.
        tokens, teacher (`torch.Tensor` of shape `(A,)`): these tokens, and the number of their stretch.
        count (`int`): how many there are.
    """

    weight: float
    student: Tensor
    hidden: Tensor
    tokens: Tensor
    teacher: Tensor
    count: int


@dataclass(frozen=True)
class Pooled:
    """
    A teacher of another vocabulary, in the place of its hidden states.

    Attributes:
        hidden (`torch.Tensor` of shape `(M, H_t)`):
            Its last hidden states at aligned positions.
        rows (`torch.Tensor` of shape `(M,)`):
            The student's position that each is compared with, of all `N`.
        bins (`tuple[torch.Tensor, torch.Tensor]`):
            The bin of each of the student's tokens, `(V_s,)`, and of the teacher's, `(V_t,)`.
        count (`int`):
            How many bins there are; 0 for ranks: both distributions are sorted, and compared by rank.
        in_both (`tuple[torch.Tensor, torch.Tensor]`):
            Of each vocabulary, whether a token is in both; for metrics.
        stretches ([`Stretches`], *optional*):
            What lies between, if it counts.
    """

    hidden: Tensor
    rows: Tensor
    bins: tuple[Tensor, Tensor]
    count: int
    in_both: tuple[Tensor, Tensor]
    stretches: Stretches | None = None

    metrics = METRICS

    @property
    def tables(self) -> Tensors:
        """What a block needs of the vocabularies."""
        return (*self.bins, *(mask.float() for mask in self.in_both))

    def select(self, rows: Tensor) -> "Pooled":
        """At some of the student's positions, by their numbers, which become its positions."""
        place = rows.new_full((int(torch.cat([rows, self.rows]).max()) + 1 if len(rows) else 1,), -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        at = place[self.rows.clamp(max=len(place) - 1)]
        kept = (at >= 0) & (self.rows < len(place))
        stretches = self.stretches
        if stretches is not None:
            stretches = replace(stretches, student=stretches.student.index_select(0, rows))
        return replace(self, hidden=self.hidden[kept], rows=at[kept], stretches=stretches)

    def check(self, divergence: str, kwargs: dict[str, Any] | None) -> None:
        """As [`check_pooled`]."""
        check_pooled(divergence, kwargs, by_rank=not self.count)

    def at(self, count: int) -> Tensor:
        """Which of `hidden` belongs to each of the student's `count` positions, -1 where none does."""
        index = torch.arange(len(self.rows), device=self.rows.device)
        return torch.full((count,), -1, device=self.rows.device).index_copy(0, self.rows, index)


def check_pooled(divergence: str, kwargs: dict[str, Any] | None, by_rank: bool) -> None:
    """
    Args:
        divergence, kwargs (`str`, `dict`, *optional*): name of a divergence or an objective, and its parameters.
        by_rank (`bool`): whether tokens are compared by rank.

    Raises:
        `ValueError`: If it means nothing on bins.
    """
    allowed = F_DIVERGENCES if by_rank else (*F_DIVERGENCES, *ON_POOLED)
    if divergence not in allowed:
        kind = "ranks" if by_rank else "bins"
        raise UsageError(
            f"`divergence` {divergence} needs both models' probabilities of the same tokens, and "
            f"`vocabulary_alignment` compares two vocabularies by {kind}. Use one of {', '.join(allowed)}, or a "
            "teacher with the student's tokenizer."
        )


def floor_of(dtype: torch.dtype) -> float:
    """The least log-probability of a bin: a mass that is less counts as this."""
    return math.log(torch.finfo(dtype).tiny)


Spread = Callable[[Tensor], Tensor]


def pooled(logits_RV: Tensor, tau_R: Tensor, bins_V: Tensor, count: int) -> tuple[Tensor, Spread]:
    """
    Log-probabilities of the bins, `(R, B)`, and what makes of a Jacobian row in them one in the logits, `(R, V)`.

    The Jacobian row of bins is u - q sum(u), as if they were logits of their own.
    """
    weight_RV = soften(centred(logits_RV), tau_R).exp()  # the largest is 1: what is summed last can be divided last
    index_RV, tiny = bins_V.expand_as(weight_RV), torch.finfo(weight_RV.dtype).tiny
    weight_RB = weight_RV.new_zeros(len(weight_RV), count).scatter_add(1, index_RV, weight_RV)
    total_R1 = weight_RB.sum(-1, keepdim=True).clamp(min=tiny)
    mass_RB = (weight_RB / total_R1).clamp(min=tiny)

    def spread(jacobian_RB: Tensor) -> Tensor:
        most = torch.finfo(mass_RB.dtype).max
        return weight_RV * (jacobian_RB / mass_RB / total_R1).clamp(-most, most).gather(1, index_RV)

    return mass_RB.log(), spread


def ranked(logits_RV: Tensor, tau_R: Tensor, width: int) -> tuple[Tensor, Spread]:
    """
    The same by rank: log-probabilities in descending order, and none after the last of them, `(R, width)`.

    Source: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss, arXiv
    2402.12030.
    """
    log_RV = log_softmax(logits_RV, tau_R)
    own = log_RV.shape[-1]
    log_RW = torch.nn.functional.pad(_descending(log_RV), (0, width - own), value=LOG_FLOOR)

    def spread(jacobian_RW: Tensor) -> Tensor:
        return torch.empty_like(log_RV).scatter(-1, _order(log_RV), jacobian_RW[:, :own])

    return log_RW, spread


# On CPU numpy's sort uses vector instructions, which torch's doesn't
def _descending(values_RV: Tensor) -> Tensor:
    if values_RV.device.type != "cpu":
        return values_RV.sort(-1, descending=True).values
    return -torch.from_numpy(np.sort(-values_RV.detach().numpy(), axis=-1))


def _order(values_RV: Tensor) -> Tensor:
    """Where the values of [`_descending`] come from."""
    if values_RV.device.type != "cpu":
        return values_RV.argsort(-1, descending=True)
    return torch.from_numpy(np.argsort(-values_RV.detach().numpy(), axis=-1))


def sides(
    z_RV: Tensor, v_RV: Tensor, tau_s_R: Tensor, tau_t_R: Tensor, tables: Tensors, count: int
) -> tuple[tuple[Tensor, Spread], tuple[Tensor, Spread]]:
    """Student and teacher, by `count` bins or by rank."""
    if count:
        return pooled(z_RV, tau_s_R, tables[0], count), pooled(v_RV, tau_t_R, tables[1], count)
    width = max(z_RV.shape[-1], v_RV.shape[-1])
    return ranked(z_RV, tau_s_R, width), ranked(v_RV, tau_t_R, width)


def pooled_values(names: list[str], z_RV: Tensor, v_RV: Tensor, tables: Tensors, count: int) -> dict[str, Tensor]:
    """Those of `names` that look at both vocabularies, `(R,)` each, at temperature 1."""
    ones = torch.ones_like(z_RV[:, 0])
    values: dict[str, Tensor] = {"aligned": ones}
    if {"kl_tau1_coarse", "agreement"} & {*names}:
        (log_q, _), (log_p, _) = sides(z_RV, v_RV, ones, ones, tables, count)
        values["kl_tau1_coarse"] = (log_p.exp() * (log_p - log_q)).sum(-1)
        values["agreement"] = (log_p.argmax(-1) == log_q.argmax(-1)).to(log_p.dtype)
    for side, logits_RV, mask_V in (("student", z_RV, tables[2]), ("teacher", v_RV, tables[3])):
        if f"{side}_shared_mass" in names:
            probability_RV = log_softmax(logits_RV).exp()
            # No matmul, which autocast would make in half precision
            values[f"{side}_shared_mass"] = (probability_RV * mask_V.to(logits_RV.dtype)).sum(-1)
    return {name: value for name, value in values.items() if name in names}
