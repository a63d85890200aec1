# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A grid of distillations: its recipe, its cells, and which of them are finished."""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...extensions import KEY
from ...names import did_you_mean, stands_twice
from ...objectives import own_sources
from ...trl_names import hint_for
from ..declared import read_declared
from ..runs.cell import EVALUATION, Cell


KEYS = (
    "base",
    "overrides",
    "grid",
    "select",
    "hypotheses",
    "evaluation",
    "tune_learning_rate",
    "keep_models",
    "workers",
    "output_dir",
    "results_dir",  # its name before
    KEY,
)
MODES = ("both", "teacher")
# What `tau`, `mode` and `rule` stand for, so that neither the grid nor a leftover of the base can say otherwise
TEMPERATURES = ("kd_temperature", "student_kd_temperature", "teacher_kd_temperature")
RULES = ("kd_temperature_rule", "kd_temperature_rule_kwargs")
# By these the conditions of a sweep with `select` are chosen
SELECT_BY = ("rouge_l", "rouge_l_greedy", "kl_tau1", "bits_per_byte")


def check_keys(
    found: Any, known: Iterable[str], where: str, hint: Callable[[str, Iterable[str]], str] = did_you_mean
) -> None:
    """Stop at a key that nobody would read, naming the closest one that somebody would, or what `hint` says of it."""
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected a mapping, got {found!r}.")
    for key in found:
        if key not in known:
            raise UsageError(f"Unknown key {key!r} in {where}{hint(str(key), known)}.")


def read_yaml(path: str | Path) -> Any:
    import yaml

    try:
        twice = stands_twice(path)
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if twice:
        raise UsageError(f"{path} has {twice}: leave one of them out.")
    return found


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    Read a sweep's recipe, strictly.

    Args:
        path (`str` or `pathlib.Path`):
            YAML file with the keys `KEYS`. `base` is a mapping of options of `trl-tempkd distill`, or the path of a
            recipe of these, which `overrides` changes.

    Returns:
        `dict[str, Any]`: The recipe with `base` as a mapping, the overrides in it, and every key present.
    """
    recipe = read_yaml(path)
    check_keys(recipe, KEYS, str(path))
    for key in ("base", "grid"):
        if not recipe.get(key):
            raise UsageError(f"{path} has no `{key}`.")
    base = read_base(recipe, path)
    evaluation = recipe.get("evaluation") or {}
    check_keys(evaluation, EVALUATION, f"`evaluation` in {path}")
    whole(evaluation, "rows", EVALUATION["rows"], path, least=2)
    workers = whole(recipe, "workers", 1, path)
    others = evaluation.get("datasets", {})
    if not isinstance(others, dict) or not all(isinstance(name, str) for name in others.values()):
        raise UsageError(f"`datasets` in {path}: expected a mapping of names to data sets, got {others!r}.")
    rates = recipe.get("tune_learning_rate") or []
    try:
        rates = [float(rate) for rate in rates]
    except (TypeError, ValueError):
        raise UsageError(f"`tune_learning_rate` in {path}: expected a list of numbers, got {rates!r}.") from None
    found = {
        "base": base,
        "grid": recipe["grid"],
        "select": recipe.get("select"),
        "hypotheses": read_declared(recipe.get("hypotheses") or [], str(path)),
        "evaluation": {**EVALUATION, **evaluation},
        "tune_learning_rate": rates,
        "keep_models": bool(recipe.get("keep_models", True)),
        "workers": workers,
        "results_dir": output_dir_of(recipe, path),
    }
    for grid in grids_of(found):
        _check_grid(grid, f"`grid` in {path}")
    if found["select"] is not None:
        _check_select(found, f"`select` in {path}")
    return found


def output_dir_of(recipe: dict[str, Any], path: str | Path) -> str:
    """Where results go: `output_dir`, which was `results_dir` before."""
    new, old = recipe.get("output_dir"), recipe.get("results_dir")
    if new and old and new != old:
        raise UsageError(f"{path} has `output_dir` {new!r} and `results_dir` {old!r}, its old name: leave one out.")
    return str(new or old or f"results/{Path(path).stem}")


def grids_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    grid = recipe["grid"]
    return grid if isinstance(grid, list) else [grid]


def read_base(recipe: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The options of the `trl-tempkd distill` that a recipe starts from, its `overrides` in them."""
    base = recipe["base"]
    if isinstance(base, str):
        base = read_yaml(base)
    if not isinstance(base, dict):
        raise UsageError(f"`base` in {path}: expected a mapping or the path of one, got {recipe['base']!r}.")
    return {name: value for name, value in {**base, **(recipe.get("overrides") or {})}.items() if name != KEY}


