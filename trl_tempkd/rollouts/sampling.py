# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""From prompts to completions: by the student or by the teacher, whole or sharded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..compat import DistributedBackend, ForwardRedirection, add_hooks, remove_hooks
from ..errors import UsageError
from ..heads import in_its_dtype, unwrap_adapter
from ..option_groups import OptionGroup
from ..vision import Pictured, Processing


# Completes the prompts of this rank, none of them empty, with a seed, and what each was made of if there are images: a
# completion holds the token that stopped it
Sampler = Callable[..., list[list[int]]]
# Hears of each completion, by the number of its prompt, as soon as it has ended
Written = Callable[[int, list[int]], None]


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: EOS, and those of the model's generation config (a list in chat models)."""
    ids = unwrap_adapter(model).generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
    return sorted({*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def longest_prompt(model: nn.Module, max_new_tokens: int) -> int | None:
    """
    Number of tokens of a prompt that leave room for a completion, or `None` if the model has no limit.

    Raises:
        `ValueError`: If there is no room for any prompt.
    """
    positions = getattr(unwrap_adapter(model).config.get_text_config(), "max_position_embeddings", None)
    return room_for_prompts(positions, max_new_tokens) if positions and positions > 0 else None


def room_for_prompts(positions: int, max_new_tokens: int) -> int:
    """Number of tokens of a prompt that leave room for a completion among `positions`, or a `ValueError`."""
    if max_new_tokens >= positions:
        raise UsageError(
            f"`max_new_tokens` must leave room for a prompt in the {positions} positions that the model has, got "
            f"{max_new_tokens}."
        )
    return positions - max_new_tokens


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, the longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def complete(
    model: PreTrainedModel,
    prompts: list[list[int]],
    config: GenerationConfig,
    device: torch.device,
    processors: LogitsProcessorList | None = None,
    in_step: bool = False,
    written: Written | None = None,
    pictures: tuple[Processing, list[Pictured]] | None = None,
) -> list[list[int]]:
    """
    Complete a batch of prompts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        prompts (`list[list[int]]`):
            Tokens of each prompt, none empty.
        config ([`~transformers.GenerationConfig`]):
            How to generate. It says what stops a completion and what pads it.
        device (`torch.device`):
            Where the model runs: its parameters may be offloaded.
        processors ([`~transformers.LogitsProcessorList`], *optional*):
            Applied to the logits after those that the configuration asks for.
        in_step (`bool`, *optional*, defaults to `False`):
            Whether all ranks go on until the last one of them has finished.
        written (`Callable[[int, list[int]], None]`, *optional*):
            Called with the number of a prompt and its completion as soon as that has ended.
        pictures (`tuple[Processing, list[Pictured]]`, *optional*):
            The model's processor, and what it makes the prompts of where they have images.

    Returns:
        `list[list[int]]`: The completion of each prompt, with the token that stopped it, if one did.
    """
    columns: list[dict[str, list[int]]] = [{"input_ids": prompt} for prompt in prompts]
    pixels: dict[str, torch.Tensor] = {}
    if pictures is not None:
        columns, pixels = pictures[0].encode_prompts(pictures[1])
    width = max(len(own["input_ids"]) for own in columns)
    padding = [width - len(own["input_ids"]) for own in columns]
    # On the left, so that the completions begin at the same place
    inputs = {
        name: [
            [config.pad_token_id if name == "input_ids" else 0] * n + own[name]
            for n, own in zip(padding, columns, strict=True)
        ]
        for name in columns[0]
    }
    inputs["attention_mask"] = [[0] * n + [1] * (width - n) for n in padding]
    stops = config.eos_token_id or []
    ended = None if written is None else _Ended(width, stops, written)
    output = model.generate(
        **{name: torch.tensor(rows, device=device) for name, rows in inputs.items()},
        **in_its_dtype(model, {name: value.to(device) for name, value in pixels.items()}),
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=None if ended is None else StoppingCriteriaList([ended]),
        synced_gpus=in_step,
    )
    # Not by comparing with the padding, which is often the same token as EOS
    completions = [_up_to_stop(row, stops) for row in output[:, width:].tolist()]
    if ended is not None:
        ended.say_others(completions)
    return completions


class _Ended(StoppingCriteria):
    """Says of each completion once that it has ended, while others go on. It stops none itself."""

    def __init__(self, width: int, stops: list[int], written: Written):
        self._width, self._stops, self._written = width, {*stops}, written
        self._said: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        last = input_ids[:, -1].tolist()
        for i in [i for i, token in enumerate(last) if token in self._stops and i not in self._said]:
            self._say(i, input_ids[i, self._width :].tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def say_others(self, completions: list[list[int]]) -> None:
        for i in [i for i in range(len(completions)) if i not in self._said]:
            self._say(i, completions[i])

    def _say(self, i: int, completion: list[int]) -> None:
        self._said.add(i)
        self._written(i, completion)


def _up_to_stop(completion: list[int], stops: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(completion) if token in stops), len(completion))
    return completion[: end + 1]


def most_over_ranks(count: int, accelerator: Accelerator) -> int:
    """The largest `count` of all ranks."""
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


class Draw(LogitsProcessor):
    """
    Draws a token from the softmax of the scores, by inverting its cumulative distribution, and leaves it as the one
    that greedy decoding takes. `torch.multinomial`, with which `generate` samples, draws a number for each entry of
    the vocabulary instead; on a CPU that takes as long as a small model.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulated = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        at = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * cumulated[:, -1:]
        drawn = torch.searchsorted(cumulated, at, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def processors_of(args: OptionGroup) -> LogitsProcessorList:
    """The options of sampling as `generate` applies them, in its order, and then the draw."""
    processors = LogitsProcessorList()
    if args.temperature != 1:
        processors.append(TemperatureLogitsWarper(args.temperature))
    if args.top_k > 0:
        processors.append(TopKLogitsWarper(args.top_k))
    if args.top_p < 1:
        processors.append(TopPLogitsWarper(args.top_p))
    if args.min_p is not None:
        processors.append(MinPLogitsWarper(args.min_p))
    processors.append(Draw())
    return processors


class ModelSampler:
    """
    Completions from a model in this process.

    It samples from the model as it will be used: without dropout and gradient checkpointing, with a KV cache, and as
    the options say, whatever the model's own generation config does. The random state of the training isn't touched.

    Args:
        get_model (`Callable[[], torch.nn.Module]`):
            The model, as it is wrapped for distributed training at the time.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        args ([`SamplingOptions`] and [`GenerationOptions`]):
            How to sample.
        vocabulary (`int`):
            Number of tokens to choose from, the first ones of the model's vocabulary.
        around (`Callable[[], AbstractContextManager]`, *optional*):
            Context to generate in.
        processing ([`~trl_tempkd.vision.Processing`], *optional*):
            The model's processor, for prompts with images.

    Attributes:
        written (`Callable[[int, list[int]], None]`, *optional*):
            Called with the number of a prompt and its completion, while others are written.
    """

    written: Written | None = None

    def __init__(
        self,
        get_model: Callable[[], nn.Module],
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        args: OptionGroup,
        vocabulary: int,
        around: Callable[[], AbstractContextManager] = nullcontext,
        processing: Processing | None = None,
    ):
        self.processing = processing
        self.get_model = get_model
        self.accelerator = accelerator
        self.gather = args.ds3_gather_for_generation
        self.around = around
        self.batch_size = args.generation_batch_size and args.generation_batch_size // accelerator.num_processes
        model = accelerator.unwrap_model(get_model())
        assert not isinstance(args.generation_kwargs, str)
        # With more options than our own, `generate` samples by itself
        by_inversion = args.temperature > 0 and accelerator.device.type == "cpu" and not args.generation_kwargs
        self.processors = processors_of(args) if by_inversion else LogitsProcessorList()
        do_sample = args.temperature > 0 and not by_inversion
        markup = set() if processing is None else {i for i in processing.markup if i < vocabulary}
        silent = [*sorted(markup), *range(vocabulary, model.config.get_text_config().vocab_size)]
        kwargs: dict[str, Any] = {
            "max_new_tokens": args.max_new_tokens,
            "do_sample": do_sample,
            "repetition_penalty": args.repetition_penalty,
            "eos_token_id": stop_tokens(model, tokenizer) or None,
            "pad_token_id": tokenizer.pad_token_id,
            "suppress_tokens": silent or None,
            "use_cache": True,
            "cache_implementation": args.cache_implementation,
            "disable_compile": True,  # every batch has its own shape
        }
        if do_sample:
            kwargs |= {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p}
        self.config = GenerationConfig(**{**kwargs, **(args.generation_kwargs or {})})

    def __call__(self, prompts: list[list[int]], seed: int, pictured: list[Pictured] | None = None) -> list[list[int]]:
        batches = by_length([len(prompt) for prompt in prompts], self.batch_size or max(len(prompts), 1))
        # Where the layers are gathered for each forward, every rank must take part in as many
        batches += [[]] * (most_over_ranks(len(batches), self.accelerator) - len(batches))
        completions: list[list[int]] = [[]] * len(prompts)

        def run(model: nn.Module, in_step: bool) -> None:
            with as_in_use(model) as base:
                for batch in batches:
                    # A rank that has no more rows goes along with one that nobody reads
                    rows = [prompts[i] for i in batch] or [[self.config.pad_token_id]]
                    pictures = None
                    if self.processing is not None and (batch or self.accelerator.is_fsdp2):
                        pictures = (self.processing, self._pictures(batch, pictured or []))
                    how = (self.config, self.accelerator.device, self.processors, in_step)
                    new = complete(base, rows, *how, self._heard(batch), pictures)
                    for i, completion in zip(batch, new, strict=False):
                        completions[i] = completion

        with _seeded(seed, self.accelerator.device), self.accelerator.autocast(), self.around():
            with_whole_model(self.get_model(), self.accelerator, self.gather, run)
        return completions

    def _heard(self, batch: list[int]) -> Written | None:
        """`written` of the prompts of a batch."""
        written = self.written
        return None if written is None or not batch else lambda i, completion: written(batch[i], completion)

    def _pictures(self, batch: list[int], pictured: list[Pictured]) -> list[Pictured]:
        """What a batch is made of; where layers are gathered as they run, with an image, so that all run the same."""
        assert self.processing is not None
        own = [pictured[i] for i in batch]
        alone = self.accelerator.is_fsdp2 and not any(each.images for each in own)
        return [*own, self.processing.blank] if alone else own


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        yield


@contextmanager
def as_in_use(model: nn.Module) -> Iterator[PreTrainedModel]:
    """The causal language model in evaluation mode, with no habits of its own: its generation config fills gaps."""
    base, training = unwrap_adapter(model), model.training
    own = base.generation_config
    base.generation_config = GenerationConfig()
    model.eval()
    try:
        yield base
    finally:
        model.train(training)
        base.generation_config = own


@contextmanager
def _kept_whole(model: nn.Module) -> Iterator[None]:
    """FSDP2's layers keep what they gather in their first forward until the end of the context."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # Those that shard again after each forward: not the root, and not those around the head
    layers = [
        unit
        for unit in units
        if unit is not model
        and any(group.post_forward_mesh_info for group in unit._get_fsdp_state()._fsdp_param_groups)
    ]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
        for unit in units:
            unit.reshard()


def with_whole_model(
    wrapped: nn.Module, accelerator: Accelerator, gather: bool, run: Callable[[nn.Module, bool], None]
) -> None:
    """
    Call `run(model, in_step)` with the model that is inside the wrapper.

    If `gather`, its parameters are whole on every rank meanwhile. If not, those of ZeRO-3 and FSDP2 are gathered layer
    by layer in each forward, and `in_step` says that all ranks must then make the same number of them.
    """
    model = accelerator.unwrap_model(wrapped)
    in_step = accelerator.num_processes > 1 and not gather
    if accelerator.is_fsdp2:
        with _kept_whole(model) if gather else nullcontext():
            # Through the root's forward, which gathers what belongs to no layer and must be the first to run
            ForwardRedirection()(wrapped, model, partial(run, model, in_step))
    elif not DistributedBackend(accelerator).is_zero3:
        run(model, False)
    elif gather:
        with DistributedBackend(accelerator).gather_params(list(model.parameters())):
            remove_hooks(wrapped)
            try:
                run(model, False)
            finally:
                add_hooks(wrapped)
    else:
        run(model, in_step)
        # DeepSpeed fetches for the next forward what it has seen in this one. The loss, which doesn't call the head,
        # would find it half gathered, and lose it before its gradient has come.
        offload = getattr(wrapped.optimizer, "parameter_offload", wrapped.optimizer)
        coordinator = offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
