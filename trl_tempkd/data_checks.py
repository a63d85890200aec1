# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Data sets that can't be trained on, found before a model is loaded where that is possible.

The first rows are looked at always, the others where something has gone wrong: then the row is named.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import AutoProcessor, PreTrainedTokenizerBase

from .compat import get_config_model_id, get_training_chat_template, has_generation_markers
from .counted_tokens import UnwritableError, counted_tokens, described, has_target
from .errors import UsageError, UsageTypeError
from .models import load_processor
from .rollouts.options import RolloutOptions
from .row_formats import PROMPTS, ROUTE, TEACHER, TEACHER_PROMPT, Expected, Row, is_chat, problem_of
from .vision import is_pictured
from .vision_data import check_vision_options, check_vision_rows, has_images, undecoded


logger = get_logger(__name__)

FIRST_ROWS = 32  # looked at before anything is loaded
MOST_ROWS = 10_000  # looked at then, in the search for one with something left to train on; of a stream a tenth


def check_datasets(
    model: Any,
    args: RolloutOptions,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    processing_class: Any = None,
    formatting_func: Callable | None = None,
    data_collator: Any = None,
    **_: Any,
) -> Any:
    """
    Stop at data that can't be trained on. Arguments as of the trainer, before it loads anything.

    Returns:
        The processor or the tokenizer of the run, or `None` where it isn't known before the model.

    Raises:
        [`UsageError`]: Names the data set, the row, the problem, and the way out.
    """
    if train_dataset is None:
        raise UsageError("`train_dataset` is None: the trainer needs data to train on.")
    named = {"`train_dataset`": train_dataset}
    pictured = has_images(undecoded(train_dataset)) if isinstance(train_dataset, Dataset | IterableDataset) else False
    if isinstance(eval_dataset, Mapping):
        named |= {f"`eval_dataset[{name!r}]`": dataset for name, dataset in eval_dataset.items()}
    elif eval_dataset is not None:
        named["`eval_dataset`"] = eval_dataset
    tokenizer = None
    for name, dataset in named.items():
        rows = first_rows(dataset, name)
        _check_skipped(args, rows[0], name)
        if is_pictured(rows[0]) and not pictured:
            raise UsageError(
                f"{name} has images, and `train_dataset` has no column for them, so that they would be left out. Give "
                "it one, `images`, which may be empty in every row."
            )
        if pictured:
            check_vision_options(name, args, formatting_func, data_collator)
            processing_class = load_processing_class(model, args, processing_class)
            check_vision_rows(rows, name, args, processing_class, _template_of(args, processing_class))
            continue
        if formatting_func is not None or _is_prepared_elsewhere(args, dataset, rows[0]):
            continue
        check_rows(rows, name, args, processing_class)
        tokenizer = _load_tokenizer(model, args, processing_class) if tokenizer is None else tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            continue
        with_template = _with_template(rows[0], name, tokenizer, args)
        packing = args.packing if dataset is train_dataset or args.eval_packing is None else args.eval_packing
        answered = not (
            args.generates_always and dataset is train_dataset
        )  # else the prompt suffices, which stays whole
        if with_template is not None and args.max_length is not None and answered and not packing:
            _check_lengths(dataset, name, with_template, args)
    return processing_class if tokenizer is None else tokenizer


