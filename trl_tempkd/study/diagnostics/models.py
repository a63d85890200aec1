# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The measures for the models of a trainer, of which logits exist for some tokens at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...heads import Head, NoHead, gathered_head, last_hidden_state
from ...rollouts import PROMPTS
from ...temperature import rescale_factor
from ...trainer import TemperatureKDTrainer
from ..evaluation import evaluating
from .logits import NONE, Chunk, Plan, cosine, difference, effective_number, measure_logits, ratio_of, rows_of


CHUNK_ELEMENTS = 2**22  # logits of one model that exist at a time


@dataclass(frozen=True)
class Batch:
    """
    A batch as the trainer's collator made it, with the teacher's part done.

    Attributes:
        inputs (`dict[str, Any]`):
            What the model takes.
        kept (`torch.Tensor` of shape `(B * L,)`):
            Which positions have a label.
        targets (`torch.Tensor` of shape `(C,)`):
            Their labels.
        teacher_hidden (`torch.Tensor` of shape `(C, H_t)`):
            The teacher's last hidden states there.
    """

    inputs: dict[str, Any]
    kept: Tensor
    targets: Tensor
    teacher_hidden: Tensor


def collect(
    trainer: TemperatureKDTrainer, rows: Iterable[dict[str, Any]], num_rows: int = 32, batch_size: int = 8
) -> list[Batch]:
    """
    The first rows of a trainer's `train_dataset` or `eval_dataset` as batches. Every rank takes the same.

    Raises:
        `ValueError`: If no token of them has a label.
    """
    data, batches = list(islice(rows, num_rows)), []
    for start in range(0, len(data), batch_size):
        inputs = {
            name: value.to(trainer.accelerator.device) if isinstance(value, Tensor) else value
            for name, value in trainer.data_collator(data[start : start + batch_size]).items()
            if name != PROMPTS
        }
        targets = nn.functional.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:].flatten()
        kept = targets != -100
        if kept.any():
            with torch.no_grad(), trainer.accelerator.autocast():
                hidden = trainer.teacher.hidden_states(inputs).flatten(0, 1)[kept]
            batches.append(Batch(inputs, kept, targets[kept], hidden))
    if not batches:
        raise UsageError(f"No token to measure at: none of the {len(data)} rows has a label that isn't -100.")
    return batches


def student_hidden(trainer: TemperatureKDTrainer, batch: Batch) -> Tensor:
    """The student's last hidden states where the batch has labels, of shape `(C, H_s)`."""
    wrapped = trainer.model_wrapped
    student = trainer.accelerator.unwrap_model(wrapped)
    with trainer.accelerator.autocast():
        hidden = trainer._forward_redirection(wrapped, student, partial(last_hidden_state, student, batch.inputs))
    return hidden.flatten(0, 1)[batch.kept]


@contextmanager
def _heads(trainer: TemperatureKDTrainer) -> Iterator[tuple[Head, Head | NoHead]]:
    student = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    with gathered_head(student) as head, trainer.teacher.head() as teacher_head:
        yield head, teacher_head


def logit_chunks(batch: Batch, hidden: Tensor, head: Head, teacher_head: Head | NoHead) -> Iterator[Chunk]:
    """The logits of a batch, some tokens at a time."""
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        student = head.logits(hidden[part])
        with torch.no_grad():
            teacher = teacher_head.logits(batch.teacher_hidden[part])
        yield student, teacher, batch.targets[part]


def diagnose(trainer: TemperatureKDTrainer, batches: Sequence[Batch], plan: Plan) -> list[dict[str, Any]]:
    """Measures 1 to 6 for a trainer's student and teacher, on what [`collect`] has collected."""

    def chunks() -> Iterator[Chunk]:
        for batch in batches:
            yield from logit_chunks(batch, student_hidden(trainer, batch), *heads)

    with evaluating(trainer.model), _heads(trainer) as heads:
        return measure_logits(chunks(), plan)


