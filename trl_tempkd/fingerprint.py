# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What says which rows a result was reached on: a hash of their contents, the same on every machine and version."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import xxhash


# Of more rows than this, so many are looked at, evenly spread; of a stream, which has no length, the first ones.
SAMPLED, STREAMED = 2**16, 2**10
BATCH = 1000


def fingerprint(rows: Iterable[Any]) -> str:
    """
    Hash of the rows of a data set, in their order.

    It depends on what the rows say and on their order, and on nothing else: not on the library's version, the process,
    the file that they were read from or the order of their columns. Rows in another order are other batches, so they
    have another fingerprint.

    Args:
        rows (`Iterable`):
            Rows, each a mapping: a `datasets.Dataset`, a stream, or a list. Of more than 65,536 rows, their number and
            65,536 of them, evenly spread, are hashed; of a stream its first 1,024 rows.

    Returns:
        `str`: 16 hexadecimal digits.

    Example:

    ```python
    >>> from trl_tempkd.fingerprint import fingerprint

    >>> fingerprint([{"prompt": "What is 2 + 2?", "completion": "4"}])
    'ce5767e26b8aa207'
    ```
    """
    digest = xxhash.xxh3_64()
    if isinstance(rows, Sized):
        digest.update(f"{len(rows)} rows".encode())
        rows = _spread(rows, SAMPLED) if len(rows) > SAMPLED else rows
    else:
        rows = islice(_each(rows), STREAMED)
    for row in _each(rows):
        digest.update(row_hash(row).encode())
    return digest.hexdigest()


def shown_fingerprints(found: Mapping[str, str]) -> str:
    """The fingerprints of some splits as a result shows them: `train 0123456789abcdef, test fedcba9876543210`."""
    return ", ".join(f"{split} {value}" for split, value in found.items())


def row_hash(row: Any) -> str:
    """Hash of one row, by what it says: 32 hexadecimal digits. The order of its keys makes no difference."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), default=plain)
    return xxhash.xxh3_128_hexdigest(text.encode())


def by_hash(rows: Iterable[Any]) -> list[int]:
    """
    Indices of the rows in the order of their hashes.

    The first so many are a sample that a row more or less hardly changes: where a new version of the data has a few
    other rows, all the others that were drawn are drawn again. A shuffle with a seed draws all others then.
    """
    hashes = [row_hash(row) for row in _each(rows)]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def _each(rows: Any) -> Iterator[Any]:
    if not hasattr(rows, "iter"):
        yield from rows
        return
    # A data set of `datasets` is several times as fast by the batch; as plain Python, whatever format it was set to
    for batch in rows.with_format(None).iter(BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _spread(rows: Any, count: int) -> Any:
    indices = [i * len(rows) // count for i in range(count)]
    return rows.select(indices, keep_in_memory=True) if hasattr(rows, "select") else [rows[i] for i in indices]


def plain(value: Any) -> Any:
    """What JSON has no word for: bytes, images and arrays by a hash of what they hold, dates as text."""
    if isinstance(value, bytes):
        return xxhash.xxh3_128_hexdigest(value)
    if hasattr(value, "tobytes"):
        shape = getattr(value, "shape", getattr(value, "size", None))
        return [str(shape), str(getattr(value, "dtype", getattr(value, "mode", ""))), plain(value.tobytes())]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return type(value).__name__  # its text may have an address in it, which changes with every process
