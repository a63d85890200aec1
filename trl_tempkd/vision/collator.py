# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows with images -> batches: images are opened, and tokens and pixels made, only now, as in TRL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import torch

from ..errors import UsageError
from .processing import Columns, Pixels, Processing
from .rows import PICTURED, Pictured, Read, read_row


Batch = dict[str, Any]
_IGNORED = -100


class Given(NamedTuple):
    """
    A row of a batch.

    Attributes:
        read (`Read`, *optional*):
            What a processor makes the row of. Nothing, where it is tokens alone.
        ids, labels (`list[int]`, *optional*):
            Tokens that were made in training.
        named (`Callable[[], str]`, *optional*):
            Names the row, for messages. The data may be looked through for it, so that only a message asks.
    """

    read: Read | None = None
    ids: list[int] | None = None
    labels: list[int] | None = None
    named: Callable[[], str] | None = None

    @property
    def name(self) -> str:
        return "a row" if self.named is None else self.named()

    @property
    def pictured(self) -> Pictured | None:
        return None if self.read is None else self.read.pictured

    @property
    def generated(self) -> list[int] | None:
        """The answer, where it was made in training."""
        return None if self.ids is None or self.labels is None else [i for i in self.labels if i != _IGNORED]


class Sequences(NamedTuple):
    """
    The rows of a batch before they are padded.

    Attributes:
        columns (`list[dict[str, list[int]]]`):
            What there is for each token of each row.
        labels (`list[list[int]]`):
            The same tokens, or -100.
        pixels (`dict[str, torch.Tensor]`):
            Of the images of all rows, in their order.
        texts (`list[str]`):
            What each row's tokens before the answer were made of, empty where there is no such text.
        starts (`list[int]`):
            Where the answer begins.
    """

    columns: list[Columns]
    labels: list[list[int]]
    pixels: Pixels
    texts: list[str]
    starts: list[int]


@dataclass(frozen=True)
class Asked:
    """
    What completions are generated for, in the order of the rows. No container, so that it is passed on as it is.

    Attributes:
        prompts (`list[list[int]]`):
            The student's tokens, empty where nothing is asked.
        pictured (`list[Pictured | None]`):
            What they were made of.
    """

    prompts: list[list[int]]
    pictured: list[Pictured | None]


