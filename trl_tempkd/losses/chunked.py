# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The distillation loss from hidden states and heads, a chunk of tokens at a time: no `(N, V)` tensor is ever built.

For each chunk both heads are multiplied, and what follows is done by blocks of rows that fit the cache: temperature,
divergence, its derivative u with respect to log q, and one softmax Jacobian for the whole family,

    grad_z = (u - q * sum(u)) / tau_s,

which overwrites the student's logits and goes straight into the two gradient matmuls. That makes four matmuls in all,
the least there can be; three where the student's head is frozen, two without gradients.

Of a truncated teacher ([`TopK`], [`Sampled`]) there is no head to multiply: one matmul less.

Shape suffixes: N tokens with a label, C rows of a chunk, V vocabulary, H hidden size (each model's own).
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..divergences import check_divergence, needs_target
from ..errors import UsageError
from ..temperature import rescale_factor
from . import block as blocks
from .block import BlockSpec
from .dense import check_rule, check_temperatures
from .truncated import Truncated


# Logits of a chunk. More rows let the matmuls read and write the head less often, fewer save memory: at 2^24 the
# matmuls run within a few per cent of unchunked ones, and a chunk of fp32 logits takes 64 MiB.
CHUNK_ELEMENTS = 2**24
MIN_CHUNK_ROWS = 128

# Of a teacher whose rows are whole
METRICS: tuple[str, ...] = ("kd", "kl_tau1", "student_entropy", "teacher_entropy", "agreement", "ce")
# Those, and what is computed when it is asked for by name
ALL_METRICS = (*METRICS, "kl_tau1_coarse", "teacher_ce", *sorted(blocks.TAU_METRICS))


class ChunkedKDOutput(NamedTuple):
    """
    Output of [`chunked_kd_loss`].

    Attributes:
        loss (`torch.Tensor`): scalar, differentiable in the student's hidden states, head weight and bias.
        per_token (`torch.Tensor`): shape `(N,)`, detached: the rescaled divergence in nats, 0 where the label is -100.
        metrics (`dict` or `None`): shape `(N,)` each, detached, 0 where the label is -100: `kd` (divergence at tau,
            not rescaled), `ce` (where labels are given), `kl_tau1` (KL(p, q) at tau 1), `student_entropy` and
            `teacher_entropy` (at tau 1), all in nats, and `agreement` (1 where both rank the same token first). Of a
            truncated teacher those that it has the numbers for, its `metrics`. With a `temperature_rule` also the
            temperatures, `student_tau` and `teacher_tau`. By name alone: `teacher_ce`, the teacher's cross-entropy at
            tau 1, and `student_tau_grad` and `teacher_tau_grad`, the derivatives of the rescaled divergence with
            respect to the temperatures.
    """

    loss: Tensor
    per_token: Tensor
    metrics: dict[str, Tensor] | None


@dataclass(frozen=True)
class Logits:
    """A teacher's logits `(N, V_t)` in the place of its hidden states, where there is nothing else of it."""

    values: Tensor


class _ChunkedKD(torch.autograd.Function):
    """Loss and its gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NH: Tensor,
        student_VH: Tensor,
        student_bias_V: Tensor | None,
        teacher_NH: Tensor | None,
        teacher_VH: Tensor | None,
        teacher_bias_V: Tensor | None,
        known: tuple[Tensor, ...],
        size: int,
        target_N: Tensor,
        tau_s_N: Tensor,
        tau_t_N: Tensor,
        row_inputs: tuple[Tensor, ...],
        normalizer: float | Tensor,
        spec: BlockSpec,
        chunk_size: int,
        compile: bool | None,
    ) -> tuple[Tensor, ...]:
        N = student_NH.shape[0]
        x_NH, w_VH = _matmul_operands(student_NH, student_VH, size)
        grad_x = torch.empty_like(x_NH) if ctx.needs_input_grad[0] else None
        grad_w = grad_b = None
        if ctx.needs_input_grad[1]:
            grad_w = torch.empty_like(student_VH, dtype=_wide(student_VH.dtype))
        if student_bias_V is not None and ctx.needs_input_grad[2]:
            grad_b = torch.zeros_like(student_bias_V, dtype=_wide(student_bias_V.dtype))

        if compile is None:
            compile = blocks.pays_to_compile(N * size, x_NH.device)
        block = blocks.compiled_block(spec) if compile else functools.partial(blocks.compute_block, spec)
        on_cpu = x_NH.device.type == "cpu"
        step = min(chunk_size, max(1, blocks.BLOCK_ELEMENTS // size)) if on_cpu else chunk_size
        # a compiled block wants the same shape in every call, whatever N is
        rows = math.ceil((chunk_size if compile else min(chunk_size, max(N, 1))) / step) * step
        student_CV = x_NH.new_empty(rows, size)
        buffers = []
        if teacher_NH is not None and teacher_VH is not None:
            y_NH, t_VH = _matmul_operands(teacher_NH, teacher_VH, size)
            buffers = [y_NH.new_empty(rows, size)]
        weight_N = torch.ones_like(tau_s_N) / normalizer
        results = []
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            s_CV = student_CV[: chunk.stop - start]
            _project(x_NH[chunk], w_VH, student_bias_V, s_CV)
            for teacher_CV in buffers:
                _project(y_NH[chunk], t_VH, teacher_bias_V, teacher_CV[: chunk.stop - start])
            per_row = [t[chunk] for t in (target_N, tau_s_N, tau_t_N, weight_N, *row_inputs, *known)]
            results += blocks.run_blocks(block, step, compile, student_CV, per_row, buffers)
            if grad_x is not None:
                torch.mm(s_CV, w_VH, out=grad_x[chunk])
            if grad_w is not None:
                _accumulate(grad_w[:size], s_CV, x_NH[chunk], first=start == 0)
            if grad_b is not None:
                grad_b[:size] += s_CV.sum(0, dtype=tau_s_N.dtype)
        if grad_w is not None:  # what no matmul has written
            grad_w[size if N else 0 :].zero_()
        ctx.save_for_backward(grad_x, grad_w, grad_b)
        ctx.dtypes = [None if t is None else t.dtype for t in (student_NH, student_VH, student_bias_V)]
        losses, scaled, metrics = zip(*results, strict=True) if results else ((), (), ())
        columns = (losses, scaled, *([m[name] for m in metrics] for name in spec.metrics))
        merged = [torch.cat(list(parts)) if parts else tau_s_N.new_zeros(0) for parts in columns]
        loss = merged[0].sum()
        ctx.mark_non_differentiable(*merged[1:])
        return loss, *merged[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = list(ctx.saved_tensors)
        # a product over the whole head is worth avoiding, but not at the price of waiting for a GPU
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1:
            grads = [None if g is None else g * grad_loss.to(g.dtype) for g in grads]
        return *(None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)), *(None,) * 13


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp16 gives way to fp32: p / N underflows in it, before a loss scale could help."""
    return torch.float32 if dtype == torch.float16 else dtype


def _matmul_operands(hidden: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Hidden states and the head's compared rows in the dtype of the matmuls: autocast's, or the head's own."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(_wide(dtype)), weight[:size].to(_wide(dtype))


def _project(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, out_CV: Tensor) -> None:
    if bias_V is None:
        torch.mm(hidden_CH, weight_VH.T, out=out_CV)
    else:
        torch.addmm(bias_V[: weight_VH.shape[0]].to(out_CV.dtype), hidden_CH, weight_VH.T, out=out_CV)


def head_logits(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    *,
    size: int,
) -> Iterator[Tensor]:
    """The first `size` logits of every row, a chunk of rows at a time, as the loss computes them."""
    x_NH, w_VH = _matmul_operands(hidden_NH, weight_VH, size)
    for x_CH in x_NH.split(max(1, CHUNK_ELEMENTS // size)):
        raw_CV = x_CH.new_empty(x_CH.shape[0], size)
        _project(x_CH, w_VH, bias, raw_CV)
        yield blocks.logits_of(raw_CV, logit_scale, final_logit_softcapping)


def _accumulate(grad_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor, first: bool) -> None:
    if grad_VH.dtype == grad_CV.dtype:
        torch.mm(grad_CV.T, hidden_CH, out=grad_VH) if first else grad_VH.addmm_(grad_CV.T, hidden_CH)
    else:  # autocast: the head itself, and so its gradient, is wider than the matmul
        product_VH = grad_CV.T @ hidden_CH
        grad_VH.copy_(product_VH) if first else grad_VH.add_(product_VH)


def _split_kwargs(kwargs: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters of a divergence: those that are numbers, and those that differ from token to token."""
    kwargs = kwargs or {}
    tensors = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
    return {name: value for name, value in kwargs.items() if name not in tensors}, tensors


def _wanted(metrics: bool | Sequence[str], names: tuple[str, ...], has_labels: bool) -> tuple[str, ...]:
    if isinstance(metrics, bool):
        return tuple(name for name in names if name != "ce" or has_labels) if metrics else ()
    for name in metrics:
        if name not in ALL_METRICS:
            raise UsageError(f"`metrics` must be of {', '.join(ALL_METRICS)}, got {name!r}.")
        if name not in (*names, *blocks.TAU_METRICS):
            raise UsageError(f"`metrics` has {name!r}, and of this teacher there are {', '.join(names)} alone.")
        if name in ("ce", "teacher_ce") and not has_labels:
            raise UsageError(f"`metrics` has {name!r}, which looks at the target: pass `labels`.")
    return tuple(metrics)


@torch.compiler.disable
def chunked_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | Logits | Truncated,
    teacher_weight: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_final_logit_softcapping: float | None = None,
    divergence: str = "forward_kl",
    divergence_kwargs: dict[str, Any] | None = None,
    student_temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor = 1.0,
    rescale: str = "none",
    temperature_rule: str | None = None,
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
) -> ChunkedKDOutput:
    """
    [`kd_loss`] of two models' last hidden states, without the logits in full.

    Matmuls run in the head's dtype (autocast's where it is on), everything after them in fp32 at least.

    Args:
        student_hidden, teacher_hidden (`torch.Tensor`): shapes `(N, H_s)` and `(N, H_t)`, input of each head.
        student_weight, teacher_weight (`torch.Tensor`): shapes `(V_s, H_s)` and `(V_t, H_t)`. Where the vocabularies
            are padded to different sizes their common prefix is compared and the rest has probability zero. A
            truncated teacher, [`TopK`] or [`Sampled`], stands in the place of `teacher_hidden` and has no head. Nor do
            [`Logits`] need one.
        student_bias, teacher_bias (`torch.Tensor`, *optional*): the heads' biases, `(V_s,)` and `(V_t,)`.
        student_logit_scale, teacher_logit_scale (`float`): factor of the logits (Cohere, Granite, Falcon-H1).
        student_final_logit_softcapping, teacher_final_logit_softcapping (`float`, *optional*): c in c tanh(logits / c)
            after the scale (Gemma).
        divergence, divergence_kwargs (`str`, `dict`, *optional*): a name of `DIVERGENCES` and its parameters, some of
            which may be tensors of shape `(N,)` or `()`.
        student_temperature, teacher_temperature (`float` or `torch.Tensor`): positive; a tensor has shape `(N,)`. That
            of a truncated teacher is a float of its grid.
        rescale (`str`): `none`, `tau` or `tau2`, see [`~trl_tempkd.temperature.rescale_factor`].
        temperature_rule, temperature_rule_kwargs (`str`, `dict`, *optional*): a name of
            [`~trl_tempkd.temperature_rules.ROW_RULES`] that makes a temperature for each token of these, and its
            parameters.
        temperature_rule_sides (`str`): `both`, `student` or `teacher`: whose temperature it decides.
        labels (`torch.Tensor`, *optional*): shape `(N,)`, the token that each row predicts (already shifted). Rows
            with -100 are dropped before any matmul.
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

    Returns:
        [`ChunkedKDOutput`]. Without a token that counts the loss is 0, with zero gradients.

    Raises:
        `ValueError`: an argument is unknown, out of range, missing, or of the wrong shape.
    """
    numbers, row_inputs = _split_kwargs(divergence_kwargs)
    check_divergence(divergence, divergence_kwargs)
    check_temperatures(student_temperature, teacher_temperature)
    rescale_factor(rescale, 1.0, 1.0)
    check_rule(temperature_rule, temperature_rule_kwargs, temperature_rule_sides)
    if not 0 <= kd_ratio <= 1:
        raise UsageError(f"`kd_ratio` must be between 0 and 1, got {kd_ratio}.")
    if labels is None and (kd_ratio < 1 or ce_weight is not None or needs_target(divergence)):
        raise UsageError(f"`labels` is required for `kd_ratio` {kd_ratio} with {divergence}: it looks at the target.")
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"`chunk_size` must be positive, got {chunk_size}.")
    n_rows, device = student_hidden.shape[0], student_hidden.device
    known: tuple[Tensor, ...] = ()
    given = isinstance(teacher_hidden, Logits)
    teacher_hidden = teacher_hidden.values if isinstance(teacher_hidden, Logits) else teacher_hidden
    if isinstance(teacher_hidden, Truncated):
        truncated, teacher_hidden = teacher_hidden, None
        truncated.check(divergence, divergence_kwargs)
        if temperature_rule is not None:
            raise UsageError(f"`temperature_rule` {temperature_rule} needs the teacher's whole rows: leave it unset.")
        if len(truncated.ids) != n_rows or truncated.size > student_weight.shape[0]:
            raise UsageError(
                f"`teacher_hidden` has {len(truncated.ids)} rows of a vocabulary of {truncated.size}, the student "
                f"{n_rows} rows and {student_weight.shape[0]} logits: as many rows are needed, and no fewer logits."
            )
        names, size = truncated.metrics, truncated.size
    elif teacher_weight is None and not given:
        raise UsageError("`teacher_weight` is required: `teacher_hidden` needs the head that it is the input of.")
    elif student_hidden.dim() != 2 or teacher_hidden.dim() != 2 or teacher_hidden.shape[0] != n_rows:
        raise UsageError(
            "`student_hidden` and `teacher_hidden` must have shapes (N, H_s) and (N, H_t) with the same N, got "
            f"{tuple(student_hidden.shape)} and {tuple(teacher_hidden.shape)}."
        )
    else:
        truncated = None
        width = teacher_hidden.shape[-1] if teacher_weight is None else teacher_weight.shape[0]
        names = METRICS if temperature_rule is None else (*METRICS, "student_tau", "teacher_tau")
        size = min(student_weight.shape[0], width)

    dtype = torch.float64 if student_weight.dtype == torch.float64 else torch.float32
    tau_s, tau_t = (
        torch.as_tensor(t, dtype=dtype, device=device).detach().expand(n_rows)
        for t in (student_temperature, teacher_temperature)
    )
    row_inputs |= {n: w for n, w in (("kd_weight", kd_weight), ("ce_weight", ce_weight)) if w is not None}
    row_inputs = {n: w.detach().to(device, dtype).expand(n_rows) for n, w in row_inputs.items()}
    target = torch.zeros(n_rows, dtype=torch.long, device=device) if labels is None else labels
    kept = None
    if labels is not None:
        kept = (labels != -100).nonzero().squeeze(-1)
        student_hidden, target, tau_s, tau_t = (
            t.index_select(0, kept) for t in (student_hidden, target, tau_s, tau_t)
        )
        row_inputs = {n: w.index_select(0, kept) for n, w in row_inputs.items()}
        teacher_hidden = None if teacher_hidden is None else teacher_hidden.index_select(0, kept)
    if truncated is not None:
        known = truncated.select(kept).at(teacher_temperature, dtype)
    elif given and teacher_hidden is not None:
        known, teacher_hidden = (teacher_hidden[:, :size].detach(),), None
    spec = BlockSpec(
        divergence=divergence,
        divergence_kwargs=tuple(sorted(numbers.items())),
        rescale=rescale,
        kd_ratio=float(kd_ratio),
        student_scale=float(student_logit_scale),
        teacher_scale=float(teacher_logit_scale),
        student_cap=student_final_logit_softcapping,
        teacher_cap=teacher_final_logit_softcapping,
        has_labels=labels is not None,
        takes_target=needs_target(divergence),
        truncated=truncated is not None,
        with_grad=torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (student_hidden, student_weight, student_bias)),
        metrics=_wanted(
            metrics, names if truncated or metrics is True else (*names, "teacher_ce"), labels is not None
        ),
        rows=tuple(row_inputs),
        rule=temperature_rule,
        rule_kwargs=tuple(sorted((temperature_rule_kwargs or {}).items())),
        rule_sides=temperature_rule_sides,
    )
    loss, scaled, *values = _ChunkedKD.apply(
        student_hidden,
        student_weight,
        student_bias,
        *(None if t is None else t.detach() for t in (teacher_hidden, teacher_weight, teacher_bias)),
        known,
        size,
        target,
        tau_s,
        tau_t,
        tuple(row_inputs.values()),
        max(target.shape[0], 1) if normalizer is None else normalizer,
        spec,
        chunk_size or max(MIN_CHUNK_ROWS, math.ceil(CHUNK_ELEMENTS / size)),
        compile,
    )

    def spread(value_N: Tensor) -> Tensor:
        return value_N if kept is None else value_N.new_zeros(n_rows).index_copy(0, kept, value_N)

    by_name = {name: spread(value) for name, value in zip(spec.metrics, values, strict=True)}
    return ChunkedKDOutput(loss, spread(scaled), by_name if metrics else None)
