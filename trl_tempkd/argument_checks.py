# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What the trainer is given, looked at before it loads a model: its arguments, and what its options need."""

import dataclasses
import difflib
import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from huggingface_hub import constants, get_token
from peft import PeftConfig
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback, TrainingArguments
from trl import SFTTrainer

from .compat import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from .config import KDConfig
from .data_checks import check_datasets
from .errors import UsageError, UsageImportError, UsageTypeError
from .models import damaged
from .names import did_you_mean
from .paths import check_model_name, check_writable, hub_problem
from .rollouts.vllm import require_vllm
from .tiny import resolve
from .vision_data import on_language_alone, text_arguments


# Where what is given in the place of a model belongs
_PLACES: dict[tuple[type, ...], str] = {
    (TrainingArguments,): "args",
    (Dataset, DatasetDict, IterableDataset, IterableDatasetDict): "train_dataset",
    (PreTrainedTokenizerBase, ProcessorMixin): "processing_class",
    (TrainerCallback,): "callbacks",
    (PeftConfig,): "peft_config",
}
_ARGUMENTS = (*list(inspect.signature(SFTTrainer.__init__).parameters)[1:], "teacher_model")
_RENAMED = {"tokenizer": "processing_class", "teacher": "teacher_model", "config": "args", "dataset": "train_dataset"}

# A part of an optimizer's name -> the package that has it, the first that fits
_OPTIMIZERS = {
    "galore": "galore-torch",
    "apollo": "apollo-torch",
    "lomo": "lomo-optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "torch-optimi",
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
    **dict.fromkeys(("8bit", "paged", "lion", "ademamix", "bnb"), "bitsandbytes"),
}
_MODULES = {"torch-optimi": "optimi"}  # those that are imported by another name
_MEASURED = ("loss", "kd_loss", "kl_tau1", "token_agreement", "ce_loss", "student_entropy", "teacher_entropy")
_UNKNOWABLE = ("azure_ml", "flyte")  # trackers that transformers has no plain answer for


