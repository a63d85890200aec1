# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""On-policy training: prompts, sampling, who completes a batch, replay, normalisation, resuming, what is logged."""

import itertools
import math
import random
from collections import Counter
from itertools import chain
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from made_models import SENTENCES
from peft import LoraConfig
from transformers import DataCollatorForSeq2Seq, TrainerCallback
from trl.generation import vllm_generation

import trl_tempkd.rollouts as rollouts_package
from trl_tempkd.rollouts import rollouts as rollouts_module
from trl_tempkd.rollouts import vllm
from trl_tempkd.rollouts.rollouts import Rollouts
from trl_tempkd.rollouts.rows import Row, completed, join, rows_of, split, split_evenly
from trl_tempkd.rollouts.sampling import ModelSampler, stop_tokens
from trl_tempkd.vocabularies.alignment import Question


PROMPTS = [[7, 8, 9, 10], [11, 12], [13, 14, 15, 16, 17, 18, 19], [20]]


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def gradients(trainer):
    """The gradient of the first optimizer step, before it is clipped."""
    found = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.args.max_grad_norm = 0
    trainer.add_callback(Keep())
    trainer.train()
    return found


@pytest.fixture
def batches(monkeypatch):
    """The rows of the batches of every optimizer step, as they were trained on."""
    steps = []
    call = Rollouts.__call__

    def spy(self, *args):
        result = call(self, *args)
        steps.append([row for batch in result for row in rows_of(batch)])
        return result

    monkeypatch.setattr(Rollouts, "__call__", spy)
    return steps


# Rows


def test_the_prompt_is_what_stands_before_the_last_turn():
    ids = list(range(8))
    assert Row(ids, [-100, -100, -100, 3, 4, 5, 6, 7]).prompt == [0, 1, 2]
    assert Row(ids, [-100, 1, 2, -100, -100, 5, 6, -100]).prompt == [0, 1, 2, 3, 4]
    assert Row(ids, ids).prompt == []
    assert Row(ids, [0, 1, -100, 3, -100, -100, -100, -100]).prompt == [0, 1, 2]
    assert Row(ids, [-100] * 8).prompt == []
    assert Row([], []).prompt == []
    row = completed([5, 6], [7, 8, 9])
    assert row.prompt == [5, 6] and row.targets == 3
    assert Row(ids, ids).targets == 7


def test_rows_of_padded_and_padding_free_batches():
    rows = [Row([1, 2, 3, 4], [-100, -100, 3, 4]), Row([5, 6, 7], [-100, -100, 7]), Row([8, 9], [8, 9])]
    padded = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 3, 4], [-100, -100, 7, -100], [8, 9, -100, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
    }
    free = {  # where the first label of a sequence is always missing
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 3, 4, -100, -100, 7, -100, 9, -100, -100]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 0]]),
    }
    assert rows_of(padded) == rows_of(free) == rows
    assert [row.prompt for row in rows] == [[1, 2], [5, 6], []]
    with pytest.raises(ValueError, match=r"position_ids.*got input_ids, labels"):
        rows_of({"input_ids": padded["input_ids"], "labels": padded["labels"]})


def test_split_evenly():
    rows = [Row([0] * n, [0] * n) for n in random.Random(0).sample(range(1, 30), 11)]
    groups = split_evenly(rows, 4)
    assert sorted(map(len, groups)) == [2, 3, 3, 3]
    assert [*chain(*groups)] == sorted(rows, key=lambda row: -len(row.input_ids))
    groups = split_evenly(rows[:1], 3)
    assert [len(group) for group in groups] == [1, 1, 1] and sum(row.targets for g in groups[1:] for row in g) == 0


def test_rows_survive_saving():
    rows = [completed([1, 2], [3]), Row([4, 5, 6], [-100, 5, -100]), completed([7], [8, 9])]
    assert split(join(rows)) == rows
    assert split(join([])) == []
    rows = [completed([1], [2], Row([], [], teacher_ids=[9, 8], route=1)), completed([3, 4], [5], Row([], []))]
    assert rows[0].context == [9, 8] and split(join(rows)) == rows
    asked = [completed([1, 2], [3], Row([], [], question=Question([7] * i, 5, 1, True))) for i in (0, 3)]
    assert asked[1].question == Question([7] * 3, 2, 0, True) and split(join(asked)) == asked


# Sampling


