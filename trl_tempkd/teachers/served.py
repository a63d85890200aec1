# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher behind a server of log-probabilities."""

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import NoHead
from ..losses import METRICS, Logits, TopK
from ..losses.truncated import ON_BINS
from ..temperature import soften
from .address import plain
from .asked import AskedTeacher, Batch
from .client import Answer, CompletionsClient
from .live import refuse_options
from .objective import teacher_temperatures
from .plausible import log_mass
from .probe import Served, probe


logger = get_logger(__name__)

_ALL = (
    "Ask for all of them (leave `teacher_server_logprobs` unset, and start the server with vLLM's --max-logprobs -1), "
    "or use `trl-tempkd cache`."
)


class ServerOptions(Protocol):
    """What [`ServedTeacher`] reads of a configuration."""

    generates: bool
    teacher_server_url: str | None
    teacher_server_model: str | None
    teacher_server_generation_url: str | None
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


class ServedTeacher(AskedTeacher):
    """
    The log-probabilities of a server. Needs no model, and can't generate.

    They are logits that happen to be normalised, so with the whole vocabulary they are the teacher's exact
    distribution at every temperature. With a part of it they are that of temperature 1 on bins (the k largest, the
    text's own token and the rest), and of others if the server uses the temperature of a request.

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

    def __init__(
        self,
        name: str | None,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        accelerator: Accelerator,
        options: ServerOptions,
    ):
        assert options.teacher_server_url is not None
        client = CompletionsClient(
            options.teacher_server_url,
            name,
            options.teacher_server_logprobs,
            options.teacher_server_requests,
            options.teacher_server_timeout,
            options.teacher_server_patience,
            vocabulary,
            option="teacher_server_model" if options.teacher_server_model else "teacher_model_name_or_path",
        )
        super().__init__(client, accelerator, options)
        self._vocabulary = vocabulary
        try:
            self.served = probe(self.client, tokenizer, vocabulary)
            refuse_options("served", options.teacher_model_init_kwargs, options.teacher_model_revision)
            logger.info(f"{self.client.url} serves {plain(self.client.model)}: {self.served.describe()}.")
            self._taus = temperatures_of(self.served, options, self.client.url)
            self.vocabulary = self.served.width if self.served.whole else max(tokenizer.get_vocab().values()) + 1
            # One token more is generated
            self.positions = client.card.positions and client.card.positions - 1
            self.metrics = METRICS if self.served.whole else TopK.metrics_of(self._taus)
        except BaseException:
            self.client.close()
            raise

    def _question(self, tokens: list[int]) -> list["Future[Answer]"]:
        return [self.client.ask(tokens, tau) for tau in self._taus]

    def _misfit(self, answer: Answer) -> str | None:
        return self.served.misfit(answer, self._vocabulary)

    def _describe(self) -> str:
        return self.served.describe()

    def head(self) -> AbstractContextManager[NoHead]:
        return nullcontext(NoHead())

    def rows(self, inputs: Batch) -> Logits | TopK:
        """Takes out of the batch what is for the teacher alone. Meaningless where there is no label."""
        answers = [
            (slice(place.start, place.start + len(found[0].ids)), found) for place, found in self._taken(inputs)
        ]
        ids = inputs["input_ids"]
        if self.served.whole:
            return self._logits(answers, ids.numel(), ids.device)
        return self._top_k(answers, ids.flatten().roll(-1).cpu(), ids.device)

    def _logits(self, answers: list[tuple[slice, list[Answer]]], n: int, device: torch.device) -> Logits:
        logits = torch.zeros(n, self.served.width)
        for own, (answer,) in answers:
            logits[own].scatter_(1, torch.from_numpy(answer.ids), torch.from_numpy(answer.values))
        return Logits(logits.to(device))

    def _top_k(self, answers: list[tuple[slice, list[Answer]]], targets: torch.Tensor, device: torch.device) -> TopK:
        """The bins are the k largest, the text's own token where it isn't one of them, and the rest."""
        n, width = len(targets), self.served.width
        ids, logits = torch.arange(width + 1).repeat(n, 1), torch.full((n, width + 1), -torch.inf)
        logits[:, :width] = 0
        ids[:, -1] = targets
        rest = torch.zeros(n, len(self._taus))
        for place, at_taus in answers:
            at_1 = at_taus[self._taus.index(1.0)]
            ids[place, :-1] = torch.from_numpy(at_1.ids)
            logits[place] = torch.from_numpy(np.column_stack([at_1.values, at_1.own]))
            for i, (tau, answer) in enumerate(zip(self._taus, at_taus, strict=True)):
                # These tokens are the same at every temperature, and their mass says what the partition is
                mass = torch.from_numpy(log_mass(np.column_stack([answer.values, answer.own]))).clamp(max=-RESOLUTION)
                partition = soften(logits[place].double(), tau).logsumexp(-1) - mass
                rest[place, i] = (partition + torch.log(-torch.expm1(mass))).float()
        return TopK(self._taus, self._vocabulary, *(part.to(device) for part in (ids, logits, rest)))

    def hidden_states(self, inputs: Batch) -> torch.Tensor:
        """The logits, of shape `(B, L, V_t)`."""
        rows = self.rows(inputs)
        if isinstance(rows, TopK):
            raise UsageError(
                f"The server {self.client.url} gives no whole rows of the teacher, which are needed here. {_ALL}"
            )
        return rows.values.view(*inputs["input_ids"].shape, -1)


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
