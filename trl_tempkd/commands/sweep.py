# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd sweep`: a grid of distillations, resumed after an interruption, compared with paired statistics."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..command_line import HelpFormatter, OneLineParser, positive, share


DESCRIPTION = """\
Distil over a grid of divergence x tau x mode x seed x any other option, score every student, and compare.

Every cell of the grid is a run of its own, and a file RESULTS_DIR/NAME.json. The same command again runs what is not
finished: after an interruption, and after a cell failed (RESULTS_DIR/NAME.error.txt says why; the others go on). Cells
of one seed start from the same student and see the same batches in the same order, and the files prove it by hashes.
docs/sweeps.md explains recipe, files and statistics."""

EPILOG = """\
a recipe (YAML), whose unknown keys are errors:
  base: recipes/tiny/distill.yaml        # a recipe of `trl-tempkd distill`, or a mapping of its options
  overrides: {max_steps: 40}             # what is different here
  grid:
    divergence: [forward_kl, {jsd: {beta: 0.1}}]
    tau: [1.0, 2.0]
    mode: [both, teacher]                # who is softened: both, or the teacher alone (the student stays at 1)
    seed: [1, 2, 3]                      # of initialisation and data order
    rule: [null, {target_entropy: {share: 0.3}}]       # kd_temperature_rule, with or without parameters
    max_grad_norm: [0.0, 1.0]            # any option of KDConfig: here without and with clipping
    # or a list of such grids, whose cells are put together
  select: {seeds: [1], score: rouge_l}   # optional: every condition on these seeds, the best ones on the others
  evaluation: {rows: 256, seeds: [10], max_new_tokens: 128}     # held-out rows, seeds of sampling
  hypotheses: recipes/hypotheses/temperature.yaml    # optional: contrasts to decide, or a list of them
  tune_learning_rate: [5.0e-4, 1.0e-3]   # optional: for every cell the best, on rows left out of the training split
  keep_models: true                      # or false: finished cells keep their recipe and results, not their weights
  workers: 1                             # cells at a time on this machine
  output_dir: results/name

examples:
  # what would run, with all its settings
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --dry_run

  # two cells at a time on this machine
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --workers 2

  # on a Ray cluster that is there already, a GPU for each cell
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --launcher ray --gpus_per_cell 1"""


def main(args: argparse.Namespace) -> int:
    """Run the cells that are not finished, then compare. Returns 0, or 1 where cells failed."""
    from ..study.runs.cell import reason_of
    from ..study.runs.pool import Launcher
    from ..study.sweep import read_recipe
    from ..study.sweep.run import read_cells, sweep
    from ..study.sweep.shown import print_cells

    recipe = read_recipe(args.config)
    if args.dry_run:
        print_cells(*read_cells(recipe), recipe["select"])
        return 0
    launcher = Launcher(args.launcher, args.workers or recipe["workers"], args.gpus_per_cell)
    results_dir = Path(args.results_dir or recipe["results_dir"]).resolve()
    results, failed = sweep(recipe, results_dir, launcher)
    if recipe["select"]:
        print(
            f"In {results_dir}: a JSON file per cell, summary/selection.json; `trl-tempkd report {results_dir}` has "
            "the table"
        )
    else:
        report(results, results_dir)
    for name in failed:
        print(f"failed: {name}: {reason_of(results_dir, name)}", file=sys.stderr)
    return 1 if failed else 0


def report(results: list[dict[str, Any]], results_dir: Path) -> None:
    """Write and print the comparisons, and say where cells cannot be compared."""
    from ..fingerprint import shown_fingerprints
    from ..study.runs.progress import wide_console
    from ..study.sweep.run import compare
    from ..study.sweep.shown import table_of

    console = wide_console()
    summary = compare(results, results_dir)
    if results and not summary["not_compared"]:
        console.print(
            f"{len(results)} cells; those of one seed had the same initial student, batches and items.",
            highlight=False,
        )
        console.print(f"Fingerprints of the rows: {shown_fingerprints(summary['fingerprints'])}", highlight=False)
    for line in summary["not_compared"]:
        console.print(f"Not compared: {line}", highlight=False, markup=False)
    if summary["comparisons"]:
        console.print(table_of(summary["comparisons"]))
    console.print(f"In {results_dir}: a JSON file per cell, summary/comparisons.json", highlight=False, soft_wrap=True)


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="recipe of the sweep")
    help = "folder of the results, in place of the recipe's `output_dir`"
    parser.add_argument("--output_dir", "--results_dir", dest="results_dir", metavar="DIR", help=help)
    parser.add_argument("--dry_run", action="store_true", help="list the cells with their settings, and run nothing")
    parser.add_argument("--launcher", choices=("local", "ray"), default="local", help="this machine or a Ray cluster")
    parser.add_argument(
        "--workers", type=positive, help="cells at a time, in place of the recipe's `workers` (Ray fills its cluster)"
    )
    parser.add_argument(
        "--gpus_per_cell",
        type=share,
        help="1, 0, or a share of a GPU that several cells use (if left out: local takes 1 where there is a GPU)",
    )
    return parser