def check_arguments(model: Any, teacher_model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """
    Stop at arguments of the trainer that are something else than they should be.

    Returns:
        `tuple`: Student and teacher, a path being text, and the name of a built-in model its folder.

    Raises:
        [`UsageTypeError`]: Names the argument, what it got, and where that belongs.
    """
    if args is not None and not isinstance(args, KDConfig):
        more = " It takes all options of `SFTConfig`." if isinstance(args, TrainingArguments) else ""
        raise UsageTypeError(f"`args` must be a `KDConfig`, got `{type(args).__name__}`.{more}")
    if kwargs.get("compute_loss_func") is not None:
        raise UsageError("`compute_loss_func` replaces the loss, which is the divergence here. Use `SFTTrainer`.")
    for callback in kwargs.get("callbacks") or ():
        if not (isinstance(callback, TrainerCallback) or inspect.isclass(callback)):
            raise UsageTypeError(f"`callbacks` must be of `TrainerCallback`, got {type(callback).__name__}.")
    for name in kwargs:
        if name not in _ARGUMENTS:
            hint = f"; it is called `{_RENAMED[name]}` here" if name in _RENAMED else did_you_mean(name, _ARGUMENTS)
            if name in {field.name for field in dataclasses.fields(KDConfig)}:
                hint = f"; it is an option of the run: `args=KDConfig(..., {name}=...)`"
            raise UsageTypeError(f"TemperatureKDTrainer has no argument `{name}`{hint}")
    return _model("model", model), None if teacher_model is None else _model("teacher_model", teacher_model)


def _model(name: str, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        return resolve(value)
    if isinstance(value, nn.Module):
        return value
    place = next((place for kinds, place in _PLACES.items() if isinstance(value, kinds)), None)
    if place is None:
        raise UsageTypeError(f"`{name}` must be a model, or its name or folder, got {type(value).__name__}.")
    raise UsageTypeError(
        f"`{name}` is a {type(value).__name__}, which belongs into `{place}`. By position the arguments are `model`, "
        f"`teacher_model` and `args`; pass it by name: `TemperatureKDTrainer(model, {place}=..., ...)`."
    )


def check_run(model: Any, args: KDConfig, kwargs: dict[str, Any], teacher: Any = None) -> None:
    """
    Stop at what can't work, before a model is loaded. Arguments as of the trainer. If the student has a processor
    and the data are text, they get what it needs to read them, and an adapter leaves its tower alone.

    Raises:
        [`UsageError`]: If there is no model of a name, a package is missing, the `output_dir` can't be written, or the
            data can't be trained on.
    """
    if isinstance(model, str):
        check_model_name(model, _revision(args.model_init_kwargs), "`model`")
    template = args.chat_template_path
    if template is not None and template.endswith((".jinja", ".j2")):
        if not os.path.isfile(template):
            raise UsageError(f"no such chat template: {template} (`chat_template_path`)")
    elif template is not None:
        check_model_name(template, None, "`chat_template_path`")
    check_installed(args, vllm=isinstance(model, str))
    check_best(args, kwargs)
    if args.should_save:
        check_writable(str(args.output_dir), "`output_dir`")
    found = check_datasets(model, args, **kwargs)
    if isinstance(found, ProcessorMixin) and kwargs.get("data_collator") is None:
        kwargs.update(text_arguments(found, kwargs, args, teacher))
    if isinstance(found, ProcessorMixin) and kwargs.get("peft_config") is not None:
        kwargs["peft_config"] = on_language_alone(model, kwargs["peft_config"], args)


def check_best(args: KDConfig, kwargs: dict[str, Any]) -> None:
    """Stop at a `metric_for_best_model` that is nearly that of a measure, and is missed once one is looked for."""
    if args.teachers or isinstance(kwargs.get("eval_dataset"), dict) or kwargs.get("compute_metrics") is not None:
        return  # more is measured then, under longer names
    metric = str(args.metric_for_best_model or "").removeprefix("eval_")
    close = difflib.get_close_matches(metric, _MEASURED, 1, 0.85)
    if metric not in _MEASURED and close:
        raise UsageError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, which no evaluation has; did you mean "
            f"'{close[0]}'?"
        )


@contextmanager
def student_faults(model: Any, args: KDConfig) -> Iterator[None]:
    """Name what is wrong with the student and with `model_init_kwargs`, where it shows as it is loaded."""
    try:
        yield
    except SafetensorError as error:
        raise UsageError(f"cannot load the model {model!r} (`model`): {damaged(error)}.") from error
    except TypeError as error:
        said, options = str(error), args.model_init_kwargs or {}
        if "unexpected keyword" not in said or not any(repr(name) in said for name in options):
            raise
        raise UsageTypeError(f"`model_init_kwargs` is {options!r}: {said}. Leave it out.") from error


def check_hub(args: KDConfig) -> None:
    """Stop at a model that couldn't go to the Hub when it is trained."""
    problem = "the Hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else hub_problem()
    if problem is None and not (args.hub_token or get_token()):
        problem = "nobody is logged in: `hf auth login` does that, or `hub_token`"
    if problem is not None:
        raise UsageError(f"`push_to_hub` is True, and {problem}. Leave it out, and `hf upload` what is trained later.")


def _revision(init_kwargs: Any) -> str | None:
    return init_kwargs.get("revision") if isinstance(init_kwargs, dict) else None


def check_installed(args: KDConfig, vllm: bool = True) -> None:
    """
    Stop at options that need a package which isn't there.

    Args:
        args ([`KDConfig`]):
            Options of the run.
        vllm (`bool`, *optional*, defaults to `True`):
            Whether to look for vLLM, which the sampler looks for too once the models are there.

    Raises:
        [`UsageImportError`]: Says how to install it.
    """
    if vllm and args.use_vllm and (args.lmbda > 0 or args.lmbda_schedule == "adaptive"):
        require_vllm(args.device)
    available = {*get_available_reporting_integrations(), *_UNKNOWABLE}
    for tracker in args.report_to or []:
        if tracker not in INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"`report_to` must be of {', '.join(INTEGRATION_TO_CALLBACK)}, or none, got {tracker!r}"
                f"{did_you_mean(tracker, INTEGRATION_TO_CALLBACK)}"
            )
        if tracker not in available:
            raise UsageImportError(
                f"`report_to` has {tracker!r}, which isn't installed: `pip install {tracker.replace('_', '-')}`, or "
                "leave it out."
            )
    optimizer = str(getattr(args.optim, "value", args.optim))
    package = next((package for part, package in _OPTIMIZERS.items() if part in optimizer), None)
    if package and importlib.util.find_spec(_MODULES.get(package, package.replace("-", "_"))) is None:
        raise UsageImportError(
            f"`optim` is {optimizer!r}, which {package} has, and it isn't installed: `pip install {package}`, or use "
            "the default."
        )