def greedy(model, prompt, new, stops):
    """One token after the other, from logits in full, without padding and cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] in stops:
                break
    return ids[len(prompt) :]


@pytest.fixture
def make_sampler(make_config, tokenizer):
    def make(model, **fields):
        accelerator = SimpleNamespace(
            unwrap_model=lambda m: m, device=torch.device("cpu"), num_processes=1, is_fsdp2=False, gather=lambda t: t,
            autocast=lambda: torch.autocast("cpu", enabled=False),
            state=SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None),
        )  # fmt: skip
        fields = {"max_new_tokens": 8, "lmbda": 1.0, **fields}
        return ModelSampler(lambda: model, accelerator, tokenizer, make_config(**fields), len(tokenizer))

    return make


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "opt", "gemma3_text", "falcon_h1"])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_greedy_completions_are_those_of_each_prompt_alone(make_sampler, make_model, architecture, size):
    model = make_model(architecture).eval()
    expected = [greedy(model, prompt, 8, stop_tokens(model, SimpleNamespace(eos_token_id=2))) for prompt in PROMPTS]
    sampler = make_sampler(model, temperature=0.0, generation_batch_size=size)
    assert sampler(PROMPTS, 0) == expected
    assert sampler([], 0) == []


def test_nothing_may_stop_a_completion(make_sampler, make_model, tokenizer):
    model = make_model()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    assert {len(completion) for completion in make_sampler(model)(PROMPTS, 0)} == {8}


@pytest.mark.parametrize("stops", [None, 2, [2, 40, 41]])
def test_completions_end_with_their_stop_token(make_sampler, make_model, tokenizer, stops):
    model = make_model()
    model.generation_config.eos_token_id = stops
    # A model that likes to stop, after a while: what comes before stays as it is
    with torch.no_grad():
        model.lm_head.weight[[2, 40, 41]] *= 3
    tokenizer.pad_token = tokenizer.eos_token  # a completion must not lose its EOS as if it were padding
    sampler = make_sampler(model, max_new_tokens=12)
    ids = {2} if not isinstance(stops, list) else {*stops}
    ends, lengths = Counter(), set()
    for seed in range(40):
        for completion in sampler(PROMPTS, seed):
            assert 1 <= len(completion) <= 12
            assert not ids & {*completion[:-1]}
            assert completion[-1] in ids or len(completion) == 12
            ends[completion[-1]] += 1
            lengths.add(len(completion))
    assert ids <= {*ends} and len(lengths) > 3
    assert sum(ends.values()) > sum(ends[i] for i in ids)  # and some never stop


def test_sampling_is_what_the_options_say(make_sampler, make_model):
    model = make_model()
    reference = make_sampler(model, temperature=0.0)(PROMPTS, 0)
    model.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, suppress_tokens=[5]
    )
    assert make_sampler(model, temperature=0.0)(PROMPTS, 0) == reference
    assert model.generation_config.repetition_penalty == 9.0
    for fields in ({"temperature": 1e-3}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert make_sampler(model, **fields)(PROMPTS, 0) == reference, fields
    assert make_sampler(model)(PROMPTS, 0) != reference
    penalised = make_sampler(model, temperature=0.0, repetition_penalty=1e6)(PROMPTS, 0)
    for prompt, completion in zip(PROMPTS, penalised, strict=True):
        assert len({*prompt, *completion}) == len(prompt) + len(completion)
    kwargs = {"repetition_penalty": 1e6}
    assert make_sampler(model, temperature=0.0, generation_kwargs=kwargs)(PROMPTS, 0) == penalised


@pytest.mark.parametrize("kwargs", [None, {"num_beams": 1}], ids=["by inversion", "by transformers"])
@pytest.mark.parametrize(
    "fields", [{"temperature": 2.0}, {"top_p": 0.7}, {"top_k": 5, "temperature": 3.0}, {"min_p": 0.1}], ids=str
)
def test_sampling_follows_the_distribution(make_sampler, make_model, fields, kwargs):
    model = make_model().eval()
    sampler = make_sampler(model, max_new_tokens=1, kd_temperature=7.0, generation_kwargs=kwargs, **fields)
    assert bool(sampler.processors) == (kwargs is None)
    counts = Counter(completion[0] for completion in sampler([PROMPTS[0]] * 20000, 0))
    logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    p, order = (logits / fields.get("temperature", 1.0)).softmax(-1).sort(descending=True)
    keep = torch.arange(len(p)) < fields.get("top_k", len(p))
    keep &= p.cumsum(0) - p < fields.get("top_p", 1.1)
    keep &= p >= fields.get("min_p", 0.0) * p[0]
    expected = torch.where(keep, p, 0.0) / p[keep].sum()
    found = torch.tensor([counts[i] / 20000 for i in order.tolist()])
    assert not found[~keep].any()
    assert (found - expected).abs().sum() < 0.08
    assert (found - logits.softmax(-1)[order]).abs().sum() > 0.15


def test_sampling_is_seeded_and_leaves_the_random_state_alone(make_sampler, make_model):
    sampler = make_sampler(make_model())
    state = torch.get_rng_state()
    first = sampler(PROMPTS, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert sampler(PROMPTS, 5) == first
    assert sampler(PROMPTS, 6) != first


def test_the_model_samples_as_it_will_be_used(make_sampler, make_model, monkeypatch):
    model = make_model("gpt2")  # with dropout
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    calls = []
    model.transformer.wte.register_forward_hook(
        lambda module, args, output: calls.append((args[0].shape[1], model.training))
    )
    sampler = make_sampler(model, temperature=0.0)
    first = sampler(PROMPTS, 0)
    assert sampler(PROMPTS, 1) == first  # no dropout
    assert {training for _, training in calls} == {False}
    assert sorted({width for width, _ in calls}) == [1, max(map(len, PROMPTS))]  # with a cache
    assert model.training and model.is_gradient_checkpointing

    monkeypatch.setattr(type(model), "generate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler(PROMPTS, 0)
    assert model.training and model.generation_config.eos_token_id == 2  # restored


# Who completes a batch


@pytest.fixture
def make_rollouts(make_config, tokenizer):
    """With samplers that say who was asked: the student repeats 50, the teacher 60."""

    def make(rank=0, ranks=1, student=None, **fields):
        accelerator = SimpleNamespace(
            num_processes=ranks, process_index=rank, device=torch.device("cpu"), gather=lambda t: t,
            reduce=lambda t, reduction: t,
        )  # fmt: skip

        def collator(rows):
            assert len({len(row["input_ids"]) for row in rows}) == 1
            return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]} | {
                "attention_mask": torch.ones(len(rows), len(rows[0]["input_ids"]))
            }

        def teacher(prompts, seed):
            return [[60, 61]] * len(prompts)

        student = student or (lambda prompts, seed: [[50, 51]] * len(prompts))
        args = make_config(**fields)
        return Rollouts(args, accelerator, tokenizer, collator, [51, 61], student, teacher)

    return make


def batch_of(*completions):
    ids = torch.tensor([[10, 11, *completion] for completion in completions])
    labels = ids.clone()
    labels[:, :2] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def source_of(rollouts, step=0, progress=0.0, batches=1):
    result = rollouts([batch_of([70, 71], [72, 73])] * batches, step, progress)
    assert len(result) == batches
    (first,) = {row.input_ids[2] // 10 for batch in result for row in rows_of(batch)}
    return {5: "student", 6: "teacher", 7: "dataset"}[first]


def test_each_source_has_its_share(make_rollouts):
    rollouts = make_rollouts(lmbda=0.3)
    counts = Counter(source_of(rollouts, step) for step in range(1000))
    assert counts["student"] == pytest.approx(300, abs=50) and counts["student"] + counts["dataset"] == 1000
    counts = Counter(source_of(make_rollouts(lmbda=0.3, seq_kd=True), step) for step in range(100))
    assert 10 < counts["student"] < 50 and counts["student"] + counts["teacher"] == 100
    assert {source_of(make_rollouts(lmbda=1.0, seq_kd=True), step) for step in range(50)} == {"student"}
    assert {source_of(make_rollouts(lmbda=0.0, seq_kd=True), step) for step in range(50)} == {"teacher"}


def test_ranks_agree_on_the_source_and_not_on_the_samples(make_rollouts):
    seeds = {0: [], 1: []}

    def sampler(rank):
        return lambda prompts, seed: seeds[rank].append(seed) or [[50, 51]] * len(prompts)

    drawn = [
        [source_of(make_rollouts(rank, 2, sampler(rank), lmbda=0.5), step) for step in range(40)] for rank in (0, 1)
    ]
    assert drawn[0] == drawn[1] and {*drawn[0]} == {"student", "dataset"}
    assert len({*seeds[0], *seeds[1]}) == len(seeds[0]) + len(seeds[1])
    other_seed = [source_of(make_rollouts(lmbda=0.5, seed=1), step) for step in range(40)]
    assert other_seed != drawn[0]


def test_replay(make_rollouts):
    said = iter(range(100, 10_000))
    rollouts = make_rollouts(
        student=lambda prompts, seed: [[50, next(said)] for _ in prompts], lmbda=1.0, replay_size=6, replay_ratio=0.75
    )
    replayed = []
    for step in range(200):
        newest = len(replayed) and max(row.input_ids[3] for row in rollouts.replay)
        (batch,) = rollouts([batch_of([70, 71], [72, 73])], step, 0.0)
        tokens = {row.input_ids[3] for row in rows_of(batch)}
        assert len(tokens) == 2
        replayed.append(max(tokens) <= newest)
        assert len(rollouts.replay) <= 6
    assert not any(replayed[:3])  # not before it is full
    assert sum(replayed) == pytest.approx(150, abs=20)
    kept = sorted(row.input_ids[3] for row in rollouts.replay)
    assert kept == list(range(kept[0], kept[0] + 6)) and kept[-1] == next(said) - 1  # the latest
    metrics = rollouts.metrics()
    assert metrics["replay_share"] == sum(replayed) / 200 == 1 - metrics["on_policy_share"]


def test_replay_share_rises_over_the_training(make_rollouts):
    rollouts = make_rollouts(lmbda=1.0, replay_size=2)
    for progress in (0.0, 0.5, 1.0):
        rollouts.metrics()
        for step in range(100):
            source_of(rollouts, step, progress)
        assert rollouts.metrics()["replay_share"] == pytest.approx(progress, abs=0.15)


def test_adaptive_share_rises_with_the_distance(make_rollouts):
    fields = {"lmbda": 0.0, "lmbda_schedule": "adaptive", "eval_strategy": "steps", "eval_steps": 1}
    rollouts = make_rollouts(**fields)
    shares = []
    for distance in (3.0, 2.0, 2.1, 2.0, 2.2, 2.2, 2.2 + 1e-6, *range(3, 20)):
        rollouts.observe({"eval_kl_tau1": distance, "eval_loss": -distance, "eval_ce_loss": 0.0})
        shares.append(round(rollouts.share, 10))
    assert shares[:8] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3]
    assert shares[-1] == 1.0
    for metrics in ({"eval_loss": 1.0}, {"eval_kl_tau1": math.nan}):  # no label in the data set, a run that diverges
        rollouts.observe(metrics)
        assert rollouts.distance == 19
    # Each evaluation counts once, however many data sets it has, and where there is no KL, the cross-entropy does
    for name in ("kl_tau1", "ce_loss"):
        rollouts = make_rollouts(**fields)
        for first, second in ((3.0, 3.0), (4.0, 4.0), (5.0, 2.0), (4.0, 4.0)):
            rollouts.observe({f"eval_first_{name}": first, f"eval_second_{name}": second})
        assert rollouts.share == pytest.approx(0.2)
    constant = make_rollouts(lmbda=0.2)
    constant.observe({"eval_kl_tau1": 1.0})
    constant.observe({"eval_kl_tau1": 2.0})
    assert constant.share == 0.2


@pytest.mark.parametrize("many", [False, True])
def test_adaptive_share_follows_the_student_and_not_tau(make_trainer, prompt_dataset, many):
    sets = {"first": prompt_dataset, "second": prompt_dataset.select(range(4))}
    fields = {
        "lmbda_schedule": "adaptive", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 5, "max_new_tokens": 4,
        "kd_temperature": 1.0, "kd_temperature_schedule": "linear", "kd_temperature_final": 4.0,
        "eval_dataset": sets if many else prompt_dataset,
    }  # fmt: skip
    trainer = make_trainer(learning_rate=0.0, **fields)
    trainer.train()
    losses = logged(trainer, "eval_first_loss" if many else "eval_loss")
    assert losses == sorted(set(losses)) and len(losses) >= 4  # it rises with tau
    assert logged(trainer, "lmbda") == [0.0] * 5
    trainer = make_trainer(learning_rate=1.0, **fields)  # it gets worse now and then
    trainer.train()
    trainer.evaluate()  # by hand, it is no evaluation of the training
    names = ["eval_first_kl_tau1", "eval_second_kl_tau1"] if many else ["eval_kl_tau1"]
    values = list(zip(*(logged(trainer, name) for name in names), strict=True))[:5]
    means = [sum(each) / len(each) for each in values]
    rises = sum(after > before for before, after in itertools.pairwise(means))
    assert rises > 0 and trainer.rollouts.share == pytest.approx(0.1 * rises)


def test_state_survives(make_rollouts, tmp_path, caplog, monkeypatch):
    fields = {"lmbda": 0.5, "replay_size": 4, "lmbda_schedule": "adaptive", "eval_strategy": "steps", "eval_steps": 1}
    rollouts = make_rollouts(**fields)
    for step in range(4):
        source_of(rollouts, step)
    rollouts.observe({"eval_kl_tau1": 1.0})
    rollouts.observe({"eval_kl_tau1": 2.0})
    rollouts.save(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts_0.safetensors"]
    other = make_rollouts(**fields)
    other.load(str(tmp_path))
    assert (other.replay, other.share, other.distance) == (rollouts.replay, 0.6, 2.0) and other.replay
    # More processes than before: the first one tells the others what all must know
    monkeypatch.setattr(rollouts_module, "broadcast_object_list", lambda objects: [{"share": 0.6, "losses": {}}])
    second = make_rollouts(rank=1, ranks=2, **fields)
    second.load(str(tmp_path))
    assert "rollouts_1.safetensors" in caplog.text and second.share == 0.6 and not second.replay
    assert second.distance is None  # earlier versions have kept losses, which don't compare


def test_counts(make_rollouts):
    rollouts = make_rollouts(lmbda=0.5, student=lambda prompts, seed: [[50, 51], [50, 50]][: len(prompts)])
    sources = [source_of(rollouts, step) for step in range(20)]
    metrics = rollouts.metrics()
    assert metrics["on_policy_share"] == sources.count("student") / 20
    assert metrics["completions/mean_length"] == 2 and metrics["completions/clipped_ratio"] == 0.5
    assert metrics["lmbda"] == 0.5 and "replay_share" not in metrics
    assert rollouts.metrics()["on_policy_share"] == 0  # since the last call


def test_rows_without_a_prompt_stay(make_rollouts, caplog):
    rollouts = make_rollouts(lmbda=1.0)
    batch = batch_of([70, 71], [72, 73])
    batch["labels"][1] = batch["input_ids"][1]
    (result,) = rollouts([batch], 0, 0.0)
    assert sorted(row.input_ids for row in rows_of(result)) == [[10, 11, 50, 51], [10, 11, 72, 73]]
    assert "no prompt" in caplog.text
    assert rollouts.metrics()["on_policy_share"] == 2 / 5  # two tokens of the student, three of the data set


# In the trainer


@pytest.mark.usefixtures("float64")
def test_the_loss_is_about_what_the_student_says(make_trainer, batches, prompt_dataset):
    trainer = make_trainer(lmbda=1.0, temperature=0.0, max_new_tokens=6, max_steps=1)
    model, stops = trainer.model, stop_tokens(trainer.model, trainer.processing_class)
    prompts = [Row(r["input_ids"], r["labels"]).prompt for r in trainer.train_dataset]
    expected = {tuple(p + greedy(model.eval(), p, 6, stops)) for p in prompts}
    trainer.train()
    (rows,) = batches
    assert len(rows) == 4 and {tuple(row.input_ids) for row in rows} <= expected
    assert all(row.prompt in prompts for row in rows)
    trained = sum(row.targets for row in rows)
    assert logged(trainer, "completions/mean_length") == [trained / 4]
    assert logged(trainer, "on_policy_share") == [1.0]

    # The same rows as a data set give the same loss
    data = Dataset.from_list([row._asdict() for row in rows])
    off_policy = make_trainer(train_dataset=data, max_steps=1)
    off_policy.train()
    assert logged(off_policy, "on_policy_share") == [0.0]
    for name in ("loss", "kl_tau1", "grad_norm", "ce_loss"):
        assert logged(off_policy, name) == pytest.approx(logged(trainer, name), rel=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("source", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_normalisation_counts_what_was_generated(make_trainer, make_model, source):
    def model(seed):  # stops soon, so that every completion has its own length
        model = make_model(seed=seed)
        with torch.no_grad():
            model.lm_head.weight[2] *= 4
        return model

    fields = {"temperature": 0.0, "max_new_tokens": 7, "max_steps": 1, **source}
    found = [
        gradients(
            make_trainer(
                model(0), model(1), per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, **fields
            )
        )
        for steps in (1, 2, 8)
    ]
    assert any(g.abs().max() > 1e-3 for g in found[0].values())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


def test_teacher_completes(make_trainer, batches):
    trainer = make_trainer(seq_kd=True, temperature=0.0, max_new_tokens=5, max_steps=1, log_completions=True)
    stops = stop_tokens(trainer.teacher_model, trainer.processing_class)
    trainer.train()
    for row in batches[0]:
        assert row.input_ids == row.prompt + greedy(trainer.teacher_model, row.prompt, 5, stops)
    assert logged(trainer, "on_policy_share") == [0.0]


def test_lora_student_samples_with_its_adapter(make_trainer, batches):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5)
    trainer = make_trainer(
        lmbda=1.0, temperature=0.0, max_new_tokens=6, max_steps=1, kwargs={"peft_config": config},
        gradient_checkpointing=True,
    )  # fmt: skip
    stops = stop_tokens(trainer.model, trainer.processing_class)
    model = trainer.model.eval()
    prompts = [Row(r["input_ids"], r["labels"]).prompt for r in trainer.train_dataset]
    expected = {tuple(p): greedy(model, p, 6, stops) for p in prompts}
    with model.disable_adapter():
        assert expected != {tuple(p): greedy(model, p, 6, stops) for p in prompts}
    trainer.train()
    assert len(batches[0]) == 4
    for row in batches[0]:
        assert row.input_ids == row.prompt + expected[tuple(row.prompt)]


MULTI_TURN = [
    {
        "messages": [
            {"role": "user", "content": a},
            {"role": "assistant", "content": b},
            {"role": "user", "content": b},
            {"role": "assistant", "content": a},
        ]
    }
    for a, b in zip(SENTENCES, reversed(SENTENCES), strict=True)
]


@pytest.mark.parametrize("fields", [{}, {"padding_free": True}, {"packing": True}], ids=str)
@pytest.mark.parametrize("kind", ["prompt", "conversation", "turns"])
@pytest.mark.filterwarnings("ignore:.*[Ff]lash:UserWarning")
def test_every_data_format_gives_its_prompts(
    make_trainer, prompt_dataset, chat_dataset, tokenizer, batches, kind, fields
):
    if kind == "conversation":
        data = Dataset.from_list(
            [{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in chat_dataset.to_list()]
        )
    else:
        data = prompt_dataset if kind == "prompt" else Dataset.from_list(MULTI_TURN)
    prompts = {
        "prompt": lambda r: tokenizer(r["prompt"])["input_ids"],
        "conversation": lambda r: template(r["prompt"]),
        "turns": lambda r: template(r["messages"][:3]),
    }[kind]

    def template(messages):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    expected = [prompts(row) for row in data]
    trainer = make_trainer(
        train_dataset=data, lmbda=1.0, temperature=0.0, max_new_tokens=3, max_steps=1, per_device_train_batch_size=8,
        assistant_only_loss=kind == "turns", max_length=None if fields.get("padding_free") else 64, **fields,
    )  # fmt: skip
    trainer.train()
    found = [row.prompt for row in batches[0]]
    assert found and all(prompt in expected for prompt in found)
    if not fields:
        assert sorted(found) == sorted(expected)
    assert all(1 <= row.targets <= 3 for row in batches[0])
    assert logged(trainer, "loss")[0] > 0


@pytest.mark.parametrize(
    "fields", [{"lmbda": 0.5}, {"seq_kd": True}, {"lmbda": 1.0, "packing": True, "max_length": 32}], ids=str
)
@pytest.mark.filterwarnings("ignore:.*[Ff]lash:UserWarning")
def test_refuses_data_without_prompts(make_trainer, text_dataset, fields):
    with pytest.raises(ValueError, match="need prompts"):
        make_trainer(train_dataset=text_dataset, **fields)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_padding_of_a_vocabulary_is_never_said(make_trainer, make_model, tokenizer, batches, larger):
    models = {"student": make_model(), "teacher": make_model(seed=1)}
    models[larger] = make_model(seed=2, vocab_size=len(tokenizer) + 64)
    with torch.no_grad():
        models[larger].lm_head.weight[len(tokenizer) :] *= 4  # which it would like to
    make_trainer(**models, lmbda=0.5, seq_kd=True, max_new_tokens=8, max_steps=4, seed=1).train()
    assert max(token for rows in batches for row in rows for token in row.input_ids) < len(tokenizer)


def test_a_collator_that_fails_on_text(make_trainer, tokenizer, batches):
    collator = DataCollatorForSeq2Seq(tokenizer)
    make_trainer(lmbda=1.0, max_new_tokens=4, max_steps=1, kwargs={"data_collator": collator}).train()
    assert all(row.prompt and 1 <= row.targets <= 4 for row in batches[0])


def test_the_stop_tokens_of_both_models_count(make_trainer, make_model):
    teacher = make_model(seed=1)
    teacher.generation_config.eos_token_id = 40
    assert make_trainer(teacher=teacher, seq_kd=True, max_new_tokens=30).rollouts.stops == [2, 40]


def test_empty_evaluation(make_trainer, prompt_dataset):
    fields = {"lmbda_schedule": "adaptive", "eval_strategy": "steps", "eval_steps": 1, "max_new_tokens": 3}
    trainer = make_trainer(**fields, eval_dataset=prompt_dataset)
    trainer.eval_dataset = trainer.eval_dataset.select([])
    trainer.train()
    assert trainer.rollouts.distance is None and trainer.rollouts.share == 0


def test_evaluation_uses_the_data_set(make_trainer, prompt_dataset):
    on_policy = make_trainer(eval_dataset=prompt_dataset, lmbda=1.0, max_new_tokens=3)
    metrics = on_policy.evaluate()
    assert metrics["eval_kl_tau1"] == make_trainer(eval_dataset=prompt_dataset).evaluate()["eval_kl_tau1"]


def test_long_prompts_are_cut_at_their_start(make_trainer, make_model, batches, caplog):
    trainer = make_trainer(
        make_model(max_position_embeddings=12), make_model("gpt2", seed=1, n_positions=9), lmbda=1.0,
        max_new_tokens=7, max_steps=1, max_length=9,
    )  # fmt: skip
    prompts = [Row(r["input_ids"], r["labels"]).prompt for r in trainer.train_dataset]
    assert max(map(len, prompts)) > 2
    trainer.train()
    assert {tuple(row.prompt) for row in batches[0]} <= {tuple(prompt[-2:]) for prompt in prompts}
    assert "last 2 tokens" in caplog.text
    with pytest.raises(ValueError, match=r"`max_new_tokens`.*64.*got 64"):
        make_trainer(lmbda=1.0, max_new_tokens=64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "fields",
    [
        {"lmbda": 0.6, "replay_size": 4, "replay_ratio": 0.5, "seq_kd": True},
        {"lmbda_schedule": "adaptive", "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1.0, "lmbda": 0.2},
    ],
    ids=["replay", "adaptive"],
)
def test_resume_reproduces_the_run(make_trainer, prompt_dataset, tmp_path, fields, batches):
    fields = {
        "learning_rate": 0.1, **fields, "max_steps": 8, "max_new_tokens": 5, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1, "eval_dataset": prompt_dataset,
    }  # fmt: skip
    whole = make_trainer("gpt2", "gpt2", save_strategy="steps", save_steps=5, **fields)
    whole.train()
    steps = batches[:]
    batches.clear()
    resumed = make_trainer("gpt2", "gpt2", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert batches == steps[5:]
    assert logged(resumed, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-9)
    assert logged(resumed, "lmbda") == logged(whole, "lmbda")
    assert 0 < sum(logged(whole, "on_policy_share")) < 8
    if "replay_size" in fields:
        assert sum(logged(whole, "replay_share")) > 0
    else:
        assert logged(whole, "lmbda")[-1] > 0.2


def test_temperatures_are_apart(make_trainer, batches):
    for kd_temperature in (1.0, 4.0):
        make_trainer(lmbda=1.0, kd_temperature=kd_temperature, temperature=0.7, max_new_tokens=6, max_steps=1).train()
    assert batches[0] == batches[1]
    make_trainer(lmbda=1.0, temperature=1.5, max_new_tokens=6, max_steps=1).train()
    assert batches[2] != batches[1]


def test_log_completions(make_trainer, tmp_path, capsys, batches, tokenizer):
    make_trainer(lmbda=1.0, max_new_tokens=4, max_steps=2, log_completions=True, num_completions_to_print=1).train()
    assert "Step 2" in capsys.readouterr().out
    files = sorted((tmp_path / "out" / "completions").iterdir())
    assert [file.name for file in files] == ["completions_00001.parquet", "completions_00002.parquet"]
    for file, rows in zip(files, batches, strict=True):
        table = pd.read_parquet(file)
        texts = [(tokenizer.decode(row.prompt), tokenizer.decode(row.input_ids[len(row.prompt) :])) for row in rows]
        assert sorted(zip(table["prompt"], table["completion"], strict=True)) == sorted(texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lmbda": 1.5}, "`lmbda`.*1.5"),
        ({"lmbda_schedule": "linear"}, "`lmbda_schedule`.*adaptive.*linear"),
        ({"lmbda_schedule": "adaptive"}, "eval_strategy"),
        ({"replay_ratio": 0.5}, "replay_size"),
        ({"replay_size": 5, "replay_ratio": -0.5}, "`replay_ratio`.*-0.5"),
        ({"replay_size": -5}, "`replay_size`.*-5"),
        ({"max_new_tokens": 0}, "`max_new_tokens`.*0"),
        ({"temperature": -1.0}, "`temperature`.*-1.0"),
        ({"temperature": float("nan")}, "`temperature`.*nan"),
        ({"top_p": 0.0}, "`top_p`.*0.0"),
        ({"top_k": -1}, "`top_k`.*-1"),
        ({"min_p": 2.0}, "`min_p`.*2.0"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty`.*0.0"),
        ({"generation_batch_size": 0}, "`generation_batch_size`.*0"),
        ({"generation_kwargs": "num_beams=2"}, "generation_kwargs.*JSON"),
        ({"generation_kwargs": ["num_beams"]}, "generation_kwargs.*JSON"),
        ({"generation_kwargs": {"max_new_tokens": 3, "num_beams": 2}}, "can't set max_new_tokens:"),
        ({"generation_kwargs": {"no_repeat_ngramm_size": 3}}, "no_repeat_ngramm_size.*GenerationConfig"),
        ({"lmbda": 1.0, "packing": True, "packing_strategy": "wrapped"}, "`packing_strategy`.*bfd.*wrapped"),
        ({"vllm_mode": "remote"}, "`vllm_mode`.*server.*remote"),
        ({"use_vllm": True, "ds3_gather_for_generation": False}, "ds3_gather_for_generation"),
    ],
)
def test_config_refuses(make_config, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_a_sampling_temperature_without_sampling_is_pointed_out(make_config, caplog):
    make_config(temperature=2.0)
    assert "kd_temperature" in caplog.text
    caplog.clear()
    make_config(temperature=2.0, lmbda=0.5)
    assert not caplog.text


# vLLM


class VLLMServer:
    """Stands in for TRL's client of a vLLM server: completes each prompt with its own length, then EOS."""

    def __init__(self, **kwargs):
        self.kwargs, self.synced, self.asked = kwargs, [], []

    def init_communicator(self, device):
        pass

    def update_named_params(self, metadata, parameters):
        self.synced.append({name: parameter.clone() for name, parameter in parameters})

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, features, **sampling):
        self.asked.append(sampling)
        completions = [[len(prompt), 2] for prompt in prompts]
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}


