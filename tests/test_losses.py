# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The chunked loss against the dense one: values, gradients, shapes, dtypes, masks, memory."""

import logging
from types import SimpleNamespace

import pytest
import torch

from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.losses import Logits, block, chunked_kd_loss, kd_loss


def problem(n=13, size=29, student_width=6, teacher_width=8, dtype=torch.float64, teacher_size=None, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(min(size, teacher_size or size), (n,), generator=generator)
    labels[::4] = -100
    return SimpleNamespace(
        hidden=draw(n, student_width).requires_grad_(),
        weight=draw(size, student_width).requires_grad_(),
        bias=draw(size).requires_grad_(),
        teacher_hidden=draw(n, teacher_width),
        teacher_weight=draw(teacher_size or size, teacher_width),
        teacher_bias=draw(teacher_size or size),
        labels=labels,
    )


def chunked(x, **kwargs):
    kwargs = {"student_bias": x.bias, "teacher_bias": x.teacher_bias, "labels": x.labels, **kwargs}
    return chunked_kd_loss(x.hidden, x.weight, x.teacher_hidden, x.teacher_weight, **kwargs)


def student_logits(x):
    return x.hidden @ x.weight.T + x.bias


def teacher_logits(x):
    return x.teacher_hidden @ x.teacher_weight.T + x.teacher_bias


def gradients(loss, x):
    return torch.autograd.grad(loss, (x.hidden, x.weight, x.bias))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("size", [13, 29, 40])
def test_given_logits_need_no_head(size, compile, monkeypatch, recwarn):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 60)
    x = problem(teacher_size=size)
    options = {"divergence": "jsd", "student_temperature": 3.0, "teacher_temperature": 2.0, "metrics": True}
    options |= {"kd_ratio": 0.7, "labels": x.labels, "student_bias": x.bias}
    expected = chunked(x, **options)
    out = chunked_kd_loss(x.hidden, x.weight, Logits(teacher_logits(x)), compile=compile, **options)
    torch.testing.assert_close(out[1:], expected[1:])
    for ours, theirs in zip(gradients(out.loss, x), gradients(expected.loss, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_equals_the_dense_loss(name, chunk_size, monkeypatch):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 60)  # two rows a block: several blocks a chunk
    x = problem()
    tau = torch.linspace(0.7, 3, 13, dtype=torch.float64)
    kwargs = {"divergence": name, "student_temperature": tau, "teacher_temperature": 2.0, "rescale": "tau2"}
    dense = kd_loss(student_logits(x), teacher_logits(x), labels=x.labels, **kwargs)
    out = chunked(x, chunk_size=chunk_size, **kwargs)
    torch.testing.assert_close(out.per_token, dense.detach())
    assert not out.per_token.requires_grad and out.metrics is None
    expected = dense.sum() / (x.labels != -100).sum()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(out.loss, x), gradients(expected, x))


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_equals_the_dense_loss_in_fp32(name):
    x = problem(n=9, size=700, dtype=torch.float32)
    dense = kd_loss(student_logits(x), teacher_logits(x), labels=x.labels, divergence=name, reduction="mean")
    out = chunked(x, divergence=name)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, dense, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradients(out.loss, x), gradients(dense, x), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("kd_ratio", [1.0, 0.3, 0.0])
def test_scale_soft_cap_and_cross_entropy_mix(scale, cap, kd_ratio):
    x = problem()

    def head(logits):
        return logits * scale if cap is None else cap * torch.tanh(logits * scale / cap)

    z, v = head(student_logits(x)), head(teacher_logits(x))
    kept = x.labels != -100
    tau = {"student_temperature": 1.0, "teacher_temperature": 3.0}
    kd = kd_loss(z, v, labels=x.labels, reduction="mean", **tau)
    ce = torch.nn.functional.cross_entropy(z[kept], x.labels[kept])
    expected = kd_ratio * kd + (1 - kd_ratio) * ce
    out = chunked(
        x,
        kd_ratio=kd_ratio,
        student_logit_scale=scale,
        teacher_logit_scale=scale,
        student_final_logit_softcapping=cap,
        teacher_final_logit_softcapping=cap,
        **tau,
    )
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(out.loss, x), gradients(expected, x))


