# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The auxiliary loss of a mixture of experts: the model's own, whatever its formula.

A causal language model computes it in its `forward`, from what its backbone says of the routers. The loss here calls
the backbone and never builds the logits, so that `forward` runs over what the backbone has returned, without a head.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .heads import backbone, in_its_dtype, unwrap_adapter


logger = logging.get_logger(__name__)


def leave_routers(model: PreTrainedModel) -> None:
    """
    Turn off the flag of the config that TRL turns on. `run_backbone` asks for the routers itself, and every other
    forward, such as those of generation, would compute the auxiliary loss too, or fail where there is no router.
    """
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits") and hasattr(config, "router_aux_loss_coef"):  # as TRL decides it
        config.output_router_logits = False


def run_backbone(
    model: nn.Module, inputs: dict[str, Any], *, aux_loss: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The last hidden state, and the auxiliary loss that the model itself computes for the batch.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.
        inputs (`dict[str, Any]`):
            What the data collator gives but the labels.
        aux_loss (`bool`):
            Whether the auxiliary loss is wanted.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Of shape `(B, L, H)`, and a scalar. In its place `None` if it isn't
            wanted, if the model has none of its own, or no router (a dense member of a family of mixtures).
    """
    body, inputs = backbone(model), in_its_dtype(model, inputs)
    if not aux_loss:
        return body(**inputs, use_cache=False).last_hidden_state, None
    inputs = {**inputs, "output_router_logits": True, "use_cache": False}
    outputs = body(**inputs)
    logits, model = getattr(outputs, "router_logits", None), unwrap_adapter(model)
    if logits is None or len(logits) == 0:
        return outputs.last_hidden_state, None
    own = getattr(type(model).forward(_replay(model, body, outputs), **inputs), "aux_loss", None)
    if own is not None and outputs.last_hidden_state.requires_grad and not own.requires_grad:
        logger.warning_once(
            "The auxiliary loss of the routers has no gradient, so it is logged but not trained: reentrant "
            "checkpointing (`use_reentrant` in `gradient_checkpointing_kwargs`) hides the routers, or nothing before "
            "them is trained."
        )
    return outputs.last_hidden_state, own


def warn_of_none(model: nn.Module, coefficient: float) -> None:
    """Say once that a coefficient that was asked for has nothing to multiply."""
    logger.warning_once(
        f"`router_aux_loss_coef` is {coefficient}, but {type(unwrap_adapter(model)).__name__} computes no auxiliary "
        "loss of its own, so none is added. Leave `router_aux_loss_coef` unset."
    )


class _NoHead:
    """In place of the head: one logit of every position, and the head's own attributes."""

    def __init__(self, head: nn.Module):
        self._head = head

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., :1]


def _replay(model: PreTrainedModel, body: nn.Module, outputs: Any) -> PreTrainedModel:
    """The model, with a backbone that has run already and without its head. It shares everything else."""
    head = model.get_output_embeddings()
    twin = object.__new__(type(model))
    twin.__dict__.update(model.__dict__)
    stand_ins = {body: lambda *args, **kwargs: outputs, head: _NoHead(head)}
    twin.__dict__["_modules"] = {name: stand_ins.get(module, module) for name, module in model._modules.items()}
    return twin
