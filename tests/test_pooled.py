# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Two vocabularies pooled into the same bins: the chunked loss is the plain formula, in float64."""

import pytest
import torch

from trl_tempkd import DIVERGENCES
from trl_tempkd.errors import UsageError
from trl_tempkd.losses import Pooled, Stretches, chunked_kd_loss, measure_tokens
from trl_tempkd.losses.fused import Product
from trl_tempkd.losses.pooled import ON_POOLED, sides
from trl_tempkd.losses.truncated import F_DIVERGENCES
from trl_tempkd.temperature import LOG_FLOOR
from trl_tempkd.temperature_rules import row_temperatures


N, M, VS, VT, HS, HT, BINS = 9, 5, 23, 31, 6, 7, 8
ON_BINS = [*F_DIVERGENCES, *ON_POOLED]


def case(seed: int = 0, count: int = BINS, stretches: bool = False):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias = (t.requires_grad_() for t in (normal(N, HS), normal(VS, HS), normal(VS)))
    bins = tuple(torch.randint(0, BINS, (size,), generator=generator) for size in (VS, VT))
    bins[1][bins[1] == 3] = 4  # the teacher has no token in a bin of the student's
    in_both = tuple(torch.rand(size, generator=generator) < 0.5 for size in (VS, VT))
    labels = torch.randint(0, VS, (N,), generator=generator)
    labels[0] = -100
    rows = torch.tensor([1, 2, 4, 5, 8])
    between = None
    if stretches:
        number = torch.tensor([-1, -1, 0, 0, -1, 1, 1, 1, -1])
        tokens = torch.randint(0, VT, (3,), generator=generator)
        between = Stretches(0.7, number, normal(3, HT), tokens, torch.tensor([0, 1, 1]), 2)
    teacher = Pooled(normal(M, HT), rows, bins, count, in_both, between)
    return (hidden, weight, bias), teacher, normal(VT, HT), labels


def binned(logits, tau, bins, count=BINS):
    mass = (logits / tau).softmax(-1)
    columns = [mass[:, bins == b].sum(-1) for b in range(count)]
    return torch.stack(columns, -1).clamp(min=torch.finfo(torch.float64).tiny).log()


def plain(student, teacher, teacher_weight, labels, divergence, tau_s, tau_t, kd_ratio=1.0, factor=1.0, **kwargs):
    """The formula, on logits in full."""
    hidden, weight, bias = student
    z, v = hidden @ weight.T + bias, teacher.hidden @ teacher_weight.T
    log_q, log_p = binned(z[teacher.rows], tau_s, teacher.bins[0]), binned(v, tau_t, teacher.bins[1])
    target = (teacher.bins[0][labels[teacher.rows]],) if divergence in ("diversity_reverse_kl", "decoupled_kl") else ()
    kept = labels != -100
    kd = (DIVERGENCES[divergence](log_p, log_q, *target, **kwargs) * factor).sum()
    ce = torch.nn.functional.cross_entropy(z, labels, ignore_index=-100, reduction="sum")
    return (kd_ratio * kd + (1 - kd_ratio) * ce) / kept.sum()


