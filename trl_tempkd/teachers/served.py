# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher behind an HTTP server, asked ahead of the student's step."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..losses import Logits, TopK
from ..temperature import soften
from .address import plain
from .base import Batch, Teacher, temperatures_of
from .client import Answer, CompletionsClient, TeacherServerError
from .live import refuse_options
from .own_prompt import read_in_place_of
from .plausible import log_mass
from .probe import probe


logger = get_logger(__name__)

REQUESTS = "teacher_requests"  # in a batch: what was asked about it ahead of its step


# What log-probabilities in fp32 tell of the mass of all others. A rest of 0 would cost 10^4 nats in reverse KL.
RESOLUTION = torch.finfo(torch.float32).eps


class ServedTeacher(Teacher):
    """
    The log-probabilities of a server. Needs no model, and can't generate.

    They are logits that happen to be normalised, so with the whole vocabulary they are the teacher's exact
    distribution at every temperature. With a part of it they are that of temperature 1 on k + 1 bins, and of others if
    the server uses the temperature of a request.

    Args:
        teacher (`str`, *optional*):
            Name by which the server knows the teacher.
        options (`KDConfig`):
            Configuration of the run: where the server is, and how to ask it.

    Raises:
        `ValueError`: If an option says how to load the teacher; by `bind`, if the server has another tokenizer, or
            doesn't give what determines the target.
        [`TeacherServerError`]: By `bind`, if it doesn't answer.
    """

    instead = (
        "ask for all of them (leave `teacher_server_logprobs` unset, and start the server with vLLM's --max-logprobs "
        "-1), or use `trl-tempkd cache`"
    )

    def __init__(self, teacher: str | None, options: Any):
        refuse_options("served", options.teacher_model_init_kwargs, options.teacher_model_revision)
        self._name, self._options = teacher, options
        self._read: _ReadAhead | None = None
        self._rng: torch.Tensor | None = None
        self._taus: tuple[float, ...] = (1.0,)  # to ask for

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        options = self._options
        self._accelerator = accelerator
        self._vocabulary = accelerator.unwrap_model(student()).config.get_text_config().vocab_size
        self.client = CompletionsClient(
            options.teacher_server_url,
            self._name,
            options.teacher_server_logprobs,
            options.teacher_server_requests,
            options.teacher_server_timeout,
            options.teacher_server_patience,
            self._vocabulary,
        )
        try:
            self.served = probe(self.client, tokenizer, self._vocabulary)
            logger.info(f"{self.client.url} serves {plain(self.client.model)}: {self.served.describe()}.")
            self.source = f"the server {self.client.url} (it gives {self.served.describe()})"
            if not self.served.whole:
                self._know_a_part()
            self.check(options)
        except BaseException:
            self.client.close()
            raise

    def _know_a_part(self) -> None:
        if not self.served.normalised:
            raise UsageError(
                f"`teacher_server_url` {self.client.url} gives {self.served.describe()}. Without all of them their "
                f"probabilities can't be known: {self.instead}."
            )
        self.knows, self.taus = TopK, None if self.served.tempered else (1.0,)
        wanted = {tau for _, tau in temperatures_of(self._options) if tau is not None and self.served.tempered}
        self._taus = tuple(sorted({1.0, *wanted}))
        self.metrics = TopK.metrics_of(self._taus)

    def rows(self, inputs: Batch) -> Logits | TopK:
        asked = inputs.pop(REQUESTS, None) or self._ask(inputs)
        rows, length = inputs["input_ids"].shape
        answers = [
            (slice(row * length + start, row * length + start + len(each[0].ids)), each)
            for (row, start), each in self._answers(asked)
        ]
        merge = self._logits if self.served.whole else self._top_k
        return merge(answers, rows * length, inputs["input_ids"].device)

    def _logits(self, answers: list[tuple[slice, list[Answer]]], n: int, device: torch.device) -> Logits:
        logits = torch.zeros(n, self.served.width)
        for own, (answer,) in answers:
            logits[own].scatter_(1, torch.from_numpy(answer.ids), torch.from_numpy(answer.values))
        return Logits(logits.to(device))

    def _top_k(self, answers: list[tuple[slice, list[Answer]]], n: int, device: torch.device) -> TopK:
        ids, logits = torch.arange(self.served.width).repeat(n, 1), torch.zeros(n, self.served.width)
        rest = torch.zeros(n, len(self._taus))
        for own, at_taus in answers:
            at_1 = at_taus[self._taus.index(1.0)]
            ids[own], logits[own] = torch.from_numpy(at_1.ids), torch.from_numpy(at_1.values)
            for i, (tau, answer) in enumerate(zip(self._taus, at_taus, strict=True)):
                # The k largest are the same at every temperature, and their mass says what the partition is
                mass = torch.from_numpy(log_mass(answer.values)).clamp(max=-RESOLUTION)
                partition = soften(logits[own].double(), tau).logsumexp(-1) - mass
                rest[own, i] = (partition + torch.log(-torch.expm1(mass))).float()
        return TopK(self._taus, self._vocabulary, *(part.to(device) for part in (ids, logits, rest)))

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Reads for an optimizer step ahead, so that the server works while the student does."""
        if self._read is None or self._read.batches is not batches:
            self._read = _ReadAhead(batches, self._ask_ahead, self._options.gradient_accumulation_steps)
            self._rng = torch.get_rng_state()  # a data loader draws its seed when its first batch is read
        return self._read

    def wait(self, batches: list[Batch], save: Callable[[], None] | None = None) -> None:
        """
        Raises:
            [`TeacherServerError`]: If it doesn't come, on this rank or another.
        """
        error = None
        try:
            for batch in batches:
                self._answers(read_in_place_of(batch)[REQUESTS])
        except TeacherServerError as found:
            error = found
        failed = torch.tensor([error is not None], device=self._accelerator.device)
        if self._accelerator.gather(failed).any():
            if self._rng is not None:  # it begins the epoch anew when it is resumed
                torch.set_rng_state(self._rng)
            if save is not None:
                save()
            raise error or TeacherServerError("The teacher's server doesn't answer another process; see its error.")
        self._rng = None

    def _ask_ahead(self, batch: Batch) -> None:
        inputs = read_in_place_of(batch)
        inputs[REQUESTS] = self._ask(inputs)

    def _ask(self, batch: Batch) -> "_Requests":
        texts = [(place, tokens) for place, tokens in documents(batch) if len(tokens) > 1]
        return _Requests([(place, [self.client.ask(tokens, tau) for tau in self._taus]) for place, tokens in texts])

    def _answers(self, asked: "_Requests") -> list[tuple[tuple[int, int], list[Answer]]]:
        answers = [(place, [request.result() for request in requests]) for place, requests in asked.items]
        for answer in (each for _, answers_of in answers for each in answers_of):
            misfit = self.served.misfit(answer, self._vocabulary)
            if misfit is not None:
                raise TeacherServerError(
                    f"The teacher's server {self.client.url} gave {self.served.describe()} at the start, and now "
                    f"gives {misfit}. Restart it as it was, and go on from the last checkpoint "
                    "(`resume_from_checkpoint`)."
                )
        return answers

    def identity(self) -> dict[str, Any]:
        return {"kind": "server", "name": self.client.model, "identity": None}


@dataclass(frozen=True)
class _Requests:
    """
    The requests for each text of a batch, one for each temperature, with the row and position where it begins. No
    container, so that it is passed on as it is.
    """

    items: list[tuple[tuple[int, int], list["Future[Answer]"]]]


class _ReadAhead(Iterator[Batch]):
    """Batches that were read, and asked about, some time before they are taken."""

    def __init__(self, batches: Iterator[Batch], ask: Callable[[Batch], None], count: int):
        self.batches, self._ask, self._count = batches, ask, count
        self._kept: deque[Batch] = deque()

    def __next__(self) -> Batch:
        while len(self._kept) <= self._count and (batch := next(self.batches, None)) is not None:
            self._ask(batch)
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
