# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where the target distribution comes from: what every source of it has, and what it does unless it says otherwise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import UsageError
from ..heads import Head, NoHead
from ..losses import METRICS, Logits, Pooled, Truncated
from ..losses.truncated import ON_BINS, grid_index
from ..row_formats import PROMPTS
from ..vision import Processing, VisionCollator
from ..vocabularies.translation import Translation
from .own_pixels import OwnPixelsCollator
from .own_prompt import OWN, OwnPromptCollator, check_positions, on_device


logger = logging.get_logger(__name__)

Batch = dict[str, Any]
Collator = Callable[[list[dict[str, Any]]], Batch]


class Teacher(ABC):
    """
    What the trainer asks of a teacher. A new source overrides `rows`, and whatever else it does in another way.

    It is made before the student is loaded, from the name or the model that the trainer was given (or `None`) and the
    configuration, `Source(teacher, options)`, and looks then at what can be seen to be wrong. `bind` follows once the
    student is there. The methods after it are called on every process.

    Attributes:
        model (`torch.nn.Module` or `None`):
            The teacher's own model as it is wrapped, if it has one.
        metrics (`tuple[str, ...]`):
            Names of the metrics that the loss can give of it.
        relative (`Mapping[str, str]`):
            Metrics whose mean is over the tokens that another one counts, in place of all.
        columns (`list[str]`):
            What the collator needs of the rows beyond what TRL's does.
        can_generate (`bool`):
            Whether there is a model that can write completions: `wrapped` and `active`. Else `sampler` may.
        reads_tokens (`bool`):
            Whether `rows` is told of a text by its tokens, so that it can be told of another one. Otherwise what
            comes with the rows is of the right one.
        shares_tokenizer (`bool`):
            Whether its tokens are the student's.
        vocabulary (`int`, *optional*):
            How many tokens a text may be made of, the first ones, where no model says so.
        positions (`int`, *optional*):
            How many tokens a text may have, where no model says so.
        alone (`bool`):
            Whether it is the run's only teacher. Of several, each collates its own rows without what its `prepare`
            would add to them.
        part (`Callable[[dict], dict]`, *optional*):
            What it reads of a batch, of several teachers.
        keeps (`Callable[[int], bool]`, *optional*):
            Whether the texts of a step stay as they are, by its number from the next one on. Set before `ahead`.
        requests (`int`):
            How many texts it sees at a time, if it is asked about them before they are needed.
        source (`str`):
            What messages call it.
        knows (`type`):
            What `rows` gives: a kind of [`~trl_tempkd.losses.Truncated`], or [`~trl_tempkd.losses.Logits`] for whole
            rows, be it as logits or as hidden states. It decides what the teacher serves.
        taus (`tuple[float, ...]` or `None`):
            The temperatures at which a truncated teacher is known, `None` being each that it is asked for.
        instead (`str`):
            What gives whole rows in its place, as an advice.
    """

    model: Any = None
    metrics: tuple[str, ...] = METRICS
    relative: Mapping[str, str] = MappingProxyType({})
    columns: list[str] = [PROMPTS]
    can_generate: bool = False
    reads_tokens: bool = True
    shares_tokenizer: bool = True
    vocabulary: int | None = None
    positions: int | None = None
    alone: bool = True
    part: Callable[[Batch], Batch] | None = None
    keeps: Callable[[int], bool] | None = None
    requests: int = 0
    source: str = "the teacher"
    knows: type[Logits] | type[Truncated] = Logits
    taus: tuple[float, ...] | None = None
    instead: str = "use a teacher that runs beside the student (`teacher_model_name_or_path`)"

    def bind(  # noqa: B027
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        """
        Get ready for a student, which is loaded and wrapped by now.

        Args:
            student (`Callable[[], torch.nn.Module]`):
                Gives the student as it is wrapped at the moment.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the student and of the data.
            accelerator ([`~accelerate.Accelerator`]):
                Accelerator of the trainer.

        Raises:
            `ValueError`: If the teacher doesn't fit the student.
        """

    # The data

    def prepare(
        self, prepare: Callable[..., Any], dataset: Any, processing_class: PreTrainedTokenizerBase, *args: Any
    ) -> Any:
        """A data set as the trainer prepares it by `prepare`, with what the teacher needs. `bind` comes later."""
        dataset = prepare(dataset, processing_class, *args)
        self.check_rows(dataset, processing_class, args[-1])
        return dataset

    def check_rows(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:  # noqa: B027
        """
        Look at the rows that it will be asked about, which are prepared.

        Args:
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
                The rows.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the run.
            name (`str`):
                What the data are called.

        Raises:
            `ValueError`: If it has nothing for one of them.
        """

    def collate(self, collator: Collator) -> Collator:
        """A data collator that carries along what `prepare` has added."""
        return collator

    def collated(self, collator: Collator) -> Collator:
        """The same, and what the teacher reads where that is another prompt than the student's."""
        if isinstance(collator, VisionCollator) and self.reads_tokens:
            return OwnPixelsCollator(collator, self.processing(collator.processing))
        collate = self.collate(collator)
        return OwnPromptCollator(collate, collator) if self.reads_tokens else collate

    def prepare_pictured(self, dataset: Any, collator: VisionCollator, name: str) -> Any:
        """A data set of rows with images, which have no preparation, with what the teacher needs."""
        return dataset

    def processing(self, student: Processing) -> Processing:
        """
        What makes tokens and pixels of rows with images for the teacher: `student`, if that makes the same.

        Raises:
            `ValueError`: If the teacher has a processor of its own that can't be loaded.
        """
        return student

    # A cache

    @property
    def own_tokenizer(self) -> tuple[PreTrainedTokenizerBase, set[int]] | None:
        """Its tokenizer if that isn't the student's, and the tokens that end a text."""
        return None

    def to_cache(self, dataset: Dataset) -> Dataset:
        """Prepared rows with what must be known of them beside the student's tokens."""
        return dataset

    def states(self, inputs: Batch, kept: torch.Tensor) -> torch.Tensor:
        """
        What a cache stores of a batch, before it is encoded: last hidden states `(K, H_t)`, row by row.

        Args:
            inputs (`dict`): a batch.
            kept (`torch.Tensor` of shape `(B * L,)`): which of the student's positions predict a token with a label.
        """
        return self.hidden_states(inputs).flatten(0, 1)[kept]

    # An optimizer step

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, which may be read, and asked about, before their step."""
        return batches

    def wait(self, batches: list[Batch], save: Callable[[], None] | None = None) -> None:  # noqa: B027
        """
        Wait until what was asked `ahead` is there for the batches of a step.

        Args:
            batches (`list[dict]`):
                Batches as `ahead` gave them, before completions are generated.
            save (`Callable`, *optional*):
                Writes a checkpoint of what was before this step. Called on every process before an error, now or in
                the step.
        """

    def ask_early(self, texts: list[list[int]]) -> None:  # noqa: B027
        """Ask about texts that have been generated, while others of the step still are."""

    def ask(self, batches: list[Batch]) -> None:  # noqa: B027
        """Ask about the batches of an optimizer step, once their completions are generated. It may add to them."""

    def target(self, inputs: Batch) -> torch.Tensor | Logits | Truncated:
        """What `rows` says of a batch, or of what the teacher reads in its place, at the positions of the batch."""
        own = inputs.pop(OWN, None)
        if own is None:
            return self.rows(inputs)
        theirs = on_device(own, inputs["input_ids"].device)
        check_positions(theirs, self.reader())
        return own.placed(self.rows(theirs))

    def offload(self, where: str, folder: str) -> None:  # noqa: B027
        """
        From now on have a model of its own on the device inside of `active` alone.

        Args:
            where (`str`):
                Where it is else: `cpu` or `disk`.
            folder (`str`):
                Where on the disk.

        Raises:
            `ValueError`: If it can't be moved.
        """

    def reader(self) -> nn.Module | None:
        """The model that reads what `target` is asked about, not wrapped, if it is in this process."""
        return None

    def step(self) -> None:  # noqa: B027
        """Called on every process after an optimizer step."""

    def save(self, folder: str) -> None:  # noqa: B027
        """Write what a resume needs into a checkpoint. Every process must call."""

    def load(self, folder: str | None) -> None:  # noqa: B027
        """Begin a training: go on from a checkpoint, or anew. The student is wrapped. Every process must call."""

    @abstractmethod
    def rows(self, inputs: Batch) -> torch.Tensor | Logits | Truncated | Pooled:
        """
        What the loss takes in the place of `teacher_hidden`, for a batch as the data collator made it: the last hidden
        states `(B * L, H_t)`, or what is known of the teacher. Takes out of the batch what it has for the teacher
        alone. Meaningless where there is no label.
        """

    def head(self) -> AbstractContextManager[Head | NoHead]:
        """Context in which the teacher's head is whole, on every rank. What `rows` needs are its `arguments`."""
        return nullcontext(NoHead())

    def hidden_states(self, inputs: Batch) -> torch.Tensor:
        """
        Last hidden state, or logits where there is no head, of shape `(B, L, H_t)` or `(B, L, V_t)`, without gradient.
        As `rows` but for the shape.

        Raises:
            `ValueError`: If not the whole rows are known.
        """
        rows = self.target(inputs)
        if isinstance(rows, Truncated | Pooled):
            raise UsageError(
                f"The teacher's whole rows are needed here, and {self.source} hasn't them: {self.instead}."
            )
        rows = rows.values if isinstance(rows, Logits) else rows
        return rows.view(*inputs["input_ids"].shape, -1)

    # Completions

    def wrapped(self) -> nn.Module:
        """The module that is the teacher inside of `active()`, as it is wrapped at the moment; to generate with it."""
        raise self._no_model()

    def active(self) -> AbstractContextManager[None]:
        """Context in which `wrapped()` is the teacher. The other methods enter it themselves."""
        raise self._no_model()

    def sampler(self, options: Any, stops: list[int], vocabulary: int) -> Any:
        """
        What writes the teacher's completions where `wrapped` doesn't, as a [`~trl_tempkd.rollouts.sampling.Sampler`]
        that has `positions`.

        Args:
            options ([`~trl_tempkd.rollouts.RolloutOptions`]):
                How to sample.
            stops (`list[int]`):
                Tokens that end a completion.
            vocabulary (`int`):
                Number of tokens that both models know. A completion ends before one that they don't.
        """
        raise self._no_model()

    def _no_model(self) -> UsageError:
        return UsageError(f"There is no model to generate with in {self.source}: {self.instead}.")

    def translation(self, longest: int | None) -> Translation | None:
        """What makes the student's tokens of what the teacher has written, where those aren't its own."""
        return None

    # What it is

    @property
    def name(self) -> str | None:
        """What its model is called, as far as that is known: a name on the Hub or on a server, or a folder."""
        return None

    def identity(self) -> dict[str, Any]:
        """
        Kind, name and identity, by which a resumed run finds that its teacher is another one. An identity that can't
        be known is `None`. A server's address and a folder's place may change between two starts.
        """
        return {"kind": type(self).__name__, "name": self.name, "identity": None}

    def serves(
        self,
        divergence: str,
        divergence_kwargs: dict[str, Any] | None,
        temperatures: Sequence[tuple[str, float | None]],
        rule: str | None,
    ) -> None:
        """
        Refuse what a run minimises if it needs more of the teacher than is known.

        Args:
            divergence (`str`):
                Name of a divergence or an objective.
            divergence_kwargs (`dict[str, Any]`, *optional*):
                Its parameters.
            temperatures (`Sequence[tuple[str, float | None]]`):
                The teacher's temperatures, as `temperatures_of` names them.
            rule (`str`, *optional*):
                Rule that gives each token a temperature of its own.

        Raises:
            `ValueError`: Names the option, its value, and what would serve.
        """
        if not issubclass(self.knows, Truncated):
            return
        self.knows.check(divergence, divergence_kwargs)
        if rule is not None:
            raise UsageError(
                f"`kd_temperature_rule` is {rule}, which looks at the teacher's whole rows and gives any temperature, "
                f"and {self.source} hasn't them. Leave it unset, or {self.instead}."
            )
        for name, tau in temperatures:
            if tau is None or (self.taus is not None and grid_index(self.taus, tau) is None):
                said = f"the run's {name}"
                if tau is None:
                    said = f"the run lets the teacher's temperature pass through every value ({name})"
                grid = "that it is asked for" if self.taus is None else ", ".join(f"{tau:g}" for tau in self.taus)
                raise UsageError(
                    f"{self.source[0].upper()}{self.source[1:]} knows the teacher at the temperatures {grid} alone, "
                    f"and {said}: {self.knows.why}. Use one of these (the student's own `student_kd_temperature` is "
                    f"free, and so is a 'step' from one to another), or {self.instead}."
                )
        if divergence in ON_BINS:
            logger.warning(
                f"`divergence` {divergence} of {self.source} isn't that of the teacher's whole rows: "
                f"{ON_BINS[divergence]}."
            )

    def check(self, options: Any) -> None:
        """
        Hold the options of a run against what is known of the teacher. A source calls it as soon as it can tell.

        Raises:
            `ValueError`: As `serves` does, and if the diagnostics need more than is known.
        """
        kwargs, rule = options.divergence_kwargs, options.kd_temperature_rule
        self.serves(options.divergence, kwargs, temperatures_of(options), rule)
        if options.kd_diagnostics_steps is not None and issubclass(self.knows, Truncated):
            raise UsageError(
                f"`kd_diagnostics_steps` is {options.kd_diagnostics_steps}, and needs the teacher's whole rows, which "
                f"{self.source} hasn't. Leave it unset, or {self.instead}."
            )


def temperatures_of(options: Any) -> list[tuple[str, float | None]]:
    """The teacher's temperatures in a run, with what says so, and `None` for all between two."""
    start, final = options.kd_temperature, options.kd_temperature_final
    schedule = options.kd_temperature_schedule
    if options.teacher_kd_temperature is not None:
        return [(f"`teacher_kd_temperature` is {options.teacher_kd_temperature}", options.teacher_kd_temperature)]
    named = [(f"`kd_temperature` is {start}", start)]
    if final is not None:
        named.append((f"`kd_temperature_final` is {final}", final))
    if final is not None and final != start and schedule != "step":
        named.append((f"`kd_temperature_schedule` is {schedule!r}", None))
    return named
