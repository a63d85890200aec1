# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows with images in TRL's vision formats -> what a processor makes tokens and pixels of."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..chat import context_of
from ..errors import UsageError
from ..row_formats import TEACHER_PROMPT
from .images import COLUMNS, Image, open_image


Turns = list[dict[str, Any]]

PICTURED = "pictured"  # in a row that is made in training: its `Pictured`
ARGUMENTS = ("tools", "chat_template_kwargs")  # of the chat template
_PAYLOADS = ("image", "url", "path", "base64")  # where a part of a message may have its image itself


class Pictured(NamedTuple):
    """
    What is asked with images, before a processor writes it.

    Attributes:
        asked (`str` or `list[dict]`):
            Text with the processor's placeholder of each image, or messages whose `content` is a list of parts.
        images (`tuple[PIL.Image.Image, ...]`):
            The images, in the order of their places.
        arguments (`dict`):
            What goes to the chat template beside the messages.
        teacher (`Pictured`, *optional*):
            What the teacher reads in its place, if that is something else.
    """

    asked: str | Turns
    images: tuple[Image, ...] = ()
    arguments: dict[str, Any] = {}
    teacher: "Pictured | None" = None

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.asked, str)


class Read(NamedTuple):
    """
    A row of the data.

    Attributes:
        pictured (`Pictured`):
            What is asked; or the whole text or conversation, if the row doesn't say what of it is the answer.
        answer (`str` or `list[dict]`, *optional*):
            What follows, if the row says it.
        whole (`bool`):
            Whether `pictured` is all of the row.
    """

    pictured: Pictured
    answer: str | Turns | None = None
    whole: bool = False

    @property
    def question(self) -> Pictured:
        """What is completed in the place of the answer: all before the last turn of the assistant."""
        if not self.whole:
            return self.pictured
        asked = self.pictured.asked
        if isinstance(asked, str):
            return Pictured("")
        turns = context_of(asked)
        count = sum(_is_image(part) for turn in turns for part in turn.get("content") or [])
        return self.pictured._replace(asked=turns, images=self.pictured.images[:count])


def is_pictured(row: Mapping[str, Any]) -> bool:
    """Whether a row has a column of images, as TRL tells a vision data set; the column may hold none."""
    return any(name in row for name in COLUMNS)


def read_row(row: Mapping[str, Any], text_field: str = "text", opened: bool = True) -> Read:
    """
    Read a row of one of TRL's vision formats: `images` (or `image`) beside `prompt` and `completion`, `messages` or
    text. Messages of plain text have their images before the first turn of the user, as in TRL.

    Args:
        row (`Mapping[str, Any]`):
            The row.
        text_field (`str`, *optional*, defaults to `"text"`):
            The column that has text.
        opened (`bool`, *optional*, defaults to `True`):
            Whether images are opened, or only counted.

    Raises:
        [`UsageError`]: If the images aren't as many as their places, or one can't be opened.
    """
    cells, own = cells_of(row), row.get(TEACHER_PROMPT)
    column = next((name for name in ("prompt", "messages", text_field) if row.get(name) is not None), None)
    if column is None:
        raise UsageError(
            f"has no `prompt`, `messages` or `{text_field}` beside its images: it has {', '.join(map(str, row))}."
        )
    asked, answer = row[column], row.get("completion") if column == "prompt" else None
    arguments = {name: row[name] for name in ARGUMENTS if row.get(name) is not None}
    if isinstance(arguments.get("tools"), str):
        arguments["tools"] = json.loads(arguments["tools"])
    if isinstance(answer, list):
        answer, more = place_images(answer, [])
        if more:
            raise UsageError("has an image in its `completion`: images belong to what is asked.")
    if own is not None and column != "prompt":
        raise UsageError(f"has a `{TEACHER_PROMPT}` beside images and no `prompt`. Give it `prompt` and `completion`.")
    teacher = None if own is None else _pictured(own, cells, arguments, opened)
    return Read(_pictured(asked, cells, arguments, opened)._replace(teacher=teacher), answer, column != "prompt")


def _pictured(asked: Any, cells: list[Any], arguments: dict[str, Any], opened: bool) -> Pictured:
    if not isinstance(asked, str):
        asked, cells = place_images(asked, cells)
    return Pictured(asked, tuple(open_image(cell) if opened else cell for cell in cells), arguments)


def cells_of(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row as its columns have them."""
    if row.get("images") is not None:
        cells = row["images"]
        return list(cells) if isinstance(cells, Sequence) and not isinstance(cells, str | bytes) else [cells]
    return [] if row.get("image") is None else [row["image"]]


def place_images(turns: Sequence[Mapping[str, Any]], cells: list[Any]) -> tuple[Turns, list[Any]]:
    """
    Messages whose `content` is a list of parts, with a part `{"type": "image"}` at the place of each image, and the
    images in this order: those that stand in the messages themselves, and `cells` at the places that are left.

    Raises:
        [`UsageError`]: If there are not as many of these as `cells`.
    """
    plain = all(isinstance(turn.get("content"), str | None) for turn in turns)
    rest, new = list(cells), []
    placed: list[Any] = []
    for turn in turns:
        content = turn.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])
        if plain and turn["role"] == "user" and not placed:
            parts = [*({"type": "image"} for _ in rest), *parts]
        # A table has `None` in each part for the keys that only other parts have
        parts = [{name: value for name, value in part.items() if value is not None} for part in parts]
        for number, part in enumerate(parts):
            if not _is_image(part):
                continue
            own = next((part[name] for name in _PAYLOADS if name in part), None)
            if own is None and not rest:
                places = sum(_is_image(each) for each_turn in turns for each in each_turn.get("content") or [])
                raise UsageError(f"has {len(cells)} images and {places} places for them in its messages.")
            placed.append(rest.pop(0) if own is None else own)
            parts[number] = {"type": "image"}
        kept = {name: value for name, value in turn.items() if value is not None}
        new.append({**kept, "content": parts} if parts or content is not None else kept)
    if rest:
        raise UsageError(
            f"has {len(cells)} images and {len(cells) - len(rest)} places for them in its messages: each is a part "
            '`{"type": "image"}` of a `content`.'
        )
    return new, placed


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"
