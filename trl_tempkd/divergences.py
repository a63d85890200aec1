# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The family of divergences: one pure function each, and a plain dict of them.

Every function takes `log_p` (teacher) and `log_q` (student), log-probabilities of shape `(..., V)` that
[`~trl_tempkd.temperature.log_softmax`] has made (so they are finite: a probability of zero is the floor), and returns
one value per token, shape `(...,)`, in nats. Values are *true* divergences: 0 exactly where p = q, comparable between
runs and temperatures. They are written for autograd to differentiate in `log_q`; weights that a paper treats as
constants are detached. A parameter that may be a tensor has one value per token, shape `(...,)`. To add a divergence
here: write the function, add its line to `DIVERGENCES`. One of your own is registered with [`register_divergence`].
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .extensions import load_extensions
from .likeliest import head_mask
from .names import did_you_mean
from .option_checks import check_parameters


# Powers with a negative exponent blow up where a probability is zero: from e^30 on they follow their tangent. No ratio
# that training can meet comes near it, and the norm of such a gradient is finite in fp32, squares and all.
MAX_LOG_POWER = 30.0


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _log_mix(log_a: Tensor, log_b: Tensor, weight: float | Tensor) -> Tensor:
    """log(weight * a + (1 - weight) * b), with the ends exact."""
    if isinstance(weight, Tensor):
        weight = weight.unsqueeze(-1)
    elif weight in (0, 1):
        return log_a if weight else log_b
    # one logarithm costs less than logaddexp; where both underflow the mixture has no part in any sum over a or b
    return (weight * log_a.exp() + (1 - weight) * log_b.exp()).clamp(min=torch.finfo(log_a.dtype).tiny).log()


def _check_share(name: str, value: float | Tensor) -> None:
    # A tensor, one value per token, is not read: that would stall a GPU
    if not isinstance(value, Tensor) and not 0 <= value <= 1:
        raise UsageError(f"`{name}` must be between 0 and 1, got {value}.")


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """
    KL(p, q) = sum p (log p - log q).

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531.
    """
    return _kl(log_p, log_q)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """
    KL(q, p) = sum q (log q - log p).

    Source: Gu et al., MiniLLM, arXiv 2306.08543 (here per token, over the full vocabulary).
    """
    return _kl(log_q, log_p)


def symmetric_kl(log_p: Tensor, log_q: Tensor, *, weight: float = 0.5) -> Tensor:
    """
    (1 - weight) KL(p, q) + weight KL(q, p).

    Source: Jeffreys' divergence for weight 0.5; compared with adaptive_kl in Wu et al., arXiv 2404.02657.
    """
    _check_share("weight", weight)
    return (1 - weight) * _kl(log_p, log_q) + weight * _kl(log_q, log_p)


def jsd(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5) -> Tensor:
    """
    beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q; beta 0 is forward_kl, beta 1 reverse_kl.

    As in TRL, the ends *mean* the two KLs. They are not the limits of the interior, which are 0: the value is
    discontinuous in beta at 0 and 1, and a small beta gives a small loss.

    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), arXiv 2306.13649, eq. 1.
    """
    _check_share("beta", beta)
    if beta in (0, 1):
        return _kl(log_q, log_p) if beta else _kl(log_p, log_q)
    log_m = _log_mix(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def skew_forward_kl(log_p: Tensor, log_q: Tensor, *, alpha: float | Tensor = 0.1) -> Tensor:
    """
    KL(p, alpha p + (1 - alpha) q); alpha 0 is forward_kl, alpha 1 is 0.

    Source: Ko et al., DistiLLM, arXiv 2402.03898, sec. 3.1.
    """
    _check_share("alpha", alpha)
    return _kl(log_p, _log_mix(log_p, log_q, alpha))


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, *, alpha: float | Tensor = 0.1) -> Tensor:
    """
    KL(q, (1 - alpha) p + alpha q); alpha 0 is reverse_kl, alpha 1 is 0.

    Source: Ko et al., DistiLLM, arXiv 2402.03898, sec. 3.1.
    """
    _check_share("alpha", alpha)
    return _kl(log_q, _log_mix(log_q, log_p, alpha))


