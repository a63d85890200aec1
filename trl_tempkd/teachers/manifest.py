# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a teacher cache was made of, and whether that is what a run would make it of."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
import trl
import xxhash
from transformers import AutoConfig, PreTrainedTokenizerBase

from .._version import __version__
from ..errors import UsageError
from ..files import write_atomically
from ..vision import Processing


NAME = "manifest.json"
FORMAT = 1  # of the files. One that is read differently gets another number.

# What changes the rows of a data set while it is prepared: fields of the run's configuration
PREPARATION = (
    "max_length",
    "truncation_mode",
    "packing",
    "packing_strategy",
    "eval_packing",
    "completion_only_loss",
    "assistant_only_loss",
    "dataset_text_field",
    "eos_token",
)
VERSIONS = {m.__name__: m.__version__ for m in (torch, transformers, trl, datasets, accelerate)}
VERSIONS["trl_tempkd"] = __version__
# What must be the same for the hidden states to be those of the run's teacher
_OF_THE_TEACHER = ("teacher_revision", "teacher_weights", "teacher_model_init_kwargs")


@dataclass
class Manifest:
    """
    Attributes:
        mode (`str`):
            What is stored of the teacher: `hidden`, `topk` or `sampled`.
        teacher_model_name_or_path (`str`):
            Name of the teacher where the cache was built.
        teacher_revision (`str`, *optional*):
            Commit of a teacher from the Hub.
        teacher_weights (`str`, *optional*):
            Hash of the weights of a teacher from a folder.
        teacher_model_init_kwargs (`dict`):
            How the teacher was loaded.
        mixed_precision (`str`):
            Autocast under which it ran.
        tokenizer, chat_template (`str`):
            Hashes.
        dtype (`str`):
            Of the stored hidden states or logits.
        hidden_size (`int`):
            Of the teacher.
        head (`dict`):
            `logit_scale` and `final_logit_softcapping`. Its tensors have a file of their own.
        head_checksum (`str`):
            Of these tensors.
        preparation (`dict`):
            Options of the data preparation.
        splits (`dict[str, dict]`):
            For each split `rows`, `tokens` (of which something is stored), `fingerprint` (hash of the prepared rows),
            and `shards` with a `file`, its `rows` and, once complete, its `bytes`; of `topk` then also `coverage`, the
            mean mass of the k tokens at each temperature.
        versions (`dict[str, str]`):
            Of the libraries that ran the teacher.
        complete (`bool`):
            Whether every shard is there.
        format (`int`):
            Version of the files.
        truncated (`dict`, *optional*):
            Of all modes but `hidden` the `count` of tokens of a position, the `taus` and the `vocabulary`.
        own_prompts (`bool`):
            Whether the teacher has read a `teacher_prompt` of rows in the place of the student's prompt.
        other_tokenizer (`dict`, *optional*):
            Of a teacher with another tokenizer: hashes of its `tokenizer` and `chat_template`, and the tokens that
            are its `ends` of a text. The tokenizer itself has a folder of its own.
        processor, teacher_processor (`str`, *optional*):
            Of rows with images hashes of what the student and the teacher see them through: pixels and templates.
    """

    mode: str
    teacher_model_name_or_path: str
    teacher_revision: str | None
    teacher_weights: str | None
    teacher_model_init_kwargs: dict[str, Any]
    mixed_precision: str
    tokenizer: str
    chat_template: str
    dtype: str
    hidden_size: int
    head: dict[str, Any]
    head_checksum: str
    preparation: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    versions: dict[str, str]
    complete: bool = False
    format: int = FORMAT
    truncated: dict[str, Any] | None = None
    own_prompts: bool = False
    other_tokenizer: dict[str, Any] | None = None
    processor: str | None = None
    teacher_processor: str | None = None

    @property
    def seed(self) -> int:
        """Seed of the checksums, so that a row of another teacher's cache fails them."""
        names = ("mode", "teacher_revision", "teacher_weights", "tokenizer", "dtype", "hidden_size", "head_checksum")
        values = [getattr(self, name) for name in names]
        values += [part for part in (self.truncated, self.other_tokenizer) if part is not None]
        return xxhash.xxh3_64_intdigest(json.dumps(values).encode())

    def shards(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every shard, with the name of its split."""
        for name, split in self.splits.items():
            for shard in split["shards"]:
                yield name, shard

    def write(self, folder: Path) -> None:
        write_atomically(folder / NAME, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            `ValueError`: If the folder has no manifest that this version can read.
        """
        path = folder / NAME
        if not path.is_file():
            raise UsageError(
                f"`teacher_cache` {folder} is no teacher cache: it has no {NAME}. `trl-tempkd cache` builds one."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} can't be read: {error!r}. Build the cache again, in another folder.") from error
        found = values if isinstance(values, dict) else {}
        known = {of.name for of in dataclasses.fields(cls)}
        needed = {of.name for of in dataclasses.fields(cls) if of.default is of.default_factory is dataclasses.MISSING}
        if found.get("format") != FORMAT:
            problem = f"has `format` {found.get('format')}, this version reads {FORMAT}"
        elif wrong := sorted(needed - set(found) | set(found) - known):
            problem = f"can't be read: {', '.join(wrong)} missing, or unknown"
        else:
            return cls(**found)
        raise UsageError(f"{path} {problem}. Build the cache again, in another folder.")

    def check_same_build(self, other: "Manifest", folder: Path) -> None:
        """
        Refuse to go on with a folder that was begun with something else.

        Raises:
            `ValueError`: If a field differs; it is named.
        """
        for name in (field.name for field in dataclasses.fields(self)):
            mine, theirs = (plan(part) if name == "splits" else getattr(part, name) for part in (self, other))
            if name not in ("complete", "teacher_model_name_or_path"):
                compare(mine, theirs, name, f"The cache in {folder} was begun with", "the recipe now says", _ANEW)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """
        Raises:
            `ValueError`: If the tokenizer or its chat template isn't the one that the cache was built with.
        """
        for name, value in hashes_of(tokenizer).items():
            if self.processor is not None and name == "chat_template":
                continue  # of rows with images the processor's writes
            compare(getattr(self, name), value, name, f"The cache in {folder} was built with", "the run has", AGAIN)

    def check_processor(self, processing: Processing, folder: Path, name: str = "processor") -> None:
        """
        Raises:
            `ValueError`: If the images of rows aren't seen through the processor that the cache was built with.
        """
        mine, theirs = getattr(self, name), settings_hash(processing)
        compare(mine, theirs, name, f"The cache in {folder} was built with", "the run has", AGAIN)

    def check_teacher(
        self, name: str, revision: str | None, trust_remote_code: bool, kwargs: Any, folder: Path
    ) -> None:
        """
        Raises:
            `ValueError`: If the teacher of that name, loaded in this way, isn't the one that the cache was built with.
        """
        try:
            wanted = identity_of(name, revision, trust_remote_code)
        except (OSError, ValueError):  # the Hub is out of reach, which is what a cache is good for
            wanted = {} if revision is None else {"teacher_revision": revision}
            compare(
                self.teacher_model_name_or_path, name, "teacher_model_name_or_path",
                f"The cache in {folder} was built with", "the run says", AGAIN,
            )  # fmt: skip
        wanted["teacher_model_init_kwargs"] = plain(kwargs or {})
        for key in _OF_THE_TEACHER:
            if key in wanted:
                start = f"The cache in {folder} was built from {self.teacher_model_name_or_path} with"
                compare(getattr(self, key), wanted[key], key, start, f"the run's teacher {name} has", AGAIN)

    def differing_preparation(self, options: Any) -> str:
        """The options of the data preparation that differ from those of a run, as a sentence, or an empty string."""
        differing = [
            f"`{name}` ({value!r} in the cache, {getattr(options, name)!r} in the run)"
            for name, value in self.preparation.items()
            if value != plain(getattr(options, name))
        ]
        return f" What differs in how they were prepared: {', '.join(differing)}." if differing else ""


_ANEW = "Give another --output_dir, or delete the folder."
AGAIN = "Build a cache for this run, or leave `teacher_cache` unset to run the teacher itself."


def compare(mine: Any, theirs: Any, name: str, start: str, then: str, way_out: str) -> None:
    if mine == theirs:
        return
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted({*mine, *theirs}):
            compare(mine.get(key), theirs.get(key), f"{name}.{key}", start, then, way_out)
    raise UsageError(f"{start} `{name}` {mine!r}, but {then} {theirs!r}. {way_out}")


def plan(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """What is to be built, without what is known once it is."""
    return {
        name: {
            **{key: value for key, value in split.items() if key != "coverage"},
            "shards": [{"file": shard["file"], "rows": shard["rows"]} for shard in split["shards"]],
        }
        for name, split in manifest.splits.items()
    }


def plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))


