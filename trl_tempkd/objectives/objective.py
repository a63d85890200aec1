# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a run minimises, as the loss of a step asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from .tokens import Tokens


Reduce = Callable[[Tensor], Tensor]  # the sum over all processes


class Objective(ABC):
    """
    Chooses what the loss does with each token, from what it knows of the batch and from a state of its own.

    One that needs more than the two distributions is a name of `OBJECTIVES`, and the keyword arguments of its
    constructor are the `divergence_kwargs` of a configuration. The state is a few numbers, the same on every process,
    and goes into checkpoints.

    Attributes:
        divergence (`str`): the name in `DIVERGENCES` of its kernel, off-policy.
        measures (`tuple[str, ...]`): metrics of the loss that it needs of each token before the loss is computed,
            which costs another product with both heads.
        needs_student_text (`bool`): whether it is nothing without completions of the student.
    """

    divergence: str
    measures: ClassVar[tuple[str, ...]] = ()
    needs_student_text: ClassVar[bool] = False
    state: dict[str, Any]

    def needed(self, on_policy: bool) -> tuple[str, ...]:
        """Those of `measures` that text of this kind needs."""
        return self.measures

    @abstractmethod
    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        """
        Keyword arguments of `chunked_kd_loss`: `divergence`, `divergence_kwargs`, `kd_weight`, `ce_weight`. `kd_ratio`
        multiplies both weights.
        """

    def observe(self, tokens: Tokens, divergence: Tensor) -> None:  # noqa: B027
        """Take note of the divergence of each token of a batch in training, of shape `(N,)`, rescaled."""

    def step(self, reduce: Reduce, progress: float) -> None:  # noqa: B027
        """Change the state at the end of an optimizer step. Every process must call."""

    def reset(self) -> None:  # noqa: B027
        """Forget what was noted since the last step."""

    def logs(self) -> dict[str, float]:
        """What is to be seen of the state."""
        return {}
