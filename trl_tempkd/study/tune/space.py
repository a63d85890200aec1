# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is chosen among: lists and ranges over the options of a distillation, and how settings are drawn from them."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from ...divergences import DIVERGENCES
from ...errors import UsageError
from ...names import did_you_mean
from ...objectives import OBJECTIVES, check_objective
from ...temperature_rules import FROM_TAU, check_temperature_rule
from ..sweep.grid import MODES, check_factors, check_keys, factors_of


@dataclass(frozen=True)
class Choice:
    """One of several values. A single one is fixed."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> dict[Any, Any]:
        """The values by what stands for each in the store, which takes no lists or mappings."""
        return {value if isinstance(value, bool | int | float | str) else json.dumps(value): value for value in self}

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self)


@dataclass(frozen=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + ", log" * self.log + ", whole numbers" * self.whole


# Asked for the value of a parameter by its name: `tau`, or `jsd.beta` for a parameter of a divergence
Suggest = Callable[[str, Choice | Range], Any]


@dataclass(frozen=True)
class Space:
    """
    What is chosen among.

    Args:
        divergences (`dict[str, dict[str, Choice | Range]]`):
            The parameters of each divergence, by its name. Empty if the divergence isn't chosen.
        others (`dict[str, Choice | Range]`):
            `tau`, `mode`, and fields of `KDConfig`.
    """

    divergences: dict[str, dict[str, Choice | Range]]
    others: dict[str, Choice | Range]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Each parameter and its values, in words."""
        found = [("divergence", ", ".join(self.divergences))] if self.divergences else []
        for name, parameters in self.divergences.items():
            found += [(f"{name}.{key}", f"{values} (of {name} alone)") for key, values in parameters.items()]
        return found + [(name, str(values)) for name, values in self.others.items()]

    def draw(self, suggest: Suggest, base: dict[str, Any]) -> dict[str, Any]:
        """
        Settings as a sweep's cell has them. What would have no effect is not asked for: parameters of another
        divergence, tau where a rule finds its own, the mode at tau 1, a schedule where both sides are fixed, and its
        end where there is no schedule.
        """

        def ask(name: str, values: Choice | Range) -> Any:
            return (
                values.values[0] if isinstance(values, Choice) and len(values.values) == 1 else suggest(name, values)
            )

        factors = factors_of(base)
        if self.divergences:
            name = ask("divergence", Choice(tuple(self.divergences)))
            kwargs = {key: ask(f"{name}.{key}", values) for key, values in self.divergences[name].items()}
            factors["divergence"] = {name: kwargs} if kwargs else name
        rest = dict(self.others)
        rule = None
        if "rule" in rest:
            rule = factors["rule"] = ask("rule", rest.pop("rule"))
        from_tau = rule is None or _name_of(rule) in FROM_TAU
        taus = rest.pop("tau", None)
        if taus is not None and from_tau:
            factors["tau"] = ask("tau", taus)
        modes = rest.pop("mode", None)
        if modes is not None and (factors["tau"] != 1 or rule is not None):
            factors["mode"] = ask("mode", modes)
        schedules = rest.pop("kd_temperature_schedule", None)
        schedule = base.get("kd_temperature_schedule", "constant")
        if schedules is not None and factors["mode"] == "both" and from_tau:
            schedule = factors["kd_temperature_schedule"] = ask("kd_temperature_schedule", schedules)
        if schedule == "constant":
            rest.pop("kd_temperature_final", None)
        return {**factors, **{name: ask(name, values) for name, values in rest.items()}}

    def corners(self, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Settings in which every value of a list and both ends of a range stand once, the rest at their first."""
        waiting: list[dict[str, Any]] = [{}]
        seen: set[str] = set()
        while waiting:
            forced = waiting.pop(0)

            def first(name: str, values: Choice | Range, forced: dict[str, Any] = forced) -> Any:
                if name not in seen:
                    seen.add(name)
                    waiting.extend({**forced, name: value} for value in list(values)[1:])
                return forced[name] if name in forced else next(iter(values))

            yield self.draw(first, base)


def read_space(space: Any, where: str) -> Space:
    """
    Read the `space` of a recipe, strictly.

    Raises:
        `ValueError`: If a name is unknown, or what stands there is neither a list nor a range.
    """
    if isinstance(space, dict) and "seed" in space:
        raise UsageError(
            f"'seed' in {where}: choosing among seeds finds the luckiest, which is no setting. Say `seed` in `base`."
        )
    check_factors(space, where)
    found = {
        name: _read(values, f"{name!r} in {where}", _takes_whole(name))
        for name, values in space.items()
        if name != "divergence"
    }
    for mode in found.get("mode", ()):
        if mode not in MODES:
            raise UsageError(f"'mode' in {where}: expected {' or '.join(MODES)}, got {mode!r}.")
    for rule in found.get("rule", ()):
        try:
            check_temperature_rule(_name_of(rule), next(iter(rule.values())) if isinstance(rule, dict) else None)
        except UsageError as error:
            raise UsageError(f"'rule' in {where}: {error}") from error
    for tau in found.get("tau", ()):
        if isinstance(tau, bool) or not isinstance(tau, int | float) or tau <= 0:
            raise UsageError(f"'tau' in {where}: expected positive numbers, got {tau!r}.")
    return Space(_divergences(space["divergence"], where) if "divergence" in space else {}, found)


def _name_of(rule: Any) -> Any:
    """The name of a rule, which may have parameters: `{target_entropy: {share: 0.4}}`."""
    return next(iter(rule)) if isinstance(rule, dict) else rule


def _divergences(found: Any, where: str) -> dict[str, dict[str, Choice | Range]]:
    """`[forward_kl, {jsd: {beta: {low: 0.1, high: 0.9}}}]` -> the parameters of each by its name."""
    names = {*DIVERGENCES, *OBJECTIVES}
    if not isinstance(found, list) or not found:
        raise UsageError(f"'divergence' in {where}: expected a list of divergences, got {found!r}.")
    read: dict[str, dict[str, Choice | Range]] = {}
    for entry in found:
        if isinstance(entry, dict) and len(entry) != 1:
            raise UsageError(f"'divergence' in {where}: expected {{name: {{parameter: values}}}}, got {entry}.")
        [(name, parameters)] = entry.items() if isinstance(entry, dict) else [(entry, {})]
        if name not in names:
            raise UsageError(f"Unknown divergence {name!r} in {where}{did_you_mean(str(name), names)}.")
        if name in read:
            raise UsageError(f"'divergence' in {where}: {name} stands there twice; give its parameter a list.")
        if not isinstance(parameters, dict):
            raise UsageError(f"{name!r} in {where}: expected a mapping of its parameters, got {parameters!r}.")
        read[name] = {
            key: _read(values, f"'{name}.{key}' in {where}", False)
            if isinstance(values, list | dict)
            else Choice((values,))
            for key, values in parameters.items()
        }
        for key, values in read[name].items():
            for value in values:
                check_objective(name, {key: value})
    return read


def _takes_whole(name: str) -> bool:
    """Whether a field of `KDConfig` is a whole number."""
    from ...config import KDConfig

    if name not in {field.name for field in fields(KDConfig)}:
        return False
    hint = get_type_hints(KDConfig)[name]
    return int in {hint, *get_args(hint)} and float not in {hint, *get_args(hint)}


def _read(values: Any, where: str, whole: bool) -> Choice | Range:
    if isinstance(values, dict):
        check_keys(values, ("low", "high", "log"), where)
        low, high = (_number(values.get(key)) for key in ("low", "high"))
        log = values.get("log", False)
        if low is None or high is None or not low < high or not isinstance(log, bool):
            raise UsageError(
                f"{where}: expected {{low: number, high: larger number, log: true or false}}, got {values}."
            )
        if log and low <= 0:
            raise UsageError(f"{where}: with `log: true` the range starts above 0, got {low:g}.")
        if whole and (low % 1 or high % 1):
            raise UsageError(f"{where}: expected whole numbers, got {values}.")
        return Range(int(low) if whole else low, int(high) if whole else high, log, whole)
    if not isinstance(values, list) or not values:
        raise UsageError(f"{where}: expected a list of values or a range {{low: , high: }}, got {values!r}.")
    return Choice(tuple(values))


def _number(value: Any) -> float | None:
    """A finite number. YAML takes `1e-3`, without a point, for a word."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None
