# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What both losses refuse, each in the same words."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..divergences import check_divergence
from ..errors import UsageError, UsageTypeError
from ..temperature import rescale_factor
from ..temperature_rules import ROW_RULES, check_temperature_rule


def check_options(
    divergence: str,
    divergence_kwargs: dict[str, Any] | None,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    rescale: str,
    temperature_rule: str | None,
    temperature_rule_kwargs: dict[str, Any] | None,
    temperature_rule_sides: str,
) -> None:
    """
    Arguments as in `kd_loss`.

    Raises:
        `ValueError`: One is unknown or out of range. (Temperatures in tensors are not read: that would stall a GPU.)
    """
    check_divergence(divergence, divergence_kwargs)
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if isinstance(value, Tensor):
            continue
        check_number(name, value, "a number or a tensor")
        if not 0 < float(value) < float("inf"):
            raise UsageError(f"`{name}` must be positive and finite, got {value}.")
    rescale_factor(rescale, 1.0, 1.0)
    check_temperature_rule(temperature_rule, temperature_rule_kwargs)
    if temperature_rule is not None and temperature_rule not in ROW_RULES:
        raise UsageError(
            f"`temperature_rule` must be one of {', '.join(ROW_RULES)}, got {temperature_rule!r}, which needs more "
            "than a token's logits: pass the temperatures that it gives as tensors."
        )
    if temperature_rule_sides not in ("both", "student", "teacher"):
        raise UsageError(
            f"`temperature_rule_sides` must be one of both, student, teacher, got {temperature_rule_sides!r}."
        )


def check_number(name: str, value: Any, wanted: str = "a number") -> None:
    """
    Raises:
        [`UsageTypeError`]: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageTypeError(f"`{name}` must be {wanted}, got {value!r} ({type(value).__name__}).")


def check_tensors(**named: Any) -> None:
    """
    Args:
        named: by its name what must be a tensor of floating-point numbers.

    Raises:
        [`UsageTypeError`]: One isn't.
    """
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise UsageTypeError(f"`{name}` must be a tensor, got {type(value).__name__}.")
        if not value.is_floating_point():
            raise UsageTypeError(f"`{name}` must have floating-point numbers, got {value.dtype}.")


def check_labels(labels: Tensor | None, rows: Sequence[int], needed_by: str | None = None) -> None:
    """
    Args:
        labels (`torch.Tensor`, *optional*): the target tokens.
        rows (`Sequence[int]`): the shape of a value per token.
        needed_by (`str`, *optional*): what looks at the target.

    Raises:
        `ValueError`: They are missing, or aren't one whole number for each token.
    """
    if labels is None and needed_by is None:
        return
    if labels is None:
        raise UsageError(f"`labels` is required: {needed_by} looks at the target token. Pass shape {tuple(rows)}.")
    if not isinstance(labels, Tensor):
        raise UsageTypeError(f"`labels` must be a tensor, got {type(labels).__name__}.")
    if labels.shape != torch.Size(rows):
        raise UsageError(
            f"`labels` must be one token each, of shape {tuple(rows)}, got a tensor of shape {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"`labels` must be whole numbers, the ids of tokens, got {labels.dtype}.")


def check_targets(labels: Tensor, size: int) -> None:
    """
    Args:
        labels (`torch.Tensor`): the target tokens, -100 where none counts. They are read, which waits for a GPU.
        size (`int`): how many tokens are compared, those that both vocabularies have.

    Raises:
        `ValueError`: One is no such token.
    """
    labels = torch.func.debug_unwrap(labels)  # under `vmap` those of all
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= size))]
    if len(wrong):
        raise UsageError(
            f"`labels` has {wrong[0].item()}, but {size} tokens are compared, those that both vocabularies have, so "
            f"that a label is from 0 to {size - 1}. Use -100 where none counts."
        )


def per_token(name: str, value: Any, rows: Sequence[int]) -> Any:
    """
    `value` for each of the tokens, of shape `rows`, where it is a tensor.

    Raises:
        `ValueError`: It has another number of them.
    """
    if not isinstance(value, Tensor):
        return value
    try:
        return value.expand(rows)
    except RuntimeError:
        raise UsageError(
            f"`{name}` must be a number or a tensor of the shape of the tokens, {tuple(rows)}, got a tensor of shape "
            f"{tuple(value.shape)}."
        ) from None


def check_metrics(names: Sequence[str], known: Sequence[str], has_labels: bool) -> tuple[str, ...]:
    """
    Raises:
        `ValueError`: One of `names` isn't `known` of this teacher, or looks at labels that aren't there.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"`metrics` must be of {', '.join(known)}, got {name!r}.")
        if name in ("ce", "teacher_ce") and not has_labels:
            raise UsageError(f"`metrics` has {name!r}, which looks at the target: pass `labels`.")
    return tuple(names)


def refuse_transforms(*tensors: Any) -> None:
    """
    Raises:
        `ValueError`: A tensor is one of `torch.func`'s.
    """
    tensors = tuple(t if isinstance(t, Tensor) else getattr(t, "values", None) for t in tensors)  # [`Logits`]
    if any(isinstance(t, Tensor) and torch.func.debug_unwrap(t, recurse=False) is not t for t in tensors):
        raise UsageError(
            "`chunked_kd_loss` can't be transformed by `torch.func` (grad, vjp, jvp, vmap, ...): its gradient is made "
            "in the forward pass. Use `kd_loss` on logits."
        )
