# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What the LM evaluation harness measured of students, beside each other."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .results import Results


@dataclass(frozen=True)
class TaskRow:
    """
    A metric of a task.

    Args:
        task, metric (`str`): their names, the metric's with its filter if it has one.
        version, rows (`str`): of the task; several where the models weren't measured on the same.
        values (`dict[str, float]`): by model.
        errors (`dict[str, float]`): the harness's standard errors, by model where it gives one.
    """

    task: str
    metric: str
    version: str
    rows: str
    values: dict[str, float]
    errors: dict[str, float]

    def said(self, model: str) -> str:
        """The value of a model with its standard error, or nothing."""
        if model not in self.values:
            return ""
        error = f" ± {self.errors[model]:.2g}" if model in self.errors else ""
        return f"{self.values[model]:.4g}{error}"


def task_rows(results: Results) -> list[TaskRow]:
    """The rows of the table, task by task."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for model, tasks in results.evaluations.items():
        for task, measured in tasks.items():
            for key, value in measured["scores"].items():
                metric, _, kept_by = key.partition(",")
                if metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = measured["scores"].get(f"{metric}_stderr,{kept_by}")
                name = metric if kept_by in ("", "none") else f"{metric} ({kept_by})"
                found.setdefault((task, name), {})[model] = {**measured, "value": value, "error": error}
    return [
        TaskRow(
            *place,
            version=_several(each.get("version") for each in by_model.values()),
            rows=_several(each.get("rows") for each in by_model.values()),
            values={model: float(each["value"]) for model, each in by_model.items()},
            errors={m: float(each["error"]) for m, each in by_model.items() if isinstance(each["error"], int | float)},
        )
        for place, by_model in found.items()
    ]


def _several(values: Iterable[Any]) -> str:
    return " / ".join(dict.fromkeys("?" if value is None else str(value) for value in values))
