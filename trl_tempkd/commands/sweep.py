# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd sweep`: a grid of distillations, resumed after an interruption, compared with paired statistics."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..paths import check_writable
from ..trl_names import hint_for
from .arguments import HelpFormatter, OneLineParser


if TYPE_CHECKING:
    from rich.table import Table

    from ..study.sweep import Cell

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
  results_dir: results/name

examples:
  # what would run, with all its settings
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --dry_run

  # two cells at a time on this machine
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --workers 2

  # on a Ray cluster that is there already, a GPU for each cell
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --launcher ray --gpus_per_cell 1"""


def main(args: argparse.Namespace) -> int:
    """Run the cells that are not finished, then compare. Returns 0, or 1 where cells failed."""
    from ..files import write_atomically
    from ..study.report.results import HYPOTHESES
    from ..study.sweep import cells, read_recipe
    from ..study.sweep.launchers import import_ray
    from ..study.sweep.selection import choose, first_stage, second_stage, write

    recipe = read_recipe(args.config)
    found = cells(recipe)
    check(found)
    select = recipe["select"]
    stage = first_stage(found, select) if select else found
    if args.dry_run:
        show_cells(stage)
        if select:
            print(f"# {what_follows(found, select)}")
        return 0
    if args.launcher == "ray":
        import_ray()
    args.workers = args.workers or recipe["workers"]
    results_dir = Path(args.results_dir or recipe["results_dir"]).resolve()
    check_writable(results_dir, "--results_dir")
    check_cell_data(found[0])
    if recipe["hypotheses"]:
        declared = {"hypotheses": recipe["hypotheses"]}
        write_atomically(results_dir / HYPOTHESES, json.dumps(declared, indent=1))
    results, failed = run_stage(stage, results_dir, args, recipe["keep_models"])
    if select:
        selection = choose(stage, {result["name"]: result for result in results}, select)
        write(results_dir, selection)
        rest = second_stage(found, select, selection)
        chosen, failed_later = run_stage(rest, results_dir, args, recipe["keep_models"])
        results, failed = results + chosen, failed + failed_later
    if select:
        print(
            f"In {results_dir}: a JSON file per cell, summary/selection.json; `trl-tempkd report {results_dir}` has "
            "the table"
        )
    else:
        report(results, results_dir)
    for name in failed:
        print(f"failed: {name}: {last_line(results_dir / f'{name}.error.txt')}", file=sys.stderr)
    return 1 if failed else 0


def run_stage(
    stage: "list[Cell]", results_dir: Path, args: argparse.Namespace, keep_models: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the cells that are not finished. Returns the results of those that are, and the names of those that fail."""
    from ..files import written
    from ..study.sweep.grid import finished

    waiting = [cell for cell in stage if finished(results_dir, cell) is None]
    with written(results_dir):
        failed = run(waiting, len(stage), results_dir, args, keep_models) if waiting else []
    return [result for cell in stage if (result := finished(results_dir, cell)) is not None], failed


def what_follows(found: "list[Cell]", select: dict[str, Any]) -> str:
    """The second stage in words, before it is known."""
    from ..study.sweep.selection import TREATMENT

    seeds = dict.fromkeys(cell.factors["seed"] for cell in found if cell.factors["seed"] not in select["seeds"])
    names = ("seed", *TREATMENT)
    objectives = {json.dumps({k: v for k, v in cell.factors.items() if k not in names}) for cell in found}
    return (
        f"Then, by {select['score']} on the first half of the items: tau 1, the best tau and the best rule of each of "
        f"{len(objectives)} objectives on the seeds {', '.join(map(str, seeds))}, up to "
        f"{3 * len(objectives) * len(seeds)} cells"
    )


def check(found: "list[Cell]") -> None:
    """Read every condition's options as its runs will, but without the hardware that they ask for."""
    from . import distill

    parser = distill.make_parser("trl-tempkd sweep")
    known = {action.dest for action in parser._actions}
    from ..study.sweep.grid import check_keys

    check_keys(found[0].options, known, "`base` or `overrides`", hint_for)
    if found[0].options.get("resume_from_checkpoint"):
        raise UsageError("resume_from_checkpoint: the cells of a sweep start from the beginning; leave it out")
    for cell in {json.dumps({**cell.factors, "seed": None}): cell for cell in reversed(found)}.values():
        values = read_options(cell.options, f"trl-tempkd sweep: {cell.name}", cell.name)
        if cell is found[0]:
            distill.check(*values)


def check_cell_data(cell: "Cell") -> None:
    """Stop at data that no cell could be trained or scored on, before any is started."""
    from . import distill
    from .cell import load_rows

    values = read_options(cell.options, "trl-tempkd sweep", cell.name)
    script_args, training_args, _, dataset_args = values
    distill.load_splits(script_args, training_args, dataset_args)
    load_rows(values, "dataset_test_split", cell.evaluation["rows"])


def read_options(options: dict[str, Any], prog: str, name: str) -> list[Any]:
    """The dataclasses of `trl-tempkd distill` for these options, on whatever hardware. Mistakes are said by `prog`."""
    from . import distill

    here = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--tf32", "false"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.yaml")
        path.write_text(json.dumps({**options, "output_dir": folder}), encoding="utf-8")  # JSON is YAML
        values, _, _ = distill.make_parser(prog).parse(["--config", str(path), *here], launched=True)
    return values


