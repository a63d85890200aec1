# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One of several teachers, as a configuration has it."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..divergences import DIVERGENCES, check_divergence
from ..errors import UsageError
from ..names import did_you_mean
from ..vocabularies.options import VocabularyOptions
from .address import Address, shown


# The names of teachers that are in memory with the student. A folder of such a name needs a path, such as `./student`.
STUDENT_BASE, STUDENT, STUDENT_EMA = OF_THE_STUDENT = ("student_base", "student", "student_ema")


@dataclass(frozen=True)
class TeacherSpec:
    """
    An entry of `teachers`.

    Attributes:
        name (`str`):
            What rows and the log call it.
        model (`str`, *optional*):
            Name or path of the model, or one of those that are the student (`student`, `student_ema`,
            `student_base`). Beside `cache` it is compared with the cache's, beside `server_url` it is the checkpoint
            whose head is read, or the name on the server.
        cache (`str`, *optional*):
            Folder of `trl-tempkd cache`, as `teacher_cache`.
        server_url, server_model, server_logprobs (`str`, `str`, `int`, *optional*):
            Where it is served and how it is asked, as `teacher_server_url` and the others.
        revision, init_kwargs:
            How to load it.
        teacher_prompt (`bool`):
            Whether it reads the `teacher_prompt` of rows in the place of the student's prompt.
        weight (`float`):
            Factor on the divergence of its tokens, or its share of the mixture before these are made to sum up to 1.
        kd_temperature, student_kd_temperature, teacher_kd_temperature (`float`, *optional*):
            Its temperatures, in the place of the run's. In a mixture the student has one.
        divergence, divergence_kwargs (`str`, `dict`, *optional*):
            Its divergence, in the place of the run's.
        vocabulary_alignment, alm_weight (`str`, `float`, *optional*):
            How it is compared, if it has another tokenizer, as the options of these names.
    """

    name: str
    model: str | None = None
    cache: str | None = None
    server_url: str | None = field(default=None, repr=False)  # it may have a password
    server_model: str | None = None
    server_logprobs: int | None = None
    revision: str | None = None
    init_kwargs: dict[str, Any] | None = None
    teacher_prompt: bool = True
    weight: float = 1.0
    kd_temperature: float | None = None
    student_kd_temperature: float | None = None
    teacher_kd_temperature: float | None = None
    divergence: str | None = None
    divergence_kwargs: dict[str, Any] | None = None
    vocabulary_alignment: str | None = None
    alm_weight: float = 0.0

    @classmethod
    def read(cls, options: Any) -> "dict[str, TeacherSpec]":
        """
        The entries of `teachers` by name.

        Raises:
            [`UsageError`]: Names the entry, the key and the way out.
        """
        entries = options.teachers
        if not isinstance(entries, list | tuple) or not entries:
            raise UsageError(f"`teachers` must be a list of dicts with `name` and `model`, got {_told(entries)}.")
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
            raise UsageError(f"`teachers` must be a list of dicts with `name` and `model`, got {_told(entry)} in it.")
        for key in entry:
            if key not in known:
                own = str(key).removeprefix("teacher_")
                hint = f"; it is called {own!r} here" if own in known else did_you_mean(str(key), known)
                raise UsageError(f"`teachers` has {key!r}, and an entry takes {', '.join(known)}{hint}")
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            keys = ", ".join(map(repr, entry))
            raise UsageError(
                f"`teachers` must have a `name` in each entry, as text, got one with {keys or 'nothing'}."
            )
        spec = cls(**entry)
        spec._check_source()
        for key in ("weight", "kd_temperature", "student_kd_temperature", "teacher_kd_temperature"):
            value = getattr(spec, key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (value is None and key != "weight") and not (number and 0 < value < math.inf):
                raise UsageError(f"`teachers`, {spec.name}: `{key}` must be positive and finite, got {value!r}.")
        alm = spec.alm_weight
        if isinstance(alm, bool) or not isinstance(alm, int | float) or not 0 <= alm < math.inf:
            raise UsageError(f"`teachers`, {spec.name}: `alm_weight` must be 0 or more, and finite, got {alm!r}.")
        if spec.divergence_kwargs is not None and spec.divergence is None:
            raise UsageError(f"`teachers`, {spec.name}: `divergence_kwargs` needs a `divergence` beside it.")
        if spec.divergence is not None:
            _check_divergence(spec.divergence, spec.divergence_kwargs, f"`teachers`, {spec.name}: ")
        return spec

    def _check_source(self) -> None:
        start = f"`teachers`, {self.name}:"
        for key in ("model", "cache", "server_url", "server_model", "revision"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, str) and value):
                raise UsageError(f"{start} `{key}` must be text, got {value!r}.")
        if self.model is self.cache is self.server_url is None:
            raise UsageError(f"{start} it must have a `model`, a `cache` or a `server_url`, and has none.")
        if self.cache is not None and self.server_url is not None:
            raise UsageError(
                f"{start} `cache` is {self.cache!r} and `server_url` {shown(self.server_url)!r}: the target comes "
                "from one of them. Leave the other out."
            )
        if self.server_url is not None:
            Address.of(self.server_url, f"teachers`, {self.name}: `server_url")
        for key in ("server_model", "server_logprobs"):
            if getattr(self, key) is not None and self.server_url is None:
                raise UsageError(
                    f"{start} `{key}` is {getattr(self, key)!r}, and is of a teacher with a `server_url`."
                )
        if not isinstance(self.teacher_prompt, bool):
            raise UsageError(f"{start} `teacher_prompt` must be True or False, got {self.teacher_prompt!r}.")
        logprobs = self.server_logprobs
        if logprobs is not None and (isinstance(logprobs, bool) or not isinstance(logprobs, int) or logprobs < 2):
            raise UsageError(f"{start} `server_logprobs` must be at least 2, got {logprobs!r}. Leave it out for all.")

    @property
    def own_loss(self) -> str | None:
        """What it has of its own that a mixture hasn't."""
        names = ("divergence", "kd_temperature", "student_kd_temperature")
        return next((name for name in names if getattr(self, name) is not None), None)

    def described(self) -> dict[str, Any]:
        """What decides the target, but for whose it is, which its identity says."""
        places = ("model", "cache", "server_url", "server_model")
        said = {name: value for name, value in dataclasses.asdict(self).items() if name not in places}
        if self.teacher_prompt:
            del said["teacher_prompt"]
        if not self.alm_weight:
            del said["alm_weight"]
        return {name: value for name, value in said.items() if value is not None}

    def temperatures(self, student: float, teacher: float) -> tuple[float, float]:
        """Its temperatures of student and teacher, from those of the run."""
        if self.kd_temperature is not None:
            student = teacher = self.kd_temperature
        own = (self.student_kd_temperature, self.teacher_kd_temperature)
        return own[0] or student, own[1] or teacher


