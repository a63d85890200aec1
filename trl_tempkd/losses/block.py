# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The arithmetic between the matmuls: logits of a few rows in, loss and gradient with respect to them out.

What comes in is two tuples: the products of the matmuls, each `(R, V)`, and what each row has beside them, `(R, ...)`.

Of the teacher a row has its logits, or k tokens and the mass of all others ([`TopK`]; none, for [`Sampled`]). Then the
student's row is cut into the same k + 1 bins, everything runs on these, and the gradient of the last bin spreads over
its tokens. A teacher of another vocabulary is compared on bins that both are pooled into ([`Pooled`]).

Eager or compiled, by blocks of rows that fit the cache. Shape suffixes: R rows of a block, C of a chunk, V vocabulary,
K tokens that a truncated teacher knows, B = K + 1 bins.
"""

import functools
import shutil
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..divergences import DIVERGENCES
from ..temperature import LOG_FLOOR, RESCALES, centred, log_probability, log_softmax, rescale_factor
from ..temperature_rules import RESCALED_BY_TAU, row_temperatures
from .pooled import floor_of, pooled_values, sides
from .truncated import coarse_logits
from .values import OF_STUDENT, OF_TEACHER, own, truncated_values, whole_values


# Logits of a block on CPU: passes over it hit the cache, and calling it costs little beside.
BLOCK_ELEMENTS = 3 * 2**19
# Compiling takes some seconds: on CPU it pays for large losses only.
COMPILE_ELEMENTS = 2**24

# Metrics that come without the softmaxes of the others
TAU_METRICS = ("student_tau", "teacher_tau", "student_tau_grad", "teacher_tau_grad")

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class BlockSpec:
    """
    What decides the arithmetic of a block; hashable, so that each is compiled once.

    `rows` names the tensors `(R,)` that come before what there is of the teacher: `kd_weight`, `ce_weight`, parameters
    of the divergence.
    """

    divergence: str
    divergence_kwargs: tuple[tuple[str, Any], ...]
    rescale: str
    kd_ratio: float
    student_scale: float
    teacher_scale: float
    student_cap: float | None
    teacher_cap: float | None
    takes_target: bool
    truncated: bool
    with_grad: bool
    metrics: tuple[str, ...]
    rows: tuple[str, ...] = ()
    rule: str | None = None
    rule_kwargs: tuple[tuple[str, Any], ...] = ()
    rule_sides: str = "both"
    pooled: int | None = None  # how many bins, 0 for ranks
    alone: bool = False  # rows that no teacher is compared on

    @property
    def takes_ce(self) -> bool:
        """Whether a row's cross-entropy is in its loss."""
        return self.kd_ratio < 1 or "ce_weight" in self.rows


@dataclass(frozen=True)
class MeasureSpec:
    """What decides the arithmetic of metrics without a loss."""

    metrics: tuple[str, ...]
    student_scale: float
    teacher_scale: float
    student_cap: float | None
    teacher_cap: float | None

    @property
    def student(self) -> bool:
        """Whether one of them looks at the student's logits."""
        return not set(self.metrics) <= OF_TEACHER

    @property
    def teacher(self) -> bool:
        return not set(self.metrics) <= OF_STUDENT


def logits_of(raw: Tensor, scale: float, cap: float | None) -> Tensor:
    """Head output to logits, in fp32 at least: scale first (Cohere, Granite), then soft-capping (Gemma)."""
    logits = raw if raw.dtype == torch.float64 else raw.float()
    logits = logits if scale == 1 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _temperature_gradients(
    spec: BlockSpec, jacobian_RV: Tensor, logits_RV: Tensor, kd_R: Tensor, tau_R: Tensor, factor_R: Tensor | float
) -> Tensor:
    """d(rescaled divergence) / d(tau) of one side: through its softmax, and through the rescaling."""
    # A row of the Jacobian sums to 0, up to rounding, which an offset of the logits would multiply
    through_softmax = torch.where(jacobian_RV != 0, -jacobian_RV * centred(logits_RV), 0).sum(-1) / tau_R.square()
    return factor_R * (through_softmax + RESCALES[spec.rescale] / 2 * kd_R / tau_R)


