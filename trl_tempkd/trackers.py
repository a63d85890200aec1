# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What the trackers of `report_to` get beyond what transformers gives them: metrics in groups, completions as tables, and
one run for a training that is resumed.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from .compat import INTEGRATION_TO_CALLBACK


logger = get_logger(__name__)

# Metrics that are TRL's too: a run of ours is laid over one of TRL's under the same name
_OF_TRL = ("loss", "aux_loss", "completions/")
_RUN_ID = "MLFLOW_RUN_ID"


class Trackers:
    """
    The trackers of a trainer: those of its callbacks that are transformers' own.

    Args:
        handler ([`~transformers.trainer_callback.CallbackHandler`]):
            What holds the callbacks. Those that are added later count too.
        output_dir (`str`):
            Folder of the run.
    """

    def __init__(self, handler: Any, output_dir: str):
        self._handler = handler
        self._output_dir = Path(output_dir)
        self._names: dict[str, str] = {}  # what a metric is logged as -> what trackers call it

    def _in_use(self) -> list[tuple[str, Any]]:
        """Their names and callbacks. DagsHub's is an MLflow callback, and is one here."""
        kinds = INTEGRATION_TO_CALLBACK.items()
        names = [next((name for name, kind in kinds if isinstance(of, kind)), "") for of in self._handler.callbacks]
        return [(name, of) for name, of in zip(names, self._handler.callbacks, strict=True) if name]

    # Metrics

    def see(self, group: str, metrics: Iterable[str], prefix: str = "") -> None:
        """
        Have the trackers show metrics in a group. Whoever else reads the log finds them under their own names.

        Args:
            group (`str`): `"kd"` or `"rollouts"`.
            metrics (`Iterable[str]`): names of metrics of ours or of TRL, which stay what they are.
            prefix (`str`, *optional*): of an evaluation, such as `"eval"`, or `"eval_NAME"` of one of several.
        """
        kind, _, data = prefix.partition("_") if prefix.startswith(("eval_", "test_")) else (prefix, "", "")
        for name in metrics:
            if not name.startswith(_OF_TRL):
                full = "_".join(filter(None, [prefix, name]))
                short = re.sub(r"(^|_)kd_", r"\1", name)
                shown = f"{group}/{'_'.join(filter(None, [data, short]))}"
                self._names[full] = "_".join(filter(None, [kind, shown]))
        for _, callback in self._in_use():
            if "on_log" not in vars(callback):
                for event, argument in (("on_log", "logs"), ("on_predict", "metrics")):
                    # What others have made of such a callback reads the names that are logged
                    if getattr(type(callback), event).__module__.startswith("transformers."):
                        setattr(callback, event, self._renaming(getattr(callback, event), argument))

    def _renaming(self, function: Callable[..., Any], argument: str) -> Callable[..., Any]:
        @wraps(function)
        def renamed(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.get(argument) or {}
            kwargs[argument] = {self._names.get(name, name): value for name, value in given.items()}
            return function(*args, **kwargs)

        return renamed

    # Completions

    def takes_tables(self) -> bool:
        return any(name in ("wandb", "trackio", "mlflow", "tensorboard") for name, _ in self._in_use())

    def show(self, step: int, frame: Any, pictures: Callable[[Any], Any]) -> None:
        """
        Show a table of completions.

        Args:
            step (`int`): number of optimizer steps so far.
            frame (`pandas.DataFrame`): the table.
            pictures (`Callable`): gives the table with its images, as the module of a tracker shows them.
        """
        for name, callback in self._in_use():
            if name == "wandb":
                import wandb

                if wandb.run is not None:
                    wandb.log({"completions": wandb.Table(dataframe=pictures(wandb))})
            elif name == "trackio":
                import trackio

                trackio.log({"completions": trackio.Table(dataframe=pictures(trackio))})
            elif name == "mlflow":
                import mlflow

                if mlflow.active_run() is not None:
                    mlflow.log_table(frame, f"completions/completions_{step:05d}.json")
            elif name == "tensorboard" and callback.tb_writer is not None:
                callback.tb_writer.add_text("completions", markdown(frame), step)

    # Resuming

    def running(self) -> dict[str, Any]:
        """What each tracker's run is found by, to be kept in a checkpoint. On the main process."""
        found: dict[str, Any] = {}
        for name, callback in self._in_use():
            if name == "tensorboard" and callback.logging_dir is not None:
                folder = Path(callback.logging_dir)
                inside = folder.is_relative_to(self._output_dir)
                found[name] = str(folder.relative_to(self._output_dir) if inside else folder.absolute())
            elif name == "wandb":
                import wandb

                if wandb.run is not None:
                    run = wandb.run
                    found[name] = {"id": run.id, "project": run.project, "entity": run.entity or None}
            elif name == "trackio":
                import trackio

                if (active := trackio.context_vars.current_run.get()) is not None:
                    found[name] = active.name
            elif name == "mlflow":
                import mlflow

                if (active := mlflow.active_run()) is not None:
                    found[name] = active.info.run_id
        return found

    def go_on(self, runs: Mapping[str, Any], step: int) -> None:
        """
        Have the trackers go on with the runs that a checkpoint was written in, unless the user has named others.

        Args:
            runs (`Mapping[str, Any]`): what [`Trackers.running`] said.
            step (`int`): the checkpoint's. What was logged after it is logged again.
        """
        for name, callback in self._in_use():
            if name not in runs:
                continue
            if name == "tensorboard":
                folder = self._output_dir / runs[name]
                if callback.logging_dir is None and callback.tb_writer is None and folder.is_dir():
                    from torch.utils.tensorboard import SummaryWriter

                    callback.logging_dir = str(folder)
                    callback.tb_writer = SummaryWriter(log_dir=str(folder), purge_step=step + 1)
            else:
                callback.setup = _continuing(name, callback.setup, runs[name])


def _continuing(name: str, setup: Callable[..., Any], run: Any) -> Callable[..., Any]:
    """The `setup` of a tracker's callback, which is called once it is first needed, going on with a run."""

    @wraps(setup)
    def continued(args: Any, state: Any, model: Any, **kwargs: Any) -> Any:
        if not state.is_world_process_zero:
            return setup(args, state, model, **kwargs)
        if name == "wandb":
            import wandb

            if wandb.run is None and "WANDB_RUN_ID" not in os.environ:
                wandb.init(**run, name=args.run_name, resume="allow")
        elif name == "trackio" and args.run_name is None:
            args.run_name = run
            try:
                return setup(args, state, model, **kwargs)
            finally:
                args.run_name = None
        elif name == "mlflow" and _RUN_ID not in os.environ and _is_there(run):
            os.environ[_RUN_ID] = run
            try:
                return setup(args, state, model, **kwargs)
            finally:
                os.environ.pop(_RUN_ID, None)
        return setup(args, state, model, **kwargs)

    return continued


def _is_there(run: str) -> bool:
    import mlflow

    try:
        return mlflow.get_run(run).info.lifecycle_stage == "active"
    except mlflow.exceptions.MlflowException:
        logger.warning(f"MLflow has no run {run}, which the checkpoint was written in: a new one begins.")
        return False


def markdown(frame: Any) -> str:
    """A table whose cells are shown as they are, whatever marks of Markdown and HTML they have."""
    lines = [
        list(frame.columns),
        ["---"] * len(frame.columns),
        *([_plain(cell) for cell in row] for row in frame.values),
    ]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _plain(cell: Any) -> str:
    escaped = re.sub(r"[^\w\s]|_", lambda found: f"&#{ord(found[0])};", str(cell))
    return re.sub(r"\r\n|[\r\n]", "<br>", escaped)
