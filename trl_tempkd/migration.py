# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A configuration of one of TRL's distillation trainers, as one of [`TemperatureKDTrainer`]."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

from .config import KDConfig
from .errors import UsageError
from .trl_names import TRL_NAMES


logger = logging.get_logger(__name__)

# Classes of TRL -> whether `temperature`, that of sampling, is the divergence's too, and whether all text is the
# student's (they have no `lmbda`)
_KINDS = {
    "GKDConfig": (False, False),
    "GOLDConfig": (True, False),
    "ServerDistillationConfig": (True, True),
    "DistillationConfig": (True, True),
    "SFTConfig": (False, False),
}
# Options that have another name here, and mean the same
_RENAMED = {
    "max_completion_length": "max_new_tokens",
    "teacher_model_server_url": "teacher_server_url",
    "loss_top_k": "teacher_server_logprobs",
    "wandb_log_unique_prompts": "log_unique_prompts",
}


def from_trl(config: Any, **changes: Any) -> KDConfig:
    """
    The same run with this library: what TRL's configuration says, by our names, and what that trainer does by itself.

    TRL compares the two at tau 1 (GKD) or at the temperature that it samples with (Distillation, ServerDistillation,
    GOLD), and doesn't rescale by tau squared. Its divergence is the generalized Jensen-Shannon one, whose `beta` 0 and
    1 are forward and reverse KL. Options of TRL that have no counterpart and aren't at their default are logged.

    Args:
        config:
            TRL's `GKDConfig`, `DistillationConfig`, `ServerDistillationConfig`, `GOLDConfig` or `SFTConfig`.
        changes:
            Options of [`KDConfig`] that are to be different, such as `kd_temperature=2.0`.

    Returns:
        [`KDConfig`].

    Raises:
        [`UsageError`]: If it is none of these, or the changes don't fit.

    Example:

    ```python
    args = from_trl(GKDConfig(output_dir="out", beta=1.0, lmbda=1.0), kd_temperature=2.0)
    ```
    """
    kind = next((cls.__name__ for cls in type(config).__mro__ if cls.__name__ in _KINDS), None)
    if kind is None:
        raise UsageError(f"`config` must be one of TRL's {', '.join(_KINDS)}, got {type(config).__name__}.")
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    known = {field.name for field in dataclasses.fields(KDConfig) if field.init}
    found = {name: value for name, value in given.items() if name in known}
    found |= {ours: given[name] for name, ours in _RENAMED.items() if given.get(name) is not None}
    found |= _objective(given, *_KINDS[kind])
    if found.get("teacher_server_url") is None:
        found.pop("teacher_server_logprobs", None)
    for line in _left_out(config, given, known):
        logger.warning(line)
    return KDConfig(**{**found, **changes})


def _objective(given: Mapping[str, Any], softened: bool, on_policy: bool) -> dict[str, Any]:
    """What is minimised, on whose text."""
    tau = given.get("temperature", 1.0) if softened else 1.0
    found: dict[str, Any] = {"kd_temperature": tau, "kd_temperature_rescale": "none"}
    if on_policy:
        found["lmbda"] = 1.0
    beta = given.get("beta")
    if beta in (0, 1):
        found["divergence"] = "reverse_kl" if beta else "forward_kl"
    elif beta is not None:
        found |= {"divergence": "jsd", "divergence_kwargs": {"beta": beta}}
    if given.get("use_uld_loss"):  # sorted probabilities, and their distance
        weights = [float(given[f"uld_{name}_weight"]) for name in ("distillation", "crossentropy")]
        found |= {
            "divergence": "tvd",
            "divergence_kwargs": None,
            "vocabulary_alignment": "uld",
            "kd_ratio": weights[0] / sum(weights),
            **{f"{side}_kd_temperature": given[f"uld_{side}_temperature"] for side in ("student", "teacher")},
        }
    return found


def _left_out(config: Any, given: Mapping[str, Any], known: set[str]) -> list[str]:
    """What options say that nothing here can do, a line each."""
    translated = {*known, *_RENAMED, "beta"}
    if given.get("use_uld_loss"):
        translated |= {name for name in given if name.endswith(("_temperature", "_weight")) and name[:4] == "uld_"}
        translated.add("use_uld_loss")
    found = []
    for field in dataclasses.fields(config):
        value = given.get(field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        same = value == default or (isinstance(value, float) and isinstance(default, float) and math.isnan(value))
        if field.init and field.name not in translated and not same:
            found.append(f"`{field.name}` is {value!r}: {TRL_NAMES.get(field.name, 'nothing here stands for it')}.")
    return found
