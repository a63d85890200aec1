# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The built-in pair of models and their data: everything a first distillation needs, without a network."""

from pathlib import Path

from ..errors import UsageError
from .data import load_tiny_dataset


__all__ = ["load_tiny_dataset", "resolve", "tiny_model_path"]

TINY_MODELS = ("teacher", "student")


def tiny_model_path(name: str) -> str:
    """
    Folder of a built-in model.

    Args:
        name (`str`):
            `"teacher"` or `"student"`.

    Returns:
        `str`: The folder, ready for `from_pretrained`.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> from trl_tempkd.tiny import tiny_model_path

    >>> teacher = AutoModelForCausalLM.from_pretrained(tiny_model_path("teacher"))
    ```
    """
    if name not in TINY_MODELS:
        raise UsageError(
            f"The built-in models are {', '.join(f'tiny:{known}' for known in TINY_MODELS)}; got tiny:{name}."
        )
    return str(Path(__file__).parent / "models" / name)


def resolve(name: str) -> str:
    """
    Turn the name of a built-in model into its folder.

    Args:
        name (`str`):
            `"tiny:teacher"`, `"tiny:student"`, or any other name or path of a model.

    Returns:
        `str`: The folder of a built-in model; any other name unchanged.
    """
    return tiny_model_path(name.removeprefix("tiny:")) if name.startswith("tiny:") else name
