# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Data sets as TRL prepares them, whose rows carry the prompts that completions are generated for."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from ..chat import prompt_of
from ..errors import UsageError
from ..row_formats import CONTEXTS, PROMPTS, TEACHER_PROMPT, TEACHER_PROMPTS
from ..vision import PICTURED
from .options import RolloutOptions
from .rows import IGNORED, prompt_before
from .teacher_prompts import TOKENS, carried_columns, check_own_prompts, teacher_tokens, unpacked_contexts


Rows = Any  # `Dataset` or `IterableDataset`, which ship no types
CARRIED = (PROMPTS, TEACHER_PROMPTS, CONTEXTS, PICTURED)  # columns that rows may carry beside their tokens
TRAIN = "train"  # what TRL calls the training data when it has them prepared


def prepared(
    prepare: Callable[..., Rows],
    fallback: str | None,
    dataset: Rows,
    tokenizer: PreTrainedTokenizerBase,
    args: RolloutOptions,
    packing: bool,
    formatting_func: Callable[[dict[str, Any]], str] | None,
    name: str,
) -> Rows:
    """
    A data set as TRL prepares it. Where completions are generated for its rows, they carry their prompts.

    Those are in the column `PROMPTS`: a list that holds the prompt of the row. Where rows are packed, it is as long as
    `input_ids` and holds each prompt at the first token of its text, and `None` elsewhere. A prompt is empty where
    there is none, and it is whole, however much of the row is cut off. Where the teacher reads a prompt of its own,
    rows carry what it reads too (`CONTEXTS`, `TEACHER_PROMPTS`).

    Args:
        prepare (`Callable`):
            The preparation of [`~trl.SFTTrainer`].
        fallback (`str`, *optional*):
            Chat template that TRL trains with in place of the tokenizer's.
        dataset, tokenizer, args, packing, formatting_func, name:
            Arguments of that preparation.

    Raises:
        `ValueError`: If rows have no completion, and nobody writes one, or the teacher can't read another prompt.
    """
    dataset, columns = _with_labels(dataset, args), _columns(dataset)
    own = TEACHER_PROMPT in columns and CONTEXTS not in columns
    if own:
        check_own_prompts(args, columns, formatting_func, name)
    unanswered = first_unanswered(dataset, args)
    only_asked = unanswered is not None
    if unanswered is not None:
        _refuse_unanswered(args, name, unanswered)
    unread = name == TRAIN and args.generates_always  # nobody reads the completions that the data set has
    if isinstance(dataset, IterableDataset) and "prompt" in columns and "input_ids" not in columns:
        only_asked |= unread  # it can't be looked through for a row without a completion
        dataset = dataset if only_asked else dataset.map(partial(_check_answer, args, name), with_indices=True)
    asks = args.generates and (name == TRAIN or only_asked or PROMPTS in columns)
    carried = CONTEXTS in columns or (asks and PROMPTS in columns)  # it has been prepared before
    if not (asks or own or carried) or (packing and args.max_length is None):  # the latter is refused by TRL
        return prepare(dataset, tokenizer, args, packing, formatting_func, name)
    packing = packing and (name == TRAIN or not asks)  # an evaluation puts new rows in the place of these

    whole = copy(args)
    whole.max_length = None
    if carried:
        return prepare(dataset, tokenizer, whole, False, formatting_func, name)
    how = {"tokenizer": tokenizer, "fallback": fallback}
    if own:
        with _main_first():
            options = _options(dataset, args, f"Tokenizing the teacher's prompts of the {name} dataset")
            read = {"tokenizer": tokenizer, "template": fallback, "assistant_only": args.assistant_only_loss}
            dataset = dataset.map(teacher_tokens, fn_kwargs=read, remove_columns=[TEACHER_PROMPT], **options)
    if only_asked:
        with _main_first():
            options = _options(dataset, args, f"Tokenizing the prompts of the {name} dataset")
            dataset = dataset.map(_ask, fn_kwargs=how, **options)
    dataset = prepare(dataset, tokenizer, whole, False, formatting_func, name)
    how = {**how, "tokenized": "input_ids" in columns, "cut": None if packing else _cut(args), "packing": packing}
    how["asks"] = asks
    with _main_first():
        options = _options(dataset, args, f"Adding prompts to the {name} dataset")
        dataset = dataset.map(_carry, fn_kwargs=how, remove_columns=[TOKENS] if own else None, **options)
        if packing:
            return _packed(dataset, args, options)
        if only_asked or args.max_length is not None:  # which may leave nothing to train on
            dataset = dataset.filter(partial(_is_of_use, unread or only_asked), **options)
    return dataset


