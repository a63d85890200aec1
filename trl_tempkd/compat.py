# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Names of the libraries that aren't public, in one place: `tests/test_upstream.py` checks that they exist."""

from transformers.core_model_loading import revert_weight_conversion


__all__ = ["revert_weight_conversion"]
