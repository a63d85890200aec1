# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""How far a model is from its teacher on a data set, at temperature 1."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import UsageError
from ..heads import Head, gathered_head, last_hidden_state
from ..losses import chunked_kd_loss
from ..losses.fused import CHUNK_ELEMENTS
from ..rollouts.sampling import by_length
from ..teachers.own_pixels import OwnPixelsCollator
from ..teachers.own_prompt import OWN
from ..temperature import log_probability
from ..vision import Processing, VisionCollator


ECE_BINS = 15
PER_TOKEN = ("kl_tau1", "reverse_kl_tau1", "ce", "student_entropy", "teacher_entropy", "agreement")


@contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Context in which models are in evaluation mode, each back in its own mode afterwards."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


def divergence_to_teacher(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    dataset: Iterable[dict[str, Any]],
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, float]:
    """
    Compare a student with its teacher on given text, at temperature 1: what the trainer logs as `eval_kl_tau1` etc.

    Args:
        student ([`~transformers.PreTrainedModel`]):
            Student.
        teacher ([`~transformers.PreTrainedModel`]):
            Teacher, on the same device.
        dataset (`Iterable[dict[str, Any]]`):
            Rows with `input_ids` and `labels`, as [`tokenize`] or a trainer's `eval_dataset` has them.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows per batch.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over the rows where standard error is a terminal.

    Returns:
        `dict[str, float]`: `tokens`, the number of labels; means over them, in nats: `kl_tau1` (KL(p, q) of the
        student q from the teacher p), `reverse_kl_tau1` (KL(q, p)), `ce` (cross-entropy of the student with the
        labels), `student_entropy`, `teacher_entropy`; `agreement`, the share with the same top choice; and of the
        student `perplexity`, `top_1`, the mean probability of its top choice, and `ece`, the expected calibration
        error of this choice in 15 bins.
    """
    return compare(student, teacher, dataset, batch_size, progress)[0]


def compare(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    dataset: Iterable[dict[str, Any]],
    batch_size: int,
    progress: bool,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The means over all tokens, and for each row its number of tokens and its sums over them."""
    rows = [(list(row["input_ids"]), list(row["labels"])) for row in dataset]
    batches = by_length([len(ids) for ids, _ in rows], batch_size)
    return _compare_batches(
        student, teacher, len(rows), ((batch, _padded(rows, batch)) for batch in batches), progress
    )


def compare_pictured(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Sequence[dict[str, Any]],
    batch_size: int,
    processing: Processing,
    of_teacher: Processing | None = None,
    progress: bool = True,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """
    Compare a student with its teacher on rows with images, each through its own processor.

    Args:
        student, teacher ([`~transformers.PreTrainedModel`]):
            As in [`divergence_to_teacher`].
        rows (`Sequence[dict[str, Any]]`):
            Rows of the data.
        batch_size (`int`):
            Rows per batch.
        processing, of_teacher ([`~trl_tempkd.vision.Processing`]):
            The student's processor and, if it is another, the teacher's.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `tuple`: Means over all tokens, and for each row its number of tokens and its sums over them.
    """
    names = {id(row): f"Row {number}" for number, row in enumerate(rows)}
    collator = VisionCollator(processing, assistant_only="prompt" not in rows[0], where=lambda row: names[id(row)])
    collate = OwnPixelsCollator(collator, of_teacher or processing)
    starts = range(0, len(rows), batch_size)
    batches = [list(range(start, min(start + batch_size, len(rows)))) for start in starts]
    made = ((batch, collate([rows[i] for i in batch])) for batch in batches)
    return _compare_batches(student, teacher, len(rows), made, progress)


def _padded(rows: Sequence[tuple[list[int], list[int]]], batch: list[int]) -> dict[str, Any]:
    """Some rows as a batch. Padding stands on the right: causal attention doesn't see it, and has no labels."""
    longest = max(len(rows[i][0]) for i in batch)
    ids, labels = (
        torch.tensor([row + [fill] * (longest - len(row)) for row in column])
        for column, fill in (([rows[i][0] for i in batch], 0), ([rows[i][1] for i in batch], -100))
    )
    mask = (torch.arange(longest) < torch.tensor([[len(rows[i][0])] for i in batch])).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _compare_batches(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    count_of_rows: int,
    batches: Iterable[tuple[list[int], dict[str, Any]]],
    progress: bool,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    by_row = {name: [0.0] * count_of_rows for name in ("tokens", *PER_TOKEN)}
    bins = torch.zeros(3, ECE_BINS, dtype=torch.float64)
    with (
        evaluating(student, teacher),
        gathered_head(student) as head,
        gathered_head(teacher) as teacher_head,
        tqdm(
            total=count_of_rows, desc="Comparing with the teacher", unit="row", disable=None if progress else True
        ) as bar,
    ):
        for batch, inputs in batches:
            inputs = send_to_device(inputs, student.device)
            own, labels = inputs.pop(OWN, None), inputs.pop("labels")
            hidden = last_hidden_state(student, inputs)[:, :-1].flatten(0, 1)  # the last position predicts nothing
            if own is not None:
                theirs = last_hidden_state(teacher, send_to_device(own.inputs, student.device)).flatten(0, 1)
                teacher_hidden = own.placed(theirs).view(*labels.shape, -1)[:, :-1].flatten(0, 1)
            else:
                teacher_hidden = hidden
                if teacher is not student:
                    teacher_hidden = last_hidden_state(teacher, inputs)[:, :-1].flatten(0, 1)
            targets = labels[:, 1:].flatten()
            output = chunked_kd_loss(
                student_hidden=hidden,
                teacher_hidden=teacher_hidden,
                **head.arguments("student"),
                **teacher_head.arguments("teacher"),
                divergence="reverse_kl",
                labels=targets,
                metrics=True,
            )
            assert output.metrics is not None
            found = {**output.metrics, "reverse_kl_tau1": output.per_token, "tokens": targets != -100}
            for name, values in by_row.items():
                sums = found[name].view(len(batch), -1).double().sum(1).tolist()
                for i, total in zip(batch, sums, strict=True):
                    values[i] = total
            bins += calibration(hidden, head, targets)
            bar.update(len(batch))
    count = int(sum(by_row["tokens"]))
    if not count:
        raise UsageError("The data set has no label to compare at: every label is -100, or it has no rows.")
    means = {name: math.fsum(by_row[name]) / count for name in PER_TOKEN}
    _, confidence, correct = bins
    top = {"top_1": confidence.sum().item() / count, "ece": (confidence - correct).abs().sum().item() / count}
    return {"tokens": count, **means, "perplexity": _exp(means["ce"]), **top}, by_row


def _exp(value: float) -> float:
    """Infinity where it is too large, as after a training that has diverged."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def calibration(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    """Of each bin of the top choice's probability: tokens, the sum of this probability, and how often it is right."""
    kept = (labels != -100).nonzero().squeeze(-1)
    bins = torch.zeros(3, ECE_BINS, dtype=torch.float64)
    for chunk in kept.split(max(1, CHUNK_ELEMENTS // head.weight.shape[0])):
        logits = head.logits(hidden[chunk].to(head.weight.dtype)).float()
        choice = logits.argmax(-1)
        confidence = log_probability(logits, choice).exp().double().cpu()
        correct = (choice == labels[chunk]).double().cpu()
        where = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1  # intervals (a, b]
        for sums, values in zip(bins, (torch.ones_like(confidence), confidence, correct), strict=True):
            sums.index_add_(0, where, values)
    return bins