def test_metrics():
    x = problem()
    out = chunked(
        x, divergence="reverse_kl", student_temperature=2.0, teacher_temperature=2.0, rescale="tau2", metrics=True
    )
    z, v, kept = student_logits(x).detach(), teacher_logits(x), x.labels != -100
    p, q = v.softmax(-1), z.softmax(-1)
    expected = {
        "kd": out.per_token / 4,
        "kl_tau1": kd_loss(z, v),
        "student_entropy": torch.distributions.Categorical(q).entropy(),
        "teacher_entropy": torch.distributions.Categorical(p).entropy(),
        "agreement": (z.argmax(-1) == v.argmax(-1)).double(),
        "ce": torch.nn.functional.cross_entropy(z, x.labels.clamp(min=0), reduction="none"),
    }
    assert set(out.metrics) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(out.metrics[name], torch.where(kept, value, 0.0))


@pytest.mark.parametrize("sizes", [(29, 40), (40, 29)])
def test_padded_vocabularies_compare_their_common_prefix(sizes):
    x = problem(size=sizes[0], teacher_size=sizes[1])
    dense = kd_loss(student_logits(x), teacher_logits(x), labels=x.labels, reduction="mean")
    prefix = kd_loss(student_logits(x)[:, :29], teacher_logits(x)[:, :29], labels=x.labels, reduction="mean")
    out = chunked(x)
    torch.testing.assert_close(dense, prefix)
    torch.testing.assert_close(out.loss, dense)
    grads = gradients(out.loss, x)
    torch.testing.assert_close(grads, gradients(dense, x))
    assert grads[1][29:].abs().sum() == 0


def test_normalizer_and_incoming_gradient():
    x = problem()
    total = kd_loss(student_logits(x), teacher_logits(x), labels=x.labels, reduction="sum")
    for normalizer in (7.0, torch.tensor(7)):
        out = chunked(x, normalizer=normalizer)
        torch.testing.assert_close(out.loss, total / 7)
    torch.testing.assert_close(gradients(out.loss * 3, x), gradients(total * 3 / 7, x))


def test_without_labels_every_row_counts():
    x = problem()
    out = chunked(x, labels=None)
    torch.testing.assert_close(out.loss, kd_loss(student_logits(x), teacher_logits(x), reduction="mean"))


@pytest.mark.parametrize("n", [0, 5])
def test_no_token_that_counts(n):
    x = problem(n=n)
    x.labels[:] = -100
    out = chunked(x, metrics=True, kd_ratio=0.5)
    assert out.loss == 0 and out.per_token.shape == (n,)
    assert all(
        g.abs().sum() == 0 and g.shape == t.shape
        for g, t in zip(gradients(out.loss, x), (x.hidden, x.weight, x.bias), strict=True)
    )


def test_frozen_parts_get_no_gradient():
    x = problem()
    x.weight.requires_grad_(False)
    x.bias.requires_grad_(False)
    out = chunked(x)
    dense = kd_loss(student_logits(x), teacher_logits(x), labels=x.labels, reduction="mean")
    (expected,) = torch.autograd.grad(dense, x.hidden)
    out.loss.backward()
    torch.testing.assert_close(x.hidden.grad, expected)
    assert x.weight.grad is None and x.bias.grad is None


def test_without_gradients():
    x = problem()
    with torch.no_grad():
        out = chunked(x)
    assert not out.loss.requires_grad
    torch.testing.assert_close(out.loss, chunked(x).loss.detach())


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "decoupled_kl"])
def test_gradcheck(name):
    x = problem(n=5, size=7, student_width=3)

    def loss(hidden, weight, bias):
        moved = SimpleNamespace(**{**vars(x), "hidden": hidden, "weight": weight, "bias": bias})
        kwargs = {
            "divergence": name,
            "kd_ratio": 0.7,
            "student_logit_scale": 0.8,
            "student_final_logit_softcapping": 3.0,
        }
        return chunked(moved, student_temperature=2.0, chunk_size=2, **kwargs).loss

    assert torch.autograd.gradcheck(loss, (x.hidden, x.weight, x.bias))


