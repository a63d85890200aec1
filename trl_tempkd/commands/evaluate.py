# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd evaluate`: generate with fixed seeds, score, compare with the teacher; one JSON file, resumable."""

from typing import TYPE_CHECKING, Any

from ..recipes import RecipeParser


if TYPE_CHECKING:
    from rich.table import Table

    from ..study.one_model import EvaluateConfig

DESCRIPTION = """\
Generate from a model once per seed and once greedily, and score what it says: ROUGE-L as MiniLLM counts it, distinct-1
to 4, self-BLEU, length and stop rate. On the references: perplexity, entropy and expected calibration error, and with
a teacher KL and reverse KL at temperature 1 and agreement.

The defaults are MiniLLM's: seeds 10, 20, 30, 40, 50, temperature 1, top_p 1. Rows are in any format of TRL, or
instructions (instruction, input or context, output or response), which get the Alpaca prompt in MiniLLM's words. The
results hold the scores of every item, all settings, and the completions. Started again, finished runs are skipped."""

EPILOG = """\
examples:
  # the built-in student beside its teacher, on a CPU
  trl-tempkd evaluate --model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher \\
      --dataset_name tiny --num_rows 64 --output_dir runs/tiny

  # a distilled model, or the folder of its LoRA adapter, on Dolly's instructions as in MiniLLM
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --teacher_model_name_or_path openai-community/gpt2-xl \\
      --dataset_name databricks/databricks-dolly-15k --dataset_test_split train --num_rows 500 --max_new_tokens 256

  # greedy decoding alone; two seeds alone
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --dataset_name tiny --seeds
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --dataset_name tiny --seeds 10 20 --no_greedy

  # and tasks of the LM evaluation harness
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --dataset_name tiny --lm_eval hellaswag arc_easy

  # quality over diversity: a sharper model scores higher, so compare two of them at the same self-BLEU
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --dataset_name tiny --temperatures 1 .9 .8 .7 .6"""


def main(args: "EvaluateConfig") -> None:
    """Evaluate, and print the results as a table."""
    from rich.console import Console

    from ..study.one_model import evaluate

    found = evaluate(args)
    console = Console()
    console.print(table_of(found))
    without = [number for number, row in enumerate(found["rows"]) if not row["references"]]
    if without:
        rows = f"{len(without)} of {len(found['rows'])} rows have no reference, the first is row {without[0]}"
        print(f"No ROUGE-L: {rows}.")
    if found.get("curve"):
        console.print(curve_of(found["curve"]))
    print(f"Results, with those of each item: {args.output}")


def table_of(results: dict[str, Any]) -> "Table":
    """The scores as a table: of the sampled runs the mean and the deviation over the seeds, and of the greedy one."""
    from rich.table import Table

    seeds = [run["seed"] for run in results["runs"] if run["seed"] is not None]
    greedy: dict[str, float] = next((run["scores"] for run in results["runs"] if run["seed"] is None), {})
    settings = results["settings"]
    table = Table(
        "score",
        title=f"{settings['model_name_or_path']} on {settings['rows']} rows of {settings['dataset_name']}",
        caption=f"Fingerprint of the rows: {settings['fingerprint']}",
    )
    table.add_column(f"mean over {len(seeds)} seeds", justify="right")
    table.add_column("std", justify="right")
    table.add_column("greedy", justify="right")
    means = results.get("means", {})
    for name in means or greedy:
        mean = [f"{means[name]['mean']:.4g}", f"{means[name]['std']:.2g}"] if name in means else ["", ""]
        table.add_row(name, *mean, f"{greedy[name]:.4g}" if greedy else "")
    table.add_section()
    for task, measured in results.get("lm_eval", {}).items():
        for name, value in measured["scores"].items():
            table.add_row(f"{task} {name}", f"{value:.4g}" if isinstance(value, float) else str(value), "", "")
    table.add_section()
    for name, value in results.get("compared", {}).get("scores", {}).items():
        table.add_row(f"{name} (references)", f"{value:.4g}" if name != "tokens" else str(value), "", "")
    return table


def curve_of(curve: list[dict[str, Any]]) -> "Table":
    """Quality over diversity: what was measured at each temperature, and what lies between at even self-BLEU."""
    from rich.table import Table

    from ..study.diversity import at_even_diversity

    table = Table("sampled at", title="Quality over diversity")
    for column in ("self-BLEU", "ROUGE-L", "length"):
        table.add_column(column, justify="right")
    for point in curve:
        values = (point[name][0] for name in ("self_bleu", "rouge_l", "length"))
        table.add_row(f"{point['temperature']:g}", *(f"{value:.4g}" for value in values))
    table.add_section()
    for value, rouge_l, length in at_even_diversity(curve):
        table.add_row("between", f"{value:g}", f"{rouge_l:.4g}", f"{length:.4g}")
    return table


def make_parser(prog: str | None = None) -> RecipeParser:
    from ..study.one_model import EvaluateConfig

    parser = RecipeParser((EvaluateConfig,), prog=prog, description=DESCRIPTION, epilog=EPILOG)
    parser.usage = "%(prog)s [--config RECIPE.yaml] [--OPTION VALUE ...]"
    parser._option_string_actions["--seeds"].nargs = "*"  # a list takes at least one value by default
    return parser