def parameter_gradient(
    trainer: TemperatureKDTrainer, batches: Sequence[Batch], gradient: Callable[[Chunk], Tensor]
) -> tuple[Tensor, list[float]]:
    """
    The gradient of the mean loss over all tokens in the student's trained parameters, and its norm batch by batch.

    Args:
        gradient (`Callable`):
            The gradient with respect to the logits, from which it is propagated on.

    Returns:
        `tuple[torch.Tensor, list[float]]`: One flat tensor; for each batch the norm of the gradient of its own mean.
    """
    if trainer.accelerator.num_processes > 1:
        raise UsageError(f"Parameter gradients are measured in one process, got {trainer.accelerator.num_processes}.")
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    total, norms = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device), []
    tokens = sum(len(batch.targets) for batch in batches)
    with evaluating(trainer.model), torch.enable_grad(), _heads(trainer) as heads:
        for batch in batches:
            trainer.model.zero_grad(set_to_none=True)
            hidden = student_hidden(trainer, batch)
            leaf = hidden.detach().requires_grad_()
            for chunk in logit_chunks(batch, leaf, *heads):
                grad = gradient(chunk) / len(leaf)
                padding = chunk[0].shape[-1] - grad.shape[-1]  # what the teacher's vocabulary doesn't have
                chunk[0].backward(nn.functional.pad(grad, (0, padding)).to(chunk[0].dtype))
            hidden.backward(leaf.grad)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = torch.cat([grad.flatten().float() for grad in grads])
            norms.append(torch.linalg.vector_norm(flat).item())
            total += flat * (len(leaf) / tokens)
    for parameter, grad in zip(parameters, before, strict=True):
        parameter.grad = grad
    return total, norms


def measure_parameters(trainer: TemperatureKDTrainer, batches: Sequence[Batch], plan: Plan) -> list[dict[str, Any]]:
    """
    Measures 2 to 5 on the gradient of the batch loss in the student's parameters, and 8, the clip rate: the share of
    `batches` where its norm exceeds the trainer's `max_grad_norm`.
    """
    tokens, limit = sum(len(batch.targets) for batch in batches), trainer.args.max_grad_norm
    total = partial(parameter_gradient, trainer, batches)
    rows: list[dict[str, Any]] = []
    direction = total(lambda chunk: difference(chunk[0].detach(), chunk[1]))[0]
    at_1 = {name: total(partial(plan.gradient, name))[0] for name in plan.objectives}
    for mode, tau, tau_s, tau_t in plan.cells():
        totals = {name: total(partial(plan.gradient, name, tau_s=tau_s, tau_t=tau_t)) for name in plan.compared}
        for name in plan.objectives:
            cell, (g, norms) = (name, mode, tau), totals[name]
            others = {"tau_1": at_1[name], "difference": direction}
            others |= {other: totals[other][0] for other in ("forward_kl", "reverse_kl") if other != name}
            cosines = {other: cosine(g, h).item() for other, h in others.items()}
            factors = {"none": 1.0, "tau2": float(rescale_factor("tau2", tau_s, tau_t))}
            norm = torch.linalg.vector_norm(g).item()
            ratio = ratio_of(norm, torch.linalg.vector_norm(at_1[name]).item())
            for measure, values in {
                "parameter_cosine": cosines,
                "parameter_residual": {"tau_1": 1 - cosines["tau_1"] ** 2},
                "parameter_norm_ratio": {kind: ratio * factor for kind, factor in factors.items()},
                "parameter_norm": {kind: norm * factor for kind, factor in factors.items()},
                "effective_parameters": {NONE: effective_number(g).item()},
                "clip_rate": {
                    kind: sum(n * factor > limit > 0 for n in norms) / len(norms) for kind, factor in factors.items()
                },
            }.items():
                rows += rows_of(cell, measure, values, tokens)
    return rows
