# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A divergence and a temperature rule of your own: `--import examples/my_divergence.py`."""

from trl_tempkd import register_divergence, register_temperature_rule


@register_divergence("hellinger")
def hellinger(log_p, log_q, *, weight: float = 1.0):
    """
    weight sum (sqrt p - sqrt q)^2.

    Source: Hellinger, Neue Begründung der Theorie quadratischer Formen, 1909.
    """
    return weight * ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1)


@register_temperature_rule("by_margin")
def by_margin(z, v, tau_s, tau_t, *, scale: float = 0.5):
    """tau (1 + scale m), m the margin between the teacher's two largest logits."""
    top = v.topk(2).values
    factor = 1 + scale * (top[..., 0] - top[..., 1])
    return tau_s * factor, tau_t * factor
