# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The matmuls: logits a chunk of rows at a time, and the gradient, which is formed in the forward pass.

Shape suffixes: N tokens with a label, C rows of a chunk, V vocabulary, H hidden size (each model's own).
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from . import block as blocks
from .block import BlockSpec, MeasureSpec


# Logits of a chunk. More rows let the matmuls read and write the head less often, fewer save memory: at 2^24 the
# matmuls run within a few per cent of unchunked ones, and a chunk of fp32 logits takes 64 MiB.
CHUNK_ELEMENTS = 2**24
MIN_CHUNK_ROWS = 128
# Of a product that is narrower than the sum it is added to, on CPU: what the matmul has just written is in the cache
SLICE_ELEMENTS = 2**21

FP16_MAX = torch.finfo(torch.float16).max


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp16 gives way to fp32: p / N underflows in it, before a loss scale could help."""
    return torch.float32 if dtype == torch.float16 else dtype


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What a gradient is summed in over chunks: each addition to a sum in bf16 would round all that is in it."""
    return torch.promote_types(dtype, torch.float32)


def _matmul_operands(hidden: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Hidden states and the head's compared rows in the dtype of the matmuls: autocast's, or the head's own."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(_wide(dtype)), weight[:size].to(_wide(dtype))


class Product:
    """
    One model's logits before scale and soft-capping, a chunk of rows at a time, in a buffer that is used again.

    Args:
        hidden_NH, weight_VH, bias_V (`torch.Tensor`): hidden states, and the head that they are the input of.
        size (`int`): how many logits of a row are compared.
    """

    def __init__(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, size: int):
        self.hidden_NH, self.weight_VH = _matmul_operands(hidden_NH.detach(), weight_VH.detach(), size)
        self.bias_V = None if bias_V is None else bias_V.detach()[:size].to(self.hidden_NH.dtype)
        self._buffer_CV = self.hidden_NH.new_empty(0, size)
        self._held: slice | None = None

    def buffer(self, rows: int) -> Tensor:
        """Where the chunks are, `(rows, V)`."""
        if len(self._buffer_CV) != rows:
            self._buffer_CV, self._held = self._buffer_CV.new_empty(rows, self._buffer_CV.shape[-1]), None
        return self._buffer_CV

    def multiply(self, chunk: slice) -> None:
        """Write the logits of some rows into the buffer, unless they are there since the last time."""
        if chunk == self._held:
            return
        out_CV = self._buffer_CV[: chunk.stop - chunk.start]
        if self.bias_V is None:
            torch.mm(self.hidden_NH[chunk], self.weight_VH.T, out=out_CV)
        else:
            torch.addmm(self.bias_V, self.hidden_NH[chunk], self.weight_VH.T, out=out_CV)
        self._held = chunk

    def spend(self) -> None:
        """Take note that something else has been written into the buffer."""
        self._held = None


@dataclass(frozen=True)
class Chunks:
    """
    How the rows are cut.

    Attributes:
        count (`int`): all rows.
        compared (`int`): how many of them have a teacher, the first ones: no chunk has others too.
        rows (`int`): those of a chunk, and of a buffer.
        step (`int`): those of a block.
        compile (`bool`): whether blocks are compiled. A compiled one wants the same shape in every call.
    """

    count: int
    compared: int
    rows: int
    step: int
    compile: bool

    @classmethod
    def of(
        cls,
        count: int,
        size: int,
        device: torch.device,
        chunk_size: int | None,
        compile: bool | None,
        compared: int | None = None,
    ) -> "Chunks":
        if compile is None:
            compile = blocks.pays_to_compile(count * size, device)
        most = chunk_size or max(MIN_CHUNK_ROWS, math.ceil(CHUNK_ELEMENTS / size))
        step = min(most, max(1, blocks.BLOCK_ELEMENTS // size)) if device.type == "cpu" else most
        rows = math.ceil((most if compile else min(most, max(count, 1))) / step) * step
        return cls(count, count if compared is None else compared, rows, step, compile)

    def __iter__(self) -> Iterator[slice]:
        for first, end in ((0, self.compared), (self.compared, self.count)):
            for start in range(first, end, self.rows):
                yield slice(start, min(start + self.rows, end))

    def block(self, spec: BlockSpec | MeasureSpec) -> Callable[..., dict[str, Tensor]]:
        return blocks.compiled_block(spec) if self.compile else functools.partial(blocks.compute, spec)


@dataclass(frozen=True)
class Pair:
    """
    Student and teacher at the tokens that count.

    Attributes:
        student ([`Product`], *optional*): its logits, where they are looked at.
        teacher (`Any`, *optional*): the teacher's, where it has a head: a [`Product`], or something like it.
        known (`tuple[torch.Tensor, ...]`): what there is of the teacher otherwise, `(N, ...)` each.
        chunks ([`Chunks`]): how they are cut.
        tables (`tuple[torch.Tensor, ...]`): what is known of two vocabularies that differ.
    """

    student: Any
    teacher: Any
    known: tuple[Tensor, ...]
    chunks: Chunks
    tables: tuple[Tensor, ...] = ()


def head_logits(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    *,
    size: int,
) -> Iterator[Tensor]:
    """The first `size` logits of every row, a chunk of rows at a time, as the loss computes them."""
    x_NH, w_VH = _matmul_operands(hidden_NH, weight_VH, size)
    for x_CH in x_NH.split(max(1, CHUNK_ELEMENTS // size)):
        raw_CV = torch.nn.functional.linear(x_CH, w_VH, None if bias is None else bias[:size].to(x_CH.dtype))
        yield blocks.logits_of(raw_CV, logit_scale, final_logit_softcapping)


@torch.no_grad()
def measure(pair: Pair, spec: MeasureSpec, target_N: Tensor) -> dict[str, Tensor]:
    """The metrics of a spec, `(N,)` each, without a loss. The products that none of them looks at aren't computed."""
    chunks, results = pair.chunks, []
    products = [pair.student] if spec.student else []
    known = pair.known if spec.teacher else ()
    if spec.teacher and pair.teacher is not None:
        products.append(pair.teacher)
    buffers, block = [product.buffer(chunks.rows) for product in products], chunks.block(spec)
    for chunk in [*chunks][::-1]:  # the loss begins with the first one, which then is still there
        for product in products:
            product.multiply(chunk)
        per_row = [t[chunk] for t in (target_N, *known)]
        results.append(blocks.run_blocks(block, chunks.step, chunks.compile, buffers, per_row))
    return _joined(results[::-1], spec.metrics, torch.empty(0, device=target_N.device))


class ChunkedKD(torch.autograd.Function):
    """Loss and its gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NH: Tensor,
        student_VH: Tensor,
        student_bias_V: Tensor | None,
        pair: Pair,
        spec: BlockSpec,
        normalizer: float | Tensor,
        target_N: Tensor,
        tau_s_N: Tensor,
        tau_t_N: Tensor,
        *row_inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        student, teacher, chunks = pair.student, pair.teacher, pair.chunks
        # A parameter asks for a gradient under `no_grad` too, where nobody takes it
        wanted = [asked and spec.with_grad for asked in ctx.needs_input_grad[:3]]
        x_NH, w_VH = student.hidden_NH, student.weight_VH
        size = len(w_VH)
        grad_x = torch.empty_like(x_NH) if wanted[0] else None
        grad_w = torch.empty_like(student_VH, dtype=_sums(student_VH.dtype)) if wanted[1] else None
        grad_b = None
        if student_bias_V is not None and wanted[2]:
            grad_b = torch.zeros_like(student_bias_V, dtype=_sums(student_bias_V.dtype))

        alone = replace(spec, alone=True)
        buffers = [product.buffer(chunks.rows) for product in (student, teacher) if product is not None]
        weight_N = torch.ones_like(tau_s_N) / normalizer
        results, written = [], False
        for chunk in chunks:
            has_teacher = chunk.start < chunks.compared
            student.multiply(chunk)
            if teacher is not None and has_teacher:
                teacher.multiply(chunk)
            per_row = [t[chunk] for t in (target_N, tau_s_N, tau_t_N, weight_N, *row_inputs, *pair.known)]
            block, products = chunks.block(spec if has_teacher else alone), buffers if has_teacher else buffers[:1]
            results.append(blocks.run_blocks(block, chunks.step, chunks.compile, products, per_row, pair.tables))
            if not spec.with_grad:
                continue
            if not (has_teacher or spec.takes_ce):  # it counts for nothing but the metrics
                if grad_x is not None:
                    grad_x[chunk].zero_()
                continue
            student.spend()
            grad_CV = buffers[0][: chunk.stop - chunk.start]
            if grad_x is not None:
                torch.mm(grad_CV, w_VH, out=grad_x[chunk])
            if grad_w is not None:
                _accumulate(grad_w[:size], grad_CV, x_NH[chunk], first=not written)
            if grad_b is not None:
                grad_b[:size] += grad_CV.sum(0, dtype=grad_b.dtype)
            written = True
        if grad_w is not None:  # what no matmul has written
            grad_w[size if written else 0 :].zero_()

        ctx.dtypes = [None if t is None else t.dtype for t in (student_NH, student_VH, student_bias_V)]
        grads = [_bounded(g, dtype) for g, dtype in zip((grad_x, grad_w, grad_b), ctx.dtypes, strict=True)]
        ctx.save_for_backward(*grads)
        found = _joined(results, ("loss", "scaled", *spec.metrics), tau_s_N[:0])
        loss, others = found.pop("loss").sum(), tuple(found.values())
        ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what `create_graph=True` does; the term would be missing without a word
            raise UsageError(
                "`chunked_kd_loss` has no second derivative, which `create_graph=True` asks for: its gradient is made "
                "in the forward pass. Use `kd_loss` on logits, which is differentiable any number of times."
            )
        # a product over the whole head is worth avoiding, but not at the price of waiting for a GPU
        scale = None if grad_loss.device.type == "cpu" and grad_loss.item() == 1 else grad_loss
        grads = [_scaled(g, scale, dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *grads, *(None,) * (len(ctx.needs_input_grad) - 3)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise UsageError(
            "`chunked_kd_loss` has no derivative in forward mode: its gradient is made in the forward pass. Use "
            "`kd_loss` on logits."
        )


def _joined(results: list[list[dict[str, Tensor]]], names: tuple[str, ...], none: Tensor) -> dict[str, Tensor]:
    """The blocks' results one after the other, `none` where there are no rows."""
    return {name: torch.cat([none, *(found[name] for chunk in results for found in chunk)]) for name in names}


def _accumulate(grad_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor, first: bool) -> None:
    """`grad_VH (+)= grad_CV.T @ hidden_CH`; the sum may be wider than the product."""
    if grad_VH.dtype == grad_CV.dtype:
        torch.mm(grad_CV.T, hidden_CH, out=grad_VH) if first else grad_VH.addmm_(grad_CV.T, hidden_CH)
        return
    rows = len(grad_VH) if grad_VH.device.type != "cpu" else max(1, SLICE_ELEMENTS // hidden_CH.shape[1])
    product = hidden_CH.new_empty(min(rows, len(grad_VH)), hidden_CH.shape[1])
    for sums_SH, grad_CS in zip(grad_VH.split(rows), grad_CV.split(rows, dim=1), strict=True):
        torch.mm(grad_CS.T, hidden_CH, out=product[: len(sums_SH)])
        sums_SH.copy_(product[: len(sums_SH)]) if first else sums_SH.add_(product[: len(sums_SH)])


def _bounded(grad: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """
    `grad`, changed to what fp16 can hold where it goes there: alpha_beta's gradient has no bound that is worth having.

    It is that of the loss itself. A loss scale comes later, and what it brings to overflow is infinite, as it must be.
    """
    if grad is not None and dtype == torch.float16:
        grad.clamp_(-FP16_MAX, FP16_MAX)
    return grad


def _scaled(grad: Tensor | None, scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if grad is None or scale is None:
        return None if grad is None else grad.to(dtype)
    return torch.mul(grad, scale.to(grad.dtype), out=torch.empty_like(grad, dtype=dtype))
