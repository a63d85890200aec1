# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Teachers of which k tokens a position are known, and the mass of all others together.

Both distributions are cut into the same k + 1 bins: k tokens, and one bin for the rest. An f-divergence of the bins is
never more than that of the distributions, and its gradient in the student's logits follows by the chain rule, since
the bins are a softmax of `coarse_logits`. Renormalising the k tokens instead would be another distribution.

Shape suffixes: N positions, V vocabulary, K tokens that are known, B = K + 1 bins, T temperatures of the grid.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import UsageError
from ..temperature import MAX_LOGIT, centred, log_softmax, soften


# sum q f(p / q) for a convex f: what bins can't exceed
F_DIVERGENCES = ("forward_kl", "reverse_kl", "symmetric_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd")
# What means something on bins, but something else
ON_BINS = {
    "adaptive_kl": "the rest is one bin among those that are sorted into head and tail",
    "todi": "the rest has one weight for all of its tokens",
}


def coarse_logits(z_RV: Tensor, ids_RK: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """
    The student's bins, as logits whose softmax they are, `(R, K + 1)`, and each token's share of the last bin.

    The share `(R, V)` is q renormalised over the others, and 0 at the K tokens: d log q_rest / d log q. The last of
    the K tokens is no bin of its own where it is one of those before it.
    """
    scaled_RV = soften(centred(z_RV), temperature)
    others_RV = scaled_RV.scatter(-1, ids_RK, -math.inf)
    largest = others_RV.amax(-1, keepdim=True).clamp(min=-MAX_LOGIT)
    share_RV = (others_RV - largest).exp()
    total = share_RV.sum(-1, keepdim=True)  # 0 where K is V
    share_RV = share_RV / total.clamp(min=torch.finfo(total.dtype).tiny)
    bins_RK = scaled_RV.gather(-1, ids_RK)
    repeated_R1 = (ids_RK[:, :-1] == ids_RK[:, -1:]).any(-1, keepdim=True)
    last_R1 = bins_RK[:, -1:].masked_fill(repeated_R1, -math.inf)
    return torch.cat([bins_RK[:, :-1], last_R1, largest + total.log()], -1), share_RV


def grid_index(taus: Sequence[float], tau: float) -> int | None:
    """Where in the grid a temperature is, if it is there."""
    return next((i for i, other in enumerate(taus) if math.isclose(tau, other, rel_tol=1e-6)), None)


@dataclass(frozen=True)
class Truncated(ABC):
    """
    What is known of a teacher's distribution at the temperatures of a grid.

    Attributes:
        taus (`tuple[float, ...]`):
            The grid.
        size (`int`):
            Size of the vocabulary.
        ids (`torch.Tensor`):
            The tokens that are known. It begins with N, as every tensor does.
    """

    why: ClassVar[str]

    taus: tuple[float, ...]
    size: int
    ids: Tensor

    @staticmethod
    @abstractmethod
    def check(divergence: str, kwargs: dict[str, Any] | None) -> None:
        """
        Raises:
            `ValueError`: If the divergence needs more of the teacher than is known.
        """

    @staticmethod
    @abstractmethod
    def metrics_of(taus: tuple[float, ...]) -> tuple[str, ...]:
        """The metrics that there are the numbers for."""

    @abstractmethod
    def at(self, tau: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """
        The tokens, the log-probabilities of their bins and of the rest, what is to be added to a divergence, and, if
        `kl_tau1_coarse` is a metric, the log-probabilities at temperature 1.
        """

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.metrics_of(self.taus)

    def select(self, rows: Tensor | None) -> Self:
        """Some rows."""
        if rows is None:
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{n: v.index_select(0, rows) if isinstance(v, Tensor) else v for n, v in values.items()})

    def index(self, tau: float | Tensor) -> int:
        """
        Raises:
            `ValueError`: If the grid doesn't have that temperature.
        """
        index = None if isinstance(tau, Tensor) else grid_index(self.taus, tau)
        if index is None:
            said = "a tensor" if isinstance(tau, Tensor) else tau
            raise UsageError(f"`teacher_temperature` must be one of {list(self.taus)}, got {said}: {self.why}.")
        return index


@dataclass(frozen=True)
class TopK(Truncated):
    """
    A teacher's k largest logits, and at each temperature of a grid the log-partition of all others.

    With that of the others the partition of the whole row is known, `logsumexp([*logits / tau, rest])`, and is so to
    the last digit where the others weigh next to nothing.

    Attributes:
        ids (`torch.Tensor` of shape `(N, K)`):
            The tokens, each once, but that the last may be one of those before it: then it is none.
        logits (`torch.Tensor` of shape `(N, K)`):
            Their logits; -inf of a last token that is none.
        rest (`torch.Tensor` of shape `(N, T)`):
            `logsumexp(logits / tau)` over the other tokens; -inf where there is none.
    """

    logits: Tensor
    rest: Tensor

    why = (
        "the log-partition is known for these alone, and at another temperature the mass of the tokens beyond the k "
        "largest can't be computed from the k, though it may be most of it"
    )

    @classmethod
    def from_log_probs(cls, ids: Tensor, log_probs: Tensor, size: int) -> "TopK":
        """
        Of plain log-probabilities, as a server gives them. They are those of temperature 1, the only one to be had.

        Args:
            ids, log_probs (`torch.Tensor` of shape `(N, K)`):
                Tokens and their log-probabilities.
            size (`int`):
                Size of the vocabulary.
        """
        log_probs = log_probs.double()
        return cls((1.0,), size, ids, log_probs, (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=0).log())

    @staticmethod
    def metrics_of(taus: tuple[float, ...]) -> tuple[str, ...]:
        coarse = ("kl_tau1_coarse",) if grid_index(taus, 1.0) is not None else ()
        return ("kd", *coarse, "student_mass_outside", "student_entropy", "agreement", "ce")

    @staticmethod
    def check(divergence: str, kwargs: dict[str, Any] | None) -> None:
        alpha, beta = ((kwargs or {}).get(name, default) for name, default in (("alpha", 0.2), ("beta", 0.7)))
        exact = divergence in F_DIVERGENCES or (divergence == "alpha_beta" and math.isclose(alpha + beta, 1))
        if not exact and divergence not in ON_BINS:
            raise UsageError(
                f"`divergence` {divergence} needs the teacher's whole rows, and a top-k teacher has k tokens and the "
                f"mass of the rest. Use one of {', '.join(F_DIVERGENCES)}, alpha_beta with alpha + beta = 1, or a "
                "cache of --mode hidden, which serves every divergence."
            )

    def log_bins(self, tau: float, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of the bins at a temperature of the grid, of shape `(N, B)`."""
        # In fp64: the logits may share an offset, which can't be taken out of `rest` in fewer digits
        i, logits = self.index(tau), soften(self.logits.double(), tau)
        return log_softmax(torch.cat([logits, self.rest[:, i : i + 1].double()], -1)).to(dtype)

    def at(self, tau: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
        log_p = self.log_bins(tau, dtype)
        at_1 = () if grid_index(self.taus, 1.0) is None else (self.log_bins(1.0, dtype),)
        return self.ids, log_p, log_p.new_zeros(len(log_p)), *at_1

    def coverage(self, tau: float) -> Tensor:
        """The mass of the k tokens at a temperature of the grid, of shape `(N,)`."""
        return self.log_bins(tau, torch.float64)[:, :-1].exp().sum(-1)
