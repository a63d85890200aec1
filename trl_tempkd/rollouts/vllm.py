# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""From prompts to completions of the student, by vLLM, through TRL's own connection to it."""

from functools import partial
from itertools import takewhile
from operator import gt

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..compat import VLLMGeneration, is_vllm_available
from ..errors import UsageError, UsageImportError
from .options import RolloutOptions
from .sampling import most_over_ranks


# Devices that the weights can't be sent from. TRL's way to a server is NCCL's. In the process, vLLM's build for CPUs
# packs the weights of its linear layers when it loads them, and takes no others afterwards.
NO_WAY = {"cpu"}


def require_vllm(device: torch.device) -> None:
    """Stop where vLLM is asked for and isn't installed, or can't be sent the student's weights from its device."""
    if not is_vllm_available():
        raise UsageImportError(
            "`use_vllm` is True, but vLLM isn't installed. Install a version that TRL supports with `pip install "
            "'trl[vllm]'`, or leave `use_vllm` unset to generate with transformers."
        )
    if device.type in NO_WAY:
        raise UsageError(
            "`use_vllm` is True, and the student is on a CPU, from which its weights can't be sent to vLLM after each "
            "step. Leave `use_vllm` unset to generate with transformers."
        )


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
        args ([`RolloutOptions`]):
            How to sample, and where vLLM runs.
        vocabulary (`int`):
            Number of tokens that the teacher knows. A completion ends before one that it doesn't.

    Raises:
        [`UsageImportError`]: If vLLM isn't installed.
        [`UsageError`]: If the student is on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        args: RolloutOptions,
        vocabulary: int,
    ):
        require_vllm(accelerator.device)
        self.accelerator = accelerator
        self.vocabulary = vocabulary
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
        known = partial(gt, self.vocabulary)
        return [list(takewhile(known, completion)) for completion in completions[: len(prompts)]]
