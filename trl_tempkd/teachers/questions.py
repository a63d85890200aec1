# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a server is asked, and how its reply is read. Another kind of request is another class here."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .address import plain
from .faults import Malformed
from .plausible import log_mass


LARGEST_VOCABULARY = 2**18
NO_HEADERS: Mapping[str, str] = {}
_LARGEST = 1e30  # of a number that may be a logit
_BYTES = 512  # of one token's entry in a reply, at most; 80 to 100 are usual
WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what a reply of another form raises


class Question(Protocol):
    """
    A request, and what it means.

    Attributes:
        method, path, body:
            Of the request.
        limit (`int`):
            Bytes that a reply never has.
    """

    method: str
    path: str

    @property
    def body(self) -> Any: ...

    @property
    def limit(self) -> int: ...

    def read(self, content: bytes, headers: Mapping[str, str]) -> Any:
        """What a reply says, or [`Malformed`]."""
        ...

    def hint(self, status: int, said: str) -> str | None:
        """The way out if it is refused with that status and these words, or `None` if it is that of any request."""
        ...


class Answer(NamedTuple):
    """
    What a server says about a prompt of L tokens.

    Attributes:
        ids (`numpy.ndarray` of shape `(L - 1, k)`):
            The token ids it gives a number for, at each position but the last.
        values (`numpy.ndarray` of shape `(L - 1, k)`):
            These numbers: log-probabilities, or logits.
        mass (`numpy.ndarray` of shape `(L - 1,)`):
            The logarithm of what the numbers of a row weigh together, that of the prompt's own token among them also
            where it isn't one of the k.
        own (`numpy.ndarray` of shape `(L - 1,)`):
            The number of the prompt's own token where it isn't one of the k; -inf where it is.
        texts (`dict[int, str]`):
            What it says that the ids of the first position mean.
        own_first (`bool`):
            Whether the prompt's own token is the first of each row, where vLLM puts it.
    """

    ids: np.ndarray
    values: np.ndarray
    mass: np.ndarray
    own: np.ndarray
    texts: dict[int, str]
    own_first: bool


class Card(NamedTuple):
    """
    What a server says of a model that it has.

    Attributes:
        positions (`int`, *optional*): tokens that a text may have, one that is generated among them.
        owner (`str`): who makes such servers, as `vllm`.
        root (`str`, *optional*): name or path of its checkpoint, where the server has it.
    """

    positions: int | None = None
    owner: str = ""
    root: str | None = None


