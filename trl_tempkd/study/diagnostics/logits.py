# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The measures as functions of logits: what a gradient looks like, token by token, and which part the student fits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...divergences import check_divergence
from ...errors import UsageError
from ...likeliest import head_mask
from ...losses import kd_loss
from ...temperature import log_softmax, rescale_factor, temperatures


MODES = ("both", "teacher")
COLUMNS = ["objective", "mode", "tau", "measure", "bucket", "value", "tokens"]
RANKS = (1, 10, 100, 1000, 10000)  # the upper ends of the buckets; the last one is open
NONE = "-"

# Student logits (C, V), teacher logits (C, V) and target tokens (C,) of some tokens
Chunk = tuple[Tensor, Tensor, Tensor]
Cell = tuple[str, str, float]  # objective, mode, tau


@dataclass(frozen=True)
class Plan:
    """
    What to measure.

    Args:
        objectives (`Sequence[str]`):
            Names of [`DIVERGENCES`].
        temperatures (`Sequence[float]`):
            Values of tau.
        modes (`Sequence[str]`):
            `both`: tau softens both sides; `teacher`: it softens the teacher, and the student stays at 1.
        kwargs (`dict[str, dict[str, Any]]`, *optional*):
            For an objective its parameters.
    """

    objectives: Sequence[str] = ("forward_kl", "reverse_kl")
    temperatures: Sequence[float] = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
    modes: Sequence[str] = MODES
    kwargs: dict[str, dict[str, Any]] | None = None

    def __post_init__(self):
        for name, kwargs in {**dict.fromkeys(self.objectives), **(self.kwargs or {})}.items():
            try:
                check_divergence(name, kwargs)
            except UsageError as error:  # by the names that it has here
                said = str(error).replace("`divergence`", "`objectives`")
                raise UsageError(said.replace("`divergence_kwargs`", "`objective_kwargs`")) from error
        for name, values in (("objectives", self.objectives), ("temperatures", self.temperatures)):
            if not values:
                raise UsageError(f"`{name}` must have at least one value, got none.")
        if not all(0 < tau < float("inf") for tau in self.temperatures):
            raise UsageError(f"`temperatures` must be positive and finite, got {list(self.temperatures)}.")
        if not self.modes or not set(self.modes) <= set(MODES):
            raise UsageError(f"`modes` must be of {', '.join(MODES)}, got {list(self.modes)}.")

    @property
    def compared(self) -> list[str]:
        """The objectives, and the two that every one is compared with."""
        return list(dict.fromkeys([*self.objectives, "forward_kl", "reverse_kl"]))

    def cells(self) -> Iterator[tuple[str, float, float, float]]:
        """Mode, tau, student and teacher temperature."""
        for mode in self.modes:
            for tau in self.temperatures:
                yield mode, tau, *temperatures(tau, student=1.0 if mode == "teacher" else None)

    def gradient(self, name: str, chunk: Chunk, tau_s: float = 1.0, tau_t: float = 1.0) -> Tensor:
        z_CV, v_CV, target_C = chunk
        return logit_gradient(name, z_CV, v_CV, tau_s, tau_t, (self.kwargs or {}).get(name), labels=target_C)


