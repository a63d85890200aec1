# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The trainer's part that writes checkpoints and goes on from them."""

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from trl import SFTTrainer

from ..errors import UsageError
from ..objectives import StepLoss
from ..rollouts import Rollouts
from ..teachers import Teacher
from ..trackers import Trackers
from .description import compare, describe
from .whole import (
    STATE,
    WRITING,
    clear,
    find_checkpoint,
    problem_of,
    publish,
    record_of,
    rotate,
    said,
    written_under,
)


logger = get_logger(__name__)


class ResumingTrainer(SFTTrainer):
    """
    An [`~trl.SFTTrainer`] whose checkpoints appear whole, say what run they are of, and are resumed only if they are
    whole and of this run. A run that has reached its last step isn't trained on.
    """

    args: Any
    step_loss: StepLoss
    rollouts: Rollouts
    teacher: Teacher
    trackers: Trackers
    _description: dict[str, Any]  # what `describe` says, on the main process
    _aside: Path | None = None  # where the checkpoint that is being written is

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        Train, as in [`~transformers.Trainer`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder, or `True` for the newest one in `output_dir` that is whole; `"auto"` is the
                same, and starts from the beginning where there is none.

        Raises:
            [`UsageError`]: If the checkpoint isn't whole, or none is, or it is of another run.
        """
        return super().train(self._agreed(resume_from_checkpoint), *args, **kwargs)

    def _agreed(self, resume: str | bool | None) -> str | None:
        """The checkpoint to go on from. The main process looks, so that all go on from the same one, or stop."""
        found: list[Any] = [None, None, []]
        if self.accelerator.is_main_process:
            try:
                clear(Path(str(self.args.output_dir)))
                self._description = describe(self)
                found[0], found[2] = self._chosen(resume)
                record = {} if found[0] is None else record_of(Path(found[0])) or {}
                self.trackers.go_on(record.get("trackers", {}), record.get("step", 0))
            except UsageError as error:
                found[1] = str(error)
        checkpoint, refusal, warnings = broadcast_object_list(found)
        if refusal is not None:
            raise UsageError(refusal)
        for warning in warnings:
            logger.warning(warning)
        return checkpoint

    def _chosen(self, resume: str | bool | None) -> tuple[str | None, list[str]]:
        """The checkpoint and what there is to say of it."""
        checkpoint, passed_over = find_checkpoint(resume, str(self.args.output_dir))
        if checkpoint is None:
            if resume is True:
                raise UsageError(
                    f"`resume_from_checkpoint` is True, and there is no checkpoint in {self.args.output_dir}."
                )
            return None, []
        fallback = f"Resuming from {checkpoint}. Newer ones aren't whole: {said(passed_over)}."
        return checkpoint, [*([fallback] if passed_over else []), *self._compared(Path(checkpoint))]

    def _compared(self, checkpoint: Path) -> list[str]:
        """What is to be said of a checkpoint beside this run."""
        mine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else "one process or DDP"
        under = written_under(checkpoint)
        if under != mine and not (under is None and mine == "one process or DDP"):
            raise UsageError(
                f"{checkpoint} was written {f'under {under}' if under else 'with `save_only_model`'}, and what a run "
                f"under {mine} goes on from isn't in it. Resume as it was made, or start anew with it as the student."
            )
        parts = (record_of(checkpoint) or {}).get("run", {}).get("processes")
        plugin, now = self.accelerator.state.deepspeed_plugin, self.accelerator.num_processes
        insisting = self.args.resume_with_changes  # with DeepSpeed's universal checkpoints it can
        if plugin is not None and plugin.zero_stage and parts not in (None, now) and not insisting:
            raise UsageError(
                f"{checkpoint} has the optimizer in parts of {parts} processes, which DeepSpeed can't divide among "
                f"{now}. Resume with {parts} processes, or start anew with it as the student."
            )
        return compare(checkpoint, self._description, self.args.resume_with_changes)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_renamed(resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_renamed(self.state.best_model_checkpoint, self.model)

    def _load_renamed(self, folder: str, model: Any) -> None:
        """
        Load what transformers has written under other names than the model's own, as those of older checkpoints of
        models that see and of mixtures of experts. Its trainer passes over such a parameter without a word.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return
        if not names_in(Path(folder)) - set(model.state_dict()):
            return
        written = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(written.state_dict())

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume: str | None, trial: Any
    ) -> tuple[int, int]:
        # The epoch to go on in, and how many of its batches lie behind
        place = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if resume is None:
            return place
        self._check_best()
        step = self.state.global_step
        if step > max_steps and not self.args.resume_with_changes:
            option = "max_steps" if self.args.max_steps > 0 else "num_train_epochs"
            raise UsageError(
                f"{resume} is at step {step}, and with `{option}` {getattr(self.args, option)} the run has only "
                f"{max_steps}. Resume an earlier checkpoint, raise `{option}`, or set `resume_with_changes` to take "
                "what is there."
            )
        if step >= max_steps:  # transformers would begin the epoch and train one more step
            return num_train_epochs, 0
        whole = written_under(Path(resume)) is not None
        model_alone = f"{resume} has nothing but the model (it was written with `save_only_model`)"
        if not whole and not self.args.resume_with_changes:
            raise UsageError(
                f"{model_alone}, and the run has {max_steps - step} steps left. Start anew with it as the student, or "
                "set `resume_with_changes` to go on with a new optimizer and a new schedule of the learning rate."
            )
        if not whole:
            logger.warning(f"{model_alone}: the optimizer and the schedule of the learning rate start anew.")
        if num_train_epochs == sys.maxsize and not self.args.ignore_data_skip:
            return self._place_in_stream(TrainerState.load_from_json(str(Path(resume, STATE))))
        return place

    def _check_best(self) -> None:
        best = self.state.best_model_checkpoint
        (problem,) = broadcast_object_list([best and problem_of(best)])
        if problem is not None:
            logger.warning(f"The best checkpoint {best} isn't whole, so it no longer counts as the best: {problem}.")
            self.state.best_model_checkpoint = None

    def _place_in_stream(self, saved: TrainerState) -> tuple[int, int]:
        # Transformers takes a data set without a length for one long epoch, and looks for the place in its first pass
        passes, share = divmod(saved.epoch or 0.0, 1)
        steps = round(share * saved.max_steps)
        if passes and not steps:  # the last step of all, in the first pass
            passes, steps = passes - 1, saved.max_steps
        return int(passes), steps * self.args.gradient_accumulation_steps

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        if self.trained_steps == 0:
            # Transformers divides the sum of the losses by 0.001 then. The mean of what the run has logged is its loss
            self._total_loss_scalar = 0.001 * _mean_loss(self.state)
        # With a limit of 1 transformers would delete the last checkpoint for the best one, and a job that is started
        # again would train what comes after that once more
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    @property
    def trained_steps(self) -> int:
        """How many optimizer steps the last call of `train` has made: none, if the run was finished before."""
        return self.state.global_step - self._initial_global_step

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        if self.accelerator.is_local_main_process:
            clear(run_dir)
        self.accelerator.wait_for_everyone()
        self._aside = run_dir / WRITING
        try:
            super()._save_checkpoint(model, trial)
            self._set_best(run_dir, name, self._aside / name)
        finally:
            written, self._aside = self._aside / name, None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            record = {"step": self.state.global_step, **self._description, "trackers": self.trackers.running()}
            publish(written, run_dir / name, record)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process and written.is_dir():  # a machine with a file system of its own
            written.rename(run_dir / name)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run_dir, self.args.save_total_limit, [Path(name), *([Path(best)] if best else [])])

    def _save_before_step(self) -> None:
        """Write a checkpoint of what was before the optimizer step that has begun, and can't be finished."""
        self.rollouts.rewind(self.state.global_step)
        self._save_checkpoint(self.model, None)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # only once the checkpoint has its name
            super()._push_from_checkpoint(checkpoint_folder)

    def _set_best(self, run_dir: Path, name: str, written: Path) -> None:
        # Transformers has looked for the best checkpoint where the new one is being written
        best = self.state.best_global_step and f"checkpoint-{self.state.best_global_step}"
        if not best:
            return
        if best == name or (run_dir / best).is_dir():
            self.state.best_model_checkpoint = str(run_dir / best)
        if self.args.should_save:
            self.state.save_to_json(str(written / STATE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.rollouts.save(output_dir)
        self.step_loss.save(output_dir)
        self.teacher.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        whole = checkpoint if checkpoint is not None and written_under(Path(checkpoint)) is not None else None
        self.teacher.load(whole)
        if whole is not None:
            self.rollouts.load(whole)
            self.step_loss.load(whole)


def names_in(folder: Path) -> set[str]:
    """Names of the parameters that a folder has, as `save_pretrained` writes them; none of an adapter's."""
    index, whole = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not whole.is_file():
        return set()
    with safe_open(whole, "pt") as file:
        return set(file.keys())


def _mean_loss(state: TrainerState) -> float:
    """The mean over optimizer steps of the losses that were logged, each the mean since the one before."""
    total, last = 0.0, 0
    for entry in state.log_history:
        if "loss" in entry:
            total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
    return total / max(last, 1)
