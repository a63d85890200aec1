# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A student cut from its teacher: some of the layers, and all that is around them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .errors import UsageError


_PROBED = 6  # tokens


def check_layers(layers: Sequence[int] | int, count: int) -> list[int]:
    """
    Args:
        layers (`Sequence[int]` or `int`): numbers of the layers to keep, or how many.
        count (`int`): how many there are.

    Returns:
        `list[int]`: Their numbers. Of so many the first and the last, and the others evenly between.

    Raises:
        [`UsageError`]: If there are no such layers.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= count:
            raise UsageError(f"`layers` must be at least 1 and at most {count}, all of the teacher's, got {layers}.")
        return [0] if layers == 1 else [round(at * (count - 1) / (layers - 1)) for at in range(layers)]
    if not layers or any(not isinstance(at, int) for at in layers) or [*layers] != sorted({*layers} & {*range(count)}):
        raise UsageError(
            f"`layers` must be numbers from 0 to {count - 1}, which the teacher has, in rising order and each once, "
            f"got {', '.join(map(str, layers)) or 'none'}."
        )
    return list(layers)


@torch.no_grad()
def student_from_layers(
    teacher: PreTrainedModel | str, layers: Sequence[int] | int, **load_options: Any
) -> PreTrainedModel:
    """
    Copy a model with only some of its layers, and everything else as it is: embeddings, norms, head.

    It has the teacher's tokenizer, and starts near to it. Where the kind of a layer depends on its place, as with
    sliding and full attention or with experts in some of the layers, each keeps its kind. That the copy computes what
    the teacher does without the other layers is tried on a few tokens.

    Args:
        teacher ([`~transformers.PreTrainedModel`] or `str`):
            A causal language model, or what `from_pretrained` takes, or a built-in one such as `tiny:teacher`. It is
            left as it is.
        layers (`Sequence[int]` or `int`):
            Numbers of the layers to keep, from 0 on, in rising order; or how many, which are then spread evenly.
        load_options:
            For `from_pretrained`, such as `dtype`, `revision` and `trust_remote_code`.

    Returns:
        [`~transformers.PreTrainedModel`]: The student, in the teacher's dtype and on its device.

    Raises:
        [`UsageError`]: If there are no such layers, or the model can't be cut.

    Example:

    ```python
    student = student_from_layers("Qwen/Qwen3-0.6B", 14)
    student.save_pretrained("qwen3-14-layers")
    ```
    """
    if isinstance(teacher, str):
        from .models import load_model, resolve_model

        revision = load_options.pop("revision", None)
        name = resolve_model(teacher, "teacher")
        teacher = load_model(name, revision, "teacher", **{"dtype": "auto", **load_options})
    prefix, stack = _stack_of(teacher)
    kept = check_layers(layers, len(stack))
    student = _of_config(teacher, _shallower(teacher.config, kept, len(stack)))
    try:
        student.load_state_dict(_kept_weights(teacher.state_dict(), f"{prefix}.", kept))
    except RuntimeError as error:  # names or shapes
        raise _uncut(teacher, kept) from error
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    _check(teacher, student, stack, kept)
    return student.train(teacher.training)


def _stack_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and module of the layers: the one list that is as long as the configuration says."""
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [(name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    if len(outer) != 1:
        raise UsageError(
            f"{type(model).__name__} can't be cut: it has {len(outer)} stacks of {count} layers, and one is expected. "
            "Make a student by hand, with the teacher's tokenizer."
        )
    return outer[0]


def _shallower(config: PreTrainedConfig, kept: list[int], count: int) -> PreTrainedConfig:
    """The configuration with what it says of each layer kept too."""
    config = copy.deepcopy(config)
    inner = config.get_text_config(decoder=True)
    for name, value in list(vars(inner).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(inner, name, type(value)(value[at] for at in kept))
        elif name in ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "global_attn_layers"):
            setattr(inner, name, [new for new, at in enumerate(kept) if at in (value or [])])
    inner.num_hidden_layers = len(kept)
    for name in ("max_window_layers", "first_k_dense_replace", "num_dense_layers", "num_kv_shared_layers"):
        limit = getattr(inner, name, None)
        if isinstance(limit, int) and limit:
            shared = name == "num_kv_shared_layers"  # counted from the end
            setattr(inner, name, sum(at >= count - limit if shared else at < limit for at in kept))
    return config


def _of_config(teacher: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the teacher's kind, whose weights are yet to come."""
    try:  # made in this dtype: cast afterwards, the frequencies of rotary positions would lose digits
        student = AutoModelForCausalLM.from_config(config, dtype=teacher.dtype)
    except ValueError:  # of a class that transformers doesn't know
        student = type(teacher)(config).to(teacher.dtype)
    return student.to(teacher.device).eval()


def _kept_weights(weights: dict[str, Tensor], prefix: str, kept: list[int]) -> dict[str, Tensor]:
    """Those around the layers, and those of the layers that stay, under their new numbers."""
    new = {str(at): str(number) for number, at in enumerate(kept)}
    found = {}
    for name, weight in weights.items():
        if name.startswith(prefix):
            at, _, rest = name.removeprefix(prefix).partition(".")
            if at not in new:
                continue
            name = f"{prefix}{new[at]}.{rest}"
        found[name] = weight
    return found


def _check(teacher: PreTrainedModel, student: PreTrainedModel, stack: nn.ModuleList, kept: list[int]) -> None:
    """Hold the student's logits against those of the teacher with the other layers passed over."""

    def passed_over(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return states if isinstance(output, Tensor) else (states, *output[1:])

    size = teacher.get_input_embeddings().weight.shape[0]
    ids = torch.arange(_PROBED, device=teacher.device)[None] % size
    was_training = teacher.training
    teacher.eval()
    hooks = [
        stack[at].register_forward_hook(passed_over, with_kwargs=True) for at in range(len(stack)) if at not in kept
    ]
    try:
        wanted = teacher(input_ids=ids, use_cache=False).logits.float()
    finally:
        for hook in hooks:
            hook.remove()
        teacher.train(was_training)
    found = student(input_ids=ids, use_cache=False).logits.float()
    scale = float(wanted.abs().amax())
    if not float((found - wanted).abs().amax()) <= scale * max(torch.finfo(teacher.dtype).eps * 64, 1e-5):
        raise _uncut(teacher, kept)


def _uncut(teacher: PreTrainedModel, kept: list[int]) -> UsageError:
    return UsageError(
        f"{type(teacher).__name__} can't be cut to layers {kept}: a layer does something else at its new place, which "
        "its configuration doesn't say by layer. Try others, such as the first ones, or make a student by hand, with "
        "the teacher's tokenizer."
    )
