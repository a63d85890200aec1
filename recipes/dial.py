# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Does the amount that a temperature lifts before training predict what it gains? Over the finished cells of sweeps whose
teachers differ, docs/results/.

```bash
python recipes/dial.py results/study_dial_tiny results/study_dial_stories260k [--markdown FILE] [--png FILE]
python recipes/dial.py results/study_dial_tiny results/study_dial_stories260k --test results/study_start
```

A point is a pair of models, a teacher and an objective. Its x is the log of the upward gradient outside the teacher's
top 10 at tau 2, relative to tau 1, both sides softened, of the student before training (`lifted_ratio`). Its y is what
tau 2 gains over tau 1 after training, the mean over seeds.

The rule, written before the runs: the ratio predicts a gain if the slope's 95% interval (jackknife over teachers)
leaves out 0, and the line's error on teachers that it hasn't seen is below that of the mean. The gain that decides
is that of ROUGE-L sampled at temperature 1, which the papers report; greedy ROUGE-L on rows that were trained on and
the KL to the teacher, by how much its log falls, are looked at beside it.

The student's entropy was added after these runs, and so it has a test of its own, declared before the runs of
`study_start`: its line is right if its error on other starts of the student (`--test`) is below that of the mean of
the line's own points.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from trl_tempkd.study.prediction import Prediction, predict
from trl_tempkd.study.statistics import estimate
from trl_tempkd.study.table import name_of


TAU = 2.0
# Of each gain the score, whether it is of logs, and the sign that makes more better
GAINS = {
    "ROUGE-L, sampled": ("rouge_l", False, 1),
    "ROUGE-L, greedy, rows trained on": ("rouge_l_greedy@seen", False, 1),
    "log of KL(teacher, student), held out, less": ("kl_tau1", True, -1),
    "log of the student's entropy, held out, less": ("student_entropy", True, -1),
}


