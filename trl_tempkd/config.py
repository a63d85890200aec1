# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The configuration of a distillation: everything of TRL's `SFTConfig`, plus divergence, temperature and teacher."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging
from trl import SFTConfig

from .divergences import DIVERGENCES
from .errors import UsageError
from .losses.options import MemoryOptions
from .objectives import OBJECTIVES
from .objectives.options import DivergenceOptions, TemperatureOptions
from .option_checks import check_dicts, check_inherited, check_precision, check_types, strict
from .option_groups import OptionGroup, assembled, check_groups, must, option
from .own import completed, divergence_name, rule_name
from .rollouts.options import CompletionLogOptions, GenerationOptions, RolloutOptions, SamplingOptions, VLLMOptions
from .teachers.address import shown
from .teachers.options import ServedTargetOptions, ServerOptions, TeacherOptions
from .temperature_rules import TEMPERATURE_RULES
from .vocabularies.options import VocabularyOptions


logger = logging.get_logger(__name__)

_SET_BY_TRAINING = {"teacher_model_name_or_path"}  # to what `from_pretrained` takes


@dataclass
class ResumingOptions(OptionGroup):
    """Parameters that control resuming."""

    resume_with_changes: bool = option(
        False,
        "Whether to go on from a checkpoint of a run with another objective, teacher, data set or source of "
        "completions, from one that is past the last step, or from one without an optimizer. Otherwise each is an "
        "error. Other options that differ are a warning.",
    )


@dataclass
class DiagnosticsOptions(OptionGroup):
    """Parameters that control the diagnostics."""

    kd_diagnostics_steps: int | None = option(
        None,
        "Optimizer steps between two measurements of the gradients and of the student's errors, into "
        "`diagnostics.csv` of the `output_dir`. `trl-tempkd distill` sees to it; in Python, give the trainer the "
        "callback that measures, `DiagnosticsCallback`. If not set, nothing is measured.",
    )

    def check(self) -> None:
        steps = self.kd_diagnostics_steps
        ok = steps is None or steps >= 1
        must(self, "kd_diagnostics_steps", ok, "at least 1", "Leave it unset to measure nothing.")


