# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The one type of error that is meant for the user. Every other exception is a bug and keeps its traceback."""


class UsageError(ValueError):
    """What the user asked for can't be done. The message names the field, the value and the way out."""