def _cross_entropy(
    spec: BlockSpec, z_RV: Tensor, target_R: Tensor, ce_weight: Tensor | float
) -> tuple[Tensor, Tensor | float]:
    """The cross-entropy with its weight, and its gradient with respect to the logits."""
    share = 1 - spec.kd_ratio + ce_weight
    if not spec.with_grad:
        return -share * log_probability(z_RV, target_R), 0.0
    log_q1_RV = log_softmax(z_RV)
    is_target_RV = torch.arange(z_RV.shape[-1], device=z_RV.device) == target_R.unsqueeze(-1)
    grad_RV = log_q1_RV.exp() - is_target_RV.to(z_RV.dtype)
    return -share * own(log_q1_RV, target_R), (share.unsqueeze(-1) if isinstance(share, Tensor) else share) * grad_RV


def _write_gradient(
    spec: BlockSpec, student_RV: Tensor, grad_RV: Tensor | float, z_RV: Tensor, weight_R: Tensor
) -> None:
    """Overwrite the head's output with the gradient with respect to it, from that with respect to the logits."""
    if spec.student_cap is not None:
        grad_RV = grad_RV * (1 - (z_RV / spec.student_cap).square())
    student_RV.copy_(grad_RV * (weight_R * spec.student_scale).unsqueeze(-1))


def compute_alone(spec: BlockSpec, student_RV: Tensor, per_row: Tensors) -> dict[str, Tensor]:
    """[`compute_block`] of rows without a teacher: their cross-entropy, and 0 for all that has two sides."""
    target_R, _, _, weight_R, *others = per_row
    z_RV = logits_of(student_RV, spec.student_scale, spec.student_cap)
    none_R = torch.zeros_like(weight_R)
    loss_R = none_R
    found = whole_values([name for name in spec.metrics if name in OF_STUDENT], z_RV, None, target_R)
    if spec.takes_ce:
        ce_weight = dict(zip(spec.rows, others, strict=False)).get("ce_weight", 0.0)
        loss_R, grad_RV = _cross_entropy(spec, z_RV, target_R, ce_weight)
        if spec.with_grad:
            _write_gradient(spec, student_RV, grad_RV, z_RV, weight_R)
    return {"loss": loss_R * weight_R, "scaled": none_R, **{name: found.get(name, none_R) for name in spec.metrics}}


