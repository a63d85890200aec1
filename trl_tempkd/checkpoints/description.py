# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a run is: written into its checkpoints, and compared when one of them is resumed."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import accelerate
import datasets
import peft
import torch
import transformers
import trl
import xxhash
from peft import PeftModel

from .._version import __version__
from ..compat import get_model_param_count
from ..divergences import DIVERGENCES
from ..errors import UsageError
from ..fingerprint import row_hash
from ..objectives import OBJECTIVES, own_sources
from ..objectives.options import DivergenceOptions, TemperatureOptions
from ..own import completed
from ..parameters import parameter_hash
from ..row_formats import CONTEXTS
from ..teachers.several_options import TeacherSpec
from ..temperature_rules import TEMPERATURE_RULES
from ..vocabularies.options import VocabularyOptions
from .whole import record_of


# Options that decide the target: what the student is compared with, in which way, and on whose text
_GROUPS = (DivergenceOptions, TemperatureOptions, VocabularyOptions)
_OBJECTIVE = [field.name for group in _GROUPS for field in dataclasses.fields(group)]
_SOURCES = ["lmbda", "lmbda_schedule", "seq_kd", "replay_size", "replay_ratio"]
_SAMPLING = ["max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"]
# Options that change the way there
_OPTIONS = [
    "seed", "data_seed", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_length", "packing",
    "packing_strategy", "padding_free", "completion_only_loss", "assistant_only_loss", "shuffle_dataset",
    "train_sampling_strategy", "dataloader_drop_last", "disable_dropout", "bf16", "fp16",
]  # fmt: skip
_ADAPTER = [
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias", "use_rslora",
    "use_dora",
]  # fmt: skip
_HASHES = {"teacher.identity", "data.sample", "student_base"}  # `None` where they aren't known
_TOKENS = ("input_ids", "labels", CONTEXTS)  # columns of a row
_FIRST_ROWS = 16  # of a stream
_SPREAD = 64  # rows of a data set that can be looked into


def describe(trainer: Any) -> dict[str, Any]:
    """
    What the run of a trainer is, as it comes back from JSON.

    Args:
        trainer ([`TemperatureKDTrainer`]): it. On the main process only: elsewhere models may have no weights yet.

    Returns:
        `dict`: `target` has what decides the target, `run` the rest.
    """
    args, unwrap = trainer.args, trainer.accelerator.unwrap_model
    student = unwrap(trainer.model)
    target = options_of(args)
    target["teacher"] = trainer.teacher.identity()
    target["data"] = sample_of(trainer.train_dataset)
    target["student_parameters"] = get_model_param_count(student)
    target["adapter"] = target["student_base"] = None
    if isinstance(student, PeftModel):
        config = next(iter(student.peft_config.values())).to_dict()
        target["adapter"] = {name: config[name] for name in _ADAPTER if name in config}
        # Where an adapter starts from a decomposition of the base, what is left of that is computed anew each time
        if not isinstance(config.get("init_lora_weights"), str):
            target["student_base"] = parameter_hash(p for p in student.parameters() if not p.requires_grad)
    run = {name: getattr(args, name) for name in _OPTIONS}
    run["processes"] = trainer.accelerator.num_processes
    run["student"] = student.config._name_or_path
    run["versions"] = {"trl_tempkd": __version__, "torch": torch.__version__}
    run["versions"] |= {m.__name__: m.__version__ for m in (transformers, trl, accelerate, peft, datasets)}
    return json.loads(json.dumps({"target": target, "run": run}, default=_plain))


def options_of(args: Any) -> dict[str, Any]:
    """What a configuration says of the target, before anything is loaded."""
    target = {name: getattr(args, name) for name in [*_OBJECTIVE, *_SOURCES, *(_SAMPLING if args.generates else [])]}
    divergence = OBJECTIVES.get(args.divergence) or DIVERGENCES[args.divergence]
    target["divergence_kwargs"] = completed(divergence, args.divergence_kwargs)
    if args.kd_temperature_rule is not None:
        rule = TEMPERATURE_RULES[args.kd_temperature_rule]
        target["kd_temperature_rule_kwargs"] = completed(rule, args.kd_temperature_rule_kwargs)
    own = own_sources(target)
    if own:
        target["source"] = own
    if args.teachers is not None:
        target["teachers"] = [spec.described() for spec in TeacherSpec.read(args).values()]
    if args.teacher_server_url is not None:
        target["teacher_server_logprobs"] = args.teacher_server_logprobs
    return json.loads(json.dumps(target, default=_plain))


def compare(checkpoint: Path, description: dict[str, Any], insisting: bool) -> list[str]:
    """
    Compare a checkpoint with the run that is to go on from it.

    Args:
        checkpoint (`pathlib.Path`): its folder.
        description (`dict`): what [`describe`] says of the run, or the options of it alone.
        insisting (`bool`): whether to go on whatever differs.

    Returns:
        `list[str]`: what is to be said of it, a sentence each.

    Raises:
        [`UsageError`]: If what decides the target differs.
    """
    record = record_of(checkpoint)
    if record is None:
        return [f"{checkpoint} doesn't say what run it is of, so it can't be compared with this one."]
    target, run = (differences(record.get(part, {}), description.get(part, {})) for part in ("target", "run"))
    if target and not insisting:
        raise UsageError(
            f"{checkpoint} is of another run: {'; '.join(target)}. Resume it with what it was made with, give another "
            "`output_dir` to start anew, or set `resume_with_changes` to go on nevertheless."
        )
    changes = [*target, *run]
    return [f"{checkpoint} was made with other options: {'; '.join(changes)}."] if changes else []


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def sample_of(dataset: Any) -> dict[str, Any]:
    """
    Number of rows of a prepared data set, and a hash of the tokens and labels of some of them: the first and the last,
    and others between them; of a stream the first.
    """
    if dataset is None:
        return {}
    if isinstance(dataset, datasets.IterableDataset):
        count, rows = None, islice(dataset, _FIRST_ROWS)
    else:
        count = len(dataset)
        columns = [name for name in _TOKENS if name in dataset.column_names]
        places = {
            *range(min(8, count)),
            *range(max(0, count - 8), count),
            *(i * count // _SPREAD for i in range(_SPREAD)),
        }
        rows = dataset.with_format(None).select_columns(columns).select(sorted(places) if count else [])
    if not isinstance(dataset, datasets.IterableDataset) and not columns:  # with images, which have no tokens yet
        shown = dataset.with_format(None).select(sorted(places) if count else [])
        return {"rows": count, "sample": xxhash.xxh3_64_hexdigest("".join(map(row_hash, shown)).encode())}
    tokens = [[[int(token) for token in row[name]] for name in _TOKENS if name in row] for row in rows]
    return {"rows": count, "sample": xxhash.xxh3_64_hexdigest(json.dumps(tokens).encode())}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is described in both and differs, as parts of a sentence, each with both values."""
    found = []
    for name in (name for name in before if name in now):
        old, new = before[name], now[name]
        of = name.removesuffix("_kwargs")
        if of != name and of in now and before[of] != now[of]:
            continue  # parameters of something else
        parts = [("", old, new)]
        if isinstance(old, dict) and isinstance(new, dict):
            parts = [(f".{key}", old.get(key), new.get(key)) for key in {**old, **new}]
        if name == "teacher" and None not in (old["identity"], new["identity"]):
            parts = [part for part in parts if part[0] != ".name"]
        for key, was, is_ in parts:
            unknown = f"{name}{key}" in _HASHES and None in (was, is_)
            if was != is_ and not unknown:
                found.append(f"`{name}{key}` was {was!r}, is {is_!r}")
    return found