def _packed(dataset: Rows, args: RolloutOptions, options: dict[str, Any]) -> Rows:
    """Packs as TRL does, and the prompts too."""
    columns = [name for name in _columns(dataset) if name in ("input_ids", "labels", *CARRIED)]
    dataset = pack_dataset(dataset.select_columns(columns), args.max_length, args.packing_strategy, options)
    if CONTEXTS in columns:
        dataset = dataset.map(unpacked_contexts, **options)
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


# Rows that only ask


def check_answers(args: RolloutOptions, datasets: dict[str, Any]) -> None:
    """
    Stop at data sets whose rows need completions and have none.

    Args:
        args ([`RolloutOptions`]):
            Options.
        datasets (`dict[str, Any]`):
            Data sets by name, as a trainer takes them. The one to train on has the name `TRAIN`.

    Raises:
        `ValueError`: If rows have no completion, and nobody writes one.
    """
    for name, dataset in datasets.items():
        if isinstance(dataset, dict):
            check_answers(args, {key: each for key, each in dataset.items() if key != TRAIN})
        elif isinstance(dataset, Dataset | IterableDataset):
            number = first_unanswered(dataset, args)
            if number is not None:
                _refuse_unanswered(args, name, number)


def _refuse_unanswered(args: RolloutOptions, name: str, number: int) -> None:
    first = f"(row {number} is the first)"
    now = f"`lmbda` is {args.lmbda} and `seq_kd` {args.seq_kd}"
    if name == TRAIN and not args.generates_always:
        raise UsageError(
            f"Rows of the train data set have no `completion` {first}, and {now}, so that steps train on it. Add it, "
            "or let every completion be generated: by the student with `lmbda` 1.0, or by the teacher with `seq_kd` "
            "True."
        )
    if not args.generates:
        raise UsageError(
            f"Rows of the {name} data set have no `completion` {first} to measure at, and {now}, so that nobody "
            "writes one. Add it, or evaluate on other rows."
        )


def first_unanswered(dataset: Rows, args: RolloutOptions) -> int | None:
    """
    The number of the first row that has a prompt and no completion, or 0 where a data set begins with turns that
    nobody answers. `None` where all are answered; of a stream only the first row is looked at.
    """
    if (args.dataset_kwargs or {}).get("skip_prepare_dataset") or not _is_raw(dataset):
        return None
    first: dict[str, Any] = next(iter(dataset), {})
    if "prompt" not in first:
        # Without `assistant_only_loss` TRL trains on the turns of the user too
        turns = (args.assistant_only_loss and first.get("messages")) or []
        return 0 if turns and not any(turn["role"] == "assistant" for turn in turns) else None
    if first.get("completion") is None:
        return 0
    # Of a table rows may have been left out, so that a missing value of it need not be one of these
    if isinstance(dataset, IterableDataset) or not dataset.data.column("completion").null_count:
        return None
    tables = dataset.select_columns("completion").with_format("arrow").iter(1000)
    for begin, table in zip(itertools.count(0, 1000), tables, strict=False):
        if table["completion"].null_count:
            return begin + table["completion"].is_null().to_pylist().index(True)
    return None


