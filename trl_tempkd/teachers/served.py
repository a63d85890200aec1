# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher behind a server of log-probabilities."""

from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UsageError
from ..losses import Logits, TopK
from ..temperature import soften
from .address import plain
from .asked import AskedTeacher
from .base import Batch, temperatures_of
from .client import Answer, CompletionsClient
from .live import refuse_options
from .plausible import log_mass
from .probe import probe


logger = get_logger(__name__)

# What log-probabilities in fp32 tell of the mass of all others. A rest of 0 would cost 10^4 nats in reverse KL.
RESOLUTION = torch.finfo(torch.float32).eps


class ServedTeacher(AskedTeacher):
    """
    The log-probabilities of a server.

    They are logits that happen to be normalised, so with the whole vocabulary they are the teacher's exact
    distribution at every temperature. With a part of it they are that of temperature 1 on bins (the k largest, the
    text's own token and the rest), and of others if the server uses the temperature of a request.

    Args:
        client ([`CompletionsClient`]):
            Asks the server.
        options (`KDConfig`):
            Configuration of the run: how to ask it.

    Raises:
        `ValueError`: If an option says how to load the teacher; by `bind`, if the server has another tokenizer, or
            doesn't give what determines the target.
        [`TeacherServerError`]: By `bind`, if it doesn't answer.
    """

    instead = (
        "ask for all of them (leave `teacher_server_logprobs` unset, and start the server with vLLM's --max-logprobs "
        "-1), or use `trl-tempkd cache`"
    )

    def __init__(self, client: CompletionsClient, options: Any):
        super().__init__(client, options)
        self._taus: tuple[float, ...] = (1.0,)  # to ask for
        # One token more is generated
        self.positions = client.card.positions and client.card.positions - 1
        refuse_options("served", options.teacher_model_init_kwargs, options.teacher_model_revision)

    def _probe(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._size = self.client.vocabulary = student.config.get_text_config().vocab_size
        self.served = probe(self.client, tokenizer, self._size)
        logger.info(f"{self.client.url} serves {plain(self.client.model)}: {self.served.describe()}.")
        self.vocabulary = self.served.width if self.served.whole else max(tokenizer.get_vocab().values()) + 1
        if not self.served.whole:
            self._know_a_part()

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

    def _question(self, tokens: list[int]) -> list["Future[Answer]"]:
        return [self.client.ask(tokens, tau) for tau in self._taus]

    def _misfit(self, answer: Answer) -> str | None:
        return self.served.misfit(answer, self._size)

    def _describe(self) -> str:
        return self.served.describe()

    def rows(self, inputs: Batch) -> Logits | TopK:
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
        return TopK(self._taus, self._size, *(part.to(device) for part in (ids, logits, rest)))

    @property
    def name(self) -> str | None:
        return self.client.model

    def identity(self) -> dict[str, Any]:
        return {"kind": "server", "name": self.name, "identity": None}
