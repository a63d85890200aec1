# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Builds a teacher cache: one pass of the teacher over prepared data, in shards, over the processes, resumable."""

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from datasets import Dataset, DatasetInfo
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import UsageError
from ..files import clear, whole_file, write_atomically
from ..heads import NoHead
from ..locks import OWNER
from ..row_formats import CONTEXTS
from ..tiny import resolve
from ..vision import Processing
from .cached import HEAD, TOKENIZER
from .columns import (
    CHECKSUM,
    Tokens,
    encode,
    features_of,
    is_sound,
    key_of,
    predicting,
    rows_of,
    token_columns,
    tokens_of,
    uniform_of,
)
from .coverage import describe_coverage
from .layouts import TopKLayout, make_layout
from .manifest import (
    NAME,
    PREPARATION,
    VERSIONS,
    Manifest,
    checksum_of,
    hashes_of,
    identity_of,
    plain,
    processors_of,
    whole_hashes_of,
)
from .own_pixels import OwnPixelsCollator
from .pooling import START
from .seen_rows import seen_rows


SHARD_BYTES = 2**28  # of what is stored of the teacher: what a process holds in memory, and what a killed one loses
ROWS_TOGETHER = 64  # of a record batch
GIB = 2**30

logger = logging.get_logger(__name__)


@dataclass
class _Shard:
    split: str
    file: str
    start: int
    stop: int
    done: dict[int, dict[str, Any]] = field(default_factory=dict)  # columns of the rows that the teacher has seen


class _Read(NamedTuple):
    """Rows of the data, their token columns, the batch that the collator makes of them, and where it has labels."""

    rows: list[dict[str, Any]]
    tokens: list[Tokens]
    batch: dict[str, Any]
    kept: torch.Tensor


