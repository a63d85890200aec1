# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
From the last hidden state to the logits, for any causal language model.

This is the only file that knows how an architecture turns `hidden` into logits:
`softcap(logit_scale * (hidden @ weight.T + bias))`. `check_head` compares that with what the model itself computes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import PeftModel, PromptLearningConfig
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PretrainedConfig, PreTrainedModel

from .compat import BaseTuner, maybe_gather_lm_head_ctx
from .errors import UsageError


@dataclass(frozen=True)
class Head:
    """
    What turns the last hidden state into logits. `V` is the (padded) size of the vocabulary, `H` the hidden size.

    Attributes:
        weight (`torch.Tensor` of shape `(V, H)`):
            Weight of the output projection.
        bias (`torch.Tensor` of shape `(V,)`, *optional*):
            Its bias.
        logit_scale (`float`):
            Factor on the logits (Cohere, Granite, Falcon-H1, ...).
        final_logit_softcapping (`float`, *optional*):
            Bound `c` of `c * tanh(logits / c)`, applied last (Gemma, ...).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None

    def arguments(self, side: str) -> dict[str, Any]:
        """The head as keyword arguments of `chunked_kd_loss`, for the `student` or the `teacher`."""
        return {f"{side}_{f.name}": getattr(self, f.name) for f in fields(self)}

    def rest(self) -> dict[str, Any]:
        """Everything but the weight, as keyword arguments of `head_logits`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "weight"}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in full, of shape `(..., V)`. For checks on a few tokens; the loss never builds them."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias) * self.logit_scale
        if self.final_logit_softcapping is not None:
            logits = torch.tanh(logits / self.final_logit_softcapping) * self.final_logit_softcapping
        return logits


@dataclass(frozen=True)
class NoHead:
    """In place of a [`Head`] where a teacher gives its logits, or what is left of them, instead of hidden states."""

    def arguments(self, side: str) -> dict[str, Any]:
        return {f"{side}_weight": None}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def logit_scale(config: PretrainedConfig) -> float:
    """Factor that the architecture puts on its logits; each has its own name for it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        scale = getattr(config, name, None)
        if scale is not None:
            return float(scale)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / scaling  # else Granite and MiniCPM3


def unwrap_adapter(model: Any) -> PreTrainedModel:
    """The causal language model itself, its PEFT layers in place."""
    model = getattr(model, "_orig_mod", model)  # inside `torch.compile`
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone(model: nn.Module) -> nn.Module:
    """
    The part of a causal language model that computes the last hidden state.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.

    Returns:
        `torch.nn.Module`: The model without its head.

    Raises:
        `ValueError`: If the model isn't made of a backbone and a head, or has an adapter outside of them.
    """
    if isinstance(model, PeftModel):
        _check_adapter(model)
    model = unwrap_adapter(model)
    body = getattr(model, "base_model", model)
    if body is model:
        raise UsageError(
            f"{type(model).__name__} has no separate backbone (`base_model` is the model itself), so its logits can't "
            "be computed in chunks. Use a causal language model of transformers."
        )
    return body


def last_hidden_state(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """What the backbone of a model makes of a batch, of shape `(B, L, H)`."""
    return backbone(model)(**in_its_dtype(model, inputs), use_cache=False).last_hidden_state


def in_its_dtype(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same batch, with pixels in the model's own dtype. Processors make float32, and not every tower casts it."""
    dtype = getattr(unwrap_adapter(model), "dtype", None)
    return {
        name: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() and dtype is not None else x
        for name, x in inputs.items()
    }


def _check_adapter(model: PeftModel) -> None:
    """Refuse an adapter that acts outside of the layers: the backbone alone would silently leave it out."""
    for config in model.peft_config.values():
        kind = config.peft_type.value
        if isinstance(config, PromptLearningConfig):
            raise UsageError(
                f"Prompt-learning PEFT methods aren't supported, got {kind}: their virtual tokens live outside the "
                "backbone, which the loss calls directly. Use a weight-based adapter such as LoRA."
            )
        # AdaLoRA, X-LoRA, Poly and Shadow do a part of their work there; activated LoRA even before
        if type(model.base_model).forward is not BaseTuner.forward or getattr(config, "alora_invocation_tokens", None):
            raise UsageError(
                f"This kind of PEFT adapter isn't supported, got {kind}: a part of it lives outside the backbone, "
                "which the loss calls directly. Use one that acts in the layers alone, such as plain LoRA."
            )


