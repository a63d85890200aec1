# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rules that give each token a temperature: against their plain definitions, and inside both losses."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_losses import chunked, gradients, problem, student_logits, teacher_logits

from trl_tempkd import KDConfig
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.losses import block, kd_loss
from trl_tempkd.objectives import TemperatureState
from trl_tempkd.temperature import log_softmax
from trl_tempkd.temperature_rules import (
    HIGHEST,
    LOWEST,
    ROW_RULES,
    TEMPERATURE_RULES,
    check_temperature_rule,
    curriculum,
    row_temperatures,
    token_adaptive,
)


RULES = list(ROW_RULES)
SOME = ["forward_kl", "reverse_kl", "jsd", "adaptive_kl", "decoupled_kl", "taid"]


def logits(n=6, size=40, scale=3.0, seed=0):
    return scale * torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def taus_of(rule, z, v, tau_s=2.0, tau_t=2.0, sides="both", **kwargs):
    asked = (torch.full(z.shape[:-1], tau, dtype=torch.float64) for tau in (tau_s, tau_t))
    return row_temperatures(rule, kwargs, z, v, *asked, sides)


def entropy(v, tau):
    log_p = log_softmax(v, tau)
    return -(log_p.exp() * log_p).sum(-1)


# Each rule against its definition


def test_zscore_is_the_standard_deviation():
    z, v = logits(), logits(seed=1) * 5
    tau_s, tau_t = taus_of("zscore", z, v, 2.0, 3.0)
    torch.testing.assert_close(tau_s, 2 * (z.std(-1) + 1e-7), rtol=1e-12, atol=0)
    torch.testing.assert_close(tau_t, 3 * (v.std(-1) + 1e-7), rtol=1e-12, atol=0)
    with_infinities = torch.cat([z, torch.full((6, 3), -math.inf, dtype=torch.float64)], -1)
    torch.testing.assert_close(taus_of("zscore", with_infinities, v)[0], tau_s)


@pytest.mark.parametrize("divergence", SOME)
@pytest.mark.parametrize("rescale", ["none", "tau", "tau2"])
def test_zscore_is_the_loss_of_standardised_logits(divergence, rescale):
    # Rescaled by the tau that is asked for, as in the paper, and not by tau times the deviation
    z, v, labels = logits().requires_grad_(), logits(seed=1) * 5, torch.arange(6)
    deviations = (z.detach().std(-1, keepdim=True) + 1e-7, v.std(-1, keepdim=True) + 1e-7)
    by_hand = ((z - z.mean(-1, keepdim=True)) / deviations[0], (v - v.mean(-1, keepdim=True)) / deviations[1])
    options = {"divergence": divergence, "student_temperature": 2.0, "teacher_temperature": 2.0, "labels": labels}
    expected = kd_loss(*by_hand, rescale=rescale, **options)
    ours = kd_loss(z, v, rescale=rescale, temperature_rule="zscore", **options)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), z), torch.autograd.grad(expected.sum(), z))


