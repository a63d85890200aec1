# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The HTTP side of a served teacher: requests in the background, so many at a time, repeated while it is away."""

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import httpx2

from ..errors import UsageError
from .address import Address, authorities, plain
from .faults import (
    Fault,
    Malformed,
    TeacherServerError,
    describe,
    message,
    of_status,
    of_tls,
    of_transport,
    speaks_tls,
)
from .questions import LARGEST_VOCABULARY, Answer, Card, Models, PromptLogprobs, Question


__all__ = ["Answer", "CompletionsClient", "TeacherServerError"]

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a request is repeated; each wait is twice the one before
MALFORMED = 3  # replies of a request that make no sense until it is given up
DOUBT = 5.0  # seconds for which a request is repeated, if it looks as if it never will be answered
_ERROR = 2**16  # bytes that are read of an error
_OF_REQUEST = (400, 413, 422)  # statuses by which a server refuses what is in a request
_NOT_THERE = (400, 404, 405, 422, 501)  # statuses by which a server says that it takes no such request


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
        vocabulary (`int`):
            About how many log-probabilities all are. It bounds what is read of a reply.
        or_checkpoint (`bool`, *optional*, defaults to `False`):
            Whether `model` may be the name of a checkpoint instead, where the server has no model of that name.
        option (`str`, *optional*):
            The option that `model` comes from, for messages.

    Attributes:
        vocabulary (`int`):
            As given; it may be set once it is known.
        card ([`Card`]):
            What the server says of the model.

    Raises:
        [`TeacherServerError`]: If the server is away for that long, or has no such model.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        logprobs: int | None,
        requests: int,
        timeout: float,
        patience: float,
        vocabulary: int = LARGEST_VOCABULARY,
        *,
        or_checkpoint: bool = False,
        option: str = "teacher_model_name_or_path",
    ):
        self._address = Address.of(url)
        self.url = self._address.url + "/v1"
        self.logprobs, self.requests = logprobs, requests
        self.timeout, self.patience = timeout, patience
        self.vocabulary = vocabulary
        self._known: set[str] = set()  # paths where something was answered
        self._resume = 0.0  # when it may be asked again
        self._http = _http(self._address, requests)
        self._loop = asyncio.new_event_loop()
        self._free = asyncio.Semaphore(requests)
        thread = threading.Thread(target=_run_forever, args=(self._loop,), name="teacher server", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _close, self._loop, self._http, thread)  # also when Python exits
        try:
            self.model, self.card = self._choose(model, or_checkpoint, option)
        except BaseException:
            self.close()
            raise

    def _choose(self, name: str | None, or_checkpoint: bool, option: str) -> tuple[str, Card]:
        served = self.run(Models()).result()
        if len(served) == 1 and (name is None or (or_checkpoint and name not in served)):
            (found,) = served.items()
            return found
        if name in served:
            return str(name), served[name]
        names = ", ".join(repr(plain(each, 100)) for each in [*served][:10]) + (", ..." if len(served) > 10 else "")
        error = TeacherServerError(
            f"The server {self.url} serves {names or 'no model'}, and `{option}` is {name!r}: give the name of one "
            "that it serves" + (" as `teacher_server_model`." if or_checkpoint else ".")
        )
        error.refused = True
        raise error

    def run(self, question: Question) -> Future:
        """Ask anything, in the background."""
        return asyncio.run_coroutine_threadsafe(self._reply(question), self._loop)

    def ask(self, tokens: Sequence[int], temperature: float = 1.0) -> "Future[Answer]":
        """
        Ask about a prompt, in the background.

        Args:
            tokens (`Sequence[int]`):
                Its token ids, two at least.
            temperature (`float`):
                Temperature that the request names. Most servers use it for what they generate alone.
        """
        return self.run(PromptLogprobs(self.model, tokens, temperature, self.logprobs, self.vocabulary))

    async def _reply(self, question: Question) -> Any:
        """What the server answers. Repeats the request for as long as that may help."""
        wait, malformed, since = FIRST_WAIT, 0, None
        while True:
            async with self._free:
                while (pause := self._resume - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                begun = time.monotonic()
                answer, fault = await self._attempt(question)
            if fault is None:
                self._known.add(question.path)
                return answer
            since, now, known = since or begun, time.monotonic(), question.path in self._known
            malformed += fault.malformed
            if malformed == MALFORMED:
                error = TeacherServerError(
                    f"The teacher's server {self.url} has sent {MALFORMED} replies to the same request that make "
                    f"no sense, the last one because {fault.problem}."
                )
                error.malformed = not known
                raise error
            patience = min(self.patience, DOUBT) if fault.doubtful and not known else self.patience
            if fault.final or now + max(wait, fault.after) - since > patience:
                error = TeacherServerError(describe(fault, self._address, known, now - since, self.patience))
                error.refused = not known and fault.status in _NOT_THERE
                error.of_request = fault.status in _OF_REQUEST
                raise error
            self._resume = max(self._resume, now + fault.after)
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _attempt(self, question: Question) -> tuple[Any, Fault | None]:
        # No error leaves this as it is, nor as the cause of another: its text may have the address in full
        address = self._address
        try:
            async with asyncio.timeout(self.timeout):
                status, headers, content = await self._send(question)
            if status == 200:
                return question.read(content, headers), None
        except TimeoutError:
            return None, Fault(f"no reply within {self.timeout:g} s (`teacher_server_timeout`)")
        except Malformed as error:
            said = f": {address.plain(error.said)[:80]!r}" if error.said else ""
            return None, Fault(f"{error}{said}", malformed=True)
        except httpx2.DecodingError as error:
            return None, Fault(f"it can't be unpacked: {address.plain(str(error))}", malformed=True)
        except (httpx2.TransportError, OSError, UnicodeError) as error:
            fault = of_transport(error, address)
            hung_up = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError)
            if hung_up and question.path not in self._known and await speaks_tls(address):
                fault = of_tls(address)
            return None, fault
        said = message(content, address)
        return None, of_status(status, headers, said, address, question.path, question.hint(status, said))

    async def _send(self, question: Question) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of the reply."""
        url, content = self._address.url + question.path, bytearray()
        async with self._http.stream(question.method, url, json=question.body) as response:
            limit = question.limit if response.status_code == 200 else _ERROR
            async for part in response.aiter_bytes():
                content += part
                if len(content) > limit:
                    break
        if response.status_code == 200 and len(content) > limit:
            raise Malformed(f"it is longer than {limit} bytes, which is several times what such a reply takes")
        return response.status_code, response.headers, bytes(content[:limit])


def _http(address: Address, requests: int) -> httpx2.AsyncClient:
    authorization = {"Authorization": address.authorization} if address.authorization else {}
    try:
        return httpx2.AsyncClient(
            headers=authorization,
            timeout=None,  # a reply that trickles in would pass it
            verify=authorities(),
            limits=httpx2.Limits(max_connections=requests, max_keepalive_connections=requests),
        )
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        said = address.plain(f"{type(error).__name__} {error}")
    raise UsageError(
        f"`teacher_server_url` {address.url} can't be asked by way of what the environment says ({said}): look at "
        "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
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
