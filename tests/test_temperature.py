# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where tau enters: closed forms, the path identity, limits, modes, rescaling, schedules. All in float64."""

import math

import pytest
import torch

from trl_tempkd.losses import kd_loss
from trl_tempkd.temperature import (
    RESCALES,
    SCHEDULES,
    log_softmax,
    rescale_factor,
    scheduled_temperature,
    temperatures,
)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 17, dtype=torch.float64, generator=generator) * 2 for _ in range(2)]


def gradient(student, teacher, **kwargs):
    student = student.clone().requires_grad_()
    return torch.autograd.grad(kd_loss(student, teacher, **kwargs).sum(), student)[0]


def both(tau):
    return {"student_temperature": tau, "teacher_temperature": tau}


def flow(student, teacher, share, tau):
    """G(pi) = pi (d - E_pi[d]) at the point `share` of the way from teacher (0) to student (1)."""
    d = student - teacher
    pi = torch.softmax((teacher + share * d) / tau, -1)
    return pi * (d - (pi * d).sum(-1, keepdim=True))


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("tau_t", [1.0, 0.5, 4.0])
def test_forward_kl_gradient_closed_form(logits, tau_s, tau_t):
    student, teacher = logits
    expected = (torch.softmax(student / tau_s, -1) - torch.softmax(teacher / tau_t, -1)) / tau_s
    got = gradient(student, teacher, student_temperature=tau_s, teacher_temperature=tau_t)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0, 8.0])
def test_reverse_kl_gradient_with_both_softened_sees_no_teacher_softmax(logits, tau):
    student, teacher = logits
    got = gradient(student, teacher, divergence="reverse_kl", **both(tau))
    torch.testing.assert_close(got, flow(student, teacher, 1.0, tau) / tau**2)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_path_identity(logits, tau):
    student, teacher = logits
    nodes, weights = (torch.tensor(t) for t in __import__("numpy").polynomial.legendre.leggauss(40))
    integral = sum(w / 2 * flow(student, teacher, (x + 1) / 2, tau) for x, w in zip(nodes, weights, strict=True))
    got = gradient(student, teacher, rescale="tau2", **both(tau))
    torch.testing.assert_close(got, integral, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_high_temperature_limit(logits, divergence):
    student, teacher = logits
    d = student - teacher
    got = gradient(student, teacher, divergence=divergence, rescale="tau2", **both(1e5))
    torch.testing.assert_close(got, (d - d.mean(-1, keepdim=True)) / d.shape[-1], atol=1e-5, rtol=1e-4)


def test_teacher_only_moves_the_optimum_and_both_does_not(logits):
    teacher = logits[1]
    assert gradient(teacher, teacher, **both(3.0)).abs().max() < 1e-12
    assert gradient(teacher, teacher, teacher_temperature=3.0).abs().max() > 1e-2
    assert gradient(teacher / 3, teacher, teacher_temperature=3.0).abs().max() < 1e-12


def test_temperature_per_token_equals_one_at_a_time(logits):
    student, teacher = logits
    tau_s, tau_t = torch.linspace(0.5, 4, 8, dtype=torch.float64), torch.linspace(3, 1, 8, dtype=torch.float64)
    got = kd_loss(student, teacher, student_temperature=tau_s, teacher_temperature=tau_t, rescale="tau2")
    for i in range(8):
        kwargs = {"student_temperature": tau_s[i].item(), "teacher_temperature": tau_t[i].item(), "rescale": "tau2"}
        torch.testing.assert_close(got[i : i + 1], kd_loss(student[i : i + 1], teacher[i : i + 1], **kwargs))


def test_temperature_broadcasts_over_leading_dimensions(logits):
    student, teacher = (x.view(2, 4, 17) for x in logits)
    tau = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    got = kd_loss(student, teacher, student_temperature=tau, teacher_temperature=tau)
    torch.testing.assert_close(got[1], kd_loss(student[1], teacher[1], **both(3.0)))


@pytest.mark.parametrize(("rescale", "expected"), [("none", 1.0), ("tau", math.sqrt(6.0)), ("tau2", 6.0)])
def test_rescale(rescale, expected):
    assert rescale_factor(rescale, 2.0, 3.0) == pytest.approx(expected)
    assert rescale_factor(rescale, 2.0, 2.0) == pytest.approx(2.0 ** RESCALES[rescale])


def test_log_softmax_is_finite_on_masked_rows():
    rows = torch.tensor([[-math.inf, 0.0, 1.0], [-math.inf] * 3])
    got = log_softmax(rows, 2.0)
    assert got.isfinite().all()
    torch.testing.assert_close(got[0, 1:], torch.log_softmax(rows[0, 1:] / 2, -1))


def test_log_softmax_computes_bf16_in_fp32():
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = log_softmax(x, 3.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.log_softmax(x.double() / 3, -1), atol=1e-4, rtol=0)


def test_sides():
    assert temperatures(2.0) == (2.0, 2.0)
    assert temperatures(2.0, student=1.0) == (1.0, 2.0)
    assert temperatures(2.0, teacher=4.0) == (2.0, 4.0)


def test_schedules():
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "step"}
    for name in SCHEDULES:
        assert scheduled_temperature(name, 4.0, 1.0, 0.0) == 4.0
        assert scheduled_temperature(name, 4.0, 1.0, 1.0) == (4.0 if name == "constant" else 1.0)
        assert scheduled_temperature(name, 4.0, 1.0, 7.0) == scheduled_temperature(name, 4.0, 1.0, 1.0)
    assert scheduled_temperature("linear", 4.0, 1.0, 1 / 3) == pytest.approx(3.0)
    assert scheduled_temperature("cosine", 4.0, 1.0, 1 / 3) == pytest.approx(3.25)
    assert [scheduled_temperature("step", 4.0, 1.0, x) for x in (0.49, 0.5)] == [4.0, 1.0]
    assert scheduled_temperature("linear", 4.0, None, 0.7) == 4.0


def test_bad_values_are_named(logits):
    student, teacher = logits
    with pytest.raises(ValueError, match=r"`student_temperature` must be positive and finite, got 0"):
        kd_loss(student, teacher, student_temperature=0)
    with pytest.raises(ValueError, match=r"`rescale` must be one of none, tau, tau2, got 'tau3'"):
        kd_loss(student, teacher, rescale="tau3")
    with pytest.raises(ValueError, match=r"`reduction` must be one of"):
        kd_loss(student, teacher, reduction="max")
    with pytest.raises(ValueError, match=r"`labels` is required: decoupled_kl"):
        kd_loss(student, teacher, divergence="decoupled_kl")
    with pytest.raises(ValueError, match=r"`schedule` must be one of constant, .* got 'quadratic'"):
        scheduled_temperature("quadratic", 1.0, 2.0, 0.5)