def compute_block(spec: BlockSpec, products: Tensors, per_row: Tensors, tables: Tensors = ()) -> dict[str, Tensor]:
    """
    `loss` (times the row's weight), `scaled` (the rescaled divergence) and metrics of a block, `(R,)` each.

    Args:
        spec ([`BlockSpec`]): what to compute. With its `with_grad`, the student's head output is overwritten by the
            gradient of the loss with respect to it.
        products (`tuple[torch.Tensor, ...]`): head output `(R, V)` of the student, and of a teacher that has a head.
        per_row (`tuple[torch.Tensor, ...]`): target, temperatures of student and teacher, weight, those of
            `spec.rows`; then of a teacher without a head its logits, or with `spec.truncated` what its `at` gives.
        tables (`tuple[torch.Tensor, ...]`, *optional*): with `spec.pooled`, what is known of the vocabularies.
    """
    student_RV, *teacher = products
    target_R, tau_s_R, tau_t_R, weight_R, *others = per_row
    kwargs: dict[str, Any] = dict(spec.divergence_kwargs)
    kwargs.update(zip(spec.rows, others, strict=False))
    teacher += others[len(spec.rows) :]
    kd_share = spec.kd_ratio * kwargs.pop("kd_weight", 1.0)
    ce_weight = kwargs.pop("ce_weight", 0.0)

    z_RV = logits_of(student_RV, spec.student_scale, spec.student_cap)
    factor_R = rescale_factor(spec.rescale, tau_s_R, tau_t_R)
    # From here on to its gradient, V are the bins of a truncated teacher, or those of two vocabularies
    floor = LOG_FLOOR if spec.pooled is None else floor_of(z_RV.dtype)
    if spec.truncated:
        ids_RK, log_p_RV, constant_R, *at_1 = teacher
        bins_RV, share_RV = coarse_logits(z_RV, ids_RK, tau_s_R)
        log_q_RV = log_softmax(bins_RV)
    else:
        v_RV = logits_of(teacher[0], spec.teacher_scale, spec.teacher_cap)
        if spec.rule is not None:
            tau_s_R, tau_t_R = row_temperatures(
                spec.rule, dict(spec.rule_kwargs), z_RV, v_RV, tau_s_R, tau_t_R, spec.rule_sides
            )
            if spec.rule not in RESCALED_BY_TAU:
                factor_R = rescale_factor(spec.rescale, tau_s_R, tau_t_R)
        if spec.pooled is None:
            log_p_RV, log_q_RV = log_softmax(v_RV, tau_t_R), log_softmax(z_RV, tau_s_R)
        else:
            of_student, of_teacher = sides(z_RV, v_RV, tau_s_R, tau_t_R, tables, spec.pooled)
            (log_q_RV, spread_student), (log_p_RV, spread_teacher) = of_student, of_teacher
    target: Tensors = ()
    if spec.takes_target:
        target = (target_R if spec.pooled is None else tables[0][target_R],)

    def divergence(log_q: Tensor, log_p: Tensor = log_p_RV) -> Tensor:
        return DIVERGENCES[spec.divergence](log_p, log_q, *target, **kwargs)

    metrics = {}
    grad_RV: Tensor | float = 0.0
    if (spec.with_grad and spec.kd_ratio > 0) or "student_tau_grad" in spec.metrics:
        kd_R, vjp = torch.func.vjp(divergence, log_q_RV)
        (u_RV,) = vjp(torch.ones_like(kd_R))
        u_RV = torch.where(log_q_RV > floor, u_RV, 0)  # the floor is a constant
        jacobian_RV = u_RV - log_q_RV.exp() * u_RV.sum(-1, keepdim=True)
        if spec.pooled is not None:
            jacobian_RV = spread_student(jacobian_RV)
        grad_RV = jacobian_RV * (kd_share * factor_R / tau_s_R).unsqueeze(-1)
        if "student_tau_grad" in spec.metrics:
            metrics["student_tau_grad"] = _temperature_gradients(spec, jacobian_RV, z_RV, kd_R, tau_s_R, factor_R)
        if spec.truncated:  # the last bin's gradient belongs to its tokens, in proportion to q
            # Added, since the last token may be one of the others too, with a gradient of 0
            grad_RV = (share_RV * grad_RV[:, -1:]).scatter_add(-1, ids_RK, grad_RV[:, :-1])
    else:
        kd_R = divergence(log_q_RV)
    if "teacher_tau_grad" in spec.metrics:
        _, vjp = torch.func.vjp(functools.partial(divergence, log_q_RV), log_p_RV)
        (u_RV,) = vjp(torch.ones_like(kd_R))
        u_RV = torch.where(log_p_RV > floor, u_RV, 0)
        jacobian_RV = u_RV - log_p_RV.exp() * u_RV.sum(-1, keepdim=True)
        if spec.pooled is not None:
            jacobian_RV = spread_teacher(jacobian_RV)
        metrics["teacher_tau_grad"] = _temperature_gradients(spec, jacobian_RV, v_RV, kd_R, tau_t_R, factor_R)
    if spec.truncated:
        kd_R = kd_R + constant_R

    scaled_R = kd_R * factor_R
    loss_R = kd_share * scaled_R
    if spec.takes_ce:
        ce_R, grad_ce_RV = _cross_entropy(spec, z_RV, target_R, ce_weight)
        loss_R = loss_R + ce_R
        grad_RV = grad_RV + grad_ce_RV

    metrics |= {"kd": kd_R, "student_tau": tau_s_R, "teacher_tau": tau_t_R}
    if spec.pooled is not None:
        metrics |= pooled_values([*spec.metrics], z_RV, v_RV, tables, spec.pooled)
    others_asked = [name for name in spec.metrics if name not in metrics]
    metrics |= (
        truncated_values(others_asked, z_RV, target_R, ids_RK, log_p_RV, *at_1)
        if spec.truncated
        else whole_values(others_asked, z_RV, v_RV, target_R)
    )
    if spec.with_grad:
        _write_gradient(spec, student_RV, grad_RV, z_RV, weight_R)
    return {"loss": loss_R * weight_R, "scaled": scaled_R, **{name: metrics[name] for name in spec.metrics}}