def _check_skipped(args: Any, row: Row, name: str) -> None:
    """Stop at columns that only the preparation reads, where there is none."""
    if not (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        return
    unread = [TEACHER_PROMPT] + ([TEACHER, ROUTE] if args.teachers is not None else [])
    for column in unread:
        if column in row:
            raise UsageError(
                f"`dataset_kwargs` has `skip_prepare_dataset`, and {name} a column `{column}`, which nothing but the "
                "preparation reads. Leave `skip_prepare_dataset` out, or the column."
            )


def first_rows(dataset: Any, name: str) -> list[Row]:
    """
    The first rows of a data set.

    Raises:
        [`UsageError`]: If it has none, or is no data set.
    """
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise UsageTypeError(f"{name} has several splits, {', '.join(dataset)}: pass one of them.")
    if not isinstance(dataset, Dataset | IterableDataset):
        raise UsageTypeError(
            f"{name} must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}. "
            "`Dataset.from_list(rows)` makes one of a list of dicts."
        )
    rows = list(islice(undecoded(dataset), FIRST_ROWS if isinstance(dataset, Dataset) else 1))
    if not rows:
        raise UsageError(f"{name} has no rows. Give a split that has some.")
    return rows


def check_rows(rows: Iterable[Row], name: str, args: RolloutOptions, processing_class: Any = None) -> None:
    """Stop at the first row that can't be trained on."""
    expected = _expected(args, processing_class)
    rows = list(rows)
    for number, row in enumerate(rows):
        _checked(name, expected, row, number)
    if rows and is_pictured(rows[0]):
        check_vision_rows(rows, name, args, processing_class)


def prepared(prepare: Callable[..., Any], dataset: Any, tokenizer: Any, args: RolloutOptions, *others: Any) -> Any:
    """
    A data set as the trainer prepares it, whose failures name the row.

    Args:
        prepare (`Callable`):
            The trainer's preparation.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Any data set that it takes.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the run.
        args ([`RolloutOptions`]):
            Options of the run.
        others (`tuple`):
            What else the preparation takes: whether to pack, a formatting function, the name of the data set.

    Raises:
        [`UsageError`]: If there is no row, a row is not what it should be, or nothing is left to train on. A bad row
            of a stream is found when its turn comes.
    """
    packing, formatting_func, split = others
    name = f"the {split} data"
    if isinstance(dataset, Dataset) and "labels" in dataset.column_names and not len(dataset):
        return prepare(dataset, tokenizer, args, *others)  # ready, and nothing to measure
    first_rows(dataset, name)
    own = formatting_func is not None
    expected = _expected(args, tokenizer)._replace(completion=not args.generates)
    if isinstance(dataset, IterableDataset):
        streamed = dataset if own else dataset.filter(partial(_checked, name, expected), with_indices=True)
        return prepare(streamed, tokenizer, args, *others)
    try:
        result = prepare(dataset, tokenizer, args, *others)
    except UsageError:
        raise
    except Exception as error:
        problem = None if own else _find_problem(dataset, expected, tokenizer)
        if problem is None:
            raise
        raise UsageError(f"{name}, {problem}") from error
    _check_left(dataset, result, name, packing, args)
    return result


def _checked(name: str, expected: Expected, row: Row, number: int) -> bool:
    problem = problem_of(row, expected)
    if problem is not None:
        raise UsageError(f"{name}, row {number}: {problem}")
    return True


def _expected(args: RolloutOptions, processing_class: Any) -> Expected:
    template = getattr(processing_class, "chat_template", None)
    answered = args.assistant_only_loss and not args.generates_always
    return Expected(args.dataset_text_field, assistant=answered, template=str(template or ""))


def _is_prepared_elsewhere(args: RolloutOptions, dataset: Any, row: Row) -> bool:
    """Whether rows are made ready by a collator or a transform of the user's."""
    transformed = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    return transformed or bool((args.dataset_kwargs or {}).get("skip_prepare_dataset"))


def _load_tokenizer(model: Any, args: RolloutOptions, processing_class: Any) -> Any:
    """The tokenizer that the trainer will use, or `None` where it can't be had before the model."""
    if processing_class is not None:
        return processing_class
    name, revision = model, None
    if not isinstance(model, str):
        name = get_config_model_id(model.config) if hasattr(model, "config") else None
    elif isinstance(args.model_init_kwargs, dict):
        revision = args.model_init_kwargs.get("revision")
    if not name:
        return None
    try:
        return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError, ImportError):  # the trainer says so, if it doesn't find one elsewhere either
        return None


def load_processing_class(model: Any, args: RolloutOptions, processing_class: Any) -> Any:
    """
    The processor or the tokenizer that the trainer will use, or `None` where it can't be known before the model.

    Raises:
        [`UsageError`]: If it can't be loaded.
    """
    if processing_class is not None or not isinstance(model, str):
        return _load_tokenizer(model, args, processing_class)
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(args.model_init_kwargs, dict) else None
    return load_processor(model, revision, args.trust_remote_code, "student")


def _template_of(args: RolloutOptions, processing_class: Any) -> str | None:
    """The chat template that TRL trains with in place of the processor's own, if it is another."""
    path = args.chat_template_path
    own = Path(path).read_text(encoding="utf-8") if path is not None and path.endswith((".jinja", ".j2")) else None
    if not args.assistant_only_loss or not getattr(processing_class, "chat_template", None):
        return own
    marked = copy.copy(processing_class)
    marked.chat_template = own or processing_class.chat_template
    return _with_marks(marked).chat_template


