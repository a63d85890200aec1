# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Names on a command line -> data sets and models: from the Hub, from disk, or built in."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import written
from ..names import did_you_mean


if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ScriptArguments

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_data(script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> Any:
    """
    Load what `--dataset_name` or the recipe's `datasets` say.

    A name is `tiny` (built in), a file (json, jsonl, csv, parquet, txt), a folder that `save_to_disk` wrote, a folder
    of data files, or a data set on the Hub.

    Returns:
        `datasets.DatasetDict`: One data set per split. Files have the one split `train`.
    """
    import datasets

    check_data(script_args, dataset_args)
    name = script_args.dataset_name
    try:
        with written(datasets.config.HF_DATASETS_CACHE):
            return _load(name, script_args, dataset_args)
    # What `datasets` raises for a name that does not exist, a Hub out of reach, and a file that it cannot parse.
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"cannot load the data set {name or dataset_args.datasets}: {error}") from error


def _load(name: str | None, script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> Any:
    import datasets
    from trl import get_dataset

    if name is None:
        return get_dataset(dataset_args)
    if name == "tiny":
        from ..tiny import load_tiny_dataset

        return load_tiny_dataset()
    path = Path(name)
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise UsageError(f"cannot read {name}: expected a file of type {', '.join(BUILDERS)}")
        streaming = script_args.dataset_streaming
        return datasets.load_dataset(BUILDERS[path.suffix], data_files=name, streaming=streaming)
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(name)
    if (path / "state.json").is_file():
        return {"train": datasets.load_from_disk(name)}
    return datasets.load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)


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


def resolve_model(name: str | None, option: str) -> str:
    """
    The name of a model as `from_pretrained` takes it: `tiny:...` is a folder of this package, all else stays.

    Args:
        name (`str` or `None`):
            A built-in model, a folder, a model on the Hub, or as the teacher `student_base`.
        option (`str`):
            The option that it comes from, for the message.
    """
    if not name:
        raise UsageError(f"no model: give --{option}")
    if name.startswith("tiny:"):
        from ..tiny import resolve

        return str(resolve(name))
    check_path(name, f"model (--{option})")
    return name


def check_model(name: str, revision: str | None, trust_remote_code: bool, option: str) -> None:
    """Read a model's configuration, so that a wrong name is one line now rather than a traceback from eight ranks."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model {name!r} (--{option}): {str(error).splitlines()[0]}") from error


def check_path(name: str, what: str) -> None:
    """Stop at a name that can only be a path, of something that is not there."""
    path = Path(name).expanduser()
    if path.exists():
        return
    # A Hub name is `name` or `owner/name`, so a path is what starts like one, goes deeper or ends in a file type.
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in BUILDERS:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no such {what}: {name}{did_you_mean(path.name, siblings)}")