@pytest.mark.parametrize("size", [23, 300, 5000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_target_entropy_is_met(size, scale, share):
    v = logits(4, size, scale)
    tau_s, tau_t = taus_of("target_entropy", torch.zeros_like(v), v, share=share)
    assert (tau_s == tau_t).all()
    torch.testing.assert_close(entropy(v, tau_t), torch.full((4,), share * math.log(size)).double(), rtol=1e-6, atol=0)


def test_target_entropy_with_zeros_ties_and_low_precision():
    v = logits(4, 100, 4.0)
    target = torch.full((4,), 0.3 * math.log(100)).double()
    v[:, 40:] = -math.inf
    torch.testing.assert_close(entropy(v, taus_of("target_entropy", v, v)[1]), target, rtol=1e-6, atol=0)
    v[:, :2] = v.amax(-1, keepdim=True)  # up to three first ones
    torch.testing.assert_close(entropy(v, taus_of("target_entropy", v, v)[1]), target, rtol=1e-6, atol=0)
    low = v.to(torch.bfloat16)
    tau = row_temperatures("target_entropy", {}, low.float(), low.float(), torch.ones(4), torch.ones(4))[1]
    torch.testing.assert_close(entropy(low, tau).double(), target, rtol=1e-4, atol=0)


def test_target_entropy_out_of_reach_is_an_end_of_the_range():
    v = torch.zeros(2, 1000, dtype=torch.float64)
    v[:, 500:] = -50.0  # 500 tokens of one size: never below log 500
    assert (taus_of("target_entropy", v, v, share=0.3)[1] < 2 * LOWEST).all()
    v[:, 2:] = -math.inf  # two tokens: never above log 2
    torch.testing.assert_close(taus_of("target_entropy", v, v, share=0.3)[1], torch.full((2,), HIGHEST).double())
    many = torch.full((1, 100_000), -math.inf)
    many[:, :2] = torch.tensor([1.0, 0.0])
    tau = row_temperatures("target_entropy", {}, many, many, torch.ones(1), torch.ones(1))[1]
    torch.testing.assert_close(tau, torch.tensor([HIGHEST]))


def test_max_logit():
    z, v = logits(), 10 * logits(seed=1)
    tau_s, tau_t = taus_of("max_logit", z, v, rho=2.0)
    for tau, of in ((tau_s, z), (tau_t, v)):
        expected = [max(1.0, (row.max() - row.mean()).item() / 2) for row in of]
        torch.testing.assert_close(tau, torch.tensor(expected).double())
    assert (taus_of("max_logit", z / 100, v)[0] == 1).all()
    v[:, 7] = -math.inf
    finite = torch.cat([v[:, :7], v[:, 8:]], -1)
    torch.testing.assert_close(taus_of("max_logit", z, v)[1], taus_of("max_logit", z, finite)[1])


@pytest.mark.parametrize("rule", RULES)
def test_sides_and_bounds(rule):
    z, v = logits(), logits(seed=1)
    both = taus_of(rule, z, v, 0.7, 3.0)
    for sides, kept in (("student", 1), ("teacher", 0)):
        taus = taus_of(rule, z, v, 0.7, 3.0, sides)
        assert (taus[kept] == (0.7, 3.0)[kept]).all()
        torch.testing.assert_close(taus[1 - kept], both[1 - kept])
    for extreme in (torch.zeros_like(z), 1e6 * z, torch.full_like(z, -math.inf).index_fill(1, torch.tensor([3]), 0.0)):
        for tau in taus_of(rule, extreme, extreme):
            assert tau.isfinite().all() and (tau >= LOWEST).all() and (tau <= HIGHEST).all()
    assert not any(tau.requires_grad for tau in taus_of(rule, z.clone().requires_grad_(), v))


# In the chunked loss


def expected_loss(x, rule, divergence, sides="both", kd_ratio=1.0, scale=1.0, cap=None, tau=(2.0, 3.0)):
    """The dense loss with the rule's temperatures given as tensors, so that autograd doesn't see the rule."""

    def of(raw):
        return raw * scale if cap is None else cap * torch.tanh(raw * scale / cap)

    z, v, kept = of(student_logits(x)), of(teacher_logits(x)), x.labels != -100
    tau_s, tau_t = taus_of(rule, z.detach(), v, *tau, sides)
    factor = tau[0] * tau[1] if rule == "zscore" else tau_s * tau_t
    options = {"divergence": divergence, "labels": x.labels}
    per_token = factor * kd_loss(z, v, student_temperature=tau_s, teacher_temperature=tau_t, **options)
    ce = torch.nn.functional.cross_entropy(z[kept], x.labels[kept])
    return kd_ratio * per_token.sum() / kept.sum() + (1 - kd_ratio) * ce, per_token, (tau_s, tau_t)


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("divergence", SOME)
@pytest.mark.parametrize("rule", RULES)
def test_chunked_equals_dense(rule, divergence, chunk_size, monkeypatch):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 60)
    x = problem()
    options = {"divergence": divergence, "student_temperature": 2.0, "teacher_temperature": 3.0, "rescale": "tau2"}
    options["temperature_rule"] = rule
    expected, per_token, taus = expected_loss(x, rule, divergence)
    out = chunked(x, chunk_size=chunk_size, metrics=True, **options)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.per_token, per_token.detach())
    torch.testing.assert_close(gradients(out.loss, x), gradients(expected, x))
    dense = kd_loss(student_logits(x), teacher_logits(x), labels=x.labels, reduction="mean", **options)
    torch.testing.assert_close(dense, expected)
    for name, tau in zip(("student_tau", "teacher_tau"), taus, strict=True):
        torch.testing.assert_close(out.metrics[name], torch.where(x.labels != -100, tau, 0))