@pytest.mark.parametrize("kd_ratio", [1.0, 0.6])
@pytest.mark.parametrize("divergence", ON_BINS)
def test_is_the_plain_formula(divergence, kd_ratio):
    student, teacher, teacher_weight, labels = case()
    want = plain(student, teacher, teacher_weight, labels, divergence, 1.5, 2.5, kd_ratio, factor=1.5 * 2.5)
    expected = torch.autograd.grad(want, student)
    for metrics in (False, True):
        got = chunked_kd_loss(
            student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels,
            divergence=divergence, student_temperature=1.5, teacher_temperature=2.5, rescale="tau2",
            kd_ratio=kd_ratio, chunk_size=2, metrics=metrics,
        )  # fmt: skip
        torch.testing.assert_close(got.loss, want, rtol=1e-9, atol=1e-9)
        for one, other in zip(torch.autograd.grad(got.loss, student), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        silent = chunked_kd_loss(
            student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels,
            divergence=divergence, student_temperature=1.5, teacher_temperature=2.5, rescale="tau2", kd_ratio=kd_ratio,
        )  # fmt: skip
    torch.testing.assert_close(silent.loss, want, rtol=1e-9, atol=1e-9)
    assert silent.per_token[[0, 3, 6, 7]].eq(0).all()  # those that aren't aligned


def test_compiled_is_eager(recwarn):
    """With chunks that aren't full, and a term between."""
    student, teacher, teacher_weight, labels = case(stretches=True)
    found = []
    for compile in (False, True):
        out = chunked_kd_loss(
            student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels, kd_ratio=0.6,
            chunk_size=4, metrics=True, compile=compile, divergence="jsd", student_temperature=1.5,
        )  # fmt: skip
        found.append([out.loss, out.per_token, *out.metrics.values(), *torch.autograd.grad(out.loss, student)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    student, teacher, teacher_weight, labels = case(stretches=True)

    def loss(*student):
        out = chunked_kd_loss(
            student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels,
            divergence="jsd", student_temperature=0.7, teacher_temperature=1.3, kd_ratio=0.8,
        )  # fmt: skip
        return out.loss

    assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("rule", ["zscore", "target_entropy", "max_logit"])
def test_a_rule_looks_at_the_own_vocabulary_of_each_side(rule):
    student, teacher, teacher_weight, labels = case()
    got = chunked_kd_loss(
        student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels,
        student_temperature=2.0, teacher_temperature=2.0, temperature_rule=rule, metrics=True,
    )  # fmt: skip
    z = (student[0] @ student[1].T + student[2])[teacher.rows]
    v, two = teacher.hidden @ teacher_weight.T, torch.full((M,), 2.0, dtype=torch.float64)
    tau_s, tau_t = (tau.detach() for tau in row_temperatures(rule, {}, z, v, two, two, "both"))
    torch.testing.assert_close(got.metrics["student_tau"], torch.zeros(N).double().index_copy(0, teacher.rows, tau_s))
    want = plain(student, teacher, teacher_weight, labels, "forward_kl", tau_s[:, None], tau_t[:, None])
    torch.testing.assert_close(got.loss, want, rtol=1e-9, atol=1e-9)


def test_derivatives_by_the_temperatures():
    student, teacher, teacher_weight, labels = case()
    taus = [torch.full((), tau, dtype=torch.float64, requires_grad=True) for tau in (1.5, 2.5)]
    want = plain(student, teacher, teacher_weight, labels, "reverse_kl", *taus, factor=taus[0] * taus[1])
    got = chunked_kd_loss(
        student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels,
        divergence="reverse_kl", student_temperature=1.5, teacher_temperature=2.5, rescale="tau2",
        metrics=["student_tau_grad", "teacher_tau_grad"],
    )  # fmt: skip
    for side, derivative in zip(("student", "teacher"), torch.autograd.grad(want, taus), strict=True):
        found = got.metrics[f"{side}_tau_grad"].sum() / (labels != -100).sum()  # 0 where nothing is compared
        torch.testing.assert_close(found, derivative, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_one_vocabulary_with_a_bin_for_each_token_is_the_loss_of_today(divergence):
    student, _, _, labels = case()
    weight = torch.randn(VS, HT, dtype=torch.float64)
    each = torch.arange(VS)
    rows = torch.arange(N)
    hidden = torch.randn(N, HT, dtype=torch.float64)
    one = Pooled(hidden, rows, (each, each), VS, (each >= 0, each >= 0))
    options = {
        "student_bias": student[2], "labels": labels, "divergence": divergence, "student_temperature": 2.0,
        "teacher_temperature": 3.0, "rescale": "tau2", "kd_ratio": 0.7,
    }  # fmt: skip
    for metrics in (False, True):
        pooled = chunked_kd_loss(student[0], student[1], one, weight, metrics=metrics, **options)
        today = chunked_kd_loss(student[0], student[1], hidden, weight, metrics=metrics, **options)
        torch.testing.assert_close(pooled.loss, today.loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pooled.per_token, today.per_token, rtol=1e-12, atol=1e-12)
        grads = (torch.autograd.grad(out.loss, student) for out in (pooled, today))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for name, other in (("kd", "kd"), ("kl_tau1_coarse", "kl_tau1"), ("agreement", "agreement"), ("ce", "ce")):
        torch.testing.assert_close(pooled.metrics[name], today.metrics[other], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_bins_never_exceed_finer_bins(divergence):
    """Data processing, at any temperature: bins of strings, and bins of these bins."""
    for seed in range(5):
        student, teacher, _, labels = case(seed)
        fine = torch.arange(VS)
        coarse = torch.randint(0, BINS, (VS,), generator=torch.Generator().manual_seed(seed))
        weight = torch.randn(VS, HT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        values = []
        for bins, count in ((coarse // 2, BINS // 2), (coarse, BINS), (fine, VS)):
            rows = Pooled(teacher.hidden, teacher.rows, (bins, bins), count, (fine >= 0, fine >= 0))
            out = chunked_kd_loss(
                student[0], student[1], rows, weight, divergence=divergence, labels=labels,
                student_temperature=2.0, teacher_temperature=2.0,
            )  # fmt: skip
            values.append(out.per_token)
        assert (values[0] <= values[1] + 1e-12).all() and (values[1] <= values[2] + 1e-12).all()
        assert (values[0] < values[2]).any()


def test_by_rank_tvd_is_half_of_uld():
    student, teacher, teacher_weight, labels = case(count=0)
    z, v = student[0] @ student[1].T + student[2], teacher.hidden @ teacher_weight.T
    q, p = ((logits / 2).softmax(-1).sort(-1, descending=True).values for logits in (z[teacher.rows], v))
    want = (torch.nn.functional.pad(q, (0, VT - VS)) - p).abs().sum() / 2 / (labels != -100).sum()
    got = chunked_kd_loss(
        student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels, divergence="tvd",
        student_temperature=2.0, teacher_temperature=2.0,
    )  # fmt: skip
    torch.testing.assert_close(got.loss, want, rtol=1e-9, atol=1e-9)
    pairs = zip(torch.autograd.grad(got.loss, student), torch.autograd.grad(want, student), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_ranks_are_those_of_both_vocabularies_sorted_whole(divergence, sizes):
    torch.manual_seed(0)
    z, v = (torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in sizes)
    tau = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    width = max(sizes)

    def whole(logits):
        log = (logits / tau[:, None]).log_softmax(-1).sort(-1, descending=True).values
        return torch.nn.functional.pad(log, (0, width - logits.shape[-1]), value=LOG_FLOOR)

    want = DIVERGENCES[divergence](whole(v), whole(z))
    (log_q, spread_q), (log_p, spread_p) = sides(z, v, tau, tau, (), 0)
    log_q, log_p = (log.detach().requires_grad_() for log in (log_q, log_p))
    got = DIVERGENCES[divergence](log_p, log_q)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for of_log, spread, logits in ((log_q, spread_q, z), (log_p, spread_p, v)):
        (slope,) = torch.autograd.grad(got.sum(), of_log, retain_graph=True)
        in_logits = spread(slope)  # of log-probabilities, whose own slope in the logits is taken here
        softmax = (logits / tau[:, None]).softmax(-1)
        in_logits = (in_logits - softmax * in_logits.sum(-1, keepdim=True)) / tau[:, None]
        (expected,) = torch.autograd.grad(want.sum(), logits, retain_graph=True)
        torch.testing.assert_close(in_logits, expected, rtol=1e-9, atol=1e-9)


def test_stretches_are_the_plain_formula():
    student, teacher, teacher_weight, labels = case(stretches=True)
    between = teacher.stretches
    z = student[0] @ student[1].T + student[2]
    ce = torch.nn.functional.cross_entropy(z, labels, ignore_index=-100, reduction="none")
    own = torch.nn.functional.cross_entropy(between.hidden @ teacher_weight.T, between.tokens, reduction="none")
    terms = []
    for i in range(2):
        q, p = (-ce[between.student == i].sum()).exp(), (-own[between.teacher == i].sum()).exp()
        terms.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    kept = (labels != -100).sum()
    want = plain(student, teacher, teacher_weight, labels, "forward_kl", 1.0, 1.0, 0.8)
    want = want + 0.8 * 0.7 * sum(terms) / kept
    got = chunked_kd_loss(
        student[0], student[1], teacher, teacher_weight, student_bias=student[2], labels=labels, kd_ratio=0.8,
        chunk_size=4, metrics=["kd"],
    )  # fmt: skip
    torch.testing.assert_close(got.loss, want, rtol=1e-9, atol=1e-9)
    pairs = zip(torch.autograd.grad(got.loss, student), torch.autograd.grad(want, student), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    extra = got.per_token - got.metrics["kd"]
    torch.testing.assert_close(extra[[2, 5]], 0.7 * torch.stack(terms), rtol=1e-9, atol=1e-9)


def test_nothing_aligned_is_zero_with_a_gradient_of_zero():
    student, teacher, teacher_weight, labels = case()
    none = Pooled(teacher.hidden[:0], teacher.rows[:0], teacher.bins, BINS, teacher.in_both)
    out = chunked_kd_loss(student[0], student[1], none, teacher_weight, labels=labels)
    assert out.loss == 0
    assert all(not grad.any() for grad in torch.autograd.grad(out.loss, student[:2]))
    mixed = chunked_kd_loss(student[0], student[1], none, teacher_weight, labels=labels, kd_ratio=0.5, metrics=True)
    ce = torch.nn.functional.cross_entropy(student[0] @ student[1].T, labels, ignore_index=-100)
    torch.testing.assert_close(mixed.loss, ce / 2, rtol=1e-9, atol=1e-9)
    assert not mixed.metrics["aligned"].any()
    looked_at = chunked_kd_loss(student[0], student[1], none, teacher_weight, labels=labels, metrics=True)
    torch.testing.assert_close(looked_at.metrics["ce"].sum() / (labels != -100).sum(), ce)
    assert all(not grad.any() for grad in torch.autograd.grad(looked_at.loss, student[:2]))


@pytest.mark.parametrize("kd_ratio", [1.0, 0.6])
def test_no_head_is_multiplied_where_nothing_depends_on_it(monkeypatch, kd_ratio):
    student, teacher, teacher_weight, labels = case()
    multiplied = {VS: 0, VT: 0}

    def multiply(self, chunk, original=Product.multiply):
        multiplied[len(self.weight_VH)] += chunk.stop - chunk.start
        original(self, chunk)

    monkeypatch.setattr(Product, "multiply", multiply)
    chunked_kd_loss(student[0], student[1], teacher, teacher_weight, labels=labels, kd_ratio=kd_ratio, chunk_size=3)
    assert multiplied == {VS: M if kd_ratio == 1 else int((labels != -100).sum()), VT: M}


def test_bins_that_one_side_never_fills_stay_finite():
    """In fp32 and at a low temperature, where masses underflow, and whatever the sizes."""
    for divergence in ON_BINS:
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(4, 8, generator=generator).requires_grad_()
        weight = (20 * torch.randn(50, 8, generator=generator)).requires_grad_()
        teacher = 20 * torch.randn(70, 8, generator=generator)
        bins = torch.arange(50) % 20, torch.arange(70) % 12
        both = torch.ones(50, dtype=torch.bool), torch.ones(70, dtype=torch.bool)
        rows = Pooled(torch.randn(4, 8, generator=generator), torch.arange(4), bins, 20, both)
        out = chunked_kd_loss(
            hidden, weight, rows, teacher, labels=torch.arange(4), divergence=divergence, student_temperature=0.1,
            teacher_temperature=0.1, metrics=True,
        )  # fmt: skip
        assert torch.isfinite(out.loss)
        assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(out.loss, (hidden, weight)))


def test_what_means_nothing_on_bins_is_refused():
    student, teacher, teacher_weight, labels = case()
    for divergence in ("concrete_score", "taid"):
        with pytest.raises(UsageError, match=f"`divergence` {divergence} .*by bins"):
            chunked_kd_loss(*student[:2], teacher, teacher_weight, labels=labels, divergence=divergence)
    ranks = case(count=0)[1]
    with pytest.raises(UsageError, match=r"`divergence` adaptive_kl .*by ranks"):
        chunked_kd_loss(*student[:2], ranks, teacher_weight, labels=labels, divergence="adaptive_kl")
    with pytest.raises(UsageError, match="hellinger"):
        measure_tokens(*student[:2], teacher, teacher_weight, labels=labels, metrics=["hellinger"])
    with pytest.raises(UsageError, match="bins of 23 and 31 tokens"):
        chunked_kd_loss(*student[:2], teacher, teacher_weight[:-1], labels=labels)