def whole(recipe: dict[str, Any], key: str, default: int, path: str | Path, least: int = 1) -> int:
    """The whole number of a key."""
    value = recipe.get(key, default)
    if not isinstance(value, int) or value < least:
        raise UsageError(f"`{key}` in {path}: expected a whole number from {least} on, got {value!r}.")
    return value


def check_factors(grid: Any, where: str) -> None:
    """Stop at what is no option that runs of one recipe may differ in."""
    from ...config import KDConfig

    options = {field.name for field in fields(KDConfig)} - {*TEMPERATURES, *RULES, "data_seed", "output_dir"}
    options |= {"model_name_or_path", "dataset_train_split"}
    for name in grid if isinstance(grid, dict) else ():
        if name in TEMPERATURES:
            raise UsageError(f"{name!r} in {where}: say `tau`, and `mode: [both, teacher]` for whom it softens.")
        if name in RULES:
            raise UsageError(f"{name!r} in {where}: say `rule: [null, name, {{name: {{parameter: value}}}}]`.")
    check_keys(grid, {*options, "tau", "mode", "rule"}, where, hint_for)


def _check_grid(grid: Any, where: str) -> None:
    check_factors(grid, where)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{name!r} in {where}: expected a list of values, got {values!r}.")
    for mode in grid.get("mode", []):
        if mode not in MODES:
            raise UsageError(f"'mode' in {where}: expected {' or '.join(MODES)}, got {mode!r}.")
    for tau in grid.get("tau", []):
        if isinstance(tau, bool) or not isinstance(tau, int | float) or tau <= 0:
            raise UsageError(f"'tau' in {where}: expected positive numbers, got {tau!r}.")


def _check_select(recipe: dict[str, Any], where: str) -> None:
    select = recipe["select"]
    check_keys(select, ("seeds", "score"), where)
    seeds, score = select.get("seeds"), select.get("score")
    for grid in grids_of(recipe):
        if not isinstance(seeds, list) or not seeds or not set(seeds) < set(grid.get("seed", [])):
            raise UsageError(f"`seeds` in {where}: expected some, not all, of `seed` of every grid, got {seeds!r}.")
    if score not in SELECT_BY:
        raise UsageError(f"`score` in {where}: expected one of {', '.join(SELECT_BY)}, got {score!r}.")
    if score.endswith("_greedy") and not recipe["evaluation"]["greedy"]:
        raise UsageError(f"`score` in {where}: {score} needs `greedy: true` in `evaluation`.")


def cells(recipe: dict[str, Any]) -> list[Cell]:
    """
    The cells of a recipe that [`read_recipe`] has read: every combination of the values of its grid, or of each of its
    grids. All have the same factors: what another grid varies is as in the base.
    """
    grids = grids_of(recipe)
    varied = list(dict.fromkeys(name for grid in grids for name in grid))
    found: dict[str, Cell] = {}
    for grid in grids:
        names: set[str] = set()
        for cell in _product(recipe, grid, varied):
            if cell.name in names:
                raise UsageError(f"Two cells have the name {cell.name}: a value stands twice in the grid.")
            if found.setdefault(cell.name, cell) != cell:
                raise UsageError(f"Two cells of two grids have the name {cell.name} and other settings.")
            names.add(cell.name)
    return list(found.values())


