# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Data with images: looked at before a model is loaded, and given to a trainer. They stay files until their batch."""

import re
from collections.abc import Iterable, Mapping
from copy import copy
from functools import partial
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    ProcessorMixin,
)

from .errors import UsageError
from .heads import unwrap_adapter
from .models import sees
from .rollouts.options import RolloutOptions
from .row_formats import TEACHER_PROMPT, Row
from .teachers import STUDENTS
from .vision import Processing, VisionCollator, is_pictured


FIRST_ROWS = 4  # of which tokens and pixels are made before a model is loaded
_TOGETHER = ("packing", "padding_free")  # options that lay rows together
# Options that ask for teachers that are told of a row by its tokens alone
_OTHER_TEACHERS = ("teacher_server_url", "teachers", "vocabulary_alignment")
# What the collator reads of rows beside the columns of TRL, and of those that are made in training
_COLUMNS = ("tools", "chat_template_kwargs", TEACHER_PROMPT, "input_ids", "labels")


def check_vision_options(name: str, args: RolloutOptions, formatting_func: Any = None, collator: Any = None) -> None:
    """
    Stop at options that rows with images don't go with.

    Raises:
        [`UsageError`]: Names the option and the way out.
    """
    for option in _TOGETHER:
        if getattr(args, option):
            raise UsageError(
                f"`{option}` is True, and {name} has images: rows with images aren't laid together. Leave it out."
            )
    for option in _OTHER_TEACHERS:
        if getattr(args, option) is not None:
            raise UsageError(
                f"`{option}` is {getattr(args, option)!r}, and {name} has images, which such a teacher isn't shown. "
                "Use one teacher with the student's tokenizer that runs beside it (`teacher_model_name_or_path`), or "
                "leave out the columns `images` and `image`."
            )
    if args.max_length is not None and args.truncation_mode == "keep_end":
        raise UsageError(
            f"`truncation_mode` is 'keep_end', which would cut images off, and {name} has some. Use 'keep_start', or "
            "set `max_length` to None."
        )
    if formatting_func is not None:
        raise UsageError(
            f"`formatting_func` makes text of a row, and {name} has images. Give rows `prompt` and `completion`."
        )
    if collator is not None:
        raise UsageError(
            f"`data_collator` is of the user's own, and {name} has images, which the student's and the teacher's "
            "processors read. Leave it out, and make rows as you want them in the data."
        )
    if args.generates and args.use_vllm:
        raise UsageError(
            f"`use_vllm` is True, and {name} has images, which aren't sent to vLLM. Leave it unset: transformers "
            "generates then."
        )
    if args.generates and not args.ds3_gather_for_generation:
        raise UsageError(
            f"`ds3_gather_for_generation` is False, and {name} has images, so that not every process would run the "
            "same layers. Leave it True."
        )


def check_vision_rows(
    rows: Iterable[Row], name: str, args: RolloutOptions, processor: Any, template: str | None = None
) -> None:
    """
    Stop at rows with images that can't be trained on.

    Args:
        rows (`Iterable[Mapping]`):
            The first rows of the data.
        name (`str`):
            Of the data.
        args ([`RolloutOptions`]):
            Options of the run.
        processor ([`~transformers.ProcessorMixin`], *optional*):
            The student's, if it is known.
        template (`str`, *optional*):
            Chat template that TRL trains with in place of the processor's.

    Raises:
        [`UsageError`]: Names the row, and what is wrong with it.
    """
    rows = list(rows)
    if args.assistant_only_loss and "prompt" in rows[0]:
        raise UsageError(
            f"`assistant_only_loss` is about `messages`, and {name} has `prompt` and images: the completion alone is "
            "trained on. Leave it at False."
        )
    if processor is not None and not isinstance(processor, ProcessorMixin):
        raise UsageError(
            f"{name} has images, and the student reads text alone: its processor is a {type(processor).__name__}. Use "
            "a student that sees, pass its processor in the place of its tokenizer, or leave out the columns `images` "
            "and `image`."
        )
    numbers = {id(row): number for number, row in enumerate(rows)}
    collator = VisionCollator.of(
        Processing(processor, template) if processor is not None else None,  # type: ignore[arg-type]
        args,
        lambda row: f"{name}, row {numbers[id(row)]}:",
    )
    given = collator.given(rows)  # type: ignore[arg-type]
    if processor is None:
        return
    collator.check_texts(given)
    made = collator.student(given[:FIRST_ROWS])
    left = any(label != -100 for labels in made.labels for label in labels[1:])
    if not left and len(rows) <= FIRST_ROWS and not args.generates:
        raise UsageError(
            f"{name} has nothing to train on: none of its {len(rows)} rows has a token that counts, once they are cut "
            f"at `max_length` {args.max_length}. Give rows a `completion`, or raise `max_length`."
        )


