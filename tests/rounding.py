# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Another processor's rounding on this one: `pytest --rounding 1e-6`, by hand, to find bounds on fp32 that are too tight.

Every fp32 result of these operations is off by up to that share of itself. By how much depends on the number and on
where it stands, so the same computation gives the same result again, and one in other batches another.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


OPERATIONS = set(
    "mm addmm bmm baddbmm mv addmv dot sum mean std var cumsum _softmax _log_softmax _softmax_backward_data "
    "_log_softmax_backward_data logsumexp exp log sigmoid tanh silu gelu softplus rsqrt sqrt pow cos sin div mul "
    "silu_backward gelu_backward tanh_backward native_layer_norm native_layer_norm_backward linalg_vector_norm "
    "_foreach_norm embedding_dense_backward _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention_for_cpu_backward".split()
)


class Rounding(TorchDispatchMode):
    """Context in which fp32 results on the CPU are off by up to `share` of themselves."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::").rstrip("_") in OPERATIONS:
            for each in out if isinstance(out, tuple | list) else (out,):
                if isinstance(each, torch.Tensor) and each.dtype == torch.float32 and each.device.type == "cpu":
                    each.copy_(self.moved(each))
        return out

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """The numbers, but for those that are exact."""
        place = torch.arange(tensor.numel()).view(tensor.shape)
        mixed = tensor.contiguous().view(torch.int32).long() * 2654435761 + place * 40503 + 12345
        mixed = (mixed ^ (mixed >> 15)) * 2246822519 & 0xFFFFFFFF
        moved = tensor.double() * (1 + self.share * (mixed.double() / 2**31 - 1))
        return torch.where((tensor == tensor.round()) | ~tensor.isfinite(), tensor.double(), moved)
