# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The fingerprint of a data set: what it depends on, and what it doesn't."""

import datetime
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from trl_tempkd import fingerprint as module
from trl_tempkd.fingerprint import by_hash, fingerprint, row_hash


ROWS = [{"prompt": f"What is {i} + {i}?\n", "completion": f"{2 * i} ☺"} for i in range(50)]


def test_it_is_the_same_everywhere():
    # These may never change: they stand in results
    assert fingerprint(ROWS) == "fc261944d8f2f6f4"
    assert row_hash(ROWS[3]) == "11963ff75397dede223d5febe1a8075e"
    code = "from trl_tempkd.fingerprint import fingerprint; print(fingerprint([{'a': 1}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint([{"a": 1}])


def test_it_is_of_what_the_rows_say(tmp_path):
    expected, dataset = fingerprint(ROWS), Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "rows")
    dataset.to_json(tmp_path / "rows.jsonl")
    same = {
        "a data set": dataset,
        "another order of columns": dataset.select_columns(["completion", "prompt"]),
        "another format": dataset.with_format("numpy"),
        "from disk": Dataset.load_from_disk(tmp_path / "rows"),
        "from a file": Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache")),
        "chosen back": dataset.select([*range(49, -1, -1)]).select([*range(49, -1, -1)]),
    }
    assert {name: fingerprint(rows) for name, rows in same.items()} == dict.fromkeys(same, expected)


def test_it_changes_with_every_row_and_with_their_order():
    rows = [{**ROWS[0], "completion": ROWS[0]["completion"] + " "}, *ROWS[1:]]
    others = [ROWS, ROWS[1:], [*ROWS, ROWS[-1]], ROWS[::-1], rows, [{"prompt": row["prompt"]} for row in ROWS], []]
    assert len({fingerprint(other) for other in others}) == len(others)


@pytest.mark.parametrize("kind", [list, Dataset.from_list], ids=["list", "data set"])
def test_of_many_rows_some_are_looked_at(kind, monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 10)
    before = fingerprint(kind(ROWS))
    seen = [
        i for i in range(50) if fingerprint(kind([*ROWS[:i], {**ROWS[i], "prompt": ""}, *ROWS[i + 1 :]])) != before
    ]
    assert seen == list(range(0, 50, 5))
    assert fingerprint(kind(ROWS[:-1])) != before


def test_of_a_stream_the_first_rows(monkeypatch):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    assert fingerprint(stream) == fingerprint(iter(ROWS)) == fingerprint(stream)
    monkeypatch.setattr(module, "STREAMED", 10)
    assert fingerprint(iter(ROWS)) == fingerprint(iter(ROWS[:10])) != fingerprint(iter(ROWS[:9]))


def test_what_json_has_no_word_for():
    class Opaque:
        """Its text has an address in it."""

    images = [Image.new("RGB", (2, 1)), Image.new("RGB", (1, 2)), Image.new("L", (6, 1))]
    arrays = [np.arange(3), np.arange(3.0), torch.arange(4)]
    dates = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]
    values = [b"abc", b"abd", *arrays, *images, *dates, float("nan"), None, Opaque()]
    assert len({row_hash({"a": value}) for value in values}) == len(values)
    assert row_hash({"a": Opaque()}) == row_hash({"a": Opaque()})


def test_the_order_by_hash_is_a_sample_that_stays():
    order = by_hash(ROWS)
    assert sorted(order) == list(range(50)) != order == by_hash(Dataset.from_list(ROWS))
    first = [ROWS[i]["prompt"] for i in order[:20]]
    # A row more, before all others: it may take the place of one
    more = [{"prompt": "new", "completion": ""}, *ROWS]
    again = [more[i]["prompt"] for i in by_hash(more)[:20]]
    assert len({*first} - {*again}) <= 1
    assert [row for row in again if row != "new"] == first[: len(again) - ("new" in again)]
