# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd evaluate`: generate with fixed seeds, score, compare with the teacher; one JSON file, resumable."""

import dataclasses
import hashlib
import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import write_atomically
from ..fingerprint import fingerprint
from .arguments import RecipeParser


if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel

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
      --dataset_name tiny --num_rows 64 --output runs/tiny.json

  # a distilled model, or the folder of its LoRA adapter, on Dolly's instructions as in MiniLLM
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --teacher_model_name_or_path openai-community/gpt2-xl \\
      --dataset_name databricks/databricks-dolly-15k --dataset_test_split train --num_rows 500 --max_new_tokens 256

  # greedy decoding alone; two seeds alone
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --dataset_name tiny --seeds
  trl-tempkd evaluate --model_name_or_path runs/gpt2 --dataset_name tiny --seeds 10 20 --no_greedy"""


@dataclass
class EvaluateConfig:
    """Options of `trl-tempkd evaluate`. Those with a name of TRL's mean what they mean there."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model: a folder, also of a PEFT adapter, a name on the Hub, or tiny:student."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Teacher to compare with; without one there are no divergences."}
    )
    teacher_model_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Of both models.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(default=None, metadata={"help": "cpu or cuda; by default a GPU if there is one."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set: a file, a folder, a name on the Hub, or tiny."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set on the Hub."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to use; by default test, or the only one that there is."}
    )
    num_rows: int | None = field(default=None, metadata={"help": "Use the first rows only."})
    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "auto: by the columns; instructions get the Alpaca prompt. alpaca: other plain prompts too.",
            "choices": ["auto", "alpaca"],
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [10, 20, 30, 40, 50],
        metadata={"help": "A sampled run for each; with none, greedy decoding alone."},
    )
    greedy: bool = field(default=True, metadata={"help": "Whether to make a greedy run too."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the probability mass to sample from."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest completion in tokens."})
    batch_size: int = field(default=32, metadata={"help": "Rows per batch; what a seed draws depends on it."})
    output: str = field(default="results.json", metadata={"help": "File to write the results to."})
    overwrite: bool = field(default=False, metadata={"help": "Start again, whatever the file of the results holds."})

    def __post_init__(self):
        # A recipe may say `seeds: 10`
        self.seeds = [int(seed) for seed in (self.seeds if isinstance(self.seeds, list) else [self.seeds])]
        for name in ("max_new_tokens", "batch_size", "num_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"`{name}` must be at least 1, got {value}.")
        if not self.temperature > 0:
            raise UsageError(f"`temperature` must be positive (--seeds alone is greedy only), got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise UsageError(f"`seeds` must be different and not negative, got {self.seeds}.")


def main(args: EvaluateConfig) -> None:
    """
    Evaluate, write the results after each run, and print them as a table.

    Args:
        args ([`EvaluateConfig`]):
            Options.
    """
    from ..paths import check_file_writable, check_model_name, check_path
    from .data import resolve_model

    # What can be wrong with the names is found before anything is loaded
    student = resolve_model(args.model_name_or_path, "model_name_or_path")
    teacher_name = args.teacher_model_name_or_path
    teacher = resolve_model(teacher_name, "teacher_model_name_or_path") if teacher_name else None
    if not args.dataset_name:
        raise UsageError("no data set: give --dataset_name")
    check_path(args.dataset_name, "data set")
    output = Path(args.output)
    check_file_writable(output, "--output")
    earlier = read_results(output) if output.exists() and not args.overwrite else None

    import torch
    from rich.console import Console
    from transformers import AutoTokenizer

    from ..prompts import check_rows, read_rows
    from ..study.evaluation import evaluate_model
    from ..teachers.live import check_vocabulary

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = load_rows(args)
    check_rows(dataset)
    check_model_name(student, args.model_revision, "--model_name_or_path")
    if teacher is not None:
        check_model_name(teacher, args.teacher_model_revision, "--teacher_model_name_or_path")
    model = load_model(student, args.model_revision, args, "model_name_or_path").to(device)
    tokenizer = load_tokenizer(AutoTokenizer, student, model, args)
    teacher_model = None
    if teacher is not None:
        revision = args.teacher_model_revision
        teacher_model = load_model(teacher, revision, args, "teacher_model_name_or_path").to(device)
        check_vocabulary(tokenizer, model, teacher_model, revision=revision, trust_remote_code=args.trust_remote_code)
    rows = read_rows(dataset, tokenizer, args.prompt_format)

    settings = settings_of(args, model, teacher_model, rows, fingerprint(dataset))
    if earlier is not None:
        check_settings(earlier["settings"], settings, output)

    found = evaluate_model(
        model,
        tokenizer,
        rows,
        teacher=teacher_model,
        seeds=args.seeds,
        greedy=args.greedy,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        results=earlier or {"settings": settings},
        save=lambda results: write_results(output, results),
    )
    write_results(output, found)
    Console().print(table_of(found))
    print(f"Results, with those of each item: {output}")


def load_rows(args: EvaluateConfig) -> Any:
    """The rows of the split that the options name."""
    from itertools import islice

    from trl import DatasetMixtureConfig, ScriptArguments

    from .data import data_faults, load_data, select_split

    script_args = ScriptArguments(dataset_name=args.dataset_name, dataset_config=args.dataset_config)
    dataset = load_data(script_args, DatasetMixtureConfig())
    split = args.dataset_test_split or ("test" if len(dataset) > 1 else next(iter(dataset)))
    with data_faults(script_args, DatasetMixtureConfig()):
        return list(islice(select_split(dataset, split, "dataset_test_split"), args.num_rows))


def load_model(name: str, revision: str | None, args: EvaluateConfig, option: str) -> "PreTrainedModel":
    """A causal language model, or an adapter on its base."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    from ..compat import find_adapter_config_file

    kwargs = {"revision": revision, "trust_remote_code": args.trust_remote_code, "dtype": args.dtype}
    try:
        adapter = find_adapter_config_file(name, revision=revision)
        loader = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
        return loader.from_pretrained(name, **{k: v for k, v in kwargs.items() if v is not None}).eval()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model {name!r} (--{option}): {str(error).splitlines()[0]}") from error


def load_tokenizer(auto: Any, name: str, model: Any, args: EvaluateConfig) -> Any:
    """The tokenizer of the model, or of the base where an adapter was saved without one."""
    names = [name]
    if hasattr(model, "get_base_model"):
        names += [config.base_model_name_or_path for config in model.peft_config.values()]
    for candidate in names:
        try:
            return auto.from_pretrained(
                candidate,
                revision=args.model_revision if candidate == name else None,
                trust_remote_code=args.trust_remote_code,
            )
        except (OSError, ValueError) as error:
            problem = error
    raise UsageError(f"cannot load a tokenizer for {name!r}: {str(problem).splitlines()[0]}") from problem


def settings_of(
    args: EvaluateConfig, model: Any, teacher: Any, rows: list[dict[str, Any]], data: str
) -> dict[str, Any]:
    """All that decides the results, except for which runs are made and what they run on."""
    which_runs = ("seeds", "greedy", "output", "overwrite", "device")
    options = {name: value for name, value in dataclasses.asdict(args).items() if name not in which_runs}
    return {
        **options,
        "rows": len(rows),
        "fingerprint": data,
        "rows_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "model": describe(model),
        "teacher": None if teacher is None else describe(teacher),
        "environment": environment(model.device),
    }


def describe(model: Any) -> dict[str, Any]:
    """What a model is, whatever its folder is called: type, commit on the Hub, dtype, and a hash of its weights."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        flat = parameter.detach().flatten()
        # Some entries of each tensor: training moves nearly all of them
        some = flat[:: max(1, flat.numel() // 1024)].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return {
        "type": model.config.model_type,
        "adapter": hasattr(model, "get_base_model"),
        "commit": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": digest.hexdigest()[:16],
    }


def environment(device: Any) -> dict[str, Any]:
    """What the numbers were made with."""
    import torch

    from .._version import __version__

    packages = ("torch", "transformers", "trl", "datasets", "evaluate", "rouge-score", "tokenizers", "peft")
    return {
        "trl_tempkd": __version__,
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def check_settings(earlier: dict[str, Any], settings: dict[str, Any], output: Path) -> None:
    """Stop where a file holds results of something else."""
    settings = json.loads(json.dumps(settings))
    other = [name for name in settings if earlier.get(name) != settings[name]]
    if other:
        raise UsageError(
            f"{output} holds results with other settings ({', '.join(other)}): give another --output, or --overwrite"
        )


def read_results(output: Path) -> dict[str, Any]:
    """The results that a file holds, or an error if it isn't one of ours."""
    refusal = UsageError(f"{output} is there and holds no results: give another --output, or --overwrite")
    try:
        results = json.loads(output.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise refusal from error
    if not isinstance(results, dict) or not isinstance(results.get("settings"), dict):
        raise refusal
    return results


def write_results(output: Path, results: dict[str, Any]) -> None:
    """Write the results so that at no time half a file stands there."""
    write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False))


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
    for name, value in results.get("compared", {}).get("scores", {}).items():
        table.add_row(f"{name} (references)", f"{value:.4g}" if name != "tokens" else str(value), "", "")
    return table


def make_parser(prog: str | None = None) -> RecipeParser:
    parser = RecipeParser((EvaluateConfig,), prog=prog, description=DESCRIPTION, epilog=EPILOG)
    parser.usage = "%(prog)s [--config RECIPE.yaml] [--OPTION VALUE ...]"
    parser._option_string_actions["--seeds"].nargs = "*"  # a list takes at least one value by default
    return parser
