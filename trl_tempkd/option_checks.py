# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Options given in Python: their names and their types, which a dataclass doesn't look at."""

import dataclasses
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UsageError, UsageTypeError, was_raised
from .trl_names import hint_for


C = TypeVar("C", bound=type)

_EXPECTED = {bool: "True or False", int: "a whole number", float: "a number", str: "text", dict: "a dict"}


def strict(cls: C) -> C:
    """A dataclass whose constructor names what stands in the place of an argument that there isn't."""
    init = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        for name in kwargs:
            if name not in known:
                raise UsageTypeError(f"{cls.__name__} has no `{name}`{hint_for(name, known)}")
        init(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


@functools.cache
def _hints(cls: type, base: type) -> dict[str, Any]:
    inherited = {field.name for field in dataclasses.fields(base)}
    names = [field.name for field in dataclasses.fields(cls) if field.name not in inherited]
    hints = get_type_hints(cls)
    return {name: hints[name] for name in names}


def check_types(options: Any, base: type) -> None:
    """
    Hold the fields of a dataclass that its base hasn't to their annotations.

    Numbers of NumPy become Python's, a path becomes text, and a whole number will do where a number is expected.

    Raises:
        [`UsageTypeError`]: Names the field, the value, and what is expected.
    """
    cls: Any = type(options)
    for name, hint in _hints(cls, base).items():
        setattr(options, name, typed(f"`{name}`", getattr(options, name), hint))


def check_parameters(field: str, name: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """
    Call a function, which anybody may have written, with parameters that the user chose.

    What it raises at its defaults is a bug in it and goes through, and so is a `ValueError` that no `raise` made.

    Args:
        field (`str`):
            The option that has the parameters, for the message.
        name (`str`):
            Name of the function, for the message.
        function (`Callable`):
            Takes the parameters by name.
        kwargs (`Mapping[str, Any]`):
            The parameters.

    Raises:
        [`UsageError`]: If a parameter is missing, of another type than it is annotated with, or refused.
    """
    parameters = inspect.signature(function).parameters
    missing = [key for key, of in parameters.items() if of.default is of.empty and key not in kwargs]
    if missing:
        raise UsageError(f"`{field}` must have {', '.join(map(repr, missing))}, which {name} has no default for.")
    hints = _hints_of(getattr(function, "func", function))
    try:
        function(**{key: typed(f"{key!r}", value, hints.get(key)) for key, value in kwargs.items()})
    except (TypeError, ValueError) as error:
        if not kwargs or not (isinstance(error, TypeError) or was_raised(error)):
            raise
        if all(of.default is not of.empty for of in parameters.values()):
            function()
        raise UsageError(f"`{field}` {dict(kwargs)} does not fit {name}: {error}") from error


@functools.cache
def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except NameError:  # an annotation that only a type checker can read
        return {}


def typed(what: str, value: Any, hint: Any) -> Any:
    """The value in the type that an annotation asks for: a type or a union of them. Others are taken as they are."""
    kinds = set(get_args(hint)) if isinstance(hint, UnionType) or get_origin(hint) is Union else {hint}
    plain = {get_origin(kind) or kind for kind in kinds}
    if not plain <= {*_EXPECTED, NoneType} or (value is None and NoneType in plain):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a scalar of NumPy or PyTorch
        value = value.item()
    if bool in plain and isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    if not isinstance(value, bool) and isinstance(value, numbers.Integral) and plain & {int, float}:
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and float in plain:
        return float(value)
    if isinstance(value, os.PathLike) and str in plain:
        return os.fspath(value)
    if any(isinstance(value, kind) for kind in plain & {str, dict}):
        return value
    wanted = " or ".join(_EXPECTED[kind] for kind in _EXPECTED if kind in plain)
    if {str, dict} <= plain:
        wanted = "a dict, on the command line its JSON"
    if NoneType in plain:
        wanted += ", or None"
    raise UsageTypeError(f"{what} must be {wanted}, got {value!r} ({type(value).__name__}).")
