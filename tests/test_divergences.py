# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The family against the plain formulas, its limits, its gradients, and bad numbers."""

import math

import pytest
import torch

from trl_tempkd.divergences import DIVERGENCES, check_divergence, needs_target
from trl_tempkd.likeliest import head_mask
from trl_tempkd.losses import kd_loss
from trl_tempkd.temperature import log_softmax


NAMES = list(DIVERGENCES)


def random_pair(rows=16, size=23, spread=2.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(rows, size, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    return log_softmax(p.to(dtype)), log_softmax(q.to(dtype)), torch.randint(size, (rows,), generator=generator)


def value(name, log_p, log_q, target, **kwargs):
    return DIVERGENCES[name](log_p, log_q, *([target] if needs_target(name) else []), **kwargs)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def reference_values(p, q, y):
    """The definitions, as plainly as they can be written, on float64 probabilities."""
    m = 0.5 * p + 0.5 * q
    gap = (p - q).abs()
    sorted_p, order = p.sort(-1, descending=True)
    in_head = sorted_p.cumsum(-1) <= 0.5
    in_head[..., 0] = True
    head = torch.zeros_like(in_head).scatter(-1, order, in_head)
    g_head, g_tail = (gap * head).sum(-1), (gap * ~head).sum(-1)
    w = torch.sigmoid((p / q).log())
    p_y, q_y = (t.gather(-1, y[:, None]).squeeze(-1) for t in (p, q))
    rest = torch.ones_like(p).scatter(-1, y[:, None], 0).bool()
    p_rest, q_rest = (t[rest].view(t.shape[0], -1) / (1 - t_y)[:, None] for t, t_y in ((p, p_y), (q, q_y)))

    def binary(a, b):
        return a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()

    entropy = -(p * p.log()).sum(-1)
    a, b = 0.2, 0.7
    difference = (q / p).log()
    between = q**0.6 * p**0.4
    between = between / between.sum(-1, keepdim=True)
    pairs = (difference[:, :, None] - difference[:, None, :]).square() * q[:, :, None] * q[:, None, :]
    return {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "symmetric_kl": 0.5 * kl(p, q) + 0.5 * kl(q, p),
        "jsd": 0.5 * kl(p, m) + 0.5 * kl(q, m),
        "skew_forward_kl": kl(p, 0.1 * p + 0.9 * q),
        "skew_reverse_kl": kl(q, 0.9 * p + 0.1 * q),
        "tvd": 0.5 * gap.sum(-1),
        "adaptive_kl": (g_head * kl(p, q) + g_tail * kl(q, p)) / (g_head + g_tail),
        "alpha_beta": -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b),
        "todi": (w * p * (p / q).log() + (1 - w) * q * (q / p).log()).sum(-1),
        "diversity_reverse_kl": binary(q_y, p_y) + 0.5 * kl(q_rest, p_rest),
        "decoupled_kl": binary(p_y, q_y) + 8 * kl(p_rest, q_rest),
        "entropy_aware": kl(q, p) + (entropy > 0.8) * kl(p, q),
        "concrete_score": 0.5 * pairs.sum((-1, -2)),
        "taid": kl(between, q),
    }


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(name):
    log_p, log_q, y = random_pair()
    torch.testing.assert_close(value(name, log_p, log_q, y), reference_values(log_p.exp(), log_q.exp(), y)[name])


def test_every_divergence_has_a_reference():
    log_p, log_q, y = random_pair()
    assert set(reference_values(log_p.exp(), log_q.exp(), y)) == set(DIVERGENCES)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    log_p, log_q, y = random_pair(rows=4, size=6, spread=1.0)
    # weights that the papers hold constant are not part of the derivative: hold them by hand, as autograd does
    detached = {"adaptive_kl", "todi", "concrete_score", "taid"}
    if name not in detached:
        assert torch.autograd.gradcheck(lambda x: value(name, log_p, x, y), log_q.requires_grad_())
        return
    x = log_q.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(name, log_p, x, y).sum(), x)
    p, q0 = log_p.exp(), log_q.exp()
    if name == "todi":
        w = torch.sigmoid(log_p - log_q)
        fixed = lambda z: (w * p * (log_p - z) + (1 - w) * z.exp() * (z - log_p)).sum()  # noqa: E731
    elif name == "adaptive_kl":
        gap, head = (p - q0).abs(), head_mask(log_p, 0.5)
        share = (gap * head).sum(-1) / gap.sum(-1)
        fixed = lambda z: (share * (p * (log_p - z)).sum(-1) + (1 - share) * (z.exp() * (z - log_p)).sum(-1)).sum()  # noqa: E731
    elif name == "taid":
        between = (0.6 * log_q + 0.4 * log_p).softmax(-1)
        fixed = lambda z: -(between * z).sum()  # noqa: E731
    else:
        fixed = lambda z: (q0 * (z - log_p - (q0 * (z - log_p)).sum(-1, keepdim=True)).square()).sum()  # noqa: E731
    numeric, step = torch.zeros_like(x), 1e-6
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            move = torch.zeros_like(x)
            move[i, j] = step
            numeric[i, j] = (fixed(log_q + move) - fixed(log_q - move)) / (2 * step)
    torch.testing.assert_close(grad, numeric, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_equal_distributions_give_zero_and_a_zero_gradient(name, dtype):
    logits = (torch.randn(32, 500, generator=torch.Generator().manual_seed(1)) * 4).to(dtype).requires_grad_()
    labels = torch.randint(500, (32,), generator=torch.Generator().manual_seed(2))
    loss = kd_loss(logits, logits.detach().clone(), divergence=name, labels=labels)
    bound = 1e-10 if dtype == torch.float64 else 2e-5
    assert loss.abs().max() < bound and loss.min() > -bound
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.abs().max() < bound


@pytest.mark.parametrize("name", NAMES)
def test_never_negative_beyond_rounding_in_bf16(name):
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(200, 300, generator=generator) * 5
    student = teacher + 0.01 * torch.randn(200, 300, generator=generator)
    labels = torch.randint(300, (200,), generator=generator)
    loss = kd_loss(student.bfloat16(), teacher.bfloat16(), divergence=name, labels=labels)
    assert loss.min() > -2e-5 and loss.mean() > 0


@pytest.mark.parametrize(
    ("name", "kwargs", "same"),
    [
        ("alpha_beta", {"alpha": 1.0, "beta": 0.0}, "forward_kl"),
        ("alpha_beta", {"alpha": 0.0, "beta": 1.0}, "reverse_kl"),
        ("jsd", {"beta": 0.0}, "forward_kl"),
        ("jsd", {"beta": 1.0}, "reverse_kl"),
        ("skew_forward_kl", {"alpha": 0.0}, "forward_kl"),
        ("skew_reverse_kl", {"alpha": 0.0}, "reverse_kl"),
        ("symmetric_kl", {"weight": 0.0}, "forward_kl"),
        ("symmetric_kl", {"weight": 1.0}, "reverse_kl"),
        ("entropy_aware", {"threshold": 1e9}, "reverse_kl"),
    ],
)
def test_limits_are_other_members(name, kwargs, same):
    log_p, log_q, y = random_pair()
    torch.testing.assert_close(value(name, log_p, log_q, y, **kwargs), value(same, log_p, log_q, y))


@pytest.mark.parametrize("name", ["skew_forward_kl", "skew_reverse_kl"])
def test_skew_of_one_compares_a_distribution_with_itself(name):
    log_p, log_q, y = random_pair()
    assert value(name, log_p, log_q, y, alpha=1.0).abs().max() == 0


@pytest.mark.parametrize("limit", [(0.0, 0.7), (0.7, 0.0), (0.5, -0.5), (0.0, 0.0), (-0.3, 0.3)])
def test_alpha_beta_is_continuous_at_its_limits(limit):
    log_p, log_q, y = random_pair(spread=1.0)
    at = value("alpha_beta", log_p, log_q, y, alpha=limit[0], beta=limit[1])
    near = value("alpha_beta", log_p, log_q, y, alpha=limit[0] + 1e-5, beta=limit[1] + 1.1e-5)
    torch.testing.assert_close(at, near, rtol=2e-3, atol=2e-3)


def test_alpha_beta_of_a_half_is_hellinger():
    log_p, log_q, y = random_pair()
    squared_hellinger = 0.5 * (log_p.exp().sqrt() - log_q.exp().sqrt()).square().sum(-1)
    got = value("alpha_beta", log_p, log_q, y, alpha=0.5, beta=0.5)
    torch.testing.assert_close(got, 4 * squared_hellinger)


def test_kl_decompositions():
    log_p, log_q, y = random_pair()
    p_y, q_y = (t.exp().gather(-1, y[:, None]).squeeze(-1) for t in (log_p, log_q))
    for i in range(3):
        row = slice(i, i + 1)
        ours = value("decoupled_kl", log_p[row], log_q[row], y[row], beta=1 - p_y[i].item())
        torch.testing.assert_close(ours, value("forward_kl", log_p[row], log_q[row], y[row]))
        ours = value("diversity_reverse_kl", log_p[row], log_q[row], y[row], gamma=1 - q_y[i].item())
        torch.testing.assert_close(ours, value("reverse_kl", log_p[row], log_q[row], y[row]))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_equals_trl(beta):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(9, 31, generator=generator) for _ in range(2))
    theirs, _ = ChunkedDivergenceFunction.apply(
        student, torch.eye(31), None, teacher, torch.eye(31), None, beta, 2.0, 1.0, None, 1.0, None
    )
    kwargs = {"divergence": "jsd", "divergence_kwargs": {"beta": beta}}
    ours = kd_loss(student, teacher, student_temperature=2.0, teacher_temperature=2.0, **kwargs)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)  # theirs is in fp32


