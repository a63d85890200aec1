# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a run minimises: a divergence, or an objective that needs more than (p, q), at its temperatures."""

import inspect
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from ..divergences import DIVERGENCES, check_divergence
from ..errors import UsageError
from ..extensions import load_extensions, sources
from ..names import did_you_mean
from ..option_checks import check_parameters
from ..temperature_rules import TEMPERATURE_RULES
from .distillm2 import DistiLLM2
from .divergence import Divergence
from .minillm import MiniLLM
from .objective import Objective
from .several import SeveralLoss
from .step_loss import BatchLoss, StepLoss
from .taid import Taid
from .temperatures import TemperatureState
from .tokens import Tokens
from .tsld import Tsld


__all__ = [
    "OBJECTIVES",
    "BatchLoss",
    "Divergence",
    "Objective",
    "SeveralLoss",
    "StepLoss",
    "TemperatureState",
    "Tokens",
    "check_objective",
    "make_loss",
    "make_objective",
    "own_sources",
    "token_divergence",
]

# Those that need more than (p, q), by the name under which a configuration's `divergence` asks for them
OBJECTIVES: dict[str, type[Objective]] = {"taid": Taid, "distillm2": DistiLLM2, "minillm": MiniLLM, "tsld": Tsld}


def check_objective(name: str, kwargs: dict[str, Any] | None = None) -> None:
    """
    Check the name of a divergence or an objective, and its parameters.

    Raises:
        `ValueError`: If the name is unknown, or a parameter is unknown or out of range.
    """
    if name not in (*DIVERGENCES, *OBJECTIVES):
        load_extensions()
    if name not in (*DIVERGENCES, *OBJECTIVES):
        names = dict.fromkeys([*DIVERGENCES, *OBJECTIVES])
        hint = did_you_mean(name, names) or "."
        raise UsageError(
            f"`divergence` must be one of {', '.join(names)}, got {name!r}{hint} One of your own is "
            "registered with `register_divergence`, in a file that `--import` names."
        )
    if name not in OBJECTIVES:
        check_divergence(name, kwargs)
        return
    known = list(inspect.signature(OBJECTIVES[name]).parameters)
    for key in kwargs or {}:
        if key not in known:
            raise UsageError(f"`divergence_kwargs` has {key!r}, but {name} takes {', '.join(known)}.")
    check_parameters("divergence_kwargs", name, OBJECTIVES[name], kwargs or {})


def token_divergence(name: str) -> str:
    """The name in `DIVERGENCES` of what an objective does with one token, and of a divergence its own."""
    return OBJECTIVES[name].divergence if name in OBJECTIVES else name


def make_objective(name: str, kwargs: dict[str, Any] | None = None) -> Objective:
    """The objective of a name, which [`check_objective`] has let pass, with its parameters."""
    return OBJECTIVES[name](**(kwargs or {})) if name in OBJECTIVES else Divergence(name, kwargs)


def own_sources(options: Mapping[str, Any]) -> dict[str, str]:
    """Of what options name that doesn't come with the library, by its name the SHA-256 of its source."""
    return sources({"divergence": DIVERGENCES, "kd_temperature_rule": TEMPERATURE_RULES}, options)


def make_loss(options: Any, accelerator: Accelerator, metrics: tuple[str, ...]) -> StepLoss:
    """The loss that a configuration asks for. Arguments as of [`StepLoss`]."""
    objective = make_objective(options.divergence, options.divergence_kwargs)
    kind = StepLoss if options.teachers is None else SeveralLoss
    return kind(options, accelerator, metrics, objective)
