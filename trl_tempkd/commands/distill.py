# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
`trl-tempkd distill`: train a student on a teacher's distributions. Laid out as TRL's `sft.py`, option for option.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import training
from ..recipes import RecipeParser, training_parser


if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import KDConfig

DESCRIPTION = """\
Train a student model on the distributions of a teacher.

The objective is one of the divergences that `trl-tempkd divergences` lists, between teacher and student softened by
the temperature --kd_temperature. A recipe (--config) is a YAML file of these same options; the command line wins over
it. --accelerate_config names how to run it (single_gpu, multi_gpu, zero1, zero2, zero3, fsdp2, or a file), and
every option of `accelerate launch`, as --num_processes, passes through."""

EPILOG = """\
Beside these, every option of trl.SFTConfig and transformers.TrainingArguments is taken, and --help_all lists them:
among them --output_dir, --max_length, --max_steps, --num_train_epochs, --learning_rate, --per_device_train_batch_size,
--gradient_accumulation_steps, --eval_strategy, --save_steps, --resume_from_checkpoint, --report_to, --use_cpu.

examples:
  # the pair of models that comes with the package, on a CPU
  trl-tempkd distill --config recipes/tiny/distill.yaml

  # a recipe with another temperature and divergence
  trl-tempkd distill --config recipes/qwen3/distill.yaml --kd_temperature 4 --divergence reverse_kl

  # a divergence with parameters, the teacher alone softened, some cross-entropy
  trl-tempkd distill --config recipes/qwen3/distill.yaml --divergence jsd --divergence_kwargs '{"beta": 0.1}' \\
      --teacher_kd_temperature 2 --student_kd_temperature 1 --kd_ratio 0.9

  # four GPUs with ZeRO-3; started again after an interruption, it goes on from its last checkpoint
  trl-tempkd distill --config recipes/qwen3/distill.yaml --accelerate_config zero3 --num_processes 4 \\
      --resume_from_checkpoint auto"""


def main(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
    callbacks: "Sequence[TrainerCallback]" = (),
) -> None:
    """Train with the callbacks, and measure live where `kd_diagnostics_steps` says so: [`~training.train`]."""
    values = (script_args, training_args, model_args, dataset_args)
    if training_args.kd_diagnostics_steps is None:
        training.train(*values, callbacks)
        return
    from ..study import check_installed

    check_installed("--kd_diagnostics_steps")
    from ..study.diagnostics import watch

    training.train(*values, callbacks, prepare=watch)


def check(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    """Stop at what can be seen to be wrong before any process is started: [`~training.check`]."""
    if training_args.kd_diagnostics_steps is not None:
        from ..study import check_installed

        check_installed("--kd_diagnostics_steps")
    training.check(script_args, training_args, model_args, dataset_args)


def make_parser(prog: str | None = None) -> RecipeParser:
    return training_parser(prog, DESCRIPTION, EPILOG)
