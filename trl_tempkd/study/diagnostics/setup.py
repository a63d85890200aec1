# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is measured without training: the options, and a trainer of the pair for what it does before it trains."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._version import __version__
from ...errors import UsageError
from ...files import write_atomically
from ...fingerprint import fingerprint
from ...paths import check_file_writable, output_file
from .callback import write_table
from .logits import Plan
from .models import collect, diagnose, measure_parameters


if TYPE_CHECKING:
    from trl import DatasetMixtureConfig, ScriptArguments

    from ...trainer import TemperatureKDTrainer


TABLE = "diagnostics.csv"


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
    output_dir: str | None = field(
        default=None, metadata={"help": f"Folder of the table, {TABLE}; the settings go into a .json beside."}
    )
    output: str = field(default=TABLE, metadata={"help": "The table itself, in place of one in `output_dir`."})

    def __post_init__(self):
        self.output = output_file(self.output_dir, self.output, TABLE)
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


class Measured(NamedTuple):
    """What was measured, on how many tokens of which rows, and where it is written."""

    plan: Plan
    rows: list[dict[str, Any]]
    tokens: int
    fingerprint: str
    table: Path
    settings: Path


def measure(args: DiagnoseArguments, script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig") -> Measured:
    """Measure, and write the table and its settings."""
    assert not isinstance(args.objective_kwargs, str)
    check_file_writable(args.output, "--output_dir" if args.output_dir else "--output")
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
    return Measured(plan, rows, tokens, data, output, output.with_suffix(".json"))


def make_trainer(
    folder: str, args: DiagnoseArguments, script_args: "ScriptArguments", dataset_args: "DatasetMixtureConfig"
) -> "tuple[TemperatureKDTrainer, str]":
    """
    A trainer, for what it does before training: it loads and checks the models and prepares the data. And the
    fingerprint of the data's rows.
    """
    import torch
    from datasets import Dataset

    from ...config import KDConfig
    from ...data import check_data, data_faults, load_data, select_split
    from ...models import check_model, resolve_model
    from ...trainer import TemperatureKDTrainer

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