@pytest.mark.parametrize("sides", ["both", "student", "teacher"])
@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (2.0, 5.0)])
@pytest.mark.parametrize("rule", RULES)
def test_chunked_with_scale_cap_and_cross_entropy(rule, scale, cap, sides):
    x = problem()
    expected, _, _ = expected_loss(x, rule, "jsd", sides, 0.6, scale, cap)
    head = {f"{side}_logit_scale": scale for side in ("student", "teacher")}
    head |= {f"{side}_final_logit_softcapping": cap for side in ("student", "teacher")}
    options = {"student_temperature": 2.0, "teacher_temperature": 3.0, "rescale": "tau2", "kd_ratio": 0.6, **head}
    out = chunked(x, divergence="jsd", temperature_rule=rule, temperature_rule_sides=sides, **options)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(out.loss, x), gradients(expected, x))


@pytest.mark.parametrize("rule", ["target_entropy"])  # each takes seconds to compile
def test_compiled_equals_eager(rule, monkeypatch, recwarn):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 5 * 300)
    x = problem(n=17, size=300)
    options = {"divergence": "reverse_kl", "temperature_rule": rule, "metrics": True, "chunk_size": 10}
    eager, compiled = chunked(x, compile=False, **options), chunked(x, compile=True, **options)
    torch.testing.assert_close(compiled.loss, eager.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled.metrics, eager.metrics, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(compiled.loss, x), gradients(eager.loss, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "taid"])
@pytest.mark.parametrize("rule", RULES)
def test_tokens_of_probability_zero(rule, divergence, dtype):
    x = problem(dtype=dtype)
    with torch.no_grad():
        x.bias[[3, 20]] = -math.inf
        x.teacher_bias[[3, 11]] = -math.inf
    x.labels[x.labels == 3] = 5
    metrics = ["student_tau", "teacher_tau", "student_tau_grad", "teacher_tau_grad"]
    out = chunked(x, divergence=divergence, temperature_rule=rule, metrics=metrics)
    assert out.loss.isfinite() and all(g.isfinite().all() for g in gradients(out.loss, x))
    assert all(value.isfinite().all() for value in out.metrics.values())


# What the loss takes of each token


@pytest.mark.parametrize("rescale", ["none", "tau", "tau2"])
@pytest.mark.parametrize("divergence", list(DIVERGENCES))
def test_derivatives_by_tau_are_those_of_autograd(divergence, rescale, monkeypatch):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 60)
    x = problem()
    taus = [torch.linspace(*ends, 13, dtype=torch.float64).requires_grad_() for ends in ((0.7, 3.0), (4.0, 1.0))]
    options = {"divergence": divergence, "rescale": rescale, "labels": x.labels}
    dense = kd_loss(
        student_logits(x), teacher_logits(x), student_temperature=taus[0], teacher_temperature=taus[1], **options
    )
    expected = torch.autograd.grad(dense.sum(), taus)
    for ratio in (1.0, 0.5, 0.0):
        out = chunked(
            x,
            student_temperature=taus[0].detach(),
            teacher_temperature=taus[1].detach(),
            metrics=["student_tau_grad", "teacher_tau_grad"],
            kd_ratio=ratio,
            **options,
        )
        torch.testing.assert_close(tuple(out.metrics.values()), expected)


