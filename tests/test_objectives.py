# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Objectives with a state, and rules in training: against plain code, over a run, resumed, from every teacher."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_cached import builder_of
from test_trainer import first_batch, logged, logits_of, parameters

from trl_tempkd import kd_loss
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.objectives import OBJECTIVES, Objective, TemperatureState, Tokens, check_objective, token_divergence
from trl_tempkd.objectives.distillm2 import DistiLLM2
from trl_tempkd.objectives.minillm import MiniLLM
from trl_tempkd.objectives.taid import Taid
from trl_tempkd.objectives.tsld import Tsld
from trl_tempkd.study.diagnostics import DiagnosticsCallback
from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES, token_adaptive


ON_POLICY = {"lmbda": 0.5, "max_new_tokens": 5, "seed": 4}  # the student, the data set, the student, ...
ALL = {
    **{rule: {"kd_temperature_rule": rule} for rule in TEMPERATURE_RULES},
    "taid": {"divergence": "taid"},
    "tsld": {"divergence": "tsld"},
    "distillm2": {"divergence": "distillm2", **ON_POLICY},
    "minillm": {"divergence": "minillm", **ON_POLICY},
}


def same(sums):
    return sums


def states_of(trainer):
    return {k: v for state in trainer.step_loss._states().values() for k, v in state.items()}


# Completions


def rows(*completions, length=9):
    """Targets, of which each string is a row: a dash is a position without a label."""
    return torch.tensor([[-100 if c == "-" else ord(c) - 96 for c in row.ljust(length, "-")] for row in completions])


TARGETS = {
    "rows": rows("--abc", "-defg", "hi"),
    "packed": rows("--abc-de----fghij"[:17], length=18),  # padding-free: one row
    "ends with the row": rows("--abcdefg", "abcdefg--", length=9),
    "no label": rows("", ""),
    "a row without": rows("", "--ab", ""),
    "one token": rows("a"),
}


def by_hand(targets):
    """The positions of each completion."""
    found, number = [], 0
    for row in targets.tolist():
        before = -100
        for target in row:
            if target != -100:
                if before == -100:
                    found.append([])
                found[-1].append(number)
            before = target
            number += 1
    return found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TARGETS)
def test_completions(name):
    tokens, runs = Tokens(TARGETS[name], False), by_hand(TARGETS[name])
    n = TARGETS[name].numel()
    values = torch.randn(n, generator=torch.Generator().manual_seed(0))
    values[~tokens.kept] = math.nan  # nobody reads them
    assert tokens.kept.tolist() == [any(i in run for run in runs) for i in range(n)]
    for number, run in enumerate(runs):
        assert (tokens.runs()[run] == number).all()
        total = sum(values[i].item() for i in run)
        assert tokens.total(values)[number].item() == pytest.approx(total)
        assert tokens.mean(values)[number].item() == pytest.approx(total / len(run))
        for place, i in enumerate(run):
            later = sum(values[j].item() for j in run[place + 1 :])
            assert tokens.after(values)[i].item() == pytest.approx(later, abs=1e-9)
    assert (tokens.after(values)[~tokens.kept] == 0).all()
    assert (tokens.total(values)[len(runs) : -1] == 0).all()


# TAID


def released_taid(losses, start=0.4, end=1.0, alpha=5e-4, beta=0.99):
    """t before each step, as the authors' `update_t` has it."""
    t, momentum, before, seen = start, 0.0, math.inf, []
    for step, loss in enumerate(losses):
        seen.append(t)
        if not math.isinf(before):
            momentum = beta * momentum + (1 - beta) * (before - loss) / (before + 1e-15)
            target = start + (end - start) * step / len(losses)
            t = min(end, max(target, t + alpha / (1 + math.exp(-momentum)) * (1 - t)))
        before = loss
    return seen


