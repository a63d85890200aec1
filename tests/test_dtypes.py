# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which dtype each part of the loss has: matmuls the head's or autocast's, all statistics fp32, by the chunk."""

from contextlib import nullcontext

import pytest
import torch
from loss_sources import N, V, make_problem
from torch.utils._python_dispatch import TorchDispatchMode


ROWS = 6  # of a chunk
HALF = (torch.bfloat16, torch.float16)
VIEWS = {"slice", "t", "transpose", "permute", "view", "_unsafe_view", "detach", "alias", "split", "select", "expand"}
VIEWS |= {"as_strided", "unsqueeze", "squeeze"}
# What may take or make half precision
PLAIN = VIEWS | {"mm", "addmm", "_to_copy", "copy_", "clone", "index_select", "empty", "new_empty", "empty_like"}


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.low, self.whole, self.products = [], [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        tensors = [t for t in (*args, out) if isinstance(t, torch.Tensor) and t.dim() == 2 and t.shape[-1] == V]
        if name in ("mm", "addmm"):
            self.products.add(out.dtype)
        elif name not in PLAIN and any(t.dtype in HALF for t in tensors) and (kwargs or {}).get("dtype") is None:
            self.low.append(name)
        made = [t for t in tensors if t is out and len(t) in (N, N * 2 // 3) and t.is_floating_point()]
        self.whole += [name for t in made if t.dtype not in HALF and name not in VIEWS]
        return out


@pytest.mark.parametrize("divergence", ["jsd", "adaptive_kl"])
@pytest.mark.parametrize("source", ["whole", "logits", "mixture", "top_k", "bins"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_statistics_are_fp32_and_by_the_chunk(source, divergence, dtype, autocast):
    problem = make_problem(source, dtype=dtype)
    context = nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast)
    with context, Watch() as watch:
        out = problem.loss(
            divergence=divergence, chunk_size=ROWS, metrics=True, compile=False, kd_ratio=0.5, rescale="tau2"
        )
        out.loss.backward()
    assert watch.low == []
    # logits that are given are there in full, and those of the tokens that count are selected from them
    given = {"index_select"} if source in ("logits", "mixture") else set()
    assert {*watch.whole} <= given
    own = torch.float32 if dtype == torch.float16 else dtype  # a gradient of fp16 underflows
    assert watch.products == {own if autocast is None else autocast}
    assert out.loss.dtype == out.per_token.dtype == torch.float32
    assert {t.dtype for t in out.metrics.values()} == {torch.float32}
    assert problem.hidden.grad.dtype == problem.weight.grad.dtype == dtype