class CacheBuilder:
    """
    Writes what a teacher says of data that a trainer has prepared. Every process has one.

    A shard appears under its name once it is whole, so a build that was killed goes on from the shards that are there.
    Those are checked row by row, and made anew if they are damaged: that is also how a complete cache is verified.

    Args:
        folder (`Path`):
            Where to write.
        splits (`dict[str, Dataset]`):
            Prepared data sets, by name.
        teacher ([`Teacher`]):
            Runs under the accelerator's autocast, as in training.
        collator (`Callable`):
            Data collator of the trainer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the data.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        args ([`TeacherOptions`]):
            Configuration of the trainer. It names the teacher.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Of the hidden states or logits: `"bfloat16"`, `"float32"` or, of a teacher in that type, `"float64"`.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows of a forward pass.
        mode (`str`, *optional*, defaults to `"hidden"`):
            What is stored: `"hidden"`, `"topk"` or `"sampled"`.
        count (`int`, *optional*, defaults to `64`):
            Tokens of a position, unless that is the hidden state.
        taus (`Sequence[float]`, *optional*, defaults to `(1.0,)`):
            The temperatures that they can be had at.
        vocabulary (`int`, *optional*):
            Size of the student's head, of which the teacher's is compared with the common prefix.
    """

    def __init__(
        self,
        folder: Path,
        splits: dict[str, Dataset],
        teacher: Any,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        args: Any,
        *,
        dtype: str = "bfloat16",
        batch_size: int = 8,
        mode: str = "hidden",
        count: int = 64,
        taus: Sequence[float] = (1.0,),
        vocabulary: int | None = None,
        processing: Processing | None = None,
    ):
        splits = {name: teacher.to_cache(dataset) for name, dataset in splits.items()}
        # Of rows with images, the splits have the rows, and what is kept is of their tokens
        self.pictured = splits if processing is not None else None
        if isinstance(collator, OwnPixelsCollator):
            splits = {name: seen_rows(dataset, collator.collator) for name, dataset in splits.items()}
        self.folder, self.splits, self.teacher, self.collator = folder, splits, teacher, collator
        self.accelerator, self.batch_size = accelerator, batch_size
        self.quiet = args.disable_tqdm or not accelerator.is_local_main_process
        with teacher.head() as head:
            if isinstance(head, NoHead):
                raise UsageError(
                    f"A cache is built from last hidden states, and {teacher.source} hasn't them: start the server "
                    f"with {START}, or leave `teacher_server_url` unset."
                )
            whole = {name: getattr(head, name) for name in ("weight", "bias") if getattr(head, name) is not None}
            self.head = {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}
            scalars = {name: getattr(head, name) for name in ("logit_scale", "final_logit_softcapping")}
        dtype = "float32" if mode == "sampled" and dtype == "bfloat16" else dtype
        checksum, (size, hidden_size) = checksum_of(self.head), self.head["weight"].shape
        size = size if vocabulary is None else min(size, vocabulary)
        self.layout = make_layout(mode, dtype, hidden_size, size, count=count, taus=taus)
        self.head = self.head if self.layout.has_head else {}
        name, own = resolve(args.teacher_model_name_or_path), teacher.own_tokenizer
        self.bytes, self.lengths = 0, {split: np.zeros(0, dtype=np.int64) for split in splits}
        self.manifest = Manifest(
            mode=mode,
            teacher_model_name_or_path=name,
            **identity_of(name, args.teacher_model_revision, args.trust_remote_code),
            teacher_model_init_kwargs=plain(args.teacher_model_init_kwargs or {}),
            mixed_precision=accelerator.mixed_precision,
            **hashes_of(tokenizer),
            dtype=dtype,
            hidden_size=hidden_size,
            head=scalars,
            head_checksum=checksum,
            truncated=None if mode == "hidden" else {"count": count, "taus": list(taus), "vocabulary": size},
            preparation={name: plain(getattr(args, name)) for name in PREPARATION},
            splits={split: self._describe(split) for split in splits},
            **({} if processing is None else processors_of(processing, teacher.processing(processing))),
            own_prompts=any(CONTEXTS in dataset.column_names for dataset in splits.values()),
            other_tokenizer=None if own is None else {**whole_hashes_of(own[0]), "ends": sorted(own[1])},
            versions=VERSIONS,
        )

    def _describe(self, split: str) -> dict[str, Any]:
        """What the manifest says of a split. Where its shards end depends on the data alone."""
        digest, lengths, tokens = xxhash.xxh3_128(), [], 0
        per_shard, filled = [0], 0
        for row in rows_of(self.splits[split]):
            digest.update(key_of(row))
            lengths.append(len(row.input_ids))
            states = int(row.stored.sum()) * self.layout.size
            if filled and filled + states > SHARD_BYTES:
                per_shard.append(0)
                filled = 0
            per_shard[-1] += 1
            filled += states
            tokens += states // self.layout.size
            # the token columns, an offset for each position of the teacher, and what a row of its own takes
            self.bytes += states + row.nbytes + 8 * len(row.stored) + 4 * sum(part is not None for part in row) + 12
        if not lengths:
            raise UsageError(f"The {split} data set has no rows to be cached.")
        files = [f"data-{i:05d}-of-{len(per_shard):05d}.arrow" for i in range(len(per_shard))]
        shards = [{"file": file, "rows": rows} for file, rows in zip(files, per_shard, strict=True)]
        self.lengths[split] = np.asarray(lengths, dtype=np.int64)
        return {"rows": len(lengths), "tokens": tokens, "fingerprint": digest.hexdigest(), "shards": shards}

    def build(self) -> Manifest:
        """
        Write what is missing.

        Returns:
            [`Manifest`]: Of the complete cache.

        Raises:
            `ValueError`: If the folder has a cache of something else, or the disk has too little room.
        """
        todo: list[Any] = [None]
        if self.accelerator.is_main_process:
            todo = [self._begin()]
        shards = broadcast_object_list(todo)[0]
        self._run(shards)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._finish()
        self.accelerator.wait_for_everyone()
        return Manifest.read(self.folder)

    def _begin(self) -> list[_Shard]:
        """Check the folder and the disk. Returns the shards that are to be written."""
        if (self.folder / NAME).exists():
            Manifest.read(self.folder).check_same_build(self.manifest, self.folder)
        elif self.folder.exists() and any(not path.name.startswith((".", OWNER)) for path in self.folder.iterdir()):
            raise UsageError(
                f"{self.folder} has something else in it than a teacher cache. Give another --output_dir."
            )
        todo, there = [], 0
        for split, described in self.manifest.splits.items():
            start = 0
            for shard in described["shards"]:
                stop = start + shard["rows"]
                path = self.folder / split / shard["file"]
                if self._is_whole(path, shard["rows"]):
                    there += path.stat().st_size
                else:
                    todo.append(_Shard(split, shard["file"], start, stop))
                start = stop
        need = self.bytes + sum(tensor.nbytes for tensor in self.head.values()) - there
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        tokens = sum(split["tokens"] for split in self.manifest.splits.values())
        print(
            f"Teacher cache of {tokens} tokens in {self.folder}: {self.bytes / GIB:.3g} GiB, {max(need, 0) / GIB:.3g} "
            f"GiB to be written, {free / GIB:.3g} GiB free."
        )
        if need > free:
            raise UsageError(
                f"The cache takes another {need / GIB:.3g} GiB in {self.folder}, where {free / GIB:.3g} GiB are free. "
                "Give another --output_dir, fewer rows or, if it is float32, --cache_dtype bfloat16."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if todo:
            self.manifest.write(self.folder)  # not complete
        for split in self.splits:
            (self.folder / split).mkdir(exist_ok=True)
        if self.head:
            with whole_file(self.folder / HEAD) as path:
                save_file(self.head, path)
        if (own := self.teacher.own_tokenizer) is not None:
            own[0].save_pretrained(self.folder / TOKENIZER)
        return todo

    def _is_whole(self, path: Path, rows: int) -> bool:
        if not path.is_file():
            return False
        try:
            shard = Dataset.from_file(str(path))
            shard.data.validate(full=True)  # no offset points outside of the file
        except (pa.ArrowException, OSError, ValueError, KeyError):
            return False
        if len(shard) != rows or not {"input_ids", "labels", self.layout.column, CHECKSUM} <= set(shard.column_names):
            return False
        return all(is_sound(row, self.layout, self.manifest.seed) for row in shard)

    def _run(self, shards: list[_Shard]) -> None:
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        work = [list(self._batches(shards[start::processes])) for start in range(processes)]
        idle = next((batches[-1] for batches in work if batches), None)
        # A sharded teacher needs every process in each forward, so all make as many
        count = max(map(len, work))
        todo = [*work[rank], *([idle] * (count - len(work[rank])))]
        seen, start = 0, time.monotonic()
        for i, (batch, read) in enumerate(tqdm(self._read(todo), "teacher", count, disable=self.quiet)):
            rows, mine = self._states(read), i < len(work[rank])
            shard, numbers = batch
            if mine:
                seen += int(read.kept.sum())
                shard.done.update(zip(numbers, rows, strict=True))
                if len(shard.done) == shard.stop - shard.start:
                    self._write(shard)

        seen = int(self.accelerator.gather(torch.tensor([seen], device=self.accelerator.device)).sum())
        if seen:
            took = time.monotonic() - start
            self.accelerator.print(f"The teacher has seen {seen} tokens in {took:.1f} s, {seen / took:.0f} a second.")

    def _read(self, todo: list[Any]) -> Iterator[tuple[Any, "_Read"]]:
        """Batches with what the teacher needs of them. A server is asked about the next ones before it answers."""
        ahead = 1 + -(-self.teacher.requests // self.batch_size) if self.teacher.requests else 0
        kept: deque[tuple[Any, _Read]] = deque()
        for batch in todo:
            kept.append((batch, self._collated(*batch)))
            self.teacher.ask([kept[-1][1].batch])
            if len(kept) > ahead:
                yield kept.popleft()
        yield from kept

    def _batches(self, shards: list[_Shard]) -> Iterator[tuple[_Shard, list[int]]]:
        for shard in shards:
            # Rows of about the same length together, so that little is lost to padding
            order = np.argsort(self.lengths[shard.split][shard.start : shard.stop], kind="stable") + shard.start
            for start in range(0, len(order), self.batch_size):
                yield shard, order[start : start + self.batch_size].tolist()

    def _collated(self, shard: _Shard, numbers: list[int]) -> "_Read":
        dataset = self.splits[shard.split].select(numbers)
        rows = list(dataset.select_columns(token_columns(dataset)))
        tokens = [tokens_of(row) for row in rows]
        read = rows if self.pictured is None else list(self.pictured[shard.split].select(numbers))
        batch = send_to_device(self.collator(read), self.accelerator.device)
        labels = batch.pop("labels")
        kept = (nn.functional.pad(labels, (0, 1), value=-100)[:, 1:] != -100).flatten()
        # The collator pads on the right, or lays the rows end to end
        lengths = [len(row["input_ids"]) for row in rows]
        apart = labels.shape[0] == len(rows)
        starts = [i * labels.shape[1] for i in range(len(rows))] if apart else [0, *accumulate(lengths[:-1])]
        ids, kept_here = batch["input_ids"].flatten().tolist(), kept.tolist()
        for row, own, start, length in zip(rows, tokens, starts, lengths, strict=True):
            part = slice(start, start + length)
            if ids[part] != list(row["input_ids"]) or kept_here[part] != predicting(own).tolist():
                raise UsageError("The data collator moves tokens or labels: only TRL's own can be cached.")
        return _Read(rows, tokens, batch, kept)

    def _states(self, read: "_Read") -> list[dict[str, Any]]:
        """Rows with their cached columns."""
        rows, tokens, batch, kept = read
        with torch.no_grad(), self.accelerator.autocast():
            hidden = self.teacher.states(batch, kept)
            stored = self.layout.encode(hidden, self.teacher.head, partial(uniform_of, tokens)).cpu()
        parts = stored.split([int(own.stored.sum()) for own in tokens])
        return [
            {**row, **encode(own, part, self.layout, self.manifest.seed)}
            for row, own, part in zip(rows, tokens, parts, strict=True)
        ]

    def _write(self, shard: _Shard) -> None:
        schema = features_of(self.splits[shard.split], self.layout).arrow_schema
        rows = [shard.done[number] for number in range(shard.start, shard.stop)]
        with whole_file(self.folder / shard.split / shard.file) as path, pa.ipc.new_stream(path, schema) as stream:
            for start in range(0, len(rows), ROWS_TOGETHER):
                stream.write(pa.RecordBatch.from_pylist(rows[start : start + ROWS_TOGETHER], schema))
        shard.done.clear()

    def _finish(self) -> None:
        """What makes the folder a data set of `datasets`, and last what says that it is complete."""
        for split, shard in self.manifest.shards():
            shard["bytes"] = (self.folder / split / shard["file"]).stat().st_size
        for split, dataset in self.splits.items():
            folder, described = self.folder / split, self.manifest.splits[split]
            state = {
                "_data_files": [{"filename": shard["file"]} for shard in described["shards"]],
                "_fingerprint": described["fingerprint"],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": split,
            }
            DatasetInfo(features=features_of(dataset, self.layout)).write_to_directory(str(folder))
            write_atomically(folder / "state.json", json.dumps(state))
        write_atomically(self.folder / "dataset_dict.json", json.dumps({"splits": list(self.splits)}))
        for left in self.folder.rglob(".*.tmp"):  # of a build that was killed
            left.unlink()
        clear(self.folder)
        if isinstance(self.layout, TopKLayout):
            describe_coverage(self.layout, self.manifest, self.folder)
        self.manifest.complete = True
        self.manifest.write(self.folder)