def test_derivatives_by_tau_without_gradients_and_where_a_probability_is_zero():
    x = problem()
    with torch.no_grad():
        x.teacher_bias[11] = -math.inf
        x.bias[20] = -math.inf
    for divergence in ("forward_kl", "reverse_kl"):
        options = {"divergence": divergence, "metrics": ["student_tau_grad", "teacher_tau_grad"], "kd_ratio": 1.0}
        with torch.no_grad():
            alone = chunked(x, **options).metrics
        assert all(value.isfinite().all() for value in alone.values())
        torch.testing.assert_close(chunked(x, **options).metrics, alone)
    # where the student has none of it either, a numerical derivative is another witness
    x.bias.data[11] = -math.inf
    step, tau = 1e-5, {"student_temperature": 1.0}
    ends = [chunked(x, divergence="reverse_kl", teacher_temperature=1 + d, **tau).per_token for d in (step, -step)]
    derivative = chunked(x, divergence="reverse_kl", metrics=["teacher_tau_grad"]).metrics["teacher_tau_grad"]
    torch.testing.assert_close(derivative, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("divergence", "name", "compile"),
    [
        ("taid", "t", True),
        ("taid", "t", False),
        ("skew_forward_kl", "alpha", False),
        ("skew_reverse_kl", "alpha", False),
    ],
)
def test_weights_and_parameters_of_each_token(divergence, name, compile, monkeypatch, recwarn):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 60)
    x = problem()
    values = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)
    kd_weight, ce_weight = values.flip(0) * 3, values - 0.5
    tau = {"student_temperature": 2.0, "teacher_temperature": 1.5}
    out = chunked(
        x,
        divergence=divergence,
        divergence_kwargs={name: values},
        kd_weight=kd_weight,
        ce_weight=ce_weight,
        kd_ratio=0.7,
        chunk_size=5,
        compile=compile,
        metrics=True,
        **tau,
    )
    z, v, kept = student_logits(x), teacher_logits(x), x.labels != -100
    rows = [
        kd_loss(z[i : i + 1], v[i : i + 1], divergence=divergence, divergence_kwargs={name: value.item()}, **tau)
        for i, value in enumerate(values)
    ]
    kd = torch.cat(rows)
    torch.testing.assert_close(out.per_token, torch.where(kept, kd, 0).detach())
    torch.testing.assert_close(kd_loss(z, v, divergence=divergence, divergence_kwargs={name: values}, **tau), kd)
    ce = torch.nn.functional.cross_entropy(z, x.labels, reduction="none")
    expected = torch.where(kept, 0.7 * kd_weight * kd + (0.3 + ce_weight) * ce, 0).sum() / kept.sum()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(out.loss, x), gradients(expected, x))


def test_a_number_as_a_tensor_is_that_number():
    x = problem()
    for divergence, name in (("taid", "t"), ("skew_forward_kl", "alpha")):
        number = chunked(x, divergence=divergence, divergence_kwargs={name: 0.3})
        tensor = chunked(x, divergence=divergence, divergence_kwargs={name: torch.tensor(0.3, dtype=torch.float64)})
        torch.testing.assert_close(tensor.loss, number.loss)
        torch.testing.assert_close(gradients(tensor.loss, x), gradients(number.loss, x))


def test_ce_weight_alone_is_a_policy_gradient():
    x = problem()
    advantage = torch.linspace(-1, 1, 13, dtype=torch.float64)
    out = chunked(x, kd_weight=torch.zeros(13), ce_weight=advantage)
    kept = x.labels != -100
    log_q = student_logits(x).log_softmax(-1)[torch.arange(13), x.labels.clamp(min=0)]
    expected = -(advantage * log_q)[kept].sum() / kept.sum()
    torch.testing.assert_close(gradients(out.loss, x), gradients(expected, x))


# token_adaptive


def hellinger(z, v):
    return (z.softmax(-1).sqrt() - v.softmax(-1).sqrt()).square().sum(-1).sqrt() / math.sqrt(2)


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_token_adaptive_is_adakd(n, keep):
    # As its authors' code has it: the hardest tokens, their lower median, tau^2 on each, the mean over those kept
    z, v = logits(n).requires_grad_(), logits(n, seed=1)
    s = hellinger(z.detach(), v)
    chosen = s.topk(max(1, int(n * keep))).indices
    temperature = 2.0 * torch.exp(-0.5 * torch.tanh((s[chosen] / s[chosen].median()).clamp(min=1e-8).log()))
    softened = [(side[chosen] / temperature[:, None]).log_softmax(-1) for side in (z, v)]
    divergence = (softened[1].exp() * (softened[1] - softened[0])).sum(-1)
    expected = (divergence * temperature**2).mean()

    asked = torch.full((n,), 2.0, dtype=torch.float64)
    tau_s, tau_t, weight = token_adaptive(s, asked, asked, c=0.5, keep=keep)
    torch.testing.assert_close(tau_s[chosen], temperature)
    ours = (weight * kd_loss(z, v, student_temperature=tau_s, teacher_temperature=tau_t, rescale="tau2")).mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z))
    assert weight.count_nonzero() == len(chosen)


