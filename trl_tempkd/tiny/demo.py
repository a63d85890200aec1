# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Distil the built-in teacher into the built-in student at two temperatures with two divergences, and compare.

    python -m trl_tempkd.tiny.demo                 # or: make demo
    python -m trl_tempkd.tiny.demo --steps 40      # quicker, and worse students
    python -m trl_tempkd.tiny.demo --fresh         # run everything again

Needs a few minutes on two cores, and no network. Each of the four runs is the command that it prints, and differs from
the others in --divergence and --kd_temperature alone. As many run at a time as there are cores. Interrupted, the demo
goes on with the runs that aren't finished. The output folder holds results.json, kl.png and a folder per run.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import positive
from ..errors import UsageError
from ..files import whole_file, write_atomically
from ..fingerprint import fingerprint, shown_fingerprints
from . import load_tiny_dataset, resolve
from .data import no_progress_bars
from .jobs import GENERATION, RECIPE, ROOT, Cell, DemoError, Job, finished, recipe_value, run_jobs


if TYPE_CHECKING:
    from datasets import DatasetDict
    from rich.table import Table


CELLS = [Cell(divergence, tau) for divergence in ("forward_kl", "reverse_kl") for tau in (1.0, 2.0)]
STUDENT, TEACHER = "student before", "teacher"

