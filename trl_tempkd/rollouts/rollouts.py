# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One draw per optimizer step decides who completes the prompts of its batches, on every rank the same."""

import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, send_to_device
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..files import whole_file
from ..row_formats import CONTEXTS, PROMPTS, ROUTE, TEACHER_QUESTION
from ..trackers import Trackers
from ..vision import PICTURED, Pictured
from ..vocabularies.translation import Translation
from .options import RolloutOptions
from .rows import IGNORED, Row, completed, join, rows_of, split, split_evenly
from .samples import log_samples
from .sampling import Sampler, most_over_ranks


logger = get_logger(__name__)

Batch = dict[str, Any]
Collator = Callable[[list[dict[str, Any]]], Batch]

SHARE_STEP = 0.1  # of DistiLLM's adaptive schedule (its algorithm 1)
# What it follows: the first of these that an evaluation has. A loss would follow tau, and the rules and states
COMPARABLE = ("kl_tau1", "ce_loss")
ROUNDING = 1e-5  # a rise that is smaller, relatively, may come from the order of a sum


class Rollouts:
    """
    Replaces the completions of the batches of an optimizer step, all of them at once.

    With probability `lmbda` the student completes their prompts, or the step is trained on what it completed before;
    else the teacher does, with `seq_kd`; else the data set's completions stay. The draw depends on the seed and the
    step alone, so it is the same on every rank and after a resume.

    Source: GKD (arXiv 2306.13649), algorithm 1; DistiLLM (arXiv 2402.03898), section 3.2 and algorithm 1.

    Args:
        args ([`RolloutOptions`]):
            Options.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the data, to show completions.
        collator (`Callable`):
            Data collator of the trainer: new rows are put together as those of the data set are.
        stops (`list[int]`):
            Tokens that end a completion.
        student ([`Sampler`], *optional*):
            Completes with the student. Required unless its share is 0.
        teacher ([`Sampler`], *optional*):
            Completes with the teacher. Required with `seq_kd`.
        max_prompt (`int`, *optional*):
            Number of tokens of a prompt that are kept, those at its end.
        translation ([`Translation`], *optional*):
            Between the tokens of the teacher and those of the student, where they differ.
    """

    def __init__(
        self,
        args: RolloutOptions,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        collator: Collator,
        stops: list[int],
        student: Sampler | None = None,
        teacher: Sampler | None = None,
        max_prompt: int | None = None,
        translation: Translation | None = None,
    ):
        self.args = args
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.collator = collator
        self.stops = stops
        self.samplers = {"student": student, "teacher": teacher}
        self.max_prompt = max_prompt
        self.translation = translation
        self.share = args.lmbda
        self.distance: float | None = None  # from the teacher, at the last evaluation
        self.replay_size = -(-args.replay_size // accelerator.num_processes)  # of this rank
        self.replay: deque[Row] = deque(maxlen=self.replay_size)
        self._before: tuple[int, list[Row]] = (-1, [])  # what was kept for replay at the start of a step
        self.latest: list[tuple[list[int], list[int]]] = []  # prompts and completions that were generated last
        self.pictures: list[Pictured | None] = []  # what these prompts were made of, where they have images
        self._asked: list[list[int]] = []  # what the teacher reads before each completion that is being written
        self.counts: Counter[str] = Counter()
        self.on_policy = False  # whether the student has written the completions of the present batches

    def __call__(self, batches: list[Batch], step: int, progress: float) -> list[Batch]:
        """
        Args:
            batches (`list[dict]`):
                The batches of one optimizer step, as the data collator makes them.
            step (`int`):
                Number of optimizer steps before this one.
            progress (`float`):
                Share of the training that lies behind, in [0, 1].

        Returns:
            `list[dict]`: As many batches.
        """
        self._before = (step, list(self.replay))
        source = self._source(step, progress)
        self.on_policy = source in ("student", "replay")
        if source != "dataset" and batches:
            rows = [row for batch in batches for row in rows_of(batch)]
            rng = self._rng(step, self.accelerator.process_index)
            if source == "replay":
                kept = list(self.replay)
                rows = rng.sample(kept, len(rows)) if len(rows) <= len(kept) else rng.choices(kept, k=len(rows))
                self.counts["replay"] += sum(row.targets for row in rows)
            else:
                rows = self._complete(rows, source, rng.getrandbits(32))
            return [self._collated(group) for group in split_evenly(rows, len(batches))]
        for batch in batches:
            batch.pop(PROMPTS, None)
            self.counts["dataset"] += (batch["labels"][..., 1:] != IGNORED).sum()
        return batches

    def evaluated(self, batch: Batch) -> Batch:
        """
        A batch of an evaluation, in which rows that only ask get a completion: the student's, or the teacher's if it
        alone writes in training. What is drawn depends on the seed and the prompts alone, so each evaluation draws the
        same. Every rank must call.
        """
        self.on_policy = False
        if PROMPTS not in batch:
            return batch
        rows = rows_of(batch)
        asked = [i for i, row in enumerate(rows) if row.prompt and not row.targets]
        self.on_policy = bool(asked) and self.samplers["student"] is not None
        prompts = [self._shortened(rows[i]) for i in asked]
        source = "student" if self.samplers["student"] else "teacher"
        seed = self._rng(*chain.from_iterable(prompts)).getrandbits(32)
        completions = self._sampled(source, [rows[i] for i in asked], prompts, seed)
        for i, prompt, completion in zip(asked, prompts, completions, strict=True):
            rows[i] = completed(prompt, completion, rows[i])
        if not asked:
            return {name: value for name, value in batch.items() if name != PROMPTS}
        return self._collated(rows)

    def _collated(self, rows: list[Row]) -> Batch:
        examples: list[dict[str, Any]] = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
        for row, example in zip(rows, examples, strict=True):
            if row.question is not None:
                example[TEACHER_QUESTION] = row.question
            if row.pictured is not None:
                example[PICTURED] = row.pictured
        if any(row.context is not None for row in rows):
            for row, example in zip(rows, examples, strict=True):
                example[CONTEXTS] = [len(row.context or []), *(row.context or [])]
        if any(row.route is not None for row in rows):
            for row, example in zip(rows, examples, strict=True):
                example[ROUTE] = row.route or 0
        batch = self.collator(examples)
        batch.pop(PROMPTS, None)
        return send_to_device(batch, self.accelerator.device)

    def _rng(self, *of: int) -> random.Random:
        return random.Random(" ".join(map(str, (self.args.seed, *of))))

    def keeps(self, first: int, later: int) -> bool:
        """Whether the data set's completions stay in a step, so many after the `first`, if that is known before."""
        if self.args.lmbda_schedule != "constant" or self.args.seq_kd:
            return False
        return self._rng(first + later).random() >= self.share  # as `_source` draws

    def _source(self, step: int, progress: float) -> str:
        rng = self._rng(step)
        of_student, of_replay = rng.random(), rng.random()
        if of_student >= self.share:
            return "teacher" if self.args.seq_kd else "dataset"
        ratio = progress if self.args.replay_ratio is None else self.args.replay_ratio
        return "replay" if of_replay < ratio and self._replay_is_full() else "student"

    def _replay_is_full(self) -> bool:
        if not self.args.replay_size:
            return False
        missing = self.replay_size - len(self.replay)
        return most_over_ranks(missing, self.accelerator) == 0

    def _complete(self, rows: list[Row], source: str, seed: int) -> list[Row]:
        prompts = [self._shortened(row) for row in rows]
        given = [i for i, prompt in enumerate(prompts) if prompt]
        if len(given) < len(rows):
            logger.warning_once(
                "Some rows have no prompt to complete: nothing in them stands before what is trained on. They keep "
                "the data set's text."
            )
        completions = self._sampled(source, [rows[i] for i in given], [prompts[i] for i in given], seed)
        self.latest = [(prompts[i], completion) for i, completion in zip(given, completions, strict=True)]
        self.pictures = [rows[i].pictured for i in given]
        new = [completed(*pair, rows[i]) for i, pair in zip(given, self.latest, strict=True)]
        stay = [row for row, prompt in zip(rows, prompts, strict=True) if not prompt]
        if source == "student":
            self.replay.extend(new)
        self.counts[source] += sum(row.targets for row in new)
        self.counts["dataset"] += sum(row.targets for row in stay)
        self.counts["rows"] += len(completions)
        self.counts["tokens"] += sum(map(len, completions))
        self.counts["clipped"] += sum(not {*completion[-1:]} & {*self.stops} for completion in completions)
        return stay + new

    def _sampled(self, source: str, rows: list[Row], prompts: list[list[int]], seed: int) -> list[list[int]]:
        sampler, translation = self.samplers[source], self.translation
        assert sampler is not None
        if any(row.pictured is not None for row in rows):
            return sampler(prompts, seed, [row.pictured for row in rows])
        own = zip(rows, prompts, strict=True)
        self._asked = [prompt if row.teacher_ids is None else row.teacher_ids for row, prompt in own]
        if source != "teacher" or translation is None:
            return sampler(prompts, seed)
        questions = [row.question for row in rows if row.question is not None]
        written = sampler([translation.prompt(question) for question in questions], seed)
        return [translation.completion(ids, question) for ids, question in zip(written, questions, strict=True)]

    def written(self, ask: Callable[[list[list[int]]], None], number: int, completion: list[int]) -> None:
        """Ask the teacher about a completion that has ended while others are being written."""
        ask([self._asked[number] + completion])

    def _shortened(self, row: Row) -> list[int]:
        prompt = row.prompt
        if self.args.max_length is not None and len(prompt) > self.args.max_length:
            logger.warning_once(
                f"Some prompts are longer than `max_length`, which is {self.args.max_length}. It cuts the rows of the "
                "data set, and no prompt that is completed. Leave those rows out if they take too much memory."
            )
        if self.max_prompt is None or len(prompt) <= self.max_prompt:
            return prompt
        if row.pictured is not None and row.pictured.images:
            raise UsageError(
                f"A prompt with images has {len(prompt)} tokens, and before `max_new_tokens` "
                f"{self.args.max_new_tokens} the model has room for {self.max_prompt}. Such a prompt isn't cut: "
                "make the images smaller (in the processor's settings), or leave the row out."
            )
        logger.warning_once(
            f"Prompts are cut to their last {self.max_prompt} tokens, so that {self.args.max_new_tokens} new ones fit "
            "into the positions of the model."
        )
        return prompt[-self.max_prompt :]

    def rewind(self, step: int) -> None:
        """Forget what was generated in a step that hasn't been finished."""
        if self._before[0] == step:
            self.replay.clear()
            self.replay.extend(self._before[1])

    def observe(self, metrics: dict[str, float]) -> None:
        """
        Take note of an evaluation: with the adaptive schedule, a rise of the distance raises the student's share.

        Args:
            metrics (`dict[str, float]`): of all data sets of the evaluation, each of which counts the same.
        """
        if self.args.lmbda_schedule != "adaptive":
            return
        by_name = ([value for key, value in metrics.items() if key.endswith(f"_{name}")] for name in COMPARABLE)
        values = next(filter(None, by_name), [])  # none, where no token of the data sets has a label
        distance = sum(values) / max(len(values), 1)
        if not values or not math.isfinite(distance):
            return
        if self.distance is not None and distance > self.distance + ROUNDING * abs(self.distance):
            self.share = min(self.share + SHARE_STEP, 1.0)
        self.distance = distance

    def metrics(self) -> dict[str, float]:
        """
        What happened since the last call, over all ranks: the share of the trained tokens that the student has just
        generated and of those replayed; the mean length of what was generated, in tokens, and the share of it that was
        cut off at `max_new_tokens`, under TRL's names.
        """
        names = ("student", "replay", "teacher", "dataset", "rows", "tokens", "clipped")
        counts = torch.tensor([float(self.counts[name]) for name in names], device=self.accelerator.device)
        of = dict(zip(names, self.accelerator.reduce(counts, reduction="sum").tolist(), strict=True))
        self.counts.clear()
        trained = max(of["student"] + of["replay"] + of["teacher"] + of["dataset"], 1)
        metrics = {"on_policy_share": of["student"] / trained}
        if self.args.generates:
            metrics["lmbda"] = self.share
        if self.args.replay_size:
            metrics["replay_share"] = of["replay"] / trained
        if of["rows"]:
            metrics["completions/mean_length"] = of["tokens"] / of["rows"]
            metrics["completions/clipped_ratio"] = of["clipped"] / of["rows"]
        return metrics

    def log_completions(self, step: int, trackers: Trackers) -> None:
        """Show and store what was generated last. Every rank must call."""
        images = [() if pictured is None else pictured.images for pictured in self.pictures]
        log_samples(self.latest, self.tokenizer, self.accelerator, self.args, step, trackers, images)
        self.latest, self.pictures = [], []

    def _file(self, folder: str) -> Path:
        return Path(folder) / f"rollouts_{self.accelerator.process_index}.safetensors"

    def save(self, folder: str) -> None:
        """Write what a resume needs into a checkpoint: every rank its own file."""
        if not self.args.generates:
            return
        state = {"share": self.share, "distance": self.distance}
        with whole_file(self._file(folder)) as name:
            save_file(join(list(self.replay)), name, metadata={"state": json.dumps(state)})

    def load(self, folder: str) -> None:
        """Go on from a checkpoint."""
        if not self.args.generates:
            return
        path = self._file(folder)
        state = {"share": self.share, "distance": self.distance}
        self.replay.clear()
        if path.is_file():
            with safe_open(path, "pt") as file:
                state = json.loads(file.metadata()["state"])
                self.replay.extend(split({name: file.get_tensor(name) for name in file.keys()}))  # noqa: SIM118
        else:
            logger.warning(
                f"{path} doesn't exist: nothing is kept for replay on this rank, and if it is the first, the share of "
                "the student starts anew.",
                main_process_only=False,
            )
        # Ranks without a file, because there were fewer of them, must draw as the others do
        (state,) = broadcast_object_list([state])
        if self.args.lmbda_schedule == "adaptive":  # a constant share is that of this run
            self.share = state["share"]
        # Earlier versions followed the loss, which doesn't compare: the first evaluation is then as that of a new run
        self.distance = state.get("distance")
