# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Knowledge distillation in which the temperature and the divergence are first-class.

The public names are imported on first use, so that `import trl_tempkd` and the command line's `--help` load no torch.
"""

import importlib
from typing import TYPE_CHECKING

from ._version import __version__ as __version__


_HOME_OF = {
    "DIVERGENCES": "trl_tempkd.divergences",
    "KDConfig": "trl_tempkd.config",
    "OBJECTIVES": "trl_tempkd.objectives",
    "TEMPERATURE_RULES": "trl_tempkd.temperature_rules",
    "TemperatureKDTrainer": "trl_tempkd.trainer",
    "chunked_kd_loss": "trl_tempkd.losses",
    "from_trl": "trl_tempkd.migration",
    "kd_loss": "trl_tempkd.losses",
    "register_divergence": "trl_tempkd.own",
    "register_temperature_rule": "trl_tempkd.own",
    "student_from_layers": "trl_tempkd.students",
}

__all__ = [
    "DIVERGENCES",
    "OBJECTIVES",
    "TEMPERATURE_RULES",
    "KDConfig",
    "TemperatureKDTrainer",
    "chunked_kd_loss",
    "from_trl",
    "kd_loss",
    "register_divergence",
    "register_temperature_rule",
    "student_from_layers",
]

if TYPE_CHECKING:
    from .config import KDConfig
    from .divergences import DIVERGENCES
    from .losses import chunked_kd_loss, kd_loss
    from .migration import from_trl
    from .objectives import OBJECTIVES
    from .own import register_divergence, register_temperature_rule
    from .students import student_from_layers
    from .temperature_rules import TEMPERATURE_RULES
    from .trainer import TemperatureKDTrainer


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
