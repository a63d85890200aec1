# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher that runs beside the student and has another tokenizer: it reads the same text in its own tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..chat import prompt_of, text_prompt
from ..compat import get_config_model_id
from ..errors import UsageError
from ..losses import Pooled, Stretches
from ..losses.pooled import METRICS, OF_ALIGNED, ON_POOLED, check_pooled
from ..row_formats import CONTEXTS, PROMPTS, TEACHER_PROMPT, TEACHER_QUESTION
from ..vocabularies.alignment import Alignment, Question, Side, align
from ..vocabularies.answers import AnswerFrame
from ..vocabularies.bins import Bins, describe, make_bins
from ..vocabularies.spelling import Spelling
from ..vocabularies.translation import Translation
from .base import Batch, Collator
from .live import LiveTeacher


logger = get_logger(__name__)


class OtherTokenizerTeacher(LiveTeacher):
    """
    A model with another tokenizer. It reads its own chat template around the question of a row, then the completion,
    and is compared with the student where both have a token boundary.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`]):
            Name or path of a causal language model, or the model itself if it knows where it was loaded from.
        options (`KDConfig`):
            Configuration of the run.

    Raises:
        `ValueError`: As [`LiveTeacher`] does, and if a tokenizer can't be loaded or understood, or the divergence
            means nothing on two vocabularies.
    """

    metrics = METRICS
    relative = dict.fromkeys(OF_ALIGNED, "aligned")
    columns = [PROMPTS, TEACHER_QUESTION]
    shares_tokenizer = False
    reads_tokens = False
    source = "a teacher with another tokenizer"

    def __init__(self, teacher: str | PreTrainedModel, options: Any):
        super().__init__(teacher, options)
        self.check(options)
        self._tokenizer = load_tokenizer(teacher, options)
        self._spellings: dict[str, Spelling] = {}
        self.aligner = Aligner()

    def serves(
        self,
        divergence: str,
        divergence_kwargs: dict[str, Any] | None,
        temperatures: Sequence[tuple[str, float | None]],
        rule: str | None,
    ) -> None:
        alignment = self._options.vocabulary_alignment
        check_pooled(divergence, divergence_kwargs, by_rank=alignment == "uld")
        if divergence in ON_POOLED:
            logger.warning(
                f"`divergence` {divergence} with `vocabulary_alignment` {alignment} isn't that of the teacher's own "
                f"vocabulary: {ON_POOLED[divergence]}."
            )

    def hidden_states(self, inputs: Batch) -> torch.Tensor:
        raise UsageError(f"The student's tokens have no rows of {self.source}, which are needed here.")

    # The data

    def prepare(self, prepare: Any, dataset: Any, processing_class: PreTrainedTokenizerBase, *args: Any) -> Any:
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if {TEACHER_PROMPT, CONTEXTS} & {*columns}:
            raise UsageError(
                f"Rows of the {args[-1]} data set have a `{TEACHER_PROMPT}`, and `vocabulary_alignment` is "
                f"{self._options.vocabulary_alignment!r}: a teacher with another tokenizer reads the student's prompt "
                "alone, in its own tokens. Leave the column out, or use a teacher with the student's tokenizer."
            )
        if TEACHER_QUESTION in columns:
            return prepare(dataset, processing_class, *args)
        if "input_ids" in columns:
            raise UsageError(
                f"Rows of the {args[-1]} data set are tokens already, and a teacher with another tokenizer must read "
                "their text. Give rows of `prompt` and `completion`, `messages` or `text`."
            )
        check_stream(dataset, args[0], PartialState().num_processes)
        prepared = prepare(dataset, processing_class, *args)
        how = {
            "student": self._spelling(processing_class, "student"),
            "teacher": self._tokenizer,
            "is_text": args[-2] is not None,  # a formatting function has made one text of each row
        }
        options: dict[str, Any] = {}
        if isinstance(prepared, Dataset):
            desc = f"Tokenizing the prompts of the {args[-1]} dataset for the teacher"
            options = {"num_proc": args[0].dataset_num_proc, "desc": desc}
        assert isinstance(prepared, Dataset | IterableDataset)
        state = PartialState()
        with state.main_process_first(), state.local_main_process_first():  # who writes the cache for the others
            return prepared.map(partial(_ask, **how), **options)

    def _spelling(self, tokenizer: PreTrainedTokenizerBase, side: str) -> Spelling:
        if side not in self._spellings:
            self._spellings[side] = Spelling(tokenizer, side)
        return self._spellings[side]

    def collate(self, collator: Collator) -> Collator:
        return AligningCollator(collator, self.aligner)

    # The models

    def check_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel, teacher: PreTrainedModel
    ) -> None:
        ours = self._side("student", tokenizer, student)
        its = self._side("teacher", self._tokenizer, teacher)
        longest = getattr(teacher.config.get_text_config(), "max_position_embeddings", None)
        self.aligner.ready(ours, its, longest)
        alignment = self._options.vocabulary_alignment
        self._bins = make_bins(ours, its, alignment)
        # Once, and where it is seen: what has no counterpart is for the user to judge
        logger.warning(f"`vocabulary_alignment` {alignment}: {describe(ours, its, self._bins)}")

    def _side(self, name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Side:
        spelling = self._spelling(tokenizer, name)
        spelling.fit(model.config.get_text_config().vocab_size)
        stops = model.generation_config.eos_token_id if model.generation_config is not None else None
        stops = [] if stops is None else [stops] if isinstance(stops, int) else stops
        return Side(spelling, AnswerFrame(tokenizer, stops))

    def rows(self, inputs: Batch) -> Pooled:
        found: Aligned | None = inputs.pop(TEACHER_QUESTION, None)
        if found is None:
            raise UsageError(
                "A teacher with another tokenizer needs what the trainer's own preparation adds to the rows, and the "
                "batch hasn't it. Leave `skip_prepare_dataset` unset."
            )
        device = inputs["input_ids"].device
        pieces = found.pieces(device)
        hidden = self._run(pieces.inputs).flatten(0, 1)
        stretches = None
        if self._options.alm_weight and self._options.kd_ratio:
            stretches = _stretches(found, pieces, hidden, inputs["input_ids"].numel(), self._options.alm_weight)
        bins = self._on(device)
        by_rank = self._options.vocabulary_alignment == "uld"
        return Pooled(
            hidden.index_select(0, pieces.teacher),
            pieces.student,
            (bins.student, bins.teacher),
            0 if by_rank else bins.count,
            bins.in_both,
            stretches,
        )

    def translation(self, longest: int | None) -> Translation:
        assert self.aligner.sides is not None
        return Translation(*self.aligner.sides, longest)

    def _on(self, device: torch.device) -> Bins:
        if self._bins.student.device != device:
            self._bins = self._bins.to(device)
        return self._bins


def load_tokenizer(teacher: str | PreTrainedModel, options: Any) -> PreTrainedTokenizerBase:
    """
    The teacher's own tokenizer.

    Raises:
        `ValueError`: If there is none where the teacher is.
    """
    name = teacher if isinstance(teacher, str) else get_config_model_id(teacher.config)
    problem: Any = "it doesn't say where it was loaded from"
    if name:
        kwargs = options.teacher_model_init_kwargs or {}
        revision = options.teacher_model_revision or kwargs.get("revision") or "main"
        try:
            return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=options.trust_remote_code)
        except (OSError, ValueError, ImportError, KeyError) as error:
            problem = str(error).splitlines()[0]
    raise UsageError(
        f"`vocabulary_alignment` is {options.vocabulary_alignment!r}, which needs the teacher's tokenizer, and that "
        f"of {name or type(teacher).__name__!r} can't be loaded: {problem}. Give the teacher by the name or folder "
        "that has its tokenizer."
    )


