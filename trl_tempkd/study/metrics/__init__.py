# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Scores of generated texts. Each file stands alone: a plain function, and the same as an `evaluate.Metric`, for
`evaluate.load("trl_tempkd/study/metrics/rouge_l.py")`. None of them needs the hub.
"""

from .distinct_n import DistinctN, distinct_n
from .rouge_l import RougeL, rouge_l
from .self_bleu import SelfBLEU, self_bleu


__all__ = ["DistinctN", "RougeL", "SelfBLEU", "distinct_n", "rouge_l", "self_bleu"]
