# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
A teacher's completions for the prompts of a data set, written as a data set: sequence-level KD, and data to train on
off-policy.

The rows are done in parts, each in a file of its own that appears whole, so that a run goes on where it stopped. What
a part draws depends on the seed and on its place alone.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ._version import __version__
from .errors import UsageError
from .files import whole_file, write_atomically, written
from .fingerprint import fingerprint, row_hash
from .generated_rows import new_row, prompt_of
from .locks import owned
from .option_groups import must, option
from .paths import check_writable
from .processes import end_with_launcher
from .rollouts.options import GenerationOptions, SamplingOptions
from .teachers.address import shown
from .teachers.options import ServerOptions
from .vision import is_pictured
from .vision_data import undecoded


if TYPE_CHECKING:
    from trl import ScriptArguments

DATA, FAILED, ABOUT, PARTS = "train.jsonl", "_failed.jsonl", "_generation.json", "_parts"
# Options that change nothing of what is written
_AROUND = (
    *("output", "overwrite", "device", "generation_batch_size", "teacher_server_url"),
    *("teacher_server_requests", "teacher_server_timeout", "teacher_server_patience"),
)

# Tokens of some prompts, a seed, and what the prompts were made of if they have images -> the tokens of their
# completions, or why there is none
Write = Callable[..., list[Any]]


@dataclass
class GenerateConfig(ServerOptions, GenerationOptions, SamplingOptions):
    """Options of `trl-tempkd generate`. Those with a name of TRL's mean what they mean there."""

    # What the groups look at, of the options that a training has
    generates: ClassVar[bool] = True
    use_vllm: ClassVar[bool] = False
    teachers: ClassVar[None] = None
    world_size: ClassVar[int] = 1
    _VALID_DICT_FIELDS: ClassVar[list[str]] = ["generation_kwargs"]

    teacher_model_name_or_path: str | None = option(
        None,
        "Who writes: a folder, also of a PEFT adapter, a name on the Hub, or tiny:teacher. Of one that is served the "
        "tokenizer alone is read.",
    )
    teacher_server_url: str | None = option(
        None,
        "Address of a server of vLLM's kind that writes, e.g. `http://localhost:8000`: tokens in, tokens out, and no "
        "teacher is loaded. A key is taken from the environment variable `VLLM_API_KEY`.",
    )
    teacher_server_patience: float = option(
        600.0, "Seconds for which a request is repeated while the teacher's server is away. Then the run stops."
    )
    teacher_model_revision: str | None = option(None, "Revision of the teacher on the Hub.")
    trust_remote_code: bool = option(False, "Run code that comes with a model.")
    dtype: str = option("auto", "Of the teacher.", choices=["auto", "float32", "bfloat16", "float16"])
    device: str | None = option(None, "cpu or cuda; by default a GPU if there is one.")
    num_rows: int | None = option(None, "Use the first rows only.")
    num_completions: int = option(1, "Completions of each prompt.")
    batch_size: int = option(
        16, "Completions of a part, which are generated together; what a seed draws depends on it."
    )
    seed: int = option(42, "Of the sampling.")
    min_tokens: int = option(1, "Leave out completions with fewer tokens, what stops them not counted.")
    only_stopped: bool = option(False, "Leave out completions that were cut at `max_new_tokens`.")
    output: str | None = option(None, "Folder of the new data set.")
    overwrite: bool = option(False, "Start again, whatever the folder holds.")

    def __post_init__(self) -> None:
        if isinstance(self.generation_kwargs, str):
            try:
                self.generation_kwargs = json.loads(self.generation_kwargs)
            except ValueError:
                must(self, "generation_kwargs", False, "a dict, as JSON")
        for name in ("num_completions", "batch_size", "min_tokens"):
            must(self, name, getattr(self, name) >= 1, "at least 1")
        must(self, "num_rows", self.num_rows is None or self.num_rows >= 1, "at least 1")
        must(self, "seed", self.seed >= 0, "at least 0")
        for group in (SamplingOptions, GenerationOptions, ServerOptions):
            group.check(self)


def check(args: GenerateConfig, script_args: "ScriptArguments") -> None:
    """Stop at what can be seen to be wrong before anything is loaded."""
    from trl import DatasetMixtureConfig

    from .data import check_data
    from .models import check_model, resolve_model, usable_device

    if args.device is not None:
        usable_device(args.device)
    if not args.output:
        raise UsageError("no folder for the completions: give --output_dir")
    check_data(script_args, DatasetMixtureConfig())
    name = resolve_model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if args.teacher_server_url is None:
        check_model(name, args.teacher_model_revision, args.trust_remote_code, "teacher_model_name_or_path")
    check_writable(args.output, "--output_dir")


