# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The images of rows: opened, recognised by their pixels, and written down."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from ..errors import UsageError, UsageImportError


COLUMNS = ("images", "image")  # of TRL: several images of a row, or one

Image = Any  # `PIL.Image.Image`, imported only where there are images


def open_image(value: Any) -> Image:
    """
    An image of a row, upright and in RGB, as every processor takes it.

    Args:
        value (`PIL.Image.Image`, `str`, `bytes`, `dict` or array):
            The image, its path, the bytes of its file, or as `datasets` stores it: `bytes` and `path`.

    Raises:
        [`UsageError`]: If it can't be opened. The message has no subject: it follows the name of a row.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise UsageImportError(
            "has images, and Pillow, which opens them, isn't installed: `pip install '.[vision]'` where you installed "
            "trl_tempkd from."
        ) from error
    name = _name(value)
    try:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            raise UsageError(f"has the image {name}, and addresses aren't followed. Download it, and give its path.")
        if isinstance(value, str):
            value = Path(value).read_bytes()
        if isinstance(value, bytes | bytearray):
            value = io.BytesIO(value)
        if isinstance(value, PIL.Image.Image):
            image = value
        else:
            image = PIL.Image.fromarray(value) if hasattr(value, "__array__") else PIL.Image.open(value)
        image.load()
    except UsageError:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"has {name}, which can't be opened as an image: {reason}. Leave the row out.") from error
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("bytes")
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, bytes | bytearray):
        return f"an image of {len(value)} bytes"
    return f"a {type(value).__name__}"


def pixel_hash(images: tuple[Image, ...]) -> str:
    """Hash of the sizes and the pixels of some images, in their order: 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for image in images:
        digest.update(f"{image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def to_png(image: Image) -> bytes:
    """The file of an image, without loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def thumbnail(image: Image, side: int = 128) -> Image:
    """A copy that is no larger than `side` pixels, for a table of completions."""
    small = image.copy()
    small.thumbnail((side, side))
    return small
