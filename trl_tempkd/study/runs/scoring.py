# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a sweep measures of its models: each student, and once what all start from."""

import dataclasses
import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...files import write_atomically
from ...models import auto_class, check_model, resolve_model
from ...prompts import hash_of, read_rows
from ...vision_data import undecoded
from ..one_model import other_rows, readers_of
from .work import claim


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ...config import KDConfig

# Scores that every item has, of the text it is given and of what is generated
OF_TEXT = ("kl_tau1", "reverse_kl_tau1", "ce", "bits_per_byte", "student_entropy", "agreement")
OF_SAMPLES = ("rouge_l", "self_bleu", "length", "stop_rate")
TRAIN_ROWS = 512  # rows of the training split on which the teacher's peakedness is measured
TAUS = [1.0, 1.5, 2.0, 3.0, 4.0, 8.0]


class Scorer:
    """
    Scores models on the held-out rows of a cell.

    Args:
        values (`list`):
            The dataclasses of the cell's `trl-tempkd distill`.
        evaluation (`dict[str, Any]`):
            The sweep's `evaluation`.
        dataset ([`~datasets.Dataset`]):
            Held-out rows.
        tokenizer (`str`):
            Folder or name of the tokenizer.
    """

    def __init__(self, values: list[Any], evaluation: dict[str, Any], dataset: "Dataset", tokenizer: str):
        from transformers import AutoTokenizer

        _, self.training_args, self.model_args, _ = self.values = values
        self.evaluation, self.dtype = evaluation, evaluation["dtype"]
        self.trust = {"trust_remote_code": self.training_args.trust_remote_code}
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, **self.trust)
        named = teacher_of(values)
        teacher, revision = (None, None) if named is None else (named["name"], named["revision"])
        dataset = list(undecoded(dataset))
        self.readers = readers_of(dataset, tokenizer, None, teacher, revision, self.training_args)
        self.rows = self.read(dataset)
        self.others = {name: self.read(rows) for name, rows in other_rows(evaluation).items()}
        self.teacher = None if named is None else self.load(**named)

    def read(self, rows: "Iterable[dict[str, Any]]") -> list[dict[str, Any]]:
        return read_rows(rows, self.tokenizer, processing=self.readers.get("processing"))

    def load(self, name: str, **kwargs: Any) -> "PreTrainedModel":
        chosen = {} if self.dtype == "auto" else {"dtype": self.dtype}
        loader = auto_class(name, kwargs.get("revision"), self.training_args.trust_remote_code)
        model = loader.from_pretrained(name, **self.trust, **{"dtype": "auto", **kwargs, **chosen})
        return model.to(self.training_args.device)

    def __call__(self, model: "PreTrainedModel") -> dict[str, Any]:
        """
        Score a model, which may be the teacher.

        Returns:
            `dict[str, Any]`: `scores`, by name a list per seed of sampling with a value per item (those that need no
            sampling have one list, of the items with a completion), and of other data sets as `rouge_l@NAME`; `means`
            over tokens or items; `completions`, a list per seed of sampling.
        """
        found = self.on(model, self.rows)
        found["curve"] = self.curve(model)
        for name, rows in self.others.items():
            other = self.on(model, rows)
            for key in ("scores", "means"):
                found[key] |= {f"{score}@{name}": value for score, value in other[key].items()}
        return found

    def curve(self, model: "PreTrainedModel") -> list[dict[str, Any]]:
        """Quality over diversity, where several temperatures of sampling are asked for."""
        from ..diversity import measure_curve
        from ..evaluation import prompt_tokens

        if not self.evaluation["temperatures"] or not all(row["references"] for row in self.rows):
            return []
        names = ("max_new_tokens", "top_p", "batch_size")
        sampling = {name: self.evaluation[name] for name in names}
        prompts, _ = prompt_tokens(model, self.tokenizer, self.rows, self.evaluation["max_new_tokens"])
        references = [row["references"] for row in self.rows]
        over = (self.evaluation["temperatures"], self.evaluation["seeds"])
        if self.readers:
            pictured = [row["row"] for row in self.rows]
            sampling |= {"processing": self.readers["processing"], "pictured": pictured}
        return measure_curve(model, self.tokenizer, prompts, references, *over, progress=False, **sampling)

    def on(self, model: "PreTrainedModel", rows: list[dict[str, Any]]) -> dict[str, Any]:
        from ..evaluation import evaluate_model

        names = ("seeds", "greedy", "max_new_tokens", "temperature", "top_p", "batch_size")
        sampling = {name: self.evaluation[name] for name in names}
        sampling |= {"teacher": self.teacher, **self.readers}
        found = evaluate_model(model, self.tokenizer, rows, progress=False, **sampling)
        sampled = [run for run in found["runs"] if run["seed"] is not None]
        greedy = [run for run in found["runs"] if run["seed"] is None]
        compared = found.get("compared", {"scores": {}, "items": {}})
        scores = {
            name: [[value for value in compared["items"][name] if value is not None]]
            for name in OF_TEXT
            if name in compared["items"]
        }
        for runs, suffix in ((sampled, ""), (greedy, "_greedy")):
            for name in OF_SAMPLES:
                if runs and name in runs[0]["items"]:
                    scores[f"{name}{suffix}"] = [run["items"][name] for run in runs]
        means = {**compared["scores"], **{name: value["mean"] for name, value in found.get("means", {}).items()}}
        means |= {f"{name}_greedy": value for run in greedy for name, value in run["scores"].items()}
        texts = [run["items"]["completion"] for run in (sampled or greedy)]
        return {"scores": scores, "means": means, "completions": texts}


