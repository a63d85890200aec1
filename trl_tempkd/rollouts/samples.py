# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Shows what was generated, as TRL's trainers do: printed, as parquet files, and to the trackers."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from ..compat import print_prompt_completions_sample
from ..files import whole_file
from .options import RolloutOptions


def log_samples(
    pairs: list[tuple[list[int], list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    args: RolloutOptions,
    step: int,
) -> None:
    """
    Print prompts and their completions, write `output_dir/completions/completions_STEP.parquet`, and send them as a
    table to Weights & Biases and Trackio, if they are in use.

    Args:
        pairs (`list[tuple[list[int], list[int]]]`):
            Tokens of the prompts and completions of this rank. Every rank must call.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of both.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        args ([`RolloutOptions`]):
            How many to print, and where to write.
        step (`int`):
            Number of optimizer steps so far.
    """
    texts = [(tokenizer.decode(prompt), tokenizer.decode(completion)) for prompt, completion in pairs]
    texts = gather_object(texts)
    if not accelerator.is_main_process or not texts:
        return
    prompts, completions = map(list, zip(*texts, strict=True))
    print_prompt_completions_sample(prompts, completions, {}, None, step, args.num_completions_to_print)
    table = pa.table({"step": [step] * len(prompts), "prompt": prompts, "completion": completions})
    path = Path(str(args.output_dir)) / "completions" / f"completions_{step:05d}.parquet"
    with whole_file(path) as name:
        pyarrow.parquet.write_table(table, name)
    if not {"wandb", "trackio"} & {*args.report_to}:
        return
    frame = table.to_pandas()
    if args.log_unique_prompts:
        frame = frame.drop_duplicates(subset=["prompt"])
    if "wandb" in args.report_to:
        import wandb

        if wandb.run is not None:
            wandb.log({"completions": wandb.Table(dataframe=frame)})
    if "trackio" in args.report_to:
        import trackio

        trackio.log({"completions": trackio.Table(dataframe=frame)})
