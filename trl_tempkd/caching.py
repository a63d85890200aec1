# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher's target, stored once for the data of a recipe: what to store, checks, and the building."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import training
from .errors import UsageError
from .files import written
from .launch import check_started
from .locks import owned
from .paths import check_writable
from .processes import end_with_launcher


if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from .config import KDConfig

COUNTS = {"topk": "k", "sampled": "samples"}
COUNT = 64
TAUS = (1.0, 1.5, 2.0, 4.0)


@dataclass
class CacheArguments:
    """What to store, and where. Each field is an option of `trl-tempkd cache`."""

    mode: str = field(
        default="hidden",
        metadata={
            "help": "What is stored of the teacher. hidden: its last hidden state, exact for every divergence and "
            "temperature. topk: its largest logits, and at some temperatures the log-partition of the others; small, "
            "for the divergences that can be had from k tokens and the mass of the rest. sampled: at some "
            "temperatures tokens drawn from it, an unbiased estimate of forward_kl alone, also where the tail is most "
            "of the mass.",
            "choices": ["hidden", "topk", "sampled"],
        },
    )
    output: str | None = field(default=None, metadata={"help": "Folder of the cache."})
    cache_dtype: str = field(
        default="bfloat16",
        metadata={
            "help": "Of the hidden states or logits. bfloat16 is what a teacher in bf16 computes, and half the size.",
            "choices": ["bfloat16", "float32"],
        },
    )
    k: int | None = field(default=None, metadata={"help": "topk: logits of a token that are stored. 64 if not set."})
    samples: int | None = field(
        default=None, metadata={"help": "sampled: draws for a token at each temperature. 64 if not set."}
    )
    taus: list[float] | None = field(
        default=None,
        metadata={
            "help": "topk, sampled: the teacher's temperatures that a run may have, in kd_temperature or "
            "teacher_kd_temperature. 1 1.5 2 4 if not set."
        },
    )


def build(
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
            The recipe, as [`~training.train`] takes it.
    """
    end_with_launcher()
    check_started(training_args)
    check(args, script_args, training_args, model_args, dataset_args)
    folder = str(args.output)
    with written(folder), owned(folder, "--output") if training_args.process_index == 0 else nullcontext():
        _build(args, script_args, training_args, model_args, dataset_args)


def _build(
    args: CacheArguments,
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    from datasets import Dataset

    from .teachers import CacheBuilder

    training_args.teacher_cache = None
    trainer = training.make_trainer(script_args, training_args, model_args, dataset_args)
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
        mode=args.mode,
        count=getattr(args, COUNTS.get(args.mode, ""), None) or COUNT,
        taus=TAUS if args.taus is None else args.taus,
        vocabulary=trainer.model.config.get_text_config().vocab_size,
        processing=trainer.processing,
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
    from .teachers import STUDENTS

    for mode, name in COUNTS.items():
        value = getattr(args, name)
        if value is not None and args.mode != mode:
            raise UsageError(f"--{name} is for --mode {mode}, and this is --mode {args.mode}")
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    if args.taus is not None and args.mode == "hidden":
        raise UsageError("--taus is for --mode topk and sampled; hidden states have every temperature")
    if args.taus is not None and not all(0 < tau < float("inf") for tau in args.taus):
        raise UsageError(f"--taus must be positive and finite, got {' '.join(map(str, args.taus))}")
    if not args.output:
        raise UsageError("no folder for the cache: give --output")
    if training_args.generates:
        raise UsageError(
            "completions that are generated in training can't be cached: give --lmbda 0 --seq_kd false, or distil "
            "with the teacher itself"
        )
    teacher = training_args.teacher_model_name_or_path
    if teacher in STUDENTS:
        raise UsageError(f"{teacher} is in memory with the student anyway, and isn't cached")
    if training_args.teachers is not None:
        raise UsageError("a cache is of one teacher: give --teacher_model_name_or_path in the place of `teachers`")
    training_args.teacher_cache = None  # the recipe may name this very one, for training
    check_writable(args.output, "--output")
    training.check(script_args, training_args, model_args, dataset_args)
