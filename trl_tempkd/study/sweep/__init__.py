# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Sweeps: a grid of divergence x temperature x mode x seed, whose cells are run, and what is chosen of it."""

from .grid import cells, read_recipe


__all__ = ["cells", "read_recipe"]