def check_stream(dataset: Any, options: Any, processes: int) -> None:
    """
    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Data.
        options (`KDConfig`):
            Configuration of the run.
        processes (`int`):
            How many there are.

    Raises:
        `ValueError`: If one process would read the batches of all, which Accelerate cuts as tensors.
    """
    dispatch = getattr(options.accelerator_config, "dispatch_batches", None)
    if isinstance(dataset, IterableDataset) and processes > 1 and dispatch is not False:
        raise UsageError(
            f"`vocabulary_alignment` is {options.vocabulary_alignment!r}, and the data a stream that one of "
            f"{processes} processes reads for all (`accelerator_config.dispatch_batches`), which can't pass on what "
            'the teacher is asked. Set `accelerator_config` to {"dispatch_batches": false}, or load the data whole.'
        )


def _ask(row: dict[str, Any], student: Spelling, teacher: PreTrainedTokenizerBase, is_text: bool) -> dict[str, Any]:
    """The question of a row in the teacher's tokens, and where in the student's row the completion begins."""
    asked = {} if is_text else row
    chat = isinstance(asked.get("prompt") or asked.get("messages"), list)
    if chat and not teacher.chat_template:
        raise UsageError(
            "The rows are conversations, and the teacher's tokenizer has no chat template. Use `prompt` and "
            "`completion` as plain text, or a teacher that has one."
        )
    try:
        teacher_ids = prompt_of(asked, teacher) or text_prompt("", teacher)
    except TemplateError as error:
        raise UsageError(f"The teacher's chat template can't write a row: {error}. Its prompt: {asked}") from error
    prompt, ids = prompt_of(asked, student.tokenizer), row["input_ids"]
    start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    # Tokens may have merged across the end of the prompt: the first bytes of the completion are the prompt's last
    merged = student.known(prompt[start:])
    skip = len(merged) if start < len(ids) and student.known(ids[start:]).startswith(merged) else 0
    return {TEACHER_QUESTION: Question(list(teacher_ids), start, skip, chat)._asdict()}


