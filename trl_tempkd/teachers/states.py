# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""An exact teacher behind a server: last hidden states by HTTP, and the head read from its checkpoint."""

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head
from ..parameters import parameter_hash
from ..tiny import resolve
from .address import plain
from .asked import AskedTeacher
from .base import Batch
from .client import CompletionsClient
from .head_file import HeadFile
from .live import check_vocabulary
from .pooling import DTYPES, PooledStates
from .states_probe import probe


class StatesTeacher(AskedTeacher):
    """
    The last hidden states of a server, and its head here: the exact distribution at every temperature, as of a teacher
    in memory, for 2 H bytes a token in bf16. Can't generate.

    Args:
        client ([`CompletionsClient`]):
            Asks the server.
        encoding (`str`):
            How it sends states.
        checkpoint (`str`):
            Name or path of the teacher's checkpoint, of which the head alone is read.
        options (`KDConfig`):
            Configuration of the run.

    Raises:
        `ValueError`: If the checkpoint has no head to be read; by `bind`, if the states aren't those that it takes, or
            the student has another tokenizer.
        [`TeacherServerError`]: By `bind`, if the server doesn't answer.
    """

    def __init__(self, client: CompletionsClient, encoding: str, checkpoint: str, options: Any):
        super().__init__(client, options)
        self._origin = {"revision": options.teacher_model_revision, "trust_remote_code": options.trust_remote_code}
        dtype = _dtype_of(options.teacher_model_init_kwargs)
        file = HeadFile(resolve(checkpoint), **self._origin)
        self._head, self._empty = file.read(dtype), file.model
        self._encoding, self.checkpoint, self.vocabulary = encoding, checkpoint, len(self._head.weight)
        longest = getattr(file.model.config.get_text_config(), "max_position_embeddings", None)
        limits = [client.card.positions, longest]
        self.positions = min((limit for limit in limits if limit and limit > 0), default=None)

    def _probe(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer = self._fit(student, tokenizer)
        device, dtype = self._accelerator.device, self._head.weight.dtype
        self._head = _moved(self._head, device, dtype)
        self.served = probe(self.client, self._encoding, self._head, tokenizer, self.checkpoint, self.positions)
        # States in float32 were multiplied with such a head, whatever the checkpoint has
        both = torch.promote_types(DTYPES[self.served.dtype], dtype)
        self._head = _moved(self._head, device, both)
        self._accelerator.print(
            f"`teacher_server_url` {self.client.url} serves {plain(self.client.model)} exactly: "
            f"{self.served.describe()}, and the head of {self.checkpoint} here in {str(both).removeprefix('torch.')}. "
            f"A known English text costs {self.served.cross_entropy:.2f} nats a token."
        )

    def _fit(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Check that student and teacher fit together. Returns the teacher's tokenizer, which is that of both."""
        check_vocabulary(tokenizer, student, self._empty, **self._origin)
        return tokenizer

    def _question(self, tokens: list[int]) -> list["Future[Any]"]:
        # With the text goes the mark, by which another teacher after a restart is recognised
        texts, served = (tokens, self.served.mark), self.served
        return [
            self.client.run(PooledStates(self.client.model, texts, served.dtype, served.encoding, served.hidden_size))
        ]

    def _misfit(self, answer: list[torch.Tensor]) -> str | None:
        return self.served.misfit(answer[1])

    def _describe(self) -> str:
        return self.served.describe()

    def rows(self, inputs: Batch) -> torch.Tensor:
        """
        The last hidden states, of shape `(B * L, H)`. Takes out of the batch what is for the teacher alone. 0 where
        there is padding.
        """
        return self._placed(self._taken(inputs), inputs["input_ids"])

    def _placed(self, found: list[tuple[slice, list[Any]]], ids: torch.Tensor) -> torch.Tensor:
        """The states of some texts in a flattened batch of so many tokens."""
        states = torch.zeros(ids.numel(), self.served.hidden_size, dtype=DTYPES[self.served.dtype])
        for place, ((of_text, _),) in found:
            states[place.start : place.start + len(of_text)] = of_text
        return states.to(ids.device)

    def head(self) -> AbstractContextManager[Head]:
        return nullcontext(self._head)

    @property
    def name(self) -> str | None:
        return self.checkpoint

    def identity(self) -> dict[str, Any]:
        return {"kind": "server", "name": self.name, "identity": parameter_hash([self._head.weight])}


def _moved(head: Head, device: torch.device, dtype: torch.dtype) -> Head:
    bias = None if head.bias is None else head.bias.to(device, dtype)
    return replace(head, weight=head.weight.to(device, dtype), bias=bias)


def _dtype_of(init_kwargs: Any) -> torch.dtype | None:
    """The dtype of the head, from the only keyword argument that says something of it."""
    kwargs = dict(init_kwargs or {})
    name = kwargs.pop("dtype", "auto")
    dtype = None if name == "auto" else getattr(torch, str(name).removeprefix("torch."), None)
    if kwargs or not (name == "auto" or isinstance(dtype, torch.dtype)):
        raise UsageError(
            f"`teacher_model_init_kwargs` is {init_kwargs!r}, but the teacher is served, and its head alone is read: "
            "nothing but its `dtype` can be given."
        )
    return dtype
