# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Several teachers: each row has one of them, named by its column `teacher`, or all of them at once, as a mixture."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head, NoHead
from ..losses import METRICS, Truncated
from ..names import did_you_mean
from ..row_formats import CONTEXTS, PROMPTS, ROUTE, TEACHER, TEACHER_PROMPT, TEACHER_PROMPTS, TEACHER_QUESTION
from .base import Batch, Collator, Teacher
from .columns import TOKENS
from .other_tokenizer import OWN_PROMPT, OtherTokenizer, check_text
from .own_prompt import selected
from .several_batches import ROUTED, Mixed, Routed, SeveralCollator, SubBatch, part_of, without_contexts
from .several_options import TeacherSpec, view_of


# Metrics of each teacher, and what they are logged as
EACH = {"kd": "kd_loss", "kl_tau1": "kl_tau1", "kl_tau1_coarse": "kl_tau1_coarse"}
EACH |= {"student_mass_outside": "student_mass_outside", "aligned": "aligned_share"}


class SeveralTeachers(Teacher):
    """
    The teachers of `teachers`. Whether rows are routed, their column `teacher` says.

    Each has a batch of its own: of those rows that are routed to it, or of all.

    Args:
        teacher (`None`):
            There is no other one.
        options (`KDConfig`):
            Configuration of the run.
        make (`Callable`):
            Makes one of them, from its name or path and the options as it sees them.

    Raises:
        `ValueError`: If another teacher is named too, or one of them can't be had or hasn't what the run minimises; by
            `prepare`, if a row names one that there isn't, or the rows can't be routed; by `bind`, if one of them
            doesn't fit the student.
    """

    source = "one of several teachers"
    instead = "use one teacher (`teacher_model_name_or_path`)"
    reads_tokens = False  # each of them has a batch of its own

    def __init__(self, teacher: Any, options: Any, make: Callable[[Any, Any], Teacher]):
        if teacher is not None:
            raise UsageError("`teachers` has the teachers, and another one is named too: leave one of the two out.")
        self._options, self.specs = options, TeacherSpec.read(options)
        self.members: dict[str, Teacher] = {}
        for name, spec in self.specs.items():
            with _named(name):
                self.members[name] = make(spec.model, view_of(options, spec))
            self.members[name].alone, self.members[name].part = False, partial(part_of, name)
        self.routed: bool | None = None  # until the training data are seen
        self.columns = [PROMPTS, ROUTE, *TOKENS]  # with the questions for other tokenizers

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those that all have, and of each those that it has. Known once they are bound."""
        common = [metric for metric in METRICS if all(metric in member.metrics for member in self.members.values())]
        return (*common, *self.relative, *(f"teacher_share/{name}" for name in self.members))

    @property
    def relative(self) -> dict[str, str]:  # type: ignore[override]
        return {
            f"{logged}/{name}": f"teacher_share/{name}"
            for name, member in self.members.items()
            for metric, logged in EACH.items()
            if metric in member.metrics
        }

    @property
    def vocabulary(self) -> int | None:  # type: ignore[override]
        return min((of.vocabulary for of in self._alike if of.vocabulary is not None), default=None)

    @property
    def positions(self) -> int | None:  # type: ignore[override]
        return min((of.positions for of in self._alike if of.positions is not None), default=None)

    @property
    def _alike(self) -> list[Teacher]:
        """Those whose tokens are the student's."""
        return [member for member in self.members.values() if member.shares_tokenizer]

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        self._accelerator = accelerator
        if self.routed is None:  # the data are prepared elsewhere
            self.routed = False
            self._check_mode()
        where = self._options.teachers_offload
        if where is not None and shards(accelerator):
            raise UsageError(
                f"`teachers_offload` is {where!r}, and with {shards(accelerator)} each process has a shard of every "
                "teacher, which stays where it is. Leave it unset, or use DDP or ZeRO-2."
            )
        for name, member in self.members.items():
            with _named(name):
                member.bind(student, tokenizer, accelerator)
                self._check_knowledge(member)
                if where is not None:
                    member.offload(where, str(self._options.output_dir))

    def _check_knowledge(self, member: Teacher) -> None:
        if not self.routed and issubclass(member.knows, Truncated):
            raise UsageError(
                f"{member.source} hasn't the teacher's whole rows, and the mixture of several needs them. Give rows a "
                f"column `{TEACHER}`, so that each has one of them, leave it out, or {member.instead}."
            )

    # The data

    def prepare(
        self, prepare: Callable[..., Any], dataset: Any, processing_class: PreTrainedTokenizerBase, *args: Any
    ) -> Any:
        columns = dataset.column_names or list(next(iter(dataset), {}))
        routed = TEACHER in columns or ROUTE in columns
        if self.routed is None:
            self.routed = routed
            self._check_mode()
        if routed != self.routed:
            raise UsageError(
                f"The {args[-1]} data {'have' if routed else 'have no'} column `{TEACHER}`, and those to train on "
                f"{'have none' if routed else 'have it'}: rows have one teacher each, or all have the mixture."
            )
        if TEACHER in columns:
            dataset = dataset.map(self._numbered, fn_kwargs={"split": args[-1]}, remove_columns=[TEACHER])
        dataset = self._asking(prepare, dataset, processing_class, *args)
        for number, (name, member) in enumerate(self.members.items()):
            with _named(name):
                member.check_rows(self._rows_of(dataset, number), processing_class, args[-1])
        return dataset

    def _asking(self, prepare: Callable[..., Any], dataset: Any, tokenizer: Any, *args: Any) -> Any:
        """The rows prepared, with what those ask whose teacher has another tokenizer."""
        numbered = list(enumerate(self.members.items()))
        others = [(i, name, of) for i, (name, of) in numbered if isinstance(of, OtherTokenizer)]
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if not others or TEACHER_QUESTION in columns:
            return prepare(dataset, tokenizer, *args)
        check_text(columns, args)
        own = TEACHER_PROMPT in columns
        if own:
            dataset = dataset.map(lambda row: {OWN_PROMPT: row[TEACHER_PROMPT]})
        dataset = prepare(dataset, tokenizer, *args)
        for number, name, member in others:
            own_prompt = self.specs[name].teacher_prompt
            with _named(name):
                dataset = member.asking(dataset, tokenizer, *args, of=number, own_prompt=own_prompt)
        return dataset.remove_columns(OWN_PROMPT) if own else dataset

    def _rows_of(self, dataset: Any, number: int) -> Any:
        """Those that a teacher is asked about, as it reads them. A stream can't be looked through."""
        if not list(self.specs.values())[number].teacher_prompt:
            columns = dataset.column_names or []
            dataset = dataset.remove_columns([name for name in (CONTEXTS, TEACHER_PROMPTS) if name in columns])
        if not self.routed or not isinstance(dataset, Dataset):
            return dataset
        mine = np.flatnonzero(np.asarray(dataset.with_format("numpy")[ROUTE]) == number)
        return dataset.select(mine)

    def _check_mode(self) -> None:
        if self.routed and self._options.packing:
            raise UsageError(
                f"`packing` lays rows together, and their column `{TEACHER}` gives them different teachers. Set it to "
                "False; `padding_free` wastes no memory either."
            )
        for name, spec in self.specs.items():
            if not self.routed and spec.vocabulary_alignment is not None:
                raise UsageError(
                    f"`teachers`, {name}: `vocabulary_alignment` is {spec.vocabulary_alignment!r}, and without a "
                    f"column `{TEACHER}` in the rows the target is one mixture of all, which need the same tokens. "
                    "Add the column, or leave it out."
                )
            if not self.routed and spec.own_loss:
                raise UsageError(
                    f"`teachers`, {name}: `{spec.own_loss}` is of its own, but without a column `{TEACHER}` in the "
                    "rows the target is one mixture of all. Set it for the run, or add the column."
                )
            with _named(name):
                self._check_knowledge(self.members[name])

    def _numbered(self, row: dict[str, Any], split: str) -> dict[str, Any]:
        names, name = list(self.specs), row[TEACHER]
        if name not in names:
            raise UsageError(
                f"A row of the {split} data has {name!r} in `{TEACHER}`, and `teachers` has {', '.join(names)}"
                f"{did_you_mean(str(name), names)}"
            )
        return {ROUTE: names.index(name)}

    def collate(self, collator: Collator) -> Collator:
        own = {name: member.collated(collator) for name, member in self.members.items()}
        for name, spec in self.specs.items():
            if not spec.teacher_prompt:
                own[name] = partial(without_contexts, own[name])
        return SeveralCollator(collator, own, bool(self.routed))

    # A step

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for member in self.members.values():
            member.keeps = self.keeps
            batches = member.ahead(batches)
        return batches

    def wait(self, batches: list[Batch], save: Callable[[], None] | None = None) -> None:
        for name, member in self.members.items():
            member.wait([part_of(name, batch) for batch in batches], save)

    def ask(self, batches: list[Batch]) -> None:
        for name, member in self.members.items():
            member.ask([part_of(name, batch) for batch in batches])
        if self._offloads:
            self._read(batches)

    def _read(self, batches: list[Batch]) -> None:
        """Have each model that is offloaded read its rows of the whole step, so that it is fetched once."""
        for name, member in self.members.items():
            parts = [batch[ROUTED].batches[name] for batch in batches]
            if member.model is None or not any(len(part.positions) for part in parts):
                continue
            with member.active(), self._accelerator.autocast():
                for part in parts:
                    if len(part.positions):
                        part.known = self._asked(member, part).cpu()

    def _asked(self, member: Teacher, part: SubBatch) -> Any:
        """What one of them says at the tokens with a label that it has of a batch."""
        if part.known is not None:
            return part.known.to(self._accelerator.device)
        found = member.target(dict(send_to_device(part.inputs, self._accelerator.device)))
        return selected(found, part.theirs)

    def rows(self, inputs: Batch) -> Routed | Mixed:
        batches, count = inputs.pop(ROUTED).batches, inputs["input_ids"].numel()
        inputs.pop(TEACHER_QUESTION, None)
        together = self._accelerator.num_processes > 1  # shards are gathered, and answers waited for, by all
        known: dict[str, Any] = {}
        for name, member in self.members.items():
            part: SubBatch = batches[name]
            apart = member.model is not None and self._offloads
            if not self.routed or len(part.positions) or (together and not apart):
                known[name] = (part.positions.to(inputs["input_ids"].device), self._asked(member, part))
        return Routed(known) if self.routed else Mixed.of(known, count)

    @property
    def _offloads(self) -> bool:
        return self._options.teachers_offload is not None

    @contextmanager
    def head(self) -> Iterator[Any]:
        with ExitStack() as stack:
            heads: dict[str, Head | NoHead] = {}
            for name, member in self.members.items():
                heads[name] = stack.enter_context(member.head())
            yield heads

    def hidden_states(self, inputs: Batch) -> Tensor:
        raise UsageError("Several teachers have no hidden states together: measure with one of them.")

    def step(self) -> None:
        for member in self.members.values():
            member.step()

    def save(self, folder: str) -> None:
        for member in self.members.values():
            member.save(folder)

    def load(self, folder: str | None) -> None:
        for member in self.members.values():
            member.load(folder)

    def identity(self) -> dict[str, Any]:
        parts = [{**member.identity(), "as": name} for name, member in self.members.items()]
        hashes = [part["identity"] for part in parts]
        specs = [spec.described() for spec in self.specs.values()]
        known = None if None in hashes else " ".join(hashes)
        return {"kind": "several", "name": str(specs), "identity": known, "teachers": specs, "routed": self.routed}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Context in which errors say which of them they are of."""
    try:
        yield
    except UsageError as error:
        error.args = (f"`teachers`, {name}: {error}",)
        raise


def shards(accelerator: Accelerator) -> str | None:
    """What shards the models of a run, if anything does."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "ZeRO-3" if accelerator.state.deepspeed_plugin.zero_stage == 3 else None
    return "FSDP" if accelerator.distributed_type == DistributedType.FSDP or accelerator.is_fsdp2 else None
