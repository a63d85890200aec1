# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Rules that give each token a temperature of its own, and a plain dict of them.

Those of `ROW_RULES` look at one token's logits: pure functions of (student logits, teacher logits, the temperatures
asked for), of shapes `(..., V)` and `(...,)`, that return the temperatures `(student, teacher)` in their place, of
shape `(...,)`. The loss calls them where it has the logits of a few rows, so they cost no second pass. To add one
here: write the function, add its line; one of your own is registered with [`register_temperature_rule`].
[`token_adaptive`] compares a token with the others of its batch, and [`curriculum`] follows what the training has
learnt; `objectives/` computes what they take. To the student's gradient all of them are constants.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .extensions import load_extensions
from .option_checks import check_parameters
from .temperature import LOG_FLOOR, centred


# Temperatures are kept in here whatever a rule says: below, a gradient would overflow; above, nothing is left of p
LOWEST, HIGHEST = 1e-2, 1e3

# Passes over the vocabulary in the search of target_entropy
BISECTIONS, NEWTON_STEPS = 9, 5

Temperatures = tuple[Tensor, Tensor]


def _mean(values: Tensor) -> Tensor:
    """Over the entries of a row that are finite; 0 where none is."""
    finite = torch.isfinite(values)
    return torch.where(finite, values, 0).sum(-1) / finite.sum(-1).clamp(min=1)


def _standard_deviation(logits: Tensor) -> Tensor:
    relative = centred(logits)
    finite = torch.isfinite(relative)
    distance = torch.where(finite, relative - _mean(relative).unsqueeze(-1), 0)
    return (distance.square().sum(-1) / (finite.sum(-1) - 1).clamp(min=1)).sqrt()


def zscore(z: Tensor, v: Tensor, tau_s: Tensor, tau_t: Tensor) -> Temperatures:
    """
    tau (std(z) + 1e-7) and tau (std(v) + 1e-7): logits standardised over the vocabulary, then divided by tau.

    The mean cancels in the softmax. The paper's gradient flows through the student's standard deviation too, ours
    doesn't. The loss is rescaled by tau, not by what comes out here.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, arXiv 2403.01528.
    """
    return tau_s * (_standard_deviation(z) + 1e-7), tau_t * (_standard_deviation(v) + 1e-7)


def target_entropy(z: Tensor, v: Tensor, tau_s: Tensor, tau_t: Tensor, *, share: float = 0.3) -> Temperatures:
    """
    The temperature at which the teacher's entropy is share * log V, for both sides; the tau asked for isn't used.

    Entropy grows with the temperature, so bisection of log tau and then Newton steps find it. A teacher that can't
    have it (a tie of more tokens than that) gets the nearest end of the range.

    Source: this library.
    """
    if not 0 < share < 1:
        raise UsageError(f"`share` must be above 0 and below 1, got {share}.")
    target = share * math.log(v.shape[-1])
    relative = centred(v).clamp(min=LOG_FLOOR * HIGHEST)  # of weight 0 at every temperature
    low = torch.full_like(tau_t, math.log(LOWEST))
    high = torch.full_like(tau_t, math.log(HIGHEST))
    x = (low + high) / 2
    for step in range(BISECTIONS + NEWTON_STEPS):
        inverse = (-x).exp()
        weights = (relative * inverse.unsqueeze(-1)).exp()
        total = weights.sum(-1).clamp(min=torch.finfo(v.dtype).tiny)  # 0 where no token has a logit
        weighted = weights * relative
        mean = weighted.sum(-1) / total
        excess = total.log() - mean * inverse - target  # of the entropy
        low, high = torch.where(excess < 0, x, low), torch.where(excess < 0, high, x)
        if step < BISECTIONS - 1:
            x = (low + high) / 2
            continue
        variance = (weighted * relative).sum(-1) / total - mean.square()
        slope = (variance * inverse.square()).clamp(min=1e-12)  # dH / d log tau
        x = (x - excess / slope).clamp(low, high)
    return x.exp(), x.exp()


def max_logit(z: Tensor, v: Tensor, tau_s: Tensor, tau_t: Tensor, *, rho: float = 5.0) -> Temperatures:
    """
    max(1, max(z - mean(z)) / rho) and the same of v: a surer prediction is softened more; tau isn't used.

    Source: after Consistently Informative Soft-Label Temperature (CIST), arXiv 2605.20357, each side from its own
    centred maximum logit. That also weighs by the teacher's confidence and the student's difficulty; this doesn't.
    """
    if not rho > 0:
        raise UsageError(f"`rho` must be positive, got {rho}.")

    def of(logits: Tensor) -> Tensor:
        return (-_mean(centred(logits)) / rho).clamp(min=1.0)  # the largest is 0

    return of(z), of(v)


