# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The temperatures of a batch: the schedule, the sides that are fixed, and the rule that gives each token its own."""

import math
from collections import deque
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..temperature import scheduled_temperature, temperatures
from ..temperature_rules import HIGHEST, LOWEST, ROW_RULES, curriculum, parameters, sigmoid, token_adaptive
from .objective import Reduce
from .tokens import Tokens


QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
# Of so many batches the temperatures of tokens are kept until they are logged
LAST_BATCHES = 256


class TemperatureState:
    """
    What the temperatures of a run depend on, and what is to be seen of them.

    Args:
        options (`KDConfig`): the configuration.
        accelerator ([`~accelerate.Accelerator`]): of the trainer, to compare tokens over its processes.
    """

    def __init__(self, options: Any, accelerator: Accelerator):
        self._options, self._accelerator = options, accelerator
        self.rule: str | None = options.kd_temperature_rule
        self.kwargs: dict[str, Any] = dict(options.kd_temperature_rule_kwargs or {})
        self.tau = float(options.kd_temperature)
        self.state: dict[str, Any] = {}
        if self.rule == "curriculum":
            self.kwargs = {**parameters("curriculum"), **self.kwargs}
            self.state = {"theta": self.kwargs["start"]}
        self._sums: Tensor | float = 0.0  # of the derivative by tau, and the number of tokens
        self._seen: dict[str, deque[Tensor]] = {mode: deque(maxlen=LAST_BATCHES) for mode in ("train", "eval")}

    @property
    def _by_token(self) -> bool:
        return self.rule in ROW_RULES or self.rule == "token_adaptive"

    @property
    def sides(self) -> str:
        """Whose temperature the rule decides: a side with one of its own keeps it."""
        if self._options.student_kd_temperature is not None:
            return "teacher"
        return "both" if self._options.teacher_kd_temperature is None else "student"

    def begin(self, progress: float) -> None:
        """Take the temperatures of this point of the training."""
        options = self._options
        self.tau = scheduled_temperature(
            options.kd_temperature_schedule, options.kd_temperature, options.kd_temperature_final, progress
        )
        if self.rule == "curriculum":
            self.tau = min(max(curriculum(self.state["theta"], **self.kwargs), LOWEST), HIGHEST)

    def pair(self) -> tuple[float, float]:
        """The temperatures of student and teacher that are asked for."""
        return temperatures(self.tau, self._options.student_kd_temperature, self._options.teacher_kd_temperature)

    @property
    def needed(self) -> tuple[str, ...]:
        """Metrics of the tokens that their temperatures depend on."""
        return ("hellinger",) if self.rule == "token_adaptive" else ()

    def arguments(self, tokens: Tokens) -> dict[str, Any]:
        """Keyword arguments of `chunked_kd_loss`; what is [`needed`] has been measured."""
        tau_s, tau_t = self.pair()
        asked: dict[str, Any] = {"student_temperature": tau_s, "teacher_temperature": tau_t}
        if self.rule in ROW_RULES:
            rule = {"temperature_rule": self.rule, "temperature_rule_kwargs": self.kwargs}
            return {**asked, **rule, "temperature_rule_sides": self.sides}
        if self.rule != "token_adaptive":
            return asked
        new_s, new_t, weight = self._adapted(tokens.kept, tokens.measured["hellinger"], tau_s, tau_t)
        if self.sides != "teacher":
            asked["student_temperature"] = new_s
        if self.sides != "student":
            asked["teacher_temperature"] = new_t
        return {**asked, "kd_weight": weight}

    def _adapted(self, kept: Tensor, distance: Tensor, tau_s: float, tau_t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token, compared with those of all processes."""
        padded = torch.where(kept, distance, -1.0)
        accelerator = self._accelerator
        everywhere, start = padded, 0
        if accelerator.num_processes > 1:
            padded = accelerator.pad_across_processes(padded, pad_index=-1)
            everywhere, start = accelerator.gather(padded), accelerator.process_index * len(padded)
        there = everywhere >= 0
        asked = (torch.full_like(everywhere[there], tau) for tau in (tau_s, tau_t))
        results = token_adaptive(everywhere[there], *asked, **self.kwargs)
        full = [everywhere.new_ones(len(everywhere)).masked_scatter(there, value) for value in results]
        new_s, new_t, weight = (value[start : start + len(kept)] for value in full)
        return new_s.clamp(LOWEST, HIGHEST), new_t.clamp(LOWEST, HIGHEST), weight

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the loss that the state is changed by."""
        sides = {"student": ("student",), "teacher": ("teacher",), "both": ("student", "teacher")}[self.sides]
        return tuple(f"{side}_tau_grad" for side in sides) if self.rule == "curriculum" else ()

    def observe(self, metrics: dict[str, Tensor], weight: Tensor | float, kept: Tensor) -> None:
        """Take note of the derivatives that [`metrics`] names; `weight` is the factor on each token's divergence."""
        by_tau = torch.stack([metrics[name] * weight for name in self.metrics]).double().sum()
        self._sums = self._sums + torch.stack([by_tau, kept.sum().double()])

    def see(self, mode: str, student: Tensor | float, teacher: Tensor | float, kept: Tensor) -> None:
        """Take note of the temperatures of a batch that is logged, where they differ from token to token."""
        if self._by_token:
            columns = [torch.as_tensor(t, device=kept.device).float().expand(len(kept)) for t in (student, teacher)]
            self._seen[mode].append(torch.stack([torch.where(kept, column, -1.0) for column in columns], 1))

    def reset(self, mode: str) -> None:
        """Forget what a training or an evaluation that was interrupted has left."""
        self._seen[mode].clear()
        if mode == "train":
            self._sums = 0.0

    def step(self, reduce: Reduce, progress: float) -> None:
        """Change the state at the end of an optimizer step. Every process must call."""
        if self.rule != "curriculum":
            return
        assert isinstance(self._sums, Tensor)
        total, count = reduce(self._sums).tolist()
        self._sums = 0.0
        part = sigmoid(self.state["theta"])
        by_theta = total / max(count, 1) * self.kwargs["span"] * part * (1 - part)
        reversal = -(1 - math.cos(math.pi * progress)) / 2
        self.state["theta"] -= self.kwargs["learning_rate"] * reversal * by_theta

    def logs(self, mode: str) -> dict[str, float]:
        """The temperature, of each side where they differ; mean and quantiles where tokens differ. All must call."""
        student, teacher = self.pair()
        if not self._by_token:
            return _named(student, teacher, student == teacher)
        if not self._seen[mode]:
            return {}
        seen = torch.cat(list(self._seen[mode]))
        self._seen[mode].clear()
        if self._accelerator.num_processes > 1:
            seen = self._accelerator.gather(self._accelerator.pad_across_processes(seen, pad_index=-1))
        taus = seen[seen[:, 0] > 0]
        if not len(taus):
            return {}
        same = bool((taus[:, 0] == taus[:, 1]).all())
        student, teacher = taus.mean(0).tolist()
        logs = _named(student, teacher, same)
        ordered = taus.sort(0).values  # quantile() has a limit of 2^24 values
        for suffix, share in QUANTILES.items():
            student, teacher = ordered[round(share * (len(ordered) - 1))].tolist()
            logs |= {f"{name}_{suffix}": value for name, value in _named(student, teacher, same).items()}
        return logs


def _named(student: float, teacher: float, same: bool) -> dict[str, float]:
    if same:
        return {"kd_temperature": student}
    return {"student_kd_temperature": student, "teacher_kd_temperature": teacher}
