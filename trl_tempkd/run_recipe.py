# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The recipe of a run, as somebody else can run it: what was asked for, without what only this machine knows."""

import dataclasses
import os
import re
from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel

from .config import not_at_default
from .divergences import DIVERGENCES
from .extensions import KEY, source_of
from .temperature_rules import TEMPERATURE_RULES
from .tiny import TINY_MODELS, tiny_model_path


# What nobody else needs, or may see
_PRIVATE = {"hub_token", "push_to_hub_token", "resume_from_checkpoint", "resume_with_changes", "local_rank", "config"}
_SECRET = re.compile(r"(token|password|secret|api_key)$")
# Of an adapter's configuration, and what the command line calls it
_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
_SNAPSHOT = re.compile(r"models--(?P<name>[^/\\]+)[/\\]snapshots[/\\][0-9a-f]+")


def public_name(name: Any) -> str | None:
    """
    What others may be told of the name of a model, a data set or a folder: of one on this machine no more than what it
    is called, `tiny:student` of one that is built in.
    """
    text = str(name or "")
    for built_in in TINY_MODELS:
        if text and Path(text).expanduser().absolute() == Path(tiny_model_path(built_in)):
            return f"tiny:{built_in}"
    if found := _SNAPSHOT.search(text):  # of the cache of the Hub
        return found["name"].replace("--", "/", 1)
    is_path = (
        os.path.isabs(text) or re.match(r"[a-zA-Z]:[\\/]", text) or text.startswith(("~", ".")) or os.path.isdir(text)
    )
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] or None if is_path else text or None


def is_on_the_hub(name: Any) -> bool:
    """Whether a name can be one of the Hub: no folder here, and nothing built in."""
    text = str(name or "")
    return public_name(text) == text and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text)) and not os.path.exists(text)


def recipe_of(trainer: Any, dataset_name: str | None = None) -> str:
    """
    What `trl-tempkd distill --config` takes to train as a trainer does: the options that were given.

    Args:
        trainer ([`TemperatureKDTrainer`]): it. What the command line was given beside its configuration, it knows.
        dataset_name (`str`, *optional*): the data, where the trainer was given the rows themselves.

    Returns:
        `str`: YAML, with a comment on what it can't say.
    """
    args = trainer.args
    found: dict[str, Any] = {}
    if trainer.parts:
        for part in trainer.parts:
            found |= {field.name: getattr(part, field.name) for field in not_at_default(part)}
    else:
        model = trainer.accelerator.unwrap_model(trainer.model)
        named = {"model_name_or_path": model.config._name_or_path, "dataset_name": dataset_name}
        found = {name: value for name, value in named.items() if value} | _adapter(model)
    elsewhere = args.teachers is not None or args.teacher_cache is not None or args.teacher_server_url is not None
    if args.teacher_model_name_or_path is None and not elsewhere and trainer.teacher.name:
        found["teacher_model_name_or_path"] = trainer.teacher.name
    found |= args.given()
    plain = {name: _plain(name, value) for name, value in found.items() if name not in _PRIVATE}
    left_out = [name for name, value in plain.items() if value is _NOT_PLAIN]
    recipe = {KEY: files} if (files := _own_files(args)) else {}
    recipe |= {name: value for name, value in plain.items() if name not in left_out}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110).rstrip()
    return f"# Left out, as YAML can't say it: {', '.join(left_out)}\n{text}" if left_out else text


def _own_files(args: Any) -> list[str]:
    """Names of the files that register what the run has used and the library hasn't."""
    entries = args.teachers or []
    divergences = [args.divergence, *(entry.get("divergence") for entry in entries)]
    functions = [DIVERGENCES.get(str(name)) for name in divergences]
    functions.append(TEMPERATURE_RULES.get(str(args.kd_temperature_rule)))
    own = [source_of(function) for function in functions if function is not None]
    return list(dict.fromkeys(Path(of[0]).name for of in own if of is not None and of[0] is not None))


def _adapter(model: Any) -> dict[str, Any]:
    config = next(iter(model.peft_config.values())) if isinstance(model, PeftModel) else None
    if not isinstance(config, LoraConfig):
        return {}
    return {"use_peft": True} | {
        option: getattr(config, name) for name, option in _LORA.items() if getattr(config, name)
    }


_NOT_PLAIN = object()  # stands for what YAML can't say


def _plain(name: str, value: Any) -> Any:
    """A value as YAML has it. Of a path on this machine its last part is left, of what lets somebody in nothing."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Path | str):
        return _without_place(name, str(value))
    if isinstance(value, bool | None):
        return value
    if isinstance(value, Integral):  # NumPy's too
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        parts = {str(key): _plain(str(key), of) for key, of in value.items() if not _is_secret(str(key), of)}
        return _NOT_PLAIN if any(each is _NOT_PLAIN for each in parts.values()) else parts
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        items = [_plain(name, each) for each in ordered]
        return _NOT_PLAIN if any(each is _NOT_PLAIN for each in items) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(name, {field.name: getattr(value, field.name) for field in not_at_default(value)})
    return _NOT_PLAIN


def _is_secret(name: str, value: Any) -> bool:
    return bool(_SECRET.search(name)) and isinstance(value, str)


def _without_place(name: str, text: str) -> str:
    if "://" in text:  # a server here is nobody else's
        return "http://localhost:8000" if name.endswith("url") else re.sub(r"://[^/@]*@", "://", text)
    return str(public_name(text) or text) if _is_place(text) else text


def _is_place(text: str) -> bool:
    return os.path.isabs(text) or text.startswith(("~/", "../"))
