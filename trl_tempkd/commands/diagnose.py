# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd diagnose`: what objectives and temperatures do to a student's gradient, without training it."""

from typing import TYPE_CHECKING

from ..recipes import RecipeParser


if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ScriptArguments

    from ..study.diagnostics.setup import DiagnoseArguments

DESCRIPTION = """\
Measure what each objective at each temperature does to a student's gradient: on which tokens of the vocabulary it
acts, how it turns and shrinks with the temperature, and how far forward and reverse KL differ. Nothing is trained.

Each temperature is measured in two modes: `both` softens student and teacher, `teacher` the teacher alone. What an
objective does can differ between them, so look at both before you choose. docs/diagnostics.md explains the measures.

The result is a table with the columns objective, mode, tau, measure, bucket, value and tokens, and beside it a JSON
file with the settings."""

EPILOG = """\
examples:
  # the pair of models that comes with the package, on a CPU
  trl-tempkd diagnose --model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher --dataset_name tiny

  # other objectives and temperatures; the gradient in the student's parameters too, and how often it is clipped
  trl-tempkd diagnose --model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher \\
      --dataset_name tiny --objectives forward_kl reverse_kl jsd --objective_kwargs '{"jsd": {"beta": 0.1}}' \\
      --temperatures 1 2 4 --parameter_gradients --output_dir outputs/gradients

  # models and held-out rows from the Hub
  trl-tempkd diagnose --model_name_or_path Qwen/Qwen3-0.6B --teacher_model_name_or_path Qwen/Qwen3-8B \\
      --dtype bfloat16 --dataset_name HuggingFaceTB/smol-smoltalk --dataset_train_split test --assistant_only_loss"""

LEGEND = """\
out k: share of the gradient outside the teacher's top k. tokens: how many it is spread over. cos 1: cosine with the
gradient at tau 1; cos d: with the difference z - v of the logits; cos RKL: with that of reverse_kl. norm: relative to
tau 1, with the rescale tau2. clipped: share of the batches whose gradient is clipped, with tau2."""


def main(args: "DiagnoseArguments", script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> None:
    from rich.console import Console

    from ..study.diagnostics.setup import measure
    from ..study.diagnostics.shown import lifted, tables

    found = measure(args, script_args, dataset_args)
    console = Console()
    for table in tables(found.rows, found.plan):
        console.print(table)
    console.print(LEGEND.replace("\n", " "))
    if said := lifted(found.rows):
        console.print(said, highlight=False)
    console.print(f"{found.tokens} tokens of rows with the fingerprint {found.fingerprint}.", highlight=False)
    console.print(f"{len(found.rows)} rows in {found.table}, the settings in {found.settings}.")


def make_parser(prog: str | None = None) -> RecipeParser:
    from trl import DatasetMixtureConfig, ScriptArguments

    from ..study.diagnostics.setup import DiagnoseArguments

    dataclass_types = (DiagnoseArguments, ScriptArguments, DatasetMixtureConfig)
    parser = RecipeParser(dataclass_types, prog=prog, description=DESCRIPTION, epilog=EPILOG)
    parser.usage = "%(prog)s [--config SETTINGS.yaml] [--OPTION VALUE ...]"
    return parser
