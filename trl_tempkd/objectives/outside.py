# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where a student of a truncated teacher puts its probability: on tokens that are known, or on others."""

from accelerate.logging import get_logger
from torch import Tensor


logger = get_logger(__name__)

METRIC = "student_mass_outside"
# It is told once the mass is so many times what it was at first, and no small part of all
TIMES, LEAST = 2.0, 0.1


class MassOutside:
    """
    Says once that a student moves away from the tokens that are known of its teacher. Each process sees its own.

    Args:
        metric (`str`, *optional*, defaults to `METRIC`): what it is logged as.
    """

    def __init__(self, metric: str = METRIC) -> None:
        self._metric = metric
        self._first: float | None = None
        self._said = False

    def see(self, values: Tensor, kept: Tensor) -> None:
        """
        Args:
            values, kept (`torch.Tensor` of shape `(N,)`): the mass at each token of a batch, and which of them count.
        """
        if self._said or not kept.any():
            return
        mean = values[kept].mean().item()
        if self._first is None:
            self._first = mean
        elif mean > max(TIMES * self._first, LEAST):
            self._said = True
            logger.warning(
                f"The student's mass outside of the tokens that are known of the teacher (`{self._metric}`) has grown "
                f"from {self._first:.3f} to {mean:.3f}: of these tokens it learns their sum alone. If it goes on, use "
                "more tokens, a lower temperature, `forward_kl`, or a teacher whose whole rows are known."
            )
