# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One of several teachers, as a configuration has it."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..divergences import DIVERGENCES, check_divergence
from ..errors import UsageError
from ..names import did_you_mean
from .address import shown


@dataclass(frozen=True)
class TeacherSpec:
    """
    An entry of `teachers`.

    Attributes:
        name (`str`):
            What rows and the log call it.
        model (`str`):
            Name or path of the model.
        revision, init_kwargs:
            How to load it.
        weight (`float`):
            Factor on the divergence of its tokens, or its share of the mixture before these are made to sum up to 1.
        kd_temperature, student_kd_temperature, teacher_kd_temperature (`float`, *optional*):
            Its temperatures, in the place of the run's. In a mixture the student has one.
        divergence, divergence_kwargs (`str`, `dict`, *optional*):
            Its divergence, in the place of the run's.
    """

    name: str
    model: str
    revision: str | None = None
    init_kwargs: dict[str, Any] | None = None
    weight: float = 1.0
    kd_temperature: float | None = None
    student_kd_temperature: float | None = None
    teacher_kd_temperature: float | None = None
    divergence: str | None = None
    divergence_kwargs: dict[str, Any] | None = None

    @classmethod
    def read(cls, options: Any) -> "dict[str, TeacherSpec]":
        """
        The entries of `teachers` by name.

        Raises:
            [`UsageError`]: Names the entry, the key and the way out.
        """
        entries = options.teachers
        if not isinstance(entries, list | tuple) or not entries:
            raise UsageError(f"`teachers` must be a list of dicts with `name` and `model`, got {entries!r}.")
        specs: dict[str, TeacherSpec] = {}
        for entry in entries:
            spec = cls._read(entry)
            if spec.name in specs:
                raise UsageError(f"`teachers` has {spec.name!r} twice: each needs a name of its own.")
            specs[spec.name] = spec
        return specs

    @classmethod
    def _read(cls, entry: Any) -> "TeacherSpec":
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(entry, Mapping):
            raise UsageError(f"`teachers` must be a list of dicts with `name` and `model`, got {entry!r} in it.")
        for key in entry:
            if key not in known:
                raise UsageError(
                    f"`teachers` has {key!r}, and an entry takes {', '.join(known)}{did_you_mean(str(key), known)}"
                )
        for key in ("name", "model"):
            if not isinstance(entry.get(key), str) or not entry[key]:
                raise UsageError(f"`teachers` must have a `{key}` in each entry, as text, got {dict(entry)!r}.")
        spec = cls(**entry)
        for key in ("weight", "kd_temperature", "student_kd_temperature", "teacher_kd_temperature"):
            value = getattr(spec, key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (value is None and key != "weight") and not (number and 0 < value < math.inf):
                raise UsageError(f"`teachers`, {spec.name}: `{key}` must be positive and finite, got {value!r}.")
        if spec.divergence_kwargs is not None and spec.divergence is None:
            raise UsageError(f"`teachers`, {spec.name}: `divergence_kwargs` needs a `divergence` beside it.")
        if spec.divergence is not None:
            _check_divergence(spec.divergence, spec.divergence_kwargs, f"`teachers`, {spec.name}: ")
        return spec

    @property
    def own_loss(self) -> str | None:
        """What it has of its own that a mixture hasn't."""
        names = ("divergence", "kd_temperature", "student_kd_temperature")
        return next((name for name in names if getattr(self, name) is not None), None)

    def described(self) -> dict[str, Any]:
        """What decides the target."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None and name != "model"
        }

    def temperatures(self, student: float, teacher: float) -> tuple[float, float]:
        """Its temperatures of student and teacher, from those of the run."""
        if self.kd_temperature is not None:
            student = teacher = self.kd_temperature
        own = (self.student_kd_temperature, self.teacher_kd_temperature)
        return own[0] or student, own[1] or teacher


def _check_divergence(name: str, kwargs: Any, start: str) -> None:
    if name not in DIVERGENCES:
        raise UsageError(
            f"{start}`divergence` must be one of {', '.join(DIVERGENCES)} with `teachers`, got {name!r}: an objective "
            "that needs more than two distributions has one teacher."
        )
    try:
        check_divergence(name, kwargs)
    except UsageError as error:
        raise UsageError(f"{start}{error}") from error


def check_teachers(options: Any) -> None:
    """
    Hold the options of a run with several teachers against what they can be.

    Raises:
        [`UsageError`]: Names the option, its value, and the way out.
    """
    TeacherSpec.read(options)
    unfit = {
        "teacher_model_name_or_path": "leave it unset, `teachers` has them",
        "teacher_cache": "leave it unset: several teachers run beside the student",
        "teacher_server_url": "leave it unset: several teachers run beside the student",
        "vocabulary_alignment": "leave it unset: several teachers need the student's tokenizer",
        "seq_kd": "leave it False: of several teachers none writes completions",
        "kd_temperature_rule": "leave it unset, and give each its own temperature",
        "kd_diagnostics_steps": "leave it unset: the measures are of one teacher",
    }
    for name, way_out in unfit.items():
        value = getattr(options, name)
        if value:
            value = shown(value) if name == "teacher_server_url" else value  # it may have a password
            raise UsageError(f"`{name}` is {value!r}, and there are `teachers`: {way_out}.")
    _check_divergence(options.divergence, options.divergence_kwargs, "")


def view_of(options: Any, spec: TeacherSpec) -> Any:
    """The configuration as one of the teachers sees it."""
    view = copy.copy(options)
    view.teachers, view.teacher_model_name_or_path = None, spec.model
    view.teacher_model_revision, view.teacher_model_init_kwargs = spec.revision, spec.init_kwargs
    return view