def _check_answer(args: RolloutOptions, name: str, row: dict[str, Any], number: int) -> dict[str, Any]:
    if row.get("completion") is None:
        _refuse_unanswered(args, name, number)
    return row


def _ask(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, fallback: str | None) -> dict[str, Any]:
    prompt = prompt_of(row, tokenizer, fallback)
    return {"input_ids": prompt, "labels": [IGNORED] * len(prompt), PROMPTS: [np.array(prompt, dtype=np.int32)]}


# Prompts


def _guessed(row: dict[str, Any]) -> list[int]:
    """The prompt of a row that is tokens already: all that tells of it is what is trained on."""
    mask = row.get("completion_mask")
    trained = [label != IGNORED for label in row["labels"]] if mask is None else [bool(bit) for bit in mask]
    return prompt_before(row["input_ids"], trained)


def _carry(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    fallback: str | None,
    tokenized: bool,
    cut: slice | None,
    packing: bool,
    asks: bool,
) -> dict[str, Any]:
    """What `prepared` says of the columns, and the row without what is too long."""
    prompt: list[int] | None = None
    if not asks:
        pass
    elif PROMPTS in row:
        (prompt,) = row[PROMPTS]
    else:
        prompt = _guessed(row) if tokenized else prompt_of(row, tokenizer, fallback)
    ids, labels = (row[name] if cut is None else row[name][cut] for name in ("input_ids", "labels"))
    # An array has a type, also if it is empty, so that the first rows of a table don't decide on another one
    column = [np.asarray([] if prompt is None else prompt, dtype=np.int32), *[None] * (len(ids) - 1 if packing else 0)]
    columns = carried_columns(row, cut, prompt, len(ids), packing) if TOKENS in row else {}
    return {"input_ids": ids, "labels": labels, **({PROMPTS: column} if asks else {}), **columns}


def _is_of_use(prompts_suffice: bool, row: dict[str, Any]) -> bool:
    asked = prompts_suffice and PROMPTS in row and len(row[PROMPTS][0]) > 0
    return asked or any(label != IGNORED for label in row["labels"])


def _cut(args: RolloutOptions) -> slice | None:
    if args.max_length is None:
        return None
    return slice(-args.max_length, None) if args.truncation_mode == "keep_end" else slice(args.max_length)


# Labels of rows that are tokens already


def _with_labels(dataset: Rows, args: RolloutOptions) -> Rows:
    """
    Labels of rows that are tokens and say by a `completion_mask` what the completion is. As with rows of `prompt` and
    `completion`, it alone is trained on unless `completion_only_loss` says otherwise.
    """
    columns = _columns(dataset)
    if (
        args.completion_only_loss is not None
        or "labels" in columns
        or not {"input_ids", "completion_mask"} <= {*columns}
    ):
        return dataset
    masks = [name for name in ("completion_mask", "assistant_masks") if name in columns]
    with _main_first():
        options = _options(dataset, args, "Building labels")
        return dataset.map(_labels, fn_kwargs={"masks": masks}, remove_columns=masks, **options)


def _labels(row: dict[str, Any], masks: list[str]) -> dict[str, Any]:
    bits = zip(*(row[name] for name in masks), strict=True)
    return {"labels": [i if all(each) else IGNORED for i, each in zip(row["input_ids"], bits, strict=True)]}


# What is done to a data set


def _columns(dataset: Rows) -> list[str]:
    return dataset.column_names or list(next(iter(dataset), {}))


def _is_raw(dataset: Rows) -> bool:
    """Whether TRL tokenizes it. It refuses rows that are transformed while they are read."""
    transformed = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    return not transformed and "input_ids" not in _columns(dataset)


def _options(dataset: Rows, args: RolloutOptions, what: str) -> dict[str, Any]:
    return {"num_proc": args.dataset_num_proc, "desc": what} if isinstance(dataset, Dataset) else {}


@contextmanager
def _main_first() -> Iterator[None]:
    """What is written to a cache is written once for all processes that can read it."""
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield
