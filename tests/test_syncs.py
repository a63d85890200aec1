# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The loss waits for a GPU no more often than it must: what would make the host read a tensor is counted, without one.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trl_tempkd import chunked_kd_loss


class Reads(TorchDispatchMode):
    """Counts the operations that wait for the device: those whose result, or its shape, the host needs."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_consecutive")

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in self.WAIT or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def reads(chunks: int, divergence: str, **options) -> Counter:
    torch.manual_seed(0)
    hidden_s, hidden_t = torch.randn(32, 16, requires_grad=True), torch.randn(32, 24)
    weight_s, weight_t = torch.randn(50, 16, requires_grad=True), torch.randn(50, 24)
    labels = torch.arange(32).masked_fill(torch.arange(32) % 3 == 0, -100)
    with Reads() as mode:
        output = chunked_kd_loss(
            *(hidden_s, weight_s, hidden_t, weight_t),
            divergence=divergence,
            labels=labels,
            kd_ratio=0.5,
            chunk_size=32 // chunks,
            metrics=True,
            student_temperature=2.0,
            teacher_temperature=2.0,
            compile=False,
            **options,
        )
        output.loss.backward()
    return mode.found


@pytest.mark.parametrize("rule", [None, "zscore", "target_entropy"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "adaptive_kl", "decoupled_kl", "tvd"])
def test_reads_do_not_grow_with_the_chunks(divergence, rule):
    """The labels are checked, and rows that don't count dropped. The scalar is read on a CPU alone."""
    once = reads(1, divergence, temperature_rule=rule)
    assert once == {"nonzero": 1, "index": 1, "_local_scalar_dense": 1}
    assert reads(8, divergence, temperature_rule=rule) == once