def test_token_adaptive_at_its_ends():
    asked = torch.full((4,), 3.0)
    tau, _, _ = token_adaptive(torch.tensor([0.0, 1e-9, 0.5, 1.0]), asked, asked, c=0.5)
    assert (tau.diff() <= 0).all()  # harder tokens are sharper
    assert tau[0] == pytest.approx(3 * math.exp(0.5)) and tau[-1] == pytest.approx(3 * math.exp(-0.5))
    for distance in (torch.zeros(4), torch.full((4,), 0.3)):  # nothing to tell them apart
        tau, _, weight = token_adaptive(distance, asked, asked, keep=0.5)
        assert tau.isfinite().all() and weight.mean() == 1
    torch.testing.assert_close(tau, asked)
    empty = torch.zeros(0)
    assert all(len(value) == 0 for value in token_adaptive(empty, empty, empty, keep=0.5))


# curriculum


def state_of(**fields):
    fields = {"kd_temperature_rule": "curriculum", "max_steps": 10, "report_to": "none", "use_cpu": True, **fields}
    options = KDConfig(bf16=False, **fields)
    return TemperatureState(options, SimpleNamespace(num_processes=1, process_index=0))


def test_curriculum_is_the_global_temperature_of_ctkd(tmp_path):
    steps, rate, z, v = 10, 3.0, logits(scale=1.0).requires_grad_(), logits(seed=1)
    kwargs = {"learning_rate": rate}
    state = state_of(output_dir=str(tmp_path), kd_temperature_rule_kwargs=kwargs)
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    seen = []
    for step in range(steps):
        progress = step / steps
        # theirs: the loss with tau as a variable, whose gradient is turned around by a layer of weight 0 to -1
        tau = 1 + 20 * torch.sigmoid(theta)
        tau.register_hook(lambda g, w=progress: g * -(1 - math.cos(math.pi * w)) / 2)
        loss = kd_loss(
            z.detach(), v, student_temperature=tau.expand(6), teacher_temperature=tau.expand(6), rescale="tau2"
        ).mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        # ours
        state.begin(progress)
        assert state.pair() == (pytest.approx(tau.item()),) * 2
        kept, half = torch.ones(3, dtype=torch.bool), [slice(0, 3), slice(3, 6)]
        for rows in half:  # two micro-batches
            out = chunked_logits(z[rows], v[rows], *state.pair(), metrics=state.metrics, rescale="tau2")
            state.observe(out.metrics, 1.0, kept)
        before = state.state["theta"]
        state.step(lambda sums: sums, progress)
        with torch.no_grad():
            theta -= rate * gradient
        assert state.state["theta"] == pytest.approx(theta.item(), rel=1e-6)
        seen.append((gradient.item(), state.state["theta"] - before))
    assert seen[0][1] == 0  # no weight in the beginning
    assert all(abs(moved) > 1e-6 for _, moved in seen[1:])


def chunked_logits(z, v, tau_s, tau_t, **options):
    from trl_tempkd.losses import Logits, chunked_kd_loss

    eye = torch.eye(z.shape[-1], dtype=torch.float64)
    return chunked_kd_loss(z, eye, Logits(v), student_temperature=tau_s, teacher_temperature=tau_t, **options)


def test_curriculum_goes_up_in_loss(tmp_path):
    z, v = logits(scale=1.0).requires_grad_(), logits(seed=1)
    state = state_of(output_dir=str(tmp_path), kd_temperature_rule_kwargs={"learning_rate": 1.0, "start": -2.0})
    losses = []
    for _ in range(20):
        state.begin(1.0)
        out = chunked_logits(z, v, *state.pair(), metrics=state.metrics, rescale="tau2")
        state.observe(out.metrics, 1.0, torch.ones(6, dtype=torch.bool))
        losses.append(out.loss.item())
        state.step(lambda sums: sums, 1.0)
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.01


def test_curriculum_of_one_side(tmp_path):
    state = state_of(output_dir=str(tmp_path), teacher_kd_temperature=1.5)
    state.begin(0.0)
    assert state.pair() == (1 + 20 / (1 + math.exp(-1)), 1.5) and state.metrics == ("student_tau_grad",)
    assert state_of(output_dir=str(tmp_path), student_kd_temperature=1.5).metrics == ("teacher_tau_grad",)


def test_curriculum_does_not_overflow():
    assert curriculum(-1e4) == 1 and curriculum(1e4) == 21 and curriculum(0.0, minimum=2.0, span=4.0) == 4


# Refusals


