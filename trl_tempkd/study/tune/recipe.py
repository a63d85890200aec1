# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The recipe of `trl-tempkd tune`, read strictly."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import UsageError
from ...extensions import KEY
from ...objectives import own_sources
from ..sweep.grid import EVALUATION, check_keys, output_dir_of, read_base, read_yaml, whole
from .space import Space, read_space


KEYS = (
    "base",
    "overrides",
    "space",
    "score",
    "rows",
    "sampling",
    "pruning",
    "trials",
    "seed",
    "workers",
    "output_dir",
    "results_dir",  # its name before
    KEY,
)
SCORES: dict[str, Literal["minimize", "maximize"]] = {"eval_kl_tau1": "minimize", "rouge_l": "maximize"}
# How the completions of `rouge_l` are sampled: a part of a sweep's `evaluation`
SAMPLING = {
    name: EVALUATION[name] for name in ("seeds", "max_new_tokens", "temperature", "top_p", "batch_size", "dtype")
}
# Trials that do worse than others did at the same step are stopped: see Optuna's pruners of these names.
PRUNING: dict[str, dict[str, Any]] = {
    "median": {"eval_steps": None, "startup_trials": 5, "warmup_steps": 0},
    "hyperband": {"eval_steps": None, "reduction_factor": 3},
}


@dataclass(frozen=True)
class Tuning:
    """
    A recipe that has been read.

    Args:
        base (`dict[str, Any]`):
            Options of `trl-tempkd distill`, the overrides in them.
        space ([`Space`]):
            What is chosen among.
        said (`dict[str, Any]`):
            The space as the recipe says it.
        score (`str`):
            One of `SCORES`.
        rows (`int`):
            Rows of the training split that are held out for the score.
        sampling (`dict[str, Any]`):
            How completions are sampled for `rouge_l`, else empty.
        pruning (`dict[str, Any]`):
            `method` and its parameters, or empty.
        trials (`int`):
            How many there are to be in all.
        seed (`int`):
            Of what is drawn from the space. Students and batches have the seed of the base.
        workers (`int`):
            Trials at a time.
        results_dir (`str`):
            Where results go.
        path (`str`):
            The recipe's file.
    """

    base: dict[str, Any]
    space: Space
    said: dict[str, Any]
    score: str
    rows: int
    sampling: dict[str, Any]
    pruning: dict[str, Any]
    trials: int
    seed: int
    workers: int
    results_dir: str
    path: str

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return SCORES[self.score]

    @property
    def settings(self) -> dict[str, Any]:
        """All that a trial's score depends on, as JSON gives it back."""
        found = {name: asdict(self)[name] for name in ("base", "score", "rows", "sampling", "pruning", "seed")}
        own = own_sources(self.base)
        for name in self.space.divergences:
            own |= own_sources({"divergence": name})
        return json.loads(json.dumps({**found, "space": self.said, **({"own": own} if own else {})}))


def read_tuning(path: str | Path) -> Tuning:
    """
    Read the recipe of a study.

    Args:
        path (`str` or `pathlib.Path`):
            YAML file with the keys `KEYS`.
    """
    recipe = read_yaml(path)
    check_keys(recipe, KEYS, str(path))
    for key in ("base", "space"):
        if not recipe.get(key):
            raise UsageError(f"{path} has no `{key}`.")
    base = read_base(recipe, path)
    score = recipe.get("score", "eval_kl_tau1")
    if score == "eval_loss":
        raise UsageError(
            f"`score` in {path}: eval_loss is the objective itself, with the trial's own divergence and tau, so it "
            "cannot be compared between trials. Take eval_kl_tau1, or rouge_l."
        )
    if score not in SCORES:
        raise UsageError(f"`score` in {path}: expected {' or '.join(SCORES)}, got {score!r}.")
    if recipe.get("sampling") and score != "rouge_l":
        raise UsageError(f"`sampling` in {path} is for the score rouge_l; {score} needs no completions. Leave it out.")
    check_keys(recipe.get("sampling") or {}, SAMPLING, f"`sampling` in {path}")
    return Tuning(
        base=base,
        space=read_space(recipe["space"], f"`space` in {path}"),
        said=recipe["space"],
        score=score,
        rows=whole(recipe, "rows", 128, path, least=2),
        sampling={**SAMPLING, **(recipe.get("sampling") or {})} if score == "rouge_l" else {},
        pruning=_pruning(recipe.get("pruning") or {}, score, base, path),
        trials=whole(recipe, "trials", 20, path),
        seed=whole(recipe, "seed", 0, path, least=0),
        workers=whole(recipe, "workers", 1, path),
        results_dir=output_dir_of(recipe, path),
        path=str(path),
    )


def _pruning(pruning: Any, score: str, base: dict[str, Any], path: str | Path) -> dict[str, Any]:
    where = f"`pruning` in {path}"
    if not pruning:
        return {}
    method = pruning.get("method", "median") if isinstance(pruning, dict) else pruning
    if method not in PRUNING:
        raise UsageError(f"{where}: expected {{method: median or hyperband, eval_steps: N}}, got {pruning!r}.")
    if score != "eval_kl_tau1":
        raise UsageError(
            f"{where} needs a score that is measured in training: eval_kl_tau1, not {score}. Leave it out."
        )
    check_keys(pruning, {"method", *PRUNING[method]}, where)
    found = {"method": method, **PRUNING[method], **pruning}
    steps = base.get("max_steps", -1)
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"{where} compares trials at their steps: say `max_steps` in `base` or `overrides`.")
    for key in PRUNING[method]:
        least = {"warmup_steps": 0, "startup_trials": 1, "reduction_factor": 2}.get(key, 1)
        if not isinstance(found[key], int) or found[key] < least:
            raise UsageError(f"`{key}` of {where}: expected a whole number from {least} on, got {found[key]!r}.")
    if found["eval_steps"] >= steps:
        raise UsageError(
            f"`eval_steps` of {where}: expected fewer than the {steps} steps of a trial, got {found['eval_steps']}."
        )
    return found
