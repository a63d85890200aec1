# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a byte of a text costs a model: comparable whatever tokens the model has."""

import math
from collections.abc import Sequence


def bits_per_byte(
    ce: Sequence[float], sizes: Sequence[int], whole: Sequence[bool]
) -> tuple[float, list[float | None]] | None:
    """
    What a byte of the completions costs, their end included: comparable whatever tokens a model has.

    Args:
        ce (`Sequence[float]`): of each completion the sum of its tokens' cross-entropies, in nats.
        sizes (`Sequence[int]`): how many bytes each has.
        whole (`Sequence[bool]`): whether nothing of it was cut off, without which a completion has no such value.

    Returns:
        `tuple`: All bits over all bytes, and the same of each completion. `None` if there is none.
    """
    known = [i for i, size in enumerate(sizes) if size and whole[i]]
    if not known:
        return None
    own: list[float | None] = [None] * len(ce)
    for i in known:
        own[i] = ce[i] / math.log(2) / sizes[i]
    return math.fsum(ce[i] for i in known) / math.log(2) / sum(sizes[i] for i in known), own
