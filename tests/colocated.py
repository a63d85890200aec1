# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Train on the student's completions, written by vLLM's engine in this process, then by transformers, and compare.

    .vllm/bin/python tests/colocated.py SITE_PACKAGES      # of the environment that has TRL

vLLM's build for CPUs packs the weights of linear layers when it loads them, and can't be given others then. So packing
is left out here, and with it what `use_vllm` refuses on a CPU. All else is as on a GPU: TRL starts the engine, the
weights are sent to it before each generation, and it writes. The last line is the largest difference of the losses.
"""

import sys
import tempfile
from functools import partial


def main(packages: str) -> None:
    sys.path.append(packages)  # behind vLLM's own
    import torch
    from datasets import Dataset
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils

    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.rollouts import vllm
    from trl_tempkd.tiny import resolve

    def leave(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = leave
    vllm.NO_WAY = set()
    # Its own choice is bf16, in which it takes other tokens now and then
    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32")
    names = ("add two numbers", "read a file", "sort a list", "open a socket", "close a file", "copy a folder")
    prompts = [
        {"prompt": f"What does a function do that should {name}, if {why}?"}
        for name in names
        for why in ("it is empty", "it fails", "it is asked twice")
    ]

    def losses(use_vllm: bool) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            args = KDConfig(
                folder,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                model_init_kwargs={"dtype": "float32"},
                teacher_model_init_kwargs={"dtype": "float32"},
                lmbda=1.0,
                temperature=0.0,  # greedy: vLLM draws with a seed of its own
                max_new_tokens=24,
                use_vllm=use_vllm,
                vllm_max_model_length=256,
                divergence="reverse_kl",
                kd_temperature=2.0,
                learning_rate=5e-3,  # so that what is written depends on the weights that were sent
                per_device_train_batch_size=18,  # all rows, as vLLM's seed changes their order
                max_steps=3,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            data = Dataset.from_list(prompts)
            trainer = TemperatureKDTrainer(resolve("tiny:student"), resolve("tiny:teacher"), args, train_dataset=data)
            trainer.train()
            return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    written, expected = losses(True), losses(False)
    print(written, expected)
    print(max(abs(a - b) / abs(b) for a, b in zip(written, expected, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1])
