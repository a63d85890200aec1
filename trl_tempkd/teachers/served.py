# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher behind an HTTP server, asked ahead of the student's step."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import NoHead
from ..losses import METRICS, Logits, TopK
from ..losses.truncated import ON_BINS
from ..temperature import soften
from .address import plain
from .client import Answer, CompletionsClient, TeacherServerError
from .live import refuse_options
from .objective import teacher_temperatures
from .plausible import log_mass
from .probe import Served, probe


logger = get_logger(__name__)

Batch = dict[str, Any]
_ALL = (
    "Ask for all of them (leave `teacher_server_logprobs` unset, and start the server with vLLM's --max-logprobs -1), "
    "or use `trl-tempkd cache`."
)
REQUESTS = "teacher_requests"  # in a batch: what was asked about it ahead of its step


class ServerOptions(Protocol):
    """What [`ServedTeacher`] reads of a configuration."""

    teacher_server_url: str | None
    teacher_server_logprobs: int | None
    teacher_server_requests: int
    teacher_server_timeout: float
    teacher_server_patience: float
    teacher_model_init_kwargs: Any
    teacher_model_revision: str | None
    gradient_accumulation_steps: int
    divergence: str
    divergence_kwargs: Any
    kd_diagnostics_steps: int | None


# What log-probabilities in fp32 tell of the mass of all others. A rest of 0 would cost 10^4 nats in reverse KL.
RESOLUTION = torch.finfo(torch.float32).eps


class ServedTeacher:
    """
    The log-probabilities of a server. Needs no model, and can't generate.

    They are logits that happen to be normalised, so with the whole vocabulary they are the teacher's exact
    distribution at every temperature. With a part of it they are that of temperature 1 on k + 1 bins, and of others if
    the server uses the temperature of a request.

    Args:
        name (`str`, *optional*):
            Name by which the server knows the teacher.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student and of the data.
        vocabulary (`int`):
            Size of the student's vocabulary.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        options ([`ServerOptions`]):
            Where it is, and how to ask it.

    Raises:
        `ValueError`: If the server has another tokenizer, or doesn't give what determines the target.
        [`TeacherServerError`]: If it doesn't answer.
    """

    model = None

    def __init__(
        self,
        name: str | None,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        accelerator: Accelerator,
        options: ServerOptions,
    ):
        assert options.teacher_server_url is not None
        refuse_options("served", options.teacher_model_init_kwargs, options.teacher_model_revision)
        self._accelerator = accelerator
        self._vocabulary = vocabulary
        self._steps = options.gradient_accumulation_steps
        self._read: _ReadAhead | None = None
        self._rng: torch.Tensor | None = None
        self.client = CompletionsClient(
            options.teacher_server_url,
            name,
            options.teacher_server_logprobs,
            options.teacher_server_requests,
            options.teacher_server_timeout,
            options.teacher_server_patience,
            vocabulary,
        )
        try:
            self.served = probe(self.client, tokenizer, vocabulary)
            logger.info(f"{self.client.url} serves {plain(self.client.model)}: {self.served.describe()}.")
            self._taus = temperatures_of(self.served, options, self.client.url)
            self.metrics = METRICS if self.served.whole else TopK.metrics_of(self._taus)
        except BaseException:
            self.client.close()
            raise

    def wrapped(self) -> nn.Module:
        raise UsageError("`teacher_server_url` has no model to generate with.")

    def active(self) -> AbstractContextManager[None]:
        raise UsageError("`teacher_server_url` has no model to generate with.")

    def head(self) -> AbstractContextManager[NoHead]:
        return nullcontext(NoHead())

    def rows(self, inputs: Batch) -> Logits | TopK:
        """Takes out of the batch what is for the teacher alone. Meaningless where there is no label."""
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

    def hidden_states(self, inputs: Batch) -> torch.Tensor:
        """The logits, of shape `(B, L, V_t)`."""
        rows = self.rows(inputs)
        if isinstance(rows, TopK):
            raise UsageError(
                f"The server {self.client.url} gives no whole rows of the teacher, which are needed here. {_ALL}"
            )
        return rows.values.view(*inputs["input_ids"].shape, -1)

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, read for an optimizer step ahead, so that the server works while the student does."""
        if self._read is None or self._read.batches is not batches:
            self._read = _ReadAhead(batches, self._ask_ahead, self._steps)
            self._rng = torch.get_rng_state()  # a data loader draws its seed when its first batch is read
        return self._read

    def wait(self, batches: list[Batch], save: Callable[[], None] | None = None) -> None:
        """
        Wait until everything is there for some batches. Every rank must call.

        Args:
            batches (`list[dict]`):
                Batches that were read ahead.
            save (`Callable`, *optional*):
                Called on every rank before the error, while nothing has happened yet in this step.

        Raises:
            [`TeacherServerError`]: If it doesn't come, on this rank or another.
        """
        error = None
        try:
            for batch in batches:
                self._answers(batch[REQUESTS])
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
        batch[REQUESTS] = self._ask(batch)

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


def temperatures_of(served: Served, options: Any, url: str) -> tuple[float, ...]:
    """
    The temperatures to ask a server for, 1 among them. `url` is what may be shown of its address.

    Raises:
        `ValueError`: If what it gives doesn't determine the target of the run.
    """
    if served.whole:
        return (1.0,)
    gives = f"`teacher_server_url` {url} gives {served.describe()}"
    if not served.normalised:
        raise UsageError(f"{gives}. Without all of them their probabilities can't be known. {_ALL}")
    TopK.check(options.divergence, options.divergence_kwargs)
    if options.kd_temperature_rule is not None:
        raise UsageError(
            f"`kd_temperature_rule` is {options.kd_temperature_rule}, and looks at whole rows, but {gives}. Leave it "
            f"unset. {_ALL}"
        )
    if options.divergence in ON_BINS:
        logger.warning(
            f"{gives}, and `divergence` {options.divergence} of these isn't that of whole rows: "
            f"{ON_BINS[options.divergence]}."
        )
    if options.kd_diagnostics_steps is not None:
        raise UsageError(
            f"`kd_diagnostics_steps` is {options.kd_diagnostics_steps}, and needs whole rows, but {gives}."
            f" Leave it unset. {_ALL}"
        )
    taus = {1.0}
    for said, tau in teacher_temperatures(options):
        if tau is None or (tau != 1 and not served.tempered):
            raise UsageError(
                f"{gives}, and {said}. What they become at another temperature depends on all that isn't among them. "
                f"Train at `kd_temperature` 1. {_ALL}"
            )
        taus.add(tau)
    return tuple(sorted(taus))


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
