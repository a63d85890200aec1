# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The distillation loss from hidden states and heads, a chunk of tokens at a time: no `(N, V)` tensor is ever built.

For each chunk both heads are multiplied, and what follows is done by blocks of rows that fit the cache: temperature,
divergence, its derivative u with respect to log q, and one softmax Jacobian for the whole family,

    grad_z = (u - q * sum(u)) / tau_s,

which overwrites the student's logits and goes straight into the two gradient matmuls. That makes four matmuls in all,
the least there can be; three where the student's head is frozen, two without gradients.

Of a truncated teacher ([`TopK`], [`Sampled`]) there is no head to multiply: one matmul less. A teacher of another
vocabulary ([`Pooled`]) is compared on bins that the chunk's rows are pooled into.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..divergences import needs_target
from ..errors import UsageError
from ..own import divergence_name, rule_name
from .arguments import (
    check_labels,
    check_metrics,
    check_number,
    check_options,
    check_tensors,
    per_token,
    refuse_transforms,
)
from .block import TAU_METRICS, BlockSpec
from .fused import ChunkedKD
from .measured import Measured
from .mixture import Mixture
from .operands import Logits, make_operands
from .pooled import Pooled
from .stretches import measure_stretches
from .truncated import Truncated
from .values import WHOLE


# Of a teacher whose rows are whole
METRICS: tuple[str, ...] = ("kd", "kl_tau1", "student_entropy", "teacher_entropy", "agreement", "ce")


class ChunkedKDOutput(NamedTuple):
    """
    Output of [`chunked_kd_loss`].

    Attributes:
        loss (`torch.Tensor`): scalar, differentiable once in the student's hidden states, head weight and bias.
        per_token (`torch.Tensor`): shape `(N,)`, detached: the rescaled divergence in nats, 0 where the label is -100.
        metrics (`dict` or `None`): shape `(N,)` each, detached, 0 where the label is -100: `kd` (divergence at tau,
            not rescaled), `ce` (where labels are given), `kl_tau1` (KL(p, q) at tau 1), `student_entropy` and
            `teacher_entropy` (at tau 1), all in nats, and `agreement` (1 where both rank the same token first). Of a
            truncated teacher or one of another vocabulary those that it has the numbers for, its `metrics`, among them
            of a truncated one `student_mass_outside`, the student's probability of all but the known tokens at tau 1,
            and with stretches `alm`, their term with its weight, which is part of `per_token`. With a
            `temperature_rule` also the temperatures, `student_tau` and `teacher_tau`. By name alone: `teacher_ce`, the
            teacher's cross-entropy at tau 1, `hellinger`, Hellinger's distance at tau 1, and `student_tau_grad` and
            `teacher_tau_grad`, the derivatives of the rescaled divergence with respect to the temperatures.
    """

    loss: Tensor
    per_token: Tensor
    metrics: dict[str, Tensor] | None