@dataclass
class VisionCollator:
    """
    Puts rows with images together, in TRL's vision formats or as they are made in training.

    The first tensor of a batch is `input_ids`, padded on the right. No token of an image has a label.

    Args:
        processing ([`Processing`]):
            The student's processor.
        max_length (`int`, *optional*):
            Where rows of the data are cut. A cut before the last image is refused.
        completion_only (`bool`, *optional*, defaults to `True`):
            Whether of `prompt` and `completion` the completion alone is trained on.
        assistant_only (`bool`, *optional*, defaults to `False`):
            Whether of `messages` only what the assistant says is trained on.
        text_field (`str`, *optional*, defaults to `"text"`):
            The column that has text.
        multiple_of (`int`, *optional*):
            What the length of a batch is a multiple of.
        always (`bool`, *optional*, defaults to `False`):
            Whether a batch without any image gets an empty one, behind all that is trained on: where the parameters
            are in shards, every process must run the same layers.
        asks (`bool`, *optional*, defaults to `False`):
            Whether a batch has what completions are generated for.
        where (`Callable`, *optional*):
            Names a row of the data, for messages.
    """

    processing: Processing
    max_length: int | None = None
    completion_only: bool = True
    assistant_only: bool = False
    text_field: str = "text"
    multiple_of: int | None = None
    always: bool = False
    asks: bool = False
    where: Callable[[dict[str, Any]], str] | None = None

    @classmethod
    def of(cls, processing: Processing, options: Any, where: Callable[[dict[str, Any]], str]) -> "VisionCollator":
        """The collator of a run. `options` is its `KDConfig`."""
        return cls(
            processing,
            max_length=options.max_length,
            completion_only=options.completion_only_loss is not False,
            assistant_only=options.assistant_only_loss,
            text_field=options.dataset_text_field,
            multiple_of=options.pad_to_multiple_of,
            always=options.world_size > 1,
            asks=options.generates,
            where=where,
        )

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        rows = self.given(examples)
        return self.finished(rows, self.student(rows))

    def given(self, examples: list[dict[str, Any]]) -> list[Given]:
        """
        The rows of a batch.

        Raises:
            [`UsageError`]: Names a row whose images can't be opened, or aren't as many as their places.
        """
        found = []
        for example in examples:
            if "input_ids" in example:
                read = Read(example[PICTURED]) if example.get(PICTURED) is not None else None
                found.append(Given(read, list(example["input_ids"]), list(example["labels"])))
                continue
            row = Given(named=None if self.where is None else partial(self.where, example))
            try:
                found.append(row._replace(read=read_row(example, self.text_field)))
            except UsageError as error:
                raise UsageError(f"{row.name} {error}") from error
        return found

    def check_texts(self, rows: Sequence[Given]) -> None:
        """Refuse a row whose text or conversation the student's processor has not as many images for as it has."""
        for row in rows:
            if row.read is not None:
                self._text(row, row.read.pictured, self.processing)

    def student(self, rows: Sequence[Given]) -> Sequences:
        """What the student reads of some rows."""
        made = self._sequences(rows, self.processing, [self._answer(row) for row in rows], [r.pictured for r in rows])
        return made if self.max_length is None else self._cut(rows, made, self.max_length)

    def teacher(self, rows: Sequence[Given], student: Sequences, processing: Processing) -> Sequences:
        """
        What the teacher reads of them, by its own processor and chat template: other tokens before the same answers.

        Raises:
            [`UsageError`]: Names a row that has other tokens to be trained on then.
        """
        answers = [labels[start:] for labels, start in zip(student.labels, student.starts, strict=True)]
        asked = [row.pictured and (row.pictured.teacher or row.pictured) for row in rows]
        made = self._sequences(rows, processing, answers, asked)
        for row, mine, theirs in zip(rows, student.labels, made.labels, strict=True):
            wanted = [i for i in mine[1:] if i != _IGNORED]
            kept = [place for place in range(1, len(theirs)) if theirs[place] != _IGNORED]
            if [theirs[place] for place in kept[: len(wanted)]] != wanted:
                raise UsageError(
                    f"{row.name} has other tokens to be trained on as the teacher's chat template writes it. Give it "
                    "`prompt` and `completion`, whose completion alone is trained on."
                )
            for place in kept[len(wanted) :]:
                theirs[place] = _IGNORED  # the student's row was cut there
        return made

    def finished(self, rows: Sequence[Given], made: Sequences) -> Batch:
        """The student's batch, and where completions are generated what they are generated for."""
        batch = self.padded(made)
        if self.asks and any(row.ids is None for row in rows):
            batch[PICTURED] = Asked(*self.questions(rows, made))
        return batch

    def padded(self, made: Sequences, processing: Processing | None = None) -> Batch:
        """A batch of some rows: what there is for each token of shape `(B, L)`, and the pixels."""
        processing = processing or self.processing
        if self.always and not made.pixels:
            made = _with_empty_image(made, processing)
        width = max(len(labels) for labels in made.labels)
        width += -width % (self.multiple_of or 1)
        pad = processing.tokenizer.pad_token_id or 0
        names = ["input_ids", *processing.per_token]

        def filled(rows: Sequence[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

        batch = {"input_ids": filled([own["input_ids"] for own in made.columns], pad)}
        batch["attention_mask"] = filled([[1] * len(labels) for labels in made.labels], 0)
        batch["labels"] = filled(made.labels, _IGNORED)
        batch |= {name: filled([own[name] for own in made.columns], 0) for name in names[1:]}
        return {**batch, **made.pixels}

    def _answer(self, row: Given) -> list[int]:
        """The student's tokens of an answer that stands apart from what is asked."""
        if row.generated is not None or row.read is None or row.read.answer is None:
            return row.generated or []
        answer, end = row.read.answer, self.processing.tokenizer.eos_token or ""
        if isinstance(answer, str):
            return self.processing.answer_ids(answer.removesuffix(end) + end)
        return self.processing.answer_ids(self.processing.texts(row.read.pictured, answer)[1])

    def _sequences(
        self,
        rows: Sequence[Given],
        processing: Processing,
        answers: Sequence[list[int]],
        asked: Sequence[Pictured | None],
    ) -> Sequences:
        texts = [""] * len(rows)
        for i, (row, picture) in enumerate(zip(rows, asked, strict=True)):
            if row.read is not None and picture is not None:
                texts[i] = self._text(row, picture, processing)
        images = [() if picture is None else picture.images for picture in asked]
        before, pixels = processing.encode(texts, images)
        columns: list[Columns] = []
        labels: list[list[int]] = []
        starts = []
        for i, row in enumerate(rows):
            own, answer, picture = before[i], answers[i], asked[i]
            if row.read is None or picture is None:
                ids, own_labels, answer = row.ids or [], list(row.labels or []), []
                own = {name: ids if name == "input_ids" else [0] * len(ids) for name in own}
            else:
                ids = own["input_ids"]
                trained = [not self.completion_only and row.ids is None] * len(ids)
                if row.read.whole:
                    trained = processing.said(picture) if self.assistant_only else [True] * len(ids)
                own_labels = processing.labels_of(ids, trained)
                if processing.markup & {*answer}:
                    raise UsageError(f"{row.name} has a token that stands for an image in its answer.")
            starts.append(len(own_labels))
            columns.append({name: own[name] + (answer if name == "input_ids" else [0] * len(answer)) for name in own})
            labels.append(own_labels + answer)
        return Sequences(columns, labels, pixels, texts, starts)

    def _text(self, row: Given, asked: Pictured, processing: Processing) -> str:
        """What is asked in a row, as a processor takes it."""
        assert row.read is not None
        answer = row.read.answer if isinstance(row.read.answer, list) else None
        try:
            return processing.text(asked, answer, row.read.whole)
        except UsageError as error:
            raise UsageError(f"{row.name} {error}") from error

    def _cut(self, rows: Sequence[Given], made: Sequences, size: int) -> Sequences:
        """Rows of the data without what is too long."""
        markup = self.processing.markup
        columns, labels = list(made.columns), list(made.labels)
        for i, row in enumerate(rows):
            if row.ids is not None or len(labels[i]) <= size:
                continue
            if markup & {*columns[i]["input_ids"][size:]}:
                raise UsageError(
                    f"{row.name} has {len(labels[i])} tokens, and `max_length` {size} cuts it before the end of its "
                    "images. Raise `max_length` or leave it unset (None), make the images smaller, or leave the row "
                    "out."
                )
            columns[i] = {name: own[:size] for name, own in columns[i].items()}
            labels[i] = labels[i][:size]
        return made._replace(columns=columns, labels=labels)

    def questions(self, rows: Sequence[Given], made: Sequences) -> tuple[list[list[int]], list[Pictured | None]]:
        """
        What completions are generated for: the student's tokens of it, empty where nothing is asked, and what they
        were made of.
        """
        asked = [None if row.read is None else row.read.question for row in rows]
        asked = [own if own is not None and own.asked else None for own in asked]
        for row, own in zip(rows, asked, strict=True):
            if own is None and row.pictured is not None and row.pictured.images:
                raise UsageError(
                    f"{row.name} has images and no prompt to generate a completion for. Give it a `prompt`."
                )
        texts = ["" if own is None else self.processing.text(own) for own in asked]
        prompts = [made.columns[i]["input_ids"][: made.starts[i]] if text else [] for i, text in enumerate(texts)]
        other = [bool(text) and text != made.texts[i] for i, text in enumerate(texts)]
        if any(other):
            images = [own.images for own in compress(asked, other) if own is not None]
            found, _ = self.processing.encode([*compress(texts, other)], images)
            for i, columns in zip(compress(range(len(rows)), other), found, strict=True):
                prompts[i] = columns["input_ids"]
        return prompts, asked


def _with_empty_image(made: Sequences, processing: Processing) -> Sequences:
    own, pixels = processing.empty
    shortest = min(range(len(made.labels)), key=lambda i: len(made.labels[i]))
    columns, labels = list(made.columns), list(made.labels)
    columns[shortest] = {name: columns[shortest][name] + own[name] for name in own}
    labels[shortest] = labels[shortest] + [_IGNORED] * len(own["input_ids"])
    return made._replace(columns=columns, labels=labels, pixels=pixels)