# Of the groups the last comes first in the docstring, and after SFTConfig's own fields
@strict
@assembled
@dataclass
class KDConfig(
    DiagnosticsOptions,
    ResumingOptions,
    ServedTargetOptions,
    ServerOptions,
    VocabularyOptions,
    TeacherOptions,
    MemoryOptions,
    CompletionLogOptions,
    VLLMOptions,
    GenerationOptions,
    SamplingOptions,
    RolloutOptions,
    TemperatureOptions,
    DivergenceOptions,
    SFTConfig,
):
    """
    Configuration class for the [`TemperatureKDTrainer`].

    Everything that isn't listed here (data preparation, optimizer, logging, ...) is inherited from
    [`~trl.SFTConfig`] and keeps its meaning. Each name is also a command-line flag and a key of a YAML recipe, through
    [`~trl.TrlParser`].
    """

    def __post_init__(self):
        self._teacher: str | None = None  # what the teacher is called, as the trainer finds it
        self.divergence = divergence_name(self.divergence)
        self.kd_temperature_rule = rule_name(self.kd_temperature_rule)
        self._given = {field.name: getattr(self, field.name) for field in not_at_default(self)}
        check_types(self, SFTConfig)  # first: what follows compares
        check_inherited(self, SFTConfig)
        # TRL sets its default under the old name, for which transformers would warn whatever the user does
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            if getattr(self, new, "absent") is None:
                setattr(self, new, getattr(self, old))
        check_dicts(self)
        check_precision(self)
        super().__post_init__()
        # One process that reads for all would put batches together as tensors of one shape. TRL sees to it where the
        # training data are a stream; an evaluation's may be one too, and a batch has more than tensors here
        if self.accelerator_config.dispatch_batches:
            logger.warning(
                "`accelerator_config.dispatch_batches` is taken as false: each process reads its own batches."
            )
        self.accelerator_config.dispatch_batches = False
        check_groups(self)
        self._check_trl()
        self._made = {name: value for name, value in vars(self).items() if isinstance(value, bool | int | float | str)}

    def _check_trl(self) -> None:
        """Refuse options of SFT that have no meaning here, or another than the user would think."""
        if self.eval_packing and not self.packing and self.packing_strategy != "wrapped":
            raise UsageError(
                "`eval_packing` is True and `packing` False: TRL pads evaluation batches then, as those of training, "
                "and packed sequences would see each other. Set `packing` to True too, or leave `eval_packing` unset."
            )

        # Options of SFT that act inside its loss, which the divergence replaces
        if self.loss_type != "nll":
            raise UsageError(
                f"`loss_type` must be left at 'nll', got {self.loss_type!r}: it selects SFT's loss, which the "
                "divergence replaces. Set `divergence` and `kd_ratio` instead."
            )
        if self.label_smoothing_factor > 0:
            raise UsageError(
                f"`label_smoothing_factor` must be 0, got {self.label_smoothing_factor}: it acts on SFT's loss, which "
                "the divergence replaces. A higher `teacher_kd_temperature` smooths the target."
            )
        if self.torch_compile:
            raise UsageError(
                "`torch_compile` must be False, got True: it compiles the model's forward, and the loss calls its "
                "backbone. The loss compiles itself; for the layers, call `model.model.compile()` before training."
            )
        if self.use_liger_kernel:
            raise UsageError(
                "`use_liger_kernel` must be False, got True: the loss here is fused already. For fast layers use "
                '`model_init_kwargs={"use_kernels": True}`.'
            )

    def given(self) -> dict[str, Any]:
        """The options that were given, or set since: what another configuration is made of to be as this one."""
        names = {field.name for field in dataclasses.fields(self)} & self._made.keys() - _SET_BY_TRAINING
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != self._made[name]}
        return {**self._given, **changed}

    def describe(self) -> str:
        """What the student minimises, in a line: divergence, temperature of both sides, rescale, share of the KD."""
        tau = str(self.kd_temperature)
        if self.kd_temperature_final is not None:
            tau = f"{tau} to {self.kd_temperature_final} ({self.kd_temperature_schedule})"
        student = tau if self.student_kd_temperature is None else self.student_kd_temperature
        teacher = tau if self.teacher_kd_temperature is None else self.teacher_kd_temperature
        parameters = self.divergence_kwargs if isinstance(self.divergence_kwargs, dict) else {}
        kwargs = "".join(f" {name} {value}" for name, value in parameters.items())
        rule = ""
        if self.kd_temperature_rule is not None:
            own = self.kd_temperature_rule_kwargs
            rule = f", rule {self.kd_temperature_rule}" + (f" {own}" if own else "")
        return (
            f"{self.divergence}{kwargs}, student tau {student}, teacher tau {teacher}{rule}, rescale "
            f"{self.kd_temperature_rescale}, kd_ratio {self.kd_ratio}"
        )

    def to_dict(self) -> dict[str, Any]:
        """
        The fields, as trackers get them: with every parameter of the divergence and of the rule, with the teacher's
        name where the trainer was given a model, and without a password in the addresses of servers or a token.
        """
        fields = {name: _without_tokens(value) for name, value in super().to_dict().items()}
        for name in ("teacher_server_url", "teacher_server_generation_url"):
            if fields[name] is not None:
                fields[name] = shown(fields[name])
        if isinstance(fields["teachers"], list):
            fields["teachers"] = [
                {key: shown(value) if key == "server_url" else value for key, value in entry.items()}
                for entry in fields["teachers"]
            ]
        functions: dict[str, Any] = {"divergence_kwargs": (DIVERGENCES | OBJECTIVES)[self.divergence]}
        if self.kd_temperature_rule is not None:
            functions["kd_temperature_rule_kwargs"] = TEMPERATURE_RULES[self.kd_temperature_rule]
        for name, function in functions.items():
            fields[name] = completed(function, fields[name])
        if self.teacher_model_name_or_path is None:
            fields["teacher_model_name_or_path"] = self._teacher
        return fields


def not_at_default(options: Any) -> Iterator[dataclasses.Field]:
    """The fields of a dataclass of options that aren't at their defaults."""
    for field in dataclasses.fields(options):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(options, field.name)
        parsed = value in (None, False) and default in ("", "no")  # what the command line makes of such a default
        if field.init and value != default and not parsed:
            yield field


def _without_tokens(value: Any) -> Any:
    """A value without what lets somebody into the Hub, wherever keyword arguments have it."""
    if isinstance(value, list):
        return [_without_tokens(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: f"<{str(key).upper()}>" if str(key).endswith("token") and isinstance(of, str) else _without_tokens(of)
        for key, of in value.items()
    }