def test_a_retained_graph_gives_the_same_gradients_again():
    x = problem()
    loss = chunked(x).loss
    first = torch.autograd.grad(loss, (x.hidden, x.weight, x.bias), retain_graph=True)
    first = [g.clone() for g in first]
    loss.backward(retain_graph=True)
    (2 * loss).backward()
    for t, g in zip((x.hidden, x.weight, x.bias), first, strict=True):
        torch.testing.assert_close(t.grad, 3 * g)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_close(dtype):
    exact, low = problem(n=64, size=200), problem(n=64, size=200, dtype=dtype)
    kwargs = {"student_temperature": 2.0, "teacher_temperature": 2.0, "divergence": "jsd"}
    reference, out = chunked(exact, **kwargs), chunked(low, **kwargs)
    assert out.loss.dtype == torch.float32 and out.per_token.min() >= -1e-6
    torch.testing.assert_close(out.loss.double(), reference.loss, rtol=5e-2, atol=0)
    for got, expected in zip(gradients(out.loss, low), gradients(reference.loss, exact), strict=True):
        assert got.dtype == dtype
        assert torch.cosine_similarity(got.double().flatten(), expected.flatten(), dim=0) > 0.999


def test_fp16_gradients_do_not_underflow():
    x = problem(n=8, size=200, dtype=torch.float16)
    grads = gradients(chunked(x, normalizer=1e6).loss * 1e6, x)
    reference = gradients(chunked(x, normalizer=1.0).loss, x)
    torch.testing.assert_close(grads, reference, rtol=1e-2, atol=1e-3)


def test_autocast_runs_the_matmuls_low_and_keeps_the_weights_dtype():
    x = problem(n=64, size=200, dtype=torch.float32)
    expected = gradients(chunked(x).loss, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = gradients(chunked(x, chunk_size=16).loss, x)
    assert all(g.dtype == torch.float32 for g in grads)
    for got, wanted in zip(grads, expected, strict=True):
        assert not torch.equal(got, wanted)
        assert torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("name", ["forward_kl", "jsd", "adaptive_kl", "decoupled_kl"])
def test_compiled_equals_eager(name, monkeypatch, recwarn):
    monkeypatch.setattr(block, "BLOCK_ELEMENTS", 5 * 300)  # blocks of 5 rows: the last one is padded
    x = problem(n=17, size=300)
    kwargs = {"divergence": name, "student_temperature": 2.0, "kd_ratio": 0.5, "metrics": True, "chunk_size": 10}
    eager, compiled = chunked(x, compile=False, **kwargs), chunked(x, compile=True, **kwargs)
    torch.testing.assert_close(compiled.loss, eager.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled.metrics, eager.metrics, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(compiled.loss, x), gradients(eager.loss, x), rtol=1e-9, atol=1e-9)


def test_a_failing_compiler_is_a_warning(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def broken(*args, **kwargs):
        def run(*tensors):
            raise TorchDynamoException("no compiler today")

        return run

    block.compiled_block.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(logging.getLogger(block.__name__), "propagate", True)
    x = problem()
    with caplog.at_level("WARNING"):
        out = chunked(x, compile=True)
    assert "going on without it: no compiler today" in caplog.text
    block.compiled_block.cache_clear()
    torch.testing.assert_close(out.loss, chunked(x, compile=False).loss)


def test_no_tensor_is_as_large_as_the_logits():
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    x = problem(n=500, size=400, dtype=torch.float32)
    with Watch():
        chunked(x, chunk_size=20, metrics=True).loss.backward()
    assert 20 * 400 <= largest < 500 * 400 / 10


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"divergence": "kl"}, "`divergence` must be one of"),
        ({"kd_ratio": 1.5}, "`kd_ratio` must be between 0 and 1, got 1.5"),
        ({"kd_ratio": 0.5, "labels": None}, "`labels` is required"),
        ({"divergence": "decoupled_kl", "labels": None}, "`labels` is required"),
        ({"chunk_size": 0}, "`chunk_size` must be positive, got 0"),
        ({"teacher_temperature": -1.0}, "`teacher_temperature` must be positive"),
        ({"rescale": "tau3"}, "`rescale` must be one of"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        chunked(problem(), **kwargs)


def test_hidden_states_of_different_lengths_are_refused():
    x = problem()
    x.teacher_hidden = x.teacher_hidden[:-1]
    with pytest.raises(ValueError, match="the same N"):
        chunked(x)
