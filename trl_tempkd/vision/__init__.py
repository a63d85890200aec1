# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows with images: read in TRL's vision formats, and made tokens and pixels of by a model's processor."""

from .collator import Given, Sequences, VisionCollator
from .images import open_image, pixel_hash, thumbnail, to_png
from .processing import Processing
from .rows import PICTURED, Pictured, Read, is_pictured, read_row
from .storage import packed, unpacked


__all__ = [
    "PICTURED",
    "Given",
    "Pictured",
    "Processing",
    "Read",
    "Sequences",
    "VisionCollator",
    "is_pictured",
    "open_image",
    "packed",
    "pixel_hash",
    "read_row",
    "thumbnail",
    "to_png",
    "unpacked",
]
