# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The one place where tau enters: logits to log-probabilities at a temperature, the rescaling of the loss, schedules.

p = softmax(teacher_logits / teacher_temperature), q = softmax(student_logits / student_temperature). Equal
temperatures are Hinton's form; a student temperature of 1 with a higher teacher temperature is the teacher-only mode,
in which the target itself is softened and the optimum changes. The temperature of *sampling* is another thing
altogether and is never tied to these.
"""

import math

import torch
from torch import Tensor

from .errors import UsageError


# Log-probabilities are floored here, so that a probability of zero is a number in every formula: exp(floor) is 0,
# 0 * floor is 0, and two zeros have a log-ratio of 0. No finite pair of logits in use lies this far apart.
LOG_FLOOR = -1e4
MAX_LOGIT = 1e30

SCHEDULES = {
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    "step": lambda progress: float(progress >= 0.5),
}

# The factor of the loss, as the power of the geometric mean of the two temperatures
RESCALES = {"none": 0, "tau": 1, "tau2": 2}


def centred(logits: Tensor) -> Tensor:
    """
    `logits` less the largest of each row: the same softmax at every temperature, in fp32 at least.

    Logits of a row often share an offset (GPT-2's lie near -130), and what is computed beside it is rounded to its
    digits. So it goes first of all, when that costs no more than the rounding of the difference itself.

    Args:
        logits (`torch.Tensor`): shape `(..., V)`. -inf stays -inf, in rows that are -inf altogether too.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits - logits.detach().amax(-1, keepdim=True).clamp(min=-MAX_LOGIT)


def soften(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """`logits / temperature`, of [`centred`] logits. Arguments as in [`log_softmax`]."""
    inverse = 1 / temperature
    if isinstance(inverse, Tensor):
        inverse = inverse.to(logits.dtype).unsqueeze(-1)
    return logits * inverse


def _partition(softened: Tensor) -> Tensor:
    """The logarithm of the partition, `(..., 1)`; of a row that is -inf altogether a number, and so its gradient."""
    return softened.exp().sum(-1, keepdim=True).clamp(min=torch.finfo(softened.dtype).tiny).log()


def _floored(log_p: Tensor) -> Tensor:
    """What lies at the floor is a constant, to either loss: `clamp` would pass a gradient where it is met exactly."""
    return torch.nn.functional.threshold(log_p, LOG_FLOOR, LOG_FLOOR)


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """
    Log-probabilities of `logits / temperature`, floored at `LOG_FLOOR`.

    Args:
        logits (`torch.Tensor`): shape `(..., V)`; computed in fp32 at least. -inf is a probability of zero.
        temperature (`float` or `torch.Tensor`): positive; a tensor has shape `(...,)`, one value per token.

    Returns:
        `torch.Tensor` of shape `(..., V)`, in nats.
    """
    softened = soften(centred(logits), temperature)
    return _floored(softened - _partition(softened))


def log_probability(logits: Tensor, target: Tensor) -> Tensor:
    """[`log_softmax`] at temperature 1 of one token a row, `(...,)`, without those of the others."""
    relative = centred(logits)
    own = relative.gather(-1, target.unsqueeze(-1)) - _partition(relative)
    return _floored(own.squeeze(-1))


def rescale_factor(
    rescale: str, student_temperature: float | Tensor, teacher_temperature: float | Tensor
) -> float | Tensor:
    """
    The factor of the loss: `none` 1, `tau` sqrt(tau_s tau_t), `tau2` tau_s tau_t (so tau and tau^2 where both agree).

    Gradients of a divergence at tau shrink like 1/tau^2, which `tau2` undoes (Hinton et al., arXiv 1503.02531). It
    matters where a cross-entropy term is mixed in; otherwise Adam hides it, but for clipping and epsilon.

    Raises:
        `ValueError`: `rescale` is unknown.
    """
    if rescale not in RESCALES:
        raise UsageError(f"`rescale` must be one of {', '.join(RESCALES)}, got {rescale!r}.")
    return (student_temperature * teacher_temperature) ** (RESCALES[rescale] / 2)


def temperatures(tau: float, student: float | None = None, teacher: float | None = None) -> tuple[float, float]:
    """`(student_temperature, teacher_temperature)` from one tau and the overrides of either side."""
    return (tau if student is None else student, tau if teacher is None else teacher)


def scheduled_temperature(schedule: str, start: float, final: float | None, progress: float) -> float:
    """
    Tau at a share of the training.

    A pure function of `progress`, so that a resumed run goes on at the tau where it was interrupted.

    Args:
        schedule (`str`): `constant`, `linear`, `cosine`, or `step` (`final` from half of the training on).
        start (`float`): tau at progress 0.
        final (`float` or `None`): tau at progress 1; `None` stays at `start`.
        progress (`float`): share of the training that is done, 0 to 1.

    Raises:
        `ValueError`: `schedule` is unknown.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    share = SCHEDULES[schedule](min(max(progress, 0.0), 1.0))
    return start if final is None else start + share * (final - start)
