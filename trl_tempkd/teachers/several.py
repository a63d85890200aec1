# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Several teachers: each row has one of them, named by its column `teacher`, or all of them at once, as a mixture."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head, NoHead
from ..losses import METRICS, Truncated
from ..names import did_you_mean
from ..row_formats import PROMPTS, ROUTE, TEACHER
from .base import Batch, Collator, Teacher
from .own_prompt import Known, selected, targets_of
from .several_options import TeacherSpec, view_of


ROUTED = "routed_batches"  # in a batch: those of each teacher
_EACH = {"kd": "kd_loss", "kl_tau1": "kl_tau1"}  # metrics of each teacher, and what they are logged as


@dataclass(frozen=True)
class SubBatch:
    """
    The rows of a batch that one teacher has. No container, so that it is passed on as it is.

    Attributes:
        inputs (`dict`):
            Their batch, without labels.
        positions, theirs (`torch.Tensor` of shape `(K,)`):
            Where the flattened batch, and theirs, predict the tokens with a label.
    """

    inputs: Batch
    positions: Tensor
    theirs: Tensor


@dataclass(frozen=True)
class Routed:
    """What is known of the teachers, each at the `positions` of its own rows."""

    known: dict[str, tuple[Tensor, Known]]


@dataclass(frozen=True)
class Mixed:
    """What is known of the teachers, each at every position."""

    known: dict[str, Known]

    def select(self, rows: Tensor) -> "Mixed":
        """Some positions."""
        return Mixed({name: selected(known, rows) for name, known in self.known.items()})


class SeveralTeachers(Teacher):
    """
    The teachers of `teachers`. Whether rows are routed, their column `teacher` says.

    Args:
        teacher (`None`):
            There is no other one.
        options (`KDConfig`):
            Configuration of the run.
        make (`Callable`):
            Makes one of them, from its name or path and the options as it sees them.

    Raises:
        `ValueError`: If another teacher is named too; by `prepare`, if a row names one that there isn't, or the rows
            can't be routed; by `bind`, if one of them doesn't fit the student.
    """

    source = "one of several teachers"
    instead = "use one teacher (`teacher_model_name_or_path`)"

    def __init__(self, teacher: Any, options: Any, make: Callable[[Any, Any], Teacher]):
        if teacher is not None:
            raise UsageError("`teachers` has the teachers, and another one is named too: leave one of the two out.")
        self._options, self.specs = options, TeacherSpec.read(options)
        self.members = {name: make(spec.model, view_of(options, spec)) for name, spec in self.specs.items()}
        self.routed: bool | None = None  # until the training data are seen
        each = [f"{logged}/{name}" for name in self.specs for logged in _EACH.values()]
        self.shares = [f"teacher_share/{name}" for name in self.specs]
        self.metrics = (*METRICS, *each, *self.shares)
        self.relative = {
            f"{logged}/{name}": f"teacher_share/{name}" for name in self.specs for logged in _EACH.values()
        }
        self.columns = [PROMPTS, ROUTE]

    @property
    def reads_tokens(self) -> bool:  # type: ignore[override]
        return not self.routed  # else each of them has a batch of its own

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        self._accelerator = accelerator
        for name, member in self.members.items():
            try:
                member.bind(student, tokenizer, accelerator)
            except UsageError as error:
                raise UsageError(f"`teachers`, {name}: {error}") from error
            if issubclass(member.knows, Truncated):
                raise UsageError(
                    f"`teachers`, {name}: {member.source} hasn't the teacher's whole rows, and several teachers need "
                    f"them. Leave it out, or {member.instead}."
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
        return prepare(dataset, processing_class, *args)

    def _check_mode(self) -> None:
        if self.routed and self._options.packing:
            raise UsageError(
                f"`packing` lays rows together, and their column `{TEACHER}` gives them different teachers. Set it to "
                "False; `padding_free` wastes no memory either."
            )
        for name, spec in self.specs.items():
            if not self.routed and spec.own_loss:
                raise UsageError(
                    f"`teachers`, {name}: `{spec.own_loss}` is of its own, but without a column `{TEACHER}` in the "
                    "rows the target is one mixture of all. Set it for the run, or add the column."
                )

    def _numbered(self, row: dict[str, Any], split: str) -> dict[str, Any]:
        names, name = list(self.specs), row[TEACHER]
        if name not in names:
            raise UsageError(
                f"A row of the {split} data has {name!r} in `{TEACHER}`, and `teachers` has {', '.join(names)}"
                f"{did_you_mean(str(name), names)}"
            )
        return {ROUTE: names.index(name)}

    def collate(self, collator: Collator) -> Collator:
        return RoutedCollator(collator, self.members) if self.routed else collator

    # A step

    def rows(self, inputs: Batch) -> Any:
        if not self.routed:
            return Mixed({name: member.rows(dict(inputs)) for name, member in self.members.items()})
        batches, device, known = inputs.pop(ROUTED).batches, inputs["input_ids"].device, {}
        for name, member in self.members.items():
            batch: SubBatch = batches[name]
            if len(batch.positions) or self._accelerator.num_processes > 1:  # shards are gathered by all together
                found = member.target(dict(send_to_device(batch.inputs, device)))
                known[name] = (batch.positions.to(device), selected(found, batch.theirs))
        return Routed(known)

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

    def ask(self, batches: list[Batch]) -> None:
        for member in self.members.values():
            member.ask(batches)

    def identity(self) -> dict[str, Any]:
        parts = [{**member.identity(), "as": name} for name, member in self.members.items()]
        hashes = [part["identity"] for part in parts]
        specs = [spec.described() for spec in self.specs.values()]
        known = None if None in hashes else " ".join(hashes)
        return {"kind": "several", "name": str(specs), "identity": known, "teachers": specs, "routed": self.routed}


class RoutedCollator:
    """
    What another collator makes of some rows, and a batch for each teacher of the rows that are its own.

    Args:
        collator (`Callable`):
            The other collator. It keeps the order of the rows.
        members (`dict[str, Teacher]`):
            The teachers, in the order of their numbers.
    """

    def __init__(self, collator: Collator, members: dict[str, Teacher]):
        self.collator = collator
        self.own = {name: member.collated(collator) for name, member in members.items()}

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        numbers = [row.get(ROUTE, 0) for row in examples]
        rows = [{name: row[name] for name in row if name != ROUTE} for row in examples]
        batch = self.collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
        positions = targets_of(batch["labels"])
        if len(positions) != sum(counts):
            raise UsageError(
                f"The data collator made {len(positions)} tokens with a label of {sum(counts)}: with a column "
                f"`{TEACHER}` it must keep every label. Use TRL's own."
            )
        parts, found = positions.split(counts), {}
        for number, (name, collate) in enumerate(self.own.items()):
            mine = [i for i, other in enumerate(numbers) if other == number]
            own = collate([rows[i] for i in mine or [0]])  # where it has none, one that nobody reads
            theirs = targets_of(own.pop("labels"))
            at = torch.cat([positions[:0], *(parts[i] for i in mine)])
            found[name] = SubBatch(own, at, theirs[: len(at)])
        batch[ROUTED] = RoutedBatches(found)
        return batch


@dataclass(frozen=True)
class RoutedBatches:
    """The batches of the teachers, by name. No container, so that it is passed on as it is."""

    batches: dict[str, SubBatch]
