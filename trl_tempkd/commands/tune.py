# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd tune`: divergence, temperature and other options chosen together by a score on held-out rows."""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..paths import check_writable
from ..trl_names import hint_for
from .arguments import HelpFormatter, OneLineParser
from .sweep import positive, read_options, share


if TYPE_CHECKING:
    import optuna
    from rich.progress import Progress
    from rich.table import Table

    from ..study.tune.recipe import Tuning
    from ..study.tune.store import Store

DESCRIPTION = """\
Choose the divergence, its parameters, tau and any other option of a distillation together, by a score that can be
compared between them: the KL to the teacher at tau 1, or the ROUGE-L of sampled completions.

The score is measured on rows held out of the training split; the test split stays untouched. Optuna draws the settings
of each trial from what the earlier ones have shown, and each trial is a process of its own. The study is kept in
RESULTS_DIR: the same command again goes on after an interruption, and a trial that was cut off is run again. A trial
that fails is noted with its reason, and the others go on. docs/tuning.md explains recipe, files and score."""

EPILOG = """\
a recipe (YAML), whose unknown keys are errors:
  base: recipes/tiny/distill.yaml        # a recipe of `trl-tempkd distill`, or a mapping of its options
  overrides: {max_steps: 30}             # what is different here
  space:
    divergence:                          # parameters belong to their divergence alone
      - forward_kl
      - jsd: {beta: {low: 0.05, high: 0.95}}
    tau: {low: 1.0, high: 8.0, log: true}
    mode: [both, teacher]                # who is softened: both, or the teacher alone (the student stays at 1)
    learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}      # any option of KDConfig: a list or a range
  score: eval_kl_tau1                    # the lower, the better; or rouge_l, with sampling: {seeds: [10]}
  rows: 128                              # held out of the training split
  pruning: {method: median, eval_steps: 10}      # stop hopeless trials; or hyperband; leave it out for none
  trials: 20                             # in all, those of earlier calls among them
  seed: 0                                # of what is drawn
  results_dir: results/name

examples:
  # the space, and the first settings that would be drawn
  trl-tempkd tune --config recipes/tune/tiny.yaml --dry_run

  # run it; the same line goes on after an interruption
  trl-tempkd tune --config recipes/tune/tiny.yaml

  # more trials on top of those that are there, two at a time
  trl-tempkd tune --config recipes/tune/tiny.yaml --trials 40 --workers 2

RESULTS_DIR/best.yaml is then a recipe that trains with what was found on the whole training split."""

SHOWN = 5  # rows of the table, and settings of --dry_run


@dataclasses.dataclass
class Running:
    """A trial that runs, its process, its share of the machine, and what says that somebody runs it."""

    trial: "optuna.Trial"
    process: "subprocess.Popen[bytes]"
    environment: dict[str, str]
    held: ExitStack


def main(args: argparse.Namespace) -> int:
    """Run trials until there are as many as wanted. Returns 0, or 1 where none is complete."""
    import_optuna()
    from ..files import written
    from ..study.tune.recipe import read_tuning
    from ..study.tune.results import write_results
    from ..study.tune.store import Store

    tuning = read_tuning(args.config)
    tuning = dataclasses.replace(tuning, trials=args.trials or tuning.trials, workers=args.workers or tuning.workers)
    check(tuning)
    if args.dry_run:
        dry_run(tuning)
        return 0
    shown = args.results_dir or tuning.results_dir
    check_writable(shown, "--results_dir")
    folder = Path(shown).resolve()
    with written(folder):
        store = Store(folder, tuning)
        prepare_data(store)
        try:
            run(store, shown, args.gpus_per_trial)
        except KeyboardInterrupt:
            with store.lock():
                store.recover()
                write_results(store, shown)
            raise
        report(store, shown)
    return 0 if store.best is not None else 1


def import_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError("this command needs Optuna: pip install 'trl-tempkd[tune]'") from error