def test_vllm_server(make_trainer, monkeypatch, batches):
    for module in (vllm, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "VLLMClient", VLLMServer)
    monkeypatch.setattr(vllm, "NO_WAY", {})
    trainer = make_trainer(
        lmbda=1.0, use_vllm=True, vllm_mode="server", vllm_server_port=1234, temperature=0.5, top_p=0.9,
        max_new_tokens=9, generation_kwargs={"seed": 3},
    )  # fmt: skip
    server = trainer.rollouts.samplers["student"].vllm.vllm_client
    before = trainer.model.model.norm.weight.detach().clone()
    trainer.train()
    assert server.kwargs["base_url"] == "http://0.0.0.0:1234"
    assert all(row.input_ids == [*row.prompt, len(row.prompt), 2] for rows in batches for row in rows)
    assert [len(rows) for rows in batches] == [4, 4]
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "n": 1, "generation_kwargs": {"seed": 3}}
    assert all(asked.items() >= wanted.items() for asked in server.asked) and len(server.asked) == 2
    # Every step samples from the weights of the last one
    first, second = (weights["model.norm.weight"] for weights in server.synced)
    assert torch.equal(first, before) and not torch.equal(second, before)
    assert {*server.synced[0]} == {name for name, _ in trainer.model.named_parameters()}


