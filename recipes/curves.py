# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Draw quality over diversity of the conditions of a sweep in one picture, with the teacher and the untrained student.

```bash
python recipes/curves.py results/study_tiny FILE.png
```

Each line is the mean over seeds, point by point of the temperatures of sampling; the first point is temperature 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from trl_tempkd.study.table import name_of


Curve = list[dict[str, Any]]


def curves_of(folder: Path) -> dict[str, list[Curve]]:
    """Of each condition the curves of its seeds, in the order of the files."""
    found: dict[str, list[Curve]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        factors = cell["settings"]["factors"]
        name = f"{name_of(factors['divergence'])}, tau {factors['tau']:g}"
        name += " (teacher alone)" if factors["mode"] == "teacher" else ""
        name += f", {name_of(factors['rule'])}" if factors.get("rule") else ""
        found.setdefault(name, []).append(cell["curve"])
    for path in sorted(folder.glob("summary/baselines/*.json")):
        baseline = json.loads(path.read_text(encoding="utf-8"))
        found |= {"teacher": [baseline["teacher"]["curve"]], "student before training": [baseline["start"]["curve"]]}
    return found


def mean_curve(curves: list[Curve]) -> tuple[list[float], list[float]]:
    """Self-BLEU and ROUGE-L at each temperature, means over seeds."""
    points = [
        np.mean([[point[name][0] for name in ("self_bleu", "rouge_l")] for point in same], axis=0)
        for same in zip(*curves, strict=True)
    ]
    x, y = zip(*points, strict=True)
    return list(x), list(y)


def draw(folder: Path, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5))
    for number, (name, curves) in enumerate(curves_of(folder).items()):
        plain = {"teacher": "black", "student before training": "grey"}.get(name)
        style = {"color": plain, "ls": "--"} if plain else {"color": pyplot.cm.tab20(number % 20), "marker": "o"}
        axis.plot(*mean_curve(curves), label=name, ms=4, **style)
    axis.set(xlabel="self-BLEU (the lower, the more diverse)", ylabel="ROUGE-L of the samples")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2])
