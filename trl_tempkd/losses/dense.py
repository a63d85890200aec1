# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The distillation loss on given logits: the plain formula, which the chunked loss is tested against."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..divergences import DIVERGENCES, needs_target
from ..errors import UsageError
from ..own import divergence_name, rule_name
from ..temperature import centred, log_softmax, rescale_factor
from ..temperature_rules import RESCALED_BY_TAU, row_temperatures
from .arguments import check_labels, check_options, check_targets, check_tensors, per_token


FP16_MAX = torch.finfo(torch.float16).max


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str | Callable[..., Tensor] = "forward_kl",
    divergence_kwargs: dict[str, Any] | None = None,
    student_temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor = 1.0,
    rescale: str = "none",
    temperature_rule: str | Callable[..., Any] | None = None,
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
        divergence, divergence_kwargs (`str`, `dict`, *optional*): a name of `DIVERGENCES`, or a function that
            [`register_divergence`] would take, and its parameters.
        student_temperature, teacher_temperature (`float` or `torch.Tensor`): positive; tensors broadcast to `(...,)`.
        rescale (`str`): `none`, `tau` or `tau2`, see [`~trl_tempkd.temperature.rescale_factor`].
        temperature_rule, temperature_rule_kwargs (`str`, `dict`, *optional*): a name of
            [`~trl_tempkd.temperature_rules.ROW_RULES`] that makes a temperature for each token of these, or a function
            that [`register_temperature_rule`] would take, and its parameters.
        temperature_rule_sides (`str`): `both`, `student` or `teacher`: whose temperature it decides.
        labels (`torch.Tensor`, *optional*): shape `(...,)`, the token that each row of logits predicts (already
            shifted); rows with -100 count for nothing.
        reduction (`str`): `none` gives `(...,)`, `sum` and `mean` reduce over rows whose label is not -100.

    Returns:
        `torch.Tensor`, nats per token, in fp32 at least.

    Raises:
        `ValueError`: an argument is unknown, out of range or missing.
    """
    divergence, temperature_rule = divergence_name(divergence), rule_name(temperature_rule)
    check_options(
        divergence,
        divergence_kwargs,
        student_temperature,
        teacher_temperature,
        rescale,
        temperature_rule,
        temperature_rule_kwargs,
        temperature_rule_sides,
    )
    if reduction not in ("none", "mean", "sum"):
        raise UsageError(f"`reduction` must be one of none, mean, sum, got {reduction!r}.")
    check_tensors(student_logits=student_logits, teacher_logits=teacher_logits)
    rows = student_logits.shape[:-1]
    if not student_logits.dim() or not teacher_logits.dim() or teacher_logits.shape[:-1] != rows:
        raise UsageError(
            "`student_logits` and `teacher_logits` must have shapes (..., V_s) and (..., V_t) with the same tokens, "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}."
        )
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    check_labels(labels, rows, divergence if needs_target(divergence) else None)
    kept = None
    if labels is not None:
        labels = labels.long()
        kept = labels != -100
        if not torch.compiler.is_compiling():  # on a GPU this waits, which the loss that is made for training doesn't
            check_targets(labels, size)
    student_logits, teacher_logits = student_logits[..., :size], teacher_logits[..., :size].detach()
    in_fp16 = student_logits.dtype == torch.float16 and student_logits.requires_grad
    student_logits = student_logits.float() if in_fp16 else student_logits
    tau_s, tau_t = (
        per_token(f"{side}_temperature", t.to(student_logits.device) if isinstance(t, Tensor) else t, rows)
        for side, t in (("student", student_temperature), ("teacher", teacher_temperature))
    )
    kwargs = {
        name: per_token(f"divergence_kwargs[{name!r}]", value, rows) if getattr(value, "ndim", 0) else value
        for name, value in (divergence_kwargs or {}).items()
    }

    factor = rescale_factor(rescale, tau_s, tau_t)
    if temperature_rule is not None:
        logits = centred(student_logits), centred(teacher_logits)  # in fp32 at least
        tau_s, tau_t = (
            t.to(logits[0]) if isinstance(t, Tensor) else logits[0].new_full((), t) for t in (tau_s, tau_t)
        )
        tau_s, tau_t = tau_s.expand(rows), tau_t.expand(rows)
        options = temperature_rule_kwargs or {}
        tau_s, tau_t = row_temperatures(temperature_rule, options, *logits, tau_s, tau_t, temperature_rule_sides)
        if temperature_rule not in RESCALED_BY_TAU:
            factor = rescale_factor(rescale, tau_s, tau_t)
    log_p, log_q = log_softmax(teacher_logits, tau_t), log_softmax(student_logits, tau_s)
    target = (labels.clamp(min=0),) if labels is not None and needs_target(divergence) else ()
    loss = DIVERGENCES[divergence](log_p, log_q, *target, **kwargs) * factor
    if kept is not None:
        loss = torch.where(kept, loss, 0)
    if reduction != "none":
        count = max(loss.numel(), 1) if kept is None else kept.sum().clamp(min=1)
        loss = loss.sum() if reduction == "sum" else loss.sum() / count
    if in_fp16 and not torch.compiler.is_compiling():
        _bound_gradient(student_logits, loss)
    return loss


def _bound_gradient(logits: Tensor, loss: Tensor) -> None:
    """
    Keep the gradient of logits that were fp16 within what fp16 can hold: alpha_beta's has no bound worth having.

    It is that of the loss itself which is bounded. What a loss scale brings to overflow is infinite, as it must be.
    """
    above: dict[str, Tensor] = {}

    def bounded(grad: Tensor) -> Tensor:
        scale = above["grad"].abs().clamp(min=1)
        most = FP16_MAX * (scale.unsqueeze(-1) if scale.dim() else scale)
        return torch.minimum(torch.maximum(grad, -most), most)

    loss.register_hook(lambda grad: above.update(grad=grad))
    logits.register_hook(bounded)
