# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where a server is, and what may be shown of it and by it: no key, no password, nothing that moves a cursor."""

import base64
import html
import json
import os
import re
import ssl
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from ..errors import UsageError


KEY = "VLLM_API_KEY"  # environment variable of the key, under the name by which vLLM's server reads it

# What a terminal takes for a command: CSI, then strings such as OSC, then any other escape
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[]PX^_].*?(?:\x07|\x1b\\|\x9c|$)|\x1b.?", re.DOTALL)
_LONGEST = 500  # characters of a text that somebody else wrote


@dataclass(frozen=True)
class Address:
    """
    Address of a server.

    Attributes:
        url (`str`):
            What may be shown of it: no user, no password, and no `/v1` at its end.
        authorization (`str`, *optional*):
            The header that proves who asks.
        secrets (`tuple[str, ...]`):
            What must never be shown.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str, option: str = "teacher_server_url") -> "Address":
        """
        Read `teacher_server_url` or another option, and the key from the environment.

        Raises:
            `ValueError`: If it is no address of a server, or the key can't be sent.
        """
        given = f"got {shown(url)!r}"
        if not url.lower().startswith(("http://", "https://")):
            raise UsageError(f"`{option}` must begin with http:// or https://, {given}.")
        try:
            parts = urlsplit(url)
            valid = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
            httpx2.URL(url)
        except (ValueError, httpx2.InvalidURL):  # whose messages have a part of it
            valid = False
        if not valid:
            raise UsageError(
                f"`{option}` must name a host, and a port from 1 to 65535 if any, {given}. In a password, "
                "@, /, ?, # and : are written as %40, %2F, %3F, %23 and %3A."
            )
        if parts.query or parts.fragment:
            raise UsageError(
                f"`{option}` must end with the server's address, without ? and #, {given}. A key belongs "
                f"into the environment variable {KEY}."
            )
        user, _, host = parts.netloc.rpartition("@")
        clean = f"{parts.scheme}://{host}{parts.path}".rstrip("/").removesuffix("/v1").rstrip("/")
        key = _key()
        secrets = [key, *_proxy_passwords()]
        if not user:
            return cls(clean, f"Bearer {key}" if key else None, _spellings(secrets))
        name, _, password = map(unquote, user.partition(":"))
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        return cls(clean, f"Basic {token}", _spellings([*secrets, password, token, user]))

    def plain(self, text: str) -> str:
        """What may be shown of a text that somebody else wrote, on one line."""
        return self.without_secrets(plain(text, None))[:_LONGEST]

    def without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def proxy(self) -> str | None:
        """The environment variable by which requests go through a proxy."""
        parts = urlsplit(self.url)
        proxies = getproxies()
        name = parts.scheme if parts.scheme in proxies else "all"
        return f"{name.upper()}_PROXY" if name in proxies and not proxy_bypass(str(parts.hostname)) else None


def authorities() -> ssl.SSLContext:
    """Whose certificates are trusted. They are read once, while the environment says the same of them."""
    return _authorities(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _authorities(file: str | None, folder: str | None) -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def plain(text: str, length: int | None = _LONGEST) -> str:
    """A text on one line, without what isn't printed: control characters, escapes, marks of direction."""
    kept = []
    for character in _ESCAPES.sub("", text):
        kind = unicodedata.category(character)
        if kind.startswith("Z") or character in "\t\n\r\v\f":
            kept.append(" ")
        elif kind not in ("Cc", "Cf", "Cs"):
            kept.append(character)
    return " ".join("".join(kept).split())[:length]


def shown(url: str) -> str:
    """What may be shown of an address, valid or not."""
    text = re.sub(r"^(\w+://)?.*@", r"\1***@", plain(url))
    return re.sub(r"[?#].*", "?***", text)


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"The environment variable {KEY} has characters that can't be sent as a key, such as the end of a line or "
            "a letter outside of ASCII. Put the key alone into it."
        )
    return key


def _proxy_passwords() -> list[str]:
    found = []
    for url in getproxies().values():
        with suppress(ValueError):
            found.append(unquote(urlsplit(url).password or ""))
    return found


def _spellings(secrets: list[str]) -> tuple[str, ...]:
    """The secrets as somebody might write them, the longest first."""
    found = set()
    for secret in filter(None, secrets):
        found |= {secret, unquote(secret), quote(secret, safe=""), quote(secret), html.escape(secret)}
        found |= {json.dumps(secret)[1:-1], plain(secret, None)}
    return tuple(sorted(found - {""}, key=len, reverse=True))