def teacher_of(values: list[Any]) -> dict[str, Any] | None:
    """
    Name, revision and arguments of loading of the model that a student is compared with. A cache may name none; of
    several teachers, and of one with another tokenizer, it is none.
    """
    from ...teachers import STUDENTS

    _, training_args, model_args, _ = values
    if training_args.teacher_model_name_or_path in STUDENTS:
        name = resolve_model(model_args.model_name_or_path, "model_name_or_path")
        return {"name": name, "revision": model_args.model_revision}
    if training_args.vocabulary_alignment is not None:
        return None
    elsewhere = training_args.teacher_cache is not None or training_args.teachers is not None
    if elsewhere and not training_args.teacher_model_name_or_path:
        return None
    name = resolve_model(training_args.teacher_model_name_or_path, "teacher_model_name_or_path")
    kwargs = training_args.teacher_model_init_kwargs or {}
    return {"name": name, "revision": training_args.teacher_model_revision, **kwargs}


def check_teacher(values: list[Any]) -> None:
    """Stop at a model to compare with that can't be loaded, also where a cache or a server teaches."""
    teacher = teacher_of(values)
    if teacher is not None:
        check_model(teacher["name"], teacher["revision"], values[1].trust_remote_code, "teacher_model_name_or_path")


def score(values: list[Any], evaluation: dict[str, Any], dataset: "Dataset") -> dict[str, Any]:
    """Score the student that a run has saved: what a [`Scorer`] says of it, and `items`, a hash of the rows."""
    gc.collect()  # the training's own models
    folder = values[1].output_dir
    scorer = Scorer(values, evaluation, dataset, folder)
    return {**scorer(scorer.load(folder)), "items": hash_of(scorer.rows)}


def baseline(
    values: list[Any], evaluation: dict[str, Any], dataset: "Dataset", train_dataset: "Dataset"
) -> dict[str, Any]:
    """
    What the cells of a sweep share: the teacher's and the untrained student's scores, how peaked the teacher is on
    training rows and on held-out ones, and what the gradients of both KLs look like before training.
    """
    from ...teachers import STUDENTS

    start = time.perf_counter()
    _, training_args, model_args, _ = values
    student = resolve_model(model_args.model_name_or_path, "model_name_or_path")
    scorer = Scorer(values, evaluation, dataset, training_args.output_dir)
    result = {
        "teacher": None if scorer.teacher is None else _teacher(scorer, training_args, train_dataset),
        "start": {
            "name": model_args.model_name_or_path,
            **scorer(scorer.load(student, revision=model_args.model_revision)),
        },
        "rows": [{key: row[key] for key in ("prompt", "references")} for row in scorer.rows],
        "diagnostics": [],
        "lifted": [],
    }
    # An adapter starts as its own teacher, and a cache alone has no model whose gradients could be had
    same = training_args.teacher_model_name_or_path in STUDENTS
    count = evaluation["diagnostics_rows"]
    if count and scorer.teacher is not None and not same:
        result["diagnostics"], result["lifted"] = gradients(values, count)
    return {**result, "seconds": round(time.perf_counter() - start, 2)}