def show_cells(found: "list[Cell]") -> None:
    """List the cells with their full settings, as YAML: what differs between them, and then what they share."""
    import yaml

    options = [cell.options for cell in found]
    shared = {k: v for k, v in options[0].items() if all(k in o and o[k] == v for o in options)}
    listed = {cell.name: {k: v for k, v in cell.options.items() if k not in shared} for cell in found}
    print(f"# {len(found)} cells, and what differs between them")
    print(yaml.safe_dump(listed, sort_keys=False, width=119))
    rest = {"every cell": shared, "evaluation": found[0].evaluation, "tune_learning_rate": found[0].tune_learning_rate}
    print("# What they share")
    print(yaml.safe_dump(rest, sort_keys=False, width=119), end="")


def run(
    waiting: "list[Cell]", total: int, results_dir: Path, args: argparse.Namespace, keep_models: bool
) -> list[str]:
    """Run cells, with a progress bar. Returns the names of those that failed."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ..study.sweep.launchers import DONE, FAILED, prepare, wait_until_free

    results_dir.mkdir(parents=True, exist_ok=True)
    for cell in waiting:
        prepare(cell, results_dir)
    columns = (
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    failed: list[str] = []
    names = [cell.name for cell in waiting]
    with Progress(*columns) as progress:
        task = progress.add_task("cells", total=total, completed=total - len(names), state="")
        while names:
            busy = []
            left = len(names)
            for name, status in start(names, results_dir, args, progress, task, failed):
                left -= 1
                if status not in (DONE, FAILED):
                    busy.append(name)
                    continue
                if status == FAILED:
                    failed.append(name)
                elif not keep_models:
                    delete_weights(results_dir / name)
                progress.console.print(f"{'failed' if status == FAILED else 'done'}: {name}", highlight=False)
                progress.update(task, advance=1, state=state_of(left, failed, args))
            names = busy  # another sweep runs them: they are looked at again when it has left one
            if names:
                progress.update(task, state=f"{len(names)} with another process")
                wait_until_free(names, results_dir)
    return failed


def delete_weights(folder: Path) -> None:
    """Delete the weights of a finished cell, and its checkpoints. What was measured stays, and so does the recipe."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index.json")]:
        path.unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def start(names, results_dir: Path, args: argparse.Namespace, progress, task, failed) -> Iterator[tuple[str, int]]:
    from ..study.sweep.launchers import run_local, run_ray

    progress.update(task, state=state_of(len(names), failed, args))
    if args.launcher == "ray":
        return run_ray(names, results_dir, args.gpus_per_cell or 0)
    gpus = args.gpus_per_cell
    if gpus is None:
        import torch

        gpus = 1.0 if torch.cuda.is_available() else 0.0
    return run_local(names, results_dir, args.workers, gpus)


def state_of(left: int, failed: list[str], args: argparse.Namespace) -> str:
    running = f"{left} left" if args.launcher == "ray" else f"{min(left, args.workers)} running"
    return f"{running}, {len(failed)} failed"


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "no reason given"


def report(results: list[dict[str, Any]], results_dir: Path) -> None:
    """Write and print the comparisons, and say where cells cannot be compared."""
    from rich.console import Console

    from ..files import write_atomically
    from ..fingerprint import shown_fingerprints
    from ..study.comparisons import comparisons
    from ..study.table import obstacles, values_of

    console = Console()
    if not console.is_terminal:  # a file has room for the table
        console = Console(width=160)
    lines = obstacles(results)
    rows = comparisons(results)
    fingerprints = values_of(results, "fingerprints")
    summary = {"cells": len(results), "fingerprints": fingerprints, "not_compared": lines, "comparisons": rows}
    write_atomically(results_dir / "summary" / "comparisons.json", json.dumps(summary, indent=1))
    if results and not lines:
        console.print(
            f"{len(results)} cells; those of one seed had the same initial student, batches and items.",
            highlight=False,
        )
        console.print(f"Fingerprints of the rows: {shown_fingerprints(fingerprints)}", highlight=False)
    for line in lines:
        console.print(f"Not compared: {line}", highlight=False, markup=False)
    if rows:
        console.print(table_of(rows))
    console.print(f"In {results_dir}: a JSON file per cell, summary/comparisons.json", highlight=False, soft_wrap=True)


def table_of(rows: list[dict[str, Any]]) -> "Table":
    """The comparisons, a row each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "score",
        "change",
        "with",
        title="Paired differences (second less first)",
        caption="95% intervals for other seeds and items (with one seed, for other items alone). p: after Holm's "
        "correction over this table.",
    )
    for column in ("difference", "95% interval", "p", "seeds x items"):
        table.add_column(column, justify="right")
    for row in rows:
        shared = (
            str(value) if name in ("divergence", "mode") else f"{name} {value}"
            for name, value in row["shared"].items()
        )
        cells = [
            row["score"],
            f"{row['factor']} {row['first']} to {row['second']}",
            ", ".join(shared),
            f"{row['difference']:+.3f}",
            f"[{row['low']:+.3f}, {row['high']:+.3f}]",
            "-" if row["p_holm"] is None else f"{row['p_holm']:.3g}",
            f"{row['n_seeds']} x {row['n_items']}",
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1 (a share of a GPU), got {text!r}")
    return value


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="recipe of the sweep")
    parser.add_argument("--results_dir", help="where results go, in place of the recipe's `results_dir`")
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
