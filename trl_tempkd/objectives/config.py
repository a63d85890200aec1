# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The options of what a run minimises: divergence, temperature, and the rule that gives each token its own."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..divergences import DIVERGENCES
from ..errors import UsageError
from ..rollouts.config import RolloutConfig
from ..temperature import RESCALES, SCHEDULES
from ..temperature_rules import FROM_TAU, TEMPERATURE_RULES, check_temperature_rule
from . import OBJECTIVES, check_objective


@dataclass
class ObjectiveConfig(RolloutConfig):
    r"""
    The part of [`KDConfig`] that is about divergence and temperature.

    Parameters:
        > Parameters that control the divergence

        divergence (`str`, *optional*, defaults to `"forward_kl"`):
            What the student minimises: a name of [`DIVERGENCES`], all true divergences, in nats, 0 exactly when the
            student equals the teacher; or one of [`OBJECTIVES`], which need more than the two distributions.
        divergence_kwargs (`dict[str, Any]`, *optional*):
            Parameters of the divergence, e.g. `{"beta": 0.1}` for `"jsd"`. Those left out keep their defaults.
        kd_ratio (`float`, *optional*, defaults to `1.0`):
            The loss is `kd_ratio * KD + (1 - kd_ratio) * CE`. The cross-entropy with the labels is always at
            temperature 1.

        > Parameters that control the temperature

        kd_temperature (`float`, *optional*, defaults to `2.0`):
            Temperature tau of the divergence: both sets of logits are divided by it. It is not a sampling
            temperature.
        student_kd_temperature (`float`, *optional*):
            Temperature of the student alone, in place of `kd_temperature`. `1.0` softens the teacher only, which
            changes the optimum: the student then learns the softened teacher itself.
        teacher_kd_temperature (`float`, *optional*):
            Temperature of the teacher alone, in place of `kd_temperature`.
        kd_temperature_rescale (`str`, *optional*, defaults to `"tau2"`):
            Factor on the divergence: `"none"` (1), `"tau"` or `"tau2"`, with the product of both sides in place of
            tau² if they differ. `"tau2"` keeps the size of the gradient about the same for every tau, which matters
            when cross-entropy is mixed in or gradients are clipped.
        kd_temperature_schedule (`str`, *optional*, defaults to `"constant"`):
            How tau goes from `kd_temperature` to `kd_temperature_final` over the training steps: `"constant"`,
            `"linear"`, `"cosine"` or `"step"`. A side with its own temperature keeps it.
        kd_temperature_final (`float`, *optional*):
            Value of tau at the end of training. Required by every schedule but `"constant"`.
        kd_temperature_rule (`str`, *optional*):
            A rule that gives each token a temperature of its own: a name of [`TEMPERATURE_RULES`]. A side with its own
            temperature keeps it. `"zscore"` and `"token_adaptive"` start from tau; the others find their own.
        kd_temperature_rule_kwargs (`dict[str, Any]`, *optional*):
            Parameters of the rule, e.g. `{"share": 0.4}` for `"target_entropy"`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *RolloutConfig._VALID_DICT_FIELDS,
        "divergence_kwargs",
        "kd_temperature_rule_kwargs",
    ]

    # Parameters that control the divergence
    divergence: str = field(
        default="forward_kl",
        metadata={
            "help": "What the student minimises, in nats, 0 exactly when it equals the teacher. One of "
            f"{', '.join(DIVERGENCES)}; or an objective that needs more than two distributions: "
            f"{', '.join(name for name in OBJECTIVES if name not in DIVERGENCES)}."
        },
    )
    divergence_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Parameters of the divergence, e.g. `{"beta": 0.1}` for `jsd`.'},
    )
    kd_ratio: float = field(
        default=1.0,
        metadata={
            "help": "The loss is kd_ratio * KD + (1 - kd_ratio) * CE, in [0, 1]. The cross-entropy with the labels is "
            "always at temperature 1."
        },
    )

    # Parameters that control the temperature
    kd_temperature: float = field(
        default=2.0,
        metadata={
            "help": "Temperature tau of the divergence: student and teacher logits are divided by it. It is not a "
            "sampling temperature."
        },
    )
    student_kd_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature of the student alone, in place of `kd_temperature`. 1.0 softens the teacher only, "
            "which changes the optimum: the student then learns the softened teacher itself."
        },
    )
    teacher_kd_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of the teacher alone, in place of `kd_temperature`."},
    )
    kd_temperature_rescale: str = field(
        default="tau2",
        metadata={
            "help": "Factor on the divergence: 'none' (1), 'tau' or 'tau2'. 'tau2' keeps the size of the gradient "
            "about the same for every tau, which matters when cross-entropy is mixed in or gradients are clipped.",
            "choices": list(RESCALES),
        },
    )
    kd_temperature_schedule: str = field(
        default="constant",
        metadata={
            "help": "How tau goes from `kd_temperature` to `kd_temperature_final` over the training steps. A side "
            "with its own temperature keeps it.",
            "choices": list(SCHEDULES),
        },
    )
    kd_temperature_final: float | None = field(
        default=None,
        metadata={"help": "Value of tau at the end of training. Required by every schedule but 'constant'."},
    )
    kd_temperature_rule: str | None = field(
        default=None,
        metadata={
            "help": "Rule that gives each token a temperature of its own. 'zscore' and 'token_adaptive' start from "
            "`kd_temperature`, the others find their own. A side with its own temperature keeps it.",
            "choices": list(TEMPERATURE_RULES),
        },
    )
    kd_temperature_rule_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Parameters of the rule, e.g. `{"share": 0.4}` for `target_entropy`.'},
    )

    def __post_init__(self):
        super().__post_init__()
        examples = {"divergence_kwargs": '{"beta": 0.1}', "kd_temperature_rule_kwargs": '{"share": 0.4}'}
        for name, example in examples.items():
            if isinstance(getattr(self, name), str):
                raise UsageError(
                    f"`{name}` must be a dict, or on the command line its JSON, e.g. '{example}', got "
                    f"{getattr(self, name)!r}."
                )
        if not 0 <= self.kd_ratio <= 1:
            raise UsageError(f"`kd_ratio` must be in [0, 1], got {self.kd_ratio}.")
        self._check_divergence()
        self._check_temperatures()
        self._check_rule()

    def _check_divergence(self) -> None:
        assert not isinstance(self.divergence_kwargs, str)
        check_objective(self.divergence, self.divergence_kwargs)
        method = OBJECTIVES.get(self.divergence)
        if method is not None and method.needs_student_text and not self.lmbda and self.lmbda_schedule == "constant":
            raise UsageError(
                f"`divergence` {self.divergence} is about completions that the student writes itself, and `lmbda` is "
                f"{self.lmbda}, so there are none. Set the share of the steps that have them, e.g. `lmbda` "
                f"{1.0 if self.divergence == 'minillm' else 0.5}."
            )

    def _check_temperatures(self) -> None:
        for name in ("kd_temperature", "student_kd_temperature", "teacher_kd_temperature", "kd_temperature_final"):
            tau = getattr(self, name)
            if tau is not None and not (tau > 0 and math.isfinite(tau)):
                raise UsageError(
                    f"`{name}` must be positive and finite, got {tau}. For a nearly greedy teacher use a small "
                    "temperature such as 0.1."
                )
        if self.kd_temperature_rescale not in RESCALES:
            raise UsageError(
                f"`kd_temperature_rescale` must be one of {', '.join(RESCALES)}, got {self.kd_temperature_rescale!r}."
            )
        if self.kd_temperature_schedule not in SCHEDULES:
            raise UsageError(
                f"`kd_temperature_schedule` must be one of {', '.join(SCHEDULES)}, got "
                f"{self.kd_temperature_schedule!r}."
            )
        if self.kd_temperature_schedule == "constant" and self.kd_temperature_final is not None:
            raise UsageError(
                f"`kd_temperature_final` is {self.kd_temperature_final}, but `kd_temperature_schedule` is 'constant', "
                "so it would never be reached. Choose a schedule such as 'linear', or leave `kd_temperature_final` "
                "unset."
            )
        if self.kd_temperature_schedule != "constant":
            if self.kd_temperature_final is None:
                raise UsageError(
                    f"`kd_temperature_schedule` is {self.kd_temperature_schedule!r}, which needs "
                    "`kd_temperature_final`, got None. Set it, or use the 'constant' schedule."
                )
            if self.student_kd_temperature is not None and self.teacher_kd_temperature is not None:
                raise UsageError(
                    f"`kd_temperature_schedule` is {self.kd_temperature_schedule!r}, but `student_kd_temperature` "
                    f"({self.student_kd_temperature}) and `teacher_kd_temperature` ({self.teacher_kd_temperature}) "
                    "fix both sides, so it would have no effect. Leave one of them unset."
                )

    def _check_rule(self) -> None:
        rule = self.kd_temperature_rule
        assert not isinstance(self.kd_temperature_rule_kwargs, str)
        try:
            check_temperature_rule(rule, self.kd_temperature_rule_kwargs)
        except UsageError as error:
            raise UsageError(str(error).replace("`temperature_rule", "`kd_temperature_rule")) from error
        if rule is None:
            return
        if self.student_kd_temperature is not None and self.teacher_kd_temperature is not None:
            raise UsageError(
                f"`kd_temperature_rule` is {rule!r}, but `student_kd_temperature` ({self.student_kd_temperature}) and "
                f"`teacher_kd_temperature` ({self.teacher_kd_temperature}) fix both sides, so it would have no "
                "effect. Leave one of them unset."
            )
        if self.kd_temperature_schedule != "constant" and rule not in FROM_TAU:
            raise UsageError(
                f"`kd_temperature_schedule` is {self.kd_temperature_schedule!r}, but `kd_temperature_rule` {rule!r} "
                f"finds its own temperatures, so it would have no effect. Leave one of them unset, or use "
                f"{' or '.join(FROM_TAU)}, which start from tau."
            )

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
