# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Whether a cache that hasn't the teacher's whole rows has what a run asks of it: found out first of all."""

from typing import Any

from transformers.utils import logging

from ..errors import UsageError
from ..losses.truncated import ON_BINS, grid_index
from .layouts import layout_of
from .manifest import Manifest


logger = logging.get_logger(__name__)

_HIDDEN = "a cache of --mode hidden, which has every temperature and divergence"


def check_objective(manifest: Manifest, options: Any, folder: str) -> None:
    """
    Compare what a run minimises with what its cache has.

    Args:
        manifest ([`Manifest`]):
            Of the cache.
        options (`KDConfig`):
            The configuration of the run.
        folder (`str`):
            Of the cache, for messages.

    Raises:
        `ValueError`: If the divergence, a temperature or the diagnostics need what isn't in the cache.
    """
    if manifest.truncated is None:
        return
    divergence = options.divergence
    layout_of(manifest).check(divergence, options.divergence_kwargs)
    if divergence in ON_BINS:
        logger.warning(
            f"`divergence` {divergence} of the cache in {folder} isn't that of the teacher's whole rows: "
            f"{ON_BINS[divergence]}."
        )
    if options.kd_diagnostics_steps is not None:
        raise UsageError(
            f"`kd_diagnostics_steps` is {options.kd_diagnostics_steps}, and needs the teacher's whole rows, which the "
            f"cache in {folder} hasn't. Leave it unset, or use {_HIDDEN}."
        )
    if options.kd_temperature_rule is not None:
        raise UsageError(
            f"`kd_temperature_rule` {options.kd_temperature_rule} gives temperatures off the grid, and looks at whole "
            f"rows, which the cache in {folder} hasn't. Leave it unset, or use {_HIDDEN}."
        )
    taus = manifest.truncated["taus"]
    grid = ", ".join(f"{tau:g}" for tau in taus)
    for name, tau in teacher_temperatures(options):
        if tau is None or grid_index(taus, tau) is None:
            said = f"lets the teacher's temperature pass through every value ({name})" if tau is None else name
            raise UsageError(
                f"The cache in {folder} knows the teacher at the temperatures {grid} alone, and the run's {said}: the "
                "mass of the tokens that aren't stored can't be computed at another one. Use one of these (the "
                "student's own `student_kd_temperature` is free, and so is a 'step' from one to another), build a "
                f"cache with other --taus, or {_HIDDEN}."
            )


def teacher_temperatures(options: Any) -> list[tuple[str, float | None]]:
    """The teacher's temperatures in a run, with what says so, and `None` for all between two."""
    start, final = options.kd_temperature, options.kd_temperature_final
    schedule = options.kd_temperature_schedule
    if options.teacher_kd_temperature is not None:
        return [(f"`teacher_kd_temperature` is {options.teacher_kd_temperature}", options.teacher_kd_temperature)]
    named = [(f"`kd_temperature` is {start}", start)]
    if final is not None:
        named.append((f"`kd_temperature_final` is {final}", final))
    if final is not None and final != start and schedule != "step":
        named.append((f"`kd_temperature_schedule` is {schedule!r}", None))
    return named
