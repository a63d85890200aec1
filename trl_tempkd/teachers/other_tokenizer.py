# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher with another tokenizer: it reads the same text in its own tokens."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, List, Value
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..chat import prompt_of, text_prompt
from ..compat import get_config_model_id
from ..errors import UsageError
from ..losses import Pooled
from ..losses.pooled import METRICS, OF_ALIGNED, ON_POOLED, check_pooled
from ..row_formats import PROMPTS, ROUTE, TEACHER_OFFSETS, TEACHER_PROMPT, TEACHER_QUESTION, TEACHER_TOKENS
from ..vocabularies.alignment import Question, Side
from ..vocabularies.answers import AnswerFrame
from ..vocabularies.bins import describe, make_bins
from ..vocabularies.spelling import Spelling
from ..vocabularies.translation import Translation
from .aligned import Aligned, Aligner, AligningCollator, Pieces, stretches_of
from .base import Batch, Collator, Teacher
from .live import LiveTeacher


logger = get_logger(__name__)

OWN_PROMPT = "prompt_of_the_teacher"  # what `TEACHER_PROMPT` is called while rows are prepared
_QUESTION = {
    "teacher_ids": List(Value("int64")),
    "start": Value("int64"),
    "skip": Value("int64"),
    "chat": Value("bool"),
}


class OtherTokenizer(Teacher):
    """
    What a teacher with another tokenizer does, wherever its last hidden states come from: it reads its own chat
    template around the question of a row, then the completion, and is compared with the student where both have a
    token boundary. Stands before the class that has the states.
    """

    relative = dict.fromkeys(OF_ALIGNED, "aligned")
    shares_tokenizer = False
    reads_tokens = False
    aligner: Aligner
    _options: Any
    _tokenizer: PreTrainedTokenizerBase

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
        return super().prepare(partial(self._prepared, prepare), dataset, processing_class, *args)

    def _prepared(self, prepare: Any, dataset: Any, processing_class: PreTrainedTokenizerBase, *args: Any) -> Any:
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if TEACHER_QUESTION in columns:
            return prepare(dataset, processing_class, *args)
        check_text(columns, args)
        own = TEACHER_PROMPT in columns
        if own:  # under another name, since the preparation would read it in the student's tokens
            dataset = dataset.rename_column(TEACHER_PROMPT, OWN_PROMPT)
        prepared = self.asking(prepare(dataset, processing_class, *args), processing_class, *args)
        return prepared.remove_columns(OWN_PROMPT) if own else prepared

    def asking(
        self,
        prepared: Any,
        processing_class: PreTrainedTokenizerBase,
        *args: Any,
        of: int | None = None,
        own_prompt: bool = True,
    ) -> Any:
        """
        Prepared rows with what each asks the teacher.

        Args:
            prepared, processing_class, args: as of `prepare`.
            of (`int`, *optional*): its number, of several teachers. The rows of others stay as they are.
            own_prompt (`bool`): whether it reads the `OWN_PROMPT` of rows.
        """
        how = {
            "student": self._spelling(processing_class, "student"),
            "teacher": self._tokenizer,
            "is_text": args[-2] is not None,  # a formatting function has made one text of each row
            "of": of,
            "own_prompt": own_prompt,
        }
        options: dict[str, Any] = {}
        if isinstance(prepared, Dataset):
            desc = f"Tokenizing the prompts of the {args[-1]} dataset for the teacher"
            options = {"num_proc": args[0].dataset_num_proc, "desc": desc}
            if of is not None:  # the first rows may have none
                options["features"] = Features({**prepared.features, TEACHER_QUESTION: _QUESTION})
        assert isinstance(prepared, Dataset | IterableDataset)
        state = PartialState()
        with state.main_process_first(), state.local_main_process_first():  # who writes the cache for the others
            return prepared.map(partial(_ask, **how), **options)

    @cached_property
    def _spellings(self) -> dict[str, Spelling]:
        return {}

    def _spelling(self, tokenizer: PreTrainedTokenizerBase, side: str) -> Spelling:
        if side not in self._spellings:
            self._spellings[side] = Spelling(tokenizer, side)
        return self._spellings[side]

    def collate(self, collator: Collator) -> Collator:
        return super().collate(AligningCollator(collator, self.aligner))

    # A cache

    @property
    def own_tokenizer(self) -> tuple[PreTrainedTokenizerBase, set[int]]:
        assert self.aligner.sides is not None
        return self._tokenizer, self.aligner.sides[1].frame.ends

    def to_cache(self, dataset: Dataset) -> Dataset:
        return dataset.map(partial(_read, aligner=self.aligner), desc="Tokenizing the completions for the teacher")

    # Both sides

    def meet(
        self,
        tokenizer: PreTrainedTokenizerBase,
        student: PreTrainedModel,
        size: int,
        stops: Iterable[int],
        longest: int | None,
    ) -> None:
        """
        Get ready for a student.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]), student ([`~transformers.PreTrainedModel`]):
                The student's.
            size (`int`):
                How many logits the teacher has.
            stops (`Iterable[int]`):
                Tokens that stop its completions.
            longest (`int`, *optional*):
                How many positions it has.
        """
        ours = self._side("student", tokenizer, student.config.get_text_config().vocab_size, stops_of(student))
        its = self._side("teacher", self._tokenizer, size, stops)
        self.aligner.ready(ours, its, longest)
        alignment = self._options.vocabulary_alignment
        self._bins = make_bins(ours, its, alignment)
        # Once, and where it is seen: what has no counterpart is for the user to judge
        logger.warning(f"`vocabulary_alignment` {alignment}: {describe(ours, its, self._bins)}")

    def _side(self, name: str, tokenizer: PreTrainedTokenizerBase, size: int, stops: Iterable[int]) -> Side:
        spelling = self._spelling(tokenizer, name)
        spelling.fit(size)
        return Side(spelling, AnswerFrame(tokenizer, stops))

    def found_in(self, inputs: Batch) -> Aligned:
        """Takes out of a batch what the collator has put there."""
        found: Aligned | None = inputs.pop(TEACHER_QUESTION, None)
        if found is None:
            raise UsageError(
                "A teacher with another tokenizer needs what the trainer's own preparation adds to the rows, and the "
                "batch hasn't it. Leave `skip_prepare_dataset` unset."
            )
        return found

    @abstractmethod
    def own_states(self, inputs: Batch, pieces: Pieces) -> torch.Tensor:
        """The last hidden states of its own batch, `(B_t * L_t, H_t)`, with 0 where they aren't known or of no use."""

    def rows(self, inputs: Batch) -> Pooled:
        found, device, count = self.found_in(inputs), inputs["input_ids"].device, inputs["input_ids"].numel()
        pieces = found.pieces(device)
        hidden, stretches = self.own_states(inputs, pieces), None
        if self._options.alm_weight and self._options.kd_ratio:
            stretches = stretches_of(found, pieces, hidden, count, self._options.alm_weight)
        if self._bins.student.device != device:
            self._bins = self._bins.to(device)
        bins = self._bins
        by_rank = self._options.vocabulary_alignment == "uld"
        return Pooled(
            hidden.index_select(0, pieces.teacher),
            pieces.student,
            (bins.student, bins.teacher),
            0 if by_rank else bins.count,
            bins.in_both,
            stretches,
        )

    def states(self, inputs: Batch, kept: torch.Tensor) -> torch.Tensor:
        found, device = self.found_in(inputs), inputs["input_ids"].device
        return self.own_states(inputs, found.pieces(device))[found.known().to(device)]

    def translation(self, longest: int | None) -> Translation:
        assert self.aligner.sides is not None
        return Translation(*self.aligner.sides, longest)