class Aligner:
    """Aligns rows, once both tokenizers are known. It goes to the processes that read the data, and holds no model."""

    def __init__(self) -> None:
        self.sides: tuple[Side, Side] | None = None
        self.longest: int | None = None

    def ready(self, student: Side, teacher: Side, longest: int | None) -> None:
        self.sides, self.longest = (student, teacher), longest

    def __call__(self, ids: list[int], question: Question) -> Alignment:
        assert self.sides is not None
        return align(ids, question, *self.sides, self.longest)


@dataclass(frozen=True)
class Pieces:
    """
    What the teacher is given of a batch, and which of its positions belong to which of the student's.

    Attributes:
        inputs (`dict`): its own batch, of shape `(B_t, L_t)`, padded on the right.
        student, teacher (`torch.Tensor` of shape `(M,)`): pairs of positions in both batches, flattened.
        offsets (`list[tuple[int, int]]`): where each row begins in both.
    """

    inputs: Batch
    student: torch.Tensor
    teacher: torch.Tensor
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Aligned:
    """
    The rows of a batch as the teacher reads them. No container, so that it is passed on as it is.

    Attributes:
        questions (`list[Question | None]`): what each asks; `None` for one that fills a batch up.
        alignments (`list[Alignment]`): where both agree.
        starts (`list[int]`): where each row begins in the student's flattened batch.
    """

    questions: list[Question | None]
    alignments: list[Alignment]
    starts: list[int]

    def pieces(self, device: torch.device) -> Pieces:
        """The teacher's batch. It has one row at least, so that every process runs the teacher."""
        rows = [alignment.teacher_ids or [0] for alignment in self.alignments] or [[0]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        offsets = [(start, i * width) for i, start in enumerate(self.starts)]
        pairs = [
            (of_student + i, of_teacher + k)
            for (of_student, of_teacher), alignment in zip(offsets, self.alignments, strict=True)
            for i, k in zip(alignment.student, alignment.teacher, strict=True)
        ]
        student, teacher = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).unbind(1)
        return Pieces({"input_ids": ids, "attention_mask": mask}, student, teacher, offsets)


def _stretches(found: Aligned, pieces: Pieces, hidden: torch.Tensor, count: int, weight: float) -> Stretches:
    """What lies between aligned positions. A token is predicted at the position before it."""
    number = torch.full((count,), -1, device=hidden.device)
    places: list[int] = []
    tokens: list[int] = []
    numbers: list[int] = []
    total = 0
    for (of_student, of_teacher), alignment in zip(pieces.offsets, found.alignments, strict=True):
        for (start, end), (first, last) in alignment.stretches:
            number[of_student + start - 1 : of_student + end - 1] = total
            places += range(of_teacher + first - 1, of_teacher + last - 1)
            tokens += alignment.teacher_ids[first:last]
            numbers += [total] * (last - first)
            total += 1
    own, ids, index = (torch.tensor(x, dtype=torch.long, device=hidden.device) for x in (places, tokens, numbers))
    return Stretches(weight, number, hidden.index_select(0, own), ids, index, total)


class AligningCollator:
    """
    What another collator makes of some rows, and the rows as the teacher reads them.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows, and pads on the right or not at all.
        aligner ([`Aligner`]):
            Aligns a row.
    """

    def __init__(self, collator: Collator, aligner: Aligner):
        self.collator, self.aligner = collator, aligner

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        batch = self.collator([{name: row[name] for name in row if name != TEACHER_QUESTION} for row in examples])
        if not any(TEACHER_QUESTION in row for row in examples):
            return batch
        questions = [_question(row.get(TEACHER_QUESTION)) for row in examples]
        rows, width = batch["input_ids"].shape
        lengths = [len(row["input_ids"]) for row in examples]
        padded = rows == len(examples)
        starts = [i * width if padded else sum(lengths[:i]) for i in range(len(examples))]
        nothing = Alignment([], [], [], [])
        alignments = [
            nothing if question is None else self.aligner(list(row["input_ids"]), question)
            for row, question in zip(examples, questions, strict=True)
        ]
        batch[TEACHER_QUESTION] = Aligned(questions, alignments, starts)
        return batch


def _question(value: Any) -> Question | None:
    return Question(**value) if isinstance(value, dict) else value
