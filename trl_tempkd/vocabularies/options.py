# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The options of a teacher with another tokenizer."""

import math
from dataclasses import dataclass

from ..errors import UsageError
from ..option_groups import OptionGroup, must, option
from .bins import ALIGNMENTS


@dataclass
class VocabularyOptions(OptionGroup):
    """Parameters that control a teacher with another tokenizer."""

    vocabulary_alignment: str | None = option(
        None,
        "How a teacher with another tokenizer is compared, where both have a token boundary: `bytes` by the next "
        "byte, which is exact as far as it goes, and did best where the three were compared; `shared` by the next "
        "token where both have it, and by its first byte where not, which is finer and an approximation; `uld` by "
        "rank, whatever the tokens are. If not set, student and teacher need the same tokenizer.",
        choices=list(ALIGNMENTS),
    )
    alm_weight: float = option(
        0.0,
        "Factor of a term on the likelihood, at temperature 1, of what both tokenizers cut differently "
        "(approximate likelihood matching), beside the divergence. It needs `vocabulary_alignment`.",
    )

    def check(self) -> None:
        must(self, "alm_weight", 0 <= self.alm_weight < math.inf, "0 or more, and finite")
        alignment = self.vocabulary_alignment
        must(self, "vocabulary_alignment", alignment in (None, *ALIGNMENTS), f"one of {', '.join(ALIGNMENTS)}")
        if alignment is None:
            must(self, "alm_weight", not self.alm_weight, "0 without `vocabulary_alignment`, which it is a part of")
            return
        said = f"`vocabulary_alignment` is {alignment!r}, and"
        if self.packing:
            raise UsageError(
                f"{said} `packing` True lays the texts of rows together, which the teacher must read one by one. Set "
                "`packing` to False; `padding_free` saves the padding."
            )
        if self.truncation_mode == "keep_end":
            raise UsageError(
                f"{said} `truncation_mode` 'keep_end' drops the beginning of rows, which the teacher must read. Use "
                "'keep_start'."
            )
        if self.kd_temperature_rule == "token_adaptive":
            raise UsageError(
                f"{said} `kd_temperature_rule` 'token_adaptive' compares both distributions token by token, which two "
                "vocabularies don't allow. Use another rule, or leave it unset."
            )
        if self.kd_diagnostics_steps is not None:
            raise UsageError(
                f"{said} `kd_diagnostics_steps` {self.kd_diagnostics_steps} compares gradients token by token, which "
                "two vocabularies don't allow. Leave it unset."
            )
