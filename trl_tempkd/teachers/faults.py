# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What went wrong on the way to a server and back, whether to ask again, and the way out."""

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import httpx2

from ..errors import UsageError
from .address import KEY, Address, shown


_AGAIN = (408, 425, 429)  # and 5xx but for these:
_NEVER = (501, 505, 511)  # not implemented, no such version of HTTP, the login page of a network
_GATEWAY = (502, 504, *range(520, 531))  # a proxy's, about the server behind it

# How OpenSSL says that the other side doesn't speak TLS
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
)


class TeacherServerError(UsageError, ConnectionError):
    """
    The teacher's server is gone, refuses a request, or answers nonsense.

    Attributes:
        refused (`bool`): whether the server takes no such request, or has no such model, from the start.
        malformed (`bool`): whether its replies have made no sense from the start.
        of_request (`bool`): whether it refuses this request for what is in it.
    """

    refused = malformed = of_request = False


class Malformed(Exception):
    """
    A reply that isn't what was asked for.

    Args:
        problem (`str`):
            What "it" is, in words of our own.
        said (`str`):
            What it begins with, in the server's words, which may have secrets.
    """

    def __init__(self, problem: str, said: str = ""):
        super().__init__(problem)
        self.said = said


class Fault(NamedTuple):
    """
    What became of a request that wasn't answered.

    Attributes:
        problem (`str`):
            What happened, after "because of".
        way_out (`str`):
            What to do about it, in sentences.
        final (`bool`):
            Whether asking again can't help.
        doubtful (`bool`):
            Whether it can't either, unless the server has answered such a request before.
        malformed (`bool`):
            Whether there was a reply, which makes no sense.
        refused (`bool`):
            Whether the server has understood the request, and refuses it.
        after (`float`):
            Seconds for which it wants to be left alone.
        status (`int`, *optional*):
            The status of the reply, where it is a refusal.
    """

    problem: str
    way_out: str = ""
    final: bool = False
    doubtful: bool = False
    malformed: bool = False
    refused: bool = False
    after: float = 0.0
    status: int | None = None


def of_transport(error: Exception, address: Address) -> Fault:
    """The fault of a request that got no reply, or a part of one."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Fault(
                f"a certificate that isn't trusted ({address.plain(cause.verify_message)})",
                "Give the name that it was issued for, or let the environment variable SSL_CERT_FILE name a file with "
                "the certificate of who issued it.",
                final=True,
            )
        if isinstance(cause, ssl.SSLError):
            if cause.reason in _NO_TLS:
                return Fault("a server that doesn't speak TLS", _other_scheme(address), final=True)
            return Fault(f"TLS: {address.plain(str(cause))}", doubtful=True)
        if isinstance(cause, socket.gaierror | UnicodeError):
            said = address.plain(str(cause.strerror if isinstance(cause, socket.gaierror) else cause))
            return Fault(f"an unknown host ({said})", "Correct `teacher_server_url`.", doubtful=True)
    said = address.plain(f"{type(error).__name__} {error}")
    if isinstance(error, httpx2.ProxyError):
        return Fault(said, _past_the_proxy(address), final=str(error).startswith("407"), doubtful=True)
    # A reply that is no HTTP. A connection that was cut off has the same type
    garbled = isinstance(error, httpx2.RemoteProtocolError) and not re.search("disconnect|closed", str(error))
    if garbled:
        return Fault(said, "Is this the address of an HTTP server? Correct `teacher_server_url`.", doubtful=True)
    return Fault(said, final=isinstance(error, httpx2.UnsupportedProtocol))


def of_status(
    status: int, headers: Mapping[str, str], said: str, address: Address, path: str, hint: str | None
) -> Fault:
    """
    The fault of a request that was answered by another status than 200.

    Args:
        status (`int`):
            The status.
        headers (`Mapping[str, str]`):
            Those of the reply.
        said (`str`):
            What the server says about it.
        address ([`Address`]):
            Where it came from.
        path (`str`):
            What was asked there.
        hint (`str`, *optional*):
            The way out that fits the request, if there is one.
    """
    if 300 <= status < 400:
        return _of_redirect(status, headers, address, path)
    way_out = hint if hint is not None else _way_out(status, said, address)
    said = address.plain(said)
    problem = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if status in _AGAIN or (status >= 500 and status not in _NEVER):
        return Fault(problem, way_out, doubtful=status in _GATEWAY, after=retry_after(headers))
    return Fault(problem, way_out, final=True, refused=status >= 400, status=status)


def message(content: bytes, address: Address) -> str:
    """What a server says about an error, in JSON, in words or on a page, without secrets."""
    try:
        reply = json.loads(content)
        error = reply.get("error", reply) if isinstance(reply, dict) else reply
        if isinstance(error, dict):
            error = error.get("message", error.get("detail", error))
        return address.without_secrets(str(error))
    except (ValueError, RecursionError):
        page = address.without_secrets(content[:4096].decode(errors="replace"))
        return re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that `Retry-After` asks for, which may be given as a date. 0 if it says nothing sensible."""
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", said):
        return float(said)
    try:
        date = parsedate_to_datetime(said)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