def tvd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """
    0.5 sum |p - q|, the total variation distance.

    Source: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, arXiv 2307.15190.
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def adaptive_kl(log_p: Tensor, log_q: Tensor, *, mu: float = 0.5) -> Tensor:
    """
    (g_h KL(p, q) + g_t KL(q, p)) / (g_h + g_t), g_h and g_t = sum |p - q| over the teacher's head and tail (detached).

    The head is the most likely tokens whose cumulative mass is at most `mu`, the first always included.

    Source: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for LLMs, arXiv 2404.02657.
    """
    _check_share("mu", mu)
    gap = (log_p.exp() - log_q.exp()).abs().detach()
    head = torch.where(head_mask(log_p.detach(), mu), gap, 0).sum(-1)
    total = gap.sum(-1)
    # p = q: both KLs are 0, so any weight will do, as long as it is a number
    share = head / total.clamp(min=torch.finfo(total.dtype).tiny)
    return share * _kl(log_p, log_q) + (1 - share) * _kl(log_q, log_p)


def _power(log_x: Tensor) -> Tensor:
    """exp, and beyond `MAX_LOG_POWER` its tangent: convex, so that what is made of it stays a divergence."""
    below = log_x.clamp(max=MAX_LOG_POWER)
    return below.exp() * (1 + log_x - below)


def _gap(x: Tensor, y: Tensor) -> Tensor:
    """How far [`_power`] at y lies above its tangent at x: 0 where both are beyond the bound, without cancellation."""
    below_x, below_y = x.clamp(max=MAX_LOG_POWER), y.clamp(max=MAX_LOG_POWER)
    power_x = below_x.exp()
    return (below_y.exp() - power_x) * (1 + y - below_y) - power_x * (below_y - below_x)


def alpha_beta(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """
    -1/(ab) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)], a = alpha, b = beta, and its limits where one is 0.

    (1, 0) is forward_kl, (0, 1) reverse_kl, (0.5, 0.5) four times the squared Hellinger distance. Where a or b is 0
    the limit has the factor 1 over the square of the other one; in public copies of ABKD's code it is that in some and
    1 over the other one in others.

    Source: Wang et al., ABKD, arXiv 2505.04560; Cichocki et al., Generalized Alpha-Beta Divergences, Entropy 13, 2011.
    """
    a, b, s = alpha, beta, alpha + beta
    if a == b == 0:
        return 0.5 * (log_p - log_q).square().sum(-1)
    if a == 0:
        return _gap(b * log_q, b * log_p).sum(-1) / b**2
    if b == 0:
        return _gap(a * log_p, a * log_q).sum(-1) / a**2
    if s == 0:
        return _gap(torch.zeros_like(log_p), a * (log_p - log_q)).sum(-1) / a**2
    mixed = a * log_p + b * log_q
    if s < 0:  # the parts of p and q alone are large, and nearly cancel
        gaps = a / s * _gap(mixed, s * log_p) + b / s * _gap(mixed, s * log_q)
        return gaps.sum(-1) / (a * b)
    power = torch.exp if min(a, b) >= 0 else _power
    return (a / s * (s * log_p).exp() + b / s * (s * log_q).exp() - power(mixed)).sum(-1) / (a * b)


def todi(log_p: Tensor, log_q: Tensor) -> Tensor:
    """
    sum w p (log p - log q) + (1 - w) q (log q - log p), w = sigmoid(log p - log q) per vocabulary entry (detached).

    Source: Jung et al., ToDi: Token-wise Distillation via Fine-Grained Divergence Control, arXiv 2505.16297.
    """
    ratio = log_p - log_q
    w = torch.sigmoid(ratio).detach()
    return ((w * log_p.exp() - (1 - w) * log_q.exp()) * ratio).sum(-1)


def _split(log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    log p_target `(...,)`, log(1 - p_target) `(...,)`, and the log of the rest renormalised `(..., V)`.

    The rest is summed from its own entries: 1 - p_target would lose it where the target is nearly certain.
    """
    is_target = torch.arange(log_p.shape[-1], device=log_p.device) == target.unsqueeze(-1)
    zero = log_p.new_zeros(())
    top = torch.where(is_target, zero - float("inf"), log_p).amax(-1, keepdim=True).detach()
    top = top.clamp(min=torch.finfo(log_p.dtype).min / 4)  # a vocabulary of one has no rest
    relative = torch.where(is_target, zero, log_p - top).exp()
    rest = torch.where(is_target, zero, relative).sum(-1).clamp(min=torch.finfo(log_p.dtype).tiny).log()
    rest = rest + top.squeeze(-1)
    conditional = torch.where(is_target, zero, log_p - rest.unsqueeze(-1))
    return torch.where(is_target, log_p, zero).sum(-1), rest, conditional


