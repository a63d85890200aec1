# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One self-contained page from the results of sweeps: read a folder, compute what is shown, draw it, write HTML."""

from .results import Results, read


__all__ = ["Results", "read"]
