# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The distillation loss, on logits (`kd_loss`) and without ever building them in full (`chunked_kd_loss`)."""

from .chunked import METRICS, ChunkedKDOutput, Logits, chunked_kd_loss, head_logits
from .dense import kd_loss
from .sampled import Sampled
from .truncated import TopK, Truncated


__all__ = [
    "METRICS",
    "ChunkedKDOutput",
    "Logits",
    "Sampled",
    "TopK",
    "Truncated",
    "chunked_kd_loss",
    "head_logits",
    "kd_loss",
]