class OtherTokenizerTeacher(OtherTokenizer, LiveTeacher):
    """
    A model beside the student that has another tokenizer.

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
    columns = [PROMPTS, TEACHER_QUESTION]
    source = "a teacher with another tokenizer"

    def __init__(self, teacher: str | PreTrainedModel, options: Any):
        super().__init__(teacher, options)
        self.check(options)
        self._tokenizer, self.aligner = load_tokenizer(teacher, options), Aligner()

    def check_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel, teacher: PreTrainedModel
    ) -> None:
        config = teacher.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        self.meet(tokenizer, student, config.vocab_size, stops_of(teacher), longest)

    def own_states(self, inputs: Batch, pieces: Pieces) -> torch.Tensor:
        with self.active():
            return self._run(pieces.inputs).flatten(0, 1)


def stops_of(model: PreTrainedModel) -> list[int]:
    """The tokens that stop a model's completions, by its own configuration."""
    stops = model.generation_config.eos_token_id if model.generation_config is not None else None
    return [] if stops is None else [stops] if isinstance(stops, int) else stops


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


def check_text(columns: Any, args: Any) -> None:
    """
    Refuse rows that a teacher with another tokenizer can't read.

    Args:
        columns (`Iterable[str]`): of the rows.
        args (`Sequence`): the arguments of their preparation.
    """
    if "input_ids" in columns:
        raise UsageError(
            f"Rows of the {args[-1]} data set are tokens already, and a teacher with another tokenizer must read "
            "their text. Give rows of `prompt` and `completion`, `messages` or `text`."
        )
    if TEACHER_PROMPT in columns and args[-2] is not None:
        raise UsageError(
            f"The {args[-1]} data have a `{TEACHER_PROMPT}`, and the teacher reads it in the place of the prompt, "
            "but `formatting_func` makes one text of a row. Give rows `prompt` and `completion`."
        )


def _ask(
    row: dict[str, Any],
    student: Spelling,
    teacher: PreTrainedTokenizerBase,
    is_text: bool,
    of: int | None = None,
    own_prompt: bool = True,
) -> dict[str, Any]:
    """The question of a row in the teacher's tokens, and where in the student's row the completion begins."""
    if of is not None and row[ROUTE] != of:
        return {TEACHER_QUESTION: row.get(TEACHER_QUESTION)}
    asked = {} if is_text else row
    chat = isinstance(asked.get("prompt") or asked.get("messages"), list)
    own = row.get(OWN_PROMPT) if own_prompt else None
    read = asked if own is None else {**asked, "prompt": own}
    if chat and not teacher.chat_template:
        raise UsageError(
            "The rows are conversations, and the teacher's tokenizer has no chat template. Use `prompt` and "
            "`completion` as plain text, or a teacher that has one."
        )
    try:
        teacher_ids = prompt_of(read, teacher) or text_prompt("", teacher)
    except TemplateError as error:
        raise UsageError(f"The teacher's chat template can't write a row: {error}. Its prompt: {read}") from error
    prompt, ids = prompt_of(asked, student.tokenizer), row["input_ids"]
    start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    # Tokens may have merged across the end of the prompt: the first bytes of the completion are the prompt's last
    merged = student.known(prompt[start:])
    skip = len(merged) if start < len(ids) and student.known(ids[start:]).startswith(merged) else 0
    return {TEACHER_QUESTION: Question(list(teacher_ids), start, skip, chat)._asdict()}


def _read(row: dict[str, Any], aligner: Aligner) -> dict[str, list[int]]:
    """What the teacher reads of a row."""
    reading = aligner.read(list(row["input_ids"]), Question(**row[TEACHER_QUESTION]))
    return {TEACHER_TOKENS: reading.ids, TEACHER_OFFSETS: reading.offsets}
