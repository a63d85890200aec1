# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A results folder as `trl-tempkd sweep` leaves it, with made-up numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from trl_tempkd.study.diversity import GROUPS
from trl_tempkd.study.runs.cell import EVALUATION
from trl_tempkd.study.sweep import cells, selection


GRID = {
    "divergence": ["forward_kl", "reverse_kl", {"jsd": {"beta": 0.1}}],
    "tau": [1.0, 2.0, 4.0],
    "mode": ["both", "teacher"],
    "seed": [1, 2],
}
HOSTILE = '</script><img src=x onerror=alert(1)> & "quoted" {{ 7 * 7 }}'
FKL, RKL = {"divergence": "forward_kl"}, {"divergence": "reverse_kl"}
HYPOTHESES = [
    {"name": "H1", "says": "A higher tau helps forward KL.", "a": FKL, "change": {"tau": [1, 4]}},
    {"name": "H2", "says": "At tau 1 reverse KL is far ahead.", "a": {**RKL, "tau": 1}, "b": {**FKL, "tau": 4}},
    {"name": "H3", "says": "Both reach the same.", "a": {**RKL, "tau": 1}, "b": FKL, "expect": "same", "margin": 0.01},
    {"name": "H4", "says": f"TVD helps. {HOSTILE}", "a": {"divergence": "tvd", "tau": 1}, "b": {**FKL, "tau": 1}},
    {"name": "H5", "says": "Forward KL lifts more.", "a": {**FKL, "tau": 2}, "b": {**RKL, "tau": 2}}
    | {"score": "lifted_outside_top_10", "over": "items"},
]
BUCKETS = ("1", "2-10", "11-100", "101-512")