@pytest.mark.parametrize(
    ("rule", "kwargs", "message"),
    [
        ("entropy", None, "`temperature_rule` must be one of zscore, target_entropy, .*, got 'entropy'"),
        (None, {"share": 0.3}, "`temperature_rule_kwargs` is .*, but there is no `temperature_rule`"),
        ("zscore", {"share": 0.3}, "`temperature_rule_kwargs` has 'share', but zscore takes no parameters"),
        ("target_entropy", {"rho": 0.3}, "has 'rho', but target_entropy takes share"),
        ("target_entropy", {"share": 1.0}, "`share` must be above 0 and below 1, got 1.0"),
        ("target_entropy", {"share": "x"}, "does not fit target_entropy"),
        ("max_logit", {"rho": 0.0}, "`rho` must be positive, got 0.0"),
        ("token_adaptive", {"keep": 0.0}, "`keep` must be above 0 and at most 1, got 0.0"),
        ("token_adaptive", {"c": "x"}, "does not fit token_adaptive"),
        ("curriculum", {"span": -1.0}, "`span` must be positive, got -1.0"),
        ("curriculum", {"learning_rate": 0.0}, "`learning_rate` must be positive, got 0.0"),
        ("curriculum", {"start": math.inf}, "`start` must be finite, got inf"),
        ("curriculum", {"start": "x"}, "does not fit curriculum"),
    ],
)
def test_check_temperature_rule(rule, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_temperature_rule(rule, kwargs)


@pytest.mark.parametrize("rule", list(TEMPERATURE_RULES))
def test_every_rule_fits_its_defaults(rule):
    check_temperature_rule(rule)
    if rule not in ROW_RULES:
        with pytest.raises(ValueError, match=f"got '{rule}', which needs more than a token's logits"):
            kd_loss(logits(), logits(), temperature_rule=rule)
        with pytest.raises(ValueError, match=f"got '{rule}', which needs more than a token's logits"):
            chunked(problem(), temperature_rule=rule)


def test_losses_refuse():
    with pytest.raises(ValueError, match="`temperature_rule_sides` must be one of both, student, teacher, got 'left'"):
        chunked(problem(), temperature_rule="zscore", temperature_rule_sides="left")
    with pytest.raises(ValueError, match="`labels` is required"):
        chunked(problem(), labels=None, ce_weight=torch.ones(13))
    with pytest.raises(ValueError, match=r"`metrics` must be of .*, got 'tau'"):
        chunked(problem(), metrics=["tau"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kd_temperature_rule": "x"}, "`kd_temperature_rule` must be one of zscore, .*, got 'x'"),
        ({"kd_temperature_rule_kwargs": {"share": 0.3}}, "but there is no `kd_temperature_rule`"),
        (
            {"kd_temperature_rule": "max_logit", "kd_temperature_rule_kwargs": {"share": 0.3}},
            "`kd_temperature_rule_kwargs` has 'share', but max_logit takes rho",
        ),
        (
            {"kd_temperature_rule": "target_entropy", "kd_temperature_rule_kwargs": "share=0.3"},
            "`kd_temperature_rule_kwargs` must be a dict, or on the command line its JSON",
        ),
        (
            {"kd_temperature_rule": "zscore", "student_kd_temperature": 1.0, "teacher_kd_temperature": 2.0},
            r"`student_kd_temperature` \(1.0\) and `teacher_kd_temperature` \(2.0\) fix both sides.*Leave one",
        ),
        *(
            (
                {"kd_temperature_rule": rule, "kd_temperature_schedule": "linear", "kd_temperature_final": 1.0},
                f"'{rule}' finds its own temperatures.*or use zscore or token_adaptive",
            )
            for rule in ("target_entropy", "max_logit", "curriculum")
        ),
    ],
)
def test_config_refuses(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        KDConfig(str(tmp_path), use_cpu=True, bf16=False, **fields)


@pytest.mark.parametrize("rule", ["zscore", "token_adaptive"])
def test_config_takes_a_rule_with_a_schedule(rule, tmp_path):
    schedule = {"kd_temperature_schedule": "linear", "kd_temperature_final": 1.0}
    args = KDConfig(str(tmp_path), use_cpu=True, bf16=False, kd_temperature_rule=rule, **schedule)
    assert f"tau 2.0 to 1.0 (linear), rule {rule}" in args.describe()
