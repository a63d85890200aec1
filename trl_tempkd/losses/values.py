# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a row of logits is measured by beside its loss: entropies, cross-entropies and distances, all at temperature 1.

Only what is asked for is computed. Shape suffixes: R rows, V vocabulary, K tokens that a truncated teacher knows,
B = K + 1 bins.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..temperature import centred, log_probability, log_softmax, soften
from .truncated import coarse_logits


# Those that look at one of the two alone: another's logits need not be there
OF_STUDENT = {"ce", "student_entropy"}
OF_TEACHER = {"teacher_ce", "teacher_entropy"}
# All that look at whole rows
WHOLE = (*sorted(OF_STUDENT | OF_TEACHER), "kl_tau1", "hellinger", "agreement")


def whole_values(
    names: Sequence[str], z_RV: Tensor | None, v_RV: Tensor | None, target_R: Tensor
) -> dict[str, Tensor]:
    """
    Those of `names` that are known here, of shape `(R,)` each.

    Args:
        names (`Sequence[str]`): of the metrics of [`ChunkedKDOutput`].
        z_RV, v_RV (`torch.Tensor`): logits of student and teacher, each where a metric looks at it.
        target_R (`torch.Tensor`): the target tokens.
    """
    values, asked, log = {}, set(names), {}
    for side, logits_RV, ce in (("student", z_RV, "ce"), ("teacher", v_RV, "teacher_ce")):
        if {f"{side}_entropy", "kl_tau1"} & asked:  # else a token's own is enough
            log[side] = log_softmax(logits_RV)
        if f"{side}_entropy" in asked:
            values[f"{side}_entropy"] = -(log[side].exp() * log[side]).sum(-1)
        if ce in asked:
            whole = log.get(side)
            values[ce] = -(log_probability(logits_RV, target_R) if whole is None else own(whole, target_R))
    if "kl_tau1" in asked:
        values["kl_tau1"] = (log["teacher"].exp() * (log["teacher"] - log["student"])).sum(-1)
    if "hellinger" in asked:
        values["hellinger"] = (_root(z_RV) - _root(v_RV)).square().sum(-1).mul(0.5).sqrt()
    if "agreement" in asked:
        values["agreement"] = _agreement(v_RV, z_RV, z_RV)
    return values


def truncated_values(
    names: Sequence[str], z_RV: Tensor, target_R: Tensor, ids_RK: Tensor, log_p_RB: Tensor, *at_1: Tensor
) -> dict[str, Tensor]:
    """[`whole_values`] for which the teacher's bins are enough; `at_1` are its log-probabilities at temperature 1."""
    values = whole_values([name for name in names if name in OF_STUDENT], z_RV, None, target_R)
    if "agreement" in names:
        values["agreement"] = _agreement(log_p_RB[:, :-1], z_RV.gather(-1, ids_RK), z_RV)
    if {"kl_tau1_coarse", "student_mass_outside"} & {*names}:
        coarse = log_softmax(coarse_logits(z_RV, ids_RK, 1.0)[0])
        if "kl_tau1_coarse" in names:
            values["kl_tau1_coarse"] = (at_1[0].exp() * (at_1[0] - coarse)).sum(-1)
        if "student_mass_outside" in names:
            values["student_mass_outside"] = coarse[:, -1].exp()
    return values


def own(values_RV: Tensor, target_R: Tensor) -> Tensor:
    """Those of the target tokens."""
    return values_RV.gather(-1, target_R.unsqueeze(-1)).squeeze(-1)


def _root(logits_RV: Tensor) -> Tensor:
    """The square roots of the probabilities."""
    root_RV = soften(centred(logits_RV), 2.0).exp()
    return root_RV / root_RV.square().sum(-1, keepdim=True).clamp(min=torch.finfo(root_RV.dtype).tiny).sqrt()


def _agreement(teacher: Tensor, student: Tensor, z_RV: Tensor) -> Tensor:
    """1 where the student's first is among the teacher's first; `teacher` and `student` are about the same tokens."""
    # argmax does not vectorise on CPU: ask instead for the student's best among the teacher's first
    best = torch.where(teacher == teacher.amax(-1, keepdim=True), student, -math.inf).amax(-1)
    return (best == z_RV.amax(-1)).to(z_RV.dtype)