def hashes_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Hashes of the vocabulary and of the chat template."""
    parts = {"tokenizer": sorted(tokenizer.get_vocab().items()), "chat_template": tokenizer.chat_template}
    return {name: xxhash.xxh3_128_hexdigest(json.dumps(part, sort_keys=True).encode()) for name, part in parts.items()}


def whole_hashes_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The same of a fast tokenizer with all that decides how it cuts a text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = json.dumps({name: state[name] for name in ("normalizer", "pre_tokenizer", "added_tokens", "model")})
    return {**hashes_of(tokenizer), "tokenizer": xxhash.xxh3_128_hexdigest(parts.encode())}


def settings_hash(processing: Processing) -> str:
    """Hash of the settings of a processor."""
    return xxhash.xxh3_128_hexdigest(json.dumps(processing.settings(), sort_keys=True).encode())


def processors_of(student: Processing, teacher: Processing) -> dict[str, Any]:
    """The hashes of what both models see images through."""
    return {"processor": settings_hash(student), "teacher_processor": settings_hash(teacher)}


def checksum_of(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of some tensors, on the CPU."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def identity_of(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """
    What says which weights a name stands for: of a folder a hash of its files, of a model on the Hub the commit.

    Raises:
        `OSError`, `ValueError`: If it can't be found out.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)
        return {"teacher_revision": getattr(config, "_commit_hash", None), "teacher_weights": None}
    digest = xxhash.xxh3_128()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name == "config.json":
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while part := file.read(2**24):
                    digest.update(part)
    return {"teacher_revision": None, "teacher_weights": digest.hexdigest()}
