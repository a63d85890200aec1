# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Which bytes each token of a vocabulary stands for.

A tokenizer spells its tokens in one of two ways: byte-level (each byte is a printable character, as GPT-2, Llama 3 and
Qwen have it), or with a metaspace (a space is `▁`, as SentencePiece has it; with byte fallback a byte that is in no
piece is `<0x0A>`). Which one is read from the tokenizer, and then compared with what it does to real text.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..compat import bytes_to_unicode, common_prefix_length
from ..errors import UsageError


METASPACE = "▁"
# Real text, in the composed form (NFC), that a tokenizer which changes or shortens text gives back changed
PROBES = (
    "the cat sat on the mat",
    "The Quick brown FOX, aged 12.5 years; didn't it jump?\nYes (twice)!",
    "  two spaces,   three,\ttab\n\n  indented line\r\n",
    "Größe, naïve café, Ångström: ﬁne ½ ² Ⅷ ＡＢＣ … ™",  # NFKC writes these with other characters
    "Привет, мир! Ελληνικά και Ёлка",
    "日本語と中文、한국어。",
    "नमस्ते दुनिया مرحبا بالعالم שלום",
    "🙂👍🏽👨‍👩‍👧 ok\u00a0nbsp\u2009thin\u3000wide\u200bzero",
    "def f(x):\n    return {'a': x ** 2}  # <b>&amp;</b>",
)


_NFKC = ", NFKC"

# What may stand before a text so that it is read as the rest of one: there a tokenizer puts no space of its own
ANCHORS = ("", "\n", ".", "a", "0")


