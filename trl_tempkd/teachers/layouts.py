# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a cache stores of a teacher at a position: which numbers, as which bytes, and what the loss gets of them.

Shape suffixes: K positions that are stored, N of a batch, R of a chunk, H hidden size, V vocabulary, S bytes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..heads import Head
from ..losses import METRICS, Logits, Sampled, TopK, Truncated, head_logits
from ..losses.sampled import draw
from ..temperature import centred, log_softmax, soften
from .manifest import Manifest


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

Heads = Callable[[], AbstractContextManager[Head]]
Uniform = Callable[[int], Tensor]


def _bytes(numbers_KX: Tensor) -> Tensor:
    return numbers_KX.contiguous().view(torch.uint8)


@dataclass(frozen=True)
class HiddenLayout:
    """The last hidden state, of which the head makes the whole row."""

    dtype: torch.dtype
    hidden_size: int

    column: ClassVar[str] = "teacher_hidden"
    target: ClassVar[type[Logits]] = Logits  # whole rows, once the head is there
    has_head: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = METRICS
    taus: ClassVar[None] = None

    @property
    def size(self) -> int:
        """Bytes of a position."""
        return self.hidden_size * self.dtype.itemsize

    def encode(self, hidden_KH: Tensor, heads: Heads, uniform: Uniform) -> Tensor:
        """
        The bytes `(K, S)` of some positions. `heads` gives the teacher's head, `uniform(T)` random numbers `(K, T)`.
        """
        return _bytes(hidden_KH.to(self.dtype))

    def decode(self, bytes_KS: Tensor, positions_K: Tensor, n: int) -> Tensor:
        """What the loss takes in the place of `teacher_hidden`, for `n` positions. It reads nothing of the others."""
        states_KH = bytes_KS.view(self.dtype)
        return states_KH.new_zeros(n, self.hidden_size).index_copy_(0, positions_K, states_KH)


@dataclass(frozen=True)
class _TruncatedLayout(ABC):
    """Some tokens of a row, and what is needed to use them at each temperature of a grid."""

    dtype: torch.dtype
    count: int
    taus: tuple[float, ...]
    vocabulary: int

    column: ClassVar[str]
    target: ClassVar[type[Truncated]]
    has_head: ClassVar[bool] = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.target.metrics_of(self.taus)

    @property
    def wide(self) -> torch.dtype:
        """Of what is computed from a whole row, which is fp32 at least."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def ids(self) -> torch.dtype:
        return torch.uint16 if self.vocabulary <= 2**16 else torch.int32

    @property
    @abstractmethod
    def fields(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The tensors of the target, their dtypes and shapes at a position, in the order of the bytes."""

    @property
    def size(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.fields.values())

    @abstractmethod
    def tokens(self, v_RV: Tensor, uniform_RT: Tensor) -> dict[str, Tensor]:
        """The tensors of the target, from the teacher's logits."""

    def encode(self, hidden_KH: Tensor, heads: Heads, uniform: Uniform) -> Tensor:
        parts = [torch.empty(0, self.size, dtype=torch.uint8, device=hidden_KH.device)]
        uniform_KT, start = uniform(len(self.taus)).to(hidden_KH.device), 0
        with heads() as head:
            for v_RV in head_logits(hidden_KH, head.weight, size=self.vocabulary, **head.rest()):
                values = self.tokens(v_RV, uniform_KT[start : start + len(v_RV)])
                start += len(v_RV)
                columns = [_bytes(values[name].to(dtype).flatten(1)) for name, (dtype, _) in self.fields.items()]
                parts.append(torch.cat(columns, -1))
        return torch.cat(parts)

    def read(self, bytes_NS: Tensor) -> Truncated:
        """Every row of them."""
        sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in self.fields.values()]
        values = {
            name: part.contiguous().view(dtype).view(-1, *shape)
            for part, (name, (dtype, shape)) in zip(bytes_NS.split(sizes, -1), self.fields.items(), strict=True)
        }
        return self.target(self.taus, self.vocabulary, **{**values, "ids": values["ids"].long()})

    def decode(self, bytes_KS: Tensor, positions_K: Tensor, n: int) -> Truncated:
        return self.read(bytes_KS.new_zeros(n, self.size).index_copy_(0, positions_K, bytes_KS))


class TopKLayout(_TruncatedLayout):
    """The k largest logits, and at each temperature the log-partition of the others."""

    column = "teacher_topk"
    target = TopK

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        k = (self.count,)
        return {"rest": (self.wide, (len(self.taus),)), "logits": (self.dtype, k), "ids": (self.ids, k)}

    def tokens(self, v_RV: Tensor, uniform_RT: Tensor) -> dict[str, Tensor]:
        v_RV = centred(v_RV)  # in bf16, and beside an offset that the logits share, few digits would be left
        logits, ids = v_RV.topk(self.count, dim=-1)
        others_RV = v_RV.scatter(-1, ids, -torch.inf)
        rest = torch.stack([soften(others_RV, tau).logsumexp(-1) for tau in self.taus], -1)
        return {"rest": rest, "logits": logits, "ids": ids}

    def coverage(self, bytes_NS: Tensor) -> Tensor:
        """The mass of the k tokens at each temperature, summed over positions, of shape `(T,)`."""
        rows = self.read(bytes_NS)
        assert isinstance(rows, TopK)
        return torch.stack([rows.coverage(tau).sum() for tau in self.taus])


class SampledLayout(_TruncatedLayout):
    """Tokens drawn from the teacher at each temperature, with their weights, and its entropy there."""

    column = "teacher_sampled"
    target = Sampled

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        drawn = (len(self.taus), self.count)
        return {
            "entropy": (self.wide, drawn[:1]),
            "weights": (self.wide, drawn),
            "ids": (self.ids, drawn),
        }

    def tokens(self, v_RV: Tensor, uniform_RT: Tensor) -> dict[str, Tensor]:
        drawn, entropy = [], []
        for i, tau in enumerate(self.taus):
            log_p_RV = log_softmax(v_RV.double(), tau)
            p_RV = log_p_RV.exp()
            entropy.append(-(p_RV * log_p_RV).sum(-1))
            drawn.append(draw(p_RV, self.count, uniform_RT[:, i]))
        ids, weights = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
        return {"entropy": torch.stack(entropy, -1), "weights": weights, "ids": ids}


_TRUNCATED: dict[str, type[TopKLayout] | type[SampledLayout]] = {"topk": TopKLayout, "sampled": SampledLayout}
MODES = ("hidden", *_TRUNCATED)

Layout = HiddenLayout | TopKLayout | SampledLayout


def make_layout(
    mode: str, dtype: str, hidden_size: int, vocabulary: int, *, count: int = 0, taus: Sequence[float] = ()
) -> Layout:
    """
    The layout of a mode of `trl-tempkd cache`.

    Args:
        mode (`str`):
            One of `MODES`.
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
    return _TRUNCATED[mode](DTYPES[dtype], min(count, vocabulary), tuple(taus), vocabulary)


def layout_of(manifest: Manifest) -> Layout:
    """The layout of a cache."""
    kwargs = manifest.truncated or {"vocabulary": 0}
    return make_layout(manifest.mode, manifest.dtype, manifest.hidden_size, **kwargs)
