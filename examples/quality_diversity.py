# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Compare models at equal diversity: a sharper model samples likelier tokens, and scores higher for that alone.

```bash
for model in runs/a runs/b; do
    for temperature in 1.0 0.9 0.8 0.7 0.6 0.5; do
        trl-tempkd evaluate --model_name_or_path $model --dataset_name tiny --no_greedy \
            --temperature $temperature --output $model-$temperature.json
    done
done
python examples/quality_diversity.py runs/*.json
```

Each model is a curve of ROUGE-L over self-BLEU, as the temperature of sampling falls. The second table reads the
curves off at the same self-BLEU, with straight lines between the points, wherever all of them reach.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np


def curves_of(files: list[str]) -> dict[str, list[dict[str, float]]]:
    """For each model its points, from high to low temperature of sampling."""
    found = defaultdict(list)
    for file in files:
        results = json.loads(Path(file).read_text(encoding="utf-8"))
        settings, means = results["settings"], results["means"]
        point = {name: means[name]["mean"] for name in ("rouge_l", "self_bleu", "distinct_2")}
        found[settings["model_name_or_path"]].append({"temperature": settings["temperature"], **point})
    return {model: sorted(points, key=lambda point: -point["temperature"]) for model, points in found.items()}


def at_equal_diversity(curves: dict[str, list[dict[str, float]]], count: int = 4) -> list[tuple[float, list[float]]]:
    """ROUGE-L of each model at the same values of self-BLEU."""
    diversity = {model: [point["self_bleu"] for point in points] for model, points in curves.items()}
    low, high = max(map(min, diversity.values())), min(map(max, diversity.values()))
    if low > high:
        raise SystemExit("The curves have no self-BLEU in common: evaluate at more temperatures.")
    return [
        (
            value,
            [np.interp(value, diversity[model], [point["rouge_l"] for point in curves[model]]) for model in curves],
        )
        for value in np.linspace(low, high, count)
    ]


def main(files: list[str]) -> None:
    if not files:
        raise SystemExit("Give the result files of `trl-tempkd evaluate`, several of each model.")
    curves = curves_of(files)
    print("| model | sampled at | ROUGE-L | self-BLEU | distinct-2 |\n| --- | --- | --- | --- | --- |")
    for model, points in curves.items():
        for point in points:
            rouge_l, self_bleu, distinct_2 = (point[name] for name in ("rouge_l", "self_bleu", "distinct_2"))
            print(f"| {model} | {point['temperature']:g} | {rouge_l:.2f} | {self_bleu:.1f} | {distinct_2:.3f} |")
    print(f"\n| at self-BLEU | {' | '.join(curves)} |\n| --- |{' --- |' * len(curves)}")
    for value, scores in at_equal_diversity(curves):
        print(f"| {value:.1f} | {' | '.join(f'{score:.2f}' for score in scores)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