def generate(args: GenerateConfig, script_args: "ScriptArguments") -> dict[str, Any]:
    """
    Write the completions, or go on with them.

    Args:
        args ([`GenerateConfig`]):
            Who writes, and how.
        script_args ([`~trl.ScriptArguments`]):
            The data set and its split, `dataset_train_split`.

    Returns:
        `dict[str, Any]`: How many rows there were, were written, were left out, and failed.
    """
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    end_with_launcher()
    check(args, script_args)
    accelerator = Accelerator(cpu=args.device == "cpu")
    folder = Path(str(args.output))
    main = accelerator.is_main_process
    with written(folder), owned(folder, "--output_dir") if main else nullcontext():
        with accelerator.main_process_first():
            rows = load_rows(script_args, args.num_rows)
        pictured = bool(rows) and is_pictured(rows[0])
        if pictured and args.teacher_server_url is not None:
            raise UsageError(
                f"the rows have images, and --teacher_server_url {shown(args.teacher_server_url)} isn't shown any: "
                "leave it out, and give a --teacher_model_name_or_path that sees"
            )
        name, tokenizer, write, room = make_writer(args, accelerator, pictured)
        about = settings_of(args, script_args, name, rows)
        todo: list[Any] = [_begin(folder, about, rows, args)] if main else [None]
        parts: list[int] = broadcast_object_list(todo)[0]
        width = accelerator.num_processes
        own = [parts[start + accelerator.process_index :][:1] for start in range(0, len(parts), width)]
        for part in _shown(own, args, accelerator.is_local_main_process):
            # A rank that has no part left goes along with those that have
            size = _per_part(args)
            numbers = range(part[0] * size, min((part[0] + 1) * size, len(rows))) if part else range(0)
            lines = _complete(rows, numbers, args, tokenizer, write, room, part[0] if part else 0)
            if part:
                write_atomically(
                    _file(folder, part[0]), "".join(f"{json.dumps(x, ensure_ascii=False)}\n" for x in lines)
                )
        accelerator.wait_for_everyone()
        counts = [_finish(folder, about, rows, args)] if main else [None]
        return broadcast_object_list(counts)[0] or {}


def load_rows(script_args: "ScriptArguments", count: int | None) -> list[dict[str, Any]]:
    """The rows that have the prompts."""
    from itertools import islice

    from trl import DatasetMixtureConfig

    from .data import data_faults, load_data, select_split

    mixture = DatasetMixtureConfig()
    dataset = select_split(load_data(script_args, mixture), script_args.dataset_train_split, "dataset_train_split")
    with data_faults(script_args, mixture):
        return list(islice(undecoded(dataset), count))


