# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Names on a command line -> data sets: from the Hub, from disk, or built in."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import why_unwritable, written
from ..paths import BUILDERS, check_path, hub_problem


if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ScriptArguments


class UnreadableError(UsageError):
    """Data that `datasets` can't read, in its words."""


def load_data(script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> Any:
    """
    Load what `--dataset_name` or the recipe's `datasets` say.

    A name is `tiny` (built in), a file (json, jsonl, csv, parquet, txt), a folder that `save_to_disk` wrote, a folder
    of data files, or a data set on the Hub.

    Returns:
        `datasets.DatasetDict`: One data set per split. Files have the one split `train`.
    """
    check_data(script_args, dataset_args)
    if script_args.dataset_name == "tiny":
        from ..tiny import load_tiny_dataset

        return load_tiny_dataset()
    path = Path(script_args.dataset_name or "")
    if path.is_file() and path.suffix not in BUILDERS:
        raise UsageError(f"cannot read {path}: expected a file of type {', '.join(BUILDERS)}")
    import datasets

    with data_faults(script_args, dataset_args), written(datasets.config.HF_DATASETS_CACHE):
        return _load(script_args, dataset_args)


def _load(script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> Any:
    import datasets
    import pyarrow as pa
    from trl import get_dataset

    name, streaming = script_args.dataset_name, script_args.dataset_streaming
    path = Path(name or "")
    try:
        if name is None:
            return get_dataset(dataset_args)
        if path.is_file():
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=name, streaming=streaming)
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)
        if (path / "state.json").is_file():
            return {"train": datasets.load_from_disk(name)}
        if not path.exists():
            _check_hub(name)
        return datasets.load_dataset(name, name=script_args.dataset_config, streaming=streaming)
    except (StopIteration, IndexError) as error:  # where `datasets` takes it for granted that there is one
        raise UnreadableError(f"cannot load the data set {name or dataset_args.datasets}: it has no rows") from error
    # Of names that don't exist, a Hub out of reach, and files that can't be parsed
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        if why_unwritable(error) is not None:
            raise
        said = str(error if isinstance(error, OSError) else _first_cause(error))
        said = "it has no rows" if "corresponds to no data" in said else said
        raise UnreadableError(f"cannot load the data set {name or dataset_args.datasets}: {said}") from error


def _first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _check_hub(name: str) -> None:
    """Give up at once on a data set that is neither here nor in the cache, where the Hub is out of reach."""
    import datasets

    if not Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).exists():
        problem = None if datasets.config.HF_HUB_OFFLINE else hub_problem()
        if problem is not None:
            raise FileNotFoundError(f"it is no file or folder here, and {problem}")


@contextmanager
def data_faults(script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> Iterator[None]:
    """
    Name the file and the line that keep data from being read: when they are loaded, or while they are streamed.

    Whatever else goes wrong goes through.
    """
    import datasets
    import pyarrow as pa

    from .files import fault_of, files_of

    try:
        with _faults_said_once():
            yield
    except (ValueError, StopIteration, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, UsageError) and not isinstance(error, UnreadableError):
            raise
        columns = isinstance(_first_cause(error), datasets.table.CastError)
        files = files_of(script_args.dataset_name, dataset_args.datasets or ())
        fault = next(filter(None, (fault_of(file, columns) for file in files)), None)
        if fault is None:
            raise
        raise UsageError(f"cannot load the data set: {fault}") from error


@contextmanager
def _faults_said_once() -> Iterator[None]:
    """Leave out what the readers of `datasets` log of a fault just before they raise it."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.levelno != logging.ERROR or not record.name.startswith("datasets.packaged_modules.")

    handlers = logging.getLogger("datasets").handlers.copy()
    for handler in handlers:
        handler.addFilter(is_other)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_other)


def check_data(script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> None:
    """Stop at what can be seen to be wrong with the names of the data before anything is loaded."""
    if dataset_args.datasets and script_args.dataset_name:
        raise UsageError("both `datasets` and `dataset_name` are given: keep one of them")
    if not dataset_args.datasets and not script_args.dataset_name:
        raise UsageError("no data set: give --dataset_name, or a list `datasets` in the recipe")
    if script_args.dataset_name:
        check_path(script_args.dataset_name, "data set")


def select_split(dataset: Any, split: str, option: str) -> Any:
    """The split of a data set, or an error that names those that exist."""
    if split not in dataset:
        raise UsageError(
            f"the data set has no split {split!r}; it has: {', '.join(dataset)} (--{option} says which to use)"
        )
    return dataset[split]