def logit_gradient(
    divergence: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    tau_s: float = 1.0,
    tau_t: float = 1.0,
    kwargs: dict[str, Any] | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """
    Gradient of a divergence, token by token, with respect to the student's logits; without any rescaling.

    Args:
        divergence, kwargs (`str`, `dict`, *optional*): a name of `DIVERGENCES` and its parameters.
        student_logits, teacher_logits (`torch.Tensor`): shape `(N, V)`. Computed in fp32 at least.
        tau_s, tau_t (`float`): the temperatures of student and teacher.
        labels (`torch.Tensor`, *optional*): shape `(N,)`, for divergences that look at the target token.

    Returns:
        `torch.Tensor` of shape `(N, V)`. Where it is negative, a descent raises the logit.
    """
    with torch.enable_grad():
        z = wide(student_logits.detach()).requires_grad_()
        loss = kd_loss(
            z,
            teacher_logits,
            divergence=divergence,
            divergence_kwargs=kwargs,
            student_temperature=tau_s,
            teacher_temperature=tau_t,
            labels=labels,
            reduction="sum",
        )
        return torch.autograd.grad(loss, z)[0]


def difference(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """`d - mean(d)`, d = z - v: where every gradient points as tau grows (Hinton's limit)."""
    d = log_softmax(student_logits) - log_softmax(teacher_logits)  # a constant of the row, which the mean takes away
    return d - d.mean(-1, keepdim=True)


def rank_buckets(size: int) -> dict[str, slice]:
    """Buckets of ranks of a vocabulary of that size: `1`, `2-10`, `11-100`, ..., each with its slice."""
    ends = [end for end in RANKS if end < size] + [size]
    starts = [0, *ends[:-1]]
    return {str(b) if b - a == 1 else f"{a + 1}-{b}": slice(a, b) for a, b in zip(starts, ends, strict=True)}


def effective_number(gradient: Tensor) -> Tensor:
    """exp(H(|g| / |g|_1)) over the last dimension: over how many entries the gradient is spread."""
    mass = gradient.abs()
    share = mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
    return torch.special.entr(share).sum(-1).exp()


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine over the last dimension, 0 where one of the two is zero."""
    return (_unit(x) * _unit(y)).sum(-1)


def is_zero(gradient: Tensor, tau_s: float = 1.0) -> Tensor:
    """Tokens whose gradient is no more than rounding: they have no direction and count in no mean of one."""
    return gradient.abs().sum(-1) * tau_s <= 64 * torch.finfo(gradient.dtype).eps


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Sums:
    """Sums over chunks: of means over tokens, and of the products that cosines over the whole batch are made of."""

    def __init__(self):
        self.totals: dict[tuple[Any, ...], tuple[float, int]] = {}

    def add(self, cell: Cell, measure: str, values: Tensor, bucket: str = NONE, skip: Tensor | None = None) -> None:
        """Add one value per token, of shape `(C,)`, but for those tokens to `skip`."""
        values = values.double() if skip is None else values.double()[~skip]
        total, tokens = self.totals.get((*cell, measure, bucket), (0.0, 0))
        self.totals[(*cell, measure, bucket)] = (total + values.sum().item(), tokens + values.numel())

    def rows(self) -> list[dict[str, Any]]:
        return [
            dict(zip(COLUMNS, (*key, total / max(tokens, 1), tokens), strict=True))
            for key, (total, tokens) in self.totals.items()
        ]


def measure_logits(chunks: Iterable[Chunk], plan: Plan) -> list[dict[str, Any]]:
    """
    Measures 1 to 6 of the gradient with respect to the logits, and the errors of head and tail.

    Args:
        chunks (`Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]`):
            Student logits `(C, V)`, teacher logits `(C, V)` and target tokens `(C,)`, some tokens at a time.
        plan ([`Plan`]):
            What to measure.

    Returns:
        `list[dict[str, Any]]`: The rows of the table.
    """
    sums, batch = Sums(), Sums()
    for z_CV, v_CV, target_C in chunks:
        size = min(z_CV.shape[-1], v_CV.shape[-1])
        _measure_chunk(sums, batch, (wide(z_CV[:, :size]), wide(v_CV[:, :size]), target_C), plan)
    rows = sums.rows()
    for mode, tau, tau_s, tau_t in plan.cells():
        for name in plan.objectives:
            cell, factor = (name, mode, tau), rescale_factor("tau2", tau_s, tau_t)
            for top in ("top_1", "top_10", "top_100"):
                (lifted, tokens), (at_1, _) = (
                    sums.totals.get((name, mode, each, "lifted_outside", top), (0.0, 0)) for each in (tau, 1.0)
                )
                if at_1:
                    rows += rows_of(cell, "lifted_ratio", {top: lifted / at_1}, tokens)
            own, tokens = batch.totals[(*cell, "norm", NONE)]
            for other in [bucket for *key, measure, bucket in batch.totals if (*key, measure) == (*cell, "dot")]:
                dot, norm = (batch.totals[(*cell, part, other)][0] for part in ("dot", "norm"))
                rows += rows_of(cell, "batch_cosine", {other: ratio_of(dot, (own * norm) ** 0.5)}, tokens)
                if other == "tau_1":
                    ratio = ratio_of(own, norm) ** 0.5
                    rows += rows_of(cell, "norm_ratio", {"none": ratio, "tau2": ratio * factor}, tokens)
    return rows


def rows_of(cell: Cell, measure: str, values: dict[str, float], tokens: int) -> list[dict[str, Any]]:
    return [
        dict(zip(COLUMNS, (*cell, measure, bucket, value, tokens), strict=True)) for bucket, value in values.items()
    ]


def ratio_of(a: float, b: float) -> float:
    return a / b if b else 0.0


def _measure_chunk(sums: Sums, batch: Sums, chunk: Chunk, plan: Plan) -> None:
    z_CV, v_CV, _ = chunk
    order_CV = v_CV.argsort(dim=-1, descending=True, stable=True)
    buckets = rank_buckets(v_CV.shape[-1])

    def by_rank(x_CV: Tensor) -> dict[str, Tensor]:
        x_CV = x_CV.gather(-1, order_CV)
        return {bucket: x_CV[:, part].sum(-1) for bucket, part in buckets.items()}

    measure_fit(sums, log_softmax(v_CV), log_softmax(z_CV))
    d_CV = difference(z_CV, v_CV)
    at_1 = {name: plan.gradient(name, chunk) for name in plan.objectives}
    for mode, tau, tau_s, tau_t in plan.cells():
        for side, logits, own_tau in (("teacher", v_CV, tau_t), ("student", z_CV, tau_s)):
            probability = log_softmax(logits, own_tau).exp()
            sums.add((NONE, mode, tau), f"{side}_entropy", torch.special.entr(probability).sum(-1))
            for bucket, mass in by_rank(probability).items():
                sums.add((NONE, mode, tau), f"{side}_mass", mass, bucket)
        gradients = {name: plan.gradient(name, chunk, tau_s, tau_t) for name in plan.compared}
        for name in plan.objectives:
            cell, g_CV = (name, mode, tau), gradients[name]
            zero = is_zero(g_CV, tau_s)
            total = g_CV.abs().sum(-1).clamp(min=torch.finfo(g_CV.dtype).tiny)
            shares = by_rank(g_CV.abs() / total[:, None])
            for bucket, share in shares.items():
                sums.add(cell, "mass", share, bucket, zero)
            for bucket, up in by_rank(g_CV.clamp(max=0).abs() / total[:, None]).items():
                sums.add(cell, "up", up, bucket, zero)
            lifts = by_rank(g_CV.clamp(max=0).abs() * rescale_factor("tau2", tau_s, tau_t))
            for top in (1, 10, 100):
                for measure, parts in (("mass_outside", shares), ("lifted_outside", lifts)):
                    outside = [part for bucket, part in parts.items() if buckets[bucket].start >= top]
                    sums.add(cell, measure, sum(outside, torch.zeros_like(total)), f"top_{top}", zero)
            sums.add(cell, "effective_tokens", effective_number(g_CV), skip=zero)
            batch.add(cell, "norm", g_CV.square().sum(-1), skip=zero)
            others = {"tau_1": at_1[name], "difference": d_CV}
            others |= {other: gradients[other] for other in ("forward_kl", "reverse_kl") if other != name}
            for other, h_CV in others.items():
                other_zero = is_zero(h_CV, 1.0 if other in ("tau_1", "difference") else tau_s)
                both = zero | other_zero
                similarity = cosine(g_CV, h_CV)
                sums.add(cell, "cosine", similarity, other, both)
                if other == "tau_1":
                    sums.add(cell, "residual", 1 - similarity.square(), other, both)
                batch.add(cell, "dot", (g_CV * h_CV).sum(-1), other, both)
                batch.add(cell, "norm", h_CV.square().sum(-1), other, other_zero)


def measure_fit(sums: Sums, log_p_CV: Tensor, log_q_CV: Tensor, mu: float = 0.5) -> None:
    """
    Error in the teacher's head (as `adaptive_kl` defines it) and in its tail, at tau 1. With p - q added, which sums
    to 0 over the vocabulary, the parts of both KLs are positive, and together they are the KLs.
    """
    p, q, ratio = log_p_CV.exp(), log_q_CV.exp(), log_p_CV - log_q_CV
    head = head_mask(log_p_CV, mu)
    parts = {"error": (p - q).abs(), "forward_kl": p * ratio - p + q, "reverse_kl": -q * ratio - q + p}
    for bucket, mask in (("head", head), ("tail", ~head)):
        for measure, value in {**parts, "teacher_mass": p, "student_mass": q}.items():
            sums.add((NONE, NONE, 1.0), measure, torch.where(mask, value, 0).sum(-1), bucket)
