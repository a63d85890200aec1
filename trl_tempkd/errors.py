# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The one type of error that is meant for the user. Every other exception is a bug and keeps its traceback."""

import dis
import re
import traceback


# Whose checks of the user's values are good enough to be shown as they are
LIBRARIES = {"trl", "transformers", "peft", "datasets", "accelerate", "huggingface_hub"}

# What hands the user's values on to them: commands and what they call with these, and the constructors of the trainer
# and its configuration
COMMANDS = re.compile(
    r"trl_tempkd\.(cli|command_line|commands|caching|data|launch|models|recipes|training|study\.one_model"
    r"|study\.diagnostics\.setup)\b"
)
CONSTRUCTED = re.compile(r"trl_tempkd\.(trainer|option_checks|config)$")


class UsageError(ValueError):
    """What the user asked for can't be done. The message names the field, the value and the way out."""


class UsageTypeError(UsageError, TypeError):
    """A value of the wrong type, or an argument that there isn't: what Python itself says with a `TypeError`."""


class UsageImportError(UsageError, ImportError):
    """A package that isn't installed and is needed for what was asked for. The message says how to install it."""


def was_raised(error: BaseException) -> bool:
    """Whether an exception comes from a `raise`, as what is to be read does, and not from an operation that failed."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def is_for_the_user(error: BaseException) -> bool:
    """
    Whether an exception is a user's mistake: a [`UsageError`], or what a library says of the user's values.

    A library says it with a `raise`, and is called by a command, or by the constructor of a configuration or the
    trainer, which hand these values on. Called by anything else of this package it has been given ours.
    """
    if isinstance(error, UsageError):
        return True
    if not isinstance(error, ValueError | ImportError | OSError) or not was_raised(error):
        return False
    *above, (module, _) = [
        (frame.f_globals.get("__name__", ""), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    ours = [(name, function) for name, function in above if name.partition(".")[0] == "trl_tempkd"]
    return module.partition(".")[0] in LIBRARIES and all(
        COMMANDS.match(name) or (CONSTRUCTED.match(name) and function in ("__init__", "__post_init__"))
        for name, function in ours
    )
