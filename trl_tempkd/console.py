# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a training says in the terminal: what it is about to do, how far it is, what came of it and what is next."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .data.files import files_of
from .processes import VERBOSITY
from .teachers import STUDENTS


if TYPE_CHECKING:
    from .trainer import TemperatureKDTrainer


def is_quiet() -> bool:
    return os.environ.get(VERBOSITY) == "quiet"


def is_verbose() -> bool:
    return os.environ.get(VERBOSITY) == "verbose"


def set_verbosity() -> None:
    """Have the libraries say as much as was asked for: by default what they warn of, with `--quiet` errors alone."""
    import datasets
    import transformers

    level = logging.ERROR if is_quiet() else logging.INFO if is_verbose() else logging.WARNING
    for library in (transformers, datasets):
        library.utils.logging.set_verbosity(level)
    for name in ("accelerate", "trl", "trl_tempkd"):
        logging.getLogger(name).setLevel(level)
    if is_quiet():
        datasets.disable_progress_bars()


class Bar(ProgressCallback):
    """One bar with the time that is left, the loss and KL at tau 1, in the place of a line for each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs is not None and "loss" in logs:
            shown = {name: f"{logs[name]:.4g}" for name in ("loss", "kl_tau1") if name in logs}
            self.training_bar.set_postfix(shown)


class Lines(TrainerCallback):
    """A line for each step that is logged, for a file: how far it is, when it will be done, and the numbers."""

    started, first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_local_process_zero or logs is None:
            return
        done, left = state.global_step - self.first, state.max_steps - state.global_step
        eta = ""
        if "loss" in logs and done and left > 0:
            eta = f", {timedelta(seconds=round((time.monotonic() - self.started) / done * left))} left"
        numbers = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in logs.items()}
        numbers.pop("total_flos", None)
        print(f"step {state.global_step}/{state.max_steps}{eta}: {numbers}", flush=True)


def set_progress(trainer: "TemperatureKDTrainer") -> None:
    """Show how far a training is: by a bar in a terminal, by lines elsewhere, and not at all with `--quiet`."""
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    if not is_quiet():
        bar = sys.stderr.isatty() and not trainer.args.disable_tqdm
        trainer.add_callback(Bar() if bar else Lines())


def header(trainer: "TemperatureKDTrainer", named: Mapping[str, str | None]) -> str:
    """
    What is about to be trained, a line for each: student, teacher, data, objective, and where it goes.

    Args:
        trainer ([`TemperatureKDTrainer`]): it.
        named (`Mapping[str, str]`): how the user calls the `student`, the `teacher` and the `data`.
    """
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    sizes = [(_size(parameter), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    some = "" if trained == total else f", of which {_count(trained)} are trained"
    rows = _rows(trainer.train_dataset)
    held_out = "" if trainer.eval_dataset is None else f", {_rows(trainer.eval_dataset)} held out"
    lines = {
        "student": f"{named['student']}: {_count(total)} parameters{some}",
        "teacher": named["teacher"] or trainer.teacher.source,
        "data": f"{named['data']}: {rows} rows{held_out}",
        "objective": f"{args.describe()}, on {args.text}",
        "output": str(args.output_dir),
    }
    return "\n".join(f"{name + ':':<11}{line}" for name, line in lines.items())


def ending(
    trainer: "TemperatureKDTrainer", named: Mapping[str, str | None], metrics: Mapping[str, float] | None
) -> str:
    """
    What came of a training, and the command that looks at it. Arguments as in [`header`].

    Args:
        metrics (`Mapping`, *optional*): those of the evaluation, if there was one.
    """
    lines = []
    logged = [entry for entry in trainer.state.log_history if "loss" in entry and "kl_tau1" in entry]
    if len(logged) > 1:
        first, last = logged[0], logged[-1]
        lines.append(
            f"KL at tau 1 from the teacher {first['kl_tau1']:.4g} -> {last['kl_tau1']:.4g} nats a token, agreement "
            f"{first['token_agreement']:.1%} -> {last['token_agreement']:.1%} ({_text(trainer)}, steps "
            f"{first['step']} and {last['step']})"
        )
    held_out = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
    if "kl_tau1" in held_out:
        lines.append(
            f"On held-out text: KL at tau 1 {held_out['kl_tau1']:.4g} nats a token, agreement "
            f"{held_out['token_agreement']:.1%}"
        )
    lines.append(f"Model saved to {trainer.args.output_dir}. {_next(trainer, named)}")
    return "\n".join(lines)


def _next(trainer: "TemperatureKDTrainer", named: Mapping[str, str | None]) -> str:
    """The command that evaluates what was trained, with all that it has to be told of the teacher and of the rows."""
    args, (script_args, _, mixture) = trainer.args, trainer.parts
    options: dict[str, Any] = {"model_name_or_path": args.output_dir}
    # A model that another command could load, and whose tokens it could compare
    if named["teacher"] not in (None, *STUDENTS) and args.vocabulary_alignment is None:
        options["teacher_model_name_or_path"] = named["teacher"]
        options["teacher_model_revision"] = args.teacher_model_revision
    options["trust_remote_code"] = "true" if args.trust_remote_code else None
    options["dataset_name"] = "DATA" if mixture.datasets else script_args.dataset_name
    options["dataset_config"] = script_args.dataset_config
    split = script_args.dataset_test_split
    options["dataset_test_split"] = split if split != "test" and not mixture.datasets else None
    options["output_dir"] = os.path.join(str(args.output_dir), "evaluation")
    flags = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None)
    # What `generate` notes in its folder are no rows
    files = [file for file in files_of(script_args.dataset_name) if not file.name.startswith("_")]
    unseen = ""
    if mixture.datasets or len(files) == 1:  # one file has no rows that are held out
        unseen = f", with rows that it wasn't trained on in the place of {options['dataset_name']}"
    return f"Next{unseen}: trl-tempkd evaluate {flags}"


def _text(trainer: "TemperatureKDTrainer") -> str:
    """Whose text the logged steps were on: numbers of the data's and of the student's own can't be compared."""
    args = trainer.args
    given = "the teacher's text" if args.seq_kd else "training text"
    if args.lmbda_schedule != "constant" or 0 < args.lmbda < 1:
        return f"{given} and the student's own, mixed"
    return "the student's own text" if args.lmbda else given


def _size(parameter: torch.Tensor) -> int:
    """Under ZeRO-3 a parameter that isn't gathered is empty, and knows its size."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _count(number: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)


def _rows(dataset: Any) -> str:
    if isinstance(dataset, Mapping):
        return " + ".join(map(_rows, dataset.values()))
    return f"{len(dataset):,}" if hasattr(dataset, "__len__") else "a stream of"
