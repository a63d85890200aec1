# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd tune`: divergence, temperature and other options chosen together by a score on held-out rows."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import HelpFormatter, OneLineParser, positive, share


if TYPE_CHECKING:
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
  output_dir: results/name

examples:
  # the space, and the first settings that would be drawn
  trl-tempkd tune --config recipes/tune/tiny.yaml --dry_run

  # run it; the same line goes on after an interruption
  trl-tempkd tune --config recipes/tune/tiny.yaml

  # more trials on top of those that are there, two at a time
  trl-tempkd tune --config recipes/tune/tiny.yaml --trials 40 --workers 2

OUTPUT_DIR/best.yaml is then a recipe that trains with what was found on the whole training split."""


def main(args: argparse.Namespace) -> int:
    """Run trials until there are as many as wanted. Returns 0, or 1 where none is complete."""
    from ..study.runs.pool import Launcher
    from ..study.tune.recipe import read_tuning
    from ..study.tune.run import check, tune
    from ..study.tune.shown import print_space

    tuning = read_tuning(args.config)
    tuning = dataclasses.replace(tuning, trials=args.trials or tuning.trials, workers=args.workers or tuning.workers)
    check(tuning)
    if args.dry_run:
        print_space(tuning)
        return 0
    shown = args.results_dir or tuning.results_dir
    store = tune(tuning, shown, Launcher("local", tuning.workers, args.gpus_per_trial))
    report(store, shown)
    return 0 if store.best is not None else 1


def report(store: "Store", shown: str) -> None:
    """Print the best trials, what matters, and where everything is."""
    from ..fingerprint import shown_fingerprints
    from ..study.runs.progress import wide_console
    from ..study.tune.results import importances
    from ..study.tune.shown import SHOWN, table_of
    from ..study.tune.store import ranked

    console = wide_console()
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


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="recipe of the study")
    parser.add_argument("--trials", type=positive, help="trials in all, in place of the recipe's `trials`")
    parser.add_argument("--workers", type=positive, help="trials at a time, in place of the recipe's `workers`")
    help = "folder of the results, in place of the recipe's `output_dir`"
    parser.add_argument("--output_dir", "--results_dir", dest="results_dir", metavar="DIR", help=help)
    parser.add_argument("--dry_run", action="store_true", help="show the space and the first settings; run nothing")
    parser.add_argument(
        "--gpus_per_trial",
        type=share,
        help="1, 0, or a share of a GPU that several trials use (if left out: 1 where there is a GPU)",
    )
    return parser