def points_of(folder: Path) -> list[dict[str, Any]]:
    """Of each teacher and objective the log of the lifted ratio, and each gain with its standard error."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    baselines = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("summary/baselines/*.json")
    }
    by_point: dict[tuple[str, ...], dict[float, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        factors = cell["settings"]["factors"]
        if factors["mode"] != "both" or factors.get("rule") is not None or factors.get("lmbda"):
            continue
        options = cell["settings"]["options"]
        models = (options["model_name_or_path"], options["teacher_model_name_or_path"])
        key = (*models, name_of(factors["divergence"]))
        by_point[key][float(factors["tau"])][factors["seed"]] = cell
    found = []
    for (student, teacher, objective), by_tau in by_point.items():
        seeds = sorted(set(by_tau[1.0]) & set(by_tau[TAU]))
        if not seeds:
            continue
        baseline = baselines[by_tau[TAU][seeds[0]]["baseline"]]
        [ratio] = [
            row["value"]
            for row in baseline["diagnostics"]
            if (row["objective"], row["mode"], row["tau"], row["measure"], row["bucket"])
            == (objective, "both", TAU, "lifted_ratio", "top_10")
        ]
        pairs = [(by_tau[1.0][seed], by_tau[TAU][seed]) for seed in seeds]
        gains = {name: gain(pairs, *how) for name, how in GAINS.items() if how[0] in pairs[0][0]["means"]}
        top_1 = baseline["teacher"]["train"]["top_1"]
        point = {"pair": folder.name, "student": student, "teacher": teacher, "objective": objective}
        found.append({**point, "top_1": top_1, "x": math.log(ratio), "seeds": len(seeds), "gains": gains})
    return sorted(found, key=lambda each: (each["objective"], each["teacher"]))


def gain(pairs: list[tuple[Any, Any]], score: str, of_logs: bool, sign: int) -> tuple[float, float]:
    """Mean and standard error over seeds and items; of logs over seeds alone, of the means over tokens."""
    if of_logs:
        rows = [[math.log(second["means"][score]) - math.log(first["means"][score])] for first, second in pairs]
    else:
        tables = [[np.mean(cell["scores"][score], axis=0) for cell in pair] for pair in pairs]
        rows = [second - first for first, second in tables]
    known = estimate(np.array(rows))
    return sign * float(known.mean), float(known.error)


def line_of(points: list[dict[str, Any]], name: str) -> Prediction:
    groups = [f"{point['pair']} {point['teacher']}" for point in points]
    return predict([point["x"] for point in points], [point["gains"][name][0] for point in points], groups)


def other_pair(points: list[dict[str, Any]], name: str) -> list[str]:
    """How far the line of the other pairs is off, and the mean of these."""
    lines = []
    pairs = sorted({point["pair"] for point in points})
    for pair in pairs if len(pairs) > 1 else []:
        own = [point for point in points if point["pair"] == pair]
        rest = [point for point in points if point["pair"] != pair]
        x, y = ([point["x"] for point in rest], [point["gains"][name][0] for point in rest])
        slope, intercept = np.polyfit(x, y, 1)
        off = [slope * point["x"] + intercept - point["gains"][name][0] for point in own]
        plain = [np.mean(y) - point["gains"][name][0] for point in own]
        errors = (float(np.sqrt(np.mean(np.square(each)))) for each in (off, plain))
        lines.append("{}: {:.2f} by the line of the other, {:.2f} by its mean".format(pair, *errors))
    return lines


def test_of(points: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[str]:
    """What the line of some points says of others, which start from elsewhere, beside what came out."""
    lines, starts = [], {point["student"] for point in points}
    for name in GAINS:
        own = [point for point in others if name in point["gains"] and point["student"] not in starts]
        if not own:
            continue
        line = line_of(points, name)
        mean = np.mean([point["gains"][name][0] for point in points])
        came = np.array([point["gains"][name][0] for point in own])
        said = np.array([line.intercept + line.slope * point["x"] for point in own])
        errors = [float(np.sqrt(np.mean((each - came) ** 2))) for each in (said, mean)]
        lines.append(
            f"- {name}: {line.intercept:+.3f} {line.slope:+.3f} log(ratio) is off by {errors[0]:.2f} on {len(own)} "
            f"other points, the mean by {errors[1]:.2f}"
        )
        for point, a, b in zip(own, said, came, strict=True):
            ratio = f"ratio {math.exp(point['x']):.2f}"
            lines.append(
                f"  - {point['student']}, {point['objective']}, {ratio}: {a:+.2f} was said, {b:+.2f} came out"
            )
    return lines


def tables_of(points: list[dict[str, Any]]) -> list[str]:
    heads = ["pair", "teacher", "its top-1 on the rows", "objective", "ratio", *GAINS]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for point in points:
        own = [f"{value:+.2f} (se {error:.2f})" for value, error in point["gains"].values()]
        known = [point["pair"], f"`{point['teacher']}`", f"{point['top_1']:.2f}", point["objective"]]
        ratio = f"{math.exp(point['x']):.2f}"
        lines.append(f"| {' | '.join([*known, ratio, *own])} |")
    heads = ["gain", "points, teachers", "correlation", "slope", "error on other teachers", "of the mean", "predicts"]
    lines += ["", f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name in GAINS:
        line = line_of(points, name)
        numbers = [
            f"{line.n_points}, {line.n_groups}",
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(line.correlation, *line.correlation_interval),
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(line.slope, *line.slope_interval),
            f"{line.error:.2f}",
            f"{line.error_of_mean:.2f}",
            "yes" if line.holds else "no",
        ]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    lines.append("")
    for name in GAINS:
        lines += [f"- {name}: {each}" for each in other_pair(points, name)]
    return lines


def draw(points: list[dict[str, Any]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for axis, name in zip(axes.flat, GAINS, strict=True):
        for pair, marker in zip(sorted({point["pair"] for point in points}), "osD", strict=False):
            for objective, colour in (("forward_kl", "tab:blue"), ("reverse_kl", "tab:orange")):
                own = [point for point in points if (point["pair"], point["objective"]) == (pair, objective)]
                if own:
                    x = [math.exp(point["x"]) for point in own]
                    y, errors = zip(*(point["gains"][name] for point in own), strict=True)
                    label = f"{pair.removeprefix('study_dial_')}, {objective}"
                    axis.errorbar(x, y, errors, fmt=marker, color=colour, label=label, capsize=2, ls="")
        line = line_of(points, name)
        x = np.linspace(min(point["x"] for point in points), max(point["x"] for point in points))
        axis.plot(np.exp(x), line.intercept + line.slope * x, color="grey", lw=1)
        axis.axhline(0, color="black", lw=0.5)
        axis.set(xscale="log", title=name)
        axis.title.set_fontsize(10)
    figure.supxlabel("amount lifted at tau 2 over tau 1, before training")
    figure.supylabel("gain by tau 2")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description="Does the amount that a temperature lifts predict what it gains?")
    parser.add_argument("folders", nargs="+", type=Path, help="results of sweeps whose teachers differ")
    parser.add_argument("--test", type=Path, nargs="+", help="results of other sweeps, which the line is held against")
    parser.add_argument("--markdown", help="file to write the tables to")
    parser.add_argument("--png", help="file to draw the points to")
    args = parser.parse_args()
    points = [point for folder in args.folders for point in points_of(folder)]
    lines = tables_of(points)
    if args.test:
        lines += ["", *test_of(points, [point for folder in args.test for point in points_of(folder)])]
    print("\n".join(lines))
    if args.markdown:
        command = " ".join(
            [
                "python recipes/dial.py",
                *map(str, args.folders),
                *(["--test", *map(str, args.test)] if args.test else []),
            ]
        )
        head = ["# The dial", "", f"Written by `{command} --markdown`, not by hand.", ""]
        Path(args.markdown).write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    if args.png:
        draw(points, args.png)


if __name__ == "__main__":
    main()
