# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""From prompts to completions: by the student or the teacher, whole, sharded, or inside vLLM."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available
from trl.models.utils import _ForwardRedirection, add_hooks, remove_hooks

from ..heads import unwrap_adapter
from .config import RolloutConfig


# Completes the prompts of this rank, none of them empty, with a seed: a completion holds the token that stopped it
Sampler = Callable[[list[list[int]], int], list[list[int]]]


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
    if not positions or positions < 0:
        return None
    if max_new_tokens >= positions:
        raise ValueError(
            f"`max_new_tokens` must leave room for a prompt in the {positions} positions that the model has, got "
            f"{max_new_tokens}."
        )
    return positions - max_new_tokens


def most_over_ranks(count: int, accelerator: Accelerator) -> int:
    """The largest `count` of all ranks."""
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


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
        args ([`RolloutConfig`]):
            How to sample.
        around (`Callable[[], AbstractContextManager]`, *optional*):
            Context to generate in.
    """

    def __init__(
        self,
        get_model: Callable[[], nn.Module],
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        args: RolloutConfig,
        around: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.get_model = get_model
        self.accelerator = accelerator
        self.gather = args.ds3_gather_for_generation
        self.around = around
        self.batch_size = args.generation_batch_size and args.generation_batch_size // accelerator.num_processes
        self.stop_tokens = stop_tokens(accelerator.unwrap_model(get_model()), tokenizer)
        self.pad: int = tokenizer.pad_token_id
        kwargs: dict[str, Any] = {
            "max_new_tokens": args.max_new_tokens,
            "do_sample": args.temperature > 0,
            "repetition_penalty": args.repetition_penalty,
            "eos_token_id": self.stop_tokens,
            "pad_token_id": self.pad,
            "use_cache": True,
            "cache_implementation": args.cache_implementation,
            "disable_compile": True,  # every batch has its own shape
        }
        if args.temperature > 0:
            kwargs |= {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p}
        assert not isinstance(args.generation_kwargs, str)
        self.config = GenerationConfig(**{**kwargs, **(args.generation_kwargs or {})})

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        # Longest first: little is padding, and if the memory doesn't last, it shows at once
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        size = self.batch_size or max(len(prompts), 1)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        # Where the layers are gathered for each forward, every rank must take part in as many
        batches += [[]] * (most_over_ranks(len(batches), self.accelerator) - len(batches))
        completions: list[list[int]] = [[]] * len(prompts)

        def run(model: nn.Module, in_step: bool) -> None:
            with _as_in_use(model) as base:
                for batch in batches:
                    for i, completion in zip(
                        batch, self._complete(base, [prompts[i] for i in batch], in_step), strict=False
                    ):
                        completions[i] = completion

        with _seeded(seed, self.accelerator.device), self.accelerator.autocast(), self.around():
            with_whole_model(self.get_model(), self.accelerator, self.gather, run)
        return completions

    def _complete(self, model: PreTrainedModel, prompts: list[list[int]], in_step: bool) -> list[list[int]]:
        prompts = prompts or [[self.pad]]
        width = max(map(len, prompts))
        device = self.accelerator.device
        padding = [width - len(prompt) for prompt in prompts]
        output = model.generate(
            input_ids=torch.tensor([[self.pad] * n + p for n, p in zip(padding, prompts, strict=True)], device=device),
            attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in padding], device=device),
            generation_config=self.config,
            synced_gpus=in_step,
        )
        return [self._up_to_stop(row) for row in output[:, width:].tolist()]

    def _up_to_stop(self, completion: list[int]) -> list[int]:
        # Not by comparing with the padding, which is often the same token as EOS
        stops = [i for i, token in enumerate(completion) if token in self.stop_tokens]
        return completion[: stops[0] + 1] if stops else completion


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        yield


@contextmanager
def _as_in_use(model: nn.Module) -> Iterator[PreTrainedModel]:
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
            _ForwardRedirection()(wrapped, model, partial(run, model, in_step))
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


class VLLMSampler:
    """
    Completions from vLLM, which gets the student's weights anew for each batch. Sampling is seeded by vLLM itself.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, not wrapped.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        args ([`RolloutConfig`]):
            How to sample, and where vLLM runs.

    Raises:
        `ImportError`: If vLLM isn't installed.
    """

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, args: RolloutConfig
    ):
        if not is_vllm_available():
            raise ImportError(
                "`use_vllm` is True, but vLLM isn't installed. Install a version that TRL supports with `pip install "
                "'trl[vllm]'`, or leave `use_vllm` unset to generate with transformers."
            )
        self.accelerator = accelerator
        self.pad: int = tokenizer.pad_token_id
        self.vllm = VLLMGeneration(
            model=model,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=args.vllm_mode,
            structured_outputs_regex=args.vllm_structured_outputs_regex,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            server_timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=args.per_device_train_batch_size
            * args.vllm_tensor_parallel_size
            * args.gradient_accumulation_steps,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.trust_remote_code,
            repetition_penalty=args.repetition_penalty,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            max_completion_length=args.max_new_tokens,
            logprobs=None,
            generation_kwargs=args.generation_kwargs,
        )

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        # The server's answers are dealt out by rank, as many to each
        missing = most_over_ranks(len(prompts), self.accelerator) - len(prompts)
        self.vllm.sync_weights()
        _, completions, *_ = self.vllm.generate(prompts + [[self.pad]] * missing, images=None, num_generations=1)
        return [list(completion) for completion in completions[: len(prompts)]]
