# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Several teachers whose probabilities are averaged, each softened by its own temperature first:

    p = sum_k w_k softmax(v_k / tau_k).

`log p` stands in the place of one teacher's logits, at temperature 1, so every divergence runs on it unchanged. It is
made a chunk of rows at a time, teacher after teacher.

Shape suffixes: N tokens with a label, C rows of a chunk, V vocabulary, H hidden size (each model's own).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..temperature import log_softmax
from .block import logits_of
from .fused import _matmul_operands


@dataclass(frozen=True)
class Part:
    """
    One teacher of a mixture.

    Attributes:
        values (`torch.Tensor` of shape `(N, H)`, or `(N, V)` without a head):
            Its last hidden states, or its logits.
        weight, bias (`torch.Tensor`, *optional*):
            Its head, of shapes `(V, H)` and `(V,)`.
        scale, cap (`float`):
            What its architecture does to its logits.
        tau (`float`):
            Its temperature.
        share (`float`):
            Its weight. Those of a mixture sum up to 1.
    """

    values: Tensor
    weight: Tensor | None
    bias: Tensor | None
    scale: float
    cap: float | None
    tau: float
    share: float

    @property
    def width(self) -> int:
        """How many logits it has."""
        return self.values.shape[-1] if self.weight is None else len(self.weight)

    def log_p(self, chunk: slice, size: int) -> Tensor:
        """Its log-probabilities of some rows, `(C, V)`, in fp32 at least."""
        if self.weight is None:
            raw_CV = self.values[chunk, :size]
        else:
            x_CH, w_VH = _matmul_operands(self.values[chunk], self.weight.detach(), size)
            bias = None if self.bias is None else self.bias.detach()[:size].to(x_CH.dtype)
            raw_CV = torch.nn.functional.linear(x_CH, w_VH, bias)
        return log_softmax(logits_of(raw_CV, self.scale, self.cap), self.tau)


@dataclass(frozen=True)
class Mixture:
    """Several teachers in the place of one teacher's hidden states. Its temperatures are in its parts."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.parts[0].values)

    @property
    def width(self) -> int:
        return min(part.width for part in self.parts)

    def select(self, rows: Tensor | None) -> "Mixture":
        """Some rows."""
        if rows is None:
            return self
        return Mixture(tuple(replace(part, values=part.values.index_select(0, rows)) for part in self.parts))

    def at(self, taus: list[float]) -> "Mixture":
        """The same teachers at other temperatures."""
        return Mixture(tuple(replace(part, tau=tau) for part, tau in zip(self.parts, taus, strict=True)))


class MixtureProduct:
    """As [`~trl_tempkd.losses.fused.Product`], of a mixture: what it writes are log-probabilities."""

    def __init__(self, mixture: Mixture, size: int, dtype: torch.dtype):
        self._mixture, self._size = mixture, size
        self._buffer_CV = mixture.parts[0].values.new_empty(0, size, dtype=dtype)
        self._held: slice | None = None

    def buffer(self, rows: int) -> Tensor:
        """Where the chunks are, `(rows, V)`."""
        if len(self._buffer_CV) != rows:
            self._buffer_CV, self._held = self._buffer_CV.new_empty(rows, self._size), None
        return self._buffer_CV

    @torch.no_grad()
    def multiply(self, chunk: slice) -> None:
        """Write the log-probabilities of some rows into the buffer, unless they are there since the last time."""
        if chunk == self._held:
            return
        out_CV = self._buffer_CV[: chunk.stop - chunk.start]
        for i, part in enumerate(self._mixture.parts):
            log_p_CV = part.log_p(chunk, self._size) + math.log(part.share)
            out_CV.copy_(log_p_CV if i == 0 else torch.logaddexp(out_CV, log_p_CV.to(out_CV.dtype)))
        self._held = chunk
