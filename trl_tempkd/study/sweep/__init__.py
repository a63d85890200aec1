# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Sweeps: a grid of divergence x temperature x mode x seed, a process and a JSON file per cell, and its statistics."""

from .grid import Cell, cells, read_recipe


__all__ = ["Cell", "cells", "read_recipe"]
