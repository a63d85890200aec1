# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The options of how the loss is computed."""

from dataclasses import dataclass

from ..option_groups import OptionGroup, must, option


@dataclass
class MemoryOptions(OptionGroup):
    """Parameters that control the memory."""

    kd_chunk_size: int | None = option(
        None,
        "Number of tokens whose logits exist at a time. Smaller means less memory and more, smaller matrix products. "
        "If not set, the loss chooses.",
    )

    def check(self) -> None:
        size = self.kd_chunk_size
        ok = size is None or size >= 1
        must(self, "kd_chunk_size", ok, "at least 1", "Leave it unset to let the loss choose.")