def _teacher(scorer: Scorer, training_args: "KDConfig", train_dataset: "Dataset") -> dict[str, Any]:
    from ..evaluation import divergence_to_teacher, tokenize
    from ..to_teacher import compare_pictured

    peaked = {}
    train_rows = scorer.read(undecoded(train_dataset.take(min(TRAIN_ROWS, len(train_dataset)))))
    for name, rows in (("train", train_rows), ("held_out", scorer.rows)):
        rows = [{**row, "prompt": row["prompt"] or ""} for row in rows if row["completion"] is not None]
        if scorer.readers:
            pictured, its_own = [row["row"] for row in rows], scorer.readers["of_teacher"]
            found, _ = compare_pictured(scorer.teacher, scorer.teacher, pictured, 32, its_own, progress=False)
        else:
            texts = tokenize(rows, scorer.tokenizer, training_args.max_length)
            found = divergence_to_teacher(scorer.teacher, scorer.teacher, texts, progress=False)
        peaked[name] = {key: found[key] for key in ("tokens", "top_1", "teacher_entropy", "ce")}
    return {"name": training_args.teacher_model_name_or_path, **peaked, **scorer(scorer.teacher)}


def gradients(values: list[Any], count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    The measures of `trl-tempkd diagnose` for both KLs, on the first rows of the training split; and row by row the
    upward amount outside the teacher's top 10.
    """
    from ..diagnostics import Plan, collect, diagnose
    from ..diagnostics.setup import DiagnoseArguments, make_trainer

    script_args, training_args, model_args, dataset_args = values
    args = DiagnoseArguments(
        model_name_or_path=model_args.model_name_or_path,
        teacher_model_name_or_path=training_args.teacher_model_name_or_path,
        model_revision=model_args.model_revision,
        teacher_model_revision=training_args.teacher_model_revision,
        trust_remote_code=training_args.trust_remote_code,
        num_rows=count,
        max_length=training_args.max_length or 512,
        assistant_only_loss=training_args.assistant_only_loss,
    )
    plan = Plan(["forward_kl", "reverse_kl"], TAUS, ["both", "teacher"], None)
    with TemporaryDirectory() as folder:
        trainer, _ = make_trainer(folder, args, script_args, dataset_args)
        measured = diagnose(trainer, collect(trainer, trainer.train_dataset, count, args.batch_size), plan)
        lifted: dict[tuple[str, str, float], list[float]] = {}
        for batch in collect(trainer, trainer.train_dataset, count, batch_size=1):
            for row in diagnose(trainer, [batch], plan):
                if (row["measure"], row["bucket"]) == ("lifted_outside", "top_10"):
                    lifted.setdefault((row["objective"], row["mode"], row["tau"]), []).append(row["value"])
    names = ("objective", "mode", "tau")
    return measured, [{**dict(zip(names, key, strict=True)), "values": each} for key, each in lifted.items()]


def baseline_key(values: list[Any], evaluation: dict[str, Any], fingerprints: dict[str, str]) -> str:
    """A short hash of all that a baseline depends on, which may differ between the cells of a sweep."""
    script_args, training_args, model_args, dataset_args = values
    names = ("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs", "max_length")
    shared = {
        "data": [dataclasses.asdict(script_args), dataclasses.asdict(dataset_args)],
        "student": [model_args.model_name_or_path, model_args.model_revision],
        "teacher": [getattr(training_args, name) for name in names],
        "evaluation": evaluation,
        "fingerprints": fingerprints,
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:12]


def once(path: Path, make: Callable[[], dict[str, Any]], seconds: float = 1.0) -> None:
    """Make a file unless it is there. Of several processes one makes it, and the others wait."""
    while not path.is_file():
        with claim(path.with_suffix("")) as free:
            if free and not path.is_file():
                write_atomically(path, json.dumps(make(), indent=1))
                return
        time.sleep(seconds)
