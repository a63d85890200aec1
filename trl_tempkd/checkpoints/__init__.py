# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: whole or not there, with a record of the run that they are of."""

from .description import compare, options_of
from .resuming import ResumingTrainer
from .whole import checkpoints_in, find_checkpoint, newest_whole, problem_of


__all__ = [
    "ResumingTrainer",
    "checkpoints_in",
    "compare",
    "find_checkpoint",
    "newest_whole",
    "options_of",
    "problem_of",
]
