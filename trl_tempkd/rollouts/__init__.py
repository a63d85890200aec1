# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where a batch's completions come from: data set, student, teacher, or what the student has said before."""

from .config import RolloutConfig
from .rollouts import Rollouts, make_rollouts


__all__ = ["RolloutConfig", "Rollouts", "make_rollouts"]
