# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The options of what a run minimises: divergence, temperature, and the rule that gives each token its own."""

import math
from dataclasses import dataclass
from typing import Any

from ..divergences import DIVERGENCES
from ..errors import UsageError
from ..option_groups import OptionGroup, must, named, option
from ..temperature import RESCALES, SCHEDULES
from ..temperature_rules import FROM_TAU, TEMPERATURE_RULES, check_temperature_rule
from . import OBJECTIVES, check_objective


@dataclass
class DivergenceOptions(OptionGroup):
    """Parameters that control the divergence."""

    divergence: str = option(
        "forward_kl",
        "What the student minimises: a divergence, in nats, 0 exactly when the student equals the teacher, one of "
        f"{named(DIVERGENCES)}; or an objective that needs more than two distributions: "
        f"{named(name for name in OBJECTIVES if name not in DIVERGENCES)}. Or one of your own: in Python a function "
        "that `register_divergence` would take, on the command line a name that a file of `--import` registers.",
    )
    divergence_kwargs: dict[str, Any] | str | None = option(
        None,
        'Parameters of the divergence, e.g. `{"beta": 0.1}` for `jsd`. Those left out keep their defaults.',
    )
    kd_ratio: float = option(
        1.0,
        "The loss is `kd_ratio * KD + (1 - kd_ratio) * CE`, with `kd_ratio` in [0, 1]. The cross-entropy with the "
        "labels is always at temperature 1.",
    )

    def check(self) -> None:
        must(self, "kd_ratio", 0 <= self.kd_ratio <= 1, "in [0, 1]")
        assert not isinstance(self.divergence_kwargs, str)
        check_objective(self.divergence, self.divergence_kwargs)
        self._check_several()
        objective = OBJECTIVES.get(self.divergence)
        if objective is None or not objective.needs_student_text:
            return
        if not self.lmbda and self.lmbda_schedule == "constant":
            raise UsageError(
                f"`divergence` {self.divergence} is about completions that the student writes itself, and `lmbda` is "
                f"{self.lmbda}, so there are none. Set the share of the steps that have them, e.g. `lmbda` "
                f"{1.0 if self.divergence == 'minillm' else 0.5}."
            )

    def _check_several(self) -> None:
        own = [spec.get("divergence") for spec in self.teachers or [] if isinstance(spec, dict)]
        for name in [self.divergence, *own] if self.teachers is not None else []:
            if name in OBJECTIVES:
                plain = ", ".join(each for each in DIVERGENCES if each not in OBJECTIVES)
                raise UsageError(
                    f"`divergence` is {name} with `teachers`, and an objective that needs more than two distributions "
                    f"has one teacher. Use one of {plain}."
                )


@dataclass
class TemperatureOptions(OptionGroup):
    """Parameters that control the temperature."""

    kd_temperature: float = option(
        2.0,
        "Temperature tau of the divergence: the logits of both student and teacher are divided by it. It is not a "
        "sampling temperature.",
    )
    student_kd_temperature: float | None = option(
        None,
        "Temperature of the student alone, in place of `kd_temperature`. 1 softens the teacher only, which changes "
        "the optimum: the student then learns the softened teacher itself.",
    )
    teacher_kd_temperature: float | None = option(
        None, "Temperature of the teacher alone, in place of `kd_temperature`."
    )
    kd_temperature_rescale: str = option(
        "tau2",
        "Factor on the divergence: `none` (1), `tau` or `tau2`, with the product of both sides in place of tau² if "
        "they differ. `tau2` keeps the size of the gradient about the same for every tau, which matters when "
        "cross-entropy is mixed in or gradients are clipped.",
        choices=list(RESCALES),
    )
    kd_temperature_schedule: str = option(
        "constant",
        "How tau goes from `kd_temperature` to `kd_temperature_final` over the training steps: "
        f"{named(SCHEDULES)}. A side with its own temperature keeps it.",
        choices=list(SCHEDULES),
    )
    kd_temperature_final: float | None = option(
        None, "Value of tau at the end of training. Required by every schedule but `constant`."
    )
    kd_temperature_rule: str | None = option(
        None,
        f"A rule that gives each token a temperature of its own: {named(TEMPERATURE_RULES)}. Those that start from "
        f"`kd_temperature` are {named(FROM_TAU)}, the others find their own. A side with its own temperature keeps "
        "it.",
        choices=TEMPERATURE_RULES,  # those that are registered later too
    )
    kd_temperature_rule_kwargs: dict[str, Any] | str | None = option(
        None,
        'Parameters of the rule, e.g. `{"share": 0.4}` for `target_entropy`.',
    )

    def check(self) -> None:
        for name in ("kd_temperature", "student_kd_temperature", "teacher_kd_temperature", "kd_temperature_final"):
            tau = getattr(self, name)
            if tau is not None and not (tau > 0 and math.isfinite(tau)):
                raise UsageError(
                    f"`{name}` must be positive and finite, got {tau}. For a nearly greedy teacher use a small "
                    "temperature such as 0.1."
                )
        for name, known in (("kd_temperature_rescale", RESCALES), ("kd_temperature_schedule", SCHEDULES)):
            must(self, name, getattr(self, name) in known, f"one of {', '.join(known)}")
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
        self._check_rule()

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