def _with_template(row: Row, name: str, tokenizer: PreTrainedTokenizerBase, args: RolloutOptions) -> Any:
    """
    The tokenizer with the template that the trainer will use.

    Raises:
        [`UsageError`]: If there is none that writes conversations, or none that marks what the assistant says.
    """
    chat = is_chat(row)
    if args.assistant_only_loss and not chat and "input_ids" not in row:
        raise UsageError(
            f"{name} has no conversations, and `assistant_only_loss` is about their turns. Leave it at False: of "
            "`prompt` and `completion`, the completion alone is trained on."
        )
    if not chat:
        return tokenizer
    path = args.chat_template_path
    if path is not None and not path.endswith((".jinja", ".j2")):
        return None  # the template of another model, which comes with its tokens
    tokenizer = copy.copy(tokenizer)
    if path is not None:
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UsageError(
            f"{name} has conversations, and the tokenizer has no chat template. Set `chat_template_path` to a Jinja "
            "file or to a model that has one, or use `prompt` and `completion` as plain text."
        )
    return _with_marks(tokenizer) if args.assistant_only_loss else tokenizer


def _with_marks(tokenizer: Any) -> Any:
    """The tokenizer or processor, with a template that marks what the assistant says."""
    if has_generation_markers(tokenizer.chat_template):
        return tokenizer
    try:
        tokenizer.chat_template = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise UsageError(
            "`assistant_only_loss` needs a chat template with `{% generation %}` around what the assistant says, "
            "and the tokenizer's has none. Use rows of `prompt` and `completion`, whose completion alone is "
            "trained on, or set `chat_template_path` to a template that has these marks."
        ) from error
    return tokenizer


def _check_lengths(dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, args: RolloutOptions) -> None:
    """Stop at data of which `max_length` leaves nothing to train on."""
    most = MOST_ROWS if isinstance(dataset, Dataset) else MOST_ROWS // 10
    expected = _expected(args, tokenizer)
    first: list[bool] | None = None
    number = -1
    for number, row in enumerate(islice(dataset, most)):
        if "prompt" in row and row.get("completion") is None:
            return  # what is to be trained on isn't there yet
        _checked(name, expected, row, number)
        try:
            counted = counted_tokens(row, tokenizer, args)
        except UnwritableError as error:
            raise UsageError(f"{name}, row {number}: {error}") from error
        if has_target(counted, args):
            return
        first = counted if first is None else first
    said = (
        f"has nothing left to train on in any of its {'first ' * (number + 1 == most)}{number + 1} rows, which are "
        f"cut at `max_length` {args.max_length}. {described(first or [])} Raise `max_length`, or leave out what is "
        "longer."
    )
    if number + 1 < most:
        raise UsageError(f"{name} {said}")
    logger.warning(f"{name} {said}")


def _check_left(dataset: Dataset, result: Any, name: str, packing: bool, args: RolloutOptions) -> None:
    """After the preparation: stop where no token is trained on, and say how many rows have none."""
    if "labels" not in (result.column_names or ()):
        return
    labels = result.select_columns("labels")
    asks = args.generates and PROMPTS in result.column_names  # rows that have nothing to ask are left out
    if not (asks and len(result)) and not any(label != -100 for row in labels for label in row["labels"][1:]):
        raise UsageError(
            f"{name} has nothing to train on: of {len(dataset)} rows none has a token that counts once they are cut "
            f"at `max_length` {args.max_length}. Raise `max_length`, or look at what is masked "
            "(`completion_only_loss`, `assistant_only_loss`, `labels` of -100)."
        )
    if "labels" in dataset.column_names and (row := _unequal(dataset)) is not None:
        raise UsageError(f"{name}, row {row}: has not as many `labels` as `input_ids`.")
    dropped = len(dataset) - len(result)
    if dropped > 0 and not packing:
        logger.warning(
            f"{dropped} of {len(dataset)} rows of {name} ({dropped / len(dataset):.1%}) have no token left to train "
            f"on after `max_length` {args.max_length}, and are left out."
        )


def _unequal(dataset: Dataset) -> int | None:
    """The first row whose labels aren't as many as its tokens, looked for without reading them."""
    start = 0
    for batch in dataset.select_columns(["input_ids", "labels"]).with_format("arrow").iter(1000):
        lengths = [pc.list_value_length(column).to_numpy() for column in batch.columns]
        (unequal,) = (lengths[0] != lengths[1]).nonzero()
        if len(unequal):
            return start + int(unequal[0])
        start += len(batch)
    return None


def _find_problem(dataset: Any, expected: Expected, tokenizer: Any) -> str | None:
    """The first row that keeps the data from being prepared, and why."""
    for number, row in enumerate(dataset):
        problem = problem_of(row, expected)
        turns = row.get("messages") or row.get("prompt")
        if problem is None and isinstance(turns, list):
            try:
                tokenizer.apply_chat_template(turns, tokenize=False)
            except Exception as error:  # the template's, about this row
                problem = f"the chat template can't write it: {error}"
        if problem is not None:
            return f"row {number}: {problem}"
    return None
