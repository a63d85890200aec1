# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Divergence, temperature and other options chosen together by a score on held-out rows: recipe, space and store."""