def token_adaptive(
    distance: Tensor, tau_s: Tensor, tau_t: Tensor, *, c: float = 0.5, keep: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """
    tau exp(-c tanh(log(s / median s))), s the Hellinger distance of the two at tau 1: less for harder tokens.

    Args:
        distance (`torch.Tensor` of shape `(N,)`): of all tokens of the batch, on every process the same ones.
        tau_s, tau_t (`torch.Tensor` of shape `(N,)`): the temperatures asked for.
        c (`float`): how far tau moves: by a factor of exp(-c) to exp(c).
        keep (`float`): share of the tokens that count, those of the largest distance; the median is of these.

    Returns:
        The two temperatures, and the weight of each token: 0, or such that the mean is that of the tokens kept.

    Source: Xie et al., LLM-Oriented Token-Adaptive Knowledge Distillation (AdaKD), arXiv 2510.11615. There the share
    that is kept follows the loss; here it stays.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"`keep` must be above 0 and at most 1, got {keep}.")
    count = distance.shape[0]
    kept = max(1, int(count * keep))
    if not count:
        return tau_s, tau_t, distance
    order = distance.argsort(descending=True, stable=True)[:kept]
    weight = torch.zeros_like(distance).index_fill(0, order, count / kept)
    median = distance[order].median().clamp(min=1e-8)
    factor = (-c * torch.tanh((distance / median).clamp(min=1e-8).log())).exp()
    return tau_s * factor, tau_t * factor, weight


def curriculum(
    theta: float, *, start: float = 1.0, learning_rate: float = 0.05, minimum: float = 1.0, span: float = 20.0
) -> float:
    """
    minimum + span sigmoid(theta), theta learnt from `start` on with the gradient reversed, so that tau makes the task
    harder; the weight of that gradient goes from 0 to -1 in a cosine over the run.

    Source: Li et al., Curriculum Temperature for Knowledge Distillation (CTKD), arXiv 2211.16231; the global version.
    There the student's optimizer moves theta too; here it is plain gradient steps with a rate of their own.
    """
    for name, value in (("minimum", minimum), ("span", span), ("learning_rate", learning_rate)):
        if not value > 0:
            raise UsageError(f"`{name}` must be positive, got {value}.")
    if not math.isfinite(start):
        raise UsageError(f"`start` must be finite, got {start}.")
    return minimum + span * sigmoid(theta)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), which doesn't overflow."""
    return (1 + math.tanh(x / 2)) / 2


ROW_RULES: dict[str, Callable[..., Temperatures]] = {
    "zscore": zscore,
    "target_entropy": target_entropy,
    "max_logit": max_logit,
}
TEMPERATURE_RULES: dict[str, Callable[..., Any]] = {
    **ROW_RULES,
    "token_adaptive": token_adaptive,
    "curriculum": curriculum,
}
# Rules that start from the tau asked for; the others find their own
FROM_TAU = ("zscore", "token_adaptive")
# Rules that are a change of the unit of the logits: the loss is rescaled by the tau asked for
RESCALED_BY_TAU = ("zscore",)


def row_temperatures(
    rule: str, kwargs: dict[str, Any], z: Tensor, v: Tensor, tau_s: Tensor, tau_t: Tensor, sides: str = "both"
) -> Temperatures:
    """
    The temperatures of each row by a rule of `ROW_RULES`, without gradient.

    Args:
        rule, kwargs (`str`, `dict`): the rule and its parameters.
        z, v (`torch.Tensor`): logits of student and teacher, shapes `(..., V)`.
        tau_s, tau_t (`torch.Tensor`): temperatures asked for, shapes `(...,)`.
        sides (`str`): `both`, `student` or `teacher`: whose temperature the rule decides. The other's stays.
    """
    new_s, new_t = ROW_RULES[rule](z.detach(), v.detach(), tau_s, tau_t, **kwargs)
    return (
        tau_s if sides == "teacher" else new_s.clamp(LOWEST, HIGHEST),
        tau_t if sides == "student" else new_t.clamp(LOWEST, HIGHEST),
    )


def parameters(rule: str) -> dict[str, Any]:
    """Names and defaults of a rule's parameters."""
    signature = inspect.signature(TEMPERATURE_RULES[rule])
    return {name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}


def check_temperature_rule(rule: str | None, kwargs: dict[str, Any] | None = None) -> None:
    """
    Check a rule's name and its parameters.

    Raises:
        `ValueError`: the name is unknown, a parameter is unknown, or its value is out of range.
    """
    kwargs = dict(kwargs or {})
    if rule is None:
        if kwargs:
            raise UsageError(f"`temperature_rule_kwargs` is {kwargs}, but there is no `temperature_rule`.")
        return
    if rule not in TEMPERATURE_RULES:
        load_extensions()
    if rule not in TEMPERATURE_RULES:
        raise UsageError(
            f"`temperature_rule` must be one of {', '.join(TEMPERATURE_RULES)}, got {rule!r}. One of your own is "
            "registered with `register_temperature_rule`, in a file that `--import` names."
        )
    known = parameters(rule)
    for name in kwargs:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameters"
            raise UsageError(f"`temperature_rule_kwargs` has {name!r}, but {rule} {takes}.")
    sample = torch.tensor([[1.0, 0.0, 0.5]])
    one = torch.ones(1)
    samples: dict[str, tuple[Any, ...]] = {"token_adaptive": (one, one, one), "curriculum": (0.0,)}
    function = partial(TEMPERATURE_RULES[rule], *samples.get(rule, (sample, sample, one, one)))
    check_parameters("temperature_rule_kwargs", rule, function, kwargs)