@pytest.mark.parametrize("alpha", [5e-4, 0.05, 0.9])
def test_taid_follows_the_released_update(alpha):
    generator = torch.Generator().manual_seed(0)
    losses = [2 * math.exp(-0.1 * i) + 0.2 * torch.rand((), generator=generator).item() for i in range(40)]
    method, seen = Taid(alpha=alpha), []
    for i, loss in enumerate(losses):
        seen.append(method.arguments(Tokens(rows("ab"), False))["divergence_kwargs"]["t"].item())
        for share in (0.5, 1.5):  # two micro-batches of three and one tokens, whose mean is the loss
            tokens = Tokens(rows("abc" if share == 0.5 else "a"), False)
            per_token = torch.zeros(9, dtype=torch.float64)
            per_token[0] = 2 * loss * share
            method.observe(tokens, per_token)
        method.step(same, i / len(losses))
    assert seen == pytest.approx(released_taid(losses, alpha=alpha), rel=1e-6)
    assert seen[0] == seen[1] == pytest.approx(0.4) and seen == sorted(seen) and seen[-1] <= 1
    linear = [0.4 + 0.6 * max(i - 1, 0) / 40 for i in range(40)]
    assert all(t >= least - 1e-6 for t, least in zip(seen, linear, strict=True))


def test_taid_counts_the_tokens_of_all_processes():
    method = Taid()
    method.observe(Tokens(rows("ab"), False), torch.tensor([1.0, 2.0] + [0.0] * 7))
    method.step(lambda sums: sums + torch.tensor([9.0, 1.0]), 0.0)  # another process: one token, of 9
    assert method.state["loss"] == 4.0
    method.observe(Tokens(rows("a"), False), torch.ones(9))
    method.reset()
    for loss in (5.0, 0.0, 1e-9, 5.0):
        method.observe(Tokens(rows("a"), False), torch.tensor([loss] + [0.0] * 8))
        method.step(same, 0.5)
        assert method.state["loss"] == pytest.approx(loss) and 0.7 <= method.state["t"] <= 0.701
    before = dict(method.state)
    method.observe(Tokens(rows(""), False), torch.zeros(9))
    method.step(same, 0.9)  # not a single label
    assert method.state == before


@pytest.mark.usefixtures("float64")
def test_taid_in_training(make_trainer):
    trainer = make_trainer(divergence="taid", divergence_kwargs={"alpha": 1.0}, max_steps=5, kd_temperature=1.0)
    batch = first_batch(trainer)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    keep = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        z, v = (logits_of(model, inputs)[keep] for model in (trainer.model, trainer.teacher_model))
    target = (0.6 * z + 0.4 * v).softmax(-1)
    expected = (target * (target.log() - z.log_softmax(-1))).sum(-1).mean().item()
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(expected, rel=1e-9)
    assert logged(trainer, "taid_t") == pytest.approx(released_taid(losses, alpha=1.0), rel=1e-9)


# TSLD, MiniLLM, DistiLLM-2


