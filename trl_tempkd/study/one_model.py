# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One model, evaluated by itself into a file of results, which an interrupted evaluation goes on from."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from trl import DatasetMixtureConfig, ScriptArguments

from .._version import __version__
from ..data import data_faults, load_data, select_split
from ..errors import UsageError
from ..files import write_atomically
from ..fingerprint import fingerprint
from ..models import load_model, load_processor, load_tokenizer, resolve_model, usable_device
from ..paths import check_file_writable, check_model_name, check_path, output_file
from ..prompts import check_rows, hash_of, read_rows
from ..teachers.live import check_vocabulary
from ..teachers.own_pixels import own_processing
from ..vision import Processing, is_pictured
from ..vision_data import undecoded
from .diversity import measure_curve
from .evaluation import evaluate_model, prompt_tokens
from .harness import check_tasks, run_tasks


RESULTS = "results.json"


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
    temperatures: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Several more, as 1 .9 .8 .7: quality over diversity, to compare models at the same self-BLEU."
        },
    )
    top_p: float = field(default=1.0, metadata={"help": "Share of the probability mass to sample from."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest completion in tokens."})
    batch_size: int = field(default=32, metadata={"help": "Rows per batch; what a seed draws depends on it."})
    lm_eval: list[str] = field(
        default_factory=list,
        metadata={"help": "Tasks of the LM evaluation harness to run too, as hellaswag: see `lm_eval ls tasks`."},
    )
    lm_eval_limit: int | None = field(default=None, metadata={"help": "Of each task the first rows only."})
    lm_eval_include_path: str | None = field(default=None, metadata={"help": "Folder with tasks of your own."})
    output_dir: str | None = field(default=None, metadata={"help": f"Folder of the results, {RESULTS} in it."})
    output: str = field(default=RESULTS, metadata={"help": "The file itself, in place of one in `output_dir`."})
    overwrite: bool = field(default=False, metadata={"help": "Start again, whatever the file of the results holds."})

    def __post_init__(self):
        self.output = output_file(self.output_dir, self.output, RESULTS)
        # A recipe may say `seeds: 10`
        self.seeds = [int(seed) for seed in (self.seeds if isinstance(self.seeds, list) else [self.seeds])]
        self.lm_eval = self.lm_eval if isinstance(self.lm_eval, list) else [self.lm_eval]
        for name in ("max_new_tokens", "batch_size", "num_rows", "lm_eval_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"`{name}` must be at least 1, got {value}.")
        if not self.temperature > 0:
            raise UsageError(f"`temperature` must be positive (--seeds alone is greedy only), got {self.temperature}.")
        self.temperatures = self.temperatures if isinstance(self.temperatures, list) else [self.temperatures]
        if not all(value > 0 for value in self.temperatures):
            raise UsageError(f"`temperatures` must be positive, got {self.temperatures}.")
        if self.temperatures and not self.seeds:
            raise UsageError("`temperatures` are sampled at, which needs `seeds`: give one seed at least.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise UsageError(f"`seeds` must be different and not negative, got {self.seeds}.")


def evaluate(args: EvaluateConfig) -> dict[str, Any]:
    """
    Evaluate, and write the results after each run.

    Returns:
        `dict[str, Any]`: What [`~evaluation.evaluate_model`] gives, `settings`, with `temperatures` the `curve` of
        [`~diversity.measure_curve`], and with `lm_eval` what [`~harness.run_tasks`] measures.
    """
    # What can be wrong with the names is found before anything is loaded
    student = resolve_model(args.model_name_or_path, "model_name_or_path")
    teacher_name = args.teacher_model_name_or_path
    teacher = resolve_model(teacher_name, "teacher_model_name_or_path") if teacher_name else None
    if not args.dataset_name:
        raise UsageError("no data set: give --dataset_name")
    check_path(args.dataset_name, "data set")
    output = Path(args.output)
    check_file_writable(output, "--output_dir" if args.output_dir else "--output")
    if args.lm_eval:
        check_tasks(args.lm_eval, args.lm_eval_include_path)
    earlier = read_results(output) if output.exists() and not args.overwrite else None

    device = usable_device(args.device)
    dataset = load_rows(args)
    check_rows(dataset)
    check_model_name(student, args.model_revision, "--model_name_or_path")
    if teacher is not None:
        check_model_name(teacher, args.teacher_model_revision, "--teacher_model_name_or_path")
    loaded = {"trust_remote_code": args.trust_remote_code, "dtype": args.dtype}
    model = load_model(student, args.model_revision, "model_name_or_path", **loaded).to(device)
    tokenizer = load_tokenizer(student, args.model_revision, model, args.trust_remote_code)
    teacher_model = None
    if teacher is not None:
        revision = args.teacher_model_revision
        teacher_model = load_model(teacher, revision, "teacher_model_name_or_path", **loaded).to(device)
        origin: dict[str, Any] = {"revision": revision, "trust_remote_code": args.trust_remote_code}
        alone = "Without --teacher_model_name_or_path the model is evaluated by itself."
        check_vocabulary(tokenizer, model, teacher_model, **origin, way_out=alone)
    readers = readers_of(dataset, student, args.model_revision, teacher, args.teacher_model_revision, args)
    rows = read_rows(dataset, tokenizer, args.prompt_format, readers.get("processing"))
    if args.temperatures and not all(row["references"] for row in rows):
        raise UsageError("--temperatures measures ROUGE-L, and not every row has a prompt and a reference")
    settings = settings_of(args, model, teacher_model, rows, fingerprint(dataset))
    if earlier is not None:
        check_settings(earlier["settings"], settings, output)

    def save(results: dict[str, Any]) -> None:
        write_atomically(output, json.dumps(results, indent=1, ensure_ascii=False))

    sampling: dict[str, Any] = {
        "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.batch_size,
    }
    found = evaluate_model(
        model,
        tokenizer,
        rows,
        teacher=teacher_model,
        seeds=args.seeds,
        greedy=args.greedy,
        temperature=args.temperature,
        results=earlier or {"settings": settings},
        save=save,
        **readers,
        **sampling,
    )
    if args.temperatures:
        prompts, _ = prompt_tokens(model, tokenizer, rows, args.max_new_tokens)
        references = [row["references"] for row in rows]
        over = (args.temperatures, args.seeds, found.get("curve"), lambda curve: save({**found, "curve": curve}))
        if readers:
            sampling |= {"processing": readers["processing"], "pictured": [row["row"] for row in rows]}
        found["curve"] = measure_curve(model, tokenizer, prompts, references, *over, **sampling)
    done = found.get("lm_eval", {})
    if tasks := [name for name in args.lm_eval if name not in done]:
        how = (args.lm_eval_include_path, args.lm_eval_limit, args.batch_size)
        found["lm_eval"] = {**done, **run_tasks(model, tokenizer, tasks, *how)}
    save(found)
    return found


def readers_of(
    dataset: Sequence[dict[str, Any]],
    model: str,
    revision: str | None,
    teacher: str | None,
    teacher_revision: str | None,
    args: Any,
) -> dict[str, Any]:
    """
    What reads rows with images, as [`~evaluation.evaluate_model`] takes it: the processors of a model and its teacher,
    by their folders or names. Nothing for rows without.
    """
    if not dataset or not is_pictured(dataset[0]):
        return {}
    processor = load_processor(model, revision, args.trust_remote_code, "model")
    if not hasattr(processor, "image_processor"):
        raise UsageError(
            f"the rows have images, and {model!r} (--model_name_or_path) reads text alone: give a model that sees"
        )
    processing = Processing(processor)
    if teacher is None:
        return {"processing": processing}
    origin = {"revision": teacher_revision, "trust_remote_code": args.trust_remote_code}
    return {"processing": processing, "of_teacher": own_processing(teacher, processing, **origin)}


def other_rows(evaluation: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the other data sets on which a cell is scored, by name."""
    return {name: load_rows(EvaluateConfig(dataset_name=path)) for name, path in evaluation["datasets"].items()}


def load_rows(args: EvaluateConfig) -> Any:
    """The rows of the split that the options name."""
    script_args = ScriptArguments(dataset_name=args.dataset_name, dataset_config=args.dataset_config)
    dataset = load_data(script_args, DatasetMixtureConfig())
    split = args.dataset_test_split or ("test" if len(dataset) > 1 else next(iter(dataset)))
    with data_faults(script_args, DatasetMixtureConfig()):
        return list(islice(undecoded(select_split(dataset, split, "dataset_test_split")), args.num_rows))


def settings_of(
    args: EvaluateConfig, model: Any, teacher: Any, rows: list[dict[str, Any]], data: str
) -> dict[str, Any]:
    """All that decides the results, except for which runs are made and what they run on."""
    which_runs = (
        "seeds",
        "greedy",
        "temperatures",
        "output",
        "output_dir",
        "overwrite",
        "device",
        "lm_eval",
        "lm_eval_include_path",
    )
    options = {name: value for name, value in dataclasses.asdict(args).items() if name not in which_runs}
    return {
        **options,
        "rows": len(rows),
        "fingerprint": data,
        "rows_sha256": hash_of(rows),
        "model": describe(model),
        "teacher": None if teacher is None else describe(teacher),
        "environment": environment(model.device),
    }


def describe(model: Any) -> dict[str, Any]:
    """What a model is, whatever its folder is called: type, commit on the Hub, dtype, and a hash of its weights."""
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
            f"{output} holds results with other settings ({', '.join(other)}): give another --output_dir, or "
            "--overwrite"
        )


def read_results(output: Path) -> dict[str, Any]:
    """The results that a file holds, or an error if it isn't one of ours."""
    refusal = UsageError(f"{output} is there and holds no results: give another --output_dir, or --overwrite")
    try:
        results = json.loads(output.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise refusal from error
    if not isinstance(results, dict) or not isinstance(results.get("settings"), dict):
        raise refusal
    return results
