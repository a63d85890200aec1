# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The measures live, while a student trains."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback

from ...errors import UsageError
from ...files import write_atomically
from ...objectives import OBJECTIVES, token_divergence
from ...trainer import TemperatureKDTrainer
from .logits import COLUMNS, NONE, Plan, rows_of
from .models import Batch, collect, diagnose


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Write rows as a CSV file that is there in full or not at all."""
    write_atomically(path, pd.DataFrame(rows, columns=list(columns)).to_csv(index=False))


class DiagnosticsCallback(TrainerCallback):
    """
    Measures while a student trains, at the start, every so many optimizer steps and at the end, always on the same few
    rows of the `eval_dataset` (of the `train_dataset` if there is none). The table, with a column `step`, is
    `diagnostics.csv` in the `output_dir`; a run that is resumed goes on with it. `clip_rate` is here the share of the
    logged gradient norms since the last measurement that exceed `max_grad_norm`, with their number as `tokens`.

    Args:
        trainer ([`TemperatureKDTrainer`]):
            The trainer.
        steps (`int`, *optional*):
            Optimizer steps between two measurements, by default `kd_diagnostics_steps` of its configuration.
        plan ([`Plan`], *optional*):
            What to measure, by default the trainer's divergence and both KLs at tau 1 and the trainer's tau.
        num_rows (`int`, *optional*, defaults to `16`):
            Number of rows.

    Example:

    ```python
    >>> trainer.add_callback(DiagnosticsCallback(trainer, steps=50))
    ```
    """

    def __init__(
        self,
        trainer: TemperatureKDTrainer,
        steps: int | None = None,
        plan: Plan | None = None,
        num_rows: int = 16,
    ):
        args = trainer.args
        steps = args.kd_diagnostics_steps if steps is None else steps
        if steps is None or steps < 1:
            raise UsageError(f"`steps` must be at least 1, got {steps}. Set it, or `kd_diagnostics_steps`.")
        divergence = token_divergence(args.divergence)
        names = list(dict.fromkeys([divergence, "forward_kl", "reverse_kl"]))
        own = (args.kd_temperature, args.kd_temperature_final, args.teacher_kd_temperature)
        taus = sorted({1.0, *(tau for tau in own if tau is not None)})
        assert not isinstance(args.divergence_kwargs, str)
        # An objective's parameters are its own, not those of its kernel
        kwargs = {} if args.divergence in OBJECTIVES else {divergence: args.divergence_kwargs or {}}
        self.plan = Plan(names, taus, kwargs=kwargs) if plan is None else plan
        self.trainer, self.steps, self.num_rows = trainer, steps, num_rows
        self.path = Path(str(args.output_dir)) / "diagnostics.csv"
        self._batches: list[Batch] = []
        self._norms: list[float] = []
        self._table: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._table = []
        if state.global_step and self.path.exists():
            table = pd.read_csv(self.path)
            self._table = table[table["step"] <= state.global_step].to_dict("records")
        dataset = self.trainer.eval_dataset or self.trainer.train_dataset
        dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
        self._batches = collect(self.trainer, dataset, self.num_rows)
        self._measure(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self._measure(args, state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in (logs or {}):
            self._norms.append(logs["grad_norm"])

    def on_train_end(self, args, state, control, **kwargs):
        self._measure(args, state)

    def _measure(self, args, state) -> None:
        last = max((row["step"] for row in self._table), default=-1)
        if last >= state.global_step:
            return
        rows = diagnose(self.trainer, self._batches, self.plan)
        if self._norms:
            rate = sum(norm > args.max_grad_norm > 0 for norm in self._norms) / len(self._norms)
            cell = (args.divergence, NONE, self.trainer.step_loss.temperatures.tau)
            rows += rows_of(cell, "clip_rate", {args.kd_temperature_rescale: rate}, len(self._norms))
            self._norms.clear()
        self._table += [{"step": state.global_step, **row} for row in rows]
        if state.is_world_process_zero:
            write_table(self.path, self._table, ["step", *COLUMNS])


def watch(trainer: TemperatureKDTrainer) -> None:
    """Measure live, where `kd_diagnostics_steps` asks for it."""
    if trainer.args.kd_diagnostics_steps is not None:
        trainer.add_callback(DiagnosticsCallback(trainer))
