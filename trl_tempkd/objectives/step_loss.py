# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The loss of a step: divergence, temperature and weight of each token, and the states that they depend on."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..errors import UsageError
from ..files import write_atomically
from ..heads import Head, NoHead
from ..losses import Logits, Pooled, Truncated, chunked_kd_loss, measure_tokens
from .objective import Objective
from .outside import METRIC, MassOutside
from .temperatures import TemperatureState
from .tokens import Tokens


_FILE = "objective.json"
_OBJECTIVE = "method"  # as the file of a checkpoint has called its state from the first


class BatchLoss(NamedTuple):
    """
    Output of [`StepLoss`], for a batch.

    Attributes:
        loss (`torch.Tensor`): scalar, differentiable.
        per_token (`torch.Tensor` or `None`): shape `(N,)`, each token's part of the loss, where metrics are asked for.
        metrics (`dict` or `None`): those of `chunked_kd_loss`.
    """

    loss: Tensor
    per_token: Tensor | None
    metrics: dict[str, Tensor] | None


class StepLoss:
    """
    The loss of an optimizer step, a batch at a time: an objective at its temperatures, whose states follow after it.

    Args:
        options (`KDConfig`): the configuration.
        accelerator ([`~accelerate.Accelerator`]): of the trainer.
        metrics (`tuple[str, ...]`): what the teacher can be measured by, to be logged.
        objective ([`Objective`]): what is minimised.
    """

    def __init__(self, options: Any, accelerator: Accelerator, metrics: tuple[str, ...], objective: Objective):
        self._options, self._accelerator = options, accelerator
        self._metrics, self.objective = metrics, objective
        self.temperatures = TemperatureState(options, accelerator)
        self._outside = MassOutside()

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        teacher_rows: Tensor | Logits | Truncated | Pooled,
        teacher_head: Head | NoHead,
        targets: Tensor,
        normalizer: float | Tensor | None,
        *,
        logged: bool,
        training: bool,
        on_policy: bool = False,
    ) -> BatchLoss:
        """
        Args:
            hidden (`torch.Tensor` of shape `(N, H)`): last hidden states of the student.
            head ([`Head`]): the student's head, whole.
            teacher_rows, teacher_head: what [`~trl_tempkd.teachers.Teacher`] gives.
            targets (`torch.Tensor` of shape `(B, L)`): the token that each position predicts, -100 where none counts.
            normalizer (`float` or `torch.Tensor`, *optional*): what the sum over tokens is divided by.
            logged (`bool`): whether to compute metrics.
            training (`bool`): whether the states follow.
            on_policy (`bool`): whether the student has written the completions.

        Returns:
            [`BatchLoss`]
        """
        options = self._options
        operands: dict[str, Any] = {
            "student_hidden": hidden,
            "teacher_hidden": teacher_rows,
            **head.arguments("student"),
            **teacher_head.arguments("teacher"),
            "labels": targets.flatten(),
            "chunk_size": options.kd_chunk_size,
        }
        needed = (*self.objective.needed(on_policy), *self.temperatures.needed)
        measured = measure_tokens(**operands, metrics=needed) if needed else None
        tokens = Tokens(targets, on_policy, {} if measured is None else measured.metrics)
        arguments = self.objective.arguments(tokens)
        taus = self.temperatures.arguments(tokens)
        if "kd_weight" in arguments:
            taus["kd_weight"] = taus.get("kd_weight", 1.0) * arguments.pop("kd_weight")
        if "ce_weight" in arguments:  # a part of the objective, not of the cross-entropy with the labels
            arguments["ce_weight"] = options.kd_ratio * arguments["ce_weight"]
        own = self.temperatures.metrics if training else ()
        by_token = ("student_tau", "teacher_tau") if "temperature_rule" in taus else ()
        names = tuple(name for name in (*self._metrics, *by_token) if logged) + own
        out = chunked_kd_loss(
            **operands,
            **arguments,
            **taus,
            rescale=options.kd_temperature_rescale,
            kd_ratio=options.kd_ratio,
            normalizer=normalizer,
            metrics=names,
            measured=measured,
        )
        kd_share = options.kd_ratio * taus.get("kd_weight", 1.0)
        if training:
            self._observe(tokens, out, kd_share)
        if not logged:
            return BatchLoss(out.loss, None, None)
        metrics = out.metrics
        if training and METRIC in metrics:
            self._outside.see(metrics[METRIC], tokens.kept)
        student, teacher = (metrics.get(f"{side}_tau", taus[f"{side}_temperature"]) for side in ("student", "teacher"))
        self.temperatures.see("train" if training else "eval", student, teacher, tokens.kept)
        ce_share = 1 - options.kd_ratio + arguments.get("ce_weight", 0.0)
        return BatchLoss(out.loss, kd_share * out.per_token + ce_share * metrics["ce"], metrics)

    def _observe(self, tokens: Tokens, out: Any, kd_share: Any) -> None:
        self.objective.observe(tokens, out.per_token)
        if self.temperatures.metrics:
            self.temperatures.observe(out.metrics, kd_share, tokens.kept)

    def reset(self, mode: str) -> None:
        """Forget what a `train` or an `eval` that was interrupted has left, but not the states."""
        self.temperatures.reset(mode)
        if mode == "train":
            self.objective.reset()

    def begin(self, progress: float) -> None:
        """Take the temperatures of this point of the training, `progress` being the share that lies behind."""
        self.temperatures.begin(progress)

    def step(self, progress: float) -> None:
        """Change the states at the end of an optimizer step. Every process must call."""
        reduce = partial(self._accelerator.reduce, reduction="sum")
        self.temperatures.step(reduce, progress)
        self.objective.step(reduce, progress)

    def logs(self, mode: str) -> dict[str, float]:
        """Temperatures and states. Every process must call."""
        return {**self.temperatures.logs(mode), **self.objective.logs()}

    def _states(self) -> dict[str, dict[str, Any]]:
        states = {"temperature": self.temperatures.state, _OBJECTIVE: self.objective.state}
        return {name: state for name, state in states.items() if state}

    def save(self, folder: str) -> None:
        """Write what a resume needs into a checkpoint: the same on every process, so the main one writes."""
        if not self._states() or not self._accelerator.is_main_process:
            return
        write_atomically(Path(folder, _FILE), json.dumps(self._states()))

    def load(self, folder: str) -> None:
        """
        Go on from a checkpoint.

        Raises:
            `ValueError`: If the checkpoint is of another objective, or has none of the states.
        """
        if not self._states():
            return
        path = Path(folder, _FILE)
        found = None
        if self._accelerator.is_main_process and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
        (found,) = broadcast_object_list([found])
        for name, state in self._states().items():
            if set((found or {}).get(name, {})) != set(state):
                of = "objective" if name == _OBJECTIVE else name
                raise UsageError(
                    f"{path} has no state for the run's {of} ({', '.join(state)}): the checkpoint in {folder} is of "
                    "another objective. Resume with the options that it was made with, or start anew."
                )
            state.update(found[name])