class Spelling:
    """
    The bytes of each token, and texts as tokens that go on from somewhere.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        side (`str`):
            `"student"` or `"teacher"`, for messages.

    Attributes:
        kind (`str`):
            How tokens are spelt, in words, and whether text is brought into the form NFKC.
        tokens (`list[bytes | None]` of length `V`):
            The bytes of each id; `None` where it stands for no text: special and unknown tokens, padding of the head.
        special (`dict[int, str]`):
            Those of them that are in the tokenizer, and how they are written.

    Raises:
        `ValueError`: If the tokens can't be understood, or the tokenizer changes text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, side: str):
        self.tokenizer, self.side = tokenizer, side
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise self._refusal(f"is a {type(tokenizer).__name__}, which has no fast version to read tokens from")
        state = json.loads(backend.to_str())
        self.kind, byte_level = self._kind(state)
        self.tokens, self.special = self._read(state, byte_level)
        self._anchors: list[str] = []
        self._before: dict[str, list[int]] = {}
        self._check(state)

    def fit(self, size: int) -> None:
        """Have as many ids as the model has logits: those beyond the tokenizer's stand for nothing."""
        self.tokens = [*self.tokens[:size], *[None] * (size - len(self.tokens))]

    def _refusal(self, problem: str) -> UsageError:
        return UsageError(
            f"The {self.side}'s tokenizer {problem}. `vocabulary_alignment` needs byte-level BPE, or BPE or Unigram "
            f"with a metaspace, that leaves text as it is: use another {self.side}."
        )

    def _kind(self, state: dict[str, Any]) -> tuple[str, bool]:
        model = state["model"]
        name, parts = model["type"], [*_parts([state[part] for part in ("normalizer", "pre_tokenizer", "decoder")])]
        if name not in ("BPE", "Unigram"):
            raise self._refusal(f"is of the kind {name}, whose tokens don't say which bytes they stand for")
        for option in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):
                raise self._refusal(f"is a {name} with `{option}` {model[option]!r}, which isn't text")
        types = {part["type"] for part in parts}
        if "ByteLevel" in types:
            return f"byte-level {name}", True
        replaces = [part for part in parts if part["type"] == "Replace"]
        if "Metaspace" in types or any(METASPACE in (part.get("content"), _pattern(part)) for part in replaces):
            return f"{name} with metaspace" + " and byte fallback" * bool(model.get("byte_fallback")), False
        found = ", ".join(sorted(types)) or "nothing"
        raise self._refusal(f"is a {name} of neither bytes nor metaspaces (it is made of {found})")

    def _read(self, state: dict[str, Any], byte_level: bool) -> tuple[list[bytes | None], dict[int, str]]:
        alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
        fallback = (
            {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)} if state["model"].get("byte_fallback") else {}
        )
        added = self.tokenizer.added_tokens_decoder
        hidden = {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        ids = self.tokenizer.get_vocab()
        found: list[bytes | None] = [None] * (max(ids.values()) + 1)
        special = {}
        for text, i in ids.items():
            if i in hidden:
                special[i] = text
            elif not byte_level:
                found[i] = fallback.get(text) or text.replace(METASPACE, " ").encode()
            elif i in added:
                found[i] = text.encode()
            elif all(character in alphabet for character in text):
                found[i] = bytes(alphabet[character] for character in text)
            found[i] = found[i] or None  # a token without text is none
        return found, special

    def _check(self, state: dict[str, Any]) -> None:
        """Compare the bytes with what the tokenizer makes of real text, and find what it needs before a text."""
        works = {}
        for anchor in ANCHORS:
            works[anchor] = sum(self._after(anchor, text) is not None for text in PROBES)
        self._anchors = sorted((a for a in ANCHORS if works[a]), key=lambda anchor: -works[anchor])
        for text in PROBES:
            if self.encode(text) is not None:
                continue
            usual = unicodedata.normalize("NFKC", text)
            if usual != text and self.encode(usual) is not None:
                self.kind += "" if self.kind.endswith(_NFKC) else _NFKC
            else:
                changed = ", ".join(part["type"] for part in _parts([state["normalizer"]])) or "its pre-tokenizer"
                raise self._refusal(
                    f"doesn't give back the bytes of the text {text!r}: {changed} changes or drops some"
                )

    def known(self, ids: Sequence[int]) -> bytes:
        """The bytes of some tokens up to the first that stands for no text."""
        parts = []
        for i in ids:
            part = self.tokens[i] if i < len(self.tokens) else None
            if part is None:
                break
            parts.append(part)
        return b"".join(parts)

    def encode(self, text: str) -> list[int] | None:
        """
        The tokens of a text that goes on from another one; no special token is read into it.

        Returns:
            `list[int]`, *optional*: Tokens whose bytes are those of the text, up to the first unknown one. `None`
            where the tokenizer changes it.
        """
        return next((ids for anchor in self._anchors if (ids := self._after(anchor, text)) is not None), None)

    def encode_beginning(self, text: str) -> list[int]:
        """The tokens of as much of a text as the tokenizer leaves as it is, from its first byte on."""
        found = self.encode(text)
        if found is not None or not self._anchors:
            return found or []
        before, ids = self._before[self._anchors[0]], self._ids(self._anchors[0] + text)
        data = text.encode()
        same = data[: common_prefix_length([*self.known(ids[len(before) :])], [*data])]
        # What it changes may have changed the tokens before it too: those of a character, or of the word that it is in
        left = same.decode(errors="ignore")
        for end in (len(left), len(left) - 1, left.rfind(" ")):
            if end > 0 and (found := self.encode(left[:end])) is not None:
                return found
        return []

    def _after(self, anchor: str, text: str) -> list[int] | None:
        if anchor not in self._before:
            self._before[anchor] = self._ids(anchor) if anchor else []
        before, ids = self._before[anchor], self._ids(anchor + text)
        own = ids[len(before) :]
        if ids[: len(before)] != before:
            return None
        written = self.known(own)
        whole = all(i < len(self.tokens) and self.tokens[i] is not None for i in own)
        data = text.encode()
        return own if (written == data if whole else data.startswith(written)) else None

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _parts(values: Any) -> Iterator[dict[str, Any]]:
    """The elements of a tokenizer's parts, those in a sequence too."""
    for value in values:
        if value is None:
            continue
        inner = value.get("normalizers") or value.get("pretokenizers") or value.get("decoders")
        if value["type"] == "Sequence":
            yield from _parts(inner or [])
        else:
            yield value


def _pattern(part: dict[str, Any]) -> Any:
    return (part.get("pattern") or {}).get("String")
