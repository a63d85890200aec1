# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The HTTP side of a served teacher: requests in the background, so many at a time, repeated while it is away."""

import asyncio
import json
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import httpx2
import numpy as np

from ..errors import UsageError


FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a request is repeated; each wait is twice the one before
MALFORMED = 3  # replies of a request that make no sense until it is given up
KEY = "VLLM_API_KEY"  # environment variable of the key, under the name by which vLLM's server reads it

_RETRIED = (408, 425, 429)  # and all of 5xx


class TeacherServerError(UsageError, ConnectionError):
    """The teacher's server is gone, refuses a request, or answers nonsense."""


class _Malformed(Exception):
    """A reply that isn't what was asked for."""


class Answer(NamedTuple):
    """
    What a server says about a prompt of L tokens.

    Attributes:
        ids (`numpy.ndarray` of shape `(L - 1, k)`):
            The token ids it gives a number for, at each position but the last.
        values (`numpy.ndarray` of shape `(L - 1, k)`):
            These numbers: log-probabilities, or logits.
        texts (`dict[int, str]`):
            What it says that the ids of the first position mean.
    """

    ids: np.ndarray
    values: np.ndarray
    texts: dict[int, str]


class CompletionsClient:
    """
    Asks an OpenAI-compatible server for the log-probabilities of prompt tokens, as vLLM's `prompt_logprobs`.

    Args:
        url (`str`):
            Address of the server, with or without `/v1`.
        model (`str`, *optional*):
            Name by which it serves the teacher. If `None`, it must serve one model alone.
        logprobs (`int`, *optional*):
            How many log-probabilities to ask for at each position. If `None`, all.
        requests (`int`):
            Most requests in flight.
        timeout (`float`):
            Seconds to wait for a reply.
        patience (`float`):
            Seconds for which a request is repeated while the server is away.

    Raises:
        [`TeacherServerError`]: If the server is away for that long, or has no such model.
    """

    def __init__(
        self, url: str, model: str | None, logprobs: int | None, requests: int, timeout: float, patience: float
    ):
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.logprobs = logprobs
        self.timeout, self.patience = timeout, patience
        self._loop = asyncio.new_event_loop()
        key = os.environ.get(KEY)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # a reply that trickles in would pass it
            limits=httpx2.Limits(max_connections=requests, max_keepalive_connections=requests),
        )
        self._free = asyncio.Semaphore(requests)
        thread = threading.Thread(target=_run_forever, args=(self._loop,), name="teacher server", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _close, self._loop, self._http, thread)  # also when Python exits
        try:
            self.model = self._choose(model)
        except BaseException:
            self.close()
            raise

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _choose(self, name: str | None) -> str:
        served = self._run(self._reply("GET", "models", None, _names)).result()
        if name is None and len(served) == 1:
            return served[0]
        if name in served:
            return str(name)
        raise TeacherServerError(
            f"The server {self.url} serves {', '.join(map(repr, served)) or 'no model'}, and "
            f"`teacher_model_name_or_path` is {name!r}: give the name of one that it serves."
        )

    def ask(self, tokens: Sequence[int], temperature: float = 1.0) -> "Future[Answer]":
        """
        Ask about a prompt, in the background.

        Args:
            tokens (`Sequence[int]`):
                Its token ids, two at least.
            temperature (`float`):
                Temperature that the request names. Most servers use it for what they generate alone.
        """
        # What a server takes from the model's generation config otherwise. It touches no raw log-probabilities, and
        # must not touch processed ones.
        neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        body = {
            "model": self.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": temperature,
            **neutral,
            "prompt_logprobs": -1 if self.logprobs is None else self.logprobs,
        }

        def read(reply: Any) -> Answer:
            return _read(reply, len(tokens), self.logprobs)

        return self._run(self._reply("POST", "completions", body, read))

    async def _reply(self, method: str, path: str, body: Any, read: Any) -> Any:
        """What `read` makes of the reply. Repeats the request for as long as that may help."""
        wait, malformed, start = FIRST_WAIT, 0, time.monotonic()
        while True:
            try:
                async with self._free, asyncio.timeout(self.timeout):
                    response = await self._http.request(method, f"{self.url}/{path}", json=body)
                    if response.status_code == 200:
                        return read(_parse(response.content))
                problem = f"HTTP {response.status_code}: {_message(response)}"
                if response.status_code < 500 and response.status_code not in _RETRIED:
                    raise TeacherServerError(self._refusal(response.status_code, problem))
            except TimeoutError:
                problem = f"no reply within {self.timeout:g} s (`teacher_server_timeout`)"
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                problem = f"{type(error).__name__} {error}".strip()
            except _Malformed as error:
                problem, malformed = str(error), malformed + 1
                if malformed == MALFORMED:
                    raise TeacherServerError(
                        f"The teacher's server {self.url} has sent {MALFORMED} replies to the same request that make "
                        f"no sense, the last one because {problem}."
                    ) from error
            if time.monotonic() + wait - start > self.patience:
                raise TeacherServerError(
                    f"The teacher's server {self.url} hasn't answered for {time.monotonic() - start:.0f} s "
                    f"(`teacher_server_patience` {self.patience:g}), the last time because of {problem}. Start it "
                    "again, and go on from the last checkpoint (`resume_from_checkpoint`)."
                )
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, LONGEST_WAIT)

    def _refusal(self, status: int, problem: str) -> str:
        refused = f"The teacher's server {self.url} refuses a request, with {problem}."
        if status in (401, 403):
            return f"{refused} Put its key into the environment variable {KEY}."
        return (
            f"{refused} It must take prompts of `max_length` + 1 tokens (vLLM's --max-model-len) and give as many "
            f"log-probabilities as are asked for, here {self.logprobs or 'all'} (vLLM's --max-logprobs, -1 for all; "
            "`teacher_server_logprobs` asks for fewer)."
        )


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(loop: asyncio.AbstractEventLoop, http: httpx2.AsyncClient, thread: threading.Thread) -> None:
    async def stop() -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await http.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(stop(), loop)
    if threading.current_thread() is not thread:
        thread.join()


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise _Malformed(f"it is no JSON: {error}") from error


