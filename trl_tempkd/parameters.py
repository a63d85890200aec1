# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which model some parameters are of, told from a few of their numbers."""

from collections.abc import Iterable
from typing import Any

import torch
import xxhash
from torch.distributed.tensor import DTensor


def parameter_hash(parameters: Iterable[torch.Tensor]) -> str | None:
    """
    Hash of the first elements of every parameter, rounded to bf16: the same for one model in every dtype, and for its
    shards on the main process. `None` if they aren't in memory.
    """
    digest = xxhash.xxh3_64()
    for parameter in parameters:
        count = getattr(parameter, "ds_numel", parameter.numel())
        held: Any = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
        held = held.to_local() if isinstance(held, DTensor) else held
        if held.is_meta or not held.numel() or getattr(getattr(held, "status", None), "name", "") == "NOT_AVAILABLE":
            return None
        first = held.detach().flatten()[: 4 if count >= 4096 else 1].cpu()  # no more than any shard has
        first = first.to(torch.bfloat16).view(torch.int16) if first.is_floating_point() else first
        digest.update(first.contiguous().numpy().tobytes())
    return digest.hexdigest()
