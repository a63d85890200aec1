# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A term on the likelihood of what two tokenizers cut differently: the tokens between two aligned positions.

Both models give the same bytes a likelihood, the product of those of their tokens, which is a probability at
temperature 1 alone. Shape suffixes: N positions of the student, A tokens of the teacher.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .block import MeasureSpec
from .fused import Chunks, Pair, Product, measure
from .measured import measure_tokens
from .pooled import Pooled, Stretches


# A likelihood of 1 counts as e^-CERTAIN: beyond, the slope would multiply what fp32 rounds
CERTAIN = 1e-6


class Likelihoods(NamedTuple):
    """
    Attributes:
        term (`torch.Tensor` of shape `(N,)`): of each stretch, times its weight, at its first token.
        ce_weight (`torch.Tensor` of shape `(N,)`): a weighted cross-entropy that has the gradient of the term.
        excess (`torch.Tensor` of shape `(N,)`): what the value of the term has beyond that of the cross-entropy.
    """

    term: Tensor
    ce_weight: Tensor
    excess: Tensor


def measure_stretches(
    student: tuple[Tensor, Tensor, Tensor | None],
    teacher: tuple[Any, Any, Tensor | None],
    labels: Tensor | None,
    student_head: tuple[float, float | None],
    teacher_head: tuple[float, float | None],
    chunk_size: int | None,
    compile: bool | None,
) -> Likelihoods:
    """
    Args:
        student, teacher (`tuple`): hidden states, weight and bias of each; the teacher's hidden states are a
            [`Pooled`] with stretches.
        labels (`torch.Tensor` of shape `(N,)`): the student's tokens.
        student_head, teacher_head (`tuple`): scale and soft-capping of the logits.
        chunk_size, compile (*optional*): as in `chunked_kd_loss`.
    """
    rows, weight, bias = teacher
    assert isinstance(rows, Pooled) and rows.stretches is not None
    stretches = rows.stretches
    if labels is not None:
        labels = torch.where(stretches.student >= 0, labels, -100)  # of the others no likelihood is needed
    measured = measure_tokens(
        student[0],
        student[1],
        rows,
        weight,
        student_bias=student[2],
        teacher_bias=bias,
        student_logit_scale=student_head[0],
        student_final_logit_softcapping=student_head[1],
        labels=labels,
        chunk_size=chunk_size,
        metrics=("ce",),
        compile=compile,
    )
    ce = measured.metrics["ce"]
    teacher_ce = _teacher_ce(stretches, weight, bias, teacher_head, chunk_size, compile)
    term, ce_weight = likelihood_term(ce, teacher_ce, stretches)
    term, ce_weight = stretches.weight * term, stretches.weight * ce_weight
    return Likelihoods(term, ce_weight, term - ce_weight * ce)


def _teacher_ce(
    stretches: Stretches,
    weight: Tensor,
    bias: Tensor | None,
    head: tuple[float, float | None],
    chunk_size: int | None,
    compile: bool | None,
) -> Tensor:
    """The teacher's cross-entropy of each of its tokens in stretches, `(A,)`."""
    (scale, cap), size, count = head, len(weight), len(stretches.tokens)
    product = Product(stretches.hidden, weight, bias, size)
    chunks = Chunks.of(count, size, weight.device, chunk_size, compile)
    spec = MeasureSpec(("teacher_ce",), student_scale=1.0, teacher_scale=scale, student_cap=None, teacher_cap=cap)
    return measure(Pair(None, product, (), chunks), spec, stretches.tokens)["teacher_ce"]


def likelihood_term(student_ce_N: Tensor, teacher_ce_A: Tensor, stretches: Stretches) -> tuple[Tensor, Tensor]:
    """
    KL((p, 1 - p), (q, 1 - q)) of each stretch, p and q being its likelihoods at temperature 1, and its gradient.

    Source: Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, arXiv
    2503.20083, with its temperature at 1: the power of a likelihood isn't that of any softened model.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: of each of the student's positions `(N,)` the term, which stands at the
        first token of its stretch, and the weight of its cross-entropy that has the term's gradient.
    """
    number_N = stretches.student
    inside = number_N >= 0
    index_N = torch.where(inside, number_N, stretches.count)  # the last place is of what is in none
    zeros = student_ce_N.new_zeros(stretches.count + 1, dtype=torch.float64)
    log_q = -zeros.index_add(0, index_N, torch.where(inside, student_ce_N, 0).double())
    log_p = -zeros.index_add(0, stretches.teacher, teacher_ce_A.double())
    log_q, log_p = log_q.clamp(max=-CERTAIN), log_p.clamp(max=-CERTAIN)
    log_not_q, log_not_p = (torch.log(-torch.expm1(log)) for log in (log_q, log_p))
    p, not_p = log_p.exp(), log_not_p.exp()
    term = p * (log_p - log_q) + not_p * (log_not_p - log_not_q)
    slope = -p + not_p * (log_q - log_not_q).exp()  # by log q, whose parts are -1 times the tokens' cross-entropies
    is_first = inside & (number_N != torch.nn.functional.pad(number_N, (1, 0), value=-1)[:-1])
    none = term.new_zeros(())
    return (
        torch.where(is_first, term[index_N], none).to(student_ce_N),
        torch.where(inside, -slope[index_N], none).to(student_ce_N),
    )