def measured(targets, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kept = (targets != -100).flatten()
    return {
        name: torch.where(kept, 3 * torch.rand(targets.numel(), generator=generator, dtype=torch.float64), 0)
        for name in ("ce", "teacher_ce")
    }


@pytest.mark.parametrize("name", TARGETS)
def test_tsld_weights(name):
    targets = TARGETS[name]
    tokens = Tokens(targets, False, measured(targets))
    arguments = Tsld(scale=2.0).arguments(tokens)
    assert arguments["divergence"] == "forward_kl" and arguments["kd_weight"].isfinite().all()
    for run in by_hand(targets):
        expected = (tokens.measured["teacher_ce"][run] / 2).softmax(0) * len(run)
        torch.testing.assert_close(arguments["kd_weight"][run], expected)


def test_tsld_with_a_teacher_that_is_sure_of_something_else():
    tokens = Tokens(rows("abc"), False, {"teacher_ce": torch.tensor([1e4, 0.1, 0.2] + [0.0] * 6)})
    weight = Tsld(scale=0.1).arguments(tokens)["kd_weight"][:3]
    torch.testing.assert_close(weight, torch.tensor([3.0, 0.0, 0.0]).double())


@pytest.mark.parametrize("name", TARGETS)
def test_minillm_advantages(name):
    targets = TARGETS[name]
    tokens = Tokens(targets, True, measured(targets))
    arguments = MiniLLM(long_term=0.5).arguments(tokens)
    reward = tokens.measured["ce"] - tokens.measured["teacher_ce"]
    for run in by_hand(targets):
        for place, i in enumerate(run):
            later = reward[run[place + 1 :]]
            expected = later.mean().item() if len(later) else 0.0
            assert arguments["ce_weight"][i].item() == pytest.approx(0.5 * expected, abs=1e-9)
    assert set(MiniLLM().arguments(Tokens(targets, False))) == {"divergence"}


def trained_once(make_trainer, on_policy, **fields):
    """A trainer, its batch, and the loss and its gradients, as if the student had written the completions or not."""
    trainer = make_trainer(**{"kd_temperature": 1.0, "lmbda": 0.5, "max_new_tokens": 5, **fields})
    trainer.model.train()
    trainer.rollouts.on_policy = on_policy
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        v = logits_of(trainer.teacher_model, inputs)
    return trainer, batch["labels"][:, 1:], loss, gradients, logits_of(trainer.model, inputs), v


def check(trainer, loss, gradients, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    expected.backward()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kd_ratio", [1.0, 0.6])
def test_minillm_is_its_single_step_and_a_policy_gradient(make_trainer, kd_ratio):
    run = trained_once(make_trainer, True, divergence="minillm", kd_ratio=kd_ratio)
    trainer, targets, loss, gradients, z, v = run
    log_q, log_p = z.log_softmax(-1), v.log_softmax(-1)
    chosen = targets.clamp(min=0).unsqueeze(-1)
    ratio = (log_p.gather(-1, chosen) - log_q.gather(-1, chosen)).squeeze(-1).detach()
    single = (log_q.exp() * (log_q - log_p)).sum(-1)
    total, count = 0.0, (targets != -100).sum()
    for row, places in enumerate((targets != -100).long()):
        run = places.nonzero().flatten().tolist()
        for place, t in enumerate(run):
            advantage = ratio[row, run[place + 1 :]].mean() if run[place + 1 :] else 0.0
            log_prob = log_q[row, t, targets[row, t]]
            total = total + kd_ratio * (single[row, t] - advantage * log_prob) - (1 - kd_ratio) * log_prob
    check(trainer, loss, gradients, total / count)


@pytest.mark.usefixtures("float64")
def test_minillm_off_policy_is_reverse_kl(make_trainer):
    trainer, targets, loss, gradients, z, v = trained_once(make_trainer, False, divergence="minillm")
    check(trainer, loss, gradients, kd_loss(z, v, divergence="reverse_kl", labels=targets, reduction="mean"))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("on_policy", [False, True])
def test_distillm2_starts_as_its_skew_divergences(make_trainer, on_policy):
    trainer, targets, loss, gradients, z, v = trained_once(make_trainer, on_policy, divergence="distillm2")
    name = "skew_reverse_kl" if on_policy else "skew_forward_kl"
    check(trainer, loss, gradients, kd_loss(z, v, divergence=name, labels=targets, reduction="mean"))


@pytest.mark.parametrize("on_policy", [False, True])
def test_distillm2_adapts_alpha_to_each_completion(on_policy):
    side, method = "student" if on_policy else "teacher", DistiLLM2(alpha=0.1, alpha_min=0.01)
    margins = []
    for number, name in enumerate(("rows", "packed", "no label")):  # the micro-batches of the first step
        targets = TARGETS[name]
        tokens = Tokens(targets, on_policy, measured(targets, number))
        assert method.arguments(tokens)["divergence_kwargs"]["alpha"] == pytest.approx(0.1)
        method.observe(tokens, torch.zeros(targets.numel()))
        margins += [margin_of(tokens, run) for run in by_hand(targets)]
    method.step(same, 0.0)
    anchor = sum(margins) / len(margins)
    assert method.state == {**dict.fromkeys(("teacher", "student")), side: pytest.approx(anchor)}
    assert method.logs() == {f"distillm2_anchor_{side}": method.state[side]}

    targets = TARGETS["ends with the row"]
    tokens = Tokens(targets, on_policy, measured(targets, 5))
    method.observe(tokens, torch.zeros(targets.numel()))
    method.step(same, 0.1)
    assert method.state[side] == pytest.approx(anchor)  # of the first step alone
    for value in (0.3, -0.3, anchor):  # whatever the sign
        method.state[side] = value
        arguments = method.arguments(tokens)
        assert arguments["divergence"] == ("skew_reverse_kl" if on_policy else "skew_forward_kl")
        for run in by_hand(targets):
            alpha = 1 - (1 - 0.1) * value / (margin_of(tokens, run) + 1e-5)
            expected = torch.full((len(run),), min(max(alpha, 0.01), 0.1)).double()
            torch.testing.assert_close(arguments["divergence_kwargs"]["alpha"][run].double(), expected)


def margin_of(tokens, run):
    p, q = (math.exp(-tokens.measured[name][run].mean().item()) for name in ("teacher_ce", "ce"))
    return q - p if tokens.on_policy else p - q


# Rules in training


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "fields", [{}, {"student_kd_temperature": 1.5}, {"kd_temperature_rule_kwargs": {"keep": 0.4}}]
)
def test_token_adaptive_of_a_batch(make_trainer, fields):
    fields = {"kd_temperature_rule": "token_adaptive", "kd_temperature": 2.0, **fields}
    trainer, targets, loss, gradients, z, v = trained_once(make_trainer, False, lmbda=0.0, **fields)
    keep = targets != -100
    z, v = z[keep], v[keep]
    distance = (z.softmax(-1).sqrt() - v.softmax(-1).sqrt()).square().sum(-1).sqrt().detach() / math.sqrt(2)
    asked = torch.full((len(z),), 2.0)
    tau_s, tau_t, weight = token_adaptive(distance, asked, asked, **fields.get("kd_temperature_rule_kwargs", {}))
    tau_s = tau_s if "student_kd_temperature" not in fields else torch.full_like(tau_s, 1.5)
    per_token = kd_loss(z, v, student_temperature=tau_s, teacher_temperature=tau_t, rescale="tau2")
    check(trainer, loss, gradients, (weight * per_token).mean())


@pytest.mark.parametrize("name", ALL)
def test_training(make_trainer, prompt_dataset, name):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "kd_ratio": 0.8, **ALL[name]}
    trainer = make_trainer(eval_dataset=prompt_dataset, max_steps=3, gradient_accumulation_steps=2,
                           per_device_train_batch_size=2, **fields)  # fmt: skip
    before = json.dumps(trainer.step_loss._states())
    trainer.evaluate()
    assert json.dumps(trainer.step_loss._states()) == before  # an evaluation changes nothing
    trainer.train()
    losses = logged(trainer, "loss")
    assert len(losses) == 3 and all(map(math.isfinite, losses + logged(trainer, "eval_loss")))
    rule = ALL[name].get("kd_temperature_rule")
    of_sides = rule in ("zscore", "max_logit")
    for key in ("student_kd_temperature", "teacher_kd_temperature") if of_sides else ("kd_temperature",):
        assert len(logged(trainer, key)) == 3 and len(logged(trainer, f"eval_{key}")) == 2
        by_token = rule in ROW_RULES or rule == "token_adaptive"
        for prefix in ("", "eval_"):
            quantiles = [logged(trainer, f"{prefix}{key}_{q}") for q in ("q10", "q50", "q90")]
            assert all(bool(values) == by_token for values in quantiles)
            assert not by_token or all(low <= mid <= high for low, mid, high in zip(*quantiles, strict=True))
    if name == "distillm2":
        assert {0.0, 1.0} == set(logged(trainer, "on_policy_share"))
        assert logged(trainer, "distillm2_anchor_student") and logged(trainer, "distillm2_anchor_teacher")
    state = json.dumps(trainer.step_loss._states())
    assert (state != before) == (name in ("curriculum", "taid", "distillm2"))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_state_moves_once_per_optimizer_step(make_trainer, monkeypatch, steps):
    # Eight rows in batches of three: an epoch ends with a batch of two, after which there is a step too
    moved = []
    trainer = make_trainer(
        divergence="taid", per_device_train_batch_size=3, gradient_accumulation_steps=steps, max_steps=-1,
        num_train_epochs=2,
    )  # fmt: skip
    step = trainer.step_loss.step
    monkeypatch.setattr(trainer.step_loss, "step", lambda progress: (moved.append(progress), step(progress)))
    trainer.train()
    assert trainer.state.global_step == (6 if steps == 1 else 4)
    assert moved == pytest.approx([i / trainer.state.max_steps for i in range(trainer.state.max_steps)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["curriculum", "taid", "token_adaptive", "distillm2"])
def test_accumulation_is_exact(make_trainer, name):
    # But for the median, which is that of a micro-batch
    states, losses = [], []
    extra = {"lmbda": 0.01} if name == "distillm2" else {}
    kwargs = {"kd_temperature_rule_kwargs": {"c": 1e-9}} if name == "token_adaptive" else {}
    for batch_size in (4, 1):
        trainer = make_trainer(
            **{**ALL[name], **kwargs, **extra}, max_steps=3, per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size, learning_rate=1e-3,
        )  # fmt: skip
        trainer.train()
        states.append(states_of(trainer))
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert states[0] == {k: v if v is None else pytest.approx(v, rel=1e-9) for k, v in states[1].items()}


def test_a_curriculum_learns(make_trainer):
    fields = {"kd_temperature_rule": "curriculum", "kd_temperature_rule_kwargs": {"learning_rate": 2.0}}
    trainer = make_trainer(max_steps=6, **fields)
    trainer.train()
    taus = logged(trainer, "kd_temperature")
    assert taus[0] == taus[1] == pytest.approx(1 + 20 / (1 + math.exp(-1)))  # the first step has no weight
    assert len(set(taus[1:])) == 5
    # with a teacher's temperature of its own, one side moves
    one = make_trainer(max_steps=3, teacher_kd_temperature=2.0, **fields)
    one.train()
    assert set(logged(one, "teacher_kd_temperature")) == {2.0} and len(set(logged(one, "student_kd_temperature"))) == 2


def test_a_curriculum_is_about_the_mean_token(make_config):
    # Whatever the number of processes, micro-batches and tokens, and whatever the loss is divided by
    thetas = []
    for processes, micro_batches, tokens in ((1, 1, 4), (3, 2, 1)):
        state = TemperatureState(
            make_config(kd_temperature_rule="curriculum"), SimpleNamespace(num_processes=processes)
        )
        for _ in range(micro_batches):
            derivatives = dict.fromkeys(state.metrics, torch.tensor([0.5, 0.7]).repeat(tokens))
            state.observe(derivatives, 0.8, torch.ones(2 * tokens, dtype=torch.bool))
        state.step(lambda sums, n=processes: n * sums, 1.0)
        thetas.append(state.state["theta"])
    part = 1 / (1 + math.exp(-1))
    assert thetas == pytest.approx([1 + 0.05 * 20 * part * (1 - part) * 2 * 0.8 * 0.6] * 2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["curriculum", "taid", "distillm2", "token_adaptive"])
def test_resume_reproduces_the_run(make_trainer, tmp_path, name):
    fields = {**ALL[name], "max_steps": 6, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    if name == "curriculum":
        fields["kd_temperature_rule_kwargs"] = {"learning_rate": 1.0}
    if name == "distillm2":
        fields |= {"lmbda": 0.6, "replay_size": 2, "replay_ratio": 0.5}
    whole = make_trainer("gpt2", "gpt2", save_strategy="steps", save_steps=3, **fields)
    whole.train()
    folder = tmp_path / "out" / "checkpoint-3"
    assert (folder / "objective.json").exists() == (name != "token_adaptive")
    assert not list(folder.glob("*.tmp"))
    resumed = make_trainer("gpt2", "gpt2", **fields)
    resumed.train(resume_from_checkpoint=str(folder))
    for key in ("loss", "kd_temperature", "taid_t", "distillm2_anchor_student", "distillm2_anchor_teacher"):
        assert logged(resumed, key) == pytest.approx(logged(whole, key), rel=1e-9)
    assert states_of(resumed) == {
        k: v if v is None else pytest.approx(v, rel=1e-9) for k, v in states_of(whole).items()
    }
    torch.testing.assert_close(parameters(resumed.model), parameters(whole.model), rtol=1e-9, atol=1e-9)


def test_the_state_in_a_checkpoint(make_trainer, tmp_path):
    """The file has had the same keys from the first."""
    states = {"temperature": {"theta": 0.25}, "method": {"t": 0.6, "momentum": 0.1, "loss": 2.0}}
    (tmp_path / "objective.json").write_text(json.dumps(states))
    loss = make_trainer(**ALL["taid"], **ALL["curriculum"]).step_loss
    loss.load(str(tmp_path))
    assert loss.objective.state == states["method"] and loss.temperatures.state == states["temperature"]
    loss.save(str(tmp_path))
    assert json.loads((tmp_path / "objective.json").read_text()) == states


def test_a_divergence_is_an_objective(make_trainer):
    loss = make_trainer(divergence="jsd", divergence_kwargs={"beta": 0.3}).step_loss
    assert isinstance(loss.objective, Objective) and loss.objective.divergence == "jsd"
    tokens = Tokens(torch.zeros(1, 1), on_policy=False)
    assert loss.objective.arguments(tokens) == {"divergence": "jsd", "divergence_kwargs": {"beta": 0.3}}
    assert all(issubclass(kind, Objective) for kind in OBJECTIVES.values())


def test_a_checkpoint_of_another_objective_is_refused(make_trainer, tmp_path):
    folder = str(tmp_path / "out" / "checkpoint-1")
    make_trainer(divergence="taid", max_steps=2, save_strategy="steps", save_steps=1).train()
    for fields in (ALL["curriculum"], ALL["distillm2"], {**ALL["taid"], **ALL["curriculum"]}):
        with pytest.raises(
            ValueError, match=r"checkpoint-1 is of another run: `(divergence|kd_temperature_rule)` was"
        ):
            make_trainer(**fields).train(resume_from_checkpoint=folder)
        with pytest.raises(ValueError, match=r"objective\.json has no state for the run's .* of another objective"):
            make_trainer(**fields, resume_with_changes=True).train(resume_from_checkpoint=folder)
    make_trainer(max_steps=2, save_strategy="steps", save_steps=1, divergence="jsd").step_loss.load(folder)
    (tmp_path / "out" / "checkpoint-1" / "objective.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 .*isn't whole: objective\.json is missing"):
        make_trainer(divergence="taid").train(resume_from_checkpoint=folder)


def test_an_interruption_leaves_nothing(make_trainer, prompt_dataset):
    fields = {"divergence": "taid", "kd_temperature_rule": "token_adaptive", "max_steps": 2}
    clean, trainer = (make_trainer(eval_dataset=prompt_dataset, **fields) for _ in range(2))
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    trainer.model.train()
    trainer.compute_loss(trainer.model, first_batch(trainer))  # half a step
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, first_batch(trainer))  # half an evaluation
    for each in (clean, trainer):
        each.train()
    assert clean.step_loss.temperatures.logs("train") == {}  # and no temperature is made up where none was seen
    metrics = [{k: v for k, v in each.evaluate().items() if "temperature" in k} for each in (clean, trainer)]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 4
    assert clean.step_loss._states() == trainer.step_loss._states()
    assert [e for e in clean.state.log_history[0].items() if "temperature" in e[0]] == [
        e for e in trainer.state.log_history[0].items() if "temperature" in e[0]
    ]


@pytest.mark.parametrize("name", ["token_adaptive", "zscore", "curriculum", *OBJECTIVES])
def test_batch_without_labels(make_trainer, tokenizer, name):
    ids = tokenizer("the cat sat on the mat")["input_ids"]
    without = [{"input_ids": ids, "labels": [-100] * len(ids)}] * 2
    with_labels = [{"input_ids": ids, "labels": [-100] * 2 + ids[2:]}] * 2
    data = Dataset.from_list(without + with_labels)
    trainer = make_trainer(
        train_dataset=data, per_device_train_batch_size=1, train_sampling_strategy="sequential", max_steps=4,
        max_length=None,
        **{**ALL[name], **({"lmbda": 0.01} if "lmbda" in ALL[name] else {})},
    )  # fmt: skip
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[:2] == [0, 0] and all(map(math.isfinite, losses)) and losses[2] > 0
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["token_adaptive", "tsld"])
def test_padding_free_batches(make_trainer, text_dataset, name):
    metrics = []
    for fields in ({}, {"padding_free": True, "max_length": None}):
        trainer = make_trainer(eval_dataset=text_dataset, per_device_eval_batch_size=4, **ALL[name], **fields)
        metrics.append(trainer.evaluate())
    names = [
        name for name in metrics[0] if "second" not in name and "runtime" not in name and "preparation" not in name
    ]
    assert "eval_loss" in names
    for each in names:
        assert metrics[0][each] == pytest.approx(metrics[1][each], rel=1e-9), each


