# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd cache`: run the teacher of a recipe once over its data, and store what it says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import distill
from .arguments import RecipeParser, UsageError, usage_errors_on_one_line


if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import KDConfig

DESCRIPTION = """\
Run a teacher once over the data of a recipe, and store what it says of every token that is trained on. Then
`trl-tempkd distill` with the same recipe and --teacher_cache trains without the teacher: the same target, the same
loss, for every divergence and temperature.

The data are prepared as in training, with the evaluation's where the recipe has `do_eval`. A build that was
interrupted goes on when it is started again; a complete cache is checked then, and what is damaged made anew."""

EPILOG = """\
Beside these, every option of `trl-tempkd distill` is taken: --help_all lists them.

examples:
  # the pair of models that comes with the package, on a CPU: once the teacher, then a student at another temperature
  trl-tempkd cache --config recipes/tiny/distill.yaml --mode hidden --output outputs/tiny-cache
  trl-tempkd distill --config recipes/tiny/distill.yaml --teacher_cache outputs/tiny-cache --kd_temperature 4

  # four GPUs, each with the teacher and a quarter of the data
  trl-tempkd cache --config recipes/qwen3/distill.yaml --mode hidden --output outputs/qwen3-cache \\
      --accelerate_config multi_gpu --num_processes 4"""


@dataclass
class CacheArguments:
    """What to store, and where. Each field is an option of `trl-tempkd cache`."""

    mode: str = field(
        default="hidden",
        metadata={
            "help": "What is stored of the teacher. hidden: its last hidden state, exact for every divergence and "
            "temperature.",
            "choices": ["hidden"],
        },
    )
    output: str | None = field(default=None, metadata={"help": "Folder of the cache."})
    cache_dtype: str = field(
        default="bfloat16",
        metadata={
            "help": "Of what is stored. bfloat16 is what a teacher in bf16 computes, and half the size.",
            "choices": ["bfloat16", "float32"],
        },
    )


def main(
    args: CacheArguments,
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    """
    Build the cache, or go on with it.

    Args:
        args ([`CacheArguments`]):
            What to store, and where.
        script_args, training_args, model_args, dataset_args:
            The recipe, as [`distill.main`] takes it.
    """
    from datasets import Dataset

    from ..teachers import CacheBuilder
    from .launch import check_started

    check_started(training_args)
    check(args, script_args, training_args, model_args, dataset_args)
    training_args.teacher_cache = None
    trainer = distill.make_trainer(script_args, training_args, model_args, dataset_args)
    splits = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    splits = {name: dataset for name, dataset in splits.items() if dataset is not None}
    for name, dataset in splits.items():
        if not isinstance(dataset, Dataset):
            raise UsageError(f"the {name} data set is streamed; a cache needs --dataset_streaming false")
    manifest = CacheBuilder(
        Path(str(args.output)),
        splits,
        trainer.teacher,
        trainer.data_collator,
        trainer._tokenizer,
        trainer.accelerator,
        training_args,
        dtype=args.cache_dtype,
        batch_size=training_args.per_device_eval_batch_size,
    ).build()
    said = ", ".join(f"{split['rows']} rows of {name}" for name, split in manifest.splits.items())
    trainer.accelerator.print(f"Complete: {said} in {args.output}. Train with --teacher_cache {args.output}")
    trainer.end()


def check(
    args: CacheArguments,
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    """Stop at what can be seen to be wrong before anything is loaded."""
    from ..teachers import STUDENT_BASE

    if not args.output:
        raise UsageError("no folder for the cache: give --output")
    if training_args.generates:
        raise UsageError(
            "completions that are generated in training can't be cached: give --lmbda 0 --seq_kd false, or distil "
            "with the teacher itself"
        )
    if training_args.teacher_model_name_or_path == STUDENT_BASE:
        raise UsageError(f"{STUDENT_BASE} is in memory with the student anyway, and isn't cached")
    training_args.teacher_cache = None  # the recipe may name this very one, for training
    distill.check(script_args, training_args, model_args, dataset_args)


def make_parser(prog: str | None = None) -> RecipeParser:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import KDConfig

    dataclass_types = (CacheArguments, ScriptArguments, KDConfig, ModelConfig, DatasetMixtureConfig)
    return RecipeParser(dataclass_types, prog=prog, description=DESCRIPTION, epilog=EPILOG)


def run(prog: str | None = None) -> None:
    """Parse the command line of a process that `accelerate launch` has started, and build."""
    parser = make_parser(prog)
    with usage_errors_on_one_line(parser.prog):
        arguments, _, _ = parser.parse(launched=True)
        main(*arguments)


if __name__ == "__main__":
    run("trl-tempkd cache")