def make_writer(args: GenerateConfig, accelerator: Any, pictured: bool) -> tuple[str, Any, Write, int | None]:
    """
    Name and tokenizer of who writes, what completes prompts, and how many tokens a prompt may have. With `pictured`
    rows have images, and whoever writes sees them.
    """
    from .models import load_model, load_processor, load_tokenizer, resolve_model
    from .rollouts.sampling import ModelSampler, longest_prompt, room_for_prompts
    from .vision import Processing

    name = resolve_model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if args.teacher_server_url is not None:
        from .teachers.sampler import writing_server

        tokenizer = load_tokenizer(name, args.teacher_model_revision, None, args.trust_remote_code)
        sampler, args.teacher_server_model = writing_server(args, tokenizer)
        positions = sampler.positions
        return name, tokenizer, sampler, positions and room_for_prompts(positions, args.max_new_tokens)
    loaded = {"trust_remote_code": args.trust_remote_code, "dtype": args.dtype}
    model = load_model(name, args.teacher_model_revision, "teacher_model_name_or_path", **loaded)
    tokenizer = load_tokenizer(name, args.teacher_model_revision, model, args.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = model.to(accelerator.device)
    vocabulary = min(len(tokenizer), model.config.get_text_config().vocab_size)
    processing = None
    if pictured:
        processing = Processing(load_processor(name, args.teacher_model_revision, args.trust_remote_code, "teacher"))
    write = ModelSampler(lambda: model, accelerator, tokenizer, args, vocabulary, processing=processing)
    return name, tokenizer, write, longest_prompt(model, args.max_new_tokens)


def settings_of(
    args: GenerateConfig, script_args: "ScriptArguments", name: str, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """All that decides what is written."""
    from .teachers.manifest import identity_of

    options = {key: value for key, value in dataclasses.asdict(args).items() if key not in _AROUND}
    identity = identity_of(name, args.teacher_model_revision, args.trust_remote_code)
    data = {key: getattr(script_args, key) for key in ("dataset_name", "dataset_config", "dataset_train_split")}
    return {**options, **identity, **data, "rows": len(rows), "fingerprint": fingerprint(rows)}


def _per_part(args: GenerateConfig) -> int:
    return max(1, args.batch_size // args.num_completions)


def _file(folder: Path, part: int) -> Path:
    return folder / PARTS / f"{part:06d}.jsonl"


def _begin(folder: Path, about: dict[str, Any], rows: Sequence[Any], args: GenerateConfig) -> list[int]:
    """Check the folder. Returns the parts that are to be done."""
    path = folder / ABOUT
    if args.overwrite:
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        for name in (DATA, FAILED, ABOUT):
            (folder / name).unlink(missing_ok=True)
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))["settings"]
        wanted = json.loads(json.dumps(about))
        other = [name for name in wanted if earlier.get(name) != wanted[name]]
        if other:
            raise UsageError(
                f"{folder} holds completions with other settings ({', '.join(other)}): give another --output_dir, or "
                "--overwrite"
            )
        if (folder / DATA).exists():
            return []
    elif any(each.name == PARTS or not each.name.startswith(("_", ".")) for each in folder.iterdir()):
        raise UsageError(
            f"{folder} has something else in it than completions: give another --output_dir, or --overwrite"
        )
    _say_settings(folder, about, {})
    (folder / PARTS).mkdir(exist_ok=True)
    count = -(-len(rows) // _per_part(args))
    return [part for part in range(count) if not _file(folder, part).exists()]


def _say_settings(folder: Path, about: dict[str, Any], counts: dict[str, Any]) -> None:
    from importlib.metadata import version

    versions = {"trl_tempkd": __version__, **{name: version(name) for name in ("torch", "transformers", "datasets")}}
    found = {"settings": about, "versions": versions, **counts}
    write_atomically(folder / ABOUT, json.dumps(found, indent=1, ensure_ascii=False))


def _shown(parts: Sequence[list[int]], args: GenerateConfig, shown: bool) -> Iterator[list[int]]:
    from tqdm import tqdm

    yield from tqdm(parts, desc="Generating", unit=f" x {_per_part(args) * args.num_completions}", disable=not shown)


def _complete(
    rows: Sequence[dict[str, Any]],
    numbers: range,
    args: GenerateConfig,
    tokenizer: Any,
    write: Write,
    room: int | None,
    part: int,
) -> list[dict[str, Any]]:
    """What is written of some rows: completions, and of a row that has none the reason."""
    asked, lines = [], []
    for number in numbers:
        try:
            asked.append((number, prompt_of(rows[number], tokenizer, room)))
        except UsageError as error:
            lines.append({"row": number, "failed": str(error)})
    prompts = [tokens for _, (tokens, _, _) in asked for _ in range(args.num_completions)]
    pictures = [picture for _, (_, _, picture) in asked for _ in range(args.num_completions)]
    seed = int(row_hash([args.seed, part])[:8], 16)
    completions = write(prompts, seed, pictures) if any(pictures) else write(prompts, seed)
    for i, (number, (_, opened, _)) in enumerate(asked):
        own = completions[i * args.num_completions :][: args.num_completions]
        refusal = next((each for each in own if isinstance(each, UsageError)), None)
        if refusal is not None:
            lines.append({"row": number, "failed": str(refusal)})
            continue
        for sample, tokens in enumerate(own):
            stopped = len(tokens) < args.max_new_tokens or _is_stop(tokens, tokenizer)
            text = opened + tokenizer.decode(tokens, skip_special_tokens=True)
            length = len(tokens) - (stopped and _is_stop(tokens, tokenizer))
            lines.append({"row": number, "sample": sample, "text": text, "tokens": length, "stopped": stopped})
    return sorted(lines, key=lambda line: (line["row"], line.get("sample", 0)))


def _is_stop(tokens: Sequence[int], tokenizer: Any) -> bool:
    return bool(tokens) and tokens[-1] in tokenizer.all_special_ids


def _finish(
    folder: Path, about: dict[str, Any], rows: Sequence[dict[str, Any]], args: GenerateConfig
) -> dict[str, Any]:
    """Put the parts together. Returns how much there is of what."""
    if (folder / DATA).exists():
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))["counts"]
    counts = {"rows": len(rows), "written": 0, "too_short": 0, "not_stopped": 0, "failed": 0}
    tokens = 0
    with (
        whole_file(folder / DATA) as data,
        whole_file(folder / FAILED) as failed,
        open(data, "w", encoding="utf-8") as to,
        open(failed, "w", encoding="utf-8") as other,
    ):
        for line in _lines(folder):
            fate = _fate(line, args)
            counts[fate] += 1
            if fate == "failed":
                other.write(f"{json.dumps(line, ensure_ascii=False)}\n")
            elif fate == "written":
                tokens += line["tokens"]
                new = new_row(rows[line["row"]], line, folder)
                to.write(f"{json.dumps(new, ensure_ascii=False)}\n")
        if not counts["written"]:
            first = next((line["failed"] for line in _lines(folder) if "failed" in line), None)
            why = f"the first row that failed {first}" if first else "see --min_tokens and --only_stopped"
            raise UsageError(f"none of the {len(rows)} rows has a completion that is kept: {why}")
    _say_settings(folder, about, {"counts": counts, "tokens": tokens})
    shutil.rmtree(folder / PARTS)
    return counts


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / PARTS).glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _fate(line: dict[str, Any], args: GenerateConfig) -> str:
    if "failed" in line:
        return "failed"
    if line["tokens"] < args.min_tokens:
        return "too_short"
    return "not_stopped" if args.only_stopped and not line["stopped"] else "written"
