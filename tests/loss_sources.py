# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One small problem for `chunked_kd_loss` from each kind of teacher, on any device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trl_tempkd.losses import Logits, Mixture, Part, Pooled, Sampled, Stretches, TopK, chunked_kd_loss


N, V, WIDTH, TEACHER_WIDTH, TEACHER_V, BINS, K = 24, 50, 8, 12, 61, 9, 6
TAU = 2.0
SOURCES = ("whole", "logits", "mixture", "top_k", "sampled", "bins", "stretches", "ranks")


class Problem(NamedTuple):
    """Arguments of the loss: the student's hidden states and head, the teacher and its head, and options."""

    hidden: Tensor
    weight: Tensor
    teacher: Any
    teacher_weight: Tensor | None
    options: dict[str, Any]

    def loss(self, **options: Any) -> Any:
        return chunked_kd_loss(*self[:4], **{**self.options, **options})

    def gradients(self, **options: Any) -> list[Tensor]:
        loss = self.loss(**options).loss
        return [loss.detach(), *torch.autograd.grad(loss, (self.hidden, self.weight))]


def make_problem(source: str, device: str = "cpu", dtype: torch.dtype = torch.float64, size: int = V) -> Problem:
    """The same numbers on every device, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def integers(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator).to(device)

    hidden, weight = draw(N, WIDTH).requires_grad_(), draw(size, WIDTH).requires_grad_()
    teacher_hidden, teacher_weight = draw(N, TEACHER_WIDTH), draw(size, TEACHER_WIDTH)
    labels = integers(size, N).masked_fill(torch.arange(N, device=device) % 3 == 0, -100)
    options = {"labels": labels, "student_temperature": TAU, "teacher_temperature": TAU, "chunk_size": 10}
    options |= {"student_bias": draw(size)}
    logits = (teacher_hidden @ teacher_weight.T).double()
    if source == "whole":
        return Problem(hidden, weight, teacher_hidden, teacher_weight, options | {"teacher_bias": draw(size)})
    if source == "logits":
        return Problem(hidden, weight, Logits(logits.to(dtype)), None, options)
    if source == "mixture":
        other = Part(draw(N, size), None, None, 1.0, None, 3.0, 0.4)
        mixed = Mixture((Part(teacher_hidden, teacher_weight, None, 0.5, 4.0, TAU, 0.6), other))
        return Problem(hidden, weight, mixed, None, options | {"teacher_temperature": 1.0})
    if source == "top_k":
        top, ids = logits.topk(K)
        others = logits.scatter(1, ids, -torch.inf)
        rest = torch.stack([(others / tau).logsumexp(-1) for tau in (1.0, TAU)], -1)
        return Problem(hidden, weight, TopK((1.0, TAU), size, ids, top.to(dtype), rest), None, options)
    if source == "sampled":
        log_p = (logits / TAU).log_softmax(-1)
        top, ids = log_p.topk(K)
        entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
        sampled = Sampled((TAU,), size, ids[:, None], top.softmax(-1)[:, None], entropy)
        return Problem(hidden, weight, sampled, None, options)
    other_weight, rows = draw(TEACHER_V, TEACHER_WIDTH), torch.arange(0, N, 2, device=device)
    bins = integers(BINS, size), integers(BINS, TEACHER_V)
    in_both = bins[0] % 2 == 0, bins[1] % 2 == 0
    between = None
    if source == "stretches":
        number = (torch.arange(N, device=device) // 4).masked_fill(torch.arange(N, device=device) % 4 == 0, -1)
        between = Stretches(0.7, number, draw(N, TEACHER_WIDTH), integers(TEACHER_V, N), number.clamp(min=0), N // 4)
    pooled = Pooled(teacher_hidden[: len(rows)], rows, bins, 0 if source == "ranks" else BINS, in_both, between)
    return Problem(hidden, weight, pooled, other_weight, options)


def served(source: str, names: list[str]) -> list[str]:
    """Those divergences that the source has the numbers for."""
    teacher, found = make_problem(source).teacher, []
    for name in names:
        try:
            getattr(teacher, "check", lambda *_: None)(name, None)
        except ValueError:
            continue
        found.append(name)
    return found
