# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What an objective and a temperature do to the gradient, and which part of the distribution the student fits.

The result is one tidy table. Each row has `objective`, `mode` (`both` softened, or the `teacher` alone), `tau`,
`measure`, `bucket`, `value` and `tokens`, the number of tokens that the value is a mean over; "-" is for what doesn't
apply. docs/diagnostics.md lists the measures. Ranks are the teacher's: rank 1 is its likeliest token.
"""

from .callback import DiagnosticsCallback, watch, write_table
from .logits import COLUMNS, MODES, NONE, Plan, logit_gradient, measure_logits
from .models import collect, diagnose, measure_parameters


__all__ = [
    "COLUMNS",
    "MODES",
    "NONE",
    "DiagnosticsCallback",
    "Plan",
    "collect",
    "diagnose",
    "logit_gradient",
    "measure_logits",
    "measure_parameters",
    "watch",
    "write_table",
]
