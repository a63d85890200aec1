# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where rows come from (loading.py), and what is wrong with a file of them (files.py)."""

from .loading import check_data, data_faults, load_data, select_split


__all__ = ["check_data", "data_faults", "load_data", "select_split"]