def _product(recipe: dict[str, Any], grid: dict[str, Any], varied: list[str]) -> Iterable[Cell]:
    base = recipe["base"]
    defaults = factors_of(base)
    if "divergence" in varied:
        defaults["divergence"] = _with_parameters(base, "divergence", "divergence_kwargs") or "forward_kl"
    if "rule" in varied:
        defaults["rule"] = _with_parameters(base, *RULES)
    values = {name: grid.get(name, [default]) for name, default in defaults.items()}
    others = [name for name in varied if name not in defaults]
    values |= {name: grid[name] if name in grid else [_default(base, name)] for name in others}
    values["seed"] = values.pop("seed")  # last: the repetitions
    for combination in itertools.product(*values.values()):
        factors = dict(zip(values, combination, strict=True))
        if factors["tau"] == 1 and factors["mode"] == "teacher" and "both" in values["mode"]:
            continue  # the same run as with both
        named = {"divergence": "", "tau": "tau", "mode": "", "rule": ""}
        parts = (f"{named.get(key, key)}{_word(v)}" for key, v in factors.items() if (key, v) != ("rule", None))
        options = options_of(base, factors, varied)
        evaluation, rates = recipe["evaluation"], recipe["tune_learning_rate"]
        yield Cell("-".join(parts), factors, options, evaluation, rates, own=own_sources(options))


def factors_of(base: dict[str, Any]) -> dict[str, Any]:
    """Where a base stands in the factors that every run has."""
    return {
        "divergence": base.get("divergence", "forward_kl"),
        "tau": base.get("kd_temperature", 2.0),
        "mode": "both",
        "seed": base.get("seed", 42),
    }


def _with_parameters(base: dict[str, Any], name: str, kwargs: str) -> Any:
    """What the base says of a divergence or a rule, as a grid says it."""
    return {base[name]: base[kwargs]} if base.get(kwargs) else base.get(name)


def _default(base: dict[str, Any], name: str) -> Any:
    """What an option is that a grid leaves out and another one varies."""
    from ...config import KDConfig

    if name in base:
        return base[name]
    found = {field.name: field for field in fields(KDConfig)}.get(name)
    if found is None or found.default is MISSING:
        raise UsageError(f"A grid varies {name} and another one doesn't: give it in every grid, or in the base.")
    return found.default


def _word(value: Any) -> str:
    """A value as a part of a file name."""
    if isinstance(value, dict):
        return "_".join(f"{key}{_word(inner)}" for key, inner in value.items())
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+]+", "_", text)


def options_of(base: dict[str, Any], factors: dict[str, Any], varied: Iterable[str]) -> dict[str, Any]:
    """The options of the `trl-tempkd distill` at a place of the grid, which varies these factors."""
    options = {key: value for key, value in base.items() if key != "output_dir"}
    rest = dict(factors)
    divergence, tau, mode, seed = (rest.pop(key) for key in ("divergence", "tau", "mode", "seed"))
    if "divergence" in varied:
        options |= _named("divergence", divergence, ("divergence", "divergence_kwargs"), options)
    if "tau" in varied or "mode" in varied:
        options = {key: value for key, value in options.items() if key not in TEMPERATURES}
        options["kd_temperature"] = tau
        if mode == "teacher":
            options["student_kd_temperature"] = 1.0
            if rest.get("rule") is None:  # a rule decides the side that has no temperature of its own
                options["teacher_kd_temperature"] = tau
    if "rule" in varied:
        options |= _named("rule", rest.pop("rule"), RULES, options)
    return {**options, "seed": seed, "data_seed": seed, **rest}


def _named(what: str, value: Any, keys: tuple[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """The options of a name, which may have parameters: `{jsd: {beta: 0.1}}`. Those of the base are taken out."""
    for key in keys:
        options.pop(key, None)
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {keys[0]: value}
    if len(value) != 1:
        raise UsageError(f"A {what} with parameters is {{name: {{parameter: value}}}}, got {value}.")
    [(name, kwargs)] = value.items()
    return {keys[1]: kwargs, keys[0]: name}
