# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Metrics of each token without a loss, for a loss that depends on them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .arguments import check_labels, check_metrics, refuse_transforms
from .block import MeasureSpec
from .fused import measure
from .mixture import Mixture
from .operands import Logits, Operands, make_operands
from .pooled import Pooled
from .truncated import Truncated
from .values import OF_STUDENT, WHOLE


class Measured(NamedTuple):
    """
    Output of [`measure_tokens`].

    Attributes:
        metrics (`dict`): shape `(N,)` each, as in [`ChunkedKDOutput`].
        operands ([`Operands`]): what they are of, and the last logits, which the loss needn't multiply again.
    """

    metrics: dict[str, Tensor]
    operands: Operands


@torch.compiler.disable
def measure_tokens(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | Logits | Mixture | Pooled,
    teacher_weight: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_final_logit_softcapping: float | None = None,
    labels: Tensor | None = None,
    chunk_size: int | None = None,
    metrics: Sequence[str],
    compile: bool | None = None,
) -> Measured:
    """
    Metrics of each token without a loss, for one that depends on them.

    It costs a product with each head that one of them looks at. The loss has one chunk less to multiply then, where it
    is given what comes out here as `measured`.

    Args:
        metrics (`list[str]`): of those of [`ChunkedKDOutput`] that are at temperature 1.
        others: as in [`chunked_kd_loss`].

    Returns:
        [`Measured`]

    Raises:
        `ValueError`: an argument is unknown, missing, or of the wrong shape.
    """
    tensors = (student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias)
    refuse_transforms(*tensors, labels)
    check_labels(labels, student_hidden.shape[:1])
    if isinstance(teacher_hidden, Truncated) or (isinstance(teacher_hidden, Pooled) and not {*metrics} <= OF_STUDENT):
        raise UsageError(
            f"`metrics` {', '.join(metrics)} need the teacher's whole rows, which `teacher_hidden` hasn't."
        )
    spec = MeasureSpec(
        metrics=check_metrics(metrics, WHOLE, labels is not None),
        student_scale=float(student_logit_scale),
        teacher_scale=float(teacher_logit_scale),
        student_cap=student_final_logit_softcapping,
        teacher_cap=teacher_final_logit_softcapping,
    )
    operands = make_operands(
        (student_hidden, student_weight, student_bias),
        (teacher_hidden, teacher_weight, teacher_bias),
        labels,
        chunk_size,
        compile,
    )
    found = measure(operands.pair, spec, operands.target)
    return Measured({name: operands.spread(value) for name, value in found.items()}, operands)
