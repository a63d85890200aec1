# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What follows an optimizer step, and which are logged: those of `logging_steps`, and the last one in any case."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .errors import UsageError


def is_logged(args: TrainingArguments, state: TrainerState) -> bool:
    """
    Whether the step that is being computed is logged, and its metrics are wanted.

    A run that a callback stops early is not known to end before its last step is over, so that step has no metrics
    unless its turn had come.
    """
    step = state.global_step + 1
    if args.logging_strategy != "steps":  # of an epoch, the mean over all of its steps
        return args.logging_strategy == "epoch" or (step == 1 and args.logging_first_step)
    if step == 1 and args.logging_first_step:
        return True
    return step % state.logging_steps == 0 or step >= state.max_steps


class AfterStep(TrainerCallback):
    """
    Calls something after each optimizer step, before it is logged, evaluated or saved.

    Args:
        act (`Callable`):
            It. Every process calls.
    """

    def __init__(self, act: Callable[[], None]):
        self.act = act

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.act()


class LastStep(TrainerCallback):
    """Has the last step logged, whatever `logging_steps` says, and refuses a training without any step."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.logging_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_log = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0 and state.max_steps > 0:
            raise UsageError(
                "Nothing was trained on: the data gave no batch. A stream may have no rows, or none with a token left "
                f"to train on after `max_length` {getattr(args, 'max_length', None)}; and `dataloader_drop_last` "
                "leaves out a batch that isn't full."
            )
