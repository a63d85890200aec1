# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The options of where a batch's completions come from: data set, student, teacher, replay buffer.

Names that TRL's `GKDConfig` or `DistillationConfig` has mean here what they mean there, but for `temperature`: it is
the temperature of sampling, and only that.
"""

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig
from transformers.utils import logging

from ..errors import UsageError
from ..option_groups import OptionGroup, must, option


logger = logging.get_logger(__name__)

# What the trainer relies on in what is generated, in the words of transformers and of vLLM
FIXED = {
    "max_new_tokens", "max_length", "max_tokens", "n", "num_return_sequences", "return_dict_in_generate",
    "eos_token_id", "pad_token_id", "stop_strings", "stop", "stop_token_ids",
}  # fmt: skip

SHARE_SCHEDULES = ("constant", "adaptive")
VLLM_MODES = ("colocate", "server")


@dataclass
class RolloutOptions(OptionGroup):
    """Parameters that control where the completions come from."""

    lmbda: float = option(
        0.0,
        "Share of the optimizer steps whose completions the student generates itself, in [0, 1]. 0 trains on the data "
        "set's completions, 1 is fully on-policy.",
    )
    lmbda_schedule: str = option(
        "constant",
        "`adaptive` starts at `lmbda` and adds 0.1 each time an evaluation finds the student further from the teacher "
        "than the one before: by `kl_tau1`, the mean over evaluation sets (DistiLLM, arXiv 2402.03898). It needs "
        "evaluations during the training.",
        choices=list(SHARE_SCHEDULES),
    )
    seq_kd: bool = option(
        False, "Whether the teacher generates the completions of the steps in which the student doesn't."
    )
    replay_size: int = option(
        0,
        "Number of completions of the student, over all processes, that are kept to be trained on again (DistiLLM). 0 "
        "keeps none. Nothing is replayed before so many have been generated.",
    )
    replay_ratio: float | None = option(
        None,
        "Share of the student's steps that take their completions from those kept, in [0, 1]. If not set, it rises "
        "linearly from 0 to 1 over the training, as in DistiLLM.",
    )

    @property
    def generates(self) -> bool:
        """Whether completions are generated in this run at all."""
        return self.lmbda > 0 or self.lmbda_schedule == "adaptive" or self.seq_kd

    @property
    def text(self) -> str:
        """Whose text is trained on, in words."""
        if self.lmbda or self.lmbda_schedule != "constant":
            share = f"{self.lmbda:.0%}" if self.lmbda_schedule == "constant" else "a share"
            return f"the student's own text in {share} of the steps"
        return "text of the teacher's" if self.seq_kd else "the data's text"

    @property
    def generates_always(self) -> bool:
        """Whether completions are generated in every step, so that none of the data set is trained on."""
        return self.lmbda == 1 or self.seq_kd

    def check(self) -> None:
        ratio = self.replay_ratio
        must(self, "lmbda", 0 <= self.lmbda <= 1, "in [0, 1]")
        must(self, "replay_ratio", ratio is None or 0 <= ratio <= 1, "in [0, 1]")
        must(self, "replay_size", self.replay_size >= 0, "at least 0")
        must(self, "lmbda_schedule", self.lmbda_schedule in SHARE_SCHEDULES, f"one of {', '.join(SHARE_SCHEDULES)}")
        if ratio is not None and self.replay_size == 0:
            raise UsageError(
                f"`replay_ratio` is {ratio}, but `replay_size` is 0, so there is nothing to replay. Set "
                "`replay_size`, e.g. to 1000."
            )
        if self.lmbda_schedule == "adaptive" and self.eval_strategy == "no":
            raise UsageError(
                "`lmbda_schedule` is 'adaptive', which follows the evaluations, but `eval_strategy` is 'no'. Set "
                "`eval_strategy` to 'steps' and `eval_steps`."
            )
        if self.packing and self.packing_strategy != "bfd" and self.generates:
            raise UsageError(
                f"`packing_strategy` must be 'bfd' with `lmbda` or `seq_kd`, got {self.packing_strategy!r}, which "
                "cuts rows into pieces that don't start with their prompt."
            )


@dataclass
class SamplingOptions(OptionGroup):
    """Parameters that control how completions are sampled."""

    max_new_tokens: int = option(128, "Maximum number of tokens to generate per completion.")
    temperature: float = option(
        1.0, "Temperature of sampling. The divergence has its own, `kd_temperature`. 0 is greedy."
    )
    top_p: float = option(1.0, "Sample from the most probable tokens that hold this much probability together.")
    top_k: int = option(0, "Sample from this many of the most probable tokens. 0 is all of them.")
    min_p: float | None = option(
        None, "Leave out tokens with less than this share of the most probable token's probability."
    )
    repetition_penalty: float = option(1.0, "Above 1, tokens that have occurred before become less probable.")

    def check(self) -> None:
        must(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        must(self, "temperature", 0 <= self.temperature < float("inf"), "at least 0 (greedy) and finite")
        must(self, "top_p", 0 < self.top_p <= 1, "in (0, 1]")
        must(self, "top_k", self.top_k >= 0, "at least 0 (all tokens)")
        must(self, "min_p", self.min_p is None or 0 <= self.min_p <= 1, "in [0, 1]")
        must(self, "repetition_penalty", self.repetition_penalty > 0, "positive")


@dataclass
class GenerationOptions(OptionGroup):
    """Parameters that control generation."""

    generation_kwargs: dict[str, Any] | str | None = option(
        None,
        "More arguments of transformers' `GenerationConfig`, or of vLLM's `SamplingParams`, e.g. "
        '`{"no_repeat_ngram_size": 3}`. They win over the options above.',
    )
    cache_implementation: str | None = option(None, "Implementation of the KV cache, where vLLM isn't used.")
    generation_batch_size: int | None = option(
        None,
        "Number of completions that are generated together, over all processes. Smaller means less memory for the KV "
        "cache. If not set, all those of an optimizer step.",
    )
    ds3_gather_for_generation: bool = option(
        True,
        "Whether every process holds the whole model while it generates, under DeepSpeed ZeRO-3 and FSDP2. Otherwise "
        "the layers are gathered one by one for every token: much slower, for models that don't fit.",
    )

    def check(self) -> None:
        self._check_kwargs()
        size = self.generation_batch_size
        if size is not None and (size < 1 or size % self.world_size):
            raise UsageError(
                f"`generation_batch_size` counts the completions of all processes, so it must be a multiple of their "
                f"number, {self.world_size}, got {size}."
            )
        if self.temperature != 1.0 and not self.generates:
            logger.warning(
                f"`temperature` is {self.temperature}, which is for sampling, and nothing is sampled with `lmbda` 0. "
                "The temperature of the divergence is `kd_temperature`."
            )

    def _check_kwargs(self) -> None:
        kwargs = self.generation_kwargs or {}
        assert not isinstance(kwargs, str)
        fixed = sorted({*kwargs} & FIXED)
        if fixed:
            raise UsageError(
                f"`generation_kwargs` can't set {', '.join(fixed)}: the trainer does. The length is `max_new_tokens`, "
                "and what ends a completion is in the generation config of the model."
            )
        unknown = [] if self.use_vllm else sorted({*kwargs} - {*GenerationConfig().to_dict()})
        if unknown:
            raise UsageError(
                f"`generation_kwargs` has {', '.join(unknown)}, which `transformers.GenerationConfig` doesn't know."
            )


@dataclass
class VLLMOptions(OptionGroup):
    """Parameters that control generation with vLLM."""

    use_vllm: bool = option(False, "Whether vLLM generates the student's completions. It needs a GPU.")
    vllm_mode: str = option(
        "colocate",
        "`colocate` runs vLLM in the training processes, `server` asks one that `trl vllm-serve` has started.",
        choices=list(VLLM_MODES),
    )
    vllm_model_impl: str = option("vllm", "Implementation of the model: `vllm` or `transformers`.")
    vllm_enable_sleep_mode: bool = option(False, "Whether vLLM frees its memory during the optimizer step.")
    vllm_structured_outputs_regex: str | None = option(None, "Regular expression that the completions must match.")
    vllm_server_base_url: str | None = option(None, "URL of the vLLM server, in place of host and port.")
    vllm_server_host: str = option("0.0.0.0", "Host of the vLLM server.")
    vllm_server_port: int = option(8000, "Port of the vLLM server.")
    vllm_server_timeout: float = option(240.0, "Seconds to wait for the vLLM server.")
    vllm_group_port: int = option(51216, "Port over which the weights are sent to the vLLM server.")
    vllm_gpu_memory_utilization: float = option(0.3, "Share of the GPU's memory that colocated vLLM takes.")
    vllm_max_model_length: int | None = option(None, "Longest sequence, prompt included, for colocated vLLM.")
    vllm_tensor_parallel_size: int = option(1, "Number of GPUs that share one colocated vLLM model.")

    def check(self) -> None:
        must(self, "vllm_mode", self.vllm_mode in VLLM_MODES, f"one of {', '.join(VLLM_MODES)}")
        if self.use_vllm and not self.ds3_gather_for_generation:
            raise UsageError(
                "`ds3_gather_for_generation` must be True with `use_vllm`, got False: vLLM is sent whole weights."
            )


@dataclass
class CompletionLogOptions(OptionGroup):
    """Parameters that control the logging of completions."""

    log_completions: bool = option(
        False,
        "Whether to print the latest generated completions with every log, and store them in "
        "`output_dir/completions`, one parquet file each.",
    )
    num_completions_to_print: int | None = option(None, "Number of completions to print. If not set, all.")
    log_unique_prompts: bool = option(False, "Whether to send only one completion per prompt to the trackers.")
