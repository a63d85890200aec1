# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd diagnose`: what objectives and temperatures do to a student's gradient, without training it."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import UsageError
from ..files import write_atomically
from ..fingerprint import fingerprint
from ..paths import check_file_writable
from .arguments import RecipeParser


if TYPE_CHECKING:
    from rich.table import Table
    from trl import DatasetMixtureConfig, ScriptArguments

    from ..study.diagnostics import Plan
    from ..trainer import TemperatureKDTrainer

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
      --temperatures 1 2 4 --parameter_gradients --output outputs/diagnostics.csv

  # models and held-out rows from the Hub
  trl-tempkd diagnose --model_name_or_path Qwen/Qwen3-0.6B --teacher_model_name_or_path Qwen/Qwen3-8B \\
      --dtype bfloat16 --dataset_name HuggingFaceTB/smol-smoltalk --dataset_train_split test --assistant_only_loss"""

SOFTENED = {"both": "both softened", "teacher": "teacher softened"}

# Of what -> the title of a column -> its measure, bucket and format
COLUMNS = {
    "logits": {
        "out 1": ("mass_outside", "top_1", ".2f"),
        "out 10": ("mass_outside", "top_10", ".2f"),
        "out 100": ("mass_outside", "top_100", ".2f"),
        "tokens": ("effective_tokens", "-", ".0f"),
        "cos 1": ("cosine", "tau_1", ".2f"),
        "cos d": ("cosine", "difference", ".2f"),
        "cos RKL": ("cosine", "reverse_kl", ".2f"),
        "norm": ("norm_ratio", "tau2", ".2f"),
    },
    "parameters": {
        "cos 1": ("parameter_cosine", "tau_1", ".2f"),
        "cos d": ("parameter_cosine", "difference", ".2f"),
        "cos RKL": ("parameter_cosine", "reverse_kl", ".2f"),
        "norm": ("parameter_norm_ratio", "tau2", ".2f"),
        "clipped": ("clip_rate", "tau2", ".2f"),
    },
}
LEGEND = """\
out k: share of the gradient outside the teacher's top k. tokens: how many it is spread over. cos 1: cosine with the
gradient at tau 1; cos d: with the difference z - v of the logits; cos RKL: with that of reverse_kl. norm: relative to
tau 1, with the rescale tau2. clipped: share of the batches whose gradient is clipped, with tau2."""


@dataclass
class DiagnoseArguments:
    """What to measure, and on which models. Each field is an option of `trl-tempkd diagnose`."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "The student: a name or a folder."})
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher, with the student's tokenizer."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision of the student."})
    teacher_model_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of both models. What is measured on their logits is computed in fp32 at least.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that comes with a model."})
    objectives: list[str] = field(
        default_factory=lambda: ["forward_kl", "reverse_kl", "jsd"],
        metadata={"help": "Names of divergences, as `trl-tempkd divergences` lists them."},
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Their parameters by name, e.g. `{"jsd": {"beta": 0.1}}`.'}
    )
    temperatures: list[float] = field(
        default_factory=lambda: [1.0, 1.5, 2.0, 3.0, 4.0, 8.0], metadata={"help": "Values of tau."}
    )
    modes: list[str] = field(
        default_factory=lambda: ["both", "teacher"],
        metadata={"help": "What tau softens: both sides, or the teacher alone.", "choices": ["both", "teacher"]},
    )
    num_rows: int = field(default=32, metadata={"help": "Number of rows, the first of `dataset_train_split`."})
    batch_size: int = field(default=8, metadata={"help": "Rows in a forward pass, and in a batch of the clip rate."})
    max_length: int = field(default=512, metadata={"help": "Where rows are cut off, in tokens."})
    assistant_only_loss: bool = field(
        default=False, metadata={"help": "Whether of a conversation only the assistant's tokens count."}
    )
    parameter_gradients: bool = field(
        default=False,
        metadata={
            "help": "Whether to measure the gradient in the student's parameters too, and the clip rate. Holds about "
            "three copies of it for each objective."
        },
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm beyond which a gradient counts as clipped."})
    output: str = field(
        default="diagnostics.csv", metadata={"help": "The table. The settings go into a .json beside."}
    )

    def __post_init__(self):
        if isinstance(self.objective_kwargs, str):
            self.objective_kwargs = json.loads(self.objective_kwargs)
        kwargs = {} if self.objective_kwargs is None else self.objective_kwargs
        if not isinstance(kwargs, dict) or not set(kwargs) <= set(self.objectives):
            raise UsageError(
                f"`objective_kwargs` must have objectives for its keys ({', '.join(self.objectives)}), got {kwargs!r}."
            )
        for name in ("num_rows", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.output.endswith(".csv"):
            raise UsageError(f"`output` must end with .csv, got {self.output!r}.")


def main(args: DiagnoseArguments, script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> None:
    from rich.console import Console

    from ..study.diagnostics import Plan, collect, diagnose, measure_parameters, write_table

    assert not isinstance(args.objective_kwargs, str)
    check_file_writable(args.output, "--output")
    plan = Plan(args.objectives, args.temperatures, args.modes, args.objective_kwargs)
    output = Path(args.output)
    with TemporaryDirectory() as folder:
        trainer, data = make_trainer(folder, args, script_args, dataset_args)
        batches = collect(trainer, trainer.train_dataset, args.num_rows, args.batch_size)
        rows = diagnose(trainer, batches, plan)
        if args.parameter_gradients:
            rows += measure_parameters(trainer, batches, plan)
    tokens = sum(len(batch.targets) for batch in batches)
    settings = {**dataclasses.asdict(script_args), **dataclasses.asdict(dataset_args), **dataclasses.asdict(args)}
    settings |= {"tokens": tokens, "fingerprint": data, "trl_tempkd": __version__}
    write_atomically(output.with_suffix(".json"), json.dumps(settings, indent=1) + "\n")
    write_table(output, rows)
    console = Console()
    for table in tables(rows, plan):
        console.print(table)
    console.print(LEGEND.replace("\n", " "))
    console.print(f"{tokens} tokens of rows with the fingerprint {data}.", highlight=False)
    console.print(f"{len(rows)} rows in {output}, the settings in {output.with_suffix('.json')}.")


def make_trainer(
    folder: str, args: DiagnoseArguments, script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig"
) -> "tuple[TemperatureKDTrainer, str]":
    """
    A trainer, for what it does before training: it loads and checks the models and prepares the data. And the
    fingerprint of the data's rows.
    """
    import torch
    from datasets import Dataset

    from ..config import KDConfig
    from ..trainer import TemperatureKDTrainer
    from .data import check_data, check_model, data_faults, load_data, resolve_model, select_split

    check_data(script_args, dataset_args)
    student = resolve_model(args.model_name_or_path, "model_name_or_path")
    teacher = resolve_model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    split = script_args.dataset_train_split
    dataset = select_split(load_data(script_args, dataset_args), split, "dataset_train_split")
    with data_faults(script_args, dataset_args):
        rows = [row for row, _ in zip(dataset, range(args.num_rows), strict=False)]
    if not rows:
        raise UsageError(f"the split {split!r} has no rows (--dataset_train_split)")
    check_model(student, args.model_revision, args.trust_remote_code, "model_name_or_path")
    check_model(teacher, args.teacher_model_revision, args.trust_remote_code, "teacher_model_name_or_path")
    config = KDConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": args.dtype, "revision": args.model_revision or "main"},
        teacher_model_init_kwargs={"dtype": args.dtype},
        teacher_model_revision=args.teacher_model_revision,
        trust_remote_code=args.trust_remote_code,
        max_length=args.max_length,
        assistant_only_loss=args.assistant_only_loss,
        max_grad_norm=args.max_grad_norm,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
    )
    data = Dataset.from_list(rows)
    trainer = TemperatureKDTrainer(model=student, teacher_model=teacher, args=config, train_dataset=data)
    return trainer, fingerprint(data)


def tables(rows: list[dict[str, Any]], plan: "Plan") -> "list[Table]":
    """What matters most of the measures, for each mode a table, and one more of the parameters."""
    from rich.box import SIMPLE
    from rich.table import Table

    values = {tuple(row.values())[:5]: row["value"] for row in rows}
    measured = {row["measure"] for row in rows}
    result = []
    for of, columns in COLUMNS.items():
        if not {measure for measure, _, _ in columns.values()} <= measured:
            continue
        for mode in plan.modes:
            title = f"Gradient in the {of}, {SOFTENED[mode]}"
            table = Table("objective", "tau", title=title, box=SIMPLE, padding=0)
            table.columns[0].no_wrap = True
            for column in columns:
                table.add_column(column, justify="right")
            for name in plan.objectives:
                for tau in plan.temperatures:
                    cells = ((values.get((name, mode, tau, *key)), form) for *key, form in columns.values())
                    texts = ("" if value is None else format(value, form) for value, form in cells)
                    table.add_row(name, f"{tau:g}", *texts)
                table.add_section()
            result.append(table)
    return result


def make_parser(prog: str | None = None) -> RecipeParser:
    from trl import DatasetMixtureConfig, ScriptArguments

    dataclass_types = (DiagnoseArguments, ScriptArguments, DatasetMixtureConfig)
    parser = RecipeParser(dataclass_types, prog=prog, description=DESCRIPTION, epilog=EPILOG)
    parser.usage = "%(prog)s [--config SETTINGS.yaml] [--OPTION VALUE ...]"
    return parser
