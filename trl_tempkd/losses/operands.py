# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What the chunked loss works on: two models' hidden states and heads, at the tokens that count.

Shape suffixes: N tokens, V vocabulary, H hidden size (each model's own).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from .arguments import check_targets, check_tensors
from .fused import Chunks, Pair, Product
from .mixture import Mixture, MixtureProduct
from .pooled import Pooled
from .truncated import Truncated


@dataclass(frozen=True)
class Logits:
    """A teacher's logits `(N, V_t)` in the place of its hidden states, where there is nothing else of it."""

    values: Tensor


@dataclass(frozen=True)
class Operands:
    """
    Student and teacher at the tokens that count.

    Attributes:
        pair ([`Pair`]): their matmuls, but for a truncated teacher, which has none.
        hidden (`torch.Tensor`): the student's hidden states, differentiable.
        target (`torch.Tensor`): the labels, 0 where none are given.
        truncated ([`Truncated`], *optional*): the teacher, if it is one.
        pooled ([`Pooled`], *optional*): the teacher, if it has another vocabulary.
        kept (`torch.Tensor`, *optional*): which of all tokens these are, by number; `None` is all, in their order.
        count (`int`): how many all tokens are.
        size (`int`): how many logits are compared.
    """

    pair: Pair
    hidden: Tensor
    target: Tensor
    truncated: Truncated | None
    kept: Tensor | None
    count: int
    size: int
    pooled: Pooled | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of what isn't a matmul."""
        return torch.promote_types(self.pair.student.weight_VH.dtype, torch.float32)

    def select(self, value: Tensor) -> Tensor:
        """Of a value for each token those of the tokens that count."""
        return value if self.kept is None else value.index_select(0, self.kept)

    def spread(self, value: Tensor) -> Tensor:
        """The other way round, with 0 for the rest."""
        return value if self.kept is None else value.new_zeros(self.count).index_copy(0, self.kept, value)


def make_operands(
    student: tuple[Tensor, Tensor, Tensor | None],
    teacher: tuple[Tensor | Logits | Truncated | Mixture | Pooled, Tensor | None, Tensor | None],
    labels: Tensor | None,
    chunk_size: int | None,
    compile: bool | None,
) -> Operands:
    """
    Args:
        student, teacher (`tuple`): hidden states, weight and bias of each.
        labels, chunk_size, compile: as in `chunked_kd_loss`.

    Raises:
        `ValueError`: A shape doesn't fit the others, or a label is no token that is compared.
    """
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"`chunk_size` must be positive, got {chunk_size}.")
    hidden, weight, bias = student
    _check_head("student", hidden, weight, bias)
    width = _check_teacher(*teacher, hidden, weight)
    pooled = teacher[0] if isinstance(teacher[0], Pooled) else None
    count, size = len(hidden), len(weight) if pooled else min(len(weight), width)

    target = torch.zeros(count, dtype=torch.long, device=hidden.device) if labels is None else labels.long()
    if labels is not None:
        check_targets(target, size)  # it waits for a GPU, as the next line must anyway
    kept, compared = None, None
    if pooled is not None:  # those that are aligned come first, and what follows has no teacher
        at = pooled.at(count)
        first, others = ((target != -100) & where for where in (at >= 0, at < 0))
        aligned = first.nonzero().squeeze(-1)
        kept, compared = torch.cat([aligned, others.nonzero().squeeze(-1)]), len(aligned)
    elif labels is not None:
        kept = (target != -100).nonzero().squeeze(-1)
    if kept is not None:
        target, hidden = target.index_select(0, kept), hidden.index_select(0, kept)
    rows, truncated = teacher[0], None
    product: Product | MixtureProduct | None = None
    known: tuple[Tensor, ...] = ()
    if isinstance(rows, Pooled):
        product = Product(rows.hidden.detach().index_select(0, at.index_select(0, aligned)), *teacher[1:], width)
    elif isinstance(rows, Truncated):
        truncated = rows.select(kept)
    elif isinstance(rows, Mixture):
        dtype = torch.promote_types(weight.dtype, torch.float32)
        product = MixtureProduct(rows.select(kept), size, dtype)
    else:
        values = (rows.values if isinstance(rows, Logits) else rows).detach()
        values = values if kept is None else values.index_select(0, kept)
        if isinstance(rows, Logits):
            known = (values[:, :size],)
        else:
            product = Product(values, *teacher[1:], size)
    compile = False if pooled and not pooled.count else compile  # a sort isn't made faster
    widest = max(size, width) if pooled else size
    chunks = Chunks.of(len(hidden), widest, hidden.device, chunk_size, compile, compared)
    tables = pooled.tables if pooled else ()
    pair = Pair(Product(hidden, weight, bias, size), product, known, chunks, tables)
    return Operands(pair, hidden, target, truncated, kept, count, size, pooled)


def _check_teacher(
    rows: Tensor | Logits | Truncated | Mixture | Pooled,
    weight: Tensor | None,
    bias: Tensor | None,
    hidden: Tensor,
    student: Tensor,
) -> int:
    """How many logits the teacher has; `hidden` and `student` are the student's hidden states and weight."""
    if isinstance(rows, Truncated):
        if len(rows.ids) != len(hidden) or rows.size > len(student):
            raise UsageError(
                f"`teacher_hidden` has {len(rows.ids)} rows of a vocabulary of {rows.size}, the student {len(hidden)} "
                f"rows and {len(student)} logits: as many rows are needed, and no fewer logits."
            )
        return rows.size
    if isinstance(rows, Mixture):
        if len(rows) != len(hidden):
            raise UsageError(f"`teacher_hidden` has {len(rows)} rows, and the student {len(hidden)}.")
        return rows.width
    if isinstance(rows, Pooled):
        assert weight is not None
        _check_head("teacher", rows.hidden, weight, bias)
        if len(rows.rows) != len(rows.hidden) or tuple(map(len, rows.bins)) != (len(student), len(weight)):
            raise UsageError(
                f"`teacher_hidden` has {len(rows.hidden)} rows for {len(rows.rows)} positions, and bins of "
                f"{len(rows.bins[0])} and {len(rows.bins[1])} tokens, and the heads of student and teacher have "
                f"{len(student)} and {len(weight)} logits."
            )
        return len(weight)
    if weight is None and not isinstance(rows, Logits):
        raise UsageError("`teacher_weight` is required: `teacher_hidden` needs the head that it is the input of.")
    values = rows.values if isinstance(rows, Logits) else rows
    check_tensors(teacher_hidden=values, **({} if weight is None else {"teacher_weight": weight}))
    if values.dim() != 2 or len(values) != len(hidden):
        raise UsageError(
            "`student_hidden` and `teacher_hidden` must have shapes (N, H_s) and (N, H_t) with the same N, got "
            f"{tuple(hidden.shape)} and {tuple(values.shape)}."
        )
    if isinstance(rows, Logits):
        return values.shape[1]
    assert weight is not None
    _check_head("teacher", values, weight, bias)
    return len(weight)


def _check_head(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"`{side}_hidden` and `{side}_weight` must have shapes (N, H) and (V, H) with the same H, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(
            f"`{side}_bias` must have shape ({len(weight)},), as the head has rows, got {tuple(bias.shape)}."
        )
