# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a cache stores of a teacher at a position: which numbers, as which bytes, and what the loss gets of them.

Shape suffixes: K positions that are stored, N of a batch, R of a chunk, H hidden size, V vocabulary, S bytes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..heads import Head
from ..losses import METRICS, TopK, head_logits
from ..temperature import soften
from .manifest import Manifest


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Heads = Callable[[], AbstractContextManager[Head]]


def _bytes(numbers_KX: Tensor) -> Tensor:
    return numbers_KX.contiguous().view(torch.uint8)


@dataclass(frozen=True)
class HiddenLayout:
    """The last hidden state, of which the head makes the whole row."""

    dtype: torch.dtype
    hidden_size: int

    column: ClassVar[str] = "teacher_hidden"
    has_head: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = METRICS

    @property
    def size(self) -> int:
        """Bytes of a position."""
        return self.hidden_size * self.dtype.itemsize

    def encode(self, hidden_KH: Tensor, heads: Heads) -> Tensor:
        """The bytes `(K, S)` of some positions. `heads` gives the teacher's head."""
        return _bytes(hidden_KH.to(self.dtype))

    def decode(self, bytes_KS: Tensor, positions_K: Tensor, n: int) -> Tensor:
        """What the loss takes in the place of `teacher_hidden`, for `n` positions. It reads nothing of the others."""
        states_KH = bytes_KS.view(self.dtype)
        return states_KH.new_zeros(n, self.hidden_size).index_copy_(0, positions_K, states_KH)


@dataclass(frozen=True)
class TopKLayout:
    """The k largest logits, and at each temperature of a grid the log-partition of the others."""

    dtype: torch.dtype
    k: int
    taus: tuple[float, ...]
    vocabulary: int

    column: ClassVar[str] = "teacher_topk"
    has_head: ClassVar[bool] = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return TopK.metrics_of(self.taus)

    @property
    def ids(self) -> torch.dtype:
        return torch.uint16 if self.vocabulary <= 2**16 else torch.int32

    @property
    def size(self) -> int:
        return 4 * len(self.taus) + self.k * (self.dtype.itemsize + self.ids.itemsize)

    def encode(self, hidden_KH: Tensor, heads: Heads) -> Tensor:
        parts = [torch.empty(0, self.size, dtype=torch.uint8, device=hidden_KH.device)]
        with heads() as head:
            for v_RV in head_logits(hidden_KH, head.weight, size=self.vocabulary, **head.rest()):
                logits, ids = v_RV.topk(self.k, dim=-1)
                others_RV = v_RV.scatter(-1, ids, -torch.inf)
                rest = torch.stack([soften(others_RV, tau).logsumexp(-1) for tau in self.taus], -1)
                columns = (rest.float(), logits.to(self.dtype), ids.to(self.ids))
                parts.append(torch.cat([_bytes(column) for column in columns], -1))
        return torch.cat(parts)

    def read(self, bytes_NS: Tensor) -> TopK:
        """Every row of them."""
        of_rest, of_logits = 4 * len(self.taus), self.k * self.dtype.itemsize
        rest, logits, ids = bytes_NS.split([of_rest, of_logits, self.size - of_rest - of_logits], -1)
        return TopK(
            self.taus,
            self.vocabulary,
            ids.contiguous().view(self.ids).long(),
            logits.contiguous().view(self.dtype),
            rest.contiguous().view(torch.float32),
        )

    def decode(self, bytes_KS: Tensor, positions_K: Tensor, n: int) -> TopK:
        return self.read(bytes_KS.new_zeros(n, self.size).index_copy_(0, positions_K, bytes_KS))

    def coverage(self, bytes_NS: Tensor) -> Tensor:
        """The mass of the k tokens at each temperature, summed over positions, of shape `(T,)`."""
        rows = self.read(bytes_NS)
        return torch.stack([rows.coverage(tau).sum() for tau in self.taus])


Layout = HiddenLayout | TopKLayout


def make_layout(
    mode: str, dtype: str, hidden_size: int, vocabulary: int, *, count: int = 0, taus: Sequence[float] = ()
) -> Layout:
    """
    The layout of a mode of `trl-tempkd cache`.

    Args:
        mode (`str`):
            `hidden` or `topk`.
        dtype (`str`):
            Of the hidden states or logits.
        hidden_size, vocabulary (`int`):
            Of the teacher.
        count (`int`, *optional*, defaults to `0`):
            How many tokens of a position are stored.
        taus (`Sequence[float]`, *optional*, defaults to `()`):
            The grid of temperatures.
    """
    if mode == "hidden":
        return HiddenLayout(DTYPES[dtype], hidden_size)
    return TopKLayout(DTYPES[dtype], min(count, vocabulary), tuple(taus), vocabulary)


def layout_of(manifest: Manifest) -> Layout:
    """The layout of a cache."""
    kwargs = manifest.truncated or {"vocabulary": 0}
    return make_layout(manifest.mode, manifest.dtype, manifest.hidden_size, **kwargs)
