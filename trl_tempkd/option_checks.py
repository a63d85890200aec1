# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Options given in Python: their names and their types, which a dataclass doesn't look at."""

import dataclasses
import enum
import functools
import inspect
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch.utils.checkpoint import checkpoint

from .errors import UsageError, UsageTypeError, was_raised
from .names import did_you_mean
from .trl_names import hint_for


C = TypeVar("C", bound=type)

# Of a scheduler, what the trainer itself gives it
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
_SCHEDULE = "lr_scheduler_kwargs"
# The rest of what `checkpoint` is given goes to the layer
_CHECKPOINTING = [
    *(of for of in inspect.signature(checkpoint).parameters.values() if of.kind is of.KEYWORD_ONLY),
    inspect.Parameter("preserve_rng_state", inspect.Parameter.KEYWORD_ONLY),
]

_inherited_hints = functools.cache(get_type_hints)

# Options of TRL and transformers that fail long after they are read, or not at all, where they are less than this
_AT_LEAST: dict[str, int] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("pad_to_multiple_of", "dataset_num_proc", "eval_accumulation_steps"), 1),
    **dict.fromkeys(("dataloader_prefetch_factor", "torch_empty_cache_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs", "adam_epsilon"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "neftune_noise_alpha", "dataloader_num_workers"), 0),
    **dict.fromkeys(("seed", "data_seed", "eval_delay", "router_aux_loss_coef"), 0),
}
_BELOW = {"adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}
_TAKE_MORE = {"fsdp", "resume_from_checkpoint"}  # than they are annotated with

_EXPECTED = {bool: "True or False", int: "a whole number", float: "a number", str: "text", dict: "a dict"}


def strict(cls: C) -> C:
    """
    A dataclass that names what stands in the place of an argument that there isn't. So do its subclasses, whose
    constructor `dataclass` writes anew: the name is looked at before any.
    """

    def __new__(own: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = inspect.signature(own.__init__).parameters
        if not any(of.kind is of.VAR_KEYWORD for of in parameters.values()):
            known = list(parameters)[1:]
            for name in kwargs:
                if name not in known:
                    raise UsageTypeError(f"{own.__name__} has no `{name}`{hint_for(name, known)}")
        return object.__new__(own)

    cls.__new__ = __new__  # type: ignore[assignment, method-assign]
    return cls


def check_inherited(options: Any, base: type) -> None:
    """
    Hold the options of a configuration that it has from TRL and transformers to their types, where these are plain, to
    the values that they may have, and numbers to what they may be. None is left to whoever reads the option.

    Raises:
        [`UsageError`]: Names the option, the value, and what is expected.
    """
    for field in dataclasses.fields(base):
        name, hint = field.name, _inherited_hints(base)[field.name]
        if getattr(options, name) is None or name in _TAKE_MORE:
            continue
        kinds = get_args(hint) or (hint,)
        if set(kinds) <= {bool, int, float, str, NoneType}:
            setattr(options, name, typed(f"`{name}`", getattr(options, name), hint))
        value, choices = getattr(options, name), list(field.metadata.get("choices") or ())
        for kind in kinds:
            choices += [each.value for each in kind] if isinstance(kind, type) and issubclass(kind, enum.Enum) else []
        if choices and isinstance(value, str) and not isinstance(value, enum.Enum) and value not in choices:
            listed = ", ".join(map(str, choices))
            raise UsageError(f"`{name}` must be one of {listed}, got {value!r}{did_you_mean(value, choices)}")
        if isinstance(value, str):
            continue  # as `pad_to_multiple_of: auto`
        if name in _AT_LEAST and not (value >= _AT_LEAST[name] and math.isfinite(value)):
            raise UsageError(f"`{name}` must be at least {_AT_LEAST[name]} and finite, got {value!r}.")
        if name in _BELOW and not value < _BELOW[name]:
            raise UsageError(f"`{name}` must be below {_BELOW[name]}, got {value!r}.")
    if options.optim_args and not all("=" in part for part in options.optim_args.split(",")):
        raise UsageError(f"`optim_args` must be as 'key=value,key=value', got {options.optim_args!r}.")


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


def check_dicts(options: Any) -> None:
    """
    Hold dicts of `TrainingArguments` to the parameters of what reads them, some of it when everything is loaded.

    Raises:
        [`UsageError`]: Names the option, the key and the closest one.
    """
    from .compat import TYPE_TO_SCHEDULER_FUNCTION, AcceleratorConfig  # here: the losses alone need no transformers

    schedule = TYPE_TO_SCHEDULER_FUNCTION.get(options.lr_scheduler_type)  # by name or by member
    readers: dict[str, Iterable[inspect.Parameter]] = {
        "accelerator_config": inspect.signature(AcceleratorConfig).parameters.values(),
        "gradient_checkpointing_kwargs": _CHECKPOINTING,
        "lr_scheduler_kwargs": () if schedule is None else inspect.signature(schedule).parameters.values(),
    }
    for field, parameters in readers.items():
        found, kinds = getattr(options, field), {of.kind for of in parameters}
        if isinstance(found, str) and found.startswith("{"):  # else the file that accelerate reads
            with suppress(ValueError):
                found = json.loads(found)
        if not isinstance(found, Mapping) or not kinds or inspect.Parameter.VAR_KEYWORD in kinds:
            continue
        known = [of.name for of in parameters if of.name not in _GIVEN]
        for key in found:
            if key not in known:
                by = f" with `lr_scheduler_type` {options.lr_scheduler_type!s}" if field == _SCHEDULE else ""
                takes = ", ".join(known) or "nothing"
                raise UsageError(f"`{field}` takes {takes}{by}, got {key!r}{did_you_mean(str(key), known)}")
    _try_schedule(options)


def _try_schedule(options: Any) -> None:
    """Make the schedule once: what it lacks, and what a number of it can't be, shows when all is loaded otherwise."""
    from transformers import get_scheduler

    kwargs = getattr(options, _SCHEDULE) or {}
    if not isinstance(kwargs, Mapping):
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=options.learning_rate or 0.0)
    try:
        get_scheduler(options.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=dict(kwargs))
    except (TypeError, ValueError) as error:
        with_what = f"`{_SCHEDULE}` is {dict(kwargs)!r} with `lr_scheduler_type` {options.lr_scheduler_type!s}"
        raise UsageError(f"{with_what}: {error}.") from error


def check_precision(options: Any) -> None:
    """
    Refuse bf16, which TRL's configurations have unless told otherwise, where no device has it. transformers does too,
    and names neither the option nor both of the ways out.

    Raises:
        [`UsageError`]: Names the option and what to set.
    """
    from transformers import training_args

    # By the names by which transformers asks
    if options.use_cpu or training_args.is_torch_bf16_gpu_available() or training_args.is_torch_xla_available():
        return
    mixed = not options.fp16 if options.bf16 is None else options.bf16
    if not (mixed or options.bf16_full_eval):
        return
    name = "bf16" if mixed else "bf16_full_eval"
    got = "which it is unless set, " if options.bf16 is None and mixed else ""
    if training_args.is_torch_cuda_available():
        raise UsageError(
            f"`{name}` is True, {got}and this GPU has no bf16: set `{name}` to False, which trains in fp32, or `fp16` "
            "to True."
        )
    raise UsageError(
        f"`{name}` is True, {got}and there is no GPU here: set `use_cpu` to True and `{name}` to False to train on "
        "the CPU in fp32."
    )


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