def measure_block(spec: MeasureSpec, products: Tensors, per_row: Tensors) -> dict[str, Tensor]:
    """The metrics of a block, `(R,)` each. `per_row` is the target, and the logits of a teacher without a head."""
    target_R, *others = per_row
    logits = iter((*products, *others))
    z_RV = logits_of(next(logits), spec.student_scale, spec.student_cap) if spec.student else None
    v_RV = logits_of(next(logits), spec.teacher_scale, spec.teacher_cap) if spec.teacher else None
    return whole_values(spec.metrics, z_RV, v_RV, target_R)


def compute(
    spec: BlockSpec | MeasureSpec, products: Tensors, per_row: Tensors, tables: Tensors = ()
) -> dict[str, Tensor]:
    if isinstance(spec, MeasureSpec):
        return measure_block(spec, products, per_row)
    if spec.alone:
        return compute_alone(spec, products[0], per_row)
    return compute_block(spec, products, per_row, tables)


@functools.cache
def compiled_block(spec: BlockSpec | MeasureSpec) -> Callable[..., dict[str, Tensor]]:
    """[`compute`] of this spec by `torch.compile`; eager, with a warning, where the compiler fails."""
    # Here: they take longer to import than all of torch, and a loss that isn't compiled needs none of them
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError
    from transformers.utils import logging

    logger = logging.get_logger(__name__)

    def block(products: Tensors, per_row: Tensors, tables: Tensors = ()) -> dict[str, Tensor]:
        return compute(spec, products, per_row, tables)

    # Dynamo counts recompilations by code object and gives up after a few: each spec gets a code object of its own.
    own = types.FunctionType(block.__code__.replace(), block.__globals__, closure=block.__closure__)
    compiled = torch.compile(own, dynamic=False)
    failed = False

    def compiled_or_eager(products: Tensors, per_row: Tensors, tables: Tensors = ()) -> dict[str, Tensor]:
        nonlocal failed
        if not failed:
            try:
                return compiled(products, per_row, tables)
            except (TorchDynamoException, InductorError) as error:  # raised before anything has run
                failed = True
                logger.warning(f"torch.compile failed for {spec}, going on without it: {error}")
        return block(products, per_row, tables)

    return compiled_or_eager


def pays_to_compile(n_elements: int, device: torch.device) -> bool:
    """Whether a loss over so many logits is worth some seconds of compilation, and a compiler is there."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return device.type == "cpu" and n_elements >= COMPILE_ELEMENTS and shutil.which("g++") is not None


def run_blocks(
    block: Callable, step: int, whole: bool, products: list[Tensor], per_row: list[Tensor], tables: Tensors = ()
) -> list[dict[str, Tensor]]:
    """
    Apply `block` to the chunk's rows, `step` at a time; `per_row` tensors tell how many rows there are, and each block
    gets all of `tables`.

    A compiled block sees one shape only (`whole`): the last one runs on over rows of the products that nobody reads.
    """
    n, results = per_row[0].shape[0], []
    for start in range(0, n, step):
        rows = slice(start, start + step if whole else min(start + step, n))
        own = [t[rows] for t in per_row]
        missing = rows.stop - n if whole else 0
        if missing > 0:
            own = [torch.cat([t, t.new_ones(missing, *t.shape[1:])]) for t in own]
        values = block(tuple(t[rows] for t in products), tuple(own), tables)
        # Copies: what a compiled block returns may live in the storage of its (R, V) intermediates, and keep it
        results.append({name: value[: min(step, n - start)].clone() for name, value in values.items()})
    return results