# The student's text


@pytest.mark.parametrize("name", ["distillm2", "minillm"])
def test_who_wrote_decides(make_trainer, monkeypatch, name):
    method, seen = OBJECTIVES[name], []
    arguments = method.arguments

    def spy(self, tokens):
        out = arguments(self, tokens)
        seen.append((tokens.on_policy, out["divergence"], "ce_weight" in out))
        return out

    monkeypatch.setattr(method, "arguments", spy)
    fields = {**ALL[name], "lmbda": 0.7, "replay_size": 4, "replay_ratio": 0.5, "max_steps": 8, "seed": 49}
    trainer = make_trainer(**fields)
    trainer.train()
    shares = [logged(trainer, share) for share in ("on_policy_share", "replay_share")]
    own = [bool(student + replay) for student, replay in zip(*shares, strict=True)]
    assert own == [on_policy for on_policy, *_ in seen] and len(set(own)) == 2 and any(shares[1])
    for on_policy, divergence, policy_gradient in seen:
        if name == "distillm2":
            assert divergence == ("skew_reverse_kl" if on_policy else "skew_forward_kl")
        assert policy_gradient == (on_policy and name == "minillm")
    seen.clear()
    trainer.evaluate(trainer.train_dataset)
    assert not any(on_policy for on_policy, *_ in seen)


