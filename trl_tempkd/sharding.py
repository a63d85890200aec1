# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The layers in which FSDP2 shards a model."""

from accelerate import Accelerator
from torch import nn

from .heads import unwrap_adapter


def layers_of(model: nn.Module) -> list[str] | None:
    """
    The classes of layers that a model names as its own, those that it has. The name of a tower's family stands for its
    text part too, and accelerate stops at a class that isn't there.
    """
    named = getattr(unwrap_adapter(model), "_no_split_modules", None)
    if not named:
        return None
    there = {type(module).__name__ for module in model.modules()}
    return [name for name in named if name in there]


def shard_own_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Have FSDP2 shard a model in the layers that it has, unless the launch says in which."""
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers_of(model)
