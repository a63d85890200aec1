# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Shows what was generated, as TRL's trainers do: printed, as parquet files, and to the trackers."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from ..compat import print_prompt_completions_sample
from ..files import whole_file
from ..trackers import Trackers
from ..vision import open_image, thumbnail, to_png
from .options import RolloutOptions


_IMAGE = [("bytes", pa.binary()), ("path", pa.string())]  # of a column of images of `datasets`
_REPEATED = re.compile(r"(<[^<>\s]+>)(?:\s?\1){3,}")


def log_samples(
    pairs: list[tuple[list[int], list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    args: RolloutOptions,
    step: int,
    trackers: Trackers,
    images: Sequence[tuple[Any, ...]] = (),
) -> None:
    """
    Print prompts and their completions, write `output_dir/completions/completions_STEP.parquet`, and give the trackers
    a table of them.

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
        trackers ([`Trackers`]):
            Trackers of the trainer.
        images (`Sequence[tuple]`, *optional*):
            Images of each prompt, of which small copies are shown beside it.
    """
    small = [[to_png(thumbnail(image)) for image in own] for own in images] or [[] for _ in pairs]
    texts = [
        (_shown(tokenizer.decode(prompt), pictures), tokenizer.decode(completion), pictures)
        for (prompt, completion), pictures in zip(pairs, small, strict=True)
    ]
    texts = gather_object(texts)
    if not accelerator.is_main_process or not texts:
        return
    prompts, completions, pictures = map(list, zip(*texts, strict=True))
    print_prompt_completions_sample(prompts, completions, {}, None, step, args.num_completions_to_print)
    table = pa.table({"step": [step] * len(prompts), "prompt": prompts, "completion": completions})
    if any(pictures):
        files = [[{"bytes": file, "path": None} for file in own] for own in pictures]
        table = table.append_column("images", pa.array(files, pa.list_(pa.struct(_IMAGE))))
    path = Path(str(args.output_dir)) / "completions" / f"completions_{step:05d}.parquet"
    with whole_file(path) as name:
        pyarrow.parquet.write_table(table, name)
    if not trackers.takes_tables():
        return
    frame = table.select(["step", "prompt", "completion"]).to_pandas()
    if args.log_unique_prompts:
        frame = frame.drop_duplicates(subset=["prompt"])
    trackers.show(step, frame, partial(_with_images, frame, pictures))


def _with_images(frame: Any, pictures: list[list[bytes]], tracker: Any) -> Any:
    """The table with the images as a tracker shows them, if there are any."""
    if not any(pictures):
        return frame
    shown = [[tracker.Image(open_image(file)) for file in pictures[row]] for row in frame.index]
    return frame.assign(images=shown)


def _shown(prompt: str, pictures: list[bytes]) -> str:
    """A prompt, in which with images a token that stands many times in a row, as those of an image do, stands once."""
    if not pictures:
        return prompt
    return _REPEATED.sub(lambda found: f"{found[1]}x{found[0].count(found[1])}", prompt)
