# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Rows with images for a teacher cache: the tokens that a row has, and what its images are recognised by.

What a teacher has said is kept for these rows. The images stay where they are, and the student sees them anew.
"""

import json
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, List, Value

from ..row_formats import PIXELS
from ..vision import VisionCollator, pixel_hash


_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int64")), PIXELS: List(Value("uint8"))})


def seen_rows(dataset: Dataset, collator: VisionCollator) -> Dataset:
    """
    The rows of a data set with images as a cache knows them, in their order.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows as the collator takes them.
        collator ([`VisionCollator`]):
            The student's.

    Returns:
        [`~datasets.Dataset`]: `input_ids`, `labels`, and 16 bytes of `PIXELS`: a hash of the images, of the settings
        of the student's processor, and of what the teacher reads in the place of the prompt.
    """
    seed = json.dumps(collator.processing.settings(), sort_keys=True).encode()

    def rows() -> Any:
        for row in dataset:
            (given,) = collator.given([row])
            made = collator.student([given])
            pictured = given.pictured
            assert pictured is not None
            digest = xxhash.xxh3_128(seed)
            digest.update(pixel_hash(pictured.images).encode())
            if pictured.teacher is not None:
                digest.update(json.dumps(pictured.teacher.asked).encode())
                digest.update(pixel_hash(pictured.teacher.images).encode())
            key = np.frombuffer(digest.digest(), dtype=np.uint8)
            yield {"input_ids": made.columns[0]["input_ids"], "labels": made.labels[0], PIXELS: key}

    return Dataset.from_list(list(rows()), features=_FEATURES)
