# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What every served teacher does: texts are asked about ahead of their step, or as soon as they are generated."""

import random
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from .base import Batch, Teacher
from .client import CompletionsClient, TeacherServerError
from .generation import Completion
from .lengths import check_lengths, too_long
from .own_prompt import read_in_place_of
from .sampler import ServedSampler


T = TypeVar("T")
REQUESTS = "teacher_requests"  # in a batch: what was asked about it


class AskedTeacher(Teacher):
    """
    A teacher behind a server. Needs no model. What is asked of a text, and what becomes of the answers, is for the
    kinds of servers to say.

    Args:
        client ([`CompletionsClient`]):
            Asks the server.
        options (`KDConfig`):
            Configuration of the run.
    """

    def __init__(self, client: CompletionsClient, options: Any):
        self.client, self._options = client, options
        self.requests, self.source = client.requests, f"the server {client.url}"
        # Texts that are generated can't be asked about ahead
        self._generates, self._generates_always = options.generates, options.generates_always
        self._accumulated = options.gradient_accumulation_steps
        self._read: _ReadAhead | None = None
        self._epoch: torch.Tensor | None = None  # the random state before the first batch of an epoch was read
        self._before: _Randomness | None = None  # and before the step
        self._save: Callable[[], None] | None = None
        self._in_step = False  # between `wait` and `ask`
        self._early: dict[tuple[int, ...], list[Future[Any]]] = {}  # of texts that are in no batch yet

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        self._accelerator = accelerator
        try:
            self._probe(accelerator.unwrap_model(student()), tokenizer)
            self.source = f"the server {self.client.url} (it gives {self._describe()})"
            self.check(self._options)
        except BaseException:
            self.client.close()
            raise

    @abstractmethod
    def _probe(self, student: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find out what the server gives, and what can be had of it."""

    @cached_property
    def writer(self) -> CompletionsClient:
        """Asks the server that generates for the teacher."""
        client, options = self.client, self._options
        if options.teacher_server_generation_url is None:
            return client
        return CompletionsClient(
            options.teacher_server_generation_url,
            options.teacher_server_model or client.model,
            None,
            client.requests,
            client.timeout,
            client.patience,
            or_checkpoint=True,
            option="teacher_server_model",
        )

    def sampler(self, options: Any, stops: list[int], vocabulary: int) -> ServedSampler:
        return ServedSampler(self.completions, self.writer.card.positions, options, stops, vocabulary)

    def completions(self, prompts: list[list[int]], options: Mapping[str, Any], seeds: list[int]) -> list[list[int]]:
        """
        What the teacher writes after some prompts, all asked for at once. Every rank must call.

        Args:
            prompts (`list[list[int]]`):
                Token ids of each.
            options (`Mapping[str, Any]`):
                How to sample, as of [`Completion`].
            seeds (`list[int]`):
                Of each prompt.
        """
        run, model = self.writer.run, self.writer.model
        asked = [run(Completion(model, *each)) for each in zip(prompts, repeat(options), seeds, strict=False)]
        return self._together(lambda: [request.result() for request in asked])

    @abstractmethod
    def _question(self, tokens: list[int]) -> list["Future[Any]"]:
        """Ask about a text."""

    @abstractmethod
    def _misfit(self, answer: Any) -> str | None:
        """What is wrong with an answer that isn't of the kind that was found at the start."""

    @abstractmethod
    def _describe(self) -> str:
        """What was found at the start."""

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """
        The same batches, read for an optimizer step ahead, so that the server works while the student does. It isn't
        asked about texts that are to be replaced.
        """
        if self._read is None or self._read.batches is not batches:
            keeps, part = self.keeps, self.part

            def ask(batch: Batch, step: int) -> None:
                if not self._generates or (keeps is not None and keeps(step)):
                    self._ask_about(batch if part is None else part(batch))

            self._read = _ReadAhead(
                batches, ask, self._accumulated, 0 if self._generates_always else self._accumulated
            )
            self._epoch = torch.get_rng_state()  # a data loader draws its seed when its first batch is read
        return self._read

    def wait(self, batches: list[Batch], save: Callable[[], None] | None = None) -> None:
        """
        Wait until everything is there that was asked ahead. Every rank must call.

        Args:
            batches (`list[dict]`):
                The batches of an optimizer step, as they were read ahead.
            save (`Callable`, *optional*):
                Writes a checkpoint of what was before this step. Called on every rank before the error, now or in the
                step.

        Raises:
            [`TeacherServerError`]: If it doesn't come, on this rank or another.
        """
        self._save, self._before = save, _Randomness.now(self._accelerator.device, self._epoch)
        self._epoch, self._in_step = None, True
        if not self._generates:
            self._together(lambda: [self._answers(read_in_place_of(batch)[REQUESTS]) for batch in batches])

    def ask_early(self, texts: list[list[int]]) -> None:
        """Ask about texts that have been generated, while others of the step still are."""
        for tokens in texts:
            if len(tokens) > 1 and tuple(tokens) not in self._early:  # the same may be written twice
                self._early[tuple(tokens)] = self._question(tokens)

    def ask(self, batches: list[Batch]) -> None:
        """
        Ask about the batches of an optimizer step once their texts are there. Each is waited for where it is needed.

        Args:
            batches (`list[dict]`):
                The batches that are trained on, the same number on every rank.
        """
        self._in_step = False
        for batch in batches:
            inputs = read_in_place_of(batch)
            if REQUESTS not in inputs:
                self._ask_about(batch)
            inputs[REQUESTS].in_step = self._generates
        self._early.clear()

    def check_rows(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        check_lengths(dataset, self.positions, self._options, name, f"the server {self.client.url}")

    def _ask_about(self, batch: Batch) -> None:
        inputs = read_in_place_of(batch)
        inputs[REQUESTS] = self._asked(inputs)

    def _asked(self, batch: Batch) -> "_Requests":
        texts = [(place, tokens) for place, tokens in self._texts(batch) if len(tokens) > 1]
        longest = max((len(tokens) for _, tokens in texts), default=0)
        if self.positions is not None and longest > self.positions:
            raise UsageError(too_long(f"A row has {longest} tokens", self.positions, f"the server {self.client.url}"))
        early = self._early
        return _Requests([(place, early.get(tuple(each)) or self._question(each)) for place, each in texts])

    def _texts(self, batch: Batch) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """The texts that are asked about, each with the row and position where it begins."""
        return documents(batch)

    def _taken(self, inputs: Batch) -> list[tuple[slice, list[Any]]]:
        """
        The answers about a batch, each with its rows in the flattened batch, as many as the answer has from the
        text's first token on. Takes out of the batch what was asked.
        """
        asked = inputs.pop(REQUESTS, None) or self._asked(inputs)
        if asked.in_step:
            answers = self._together(lambda: self._answers(asked), in_step=True)
        else:
            answers = self._answers(asked)
        length = inputs["input_ids"].shape[1]
        return [(slice(row * length + start, None), found) for (row, start), found in answers]

    def _together(self, wait: Callable[[], T], in_step: bool = False) -> T:
        """
        Wait for some answers on every rank, and stop on every rank if there is one without. In a step a checkpoint is
        written then as if it hadn't begun.
        """
        error = None
        try:
            found = wait()
        except TeacherServerError as refusal:
            error = refusal
        failed = torch.tensor([error is not None], device=self._accelerator.device)
        if not self._accelerator.gather(failed).any():
            return found
        if in_step or self._in_step:
            if self._before is not None:
                self._before.restore()
            if self._save is not None:
                self._save()
        said = gather_object([None if error is None else str(error)])
        raise error or TeacherServerError(next(filter(None, said)))

    def _answers(self, asked: "_Requests") -> list[tuple[tuple[int, int], list[Any]]]:
        answers = [(place, [request.result() for request in requests]) for place, requests in asked.items]
        for answer in (each for _, answers_of in answers for each in answers_of):
            misfit = self._misfit(answer)
            if misfit is not None:
                raise TeacherServerError(
                    f"The teacher's server {self.client.url} gave {self._describe()} at the start, and now gives "
                    f"{misfit}. Restart it as it was, and go on from the last checkpoint (`resume_from_checkpoint`)."
                )
        return answers


@dataclass
class _Requests:
    """
    The requests for each text of a batch, with the row and position where it begins. No container, so that it is
    passed on as it is.

    Attributes:
        items: place of each text, and what was asked of it.
        in_step (`bool`): whether they are waited for in the step, on every rank in the same order.
    """

    items: list[tuple[tuple[int, int], list["Future[Any]"]]]
    in_step: bool = False


@dataclass(frozen=True)
class _Randomness:
    """The random states of a process, as a checkpoint has them."""

    python: Any
    numpy: Any
    torch: torch.Tensor
    device: torch.Tensor | None
    module: Any

    @classmethod
    def now(cls, device: torch.device, of_cpu: torch.Tensor | None) -> "_Randomness":
        """`of_cpu` is in the place of the CPU's, if given."""
        module = None if device.type == "cpu" else torch.get_device_module(device)
        of_cpu = torch.get_rng_state() if of_cpu is None else of_cpu
        return cls(random.getstate(), np.random.get_state(), of_cpu, module and module.get_rng_state(), module)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.module is not None:
            self.module.set_rng_state(self.device)


class _ReadAhead(Iterator[Batch]):
    """Batches that were read, and asked about, some time before they are taken."""

    def __init__(self, batches: Iterator[Batch], ask: Callable[[Batch, int], None], accumulated: int, count: int):
        self.batches, self._ask, self._accumulated, self._count = batches, ask, accumulated, count
        self._kept: deque[Batch] = deque()
        self._seen = 0

    def __next__(self) -> Batch:
        while len(self._kept) <= self._count and (batch := next(self.batches, None)) is not None:
            self._ask(batch, self._seen // self._accumulated)
            self._seen += 1
            self._kept.append(batch)
        if not self._kept:
            raise StopIteration
        return self._kept.popleft()


def documents(batch: Batch) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """
    The texts of a batch, which may be padded, packed or flattened into one row.

    Yields:
        Row and position where a text begins, and its tokens.
    """
    rows = batch["input_ids"].tolist()
    masks = batch["attention_mask"].tolist() if "attention_mask" in batch else [[1] * len(row) for row in rows]
    # Where none are given, a row is one text
    positions = batch["position_ids"].tolist() if "position_ids" in batch else [range(len(row)) for row in rows]
    for i, (row, mask, places) in enumerate(zip(rows, masks, positions, strict=True)):
        length = sum(mask)
        starts = [at for at in range(length) if at == 0 or places[at] == 0]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            yield (i, start), row[start:end]
