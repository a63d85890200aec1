# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The version, for the package, its build and whatever it writes."""

__version__ = "0.1.0"
