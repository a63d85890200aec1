# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The distillation loss on given logits: the plain formula, which the chunked loss is tested against."""

from typing import Any

import torch
from torch import Tensor

from ..divergences import DIVERGENCES, check_divergence, needs_target
from ..errors import UsageError
from ..temperature import log_softmax, rescale_factor, soften
from ..temperature_rules import RESCALED_BY_TAU, ROW_RULES, check_temperature_rule, row_temperatures


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str = "forward_kl",
    divergence_kwargs: dict[str, Any] | None = None,
    student_temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor = 1.0,
    rescale: str = "none",
    temperature_rule: str | None = None,
    temperature_rule_kwargs: dict[str, Any] | None = None,
    temperature_rule_sides: str = "both",
    labels: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """
    Divergence between teacher and student on given logits, differentiable in the student's by autograd.

    Args:
        student_logits, teacher_logits (`torch.Tensor`): shapes `(..., V_s)` and `(..., V_t)`. Where the vocabularies
            are padded to different sizes their common prefix is compared and the rest has probability zero.
        divergence, divergence_kwargs (`str`, `dict`, *optional*): a name of `DIVERGENCES` and its parameters.
        student_temperature, teacher_temperature (`float` or `torch.Tensor`): positive; tensors broadcast to `(...,)`.
        rescale (`str`): `none`, `tau` or `tau2`, see [`~trl_tempkd.temperature.rescale_factor`].
        temperature_rule, temperature_rule_kwargs (`str`, `dict`, *optional*): a name of
            [`~trl_tempkd.temperature_rules.ROW_RULES`] that makes a temperature for each token of these, and its
            parameters.
        temperature_rule_sides (`str`): `both`, `student` or `teacher`: whose temperature it decides.
        labels (`torch.Tensor`, *optional*): shape `(...,)`, the token that each row of logits predicts (already
            shifted); rows with -100 count for nothing.
        reduction (`str`): `none` gives `(...,)`, `sum` and `mean` reduce over rows whose label is not -100.

    Returns:
        `torch.Tensor`, nats per token, in fp32 at least.

    Raises:
        `ValueError`: an argument is unknown, out of range or missing.
    """
    check_divergence(divergence, divergence_kwargs)
    check_temperatures(student_temperature, teacher_temperature)
    check_rule(temperature_rule, temperature_rule_kwargs, temperature_rule_sides)
    if reduction not in ("none", "mean", "sum"):
        raise UsageError(f"`reduction` must be one of none, mean, sum, got {reduction!r}.")
    if labels is None and needs_target(divergence):
        raise UsageError(f"`labels` is required: {divergence} looks at the target token. Pass shape `(...,)` labels.")
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    student_logits, teacher_logits = student_logits[..., :size], teacher_logits[..., :size]
    rows = student_logits.shape[:-1]
    tau_s, tau_t = (
        t.to(student_logits.device).expand(rows) if isinstance(t, Tensor) else t
        for t in (student_temperature, teacher_temperature)
    )

    factor = rescale_factor(rescale, tau_s, tau_t)
    if temperature_rule is not None:
        logits = soften(student_logits, 1.0), soften(teacher_logits, 1.0)  # in fp32 at least
        tau_s, tau_t = (torch.as_tensor(t).to(logits[0]).expand(rows) for t in (tau_s, tau_t))
        kwargs = temperature_rule_kwargs or {}
        tau_s, tau_t = row_temperatures(temperature_rule, kwargs, *logits, tau_s, tau_t, temperature_rule_sides)
        if temperature_rule not in RESCALED_BY_TAU:
            factor = rescale_factor(rescale, tau_s, tau_t)
    log_p, log_q = log_softmax(teacher_logits.detach(), tau_t), log_softmax(student_logits, tau_s)
    target = (labels.clamp(min=0),) if labels is not None and needs_target(divergence) else ()
    loss = DIVERGENCES[divergence](log_p, log_q, *target, **(divergence_kwargs or {}))
    loss = loss * factor
    if labels is not None:
        loss = torch.where(labels != -100, loss, 0)
    if reduction == "none":
        return loss
    count = loss.numel() if labels is None else (labels != -100).sum()
    return loss.sum() if reduction == "sum" else loss.sum() / max(count, 1)


def check_temperatures(student_temperature: float | Tensor, teacher_temperature: float | Tensor) -> None:
    """
    Raises:
        `ValueError`: a temperature is not a positive number. (Tensors are not read: that would stall a GPU.)
    """
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if not isinstance(value, Tensor) and not 0 < value < float("inf"):
            raise UsageError(f"`{name}` must be positive and finite, got {value}.")


def check_rule(rule: str | None, kwargs: dict[str, Any] | None, sides: str) -> None:
    """
    Raises:
        `ValueError`: there is no such rule for rows of logits, a parameter doesn't fit it, or `sides` is unknown.
    """
    check_temperature_rule(rule, kwargs)
    if rule is not None and rule not in ROW_RULES:
        raise UsageError(
            f"`temperature_rule` must be one of {', '.join(ROW_RULES)}, got {rule!r}, which needs more than a token's "
            "logits: pass the temperatures that it gives as tensors."
        )
    if sides not in ("both", "student", "teacher"):
        raise UsageError(f"`temperature_rule_sides` must be one of both, student, teacher, got {sides!r}.")
