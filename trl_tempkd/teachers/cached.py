# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher that has run before: what it said comes with the rows of the data set."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import torch
import xxhash
from accelerate import Accelerator
from datasets import Dataset, IterableDataset, load_from_disk
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head, NoHead
from ..losses import Truncated
from .columns import CHECKSUM, TOKENS, is_sound, key_of, rows_of
from .layouts import MODES, layout_of
from .manifest import Manifest, checksum_of
from .objective import check_objective


HEAD = "head.safetensors"
POSITIONS = "teacher_positions"  # of what is stored, in the flattened batch

_REPAIR = "Run `trl-tempkd cache` again with the same --output: it makes anew what is damaged or missing."


class TeacherCache:
    """
    A folder that `trl-tempkd cache` has written.

    Args:
        folder (`str`):
            The folder.
        options (`TeacherOptions`):
            The configuration of the run.
        teacher (`str`, *optional*):
            Name of the teacher of the run, to be compared with that of the cache.

    Raises:
        `ValueError`: If the cache isn't complete, is damaged, or is another teacher's.
    """

    def __init__(self, folder: str, options: Any, teacher: Any = None):
        if teacher is not None and not isinstance(teacher, str):
            raise UsageError(
                f"`teacher_cache` is {folder!r}, and `teacher_model` a {type(teacher).__name__}: pass one of the two, "
                "or the teacher's name, which is compared with that of the cache."
            )
        self.folder = Path(folder)
        self.options = options
        self.manifest = Manifest.read(self.folder)
        if self.manifest.mode not in MODES:
            raise UsageError(
                f"The cache in {folder} has `mode` {self.manifest.mode!r}, this version trains from "
                f"{', '.join(MODES)}."
            )
        self.layout = layout_of(self.manifest)
        if not self.manifest.complete:
            raise UsageError(f"The cache in {folder} isn't complete. {_REPAIR}")
        check_objective(self.manifest, options, folder)
        for split, shard in self.manifest.shards():
            path = self.folder / split / shard["file"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise UsageError(f"{path} has {size} bytes of {shard['bytes']}. {_REPAIR}")
        if teacher is not None:
            trust, kwargs = options.trust_remote_code, options.teacher_model_init_kwargs
            self.manifest.check_teacher(teacher, options.teacher_model_revision, trust, kwargs, self.folder)
        self._splits = [
            self._open(split, described["fingerprint"]) for split, described in self.manifest.splits.items()
        ]

    def check_student(self, student: nn.Module) -> None:
        """
        Raises:
            `ValueError`: If the student has no logits for tokens that are in the cache.
        """
        size, known = student.config.get_text_config().vocab_size, (self.manifest.truncated or {}).get("vocabulary", 0)
        if size < known:
            raise UsageError(
                f"The student's vocabulary has size {size}, and the cache in {self.folder} has tokens of {known} "
                "(`truncated.vocabulary`). Build the cache with this student."
            )

    def _open(self, split: str, fingerprint: str) -> tuple[Dataset, dict[bytes, int]]:
        """The rows of a split, mapped into memory, and where among them each is."""
        try:
            rows = load_from_disk(str(self.folder / split), keep_in_memory=False)
            assert isinstance(rows, Dataset)
            rows.data.validate(full=True)  # no offset points outside of the file
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise UsageError(f"{self.folder / split} can't be read: {error}. {_REPAIR}") from error
        if not {"input_ids", "labels"} <= set(rows.column_names):
            raise UsageError(f"{self.folder / split} is damaged: it has no tokens. {_REPAIR}")
        keys = [key_of(tokens) for tokens in rows_of(rows)]
        if xxhash.xxh3_128_hexdigest(b"".join(keys)) != fingerprint:
            raise UsageError(f"{self.folder / split} is damaged: its tokens aren't those of `fingerprint`. {_REPAIR}")
        return rows, {key: i for i, key in enumerate(keys)}

    def prepared(
        self, prepare: Callable[..., Any], dataset: Any, tokenizer: PreTrainedTokenizerBase, *args: Any
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
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the run.
            args (`tuple`):
                The other arguments of the preparation, the last being the name of the data set.

        Raises:
            `ValueError`: If the tokenizer is another, or rows aren't in the cache.
        """
        self.manifest.check_tokenizer(tokenizer, self.folder)
        columns = dataset.column_names or next(iter(dataset))
        differing = self.manifest.differing_preparation(self.options)
        own = self.layout.column in columns
        if own:
            if differing:
                raise UsageError(f"The {args[-1]} data set of the cache {self.folder} is prepared already.{differing}")
            if self.options.shuffle_dataset:
                dataset = dataset.shuffle(seed=self.options.seed)
        else:
            dataset = prepare(dataset, tokenizer, *args)
        if isinstance(dataset, IterableDataset):
            if not own:
                raise UsageError(
                    f"`teacher_cache` finds the rows of a data set that it can look into. To stream the {args[-1]} "
                    "data set, stream the cache's own, e.g. "
                    f"`load_from_disk({str(self.folder)!r})[...].to_iterable_dataset()`."
                )
            return dataset
        keys = [key_of(tokens) for tokens in rows_of(dataset)]
        rows, index = max(self._splits, key=lambda split: sum(key in split[1] for key in keys))
        missing = [i for i, key in enumerate(keys) if key not in index]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(keys)} rows of the {args[-1]} data set, the first being row {missing[0]}, "
                f"aren't in the cache {self.folder}.{differing} Build the cache with the recipe and the data of the "
                "run, and with `do_eval` for its evaluation."
            )
        return rows.select([index[key] for key in keys])

    def collator(self, collator: Callable[..., dict[str, Any]]) -> "CachedCollator":
        """A data collator that carries the teacher's columns along."""
        return CachedCollator(collator, self.manifest, str(self.folder))

    @property
    def columns(self) -> list[str]:
        """The columns that the collator needs."""
        return [*TOKENS, self.layout.column, CHECKSUM]


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
    """

    def __init__(self, collator: Callable[..., dict[str, Any]], manifest: Manifest, folder: str):
        self.collator = collator
        self.folder = folder
        self.seed = manifest.seed
        self.layout = layout_of(manifest)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch, name, size = self.collator(examples), self.layout.column, self.layout.size
        if name not in examples[0]:
            self._fail(f"a row has no `{name}`. With `skip_prepare_dataset`, train on the cache's own data set.")
        if not all(is_sound(row, self.layout, self.seed) for row in examples):
            self._fail(f"a row is damaged, or of another teacher's cache. {_REPAIR}")
        data = bytearray().join(part for row in examples for part in row[name])
        stored = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        targets = nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
        positions = (targets != -100).flatten().nonzero().squeeze(-1)
        if len(positions) * size != len(stored):
            self._fail("the batch has labels where its rows have none. Use TRL's collator, and the recipe's packing.")
        batch[name], batch[POSITIONS] = stored.view(-1, size), positions
        return batch

    def _fail(self, problem: str) -> NoReturn:
        raise UsageError(f"`teacher_cache` {self.folder}: {problem}")


class CachedTeacher:
    """
    What comes with a batch, and the head that hidden states need. Needs no model, and can't generate.

    Args:
        cache ([`TeacherCache`]):
            Where they are.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
    """

    model = None

    def __init__(self, cache: TeacherCache, accelerator: Accelerator):
        self.manifest = cache.manifest
        self.layout, self.metrics, self._folder = cache.layout, cache.layout.metrics, cache.folder
        self._head: Head | NoHead = _read_head(cache, accelerator) if cache.layout.has_head else NoHead()

    def wrapped(self) -> nn.Module:
        raise UsageError("`teacher_cache` has no model to generate with.")

    def active(self) -> AbstractContextManager[None]:
        raise UsageError("`teacher_cache` has no model to generate with.")

    def rows(self, inputs: dict[str, Any]) -> torch.Tensor | Truncated:
        """Takes out of the batch what is for the teacher alone. Meaningless where there is no label."""
        stored, positions = inputs.pop(self.layout.column), inputs.pop(POSITIONS)
        return self.layout.decode(stored, positions, inputs["input_ids"].numel())

    def hidden_states(self, inputs: dict[str, Any]) -> torch.Tensor:
        rows = self.rows(inputs)
        if not isinstance(rows, torch.Tensor):
            raise UsageError(
                f"The cache in {self._folder} has no whole rows of the teacher, which are needed here. Build one with "
                "--mode hidden, or leave `teacher_cache` unset to run the teacher itself."
            )
        return rows.view(*inputs["input_ids"].shape, -1)

    @contextmanager
    def head(self) -> Iterator[Head | NoHead]:
        yield self._head


def _read_head(cache: TeacherCache, accelerator: Accelerator) -> Head:
    path = cache.folder / HEAD
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} can't be read: {error}. {_REPAIR}") from error
    if checksum_of(tensors) != cache.manifest.head_checksum:
        raise UsageError(f"{path} is damaged. {_REPAIR}")
    return Head(**{name: tensor.to(accelerator.device) for name, tensor in tensors.items()}, **cache.manifest.head)