def _told(value: Any) -> str:
    """A value that isn't what it should be, without an address that may be in it."""
    return repr(value) if "://" not in repr(value) else f"a {type(value).__name__}"


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
    specs = TeacherSpec.read(options)
    unfit = {
        "teacher_model_name_or_path": "leave it unset, `teachers` has them",
        "teacher_cache": "leave it unset, and give the entry that has it a `cache`",
        "teacher_server_url": "leave it unset, and give the entry that has it a `server_url`",
        "vocabulary_alignment": "leave it unset, and give it to the entry that has another tokenizer",
        "alm_weight": "leave it unset, and give it to the entry that has another tokenizer",
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
    for name, spec in specs.items():
        if spec.cache is not None and options.generates:
            raise UsageError(
                f"`teachers`, {name}: `cache` {spec.cache} has nothing for completions generated in training. Set "
                f"`lmbda` to 0 (got {options.lmbda}) and `lmbda_schedule` to 'constant', or give it a `model` or a "
                "`server_url`."
            )
        view = view_of(options, spec)
        try:
            VocabularyOptions.check(view)
        except UsageError as error:
            raise UsageError(f"`teachers`, {name}: {error}") from error
        if spec.vocabulary_alignment is not None and options.teachers_offload is not None:
            raise UsageError(
                f"`teachers`, {name}: `vocabulary_alignment` is {spec.vocabulary_alignment!r}, and `teachers_offload` "
                f"{options.teachers_offload!r} keeps what teachers with the student's tokens say. Leave one unset."
            )
    if options.teachers_offload is not None and not any(map(is_live, specs.values())):
        raise UsageError(
            f"`teachers_offload` is {options.teachers_offload!r}, and none of the `teachers` is a model of its own "
            "beside the student: leave it unset."
        )


def is_live(spec: TeacherSpec) -> bool:
    """Whether it is a model of its own in memory."""
    return spec.cache is None and spec.server_url is None and spec.model not in OF_THE_STUDENT


def view_of(options: Any, spec: TeacherSpec) -> Any:
    """The configuration as one of the teachers sees it: as a run that has no other one."""
    view = copy.copy(options)
    view.teachers = view.teachers_offload = None
    view.teacher_model_name_or_path = spec.model
    view.teacher_model_revision, view.teacher_model_init_kwargs = spec.revision, spec.init_kwargs
    view.teacher_cache, view.teacher_server_url = spec.cache, spec.server_url
    view.teacher_server_model, view.teacher_server_logprobs = spec.server_model, spec.server_logprobs
    view.vocabulary_alignment = spec.vocabulary_alignment
    # The weight of an entry is on its divergence alone: its other term is told here
    view.alm_weight = spec.alm_weight * spec.weight if spec.vocabulary_alignment else spec.alm_weight
    if spec.divergence is not None:
        view.divergence, view.divergence_kwargs = spec.divergence, spec.divergence_kwargs
    if spec.kd_temperature is not None:  # in the place of whatever the run has, a schedule included
        view.kd_temperature, view.kd_temperature_final = spec.kd_temperature, None
        view.student_kd_temperature = view.teacher_kd_temperature = None
    for name in ("student_kd_temperature", "teacher_kd_temperature"):
        if getattr(spec, name) is not None:
            setattr(view, name, getattr(spec, name))
    return view