@torch.compiler.disable
def chunked_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | Logits | Truncated | Mixture | Pooled,
    teacher_weight: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_final_logit_softcapping: float | None = None,
    divergence: str | Callable[..., Tensor] = "forward_kl",
    divergence_kwargs: dict[str, Any] | None = None,
    student_temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor = 1.0,
    rescale: str = "none",
    temperature_rule: str | Callable[..., Any] | None = None,
    temperature_rule_kwargs: dict[str, Any] | None = None,
    temperature_rule_sides: str = "both",
    labels: Tensor | None = None,
    kd_ratio: float = 1.0,
    kd_weight: Tensor | None = None,
    ce_weight: Tensor | None = None,
    chunk_size: int | None = None,
    normalizer: float | Tensor | None = None,
    metrics: bool | Sequence[str] = False,
    compile: bool | None = None,
    measured: Measured | None = None,
) -> ChunkedKDOutput:
    """
    [`kd_loss`] of two models' last hidden states, without the logits in full.

    Matmuls run in the head's dtype (autocast's where it is on), everything after them in fp32 at least.

    Args:
        student_hidden, teacher_hidden (`torch.Tensor`): shapes `(N, H_s)` and `(N, H_t)`, input of each head.
        student_weight, teacher_weight (`torch.Tensor`): shapes `(V_s, H_s)` and `(V_t, H_t)`. Where the vocabularies
            are padded to different sizes their common prefix is compared and the rest has probability zero. A
            truncated teacher, [`TopK`] or [`Sampled`], stands in the place of `teacher_hidden` and has no head. Nor do
            [`Logits`] need one, nor a [`Mixture`] of teachers, whose parts have theirs, and their temperatures.
            [`Pooled`] is a teacher of another vocabulary, with its head: positions of the student that aren't aligned
            with it have no divergence, and count in the number of tokens.
        student_bias, teacher_bias (`torch.Tensor`, *optional*): the heads' biases, `(V_s,)` and `(V_t,)`.
        student_logit_scale, teacher_logit_scale (`float`): factor of the logits (Cohere, Granite, Falcon-H1).
        student_final_logit_softcapping, teacher_final_logit_softcapping (`float`, *optional*): c in c tanh(logits / c)
            after the scale (Gemma).
        divergence, divergence_kwargs (`str`, `dict`, *optional*): a name of `DIVERGENCES`, or a function that
            [`register_divergence`] would take, and its parameters, some of which may be tensors of shape `(N,)` or
            `()`.
        student_temperature, teacher_temperature (`float` or `torch.Tensor`): positive; a tensor has shape `(N,)`. That
            of a truncated teacher is a float of its grid.
        rescale (`str`): `none`, `tau` or `tau2`, see [`~trl_tempkd.temperature.rescale_factor`].
        temperature_rule, temperature_rule_kwargs (`str`, `dict`, *optional*): a name of
            [`~trl_tempkd.temperature_rules.ROW_RULES`] that makes a temperature for each token of these, or a function
            that [`register_temperature_rule`] would take, and its parameters.
        temperature_rule_sides (`str`): `both`, `student` or `teacher`: whose temperature it decides.
        labels (`torch.Tensor`, *optional*): shape `(N,)`, the token that each row predicts (already shifted), one of
            those that both vocabularies have. Rows with -100 are dropped before any matmul.
        kd_ratio (`float`): the loss is kd_ratio * divergence + (1 - kd_ratio) * cross-entropy at tau 1.
        kd_weight (`torch.Tensor`, *optional*): shape `(N,)`, each token's factor on the divergence.
        ce_weight (`torch.Tensor`, *optional*): shape `(N,)`, added to (1 - kd_ratio), each token's own; of any sign.
        chunk_size (`int`, *optional*): tokens in a chunk; by default as many as keep its logits near 2^24.
        normalizer (`float` or `torch.Tensor`, *optional*): the sum over tokens is divided by it; by default the number
            of tokens that count.
        metrics (`bool` or `list[str]`): also compute the metrics of [`ChunkedKDOutput`], or those named, which need a
            second pair of softmaxes.
        compile (`bool`, *optional*): whether `torch.compile` makes the arithmetic between the matmuls. By default on
            CUDA and, where a C++ compiler is found, for large losses on CPU. Results agree to rounding.
        measured ([`Measured`], *optional*): what [`measure_tokens`] gave for the same hidden states, heads, labels and
            chunks: its last product with each head isn't computed again.

    Returns:
        [`ChunkedKDOutput`]. Without a token that counts the loss is 0, with zero gradients.

    Raises:
        `ValueError`: an argument is unknown, out of range, missing, or of the wrong shape; a second derivative is
            asked for.
    """
    kwargs = divergence_kwargs or {}
    refuse_transforms(
        *(student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias, labels),
        *(student_temperature, teacher_temperature, kd_weight, ce_weight, *kwargs.values()),
    )
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
    check_tensors(student_hidden=student_hidden, student_weight=student_weight)
    check_number("kd_ratio", kd_ratio)
    if not 0 <= kd_ratio <= 1:
        raise UsageError(f"`kd_ratio` must be between 0 and 1, got {kd_ratio}.")
    needs = f"`kd_ratio` {kd_ratio}" if kd_ratio < 1 else None if ce_weight is None else "`ce_weight`"
    check_labels(labels, student_hidden.shape[:1], divergence if needs_target(divergence) else needs)
    if isinstance(teacher_hidden, Truncated):
        teacher_hidden.check(divergence, divergence_kwargs)
        if temperature_rule is not None:
            raise UsageError(f"`temperature_rule` {temperature_rule} needs the teacher's whole rows: leave it unset.")
        names = teacher_hidden.metrics
        known = (*names, "student_tau", "teacher_tau")
    elif isinstance(teacher_hidden, Pooled):
        teacher_hidden.check(divergence, divergence_kwargs)
        names = teacher_hidden.metrics + (() if temperature_rule is None else ("student_tau", "teacher_tau"))
        known = (*teacher_hidden.metrics, *TAU_METRICS)
    else:
        names = METRICS if temperature_rule is None else (*METRICS, "student_tau", "teacher_tau")
        known = ("kd", *WHOLE, *TAU_METRICS)
    if isinstance(metrics, bool):
        metrics = tuple(name for name in names if metrics and (name != "ce" or labels is not None))
    metrics = check_metrics(metrics, known, labels is not None)

    student, teacher = (student_hidden, student_weight, student_bias), (teacher_hidden, teacher_weight, teacher_bias)
    likelihoods = None
    if isinstance(teacher_hidden, Pooled):
        if labels is not None and normalizer is None:
            normalizer = (labels != -100).sum().clamp(min=1)
        if teacher_hidden.stretches is not None:
            check_labels(labels, student_hidden.shape[:1], "`stretches`")
            likelihoods = measure_stretches(
                student,
                teacher,
                labels,
                (student_logit_scale, student_final_logit_softcapping),
                (teacher_logit_scale, teacher_final_logit_softcapping),
                chunk_size,
                compile,
            )
            own = kd_ratio * likelihoods.ce_weight
            ce_weight = own if ce_weight is None else ce_weight + own
        elif labels is not None and not metrics and kd_ratio == 1 and ce_weight is None:
            labels = torch.where(teacher_hidden.at(len(labels)) >= 0, labels, -100)  # nothing else is looked at
    operands = make_operands(student, teacher, labels, chunk_size, compile) if measured is None else measured.operands
    dtype, device = operands.dtype, student_hidden.device

    def of_token(name: str, value: float | Tensor) -> Tensor:
        if not isinstance(value, Tensor):  # filled where it is needed: a copy from the CPU would wait for a GPU
            return torch.full((len(operands.target),), value, dtype=dtype, device=device)
        value = value.detach().to(device, dtype)
        return operands.select(per_token(name, value, (operands.count,)))

    numbers = {name: value for name, value in kwargs.items() if not isinstance(value, Tensor)}
    rows = {n: of_token(f"divergence_kwargs[{n!r}]", value) for n, value in kwargs.items() if n not in numbers}
    rows |= {n: of_token(n, w) for n, w in (("kd_weight", kd_weight), ("ce_weight", ce_weight)) if w is not None}
    pair = operands.pair
    if operands.truncated is not None:
        pair = replace(pair, known=operands.truncated.at(teacher_temperature, dtype))
    spec = BlockSpec(
        divergence=divergence,
        divergence_kwargs=tuple(sorted(numbers.items())),
        rescale=rescale,
        kd_ratio=float(kd_ratio),
        student_scale=float(student_logit_scale),
        teacher_scale=float(teacher_logit_scale),
        student_cap=student_final_logit_softcapping,
        teacher_cap=teacher_final_logit_softcapping,
        takes_target=needs_target(divergence),
        truncated=operands.truncated is not None,
        with_grad=torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (student_hidden, student_weight, student_bias)),
        metrics=metrics,
        rows=tuple(rows),
        rule=temperature_rule,
        rule_kwargs=tuple(sorted((temperature_rule_kwargs or {}).items())),
        rule_sides=temperature_rule_sides,
        pooled=None if operands.pooled is None else operands.pooled.count,
    )
    normalizer = max(len(operands.target), 1) if normalizer is None else normalizer
    loss, scaled, *values = ChunkedKD.apply(
        operands.hidden,
        student_weight,
        student_bias,
        pair,
        spec,
        normalizer,
        operands.target,
        of_token("student_temperature", student_temperature),
        of_token("teacher_temperature", teacher_temperature),
        *rows.values(),
    )
    by_name = {name: operands.spread(value) for name, value in zip(spec.metrics, values, strict=True)}
    scaled = operands.spread(scaled)
    if likelihoods is not None:  # its gradient is there, as that of a weighted cross-entropy; its value is another
        loss = loss + kd_ratio * likelihoods.excess.sum() / normalizer
        scaled = scaled + likelihoods.term
        by_name["alm"] = likelihoods.term
    return ChunkedKDOutput(loss, scaled, by_name if metrics else None)
