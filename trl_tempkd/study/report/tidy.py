# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The results as one tidy table, a row for each cell and score, for pandas or a spreadsheet."""

import csv
import io
import json

from .results import Results
from .scores import all_scores, items_of


def to_csv(results: Results) -> str:
    """Columns: `cell`, the factors, `score`, `value` (its mean over items) and `n_items`."""
    factors = list(dict.fromkeys(name for cell in results.cells for name in cell["settings"]["factors"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["cell", *factors, "score", "value", "n_items"])
    for cell in results.cells:
        own = [cell["settings"]["factors"].get(name) for name in factors]
        values = [json.dumps(value) if isinstance(value, dict) else value for value in own]
        for score in all_scores(results):
            if (items := items_of(cell, score)) is not None:
                table.writerow([cell["name"], *values, score, float(items.mean()), len(items)])
    return text.getvalue()
