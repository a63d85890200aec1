# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Divergences and temperature rules that others write: registered under a name, once what they give has been tried."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from .divergences import DIVERGENCES
from .errors import UsageError
from .extensions import name_of, register
from .temperature_rules import ROW_RULES, TEMPERATURE_RULES, Temperatures


F = TypeVar("F", bound=Callable[..., Tensor])

# Names of objectives, which `divergence` takes too
_OBJECTIVES = ("distillm2", "minillm", "tsld")


def register_divergence(name: str, function: F | None = None) -> Any:
    """
    Give a divergence of your own a name that `divergence` takes everywhere: in [`KDConfig`], in the losses, in recipes
    and on the command line, where `--import` names the file that registers it.

    ```python
    @register_divergence("squared_hellinger")
    def squared_hellinger(log_p, log_q, *, weight: float = 1.0):
        return weight * ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1)
    ```

    Args:
        name (`str`):
            Its name: letters, digits and underscores.
        function (`Callable`, *optional*):
            Takes `log_p` (teacher) and `log_q` (student), finite log-probabilities of shape `(..., V)`, if it looks at
            the tokens themselves a third one named `target` of shape `(...,)`, and its parameters by keyword. Gives a
            value per token, shape `(...,)`, in nats. Autograd differentiates it in `log_q` through `torch.func.vjp`,
            so it neither changes its arguments in place nor reads values of tensors. Left out: a decorator.

    Returns:
        The function.

    Raises:
        [`UsageError`]: If the name is taken, or the function doesn't take or give this.
    """
    if function is None:
        return partial(register_divergence, name)
    if name in _OBJECTIVES:
        raise UsageError(f"The objective {name!r} comes with trl_tempkd. Give your divergence another name.")
    _check_divergence(name, function)
    register("divergence", DIVERGENCES, name, function)
    return function


def _taken_by(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """What a function takes by position, and whether one of its parameters by keyword has no default."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return positional, any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)


def completed(function: Callable[..., Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters of a divergence, an objective or a rule: as they are given, and the defaults of the others."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(given or {})


def _check_divergence(name: str, function: Callable[..., Tensor]) -> None:
    """Try a divergence that somebody else has written on a few tokens."""
    where = f"The divergence {name!r}"
    positional, has_required = _taken_by(function)
    if len(positional) not in (2, 3) or positional[2:] not in ([], ["target"]):
        raise UsageError(
            f"{where} must take (log_p, log_q) or (log_p, log_q, target) and its parameters by keyword, behind a `*`; "
            f"it takes ({', '.join(positional)})."
        )
    if has_required:
        return  # it can't be called without them, and is when they are given
    log_p, log_q = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(2, 2, 3, 5).log_softmax(-1)
    target = [torch.zeros(2, 3, dtype=torch.long)] * (len(positional) - 2)
    value, pull = torch.func.vjp(lambda log_q: function(log_p, log_q, *target), log_q)
    if value.shape != log_q.shape[:-1]:
        raise UsageError(
            f"{where} must give a value per token, of shape (2, 3) for log-probabilities of shape (2, 3, 5); it gave "
            f"shape {tuple(value.shape)}."
        )
    if not value.isfinite().all() or not pull(torch.ones_like(value))[0].isfinite().all():
        raise UsageError(f"{where} gave a value or a gradient that isn't finite for ordinary probabilities.")


def divergence_name(divergence: str | Callable[..., Tensor]) -> str:
    """The name of a divergence, which a function that stands in the place of one is registered under."""
    if not callable(divergence):
        return divergence
    name = name_of("divergence", DIVERGENCES, divergence)
    if DIVERGENCES.get(name) is not divergence:
        register_divergence(name, divergence)
    return name


def register_temperature_rule(name: str, function: Callable[..., Temperatures] | None = None) -> Any:
    """
    Give a temperature rule of your own a name that `kd_temperature_rule` takes everywhere: in [`KDConfig`], as
    `temperature_rule` of the losses, in recipes and on the command line, where `--import` names the file.

    Args:
        name (`str`):
            Its name: letters, digits and underscores.
        function (`Callable`, *optional*):
            Takes the logits of student and teacher, shape `(..., V)`, where a token that can't be has `-inf`, the
            temperatures asked for, shape `(...,)`, and its parameters by keyword. Gives the temperatures `(student,
            teacher)` in their place, shape `(...,)`. It sees each token by itself. Left out: a decorator.

    Returns:
        The function.

    Raises:
        [`UsageError`]: If the name is taken, or the function doesn't take or give this.
    """
    if function is None:
        return partial(register_temperature_rule, name)
    _check_rule(name, function)
    register("temperature rule", TEMPERATURE_RULES, name, function)
    ROW_RULES[name] = function
    return function


def _check_rule(name: str, function: Callable[..., Temperatures]) -> None:
    """Try a rule that somebody else has written on a few tokens."""
    where = f"The temperature rule {name!r}"
    positional, has_required = _taken_by(function)
    if len(positional) != 4:
        raise UsageError(
            f"{where} must take (z, v, tau_s, tau_t) and its parameters by keyword, behind a `*`; it takes "
            f"({', '.join(positional)})."
        )
    if has_required:
        return  # it can't be called without them, and is when they are given
    z, v = torch.linspace(-1, 1, 60).reshape(2, 2, 3, 5)
    tau = torch.full((2, 3), 2.0)
    found = function(z, v, tau, tau)
    if not isinstance(found, tuple) or len(found) != 2 or any(getattr(of, "shape", None) != (2, 3) for of in found):
        shapes = tuple(getattr(of, "shape", type(of).__name__) for of in found) if isinstance(found, tuple) else found
        raise UsageError(
            f"{where} must give the temperatures (student, teacher) of each token, both of shape (2, 3) for logits of "
            f"shape (2, 3, 5); it gave {shapes}."
        )
    if not all(((of > 0) & of.isfinite()).all() for of in found):
        raise UsageError(f"{where} gave a temperature that isn't positive and finite for ordinary logits.")


def rule_name(rule: str | Callable[..., Temperatures] | None) -> str | None:
    """The name of a rule, which a function that stands in the place of one is registered under."""
    if not callable(rule):
        return rule
    name = name_of("temperature rule", TEMPERATURE_RULES, rule)
    if TEMPERATURE_RULES.get(name) is not rule:
        register_temperature_rule(name, rule)
    return name
