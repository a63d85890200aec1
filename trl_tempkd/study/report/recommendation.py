# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a reader of the page came for: which objective and temperature to use, how sure that is, and the command."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..scores import digits, direction, label
from .results import Results
from .scores import Condition, best_of, deciding, table_of


CLEAR = 0.05  # p after Holm's correction below which a condition is behind the best


@dataclass(frozen=True)
class Recommendation:
    """
    The condition to use.

    Args:
        best ([`Condition`]):
            The one with the best mean.
        score (`str`):
            The score that decides.
        level (`list[Condition]`):
            Those that can't be told from it, best first.
        behind (`int`):
            How many are clearly worse, after Holm's correction over all.
        chosen_again (`int`):
            With how many of the seeds left out, one at a time, the same one is the best.
        command (`str`):
            How to train it.
    """

    best: Condition
    score: str
    level: list[Condition]
    behind: int
    chosen_again: int
    command: str

    @property
    def n_seeds(self) -> int:
        return len(self.best.cells)

    @property
    def sure(self) -> str:
        """How sure it is, in a sentence."""
        if self.n_seeds < 3:
            seeds = "one seed" if self.n_seeds == 1 else f"{self.n_seeds} seeds"
            return (
                f"With {seeds} this is a guess: runs that differ in nothing but their seed may differ by as much. "
                "Three seeds say more, five are better."
            )
        again = f"It stays the best without {self.chosen_again} of its {self.n_seeds} seeds, one left out at a time."
        if not self.level:
            return f"All {self.behind} others are clearly behind it. {again}"
        return (
            f"{self.behind} of the {self.behind + len(self.level)} others are clearly behind it; the rest can't be "
            f"told from it on these seeds and items. {again}"
        )


def recommend(results: Results, found: Sequence[Condition]) -> Recommendation | None:
    """The condition to use, `None` where no score is common to all."""
    score = deciding(found)
    best = best_of(found, score) if score else None
    if score is None or best is None:
        return None
    others = [each for each in found if each is not best]
    behind = [each for each in others if (each.to_best.get(score, {}).get("p_holm") or 1.0) <= CLEAR]
    level = sorted(
        (each for each in others if each not in behind),
        key=lambda each: -direction(score) * each.means[score].value,
    )
    return Recommendation(
        best, score, level, len(behind), _chosen_again(found, best, score), command_of(results, best)
    )


def _chosen_again(found: Sequence[Condition], best: Condition, score: str) -> int:
    """How often the best is the best without one of its seeds, in whatever seeds the others have beside that one."""
    count = 0
    for left_out in best.cells:
        means = []
        for condition in found:
            table = table_of([cell for seed, cell in condition.cells.items() if seed != left_out], score)
            means.append(-np.inf if table is None else direction(score) * float(table.mean()))
        count += found[int(np.argmax(means))] is best
    return count


def command_of(results: Results, condition: Condition) -> str:
    """`trl-tempkd distill` with the options of a condition, its seed aside."""
    cell = condition.cells[min(condition.cells, key=str)]
    options = {name: value for name, value in cell["settings"]["options"].items() if name not in ("seed", "data_seed")}
    if (results.folder / cell["name"] / "recipe.yaml").is_file():
        recipe = shlex.quote(str(results.folder / cell["name"] / "recipe.yaml"))
        return f"trl-tempkd distill --config {recipe} --output_dir outputs/{results.title}"
    words = [part for name, value in options.items() for part in (f"--{name}", *_words(value))]
    return shlex.join(["trl-tempkd", "distill", *words, "--output_dir", f"outputs/{results.title}"])


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(each) for each in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def said(recommendation: Recommendation) -> str:
    """The recommendation in a sentence, with its number."""
    mean = recommendation.best.means[recommendation.score]
    places = digits(recommendation.score)
    interval = "" if mean.low is None else f" [{mean.low:.{places}f}, {mean.high:.{places}f}]"
    return (
        f"{recommendation.best.label} has the best {label(recommendation.score)} of "
        f"{1 + len(recommendation.level) + recommendation.behind} conditions: {mean.value:.{places}f}{interval}."
    )
