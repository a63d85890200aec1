# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is asked with images <-> flat tensors, to be saved with a checkpoint."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from .images import Image, open_image, to_png
from .rows import Pictured


_FILES, _SIZES, _WORDS = "image_files", "image_sizes", "pictured"


def packed(rows: Sequence[Pictured | None]) -> dict[str, torch.Tensor]:
    """What is asked in each row, as bytes: the images as PNG, each once, and the words as JSON."""
    files: list[bytes] = []
    places: dict[int, int] = {}

    def place(image: Image) -> int:
        if id(image) not in places:
            places[id(image)] = len(files)
            files.append(to_png(image))
        return places[id(image)]

    def words(row: Pictured | None) -> Any:
        if row is None:
            return None
        return [row.asked, [place(image) for image in row.images], row.arguments, words(row.teacher)]

    text = json.dumps([words(row) for row in rows]).encode()
    return {
        _WORDS: _bytes(text),
        _FILES: _bytes(b"".join(files)),
        _SIZES: torch.tensor([len(file) for file in files], dtype=torch.int64),
    }


def unpacked(tensors: dict[str, torch.Tensor]) -> list[Pictured | None] | None:
    """The inverse of `packed`, or `None` where there is nothing of it."""
    if _WORDS not in tensors:
        return None
    parts = tensors[_FILES].split(tensors[_SIZES].tolist())
    images = [open_image(part.numpy().tobytes()) for part in parts]

    def row(words: Any) -> Pictured | None:
        if words is None:
            return None
        asked, places, arguments, teacher = words
        return Pictured(asked, tuple(images[i] for i in places), arguments, row(teacher))

    return [row(words) for words in json.loads(tensors[_WORDS].numpy().tobytes())]


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