def text_arguments(
    processor: Any, kwargs: dict[str, Any], args: RolloutOptions, teacher: Any = None
) -> dict[str, Any]:
    """
    Text for a student that sees, as rows without an image: its processor writes messages in parts, which the chat
    template of such a model may need. Where an option or a teacher needs tokens beforehand, its tokenizer makes them.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The student's processor.
        kwargs (`dict`):
            Arguments of the trainer.
        args ([`RolloutOptions`]):
            Options of the run.
        teacher (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher, which may read text alone.

    Returns:
        `dict`: The arguments that have changed.
    """
    dataset, evals = kwargs["train_dataset"], kwargs.get("eval_dataset")
    first = next(iter(undecoded(dataset)))
    if is_pictured(first):
        return {}
    made = "input_ids" in first or (args.dataset_kwargs or {}).get("skip_prepare_dataset")
    # What only the preparation of text knows how to read
    made = made or kwargs.get("formatting_func") is not None or "conversations" in first
    made = made or (isinstance(dataset, Dataset) and dataset.format["type"] == "custom")
    tokens = any(getattr(args, option) for option in (*_TOGETHER, *_OTHER_TEACHERS, "teacher_cache"))
    if made or tokens or _reads_text_alone(teacher, args):
        tokenizer = processor.tokenizer
        tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
        return {"processing_class": tokenizer}
    new = {"train_dataset": _with_column(dataset)}
    if evals is not None:
        several = isinstance(evals, Mapping)
        new["eval_dataset"] = {k: _with_column(each) for k, each in evals.items()} if several else _with_column(evals)
    return new


def _reads_text_alone(teacher: Any, args: RolloutOptions) -> bool:
    if isinstance(teacher, PreTrainedModel):
        return type(teacher.config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not isinstance(teacher, str) or teacher in STUDENTS:
        return False
    try:
        return not sees(teacher, args.teacher_model_revision, args.trust_remote_code)
    except (OSError, ValueError):  # it is said of the teacher, which is made next
        return False


def _with_column(dataset: Any) -> Any:
    if isinstance(dataset, Dataset):
        return dataset if "images" in dataset.column_names else dataset.add_column("images", [None] * len(dataset))
    return dataset.map(_without_images)


def _without_images(row: dict[str, Any]) -> dict[str, Any]:
    return {"images": None, **row}


def on_language_alone(model: Any, config: Any, args: RolloutOptions) -> Any:
    """
    A PEFT configuration whose adapter leaves the tower of a model that sees as it is, with what projects from it: its
    layers often have the names that are meant for the language model's. A pattern in `target_modules` is followed as
    it is, and so is `exclude_modules`.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The student, or its name.
        config ([`~peft.PeftConfig`]):
            The configuration.
        args ([`RolloutOptions`]):
            Options of the run: how to load the student.

    Returns:
        [`~peft.PeftConfig`]: A copy, or the same where nothing is to be left out.
    """
    targets = getattr(config, "target_modules", None)
    pattern = isinstance(targets, str) and targets != "all-linear"
    if pattern or not hasattr(config, "exclude_modules") or config.exclude_modules is not None:
        return config
    if isinstance(model, str):
        init = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
        kwargs = {"revision": init.get("revision"), "trust_remote_code": args.trust_remote_code}
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model, **kwargs))
    body, decoder = unwrap_adapter(model).base_model, unwrap_adapter(model).get_decoder()
    others = [name for name, child in body.named_children() if child is not decoder]
    if decoder is body or not others:
        return config
    config = copy(config)
    config.exclude_modules = rf"(.*\.)?({'|'.join(map(re.escape, others))})(\..*)?"
    return config


def undecoded(dataset: Any) -> Any:
    """The same data whose images are given as their files, so that one that can't be opened is found in its row."""
    if isinstance(dataset, Mapping):
        return {name: undecoded(each) for name, each in dataset.items()}
    if isinstance(dataset, IterableDataset):
        return dataset if dataset.features is None else dataset.decode(False)
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return dataset
    same = dataset.select(range(len(dataset)))
    for feature in _images(same.info.features):
        feature.decode = False
    return same


def _images(feature: Any) -> list[Image]:
    if isinstance(feature, Image):
        return [feature]
    if isinstance(feature, Mapping):
        return [found for each in feature.values() for found in _images(each)]
    if isinstance(feature, list | tuple):
        return [found for each in feature for found in _images(each)]
    return _images(feature.feature) if hasattr(feature, "feature") else []


def where(datasets: Mapping[str, Any], row: dict[str, Any]) -> str:
    """Names a row of some data sets, which are looked through for it."""
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset):
            continue
        columns = [column for column in row if column in dataset.column_names]
        for number, other in enumerate(dataset.select_columns(columns)):
            if all(other[column] == row[column] for column in columns):
                return f"the {name} data, row {number}:"
    return "a row of the data"


def give_images(trainer: Any) -> Processing | None:
    """
    Give a trainer whose data have images the collator that reads them, unless it has one of the user's.

    Returns:
        [`Processing`] or `None`: The student's processor, if rows have images.
    """
    if not trainer._is_vision_dataset:
        return None
    processing = Processing(trainer.processing_class, trainer.chat_template)
    trainer.train_dataset, trainer.eval_dataset = undecoded(trainer.train_dataset), undecoded(trainer.eval_dataset)
    evals = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {"eval": trainer.eval_dataset}
    named = {"train": trainer.train_dataset, **evals}
    collator = trainer.data_collator = VisionCollator.of(processing, trainer.args, partial(where, named))
    prepare = trainer.teacher.prepare_pictured
    trainer.train_dataset = prepare(trainer.train_dataset, collator, "train")
    if isinstance(trainer.eval_dataset, Mapping):
        trainer.eval_dataset = {name: prepare(each, collator, name) for name, each in trainer.eval_dataset.items()}
    else:
        trainer.eval_dataset = prepare(trainer.eval_dataset, collator, "eval")
    return processing


def columns_of(trainer: Any) -> list[str]:
    """What the collator of a trainer reads of rows with images, beyond what TRL's does."""
    return [*_COLUMNS, trainer.args.dataset_text_field] if trainer._is_vision_dataset else []


def has_images(dataset: Any) -> bool:
    """Whether rows of a data set have a column of images."""
    return is_pictured(next(iter(dataset), {}))
