# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tokens drawn from the teacher: no bias, less noise than independent draws, and forward KL alone."""

import json

import datasets
import pytest
import ranks
import torch
from test_cached import builder_of, contents, options
from test_losses import chunked, gradients, problem, student_logits, teacher_logits
from test_truncated import truncated

from trl_tempkd.commands import cache as command
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.losses import Sampled, chunked_kd_loss
from trl_tempkd.losses.sampled import draw
from trl_tempkd.teachers.layouts import layout_of
from trl_tempkd.teachers.manifest import Manifest


TAUS = (1.0, 4.0)
EVERY = 161  # tokens, the whole vocabulary of the tiny models


def spread(ids, weights, size):
    return torch.zeros(*ids.shape[:-1], size, dtype=weights.dtype).scatter(-1, ids, weights)


def rows():
    """Random, sharp, flat, certain, and two equal ones, over 40 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    logits[1] *= 6
    logits[2] = 0
    logits[3] = torch.cat([torch.zeros(1), torch.full((39,), -torch.inf)])
    logits[4] = torch.cat([torch.zeros(2), torch.full((38,), -30.0)])
    return logits.softmax(-1)


def sampled(x, samples, generator, taus=TAUS):
    """Draws of a problem's teacher."""
    log_p = torch.stack([(teacher_logits(x) / tau).log_softmax(-1) for tau in taus], 1)
    n, _, size = log_p.shape
    drawn = [draw(part.exp(), samples, torch.rand(n, generator=generator)) for part in log_p.unbind(1)]
    ids, weights = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
    return Sampled(taus, size, ids, weights, -(log_p.exp() * log_p).sum(-1))


@pytest.mark.parametrize("samples", [1, 3, 8, 39, 40])
def test_the_mean_of_draws_is_p(samples):
    p, points = rows(), 8192
    uniform = ((torch.arange(points, dtype=torch.float64) + 0.5) / points).repeat_interleave(len(p))
    ids, weights = draw(p.repeat(points, 1), samples, uniform)
    assert ids.shape == weights.shape == (points * len(p), samples)
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()  # each once
    torch.testing.assert_close(weights.sum(-1), torch.ones(points * len(p), dtype=torch.float64))
    estimates = spread(ids, weights, 40).unflatten(0, (points, len(p)))
    mean, square = estimates.mean(0), (estimates - p).square().mean(0)
    # exact but for the grid: an edge of a token's interval is off by one point at most
    assert (mean - p).abs().max() <= 2 / points
    independent = (1 - p.square().sum(-1)) / samples
    assert (square.sum(-1) <= independent + 2 / points).all()
    assert square[3].sum() == 0 and (samples < 2 or square[4].sum() < 1e-9)
    if samples == 8:
        assert square[1].sum() < 0.2 * independent[1]  # a sharp row


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("samples", [3, 8])
def test_no_bias_in_loss_and_gradient(tau, samples):
    """The mean over draws is the full loss and gradient, within its standard error."""
    x = problem()
    generator = torch.Generator().manual_seed(1)
    temperatures = {"student_temperature": tau, "teacher_temperature": tau, "rescale": "tau2"}
    full = chunked(x, compile=False, **temperatures)
    expected = torch.cat([full.per_token, *(g.flatten() for g in gradients(full.loss, x))])
    measured = []
    for _ in range(2000):
        out = truncated(x, sampled(x, samples, generator), **temperatures)
        measured.append(torch.cat([out.per_token, *(g.flatten() for g in gradients(out.loss, x))]))
    values = torch.stack(measured)
    error = values.std(0) / len(values) ** 0.5
    z = (values.mean(0) - expected)[error > 1e-9] / error[error > 1e-9]
    assert (values.mean(0) - expected)[error <= 1e-9].abs().max() < 1e-9
    assert len(z) > 200
    assert z.square().mean() < 1.5 and z.abs().max() < 5
    # as it would be if the tail were left out
    assert (error < 0.1 * expected.abs().max()).all()


