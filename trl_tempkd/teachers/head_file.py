# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The head of a model read from its checkpoint, and nothing else of it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file, logging

from ..compat import revert_weight_conversion, without_deepspeed
from ..errors import UsageError
from ..heads import Head, backbone, read_head
from ..paths import check_model_name


logger = logging.get_logger(__name__)

# What a checkpoint may be made of: one file, or an index that says which file has which tensor
_FILES = (
    ("model.safetensors", False),
    ("model.safetensors.index.json", True),
    ("pytorch_model.bin", False),
    ("pytorch_model.bin.index.json", True),
)
_WHERE = "`teacher_model_name_or_path`"


class HeadFile:
    """
    A checkpoint whose head alone is read. Of a model on the Hub only the file is downloaded that has it.

    Args:
        name (`str`):
            Folder, or name on the Hub.
        revision (`str`, *optional*):
            Revision to read.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the model.

    Attributes:
        model ([`~transformers.PreTrainedModel`]):
            The model on the meta device, without a single weight.

    Raises:
        `ValueError`: If there is no such checkpoint, or its head isn't linear.
    """

    def __init__(self, name: str, revision: str | None = None, trust_remote_code: bool = False):
        check_model_name(name, revision, _WHERE)
        self.name, self.revision = name, revision
        origin: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(name, revision=revision or "main", **origin)
            with without_deepspeed(), init_empty_weights(include_buffers=True):
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **origin)
        except (OSError, ValueError) as error:
            raise UsageError(f"{_WHERE} {name} can't be read for its head: {str(error).splitlines()[0]}") from error
        self.model.tie_weights()
        self.model.eval()
        self._empty = read_head(self.model)

    def read(self, dtype: torch.dtype | None = None) -> Head:
        """
        Read the head, in the checkpoint's dtype or another.

        Raises:
            `ValueError`: If the checkpoint hasn't got it, or not as plain numbers.
        """
        parts = {part: self._read(part) for part in ("weight", "bias") if getattr(self._empty, part) is not None}
        if dtype is not None:
            parts = {part: tensor.to(dtype) for part, tensor in parts.items()}
        head = replace(self._empty, **parts)
        _check(self.model, head)
        return head

    def _read(self, part: str) -> torch.Tensor:
        empty = getattr(self._empty, part)
        path, key = self._find(part, [*names_of(self.model, empty)])
        try:
            tensor = _tensor(path, key)
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise UsageError(f"{path} can't be read for the head of {self.name}: {error}") from error
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UsageError(
                f"The head of {self.name} ({key} in {path}) is {tensor.dtype}: a quantized head can't be read. Let "
                f"{_WHERE} name the checkpoint that isn't quantized, or one that leaves the head out of it."
            )
        if tensor.shape != empty.shape:
            raise UsageError(
                f"The head of {self.name} ({key} in {path}) has shape {tuple(tensor.shape)}, and its config says "
                f"{tuple(empty.shape)}."
            )
        return tensor

    def _find(self, part: str, names: list[str]) -> tuple[str, str]:
        """The file with a tensor that has one of some names in the model, and its name there."""
        for file, is_index in _FILES:
            path = cached_file(self.name, file, revision=self.revision, _raise_exceptions_for_missing_entries=False)
            if path is None:
                continue
            files = _index(path) if is_index else dict.fromkeys(_keys(path), file)
            key = _match(names, files)
            if key is None:
                raise UsageError(
                    f"{path} has no {part} of the head of {self.name}, which the model calls {' or '.join(names)}. "
                    f"Let {_WHERE} name the checkpoint that the server has loaded."
                )
            found = cached_file(self.name, files[key], revision=self.revision) if is_index else path
            return str(found), key
        raise UsageError(
            f"{_WHERE} {self.name} has no weights to read the head from: none of {', '.join(f for f, _ in _FILES)}."
        )


