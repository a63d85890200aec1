# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A training from a recipe that has been read: checks, data, trainer, and then train, save, evaluate. Laid out as TRL's
`sft.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .job import current_group, end_group, job
from .launch import check_started
from .processes import freeze
from .recipes import unnamed


if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from .config import KDConfig
    from .trainer import TemperatureKDTrainer


def train(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
    callbacks: "Sequence[TrainerCallback]" = (),
    prepare: "Callable[[TemperatureKDTrainer], None] | None" = None,
) -> None:
    """
    Train, save, evaluate and, if asked, push to the Hub.

    Args:
        script_args ([`trl.ScriptArguments`]):
            Data set and its splits.
        training_args ([`KDConfig`]):
            Everything about the training, the teacher's name included.
        model_args ([`trl.ModelConfig`]):
            The student, LoRA and quantization.
        dataset_args ([`trl.DatasetMixtureConfig`]):
            A mixture of data sets, in place of the one of `script_args`.
        callbacks (`Sequence[TrainerCallback]`, *optional*, defaults to `()`):
            Callbacks for the trainer.
        prepare (`Callable`, *optional*):
            Called with the trainer before it trains.
    """
    check_started(training_args)
    group = current_group()
    if group is None:  # else `end_group` looks for what has it as a default
        freeze()
    with job(training_args):
        _train(script_args, training_args, model_args, dataset_args, callbacks, prepare)
    end_group(group)


def _train(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
    callbacks: "Sequence[TrainerCallback]",
    prepare: "Callable[[TemperatureKDTrainer], None] | None",
) -> None:
    from .checkpoints import find_checkpoint
    from .console import ending, header, is_quiet, is_verbose, set_progress, set_verbosity
    from .data import data_faults

    set_verbosity()
    named = names_of(script_args, training_args, model_args, dataset_args)
    trainer = make_trainer(script_args, training_args, model_args, dataset_args, callbacks)
    trainer.named, trainer.parts = named, (script_args, model_args, dataset_args)
    if prepare is not None:
        prepare(trainer)
    set_progress(trainer)
    say = (lambda _: None) if is_quiet() else trainer.accelerator.print
    say(header(trainer, named))
    resume, output_dir = str(training_args.resume_from_checkpoint), Path(str(training_args.output_dir))
    checkpoint, _ = find_checkpoint(resume, str(output_dir))
    if checkpoint is not None:
        say(f"Going on from {checkpoint}.")
    elif resume.lower() in ("auto", "true"):
        say(f"No checkpoint in {output_dir} yet: starting from the beginning.")

    with data_faults(script_args, dataset_args):  # of a stream they show here
        result = trainer.train(resume_from_checkpoint=resume)
    if trainer.trained_steps == 0:
        say(f"The checkpoint is at step {trainer.state.global_step}, the last one: nothing is left to train.")
    if trainer.trained_steps or not (output_dir / "train_results.json").exists():  # those of the training itself
        if is_verbose():
            trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    trainer.save_state()

    trainer.save_model(training_args.output_dir)
    metrics = None
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        if is_verbose():
            trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.create_model_card()
    say(ending(trainer, named, metrics))

    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
        say(f"Model pushed to the Hub as {trainer.hub_model_id}.")

    trainer.end()  # finishes the trackers


def names_of(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> dict[str, str | None]:
    """How the user calls student, teacher and data, before the names are resolved."""
    mixed = ", ".join(str(part.path) for part in dataset_args.datasets)
    return {
        "student": model_args.model_name_or_path,
        "teacher": training_args.teacher_model_name_or_path,  # which may not stand beside `teachers`
        "data": mixed or script_args.dataset_name,
    }


def make_trainer(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
    callbacks: "Sequence[TrainerCallback]" = (),
) -> "TemperatureKDTrainer":
    """The trainer of a recipe, its models loaded and its data prepared. Arguments as in [`train`]."""
    from trl import get_peft_config, get_quantization_config

    from .data import data_faults
    from .models import check_model
    from .teachers import STUDENTS
    from .teachers.several_options import TeacherSpec, is_live
    from .trainer import TemperatureKDTrainer

    # What can be wrong with the names is found before any weights are loaded.
    student, teacher = check(script_args, training_args, model_args, dataset_args)
    train_dataset, eval_dataset = load_splits(script_args, training_args, dataset_args)
    trust = training_args.trust_remote_code
    check_model(student, model_args.model_revision, trust, "model_name_or_path")
    sources = (training_args.teacher_cache, training_args.teacher_server_url, training_args.teachers)
    for entry in training_args.teachers or []:
        if is_live(TeacherSpec(**entry)):
            check_model(entry["model"], entry.get("revision"), trust, "teachers")
    if sources == (None, None, None) and teacher not in STUDENTS:
        check_model(str(teacher), training_args.teacher_model_revision, trust, "teacher_model_name_or_path")

    training_args.teacher_model_name_or_path = teacher
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": trust,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    with data_faults(script_args, dataset_args):
        return TemperatureKDTrainer(
            model=student,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            callbacks=list(callbacks),
        )


def load_splits(
    script_args: "ScriptArguments", training_args: "KDConfig", dataset_args: "DatasetMixtureConfig"
) -> tuple[Any, Any]:
    """The data to train on and, where the run evaluates, to evaluate on. Stops at rows that can't be trained on."""
    from .data import data_faults, load_data, select_split
    from .data_checks import check_rows, first_rows
    from .rollouts import check_answers

    dataset = load_data(script_args, dataset_args)
    options = ["dataset_train_split"] + ["dataset_test_split"] * bool(training_args.do_eval)  # with any eval_strategy
    splits = [select_split(dataset, getattr(script_args, option), option) for option in options]
    for option, split in zip(options, splits, strict=True):
        name = f"the split {getattr(script_args, option)!r} (--{option})"
        with data_faults(script_args, dataset_args):
            check_rows(first_rows(split, name), name, training_args)
    check_answers(training_args, dict(zip(("train", "eval"), splits, strict=False)))
    return splits[0], splits[1] if training_args.do_eval else None


def check(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> tuple[str, str | None]:
    """
    Stop at a name that is missing, or that is a path with nothing there, and at options that need others. The command
    line checks this too, before it starts any process.

    Returns:
        `tuple[str, str]`: The student and the teacher, as `from_pretrained` takes them. With `--teacher_cache`
            or `--teacher_server_url` the teacher need not be named.
    """
    from .argument_checks import check_hub, check_installed
    from .checkpoints import compare, find_checkpoint, options_of
    from .data import check_data
    from .models import resolve_model
    from .paths import check_path, check_writable

    check_given(script_args, training_args, model_args, dataset_args)
    check_data(script_args, dataset_args)
    student = resolve_model(model_args.model_name_or_path, "model_name_or_path")
    teacher = None
    if training_args.teacher_cache is not None:
        check_path(training_args.teacher_cache, "teacher cache (--teacher_cache)")
    if training_args.teacher_server_url is not None:
        teacher = training_args.teacher_model_name_or_path  # its name on the server
    elif training_args.teachers is not None:
        training_args.teachers = [_resolved(entry) for entry in training_args.teachers]
    elif training_args.teacher_cache is None or training_args.teacher_model_name_or_path:
        teacher = resolve_model(training_args.teacher_model_name_or_path, "teacher_model_name_or_path")
    output_dir = Path(str(training_args.output_dir))
    checkpoint, _ = find_checkpoint(training_args.resume_from_checkpoint, str(output_dir))
    if checkpoint is not None:  # the options; teacher, data and the rest are compared once they are loaded
        compare(Path(checkpoint), {"target": options_of(training_args)}, training_args.resume_with_changes)
    for each in [teacher, *(entry.get("model") for entry in training_args.teachers or [])]:
        check_adapter(model_args, each)
    check_installed(training_args)
    if training_args.push_to_hub:
        check_hub(training_args)
    check_writable(str(training_args.output_dir), "--output_dir")
    for option, model in (("model_name_or_path", student), ("teacher_model_name_or_path", teacher)):
        if model is not None and Path(model).is_dir() and Path(model).resolve() == output_dir.resolve():
            raise UsageError(
                f"--output_dir {output_dir} is the folder of --{option}, which the trained student would take the "
                "place of: give another one"
            )
    return student, teacher


def check_given(
    script_args: "ScriptArguments",
    training_args: "KDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    """Say at once all that is missing, where more than one thing is. Arguments as in [`train`]."""
    said = unnamed({**vars(model_args), **vars(training_args), **vars(script_args), **vars(dataset_args)})
    if said:
        raise UsageError(said)


def _resolved(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `teachers`, its model as `from_pretrained` takes it. Stops at a path with nothing there."""
    from .models import resolve_model
    from .paths import check_path
    from .teachers.several_options import OF_THE_STUDENT, TeacherSpec

    spec = TeacherSpec(**entry)
    if spec.cache is not None:
        check_path(spec.cache, f"teacher cache (`teachers`, {spec.name})")
    if spec.model is None or spec.model in OF_THE_STUDENT or spec.server_url is not None:
        return entry
    return {**entry, "model": resolve_model(spec.model, f"teachers, {spec.name}")}


def check_adapter(model_args: "ModelConfig", teacher: str | None) -> None:
    """Stop at what can't be had without an adapter on the student, or without bitsandbytes."""
    from transformers import utils

    from .teachers import STUDENT_BASE

    quantize = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit" if model_args.load_in_8bit else None
    if not model_args.use_peft and teacher == STUDENT_BASE:
        raise UsageError(
            f"--teacher_model_name_or_path {STUDENT_BASE} is the student without its adapter: it needs --use_peft"
        )
    if not model_args.use_peft and quantize:
        raise UsageError(f"--{quantize} freezes the student's weights: it needs --use_peft")
    if quantize and not utils.is_bitsandbytes_available():
        raise UsageError(
            f"--{quantize} needs bitsandbytes: pip install '.[quantization]' where you installed trl_tempkd from"
        )