def _binary_and_rest(log_a: Tensor, log_b: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """KL((a_y, 1 - a_y), (b_y, 1 - b_y)) and the KL of the renormalised others."""
    a_y, a_rest, a_cond = _split(log_a, target)
    b_y, b_rest, b_cond = _split(log_b, target)
    others = (a_cond.exp() * (a_cond - b_cond)).sum(-1)
    # the target's own entry is 0 - 0 in the sum above
    return a_y.exp() * (a_y - b_y) + a_rest.exp() * (a_rest - b_rest), others


def diversity_reverse_kl(log_p: Tensor, log_q: Tensor, target: Tensor, *, gamma: float = 0.5) -> Tensor:
    """
    KL((q_y, 1 - q_y), (p_y, 1 - p_y)) + gamma KL(q_rest, p_rest), y the target token, the rest renormalised.

    reverse_kl has (1 - q_y) in the place of gamma, and so stops to look at the rest as the student grows certain.

    Source: Luong et al., Diversity-Aware Reverse Kullback-Leibler Divergence for LLM Distillation, arXiv 2604.00223.
    """
    binary, others = _binary_and_rest(log_q, log_p, target)
    return binary + gamma * others


def decoupled_kl(log_p: Tensor, log_q: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 8.0) -> Tensor:
    """
    alpha KL((p_y, 1 - p_y), (q_y, 1 - q_y)) + beta KL(p_rest, q_rest), y the target token, the rest renormalised.

    forward_kl has alpha 1 and (1 - p_y) in the place of beta.

    Source: Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679, eq. 7.
    """
    binary, others = _binary_and_rest(log_p, log_q, target)
    return alpha * binary + beta * others


def entropy_aware(log_p: Tensor, log_q: Tensor, *, threshold: float = 0.8) -> Tensor:
    """
    KL(q, p) + [H(p) > threshold] KL(p, q), H the teacher's entropy in nats at its temperature.

    Source: Jin et al., Entropy-Aware On-Policy Distillation of Language Models, arXiv 2603.07079.
    """
    entropy = -(log_p.exp() * log_p).sum(-1)
    return _kl(log_q, log_p) + torch.where(entropy > threshold, _kl(log_p, log_q), 0)


def concrete_score(log_p: Tensor, log_q: Tensor, *, weights: str = "student") -> Tensor:
    """
    sum w (D - sum w D)^2, D = log q - log p, w (detached) the `student`'s or `teacher`'s probabilities or `uniform`.

    It is 0.5 sum_x sum_y w(x) w(y) (D(x) - D(y))^2, the squared error of logit differences, in O(V). With the
    student's weights, which are held constant, its gradient is twice that of reverse_kl: under Adam the two are one.

    Source: Kim et al., Distillation of Large Language Models via Concrete Score Matching, arXiv 2509.25837.
    """
    if weights == "uniform":
        w = torch.full_like(log_q, 1 / log_q.shape[-1])
    elif weights in ("student", "teacher"):
        w = (log_q if weights == "student" else log_p).detach().exp()
    else:
        raise UsageError(f"`weights` must be one of student, teacher, uniform, got {weights!r}.")
    difference = log_q - log_p
    mean = (w * difference).sum(-1, keepdim=True)
    return (w * (difference - mean).square()).sum(-1)


def taid(log_p: Tensor, log_q: Tensor, *, t: float | Tensor = 0.4) -> Tensor:
    """
    KL(m, q), m proportional to q^(1 - t) p^t, this q detached: a target between the two; t 1 is forward_kl.

    At equal temperatures m is softmax(((1 - t) z + t v) / tau), the paper's mean of logits. The trainer moves t to 1.

    Source: Shing et al., TAID: Temporally Adaptive Interpolated Distillation, arXiv 2501.16937, eq. 2.
    """
    _check_share("t", t)
    if isinstance(t, Tensor):
        t = t.unsqueeze(-1)
    target = (1 - t) * log_q.detach() + t * log_p
    return _kl(target - target.logsumexp(-1, keepdim=True), log_q)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "tvd": tvd,
    "adaptive_kl": adaptive_kl,
    "alpha_beta": alpha_beta,
    "todi": todi,
    "diversity_reverse_kl": diversity_reverse_kl,
    "decoupled_kl": decoupled_kl,
    "entropy_aware": entropy_aware,
    "concrete_score": concrete_score,
    "taid": taid,
}


def needs_target(divergence: str) -> bool:
    """Whether the divergence looks at the target token, so that labels must be given."""
    return "target" in inspect.signature(DIVERGENCES[divergence]).parameters


def check_divergence(divergence: str, divergence_kwargs: dict[str, Any] | None = None) -> None:
    """
    Check a divergence's name and its parameters.

    Raises:
        `ValueError`: the name is unknown, a parameter is unknown, or its value is out of range; the message names the
            field, the value and what exists.
    """
    if divergence not in DIVERGENCES:
        load_extensions()
    if divergence not in DIVERGENCES:
        hint = did_you_mean(divergence, DIVERGENCES) or "."
        raise UsageError(
            f"`divergence` must be one of {', '.join(DIVERGENCES)}, got {divergence!r}{hint} One of your own is "
            "registered with `register_divergence`, in a file that `--import` names."
        )
    function, kwargs = DIVERGENCES[divergence], dict(divergence_kwargs or {})
    known = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in kwargs:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameters"
            raise UsageError(f"`divergence_kwargs` has {name!r}, but {divergence} {takes}.")
    sample = torch.tensor([[0.5, 0.5]]).log()
    target = {"target": torch.tensor([0])} if needs_target(divergence) else {}
    numbers = {name: value for name, value in kwargs.items() if not isinstance(value, Tensor)}
    check_parameters("divergence_kwargs", divergence, partial(function, sample, sample, **target), numbers)
