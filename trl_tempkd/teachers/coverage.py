# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""How much of the teacher's mass a cache of its top k tokens holds."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers.utils import logging

from .layouts import TopKLayout
from .manifest import Manifest


LOW_COVERAGE = 0.8

logger = logging.get_logger(__name__)


def describe_coverage(layout: TopKLayout, manifest: Manifest, folder: Path) -> None:
    """Say how much of the mass is inside the top k, from what has been written."""
    for split, described in manifest.splits.items():
        total = torch.zeros(len(layout.taus), dtype=torch.float64)
        for shard in described["shards"]:
            column = Dataset.from_file(str(folder / split / shard["file"])).data[layout.column]
            for chunk in column.chunks:
                data = bytearray().join(chunk.flatten().to_pylist())
                if data:
                    total += layout.coverage(torch.frombuffer(data, dtype=torch.uint8).view(-1, layout.size))
        shares = (total / max(described["tokens"], 1)).tolist()
        described["coverage"] = {str(tau): share for tau, share in zip(layout.taus, shares, strict=True)}
        said = ", ".join(f"{share:.3f} at tau {tau:g}" for tau, share in zip(layout.taus, shares, strict=True))
        print(f"Of the {split} data the top {layout.count} tokens hold {said} of the mass.")
        low = [f"{tau:g}" for tau, share in zip(layout.taus, shares, strict=True) if share < LOW_COVERAGE]
        if low:
            logger.warning(
                f"At tau {', '.join(low)} less than {LOW_COVERAGE} of the {split} data's mass is inside the top "
                f"{layout.count}: of the rest the student learns the sum alone. A larger --k, --mode sampled "
                "or --mode hidden sees more."
            )
