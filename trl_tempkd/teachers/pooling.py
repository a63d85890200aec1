# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A server's last hidden states, as vLLM gives them of every token in pooling mode: question and answer."""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .address import plain
from .faults import Malformed
from .questions import NO_HEADERS, WRONG_FORM, parse


# How to start a server that gives them, for messages
START = '--runner pooling --convert embed --pooler-config \'{"task": "token_embed", "use_activation": false}\''
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# From the smallest reply to the largest; earlier versions of vLLM have only the last ones
ENCODINGS = ("bytes", "base64", "float")
_LARGEST_HIDDEN = 2**16
_CHARACTERS = 32  # of a number in JSON, at most


@dataclass(frozen=True)
class PooledStates:
    """
    The last hidden states of some texts, each of whose tokens has one.

    Attributes:
        model (`str`):
            Name of the model.
        texts (`tuple[Sequence[int], ...]`):
            Token ids of each.
        dtype (`str`):
            In which they are sent.
        encoding (`str`):
            How: as raw `bytes`, or in JSON as `base64` or `float`.
        hidden_size (`int`, *optional*):
            How large each is. If `None`, any size will do.
    """

    model: str
    texts: tuple[Sequence[int], ...]
    dtype: str
    encoding: str = "bytes"
    hidden_size: int | None = None

    method = "POST"
    path = "/pooling"

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "input": [list(text) for text in self.texts],
            "encoding_format": self.encoding,
            "embed_dtype": self.dtype,
            "endianness": "little",
            "use_activation": False,  # it would normalise them
        }

    @property
    def limit(self) -> int:
        of_number = 4 if self.encoding == "bytes" else _CHARACTERS
        return 2**20 + of_number * sum(map(len, self.texts)) * (self.hidden_size or _LARGEST_HIDDEN)

    def read(self, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> list[torch.Tensor]:
        """The states of each text, of shape `(T, H)`."""
        try:
            if "octet-stream" in headers.get("content-type", ""):
                found = self._from_bytes(content, headers.get("metadata"))
            else:
                found = self._from_json(content)
        except WRONG_FORM as error:
            what = type(error).__name__ if isinstance(error, ValueError) else repr(error)
            raise Malformed(f"it has another form than vLLM's ({what})") from None
        if len(found) != len(self.texts):
            raise Malformed(f"it is about {len(found)} texts of {len(self.texts)}")
        for text, states in zip(self.texts, found, strict=True):
            self._check(len(text), states)
        return found

    def _from_bytes(self, content: bytes, metadata: str | None) -> list[torch.Tensor]:
        if metadata is None:  # a proxy has left it out. Each text has a part as long as it is
            size, rest = divmod(len(content), sum(map(len, self.texts)))
            if rest:
                raise Malformed(f"it has {len(content)} bytes, which {sum(map(len, self.texts))} tokens don't share")
            parts, start = [], 0
            for text in self.texts:
                parts.append(self._tensor(content[start : start + size * len(text)], len(text)))
                start += size * len(text)
            return parts
        items = sorted(json.loads(metadata)["data"], key=lambda item: item["index"])
        parts = []
        for item in items:
            shape, dtype, order = item["shape"], item["embed_dtype"], item.get("endianness", "native")
            if dtype != self.dtype or order not in ("native", "little"):
                raise Malformed(f"it has {plain(str(dtype), 20)} in {plain(str(order), 20)} order, not {self.dtype}")
            _check_shape(shape)
            part = content[int(item["start"]) : int(item["end"])]
            if len(part) != math.prod(shape) * DTYPES[self.dtype].itemsize:
                raise Malformed(
                    f"it has {len(part)} bytes for {shape} numbers in {self.dtype}: it is cut off, or longer"
                )
            parts.append(_numbers(part, DTYPES[self.dtype]).view(shape))
        return parts

    def _from_json(self, content: bytes) -> list[torch.Tensor]:
        items = sorted(parse(content)["data"], key=lambda item: item["index"])
        parts = []
        for item, text in zip(items, self.texts, strict=False):
            data = item["data"]
            if isinstance(data, str):
                try:
                    parts.append(self._tensor(base64.b64decode(data, validate=True), len(text)))
                except binascii.Error:
                    raise Malformed("it has no base64 where that was asked for") from None
                continue
            _check_shape([len(data), *([len(data[0])] if isinstance(data[0], list) else [])])
            parts.append(torch.tensor(data, dtype=torch.float32))
        return parts + [torch.empty(0, 0)] * (len(items) - len(parts))  # too many: counted by who calls

    def _tensor(self, part: bytes, tokens: int) -> torch.Tensor:
        """Numbers without a shape. Where a server knows no dtypes they are float32, as their size tells."""
        dtype = DTYPES[self.dtype]
        if self.hidden_size is not None and len(part) == tokens * self.hidden_size * 4:
            dtype = torch.float32
        if len(part) % (tokens * dtype.itemsize):
            raise Malformed(f"it has {len(part)} bytes, which aren't rows of {tokens} tokens in {self.dtype}")
        return _numbers(part, dtype).view(tokens, -1)

    def _check(self, tokens: int, states: torch.Tensor) -> None:
        if len(states) != tokens:
            raise Malformed(f"it has states of {len(states)} tokens of {tokens}")
        if self.hidden_size not in (None, states.shape[1]):
            raise Malformed(f"it has states of size {states.shape[1]}, where {self.hidden_size} is expected")
        if not torch.isfinite(states).all():
            raise Malformed("it has states that aren't finite")

    def hint(self, status: int, said: str) -> str | None:
        if status == 404 and re.search("model", said, re.I):
            return f"It must serve {plain(self.model)!r}, as it did at the start."
        if status in (404, 405, 501) or re.search("pooling|task", said, re.I):
            return f"It must give the last hidden states of every token: start it with {START}."
        if status not in (400, 422):
            return None
        if re.search("vocab", said, re.I):
            return "The student and the teacher need the same tokenizer: serve a teacher of the student's family."
        if re.search("length|too long|model_len|context|maximum.*token", said, re.I):
            return "It must take texts of `max_length` tokens (vLLM's --max-model-len)."
        return f"It must take token ids as `input`, as vLLM's server does with {START}."


def _check_shape(shape: Any) -> None:
    if not all(type(size) is int and size > 0 for size in shape) or len(shape) not in (1, 2):
        raise Malformed(f"it has states of shape {plain(str(shape), 40)}, and not one of each token")
    if len(shape) == 1:
        raise Malformed(f"it has one vector of a text, and not one of each token: start the server with {START}")


def _numbers(part: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(part), dtype=dtype) if part else torch.empty(0, dtype=dtype)