def _names(reply: Any) -> list[str]:
    try:
        return [str(model["id"]) for model in reply["data"]]
    except (KeyError, TypeError) as error:
        raise _Malformed(f"it is no list of models: {reply!r:.200}") from error


def _message(response: httpx2.Response) -> str:
    """What a server says about an error, on one line."""
    try:
        reply = response.json()
        error = reply.get("error", reply)
        said = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        said = response.text
    return " ".join(str(said).split())[:500]


def _read(reply: Any, length: int, logprobs: int | None) -> Answer:
    """
    The answer in a reply: of each token but the first a dict from token ids to `{"logprob", "rank", "decoded_token"}`,
    with the most likely ones and the prompt's own token.
    """
    try:
        (choice,) = reply["choices"]
        rows = choice["prompt_logprobs"]
        if rows is None:
            raise _Malformed("it has no prompt log-probabilities, which vLLM's servers give")
        if len(rows) != length:
            raise _Malformed(f"it is about {len(rows)} tokens of {length}")
        if rows[0] is not None:
            raise _Malformed("it has log-probabilities of the first token, which nothing comes before")
        width = min(map(len, rows[1:])) if logprobs is None else logprobs
        ids, values = np.empty((length - 1, width), np.int64), np.empty((length - 1, width), np.float32)
        texts = {int(key): entry["decoded_token"] for key, entry in rows[1].items() if entry.get("decoded_token")}
        for i, row in enumerate(rows[1:]):
            if len(row) < width or (logprobs is None and len(row) != width):
                raise _Malformed(f"it gives {len(row)} numbers for a token and not {width}")
            row_ids = np.fromiter(map(int, row), np.int64, len(row))
            row_values = np.fromiter((entry["logprob"] for entry in row.values()), np.float32, len(row))
            if len(row) > width:  # the prompt's own token, if it isn't one of the most likely
                kept = np.sort(np.argsort(-row_values, kind="stable")[:width])
                row_ids, row_values = row_ids[kept], row_values[kept]
            ids[i], values[i] = row_ids, row_values
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Malformed(f"it has another form than a server's: {error!r}") from error
    if not np.isfinite(values).all() or (ids < 0).any():
        raise _Malformed("it has numbers that aren't finite, or negative ids")
    return Answer(ids, values, texts)


def log_mass(values: np.ndarray) -> np.ndarray:
    """The logarithm of the mass that each row of log-probabilities has."""
    largest = values.max(-1, keepdims=True)
    return (largest + np.log(np.exp(values - largest).sum(-1, keepdims=True)))[..., 0].astype(np.float64)


def is_mass(values: np.ndarray, vocabulary: int) -> bool:
    """
    Whether rows may be the log-probabilities of the k likeliest of so many tokens: their mass is k / V at least, and 1
    at most.
    """
    mass = log_mass(values)
    least = math.log(values.shape[-1] / vocabulary)
    return bool((mass <= 1e-2).all() and (mass >= least - 1e-2).all())
