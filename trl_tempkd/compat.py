# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Every private name of TRL, transformers, accelerate, datasets and PEFT that this package uses: no other file imports
one. `tests/test_upstream.py` checks each, so that a new version of them that has moved one says so.

A name is imported when it is first asked for, since some commands need none of the large libraries.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


# As we call it -> where it is
PRIVATE: dict[str, str] = {
    # The loss runs inside the wrapper's forward
    "ForwardRedirection": "trl.models.utils._ForwardRedirection",
    "maybe_gather_lm_head_ctx": "trl.trainer.utils.maybe_gather_lm_head_ctx",
    "BaseTuner": "peft.tuners.tuners_utils.BaseTuner",
    # Models
    "create_model_from_path": "trl.trainer.utils.create_model_from_path",
    "get_config_model_id": "trl.trainer.utils.get_config_model_id",
    "disable_dropout_in_model": "trl.trainer.utils.disable_dropout_in_model",
    "prepare_deepspeed": "trl.models.prepare_deepspeed",
    "fsdp2_prepare_model": "accelerate.utils.fsdp_utils.fsdp2_prepare_model",
    "get_model_param_count": "transformers.trainer_pt_utils.get_model_param_count",
    "revert_weight_conversion": "transformers.core_model_loading.revert_weight_conversion",
    "find_adapter_config_file": "transformers.utils.peft_utils.find_adapter_config_file",
    # Options
    "AcceleratorConfig": "transformers.trainer_pt_utils.AcceleratorConfig",
    "TYPE_TO_SCHEDULER_FUNCTION": "transformers.optimization.TYPE_TO_SCHEDULER_FUNCTION",
    # Data
    "DataCollatorForLanguageModeling": "trl.trainer.sft_trainer.DataCollatorForLanguageModeling",
    "bytes_to_unicode": "transformers.convert_slow_tokenizer.bytes_to_unicode",
    "common_prefix_length": "trl.data_utils.common_prefix_length",
    "get_training_chat_template": "trl.chat_template_utils.get_training_chat_template",
    "has_generation_markers": "trl.chat_template_utils.has_generation_markers",
    # Generation
    "DistributedBackend": "trl.distributed.DistributedBackend",
    "add_hooks": "trl.models.utils.add_hooks",
    "remove_hooks": "trl.models.utils.remove_hooks",
    "VLLMGeneration": "trl.generation.vllm_generation.VLLMGeneration",
    "is_vllm_available": "trl.import_utils.is_vllm_available",
    "print_prompt_completions_sample": "trl.trainer.utils.print_prompt_completions_sample",
    # Trackers
    "get_comet_experiment_url": "trl.trainer.utils.get_comet_experiment_url",
    "get_trackio_space_url": "trl.trainer.utils.get_trackio_space_url",
    "INTEGRATION_TO_CALLBACK": "transformers.integrations.INTEGRATION_TO_CALLBACK",
    "get_available_reporting_integrations": "transformers.integrations.get_available_reporting_integrations",
    # The launcher
    "launch_command": "accelerate.commands.launch.launch_command",
    "launch_command_parser": "accelerate.commands.launch.launch_command_parser",
    "ClusterConfig": "accelerate.commands.config.config_args.ClusterConfig",
    "default_config_file": "accelerate.commands.config.config_args.default_config_file",
    "load_config_from_file": "accelerate.commands.config.config_args.load_config_from_file",
}


def __getattr__(name: str) -> Any:
    if name not in PRIVATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = PRIVATE[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@contextmanager
def single_process_started_by(start: Callable[[dict[str, str]], int]) -> Iterator[None]:
    """Context in which `accelerate launch` starts a process without others by a function of its environment."""
    launch: Any = importlib.import_module("accelerate.commands.launch")
    by_accelerate = launch.simple_launcher

    def simple_launcher(args: argparse.Namespace) -> None:
        command, environment = launch.prepare_simple_launcher_cmd_env(args)
        if status := start(environment):
            raise subprocess.CalledProcessError(status, command)

    launch.simple_launcher = simple_launcher
    try:
        yield
    finally:
        launch.simple_launcher = by_accelerate


def look_up_packages_once() -> None:
    """
    Have accelerate remember which packages are installed: it asks at every unwrapping of a model, several times a
    step, and reads files each time. And have it look for DeepSpeed's models where that has been imported, rather than
    import it for the look wherever it is installed, which takes half a second.
    """
    imports: Any = importlib.import_module("accelerate.utils.imports")
    if not hasattr(imports._is_package_available, "cache_info"):
        imports._is_package_available = cache(imports._is_package_available)
    other: Any = importlib.import_module("accelerate.utils.other")
    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Context in which transformers makes models as if there were no DeepSpeed, whose ZeRO-3 would shard them."""
    deepspeed: Any = importlib.import_module("transformers.integrations.deepspeed")
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
