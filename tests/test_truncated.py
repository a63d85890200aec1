# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The loss from truncated teachers, against the plain formula on bins and against that on whole rows."""

import itertools

import pytest
import torch
from accelerate import PartialState
from test_losses import chunked, gradients, problem, student_logits, teacher_logits

from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.losses import TopK, block, chunked_kd_loss
from trl_tempkd.losses.truncated import F_DIVERGENCES, ON_BINS
from trl_tempkd.objectives.outside import MassOutside


TAUS = (1.0, 1.5, 4.0)


def top_k(x, k, taus=TAUS):
    """Everything there is to know of the k largest of a problem's teacher."""
    v = teacher_logits(x)
    logits, ids = v.topk(k, dim=-1)
    others = v.scatter(-1, ids, -torch.inf)
    return TopK(taus, v.shape[-1], ids, logits, torch.stack([(others / tau).logsumexp(-1) for tau in taus], -1))


def bins(logits, ids, tau):
    """The plain formula: probabilities summed."""
    probabilities = (logits / tau).softmax(-1)
    own = probabilities.gather(-1, ids)
    rest = torch.stack(
        [
            p[[i for i in range(len(p)) if i not in set(k)]].sum()
            for p, k in zip(probabilities, ids.tolist(), strict=True)
        ]
    )
    return torch.cat([own, rest[:, None]], -1).log()


