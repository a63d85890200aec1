# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher's target, stored once for the data of a recipe: what to store, checks, and the building."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import training
from .errors import UsageError
from .files import written
from .job import end_group
from .launch import check_started
from .locks import owned
from .paths import check_writable
from .processes import end_with_launcher


if TYPE_CHECKING:
    from datasets import Dataset
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
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Of a recipe with several `teachers` the name of the one that is cached, by its `model` or its "
            "`server_url`: of the rows that its column `teacher` gives it, or of all."
        },
    )
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
    with written(folder), owned(folder, "--output_dir") if training_args.process_index == 0 else nullcontext():
        _build(args, script_args, training_args, model_args, dataset_args)
    end_group()


def _build(
    args: CacheArguments,
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    from datasets import Dataset

    from .teachers import CacheBuilder

    teachers, training_args = training_args.teachers or [], chosen(args, training_args)
    trainer = training.make_trainer(script_args, training_args, model_args, dataset_args)
    splits = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    splits = {name: dataset for name, dataset in splits.items() if dataset is not None}
    for name, dataset in splits.items():
        if not isinstance(dataset, Dataset):
            raise UsageError(f"the {name} data set is streamed; a cache needs --dataset_streaming false")
    if args.teacher is not None:
        own_prompt = next(of.get("teacher_prompt", True) for of in teachers if of["name"] == args.teacher)
        splits = {name: own_rows(dataset, args.teacher, own_prompt) for name, dataset in splits.items()}
        if not len(splits["train"]):
            raise UsageError(f"no row of the train data has {args.teacher!r} in its column `teacher`")
        splits = {name: dataset for name, dataset in splits.items() if len(dataset)}
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


def own_rows(dataset: "Dataset", teacher: str, own_prompt: bool) -> "Dataset":
    """The rows of one of several teachers, where a column says which these are, as it reads them."""
    from .row_formats import CONTEXTS, TEACHER

    if not own_prompt and CONTEXTS in dataset.column_names:
        dataset = dataset.remove_columns(CONTEXTS)
    if TEACHER not in dataset.column_names:
        return dataset
    return dataset.filter(lambda name: name == teacher, input_columns=[TEACHER])


def chosen(args: CacheArguments, training_args: "KDConfig") -> "KDConfig":
    """
    The configuration of a run with the teacher alone whose cache is built, and without a cache.

    Raises:
        [`UsageError`]: If it isn't clear which one it is, or there is nothing to build it from.
    """
    from .names import did_you_mean
    from .teachers.several_options import TeacherSpec, view_of

    if training_args.teachers is None:
        if args.teacher is not None:
            raise UsageError(f"--teacher is {args.teacher!r}, and the recipe has no `teachers`: leave it out")
        training_args.teacher_cache = None  # the recipe may name this very one, for training
        return training_args
    specs = TeacherSpec.read(training_args)
    if args.teacher not in specs:
        said = "a cache is of one teacher" if args.teacher is None else f"there is no teacher {args.teacher!r}"
        hint = "" if args.teacher is None else did_you_mean(args.teacher, specs)
        raise UsageError(f"{said}, and the recipe has `teachers`: give --teacher, one of {', '.join(specs)}{hint}")
    spec = specs[args.teacher]
    if spec.model is None and spec.server_url is None:
        raise UsageError(
            f"`teachers`, {args.teacher}: it has a `cache` and nothing that one is built from. Give it a `model` too."
        )
    view = view_of(training_args, spec)
    view.teacher_cache = None
    return view


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
        raise UsageError("no folder for the cache: give --output_dir")
    if training_args.generates:
        raise UsageError(
            "completions that are generated in training can't be cached: give --lmbda 0 --seq_kd false, or distil "
            "with the teacher itself"
        )
    training_args = chosen(args, training_args)
    teacher = training_args.teacher_model_name_or_path
    if teacher in STUDENTS:
        raise UsageError(f"{teacher} is in memory with the student anyway, and isn't cached")
    if training_args.vocabulary_alignment is not None and args.mode != "hidden":
        raise UsageError(
            f"--mode {args.mode} has some tokens of the teacher, and vocabulary_alignment "
            f"{training_args.vocabulary_alignment!r} pools all of them: give --mode hidden"
        )
    if training_args.top_k and args.mode == "topk" and args.k is None:
        raise UsageError(
            f"--top_k {training_args.top_k} is for sampling, and nothing is sampled here: how many logits of a token "
            f"are stored is --k {training_args.top_k}"
        )
    check_writable(args.output, "--output_dir")
    training.check(script_args, training_args, model_args, dataset_args)