def names_of(model: PreTrainedModel, parameter: torch.Tensor) -> Iterable[str]:
    """
    The names that a parameter may have in a checkpoint: more than one where it is tied, that of the embedding first,
    as it is stored, and those of the library's earlier versions before its own.
    """
    names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is parameter]
    output = next((name for name, each in model.named_modules() if each is model.get_output_embeddings()), "")
    for name in sorted(names, key=lambda name: name.rpartition(".")[0] == output):
        yield from dict.fromkeys([*revert_weight_conversion(model, {name: parameter}), name])


def _match(names: Iterable[str], keys: Iterable[str]) -> str | None:
    """
    The name in a checkpoint of what a model calls by one of some names. A checkpoint may leave out the prefix that a
    backbone has in the model, or be of a larger model, which has prefixes of its own.
    """
    keys = list(keys)
    for name in names:
        parts = name.split(".")
        for start in range(len(parts) - 1):  # the whole name, then without its first parts
            ending = ".".join(parts[start:])
            found = [key for key in keys if key == ending or key.endswith(f".{ending}")]
            if len(found) == 1:
                return found[0]
            if found:
                break  # nothing shorter is less ambiguous
    return None


def _index(path: str) -> dict[str, str]:
    import json

    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no index of a checkpoint: {error!r}") from error


def _keys(path: str) -> list[str]:
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, "pt") as file:
                return list(file.keys())
        return list(_pickled(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error


def _tensor(path: str, key: str) -> torch.Tensor:
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            return file.get_tensor(key)
    return _pickled(path)[key].clone()


def _pickled(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # pages that aren't touched stay on disk


class _Output:
    """What a backbone gives: the last hidden states, and nothing of all else that an architecture may look for."""

    def __init__(self, hidden: torch.Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, i: Any) -> Any:
        return self.last_hidden_state if i in (0, "last_hidden_state") else ()

    def __getattr__(self, name: str) -> None:
        return None


@torch.no_grad()
def _check(model: PreTrainedModel, head: Head) -> None:
    """
    Compare the head with what the model makes of hidden states, as [`heads.check_head`] does of a model in memory.
    Its layers have no weights here, so random states are put in the place of theirs.

    Raises:
        `ValueError`: If the two differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = 4 * torch.randn(1, 4, head.weight.shape[-1], generator=generator).to(head.weight.dtype)
    backbone(model)  # or it is refused
    projection = model.get_output_embeddings()
    own = {name: getattr(projection, name) for name in ("weight", "bias") if getattr(head, name) is not None}
    # Some call a part of their backbone, such as its decoder
    bodies = [module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model]
    try:
        for body in bodies:
            body.forward = lambda *args, **kwargs: _Output(hidden)
        for name in own:
            setattr(projection, name, nn.Parameter(getattr(head, name), requires_grad=False))
        expected = model(input_ids=torch.arange(4)[None], use_cache=False).logits.float()
        problem = "it needs them" if expected.is_meta else ""
    except Exception as error:  # code of any architecture, given what it doesn't expect
        problem = f"{type(error).__name__}: {error}"
    finally:
        for body in bodies:
            body.__dict__.pop("forward", None)
        for name, parameter in own.items():
            setattr(projection, name, parameter)
    if problem:
        logger.warning(
            f"{type(model).__name__} can't be run without its layers ({problem:.200}), so it isn't known whether it "
            "does more to its logits than scale and cap them."
        )
        return
    logits = head.logits(hidden).float()
    off, size = (logits - expected).abs().max().item(), expected.abs().max().item()
    epsilon = max(torch.finfo(head.weight.dtype).eps, torch.finfo(torch.float32).eps)
    if not off <= epsilon**0.5 * size:
        raise UsageError(
            f"{type(model).__name__} (model type {model.config.model_type!r}) computes its logits in a way that isn't "
            f"known here: they differ from `scale * (hidden @ weight.T + bias)` by {off:.3g} of {size:.3g}. It "
            "can't be distilled until `trl_tempkd/heads.py` knows how."
        )
