# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Names of the libraries that aren't public, in one place: `tests/test_upstream.py` checks that they exist."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import deepspeed


__all__ = ["revert_weight_conversion", "without_deepspeed"]


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Context in which transformers makes models as if there were no DeepSpeed, whose ZeRO-3 would shard them."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