# Teachers


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["token_adaptive", "taid"])
def test_a_cache_of_hidden_states_is_the_teacher(make, tmp_path, name):
    builder_of(make(), tmp_path / "cache").build()
    losses = []
    for cache in ({}, {"teacher_cache": str(tmp_path / "cache")}):
        trainer = make(**ALL[name], **cache)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("mode", ["topk", "sampled"])
def test_truncated_caches_refuse(make, tmp_path, mode):
    folder = tmp_path / mode
    builder_of(make(), folder, mode=mode, count=8, taus=(1.0, 2.0)).build()
    for name, fields in ALL.items():
        match = f"`kd_temperature_rule` is {name}" if "kd_temperature_rule" in fields else f"`divergence` {name} "
        with pytest.raises(ValueError, match=rf"{match}.*--mode hidden|`lmbda`"):
            make(teacher_cache=str(folder), **fields)


def test_a_served_part_of_the_vocabulary_refuses(make_model, tokenizer, make_config, prompt_dataset):
    from teacher_server import TeacherServer

    from trl_tempkd import TemperatureKDTrainer

    with TeacherServer(make_model(seed=1), tokenizer).running() as server:
        options = {"teacher_server_url": server.url, "teacher_server_logprobs": 8, "kd_temperature": 1.0}
        for name, fields in ALL.items():
            match = "`kd_temperature_rule` is" if "kd_temperature_rule" in fields else f"`divergence` {name}|`lmbda`"
            with pytest.raises(ValueError, match=match):
                TemperatureKDTrainer(
                    make_model(),
                    args=make_config(**options, **fields),
                    train_dataset=prompt_dataset,
                    processing_class=tokenizer,
                )