# Of one run: how often the held-out rows are measured while it trains
EVALUATIONS = 5


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        run(args)
    except DemoError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m trl_tempkd.tiny.demo",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="results (default: runs/demo)")
    parser.add_argument("--steps", type=positive, help="optimizer steps of each run (default: those of the recipe)")
    parser.add_argument("--rows", type=positive, default=256, help="held-out rows to compare on (default: 256)")
    parser.add_argument("--fresh", action="store_true", help="run finished runs again")
    parser.add_argument("--student", default="tiny:student", help="model to start from (default: tiny:student)")
    parser.add_argument("--teacher", default="tiny:teacher", help="model to learn from (default: tiny:teacher)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Run what isn't finished, write the results and print them."""
    from rich.console import Console

    start = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    check(args)
    output = args.output_dir.resolve()
    dataset = data_of_the_runs(output / "data", args.rows)
    fingerprints = {split: fingerprint(rows) for split, rows in dataset.items()}
    steps = args.steps or recipe_value("max_steps")

    jobs = jobs_of(args, output, steps, fingerprints)
    left = [job for job in jobs if args.fresh or finished(job.result, job.settings) is None]
    for job in jobs:
        if job not in left:
            print(f"{job.label}: finished already", flush=True)
    run_jobs(left)
    found = [json.loads(job.result.read_text(encoding="utf-8")) for job in jobs]

    results = {"rows": args.rows, "steps": steps, "fingerprints": fingerprints, "models": found}
    write_atomically(output / "results.json", json.dumps(results, indent=1))
    plot(results, output / "kl.png")
    print()
    Console().print(table_of(results))
    for line in statements(results):
        Console().print(line, highlight=False)
    print(f"\nIn {args.output_dir}: results.json, kl.png ({time.perf_counter() - start:.0f} s)")


def jobs_of(args: argparse.Namespace, output: Path, steps: int, fingerprints: dict[str, str]) -> list[Job]:
    """The models of the table, in its order."""
    models: list[tuple[str, str, Cell | None]] = [
        (STUDENT, args.student, None),
        *((cell.label, str(output / cell.name), cell) for cell in CELLS),
        (TEACHER, args.teacher, None),
    ]
    found = []
    for label, model, cell in models:
        folder = output / (cell.name if cell else label.replace(" ", "_"))
        command = command_of(cell, args, folder, output / "data", steps) if cell else []
        settings = {**settings_of(args, command), "fingerprints": fingerprints}
        found.append(Job(label, model, args.teacher, cell, command, folder, output / "data", settings))
    return found


def check(args: argparse.Namespace) -> None:
    """Stop at what is missing, before anything starts."""
    if not (ROOT / RECIPE).is_file():
        raise DemoError(f"{RECIPE} isn't beside the package: run the demo from a clone of the repository")
    from ..study import check_installed

    try:
        check_installed("the demo")
    except UsageError as error:
        raise DemoError(str(error)) from error
    for option, name in (("student", args.student), ("teacher", args.teacher)):
        try:
            path = Path(resolve(name))
        except UsageError as error:
            raise DemoError(f"--{option}: {error}") from error
        if not (path / "config.json").is_file():
            raise DemoError(f"--{option}: there is no model in {path}")


def data_of_the_runs(folder: Path, count: int) -> "DatasetDict":
    """
    Write the data set of the runs: `train` in full, and of `test` the first rows, as many as are compared on.

    Args:
        folder (`pathlib.Path`):
            Folder to write to.
        count (`int`):
            Number of held-out rows.

    Returns:
        [`~datasets.DatasetDict`]: What was written.
    """
    from datasets import DatasetDict

    dataset = load_tiny_dataset()
    if count > len(dataset["test"]):
        raise DemoError(f"--rows: the built-in data has {len(dataset['test'])} held-out rows, got {count}")
    found = DatasetDict(train=dataset["train"], test=dataset["test"].take(count))
    with no_progress_bars():
        found.save_to_disk(folder)
    return found


def command_of(cell: Cell, args: argparse.Namespace, folder: Path, data: Path, steps: int) -> list[str]:
    """The command line of a run."""
    recipe = {"model_name_or_path": args.student, "teacher_model_name_or_path": args.teacher, "dataset_name": data}
    evaluation = {"eval_strategy": "steps", "eval_steps": max(1, steps // EVALUATIONS), "eval_on_start": True}
    # Rows of a batch are about as long: half as much padding
    evaluation["train_sampling_strategy"] = "group_by_length"
    compared = {"divergence": cell.divergence, "kd_temperature": cell.tau}
    options = {**compared, **recipe, "max_steps": steps, **evaluation, "output_dir": folder}
    flags = [part for name, value in options.items() for part in (f"--{name}", shown(value))]
    return ["trl-tempkd", "distill", "--config", str(RECIPE), *flags]


def shown(value: Any) -> str:
    """A value as it stands on a command line: paths inside the repository relative to it, where the command runs."""
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        value = value.relative_to(ROOT)
    return str(value)


def settings_of(args: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """All that a result depends on beside the rows: a finished run with other settings is run again."""
    return {
        "command": command,
        "recipe": hashlib.sha256((ROOT / RECIPE).read_bytes()).hexdigest(),
        "student": weights_of(args.student),
        "teacher": weights_of(args.teacher),
        "rows": args.rows,
        "generation": GENERATION,
    }


def weights_of(name: str) -> str:
    """Hash of a model's weights."""
    digest = hashlib.sha256()
    for path in sorted(Path(resolve(name)).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def table_of(results: dict[str, Any]) -> "Table":
    """
    The table of the results.

    Args:
        results (`dict[str, Any]`):
            What results.json holds.

    Returns:
        [`rich.table.Table`]: A row per model.
    """
    from rich.table import Table

    table = Table(
        "model",
        title=f"{results['rows']} held-out rows after {results['steps']} steps",
        caption="KL(teacher, student) at tau 1. ROUGE-L of completions sampled at temperature 1, with 95% intervals.\n"
        f"Fingerprints of the rows: {shown_fingerprints(results['fingerprints'])}",
    )
    for column in ("KL to teacher\n(nats/token)", "perplexity of\nthe references", "ROUGE-L"):
        table.add_column(column, justify="right")
    for model in results["models"]:
        mean, (low, high) = interval_of(model["rouge_l"])
        table.add_row(
            model["label"],
            f"{model['kl_tau1']:.3f}",
            f"{model['perplexity']:.2f}",
            f"{mean:.1f} [{low:.1f}, {high:.1f}]".replace("[", r"\["),
            end_section=model["label"] == STUDENT or model is results["models"][-2],
        )
    return table


def interval_of(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Mean of a value per row, and its 95% interval for other rows."""
    from ..study.statistics import estimate

    found = estimate([values])
    return found.mean, found.interval()


def statements(results: dict[str, Any]) -> list[str]:
    """Two lines under the table, from its figures: what they show, and what they cannot."""
    before, *cells, _ = results["models"]
    best, worst = (choose(cells, key=lambda cell: cell["kl_tau1"]) for choose in (min, max))
    closer = sum(cell["kl_tau1"] < before["kl_tau1"] for cell in cells)
    changes = []
    for divergence in dict.fromkeys(cell["divergence"] for cell in cells):
        low_tau, high_tau = sorted((c for c in cells if c["divergence"] == divergence), key=lambda c: c["tau"])
        mean, (low, high) = interval_of([b - a for a, b in zip(low_tau["rouge_l"], high_tau["rouge_l"], strict=True)])
        seen = "no difference seen" if low <= 0 <= high else "a difference on these rows"
        changes.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f}: {seen}) with {divergence.replace('_kl', ' KL')}")
    return [
        f"Shown: {closer} of {len(cells)} students came closer to the teacher: {before['kl_tau1']:.3f} nats before, "
        f"from {best['kl_tau1']:.3f} ({best['label']}) to {worst['kl_tau1']:.3f} ({worst['label']}) after. From tau 1 "
        f"to tau 2, ROUGE-L changed by {' and by '.join(changes)}; in parentheses, the paired 95% interval over the "
        "rows.",
        f"Not shown: with one seed, a student of {before['parameters'] / 1e6:.1f} million parameters and "
        f"{results['rows']} rows this is no test of any claim on temperature. The intervals cover the choice of rows, "
        "not of the seed; that takes a study with more of both, and larger models.",
    ]


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw held-out KL at tau 1 over the steps of each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    cells = [model for model in results["models"] if "curve" in model]
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(cell["divergence"] for cell in cells))}
    for cell in cells:
        steps, values = zip(*cell["curve"], strict=True)
        style = "-" if cell["tau"] == 1 else "--"
        axes.plot(steps, values, style, color=colours[cell["divergence"]], marker="o", ms=3, label=cell["label"])
    axes.set(xlabel="step", ylabel="held-out KL to the teacher at tau 1 (nats/token)", yscale="log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.set_title(f"The same student, teacher, rows, seed and schedule; {results['rows']} held-out rows")
    axes.legend()
    axes.grid(alpha=0.3)
    with whole_file(path) as name:
        figure.savefig(name, dpi=150, format="png")
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