def read_head(model: nn.Module, *, adapter: bool = True) -> Head:
    """
    Read the head of a causal language model. Its tensors are the model's own and may be shards.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.
        adapter (`bool`, *optional*, defaults to `True`):
            Whether a PEFT model's own copy of the head (`modules_to_save`) counts, or the head below it.

    Returns:
        [`Head`]: Its head.

    Raises:
        `ValueError`: If the model has no linear head, or a quantized one.
    """
    model = unwrap_adapter(model)
    projection = model.get_output_embeddings()
    if not adapter:
        projection = getattr(projection, "original_module", projection)
    weight = getattr(projection, "weight", None)
    if weight is None or not weight.is_floating_point():
        raise UsageError(
            f"{type(model).__name__} needs an unquantized linear head to be distilled, got "
            f"{type(projection).__name__}. If the head is quantized, leave it out, e.g. with "
            "`llm_int8_skip_modules=['lm_head']`."
        )
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(
        weight,
        getattr(projection, "bias", None),
        logit_scale(config),
        getattr(config, "logits_soft_cap", None) if softcap is None else softcap,  # RecurrentGemma
    )


@contextmanager
def gathered_head(model: nn.Module, *, adapter: bool = True) -> Iterator[Head]:
    """
    The head of a model with its whole tensors: gathered under ZeRO-3 for the duration of the context, all-gathered
    under FSDP2, the model's own otherwise. Gradients flow back to the shards. Arguments as in [`read_head`].
    """
    head = read_head(model, adapter=adapter)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):
        yield replace(head, weight=_whole(head.weight), bias=None if head.bias is None else _whole(head.bias))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    # Each rank has the gradient of its own tokens, to be averaged as FSDP does. By default it would be taken for the
    # same on all of them. That is for a head which FSDP shards apart from the rest, as it does a LoRA model's copy.
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def is_here(model: nn.Module) -> bool:
    """Whether a model can run without its wrapper: no parameter is a shard (ZeRO-3, FSDP2) or on the meta device."""
    return not any(p.is_meta or isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def as_trained(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Context like training's, for a float32 model whose attention runs in half precision alone (flash attention)."""
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None) or ""
    needed = "flash" in attention and model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=needed)


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """
    Compare `read_head` with what the model itself computes, on four tokens.

    An architecture that does to its logits something this file doesn't know would otherwise train on wrong
    distributions without a sign. Skipped for a model whose parameters aren't all here yet (ZeRO-3, meta device).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.

    Raises:
        `ValueError`: If the two differ by more than rounding.
    """
    head, body, model = read_head(model), backbone(model), unwrap_adapter(model)
    if not is_here(model):
        return
    training = model.training
    model.eval()
    input_ids = torch.arange(4, device=model.device)[None]
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
    with as_trained(model):
        hidden, expected = body(**inputs).last_hidden_state, model(**inputs).logits
    model.train(training)
    trained = any(p.requires_grad for p in model.parameters())
    packed = any(getattr(getattr(p, "quant_state", None), "packing_format_for_cpu", False) for p in model.parameters())
    if trained and packed:
        raise UsageError(
            "A 4-bit model can't be trained on this CPU: bitsandbytes repacks its weights in evaluation mode, and no "
            "gradient flows through them from then on. Train it on a GPU, or load it without `load_in_4bit`."
        )
    if hidden.shape[-1] != head.weight.shape[-1]:
        problem = f"its last hidden state has size {hidden.shape[-1]}, its head expects {head.weight.shape[-1]}"
    else:
        with as_trained(model):
            logits = head.logits(hidden.to(head.weight.device))
        if logits.shape != expected.shape:
            problem = f"it returns {expected.shape[-1]} logits, its head {logits.shape[-1]}"
        else:
            error, size = (logits - expected.to(logits)).abs().max().item(), expected.abs().max().item()
            # The square root of the machine epsilon: far above rounding, far below any scale or cap. Some models
            # return float32 whatever they are in.
            epsilon = max(torch.finfo(logits.dtype).eps, torch.finfo(torch.float32).eps)
            if error <= epsilon**0.5 * size:
                return
            problem = f"they differ from `scale * (hidden @ weight.T + bias)` by {error:.3g} of {size:.3g}"
    raise UsageError(
        f"{type(model).__name__} (model type {model.config.model_type!r}) computes its logits in a way that isn't "
        f"known here: {problem}. It can't be distilled until `trl_tempkd/heads.py` knows how."
    )