@pytest.mark.parametrize("name", ["token_adaptive", "minillm"])
def test_the_students_base_teaches(make_trainer, name):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = {"teacher": None, "teacher_model_name_or_path": "student_base"}
    trainer = make_trainer("llama", **base, kwargs={"peft_config": lora}, max_steps=2, **ALL[name])
    trainer.train()
    assert all(math.isfinite(loss) and loss != 0 for loss in logged(trainer, "loss"))


# Beside it


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fields", [ALL["taid"], {**ALL["distillm2"], "kd_temperature_rule": "curriculum"}])
def test_diagnostics(make_trainer, prompt_dataset, fields):
    trainer = make_trainer(eval_dataset=prompt_dataset, max_steps=3, kd_diagnostics_steps=2, **fields)
    trainer.add_callback(DiagnosticsCallback(trainer, num_rows=2))
    trainer.train()
    table = pd.read_csv(f"{trainer.args.output_dir}/diagnostics.csv")
    assert sorted(set(table["step"])) == [0, 2, 3]
    assert token_divergence(fields["divergence"]) in set(table["objective"])
    plain = make_trainer(eval_dataset=prompt_dataset, max_steps=3, **fields)
    plain.train()
    assert logged(plain, "loss") == pytest.approx(logged(trainer, "loss"), rel=1e-9)
    assert states_of(plain) == {
        k: v if v is None else pytest.approx(v, rel=1e-9) for k, v in states_of(trainer).items()
    }


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("dpo", None, "`divergence` must be one of forward_kl, .*taid, distillm2, minillm, tsld, got 'dpo'"),
        ("taid", {"beta": 1}, "`divergence_kwargs` has 'beta', but taid takes t, t_end, alpha, momentum"),
        ("taid", {"t": 0.5, "t_end": 0.4}, "`t` and `t_end` must be in"),
        ("taid", {"momentum": 1.0}, "`alpha` must be in .* and `momentum`"),
        ("taid", {"t": "x"}, "does not fit taid"),
        ("distillm2", {"alpha": 0.0}, "`alpha_min` and `alpha` must be in"),
        ("minillm", {"long_term": -1.0}, "`long_term` must not be negative, got -1.0"),
        ("tsld", {"scale": 0.0}, "`scale` must be positive, got 0.0"),
    ],
)
def test_check_objective(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_objective(name, kwargs)


@pytest.mark.parametrize("name", ["distillm2", "minillm"])
def test_refuses_objectives_without_the_students_text(make_config, name):
    with pytest.raises(ValueError, match=f"`divergence` {name} is about completions.*`lmbda` is 0"):
        make_config(divergence=name)
    make_config(divergence=name, lmbda_schedule="adaptive", eval_strategy="steps", eval_steps=1, max_new_tokens=4)


def test_names():
    for name in OBJECTIVES:
        check_objective(name)
        assert token_divergence(name) in DIVERGENCES
    assert token_divergence("jsd") == "jsd"


@pytest.mark.parametrize(("name", "off_policy"), [("minillm", False), ("distillm2", True), ("tsld", True)])
def test_nothing_is_measured_that_isnt_needed(name, off_policy):
    method = OBJECTIVES[name]()
    assert method.needed(on_policy=True) == method.measures != ()
    assert bool(method.needed(on_policy=False)) == off_policy