def check(tuning: "Tuning") -> None:
    """Read the options at every value of a list and at both ends of every range, as a trial will."""
    from ..study.sweep.grid import check_keys
    from ..study.tune.results import options_of_factors
    from . import distill

    check_keys(
        tuning.base,
        {action.dest for action in distill.make_parser()._actions},
        f"`base` or `overrides` in {tuning.path}",
        hint_for,
    )
    if tuning.base.get("resume_from_checkpoint"):
        raise UsageError("resume_from_checkpoint: trials start from the beginning; leave it out")
    for number, factors in enumerate(tuning.space.corners(tuning.base)):
        values = read_options(options_of_factors(tuning, factors), f"trl-tempkd tune: {tuning.path}", "options")
        if not number:
            distill.check(*values)


def dry_run(tuning: "Tuning") -> None:
    """Show the space, and the settings that are drawn before there is any result."""
    import optuna
    import yaml

    from ..study.tune.store import make_sampler, suggest

    print(f"# {tuning.trials} trials; {tuning.direction} {tuning.score} on {tuning.rows} held-out rows, over")
    print(yaml.safe_dump({"space": dict(tuning.space.lines)}, sort_keys=False, width=119))
    study = optuna.create_study(direction=tuning.direction)
    drawn = {}
    for number in range(min(SHOWN, tuning.trials)):
        study.sampler = make_sampler(tuning.seed, number)
        trial = study.ask()
        tuning.space.draw(partial(suggest, trial), tuning.base)
        drawn[number] = dict(trial.params)
    print("# The first settings that are drawn")
    print(yaml.safe_dump({"trials": drawn}, sort_keys=False, width=119))
    print("# What all trials share")
    print(yaml.safe_dump({"base": tuning.base}, sort_keys=False, width=119), end="")


def prepare_data(store: "Store") -> None:
    """
    Hold rows out of the training split, once for the study: every trial has these, whatever becomes of the data since.
    """
    import datasets

    from ..fingerprint import fingerprint
    from . import distill
    from .cell import hold_out

    datasets.disable_progress_bars()
    data, part = store.folder / "data", store.folder / "data.part"
    with store.lock():
        if not data.is_dir():
            values = read_options(store.tuning.base, "trl-tempkd tune", "base")
            distill.load_splits(values[0], values[1], values[3])
            try:
                hold_out(values, store.tuning.rows, part)
                part.rename(data)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        if "fingerprints" not in store.study.user_attrs:
            held_out = datasets.load_from_disk(str(data))
            found = {split: fingerprint(rows) for split, rows in held_out.items()}
            store.study.set_user_attr("fingerprints", found)


