# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The recipe of a run, as somebody else can run it: what was asked for, without what only this machine knows."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel

from .extensions import KEY, source_of
from .objectives import OBJECTIVES
from .own import DIVERGENCES, TEMPERATURE_RULES
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


def recipe_of(trainer: Any) -> dict[str, Any]:
    """
    What `trl-tempkd distill --config` takes to train as a trainer does: the options that were given.

    Args:
        trainer ([`TemperatureKDTrainer`]): it. What the command line was given beside its configuration, it knows.

    Returns:
        `dict[str, Any]`: by the names of the options, as YAML has them.
    """
    args, parts = trainer.args, trainer.parts
    found: dict[str, Any] = {}
    for part in parts:
        found |= {name: getattr(part, name) for name in _changed(part)}
    if not parts:
        model = trainer.accelerator.unwrap_model(trainer.model)
        found["model_name_or_path"] = model.config._name_or_path or None
        found |= _adapter(model)
    given = args.given()
    found |= {"teacher_model_name_or_path": None} if args.teachers is None else {}
    found |= given
    if "teacher_model_name_or_path" in found and not found["teacher_model_name_or_path"] and not args.teacher_cache:
        found["teacher_model_name_or_path"] = None if args.teacher_server_url else trainer.teacher.name
    functions = [DIVERGENCES.get(args.divergence), TEMPERATURE_RULES.get(str(args.kd_temperature_rule))]
    own = [source_of(of) for of in functions if of is not None and args.divergence not in OBJECTIVES]
    files = dict.fromkeys(Path(of[0]).name for of in own if of is not None and of[0] is not None)
    recipe = {KEY: list(files)} if files else {}
    recipe |= {name: _plain(name, value) for name, value in found.items() if name not in _PRIVATE}
    return {name: value for name, value in recipe.items() if value is not None and value is not _NOT_PLAIN}


def recipe_text(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=110).rstrip()


def _changed(part: Any) -> Iterable[str]:
    """The fields of a dataclass that aren't at their defaults."""
    for field in dataclasses.fields(part):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.init and getattr(part, field.name) != default:
            yield field.name


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
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, Mapping):
        parts = {str(key): _plain(str(key), of) for key, of in value.items() if not _is_secret(str(key), of)}
        return _NOT_PLAIN if _NOT_PLAIN in parts.values() else parts
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        items = [_plain(name, each) for each in ordered]
        return _NOT_PLAIN if any(each is _NOT_PLAIN for each in items) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(name, {of: getattr(value, of) for of in _changed(value)})
    return _NOT_PLAIN


def _is_secret(name: str, value: Any) -> bool:
    return bool(_SECRET.search(name)) and isinstance(value, str)


def _without_place(name: str, text: str) -> str:
    if "://" in text:  # a server here is nobody else's
        return "http://localhost:8000" if name.endswith("url") else re.sub(r"://[^/@]*@", "://", text)
    return str(public_name(text) or text) if _is_place(text) else text


def _is_place(text: str) -> bool:
    return os.path.isabs(text) or text.startswith(("~/", "../"))
