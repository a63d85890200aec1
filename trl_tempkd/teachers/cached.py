# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher that has run before: what it said comes with the rows of the data set."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import torch
import xxhash
from accelerate import Accelerator
from datasets import Dataset, IterableDataset, concatenate_datasets, load_from_disk
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head, NoHead
from ..losses import Truncated
from ..row_formats import CONTEXTS, TEACHER_PROMPT
from ..vision import VisionCollator
from .base import Batch, Collator, Teacher
from .columns import CHECKSUM, TOKENS, checksum, is_sound, key_of, predicting, rows_of, tokens_of
from .layouts import MODES, layout_of
from .manifest import Manifest, checksum_of
from .own_pixels import own_processing
from .seen_rows import seen_rows


HEAD = "head.safetensors"
TOKENIZER = "tokenizer"  # folder of the teacher's, where that isn't the student's
POSITIONS = "teacher_positions"  # of what is stored, in the flattened batch
PLACE = "teacher_cache_row"  # of a row with images: where it is in the cache

REPAIR = "Run `trl-tempkd cache` again with the same --output_dir: it makes anew what is damaged or missing."


class CachedTeacher(Teacher):
    """
    A folder that `trl-tempkd cache` has written: what comes with a batch, and the head that hidden states need.

    Args:
        teacher (`str`, *optional*):
            Name of the teacher of the run, to be compared with that of the cache.
        options (`KDConfig`):
            Configuration of the run. `teacher_cache` is the folder.

    Raises:
        `ValueError`: If the cache isn't complete, is damaged, is another teacher's, or hasn't what the run minimises;
            by `bind`, if the student has no logits for tokens that are in the cache.
    """

    reads_tokens = False
    instead = "use a cache of --mode hidden, which has every temperature and divergence"

    def __init__(self, teacher: str | None, options: Any):
        self.folder = Path(options.teacher_cache)
        self.source = f"the cache in {self.folder}"
        self._options = options
        self.manifest = Manifest.read(self.folder)
        if self.manifest.mode not in MODES:
            raise UsageError(
                f"The cache in {self.folder} has `mode` {self.manifest.mode!r}, this version trains from "
                f"{', '.join(MODES)}."
            )
        if not self.manifest.complete:
            raise UsageError(f"The cache in {self.folder} isn't complete. {REPAIR}")
        self._check_alignment(options.vocabulary_alignment)
        self.layout = layout_of(self.manifest)
        self.metrics, self.knows, self.taus = self.layout.metrics, self.layout.target, self.layout.taus
        self.columns = [*TOKENS, self.layout.column, CHECKSUM, PLACE]
        self.check(options)
        for split, shard in self.manifest.shards():
            path = self.folder / split / shard["file"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise UsageError(f"{path} has {size} bytes of {shard['bytes']}. {REPAIR}")
        if teacher is not None:
            trust, kwargs = options.trust_remote_code, options.teacher_model_init_kwargs
            self.manifest.check_teacher(teacher, options.teacher_model_revision, trust, kwargs, self.folder)
        self._teacher = teacher
        self._splits = [
            self._open(split, described["fingerprint"]) for split, described in self.manifest.splits.items()
        ]
        self._rows = concatenate_datasets([rows for rows, _ in self._splits])

    def _check_alignment(self, alignment: str | None) -> None:
        """Stop where the teacher has the student's tokenizer in the run and not in the cache, or the other way."""
        if (self.manifest.other_tokenizer is None) != (alignment is None):
            raise UsageError(
                f"`vocabulary_alignment` is {alignment!r}, and the cache in {self.folder} is of a teacher with "
                + ("the student's own tokenizer" if alignment else "another tokenizer than the student's")
                + f". {'Leave it unset' if alignment else 'Set it'}, or build a cache for this run."
            )

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        known = (self.manifest.truncated or {}).get("vocabulary", 0)
        size = accelerator.unwrap_model(student()).config.get_text_config().vocab_size
        if size < known:
            raise UsageError(
                f"The student's vocabulary has size {size}, and the cache in {self.folder} has tokens of {known} "
                "(`truncated.vocabulary`). Build the cache with this student."
            )
        self._head = self._read_head(accelerator) if self.layout.has_head else NoHead()

    def _read_head(self, accelerator: Accelerator) -> Head:
        path = self.folder / HEAD
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} can't be read: {error}. {REPAIR}") from error
        if checksum_of(tensors) != self.manifest.head_checksum:
            raise UsageError(f"{path} is damaged. {REPAIR}")
        return Head(**{name: tensor.to(accelerator.device) for name, tensor in tensors.items()}, **self.manifest.head)

    def _open(self, split: str, fingerprint: str) -> tuple[Dataset, dict[bytes, int]]:
        """The rows of a split, mapped into memory, and where among them each is."""
        try:
            rows = load_from_disk(str(self.folder / split), keep_in_memory=False)
            assert isinstance(rows, Dataset)
            rows.data.validate(full=True)  # no offset points outside of the file
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise UsageError(f"{self.folder / split} can't be read: {error}. {REPAIR}") from error
        if not {"input_ids", "labels"} <= set(rows.column_names):
            raise UsageError(f"{self.folder / split} is damaged: it has no tokens. {REPAIR}")
        keys = [key_of(tokens) for tokens in rows_of(rows)]
        if xxhash.xxh3_128_hexdigest(b"".join(keys)) != fingerprint:
            raise UsageError(f"{self.folder / split} is damaged: its tokens aren't those of `fingerprint`. {REPAIR}")
        return rows, {key: i for i, key in enumerate(keys)}

    def prepare(
        self, prepare: Callable[..., Any], dataset: Any, processing_class: PreTrainedTokenizerBase, *args: Any
    ) -> Dataset | IterableDataset:
        """
        A data set as the trainer prepares it, with what is stored of the teacher.

        Rows are found by their tokens, so their order and number are those of the run, and a data set of the cache
        itself, already prepared, may have been selected from, shuffled or sharded.

        Args:
            prepare (`Callable`):
                The trainer's preparation.
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
                Any data set that the trainer takes, or a data set of the cache.
            processing_class ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the run.
            args (`tuple`):
                The other arguments of the preparation, the last being the name of the data set.

        Raises:
            `ValueError`: If the tokenizer is another, or rows aren't in the cache.
        """
        self.manifest.check_tokenizer(processing_class, self.folder)
        columns = dataset.column_names or next(iter(dataset))
        differing = self.manifest.differing_preparation(self._options)
        own = self.layout.column in columns
        if own:
            if differing:
                raise UsageError(f"The {args[-1]} data set of the cache {self.folder} is prepared already.{differing}")
            if self._options.shuffle_dataset:
                dataset = dataset.shuffle(seed=self._options.seed)
        else:
            dataset = prepare(dataset, processing_class, *args)
        if isinstance(dataset, IterableDataset):
            if not own:
                raise UsageError(
                    f"`teacher_cache` finds the rows of a data set that it can look into. To stream the {args[-1]} "
                    "data set, stream the cache's own, e.g. "
                    f"`load_from_disk({str(self.folder)!r})[...].to_iterable_dataset()`."
                )
            return dataset
        rows, numbers = self._found(dataset, args[-1])
        return rows.select(numbers)

    def check_rows(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.manifest.check_tokenizer(tokenizer, self.folder)
        if isinstance(dataset, Dataset):
            self._found(dataset, name)

    def _found(self, dataset: Dataset, name: str) -> tuple[Dataset, list[int]]:
        """The split that has the rows of a prepared data set, and where in it they are."""
        keys = [key_of(tokens) for tokens in rows_of(dataset)]
        rows, index = max(self._splits, key=lambda split: sum(key in split[1] for key in keys))
        missing = [i for i, key in enumerate(keys) if key not in index]
        if missing:
            differing = self.manifest.differing_preparation(self._options)
            own = CONTEXTS in dataset.column_names
            if own != self.manifest.own_prompts:
                differing += (
                    f" The teacher {'reads' if own else 'does not read'} a `{TEACHER_PROMPT}` of these rows, and "
                    f"{'read none' if own else 'read one'} for the cache."
                )
            raise UsageError(
                f"{len(missing)} of {len(keys)} rows of the {name} data set, the first being row {missing[0]}, "
                f"aren't in the cache {self.folder}.{differing} Build the cache with the recipe and the data of the "
                "run, and with `do_eval` for its evaluation."
            )
        return rows, [index[key] for key in keys]

    def prepare_pictured(self, dataset: Any, collator: VisionCollator, name: str) -> Any:
        """
        The same rows, each with its place in the cache.

        Raises:
            `ValueError`: If a processor is another, or rows aren't in the cache.
        """
        if dataset is None:
            return None
        if not isinstance(dataset, Dataset):
            raise UsageError(
                f"`teacher_cache` finds the rows of a data set that it can look into, and the {name} data set is a "
                "stream. Set `dataset_streaming` to False."
            )
        self.manifest.check_tokenizer(collator.processing.tokenizer, self.folder)
        self.manifest.check_processor(collator.processing, self.folder)
        if self._teacher is not None:
            options = self._options
            origin = {"revision": options.teacher_model_revision, "trust_remote_code": options.trust_remote_code}
            theirs = own_processing(self._teacher, collator.processing, **origin)
            self.manifest.check_processor(theirs, self.folder, "teacher_processor")
        rows, numbers = self._found(seen_rows(dataset, collator), name)
        starts = accumulate([len(split) for split, _ in self._splits], initial=0)
        start = next(start for start, (split, _) in zip(starts, self._splits, strict=False) if split is rows)
        return dataset.add_column(PLACE, [start + number for number in numbers])

    def collate(self, collator: Collator) -> "CachedCollator":
        splits = () if self.alone else self._splits
        return CachedCollator(collator, self.manifest, str(self.folder), splits, self._rows)

    def rows(self, inputs: Batch) -> torch.Tensor | Truncated:
        stored, positions = inputs.pop(self.layout.column), inputs.pop(POSITIONS)
        return self.layout.decode(stored, positions, inputs["input_ids"].numel())

    def head(self) -> AbstractContextManager[Head | NoHead]:
        return nullcontext(self._head)

    @property
    def name(self) -> str | None:
        return self.manifest.teacher_model_name_or_path

    def identity(self) -> dict[str, Any]:
        return {"kind": "cache", "name": self.name, "identity": f"{self.manifest.seed:016x}"}


class CachedCollator:
    """
    What another collator makes of some rows, and the bytes of the teacher, of shape `(K, S)`, with their positions.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows.
        manifest ([`Manifest`]):
            Of the cache.
        folder (`str`):
            Of the cache, for messages.
        splits (`Sequence[tuple[Dataset, dict[bytes, int]]]`, *optional*, defaults to `()`):
            The rows of the cache, where those to be collated are looked for by their tokens. Without them they come
            with what is stored.
        rows ([`~datasets.Dataset`], *optional*):
            All of them, for rows with images, which have but their place among these.
    """

    def __init__(
        self,
        collator: Collator,
        manifest: Manifest,
        folder: str,
        splits: Sequence[Any] = (),
        rows: Dataset | None = None,
    ):
        self.collator, self.rows = collator, rows
        self.folder = folder
        self.splits = splits
        self.seed = manifest.seed
        self.layout = layout_of(manifest)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch, name, size = self.collator(examples), self.layout.column, self.layout.size
        if PLACE in examples[0]:
            assert self.rows is not None
            examples = list(self.rows.select([row[PLACE] for row in examples]))
        elif self.splits:
            examples = [self._looked_up(row) for row in examples]
        if name not in examples[0]:
            self._fail(f"a row has no `{name}`. With `skip_prepare_dataset`, train on the cache's own data set.")
        if not all(is_sound(row, self.layout, self.seed) for row in examples):
            self._fail(f"a row is damaged, or of another teacher's cache. {REPAIR}")
        data = bytearray().join(part for row in examples for part in row[name])
        stored = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        positions = self.positions(batch)
        if len(positions) * size != len(stored):
            self._fail("the batch has labels where its rows have none. Use TRL's collator, and the recipe's packing.")
        batch[name], batch[POSITIONS] = stored.view(-1, size), positions
        return batch

    def positions(self, batch: Batch) -> torch.Tensor:
        """Where in the flattened batch of the teacher something is stored."""
        targets = nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
        return (targets != -100).flatten().nonzero().squeeze(-1)

    def _looked_up(self, row: dict[str, Any]) -> dict[str, Any]:
        tokens = tokens_of(row)
        key = key_of(tokens)
        for rows, index in self.splits:
            if key in index:
                return rows[index[key]]
        if predicting(tokens).any():
            self._fail("a row isn't in it. Build the cache with the recipe and the data of the run.")
        return {**row, self.layout.column: [b""] * len(tokens.input_ids), CHECKSUM: checksum(tokens, [], self.seed)}

    def _fail(self, problem: str) -> NoReturn:
        raise UsageError(f"`teacher_cache` {self.folder}: {problem}")