def run(store: "Store", shown: str, gpus: float | None) -> None:
    """Run trials, so many at a time, with a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..study.sweep.launchers import share_of_machine

    workers = store.tuning.workers
    if gpus is None:
        import torch

        gpus = 1.0 if torch.cuda.is_available() else 0.0
    free = [share_of_machine(worker, workers, gpus) for worker in range(workers)]
    running: list[Running] = []
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task("trials", total=store.tuning.trials, state="")
        try:
            while True:
                while free and (begun := begin(store, free[-1])) is not None:
                    running.append(begun)
                    free.pop()
                update(progress, task, store, len(running))
                if not running:
                    return
                while not (ended := [each for each in running if each.process.poll() is not None]):
                    time.sleep(0.1)
                for each in ended:
                    end(store, each, shown, progress)
                    running.remove(each)
                    free.append(each.environment)
        finally:
            for each in running:
                each.process.kill()
                each.process.wait()
                each.held.close()


def begin(store: "Store", environment: dict[str, str]) -> Running | None:
    """Start the next trial, if one is left."""
    from ..files import write_atomically
    from ..study.sweep.workers import start
    from ..study.tune.results import options_of_factors
    from .cell import on_held_out

    asked = store.ask()
    if asked is None:
        return None
    trial, factors, held = asked
    tuning, folder = store.tuning, store.folder_of(trial.number)
    options = {**on_held_out(options_of_factors(tuning, factors), store.folder / "data"), "push_to_hub": False}
    if tuning.pruning:
        options |= {"eval_strategy": "steps", "eval_steps": tuning.pruning["eval_steps"]}
    settings = {
        "trial": trial.number,
        "options": options,
        **{name: getattr(tuning, name) for name in ("base", "score", "rows", "sampling", "pruning")},
    }
    write_atomically(folder / "trial.json", json.dumps(settings, indent=1))
    process = start("trl_tempkd.commands.trial", folder / "trial.json", os.getcwd(), environment)
    return Running(trial, process, environment, held)


def end(store: "Store", ended: Running, shown: str, progress: "Progress") -> None:
    """Note how a trial ended, in the store, in the files and on the screen."""
    from ..study.sweep.launchers import UNWRITABLE
    from ..study.sweep.launchers import ended as how_it_ended
    from ..study.tune.results import row_of, write_results

    folder, file = store.folder_of(ended.trial.number), store.folder_of(ended.trial.number) / "result.json"
    if ended.process.stdin is not None:
        ended.process.stdin.close()
    if ended.process.returncode == UNWRITABLE:  # of no setting; the trial is run again
        said = (folder / "output.log").read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
        reason = said if said.startswith("cannot write") else f"cannot write to {folder}, is the disk full?"
        raise UsageError(f"trial {ended.trial.number}: {reason}; the same command goes on where it stopped")
    if file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
    else:
        result = {"state": "failed", "reason": f"its process {how_it_ended(ended.process.returncode, folder)}"}
    with store.lock():
        store.tell(ended.trial, result)
        ended.held.close()
        write_results(store, shown)
    row = row_of(store.trials[ended.trial.number])
    score = "" if row["score"] is None else f" {row['score']:.4f}"
    reason = f": {row['reason']}" if row["reason"] else ""
    progress.console.print(
        f"trial {row['trial']}: {row['state']}{score} ({settings_of(row['parameters'])}){reason}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def update(progress: "Progress", task: Any, store: "Store", running: int) -> None:
    best = store.best
    found = "" if best is None else f"best {best.values[0]:.4f} (trial {best.number}), "
    done = sum(trial.state.is_finished() for trial in store.counted)
    progress.update(task, completed=done, state=f"{found}{running} running")


def settings_of(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in parameters.items())


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def report(store: "Store", shown: str) -> None:
    """Print the best trials, what matters, and where everything is."""
    from rich.console import Console

    from ..fingerprint import shown_fingerprints
    from ..study.tune.results import importances, write_results
    from ..study.tune.store import ranked

    console = Console()
    if not console.is_terminal:  # a file has room for the table
        console = Console(width=160)
    with store.lock():
        write_results(store, shown)
    best = ranked(store.trials, store.tuning)
    if not best:
        console.print(f"No trial is complete: trials.csv in {shown} says why.", highlight=False, soft_wrap=True)
        return
    console.print(table_of(store, best[:SHOWN]))
    found = importances(store)
    if found:
        listed = ", ".join(f"{name} {value:.0%}" for name, value in found.items())
        console.print(f"What sets the best trials apart (PED-ANOVA): {listed}", highlight=False, soft_wrap=True)
    console.print(f"Fingerprints of the rows: {shown_fingerprints(store.fingerprints)}", highlight=False)
    console.print(f"In {shown}: trials.csv, trials.json, and the best as a recipe:", highlight=False, soft_wrap=True)
    console.print(f"  trl-tempkd distill --config {Path(shown, 'best.yaml')}", highlight=False, soft_wrap=True)


def table_of(store: "Store", best: "list[optuna.trial.FrozenTrial]") -> "Table":
    """The best trials, a row each."""
    from collections import Counter

    from rich.table import Table

    from ..study.tune.results import state_of

    states = Counter(state_of(trial) for trial in store.trials)
    table = Table(title=", ".join(f"{count} {state}" for state, count in states.items()))
    names = list(dict.fromkeys(name for trial in best for name in trial.params))
    for name in ("trial", store.tuning.score, *names):
        table.add_column(name, justify="right")
    for trial in best:
        settings = (short(trial.params[name]) if name in trial.params else "" for name in names)
        table.add_row(str(trial.number), f"{trial.values[0]:.4f}", *settings)
    return table


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="recipe of the study")
    parser.add_argument("--trials", type=positive, help="trials in all, in place of the recipe's `trials`")
    parser.add_argument("--workers", type=positive, help="trials at a time, in place of the recipe's `workers`")
    parser.add_argument("--results_dir", help="where results go, in place of the recipe's `results_dir`")
    parser.add_argument("--dry_run", action="store_true", help="show the space and the first settings; run nothing")
    parser.add_argument(
        "--gpus_per_trial",
        type=share,
        help="1, 0, or a share of a GPU that several trials use (if left out: 1 where there is a GPU)",
    )
    return parser
