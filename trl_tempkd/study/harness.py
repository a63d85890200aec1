# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tasks of the LM evaluation harness (`pip install ".[lm-eval]"`), beside our own scores."""

import functools
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, UsageImportError
from ..names import did_you_mean


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_tasks(tasks: list[str], include_path: str | None) -> None:
    """
    Stop at a task that there isn't, before anything is loaded.

    Args:
        tasks (`list[str]`): names of tasks or of groups of them, as `lm_eval --tasks` takes them.
        include_path (`str`, *optional*): a folder with tasks of one's own.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageImportError('--lm_eval needs lm-eval: pip install ".[lm-eval]" where you installed trl_tempkd from')
    manager = _manager(include_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UsageError(f"--lm_eval {task}: there is no such task{did_you_mean(task, manager.all_tasks)}")


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: list[str],
    include_path: str | None,
    limit: int | None,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """
    What the harness measures of a loaded model, by its Python API. Arguments as in [`check_tasks`].

    Args:
        model, tokenizer: them.
        limit (`int`, *optional*): rows of each task, the first ones.
        batch_size (`int`): rows at a time.

    Returns:
        `dict`: by task `scores`, its metrics with their standard errors by the harness's own names, the `rows` and the
        `version` of the task.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = lm_eval.simple_evaluate(wrapped, tasks=tasks, limit=limit, task_manager=_manager(include_path))
    assert found is not None  # of other processes than the first
    rows: Mapping[str, Any] = found.get("n-samples", {})
    return {
        task: {
            "scores": {name: value for name, value in scores.items() if "," in name},
            "rows": rows.get(task, {}).get("effective"),
            "version": found["versions"].get(task),
        }
        for task, scores in found["results"].items()
    }


@functools.cache  # it reads the files of thousands of tasks
def _manager(include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
