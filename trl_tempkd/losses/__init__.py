# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The distillation loss, on logits (`kd_loss`) and without ever building them in full (`chunked_kd_loss`)."""

from .chunked import METRICS, ChunkedKDOutput, chunked_kd_loss
from .dense import kd_loss
from .fused import head_logits
from .measured import Measured, measure_tokens
from .mixture import Mixture, Part
from .operands import Logits
from .pooled import Pooled, Stretches
from .sampled import Sampled
from .truncated import TopK, Truncated


__all__ = [
    "METRICS",
    "ChunkedKDOutput",
    "Logits",
    "Measured",
    "Mixture",
    "Part",
    "Pooled",
    "Sampled",
    "Stretches",
    "TopK",
    "Truncated",
    "chunked_kd_loss",
    "head_logits",
    "kd_loss",
    "measure_tokens",
]