def test_equals_the_plain_formula():
    x = problem()
    teacher = sampled(x, 5, torch.Generator().manual_seed(0))
    temperatures = {"student_temperature": 1.5, "teacher_temperature": 4.0}
    out = truncated(x, teacher, kd_ratio=0.7, metrics=True, **temperatures)
    log_q = (student_logits(x) / 1.5).log_softmax(-1)
    estimate = spread(teacher.ids, teacher.weights, 29)[:, 1]
    expected = (-(estimate * log_q).sum(-1) - teacher.entropy[:, 1])[x.labels != -100]
    ce = torch.nn.functional.cross_entropy(student_logits(x), x.labels)
    loss = 0.7 * expected.mean() + 0.3 * ce
    torch.testing.assert_close(out.loss, loss)
    assert list(out.metrics) == ["kd", "student_entropy", "ce"]
    for ours, theirs in zip(gradients(out.loss, x), gradients(loss, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_all_tokens_are_the_full_loss():
    x = problem(seed=1)
    teacher = sampled(x, 29, torch.Generator())
    temperatures = {"student_temperature": 4.0, "teacher_temperature": 4.0, "rescale": "tau2"}
    full, out = chunked(x, compile=False, **temperatures), truncated(x, teacher, **temperatures)
    torch.testing.assert_close(out.per_token, full.per_token)
    for ours, theirs in zip(gradients(out.loss, x), gradients(full.loss, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_forward_kl():
    x = problem()
    teacher = sampled(x, 5, torch.Generator())
    for name in set(DIVERGENCES) - {"forward_kl"}:
        with pytest.raises(ValueError, match=f"`divergence` {name} can't be had from tokens drawn.*linear in p"):
            truncated(x, teacher, divergence=name)
    with pytest.raises(ValueError, match=r"`teacher_temperature` must be one of \[1.0, 4.0\], got 2.0: tokens were"):
        chunked_kd_loss(x.hidden, x.weight, teacher, teacher_temperature=2.0)


# The cache


@pytest.fixture
def built(make, tmp_path):
    def built(count=16, name="sampled", batch_size=3, **fields):
        folder = tmp_path / name
        kwargs = {"mode": "sampled", "count": count, "taus": TAUS, "batch_size": batch_size}
        builder_of(make(**fields), folder, **kwargs).build()
        return folder

    return built


def measured(trainer, name="loss"):
    trainer.train()
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_every_token_is_the_live_trajectory(make, built, architecture):
    folder = str(built(count=1000, architecture=architecture))
    for fields in ({"kd_temperature": 1.0}, {"teacher_kd_temperature": 4.0, "kd_ratio": 0.5}):
        live, offline = (make(architecture, **fields, **cache) for cache in ({}, {"teacher_cache": folder}))
        assert measured(offline) == pytest.approx(measured(live), rel=1e-9)


def test_some_tokens_are_near_the_live_trajectory(make, built, prompt_dataset):
    fields = {"kd_temperature": 4.0, "max_steps": 30, "eval_strategy": "steps", "eval_steps": 30}
    fields |= {"eval_dataset": prompt_dataset, "per_device_train_batch_size": 8}
    folder = str(built(count=40, eval_dataset=prompt_dataset))
    trainer = make(teacher_cache=folder, **fields)
    live, offline = measured(make(**fields)), measured(trainer)
    assert offline[0] == pytest.approx(live[0], rel=0.1)
    assert offline[-1] < 0.5 * offline[0]
    last = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert {"kd_loss", "student_entropy", "ce_loss", "eval_kd_loss"} <= set(last)
    assert not {"kl_tau1", "kl_tau1_coarse", "teacher_entropy", "token_agreement"} & set(last)


@pytest.mark.usefixtures("float64")
def test_what_is_stored(make, built):
    folder = built()
    stored = datasets.load_from_disk(str(folder))["train"]
    layout = layout_of(Manifest.read(folder))
    assert layout.size == 2 * (8 + 16 * (8 + 2))
    assert "coverage" not in Manifest.read(folder).splits["train"]
    trainer, drawn = make(), []
    for row in stored:
        kept = torch.tensor([len(part) > 0 for part in row["teacher_sampled"]])
        with torch.no_grad():
            v = trainer.teacher_model(torch.tensor([row["input_ids"]])).logits[0, kept].double()
        data = bytearray().join(row["teacher_sampled"])
        read = layout.read(torch.frombuffer(data, dtype=torch.uint8).view(-1, layout.size))
        for i, tau in enumerate(TAUS):
            log_p = (v / tau).log_softmax(-1)
            torch.testing.assert_close(read.entropy[:, i], -(log_p.exp() * log_p).sum(-1), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(read.weights[:, i].sum(-1), torch.ones(len(v)), rtol=1e-9, atol=1e-9)
            # taken for certain, they weigh what they are; drawn, they weigh more
            assert (read.weights[:, i] >= log_p.exp().gather(-1, read.ids[:, i]) - 1e-9).all()
        drawn.append(read.ids)
    # other random numbers for other tokens and temperatures, the same ones for the same row
    assert len({tuple(ids.sort().values.tolist()) for part in drawn for ids in part.flatten(0, 1)}) > 80
    built(name="again", batch_size=3)
    assert contents(folder) == contents(folder.parent / "again")
    built(name="other batches", batch_size=1)
    other = datasets.load_from_disk(str(folder.parent / "other batches"))["train"]
    for row, own in zip(other, drawn, strict=True):
        data = bytearray().join(row["teacher_sampled"])
        ids = layout.read(torch.frombuffer(data, dtype=torch.uint8).view(-1, layout.size)).ids
        assert (ids == own).float().mean() > 0.95  # a point may lie on an edge


def test_what_it_cannot_serve_is_refused(make, built):
    folder = str(built())
    for match, fields in {
        r"`divergence` reverse_kl can't be had from tokens drawn": {"divergence": "reverse_kl", "kd_temperature": 1.0},
        r"at the temperatures 1, 4 alone, and the run's `kd_temperature` is 2.0": {"kd_temperature": 2.0},
    }.items():
        with pytest.raises(ValueError, match=match):
            make(teacher_cache=folder, **fields)


def test_the_command(tmp_path, pair, prompt_dataset, capsys):
    arguments = options(tmp_path, pair(), prompt_dataset)
    more = ["--output", str(tmp_path / "cache"), "--mode", "sampled", "--samples", "5", "--taus", "2"]
    values, _, _ = command.make_parser().parse([*arguments, *more], launched=True)
    command.main(*values)
    assert "8 rows of train, 4 rows of eval" in capsys.readouterr().out
    assert Manifest.read(tmp_path / "cache").truncated == {"count": 5, "taus": [2.0], "vocabulary": EVERY}


def test_the_benchmark_runs(tmp_path):
    small = "--tokens 64 --counts 8 --taus 1 --rounds 2 --threads 1".split()
    status, said = ranks.script(
        "benchmarks/truncated.py", [*small, "--output", str(tmp_path / "errors.json")], tmp_path / "log"
    )
    assert status == 0, said
    errors = {record["method"]: record for record in json.loads((tmp_path / "errors.json").read_text())["records"]}
    assert 0 < errors["drawn"]["token"] < errors["independent"]["token"]
    assert 0 < errors["top-k"]["token"] < 1
