# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The loss of a step with several teachers: each of its own tokens, or one mixture of all of them."""

from typing import Any

import torch
from torch import Tensor

from ..heads import Head
from ..losses import Logits, Mixture, Part, chunked_kd_loss, measure_tokens
from ..teachers.several import EACH
from ..teachers.several_batches import Mixed, Routed
from ..teachers.several_options import TeacherSpec
from ..temperature import rescale_factor
from .outside import METRIC, MassOutside
from .step_loss import BatchLoss, StepLoss


class SeveralLoss(StepLoss):
    """As [`StepLoss`], of a divergence without a state, for `teachers`."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._outside_of: dict[str, MassOutside] = {}

    def __call__(  # type: ignore[override]
        self,
        hidden: Tensor,
        head: Head,
        teacher_rows: Routed | Mixed,
        teacher_head: dict[str, Any],
        targets: Tensor,
        normalizer: float | Tensor | None,
        *,
        logged: bool,
        training: bool,
        on_policy: bool = False,
    ) -> BatchLoss:
        self._specs: dict[str, TeacherSpec] = TeacherSpec.read(self._options)
        labels = targets.flatten()
        if normalizer is None:
            normalizer = (labels != -100).sum().clamp(min=1)
        student = {"student_hidden": hidden, **head.arguments("student"), "labels": labels}
        fixed = {
            "chunk_size": self._options.kd_chunk_size,
            "kd_ratio": self._options.kd_ratio,
            "normalizer": normalizer,
        }
        if isinstance(teacher_rows, Routed):
            return self._routed(student, teacher_rows, teacher_head, fixed, logged, training)
        return self._mixed(student, teacher_rows, teacher_head, fixed, logged)

    def _of_run(self) -> dict[str, Any]:
        return {"divergence": self._options.divergence, "divergence_kwargs": self._options.divergence_kwargs}

    # Each row has its teacher

    def _routed(
        self,
        student: dict[str, Any],
        rows: Routed,
        heads: dict[str, Any],
        fixed: dict[str, Any],
        logged: bool,
        training: bool,
    ) -> BatchLoss:
        labels, kd_ratio = student["labels"], fixed["kd_ratio"]
        zeros = student["student_hidden"].new_zeros(len(labels), dtype=self._dtype(student))
        per_token, metrics = zeros.clone(), {name: zeros.clone() for name in self._metrics}
        loss = student["student_hidden"][:0].sum()
        if not rows.known:  # the head takes part in any case, as on the other processes
            parts = (student["student_weight"], student["student_bias"])
            loss = sum((part[:0].sum() for part in parts if part is not None), loss)
        for name, (positions, known) in rows.known.items():
            spec = self._specs[name]
            tau_s, tau_t = spec.temperatures(*self.temperatures.pair())
            own = self._of_run()
            if spec.divergence is not None:
                own = {"divergence": spec.divergence, "divergence_kwargs": spec.divergence_kwargs}
            out = chunked_kd_loss(
                **{
                    **student,
                    "student_hidden": student["student_hidden"].index_select(0, positions),
                    "labels": labels.index_select(0, positions),
                },
                teacher_hidden=known,
                **heads[name].arguments("teacher"),
                **fixed,
                **own,
                student_temperature=tau_s,
                teacher_temperature=tau_t,
                rescale=self._options.kd_temperature_rescale,
                kd_weight=torch.full((len(positions),), spec.weight, dtype=zeros.dtype, device=labels.device),
                metrics=logged,
            )
            loss = loss + out.loss
            if not logged:
                continue
            term = out.metrics.get("alm", 0.0)  # has its weight already
            own_kd = spec.weight * (out.per_token - term) + term
            scaled = kd_ratio * own_kd + (1 - kd_ratio) * out.metrics["ce"]
            per_token.index_copy_(0, positions, scaled.to(per_token.dtype))
            for metric, value in out.metrics.items():
                for key in (metric, f"{EACH.get(metric)}/{name}"):
                    if key in metrics:
                        metrics[key].index_copy_(0, positions, value.to(zeros.dtype))
            if training and METRIC in out.metrics:
                outside = self._outside_of.setdefault(name, MassOutside(f"{METRIC}/{name}"))
                outside.see(out.metrics[METRIC], labels.index_select(0, positions) != -100)
            metrics[f"teacher_share/{name}"].index_fill_(0, positions, 1.0)
        return BatchLoss(loss, per_token, metrics) if logged else BatchLoss(loss, None, None)

    # All teachers at once

    def _mixed(
        self, student: dict[str, Any], rows: Mixed, heads: dict[str, Any], fixed: dict[str, Any], logged: bool
    ) -> BatchLoss:
        tau_s, tau_t = self.temperatures.pair()
        total = sum(spec.weight for spec in self._specs.values())
        shares = {name: spec.weight / total for name, spec in self._specs.items()}
        taus = {name: spec.temperatures(tau_s, tau_t)[1] for name, spec in self._specs.items()}
        parts = []
        for name, known in rows.known.items():
            values = known.values if isinstance(known, Logits) else known
            assert isinstance(values, Tensor)
            of = heads[name].arguments("teacher")
            parts.append(
                Part(
                    values,
                    of.get("teacher_weight"),
                    of.get("teacher_bias"),
                    of.get("teacher_logit_scale", 1.0),
                    of.get("teacher_final_logit_softcapping"),
                    taus[name],
                    shares[name],
                )
            )
        mixture = Mixture(tuple(parts))
        # Where they differ, the factor is that of their mean
        mean = sum(shares[name] * taus[name] for name in taus)
        factor = float(rescale_factor(self._options.kd_temperature_rescale, tau_s, mean))
        labels, kd_ratio = student["labels"], fixed["kd_ratio"]
        out = chunked_kd_loss(
            **student,
            teacher_hidden=mixture,
            **fixed,
            **self._of_run(),
            student_temperature=tau_s,
            teacher_temperature=1.0,
            kd_weight=torch.full((len(labels),), factor, dtype=self._dtype(student), device=labels.device),
            metrics=["kd", "ce"] if logged else False,
        )
        if not logged:
            return BatchLoss(out.loss, None, None)
        metrics = {**out.metrics, **self._measured(student, rows, heads, mixture, tau_s, taus)}
        per_token = kd_ratio * factor * out.per_token + (1 - kd_ratio) * out.metrics["ce"]
        return BatchLoss(out.loss, per_token, metrics)

    @torch.no_grad()
    def _measured(
        self,
        student: dict[str, Any],
        rows: Mixed,
        heads: dict[str, Any],
        mixture: Mixture,
        tau_s: float,
        taus: dict[str, float],
    ) -> dict[str, Tensor]:
        """What is logged beside the loss: the mixture at temperature 1, and the student's distance from each part."""
        chunk = {"chunk_size": self._options.kd_chunk_size}
        names = ("kl_tau1", "student_entropy", "teacher_entropy", "agreement")
        plain = mixture.at([1.0] * len(mixture.parts))
        metrics = measure_tokens(**student, teacher_hidden=plain, **chunk, metrics=names).metrics
        kept = (student["labels"] != -100).to(metrics["kl_tau1"].dtype)
        for name, known in rows.known.items():
            out = chunked_kd_loss(
                **student,
                teacher_hidden=known,
                **heads[name].arguments("teacher"),
                **chunk,
                **self._of_run(),
                student_temperature=tau_s,
                teacher_temperature=taus[name],
                metrics=["kd", "kl_tau1"],
            )
            metrics |= {f"kd_loss/{name}": out.metrics["kd"], f"kl_tau1/{name}": out.metrics["kl_tau1"]}
            metrics[f"teacher_share/{name}"] = kept
        return metrics

    @staticmethod
    def _dtype(student: dict[str, Any]) -> torch.dtype:
        return torch.promote_types(student["student_weight"].dtype, torch.float32)