class Models:
    """The models that a server has, by their names."""

    method, path, body = "GET", "/v1/models", None
    limit = 2**24

    def read(self, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> dict[str, Card]:
        reply = parse(content)
        try:
            models = {model["id"]: _card(model) for model in reply["data"]}
        except WRONG_FORM:
            models = {None: Card()}
        if not all(isinstance(name, str) for name in models):
            raise Malformed("it is no list of models")
        return models

    def hint(self, status: int, said: str) -> str | None:
        return None


@dataclass(frozen=True)
class PromptLogprobs:
    """
    The log-probabilities of what may follow each token of a prompt, as vLLM's `prompt_logprobs`.

    Attributes:
        model (`str`):
            Name of the model.
        tokens (`Sequence[int]`):
            Ids of the prompt.
        temperature (`float`):
            Temperature that the request names.
        logprobs (`int`, *optional*):
            How many at each position. If `None`, all.
        vocabulary (`int`):
            About how many that is.
    """

    model: str
    tokens: Sequence[int]
    temperature: float
    logprobs: int | None
    vocabulary: int

    method = "POST"
    path = "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        # What a server takes from the model's generation config otherwise. It touches no raw log-probabilities, and
        # must not touch processed ones.
        neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        return {
            "model": self.model,
            "prompt": list(self.tokens),
            "max_tokens": 1,
            "temperature": self.temperature,
            **neutral,
            "prompt_logprobs": -1 if self.logprobs is None else self.logprobs,
        }

    @property
    def limit(self) -> int:
        return 2**20 + _BYTES * len(self.tokens) * ((self.logprobs or self.vocabulary) + 1)

    def read(self, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Answer:
        reply = parse(content)
        try:
            (choice,) = reply["choices"]
            rows = choice["prompt_logprobs"]
            if rows is None:
                raise Malformed("it has no prompt log-probabilities, which vLLM's servers give")
            if len(rows) != len(self.tokens):
                raise Malformed(f"it is about {len(rows)} tokens of {len(self.tokens)}")
            if rows[0] is not None:
                raise Malformed("it has log-probabilities of the first token, which nothing comes before")
            return self._answer(rows[1:])
        except WRONG_FORM as error:
            what = type(error).__name__ if isinstance(error, ValueError) else repr(error)  # which has a text of theirs
            raise Malformed(f"it has another form than vLLM's ({what})") from None

    def _answer(self, rows: list[dict[str, dict[str, Any]]]) -> Answer:
        width = min(map(len, rows)) if self.logprobs is None else self.logprobs
        if not width:
            raise Malformed("it has a row without any number")
        ids, values = np.empty((len(rows), width), np.int64), np.empty((len(rows), width), np.float32)
        mass, own = np.empty(len(rows)), np.full(len(rows), -np.inf, np.float32)
        for i, (token, row) in enumerate(zip(self.tokens[1:], rows, strict=True)):
            if len(row) < width or (self.logprobs is None and len(row) != width):
                raise Malformed(f"it gives {len(row)} numbers for a token and not {width}")
            if str(token) not in row:
                raise Malformed(
                    f"its row of token {i + 1} hasn't got that token itself ({token}), which is in each row of a vLLM "
                    "server: its rows may be those of other positions"
                )
            row_ids, row_values = _numbers(row)
            mass[i] = log_mass(row_values)
            if len(row) > width:  # the prompt's own token, if it isn't one of the most likely
                kept = np.sort(np.argsort(-row_values, kind="stable")[:width])
                own[i] = row_values[row_ids == token][0] if token not in row_ids[kept] else -np.inf
                row_ids, row_values = row_ids[kept], row_values[kept]
            ids[i], values[i] = row_ids, row_values
        own_first = all(next(iter(row)) == str(token) for token, row in zip(self.tokens[1:], rows, strict=True))
        return Answer(ids, values, mass, own, _texts(rows[0]), own_first)

    def hint(self, status: int, said: str) -> str | None:
        length = "It must take prompts of `max_length` + 1 tokens (vLLM's --max-model-len)."
        count = (
            f"It must give as many log-probabilities as are asked for, here {self.logprobs or 'all'} (vLLM's "
            "--max-logprobs, -1 for all; `teacher_server_logprobs` asks for fewer)."
        )
        if status == 404 and re.search("model", said, re.I):
            return f"It must serve {plain(self.model)!r}, as it did at the start."
        if status in (404, 405):
            return "It must take POST /v1/completions, as vLLM does for a model that generates (--runner generate)."
        if status not in (400, 422):
            return None
        if re.search("log_?prob", said, re.I):
            return count
        if re.search("vocab", said, re.I):
            return "The student and the teacher need the same tokenizer: serve a teacher of the student's family."
        if re.search("length|too long|model_len|context|maximum.*token", said, re.I):
            return length
        if re.search(r"\bhttps\b", said, re.I):
            return None
        return "It must take token ids as a prompt, and `prompt_logprobs`, as vLLM's server does."


def _card(model: dict[str, Any]) -> Card:
    positions, owner, root = model.get("max_model_len"), model.get("owned_by"), model.get("root")
    return Card(
        positions if type(positions) is int and positions > 0 else None,
        owner if isinstance(owner, str) else "",
        root if isinstance(root, str) else None,
    )


def parse(content: bytes) -> Any:
    """
    What a reply in JSON says.

    Raises:
        [`Malformed`]: If it is something else.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    except ValueError as error:
        start = content[:1000].decode(errors="replace").lstrip("\ufeff \t\r\n")
        if not start:
            raise Malformed("it is empty") from None
        if start.startswith("<"):
            raise Malformed("it is a page for a browser and no JSON, as a proxy or a login sends", start) from None
        raise Malformed(f"it is no JSON ({error!s:.200})", start) from None


def _numbers(row: dict[str, dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and numbers of a row."""
    found = [entry["logprob"] for entry in row.values()]
    if not {*map(type, found)} <= {int, float}:  # a bool is no number, and a string none yet
        raise Malformed("it has log-probabilities that aren't numbers")
    ids, values = np.array([*map(int, row)], np.int64), np.array(found, np.float64)
    if not (np.abs(values) < _LARGEST).all():  # nor if one is NaN
        raise Malformed("it has numbers that aren't finite, or that no model gives")
    if ids.min() < 0 or len(np.unique(ids)) < len(ids):
        raise Malformed("it has negative ids, or the same twice")
    return ids, values


def _texts(row: dict[str, dict[str, Any]]) -> dict[int, str]:
    texts = {int(key): entry.get("decoded_token") for key, entry in row.items()}
    if not {*map(type, texts.values())} <= {str, type(None)}:
        raise Malformed("it has texts of tokens that are none")
    return {token: text for token, text in texts.items() if text}