async def speaks_tls(address: Address) -> bool:
    """Whether a server that hangs up on http:// would take https://."""
    parts = urlsplit(address.url)
    if parts.scheme != "http" or address.proxy() is not None:
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def of_tls(address: Address) -> Fault:
    """The fault of a server that speaks TLS, and was asked without it."""
    return Fault("a server that speaks TLS alone", _other_scheme(address), final=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _of_redirect(status: int, headers: Mapping[str, str], address: Address, path: str) -> Fault:
    location = headers.get("location", "")
    if not location:
        return Fault(f"HTTP {status}, a redirect that names no target", final=True)
    try:
        target = urljoin(address.url + path, location)
    except ValueError:
        target = location
    target = address.plain(shown(target)).removesuffix("/").removesuffix(path)
    return Fault(
        f"HTTP {status}, a redirect to {target}",
        "Redirects aren't followed: if that is the teacher's server, give its address as `teacher_server_url`.",
        final=True,
    )


def _way_out(status: int, said: str, address: Address) -> str:
    if status == 401:
        if address.authorization is None:
            return f"Put its key into the environment variable {KEY}."
        return f"It doesn't take the {_credentials(address)}."
    if status == 403:
        return f"It forbids this to the {_credentials(address)}. {_past_the_proxy(address)}"
    if status == 404:
        return "Is that the address of an OpenAI-compatible server, without the `/v1` and what follows?"
    if status == 405:
        return "What stands at that address takes no such request: is it an OpenAI-compatible server?"
    if status in (407, 511):
        return _past_the_proxy(address) or "A proxy stands before the server, and wants to know who asks."
    if status in _GATEWAY:
        return _past_the_proxy(address) or "Is the server behind that address running?"
    if status == 413:
        return (
            "It is too large for the server, or for a proxy before it (nginx's client_max_body_size): raise that, or "
            "lower `max_length`."
        )
    if status == 429:
        return "`teacher_server_requests` sends fewer at a time."
    if status == 400 and address.url.startswith("http://") and re.search(r"\bhttps\b", said, re.I):
        return _other_scheme(address)
    return ""


def _credentials(address: Address) -> str:
    if address.authorization is None:
        return f"request, which had no key: one is taken from the environment variable {KEY}"
    if address.authorization.startswith("Basic"):
        return "user and the password of `teacher_server_url`"
    return f"key in the environment variable {KEY}"


def _other_scheme(address: Address) -> str:
    scheme, rest = address.url.split("://", 1)
    return f"Set `teacher_server_url` to {'http' if scheme == 'https' else 'https'}://{rest}."


def _past_the_proxy(address: Address) -> str:
    proxy, host = address.proxy(), urlsplit(address.url).hostname
    if proxy is None:
        return ""
    return f"The environment variable {proxy} sends requests through a proxy; NO_PROXY={host} goes past it."


def describe(fault: Fault, address: Address, known: bool, seconds: float, patience: float) -> str:
    """
    The message when a request is given up.

    Args:
        fault ([`Fault`]):
            What became of it the last time.
        address ([`Address`]):
            Where it was sent to.
        known (`bool`):
            Whether the server has answered such a request before.
        seconds (`float`):
            For how long it hasn't.
        patience (`float`):
            For how long it may.
    """
    server, problem = f"The teacher's server {address.url}", fault.problem.rstrip(".")
    if fault.refused:
        said = f"{server} refuses a request, with {problem}. {fault.way_out}"
    elif fault.final or (fault.doubtful and not known):
        said = f"{server} can't be asked, because of {problem}. {fault.way_out}"
    else:
        wish = f", and it asks to be left alone for {fault.after:.0f} s" if fault.after else ""
        restart = (
            "Start it again, and go on from the last checkpoint (`resume_from_checkpoint`)."
            if known
            else "Start it, or correct `teacher_server_url`."
        )
        said = (
            f"{server} hasn't answered for {seconds:.0f} s (`teacher_server_patience` {patience:g}), the last time "
            f"because of {problem}{wish}. {fault.way_out} {restart}"
        )
    return " ".join(said.split())