def test_vllm_is_asked_for_by_name_where_it_is_missing(make_trainer, monkeypatch):
    monkeypatch.setattr(vllm, "is_vllm_available", lambda: False)
    with pytest.raises(ImportError, match=r"trl\[vllm\]"):
        make_trainer(lmbda=1.0, use_vllm=True, max_new_tokens=9)
    make_trainer(use_vllm=True).train()  # nothing to generate
    make_trainer(use_vllm=True, seq_kd=True, max_new_tokens=9)  # nothing by the student


def test_vllm_gets_no_weights_from_a_cpu(make_trainer, monkeypatch):
    """TRL says so as an AttributeError of vLLM's in the first step, or a NotImplementedError of a server's client."""
    monkeypatch.setattr(vllm, "is_vllm_available", lambda: True)
    for mode in ("colocate", "server"):
        with pytest.raises(ValueError, match="the student is on a CPU"):
            make_trainer(lmbda=1.0, use_vllm=True, vllm_mode=mode, max_new_tokens=9)
    make_trainer(use_vllm=True, seq_kd=True, max_new_tokens=9)  # nothing by the student


def test_vllm_has_a_length_of_its_own(make_trainer, monkeypatch):
    monkeypatch.setattr(rollouts_package, "VLLMSampler", lambda *args: None)
    fields = {"lmbda": 1.0, "use_vllm": True, "max_new_tokens": 6}
    assert make_trainer(vllm_max_model_length=8, **fields).rollouts.max_prompt == 2
    assert make_trainer(**fields).rollouts.max_prompt == 58
    with pytest.raises(ValueError, match=r"`max_new_tokens`.*6 positions"):
        make_trainer(vllm_max_model_length=6, **fields)