def truncated(x, teacher, **kwargs):
    kwargs = {"student_bias": x.bias, "labels": x.labels, "compile": False, **kwargs}
    return chunked_kd_loss(x.hidden, x.weight, teacher, **kwargs)


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("name", [*F_DIVERGENCES, *ON_BINS])
def test_equals_the_plain_formula_on_bins(name, chunk_size, monkeypatch):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 60)  # two rows a block: several blocks a chunk
    x = problem()
    teacher = top_k(x, 5)
    tau = torch.linspace(0.7, 3, 13, dtype=torch.float64)  # the student's is free
    options = {"divergence": name, "student_temperature": tau, "teacher_temperature": 1.5, "rescale": "tau2"}
    out = truncated(x, teacher, chunk_size=chunk_size, kd_ratio=0.7, **options)
    log_p = bins(teacher_logits(x), teacher.ids, 1.5)
    log_q = bins(student_logits(x), teacher.ids, tau[:, None])
    kept = x.labels != -100
    expected = torch.where(kept, DIVERGENCES[name](log_p, log_q) * tau * 1.5, 0)
    torch.testing.assert_close(out.per_token, expected.detach())
    ce = torch.nn.functional.cross_entropy(student_logits(x), x.labels)
    loss = 0.7 * expected.sum() / kept.sum() + 0.3 * ce
    torch.testing.assert_close(out.loss, loss)
    for ours, theirs in zip(gradients(out.loss, x), gradients(loss, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [*F_DIVERGENCES, *ON_BINS])
def test_all_tokens_are_the_full_loss(name):
    x = problem(seed=1)
    options = {"divergence": name, "student_temperature": 4.0, "teacher_temperature": 4.0, "rescale": "tau2"}
    full, out = chunked(x, compile=False, **options), truncated(x, top_k(x, 29), **options)
    torch.testing.assert_close(out.per_token, full.per_token)
    for ours, theirs in zip(gradients(out.loss, x), gradients(full.loss, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [*F_DIVERGENCES, *ON_BINS])
def test_a_last_token_that_is_one_of_the_others_is_none(name):
    x = problem()
    teacher = top_k(x, 5)
    more = torch.cat([teacher.ids, teacher.ids[:, 2:3]], -1)
    none = torch.full_like(teacher.logits[:, :1], -torch.inf)
    repeated = TopK(teacher.taus, teacher.size, more, torch.cat([teacher.logits, none], -1), teacher.rest)
    options = {"divergence": name, "student_temperature": 1.5, "teacher_temperature": 1.5}
    metrics = ("kl_tau1_coarse", "agreement")
    out, expected = (truncated(x, each, metrics=metrics, **options) for each in (repeated, teacher))
    torch.testing.assert_close(out.per_token, expected.per_token)
    for metric in metrics:
        torch.testing.assert_close(out.metrics[metric], expected.metrics[metric])
    for ours, theirs in zip(gradients(out.loss, x), gradients(expected.loss, x), strict=True):
        torch.testing.assert_close(ours, theirs)


CASES = [*((name, {}) for name in F_DIVERGENCES), ("alpha_beta", {"alpha": 0.3, "beta": 0.7})]


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_bins_never_exceed_the_full_value(name, kwargs):
    for seed in range(20):
        x = problem(seed=seed)
        for tau in TAUS:
            options = {"divergence": name, "divergence_kwargs": kwargs}
            options |= {"student_temperature": tau, "teacher_temperature": tau}
            full = chunked(x, compile=False, **options).per_token
            values = [torch.zeros(13), *(truncated(x, top_k(x, k), **options).per_token for k in (1, 4, 12)), full]
            for coarse, fine in itertools.pairwise(values):
                assert (coarse <= fine + 1e-12).all()


def test_gradcheck_and_certain_teachers():
    """A teacher whose rest is nothing in fp32, and a student that gives the k tokens nothing."""
    x = problem(dtype=torch.float32)
    logits = torch.tensor([[90.0, 0.0]]).expand(13, 2)
    teacher = TopK((1.0,), 29, torch.tensor([[3, 7]]).expand(13, 2), logits, torch.full((13, 1), -80.0))
    x.bias.data[[3, 7]] = -200.0
    for name in F_DIVERGENCES:
        out = truncated(x, teacher, divergence=name, metrics=True)
        assert all(value.isfinite().all() for value in (out.per_token, *out.metrics.values(), *gradients(out.loss, x)))
    x = problem(n=4)
    teacher = top_k(x, 3)
    assert torch.autograd.gradcheck(
        lambda h, w, b: (
            chunked_kd_loss(
                h, w, teacher, student_bias=b, divergence="jsd", student_temperature=1.5, teacher_temperature=1.5
            ).loss
        ),
        (x.hidden, x.weight, x.bias),
    )


def test_scale_cap_padding_and_frozen_head():
    x = problem(size=31, teacher_size=29)
    teacher = top_k(x, 4)
    x.weight.requires_grad_(False)
    options = {"student_logit_scale": 0.5, "student_final_logit_softcapping": 2.0, "divergence": "reverse_kl"}
    out = truncated(x, teacher, teacher_temperature=1.5, **options)
    z = 2 * torch.tanh(student_logits(x)[:, :29] * 0.5 / 2)
    kept = x.labels != -100
    log_p, log_q = bins(teacher_logits(x), teacher.ids, 1.5), bins(z, teacher.ids, 1.0)
    expected = DIVERGENCES["reverse_kl"](log_p, log_q)[kept].mean()
    torch.testing.assert_close(out.loss, expected)
    for parameter in (x.hidden, x.bias):
        ours, theirs = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (out.loss, expected))
        torch.testing.assert_close(ours, theirs)


def test_metrics():
    x = problem()
    options = {"student_temperature": 4.0, "teacher_temperature": 4.0, "metrics": True}
    full, out = chunked(x, compile=False, **options).metrics, truncated(x, top_k(x, 5), **options).metrics
    assert list(out) == ["kd", "kl_tau1_coarse", "student_mass_outside", "student_entropy", "agreement", "ce"]
    for name in ("student_entropy", "agreement", "ce"):
        torch.testing.assert_close(out[name], full[name])
    at_1 = truncated(x, top_k(x, 5)).per_token
    torch.testing.assert_close(out["kl_tau1_coarse"], at_1)
    assert (at_1 <= full["kl_tau1"] + 1e-12).all() and at_1.sum() > 0
    kept, q = x.labels != -100, student_logits(x).softmax(-1)
    outside = 1 - q.gather(-1, top_k(x, 5).ids).sum(-1)
    torch.testing.assert_close(out["student_mass_outside"][kept], outside[kept])
    unknown = {**options, "student_temperature": 1.5, "teacher_temperature": 1.5}
    assert "kl_tau1_coarse" not in truncated(x, top_k(x, 5, (1.5,)), **unknown).metrics


def test_plain_log_probs_are_those_of_temperature_1():
    x = problem()
    log_probs, ids = teacher_logits(x).log_softmax(-1).topk(5, dim=-1)
    plain = TopK.from_log_probs(ids, log_probs, 29)
    torch.testing.assert_close(truncated(x, plain).loss, truncated(x, top_k(x, 5)).loss)
    truncated(x, plain, student_temperature=3.0)
    for tau in (2.0, torch.ones(13)):
        with pytest.raises(ValueError, match=r"`teacher_temperature` must be one of \[1.0\], got .*can't be computed"):
            truncated(x, plain, teacher_temperature=tau)


def test_what_needs_whole_rows_is_refused():
    x = problem()
    teacher = top_k(x, 5)
    for name in set(DIVERGENCES) - {*F_DIVERGENCES, *ON_BINS}:
        with pytest.raises(ValueError, match=f"`divergence` {name} needs the teacher's whole rows.*--mode hidden"):
            truncated(x, teacher, divergence=name)
    with pytest.raises(ValueError, match="`teacher_hidden` has 4 rows of a vocabulary of 29, the student 13 rows"):
        truncated(x, teacher.select(torch.arange(4)))
    with pytest.raises(ValueError, match="student 13 rows and 20 logits"):
        chunked_kd_loss(x.hidden, x.weight[:20], teacher)
    with pytest.raises(ValueError, match="`teacher_weight` is required"):
        chunked_kd_loss(x.hidden, x.weight, x.teacher_hidden)


def test_compiled_equals_eager(monkeypatch, recwarn):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 5 * 300)  # blocks of 5 rows: the last one is padded
    x = problem(n=17, size=300)
    options = {"divergence": "jsd", "teacher_temperature": 1.5, "kd_ratio": 0.5, "metrics": True, "chunk_size": 10}
    eager, compiled = (truncated(x, top_k(x, 5), compile=c, **options) for c in (False, True))
    torch.testing.assert_close(compiled.loss, eager.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled.metrics, eager.metrics, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(compiled.loss, x), gradients(eager.loss, x), rtol=1e-9, atol=1e-9)


def test_equal_distributions_have_no_loss_and_no_gradient():
    x = problem()
    x.weight, x.hidden, x.bias = (
        t.clone().requires_grad_() for t in (x.teacher_weight, x.teacher_hidden, x.teacher_bias)
    )
    for name in F_DIVERGENCES:
        out = truncated(x, top_k(x, 5), divergence=name, student_temperature=1.5, teacher_temperature=1.5)
        assert out.per_token.abs().max() < 1e-12
        if name != "tvd":  # which has a corner there
            assert max(g.abs().max() for g in gradients(out.loss, x)) < 1e-12


def test_a_student_that_leaves_the_known_tokens_is_told_once(caplog):
    PartialState()
    kept = torch.tensor([True, True, False])
    for means, count in (([0.2, 0.3, 0.39], 0), ([0.01, 0.09], 0), ([0.2, 0.5, 0.9], 1), ([0.01, 0.2], 1)):
        caplog.clear()
        outside = MassOutside()
        for mean in means:
            outside.see(torch.tensor([mean - 0.01, mean + 0.01, 100.0]), kept)
        outside.see(torch.tensor([1.0]), torch.tensor([False]))
        assert caplog.text.count("`student_mass_outside`) has grown from") == count, means