@pytest.mark.parametrize(
    ("name", "share_of_p", "forward"), [("skew_forward_kl", 0.1, True), ("skew_reverse_kl", 0.9, False)]
)
def test_skew_equals_distillm_up_to_the_entropy_it_leaves_out(name, share_of_p, forward):
    # DistiLLM's code computes the cross-entropy of the first argument with the mixture: the same gradient as the
    # divergence for the forward form, another value
    log_p, log_q, y = random_pair()
    p, q = log_p.exp(), log_q.exp()
    first = p if forward else q
    theirs = -(first * (share_of_p * p + (1 - share_of_p) * q).log()).sum(-1)
    entropy = -(first * first.log()).sum(-1)
    torch.testing.assert_close(value(name, log_p, log_q, y), theirs - entropy)


def test_concrete_score_has_twice_the_gradient_of_reverse_kl():
    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(8, 50, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    student.requires_grad_()
    taus = {"student_temperature": 2.0, "teacher_temperature": 3.0}
    gradients = [
        torch.autograd.grad(kd_loss(student, teacher, divergence=name, **taus).sum(), student)[0]
        for name in ("concrete_score", "reverse_kl")
    ]
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


@pytest.mark.parametrize("weights", ["student", "teacher", "uniform"])
def test_concrete_score_weights(weights):
    log_p, log_q, y = random_pair()
    w = {"student": log_q.exp(), "teacher": log_p.exp(), "uniform": torch.full_like(log_q, 1 / log_q.shape[-1])}[
        weights
    ]
    difference = log_q - log_p
    pairs = (difference[:, :, None] - difference[:, None, :]).square() * w[:, :, None] * w[:, None, :]
    got = value("concrete_score", log_p, log_q, y, weights=weights)
    torch.testing.assert_close(got, 0.5 * pairs.sum((-1, -2)))


def bad_logits(generator, rows, size, dtype):
    """-inf here and there, whole rows of it, one-hot rows, underflow."""
    scale = float(torch.tensor([1e-3, 1.0, 30.0, 1e3])[torch.randint(4, (1,), generator=generator)])
    logits = torch.randn(rows, size, generator=generator) * scale
    masked = torch.rand(rows, size, generator=generator) < torch.rand(1, generator=generator) * 0.9
    logits = logits.masked_fill(masked, -math.inf)
    hot = torch.rand(rows, generator=generator) < 0.2
    one_hot = torch.full((rows, size), -math.inf).scatter(1, torch.randint(size, (rows, 1), generator=generator), 0.0)
    return torch.where(hot[:, None], one_hot, logits).to(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_never_nan_nor_inf(name):
    generator = torch.Generator().manual_seed(6)
    for case in range(150):  # of up to 8 rows each, for each divergence: thousands of rows
        rows, size = (int(torch.randint(n, (1,), generator=generator)) for n in (9, 20))
        size = max(size, 1)
        dtype = [torch.float32, torch.bfloat16, torch.float64][case % 3]
        student = bad_logits(generator, rows, size, dtype).requires_grad_()
        teacher = bad_logits(generator, rows, size, dtype)
        labels = torch.randint(size, (rows,), generator=generator)
        loss = kd_loss(student, teacher, divergence=name, labels=labels, student_temperature=0.5 + case % 4)
        assert loss.isfinite().all(), (case, loss)
        (grad,) = torch.autograd.grad(loss.sum(), student)
        assert grad.isfinite().all(), (case, grad)


@pytest.mark.parametrize("kwargs", [(-0.5, 1.0), (1.0, -0.5), (-1.0, -1.0), (0.0, 0.0), (0.0, 1.0), (2.0, 0.0)])
def test_alpha_beta_is_finite_for_every_exponent(kwargs):
    generator = torch.Generator().manual_seed(7)
    student = bad_logits(generator, 50, 20, torch.float32).requires_grad_()
    teacher = bad_logits(generator, 50, 20, torch.float32)
    kwargs = {"alpha": kwargs[0], "beta": kwargs[1]}
    loss = kd_loss(student, teacher, divergence="alpha_beta", divergence_kwargs=kwargs)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("kl", None, "`divergence` must be one of forward_kl, .* got 'kl'"),
        ("forward_kl", {"beta": 1}, "'beta', but forward_kl takes no parameters"),
        ("jsd", {"alpha": 1}, "'alpha', but jsd takes beta"),
        ("jsd", {"beta": 1.5}, "`beta` must be between 0 and 1, got 1.5"),
        ("jsd", {"beta": "much"}, "does not fit jsd"),
        ("concrete_score", {"weights": "S"}, "student, teacher, uniform, got 'S'"),
    ],
)
def test_bad_parameters_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_divergence(name, kwargs)