def write_sweep(
    folder: Path,
    grid: dict[str, list[Any]] | None = None,
    rows: int = 12,
    baseline: bool = True,
    live: bool = True,
    steps: int = 5,
    hypotheses: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Write the folder. Returns the results of its cells."""
    base = {"model_name_or_path": "tiny:student", "teacher_model_name_or_path": "tiny:teacher", "max_steps": steps}
    recipe = {
        "base": {**base, "dataset_name": "tiny"},
        "grid": grid or GRID,
        "evaluation": {**EVALUATION, "rows": rows, "seeds": [10, 20]},
        "tune_learning_rate": [],
    }
    found = []
    for number, cell in enumerate(cells(recipe)):
        rng = np.random.default_rng(number)
        tau = float(cell.factors["tau"])
        result = {
            "name": cell.name,
            "settings": cell.settings,
            "fingerprints": {"train": "0123456789abcdef", "test": "fedcba9876543210"},
            "hashes": {"initial_weights": "w", "batch_order": f"b{cell.factors['seed']}", "items": "i"},
            "learning_rate": 1e-3,
            "tuning": None,
            "scores": {
                "rouge_l": rng.normal(10 + tau, 2, (2, rows)).tolist(),
                "kl_tau1": rng.gamma(4, 0.2 / tau, (1, rows)).tolist(),
            },
            "means": {"tokens": 99, "kl_tau1": 0.8 / tau, "perplexity": 60 + tau},
            "completions": [[f"{cell.name} says {i}" for i in range(rows)]] * 2,
            "log_history": [
                {"loss": 2 / step, "kl_tau1": 1 / step, "grad_norm": tau / step, "step": step}
                for step in range(1, steps + 1)
            ],
            "curve": [curve_point(t, tau, rng) for t in (1.0, 0.8, 0.6)],
            "seconds": {"training": 2.0, "evaluation": 1.0},
            "versions": {"trl-tempkd": "0.1.0", "torch": "2.0"},
            "machine": {"cpu": "a processor", "threads": 1},
            **({"baseline": "k"} if baseline else {}),
        }
        _write(folder / f"{cell.name}.json", json.dumps(result))
        _write(folder / cell.name / "cell.json", json.dumps(cell.settings))
        _write(folder / cell.name / "recipe.yaml", "max_steps: 5\n")
        if live:
            _write_live(folder / cell.name / "diagnostics.csv", cell.name)
        found.append(result)
    if baseline:
        _write(folder / "summary" / "baselines" / "k.json", json.dumps(baseline_of(rows)))
    if hypotheses:
        _write(folder / "summary" / "hypotheses.json", json.dumps({"hypotheses": hypotheses}))
    return found


def curve_point(temperature: float, tau: float, rng: np.random.Generator) -> dict[str, Any]:
    """Of sampling at a temperature: colder is more alike, longer and better."""
    parts = rng.normal(0, 0.1, GROUPS + 1)
    middle = {"rouge_l": 12 + tau - 2 * temperature, "self_bleu": 40 - 20 * temperature, "length": 30 - temperature}
    return {"temperature": temperature, **{name: (value + parts).tolist() for name, value in middle.items()}}


FRONTIER = [
    {"divergence": ["forward_kl", "tvd"], "tau": [1.0, 2.0, 4.0], "seed": [0, 1, 2, 3]},
    {"divergence": ["reverse_kl"], "tau": [1.0, 2.0], "lmbda": [1.0], "seed": [0, 1, 2, 3]},
    {"divergence": ["forward_kl", "tvd"], "tau": [2.0], "rule": ["zscore", "max_logit"], "seed": [0, 1, 2, 3]},
]


def write_frontier(
    folder: Path,
    grid: Any = FRONTIER,
    select: dict[str, Any] | None = None,
    rows: int = 12,
    base: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """
    Write the cells of the grid and, with `select`, what it chooses. Forward KL is best at tau 2 and the others at 1;
    `zscore` is better than `max_logit`. The first half of the items is 20 points above the second.
    """
    base = base or {"model_name_or_path": "tiny:student", "teacher_model_name_or_path": "tiny:teacher"}
    recipe = {
        "base": {"dataset_name": "tiny", **base},
        "grid": grid,
        "evaluation": {**EVALUATION, "rows": rows},
        "tune_learning_rate": [],
    }
    every, found = cells(recipe), {}
    for number, cell in enumerate(every):
        rng = np.random.default_rng(number)
        best = {"forward_kl": 2.0}.get(cell.factors["divergence"], 1.0)
        score = 10 - 2 * abs(cell.factors["tau"] - best) + {"zscore": 3.0}.get(cell.factors.get("rule"), 0.0)
        items = rng.normal(score, 0.5, rows) + np.where(np.arange(rows) < rows // 2, 20, 0)
        found[cell.name] = {
            "name": cell.name,
            "settings": cell.settings,
            "fingerprints": {"train": "0123456789abcdef", "test": "fedcba9876543210"},
            "hashes": {"initial_weights": "w", "batch_order": f"b{cell.factors['seed']}", "items": "i"},
            "learning_rate": 1e-3,
            "tuning": None,
            "scores": {"rouge_l": [items.tolist()], "kl_tau1": [(1 / (10 + items)).tolist()]},
            "means": {},
            "completions": [[f"{cell.name} says {i}" for i in range(rows)]],
            "log_history": [
                {"loss": 2.0, "step": 5},
                {"train_runtime": 0.5 * (1 + (cell.factors["divergence"] == "tvd")), "step": 5},
            ],
            "seconds": {"training": 2.0, "evaluation": 1.0},
            "versions": {"trl-tempkd": "0.1.0"},
            "machine": {"cpu": "a processor", "threads": 1},
        }
    if select is not None:
        first = selection.first_stage(every, select)
        chosen = selection.choose(first, found, select)
        selection.write(folder, chosen)
        every = [*first, *selection.second_stage(every, select, chosen)]
    for cell in every:
        _write(folder / f"{cell.name}.json", json.dumps(found[cell.name]))
        _write(folder / cell.name / "cell.json", json.dumps(cell.settings))
    return [found[cell.name] for cell in every]


def baseline_of(rows: int) -> dict[str, Any]:
    def side(name: str, score: float) -> dict[str, Any]:
        tokens = {"top_1": 0.6, "teacher_entropy": 2.5, "tokens": 500}
        return {
            "name": name,
            "train": tokens,
            "held_out": tokens,
            "scores": {"rouge_l": [[score] * rows] * 2},
            "means": {"perplexity": 70.0},
            "completions": [[f"{name} says {i}" for i in range(rows)]] * 2,
        }

    return {
        "teacher": side("tiny:teacher", 15.0),
        "start": side("tiny:student", 8.0),
        "rows": [{"prompt": f"Prompt {i} {HOSTILE}", "references": [f"Reference {i}"]} for i in range(rows)],
        "diagnostics": list(diagnostics()),
        "lifted": [
            {"objective": objective, "mode": mode, "tau": tau, "values": [size * tau + i for i in range(8)]}
            for objective, size in (("forward_kl", 9.0), ("reverse_kl", 1.0))
            for mode in ("both", "teacher")
            for tau in (1.0, 2.0, 4.0)
        ],
    }


def diagnostics():
    def row(objective: str, mode: str, tau: float, measure: str, bucket: str, value: float) -> dict[str, Any]:
        names = ("objective", "mode", "tau", "measure", "bucket", "value", "tokens")
        return dict(zip(names, (objective, mode, tau, measure, bucket, value, 500), strict=True))

    for mode in ("both", "teacher"):
        for tau in (1.0, 2.0, 4.0):
            for side in ("teacher", "student"):
                for number, bucket in enumerate(BUCKETS):
                    yield row("-", mode, tau, f"{side}_mass", bucket, [0.4, 0.3, 0.2, 0.1][number])
            for objective, other in (("forward_kl", "reverse_kl"), ("reverse_kl", "forward_kl")):
                for top, value in (("top_1", 0.7), ("top_10", 0.5), ("top_100", 0.2)):
                    yield row(objective, mode, tau, "mass_outside", top, value + 0.05 * tau)
                    yield row(objective, mode, tau, "lifted_ratio", top, tau ** (3 if other == "reverse_kl" else 1))
                yield row(objective, mode, tau, "cosine", "tau_1", 1 / tau)
                yield row(objective, mode, tau, "cosine", other, 0.5 + 0.1 * tau)
                yield row(objective, mode, tau, "norm_ratio", "tau2", 1.1)
                yield row(objective, mode, tau, "norm_ratio", "none", 1.1 / tau**2)
                yield row(objective, mode, tau, "effective_tokens", "-", 20 * tau)


def _write_live(path: Path, name: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "objective", "mode", "tau", "measure", "bucket", "value", "tokens"])
        for step in (0, 5):
            for part, value in (("head", 0.4), ("tail", 0.7)):
                for measure in ("error", "forward_kl", "reverse_kl"):
                    writer.writerow([step, "-", "-", 1.0, measure, part, value / (1 + step), 500])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
