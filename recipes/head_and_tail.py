# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Which part of the distribution each objective fits by which step: the table of docs/diagnostics.md, from the finished
cells of a sweep with `kd_diagnostics_steps`.

```bash
python recipes/head_and_tail.py results/study_match 20 60
```

After the folder, the steps to show besides the start, of the cells that trained for the last one of them.
"""

import json
import sys
from pathlib import Path

import numpy as np


COLUMNS = [(bucket, measure) for bucket in ("head", "tail") for measure in ("error", "forward_kl", "reverse_kl")]
HEAD = (
    "| step | trained on | head: abs(p - q) | forward KL | reverse KL | tail: abs(p - q) | forward KL | reverse KL |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table(folder: Path, steps: list[int]) -> str:
    """Means over seeds at each step, of each objective."""
    by_objective: dict[str, list[dict[tuple[int, str, str], float]]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["settings"]["options"]["max_steps"] == steps[-1]:
            rows = {(row["step"], row["bucket"], row["measure"]): row["value"] for row in cell["diagnostics"]}
            by_objective.setdefault(str(cell["settings"]["factors"]["divergence"]), []).append(rows)
    lines = [HEAD, line_of(0, "not yet", next(iter(by_objective.values())))]
    lines += [line_of(step, name, cells) for step in steps for name, cells in by_objective.items()]
    return "\n".join(lines)


def line_of(step: int, name: str, cells: list[dict[tuple[int, str, str], float]]) -> str:
    means = [np.mean([rows[(step, *column)] for rows in cells]) for column in COLUMNS]
    seeds = f" ({len(cells)} seeds)" if step else ""
    return f"| {step} | {name}{seeds} | {' | '.join(f'{mean:.3f}' for mean in means)} |"


if __name__ == "__main__":
    where, *shown = sys.argv[1:]
    print(table(Path(where), [int(step) for step in shown]))
