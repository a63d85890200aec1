# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The trainer: its loss against logits in full, TRL's data formats, normalisation, resuming, evaluation, refusals."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_models import ARCHITECTURES, SENTENCES
from tokenizers import Tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTTrainer

import trl_tempkd.objectives.step_loss as step_loss_module
from trl_tempkd import KDConfig, TemperatureKDTrainer, kd_loss, meter


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def logits_of(model, inputs):
    return model(**inputs, use_cache=False).logits[:, :-1].float()


def dense_loss(trainer, batch, **overrides):
    """The trainer's loss, computed the plain way: from both models' logits in full."""
    inputs = dict(batch)
    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        teacher_logits = logits_of(trainer.teacher_model, inputs)
    student_logits = logits_of(trainer.model, inputs)
    args = trainer.args
    kwargs = {
        "divergence": args.divergence,
        "divergence_kwargs": args.divergence_kwargs,
        "student_temperature": args.student_kd_temperature or args.kd_temperature,
        "teacher_temperature": args.teacher_kd_temperature or args.kd_temperature,
        "rescale": args.kd_temperature_rescale,
        **overrides,
    }
    keep = labels != -100
    divergence = kd_loss(student_logits[keep], teacher_logits[keep], **kwargs).mean()
    cross_entropy = torch.nn.functional.cross_entropy(student_logits[keep], labels[keep])
    return args.kd_ratio * divergence + (1 - args.kd_ratio) * cross_entropy


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# The loss


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_the_dense_ones(make_trainer, architecture):
    trainer = make_trainer(
        architecture,
        architecture,
        disable_dropout=True,
        divergence="jsd",
        divergence_kwargs={"beta": 0.3},
        teacher_kd_temperature=3.0,
        kd_ratio=0.7,
        kd_chunk_size=5,
    )
    trainer.model.train()
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    expected = dense_loss(trainer, batch)
    if trainer.aux_loss_enabled:  # mixtures of experts
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        aux_loss = trainer.model(**inputs, output_router_logits=True).aux_loss
        expected = expected + trainer.router_aux_loss_coef * aux_loss
        assert trainer.router_aux_loss_coef > 0
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
        else:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_moe_aux_loss_is_trained_and_logged(make_trainer, steps):
    trainer = make_trainer("mixtral", "mixtral", router_aux_loss_coef=0.5, gradient_accumulation_steps=steps)
    trainer.train()
    aux_loss, kd_loss = logged(trainer, "aux_loss")[0], logged(trainer, "kd_loss")[0]
    assert aux_loss > 0.5
    # A mean over micro-batches, while what is logged weighs by tokens
    tolerance = 1e-5 if steps == 1 else 1e-2
    assert logged(trainer, "loss")[0] == pytest.approx(4 * kd_loss + 0.5 * aux_loss, rel=tolerance)


def test_equal_models_have_no_loss_and_no_gradient(make_trainer, make_model):
    model = make_model()
    trainer = make_trainer(model, copy.deepcopy(model), kd_temperature=4.0)
    trainer.train()
    assert abs(logged(trainer, "loss")[0]) < 1e-6
    assert logged(trainer, "grad_norm")[0] < 1e-5
    assert logged(trainer, "token_agreement")[0] == 1.0


def test_kd_ratio_zero_is_sft(make_trainer, make_model, tokenizer, prompt_dataset):
    trainer = make_trainer(kd_ratio=0.0, max_steps=4)
    trainer.train()
    sft = SFTTrainer(make_model(), args=trainer.args, train_dataset=prompt_dataset, processing_class=tokenizer)
    sft.train()
    assert logged(trainer, "loss") == pytest.approx(logged(sft, "loss"), rel=1e-5)
    assert logged(trainer, "ce_loss") == pytest.approx(logged(sft, "loss"), rel=1e-5)


def test_padded_vocabulary(make_trainer, make_model, tokenizer):
    trainer = make_trainer(
        make_model(vocab_size=len(tokenizer) + 3), make_model(seed=1, vocab_size=len(tokenizer) + 8)
    )
    batch = first_batch(trainer)
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), dense_loss(trainer, batch))


def test_teacher_of_another_size_and_dtype(make_trainer, make_model):
    teacher = make_model("qwen3", seed=1, hidden_size=48).to(torch.bfloat16)
    trainer = make_trainer("llama", teacher)
    batch = first_batch(trainer)
    torch.testing.assert_close(
        trainer.compute_loss(trainer.model, batch), dense_loss(trainer, batch), rtol=2e-2, atol=0
    )
    assert trainer.teacher_model.dtype == torch.bfloat16


def test_no_tensor_holds_the_logits_of_all_tokens(make_trainer, tokenizer, monkeypatch):
    # On CPU a chunk is at least one block of rows, which is larger than this whole batch
    monkeypatch.setattr("trl_tempkd.losses.block.BLOCK_ELEMENTS", 4 * len(tokenizer))
    trainer = make_trainer(kd_chunk_size=4)
    batch = first_batch(trainer)
    rows = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() > 1 and out.shape[-1] == len(tokenizer):
                rows.append(out.numel() // len(tokenizer))
            return out

    with Spy():
        trainer.compute_loss(trainer.model, batch).backward()
    hidden_size = trainer.model.config.hidden_size  # a transposed weight
    assert (batch["labels"] != -100).sum() > 4 and 4 in rows
    assert set(rows) - {hidden_size} <= set(range(5))


def test_batch_without_labels(make_trainer):
    trainer = make_trainer()
    batch = first_batch(trainer)
    batch["labels"][:] = -100
    for kwargs in ({}, {"num_items_in_batch": torch.tensor(0)}):
        loss = trainer.compute_loss(trainer.model, batch, **kwargs)
        loss.backward()
        assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


# Data formats


FORMATS = {
    "text": ("text_dataset", {}),
    "prompt-completion": ("prompt_dataset", {}),
    "whole sequence": ("prompt_dataset", {"completion_only_loss": False}),
    "conversational": ("chat_dataset", {}),
    "assistant only": ("chat_dataset", {"assistant_only_loss": True}),
    "bfd": ("prompt_dataset", {"packing": True, "max_length": 32}),
    "bfd_split": ("text_dataset", {"packing": True, "max_length": 8, "packing_strategy": "bfd_split"}),
    "wrapped": ("text_dataset", {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}),
    "padding-free": ("prompt_dataset", {"padding_free": True, "max_length": None}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_data_formats(make_trainer, request, name):
    dataset, fields = FORMATS[name]
    trainer = make_trainer(train_dataset=request.getfixturevalue(dataset), per_device_train_batch_size=2, **fields)
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(loss, dense_loss(trainer, batch))
    # What transformers counts is what the loss sees, so passing the count changes nothing
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch, num_items_in_batch=count), loss)
    trainer.train()
    assert logged(trainer, "loss")[0] > 0


@pytest.mark.parametrize("fields", [FORMATS["bfd"][1], FORMATS["padding-free"][1]], ids=["bfd", "padding-free"])
def test_packing_changes_no_token(make_trainer, text_dataset, fields):
    # The first token of a document has no predecessor, also when another document stands before it
    losses = []
    for kwargs in ({}, fields):
        trainer = make_trainer(
            train_dataset=text_dataset, eval_dataset=text_dataset, per_device_eval_batch_size=4, **kwargs
        )
        losses.append(trainer.evaluate())
    for name in ("eval_loss", "eval_kl_tau1", "eval_ce_loss", "eval_student_entropy"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5)


# Normalisation


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_accumulation_is_exact(make_trainer, text_dataset, architecture):
    # Rows of different lengths, so a mean of means would differ. GPT-2: absolute positions, and a class name from
    # which transformers doesn't tell that the labels are shifted.
    results = []
    for batch_size, steps in ((4, 1), (1, 4)):
        trainer = make_trainer(
            architecture,
            architecture,
            train_dataset=text_dataset,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            disable_dropout=True,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=0.1,
            router_aux_loss_coef=0.0 if architecture == "mixtral" else None,  # a mean per batch by definition
        )
        if batch_size == 4:
            expected = dense_loss(trainer, first_batch(trainer)).item()
        trainer.train()
        assert logged(trainer, "loss")[0] == pytest.approx(expected, rel=1e-5)
        results.append(({n: logged(trainer, n) for n in ("loss", "kl_tau1", "num_tokens")}, parameters(trainer.model)))
    for name, values in results[0][0].items():
        assert values == pytest.approx(results[1][0][name], rel=1e-5), name
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(make_trainer, use_reentrant):
    plain = make_trainer()
    plain.train()
    fields = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    checkpointed = make_trainer(**fields)
    checkpointed.train()
    assert checkpointed.model.is_gradient_checkpointing
    assert logged(plain, "loss") == pytest.approx(logged(checkpointed, "loss"), rel=1e-5)
    torch.testing.assert_close(parameters(plain.model), parameters(checkpointed.model))


def test_bf16(make_trainer):
    exact = make_trainer()
    exact.train()
    mixed = make_trainer(bf16=True)
    dtypes = {}
    for name, model in (("student", mixed.model), ("teacher", mixed.teacher_model)):
        projection = model.model.layers[0].mlp.up_proj
        projection.register_forward_hook(lambda m, i, output, name=name: dtypes.update({name: output.dtype}))
    mixed.train()
    assert dtypes == {"student": torch.bfloat16, "teacher": torch.bfloat16}
    assert mixed.model.dtype == torch.float32
    assert logged(mixed, "loss") == pytest.approx(logged(exact, "loss"), rel=3e-2)
    assert logged(mixed, "loss") != logged(exact, "loss")


# Temperature


@pytest.fixture
def calls(monkeypatch):
    """Keyword arguments of every call of the loss."""
    seen = []
    loss = step_loss_module.chunked_kd_loss

    def spy(*args, **kwargs):
        seen.append(kwargs)
        return loss(*args, **kwargs)

    monkeypatch.setattr(step_loss_module, "chunked_kd_loss", spy)
    return seen


def test_schedule_reaches_both_sides(make_trainer, calls):
    fields = {"kd_temperature": 4.0, "kd_temperature_schedule": "linear", "kd_temperature_final": 2.0}
    trainer = make_trainer(max_steps=4, **fields)
    trainer.train()
    assert logged(trainer, "kd_temperature") == pytest.approx([4.0, 3.5, 3.0, 2.5])
    for side in ("student_temperature", "teacher_temperature"):
        assert [call[side] for call in calls] == pytest.approx([4.0, 3.5, 3.0, 2.5])


def test_one_sided_temperature(make_trainer, calls):
    fields = {"kd_temperature": 4.0, "kd_temperature_schedule": "linear", "kd_temperature_final": 2.0}
    trainer = make_trainer(student_kd_temperature=1.0, **fields)
    trainer.train()
    assert [call["student_temperature"] for call in calls] == [1.0, 1.0]
    assert [call["teacher_temperature"] for call in calls] == pytest.approx([4.0, 3.0])
    assert logged(trainer, "student_kd_temperature") == [1.0, 1.0]
    assert logged(trainer, "teacher_kd_temperature") == pytest.approx([4.0, 3.0])


def test_resume_reproduces_the_run(make_trainer, tmp_path):
    fields = {
        "max_steps": 6,
        "kd_temperature_schedule": "cosine",
        "kd_temperature_final": 1.0,
        "kd_ratio": 0.5,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
    }
    whole = make_trainer("gpt2", "gpt2", save_strategy="steps", save_steps=3, **fields)
    whole.train()
    resumed = make_trainer("gpt2", "gpt2", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    for name in ("loss", "kd_temperature", "kl_tau1", "num_tokens"):
        assert len(logged(resumed, name)) == 6
        assert logged(resumed, name) == logged(whole, name)
    torch.testing.assert_close(parameters(resumed.model), parameters(whole.model), rtol=0, atol=0)


# Metrics and evaluation


def test_metrics_of_a_step(make_trainer):
    trainer = make_trainer(kd_temperature=3.0, kd_ratio=0.5, max_steps=1)
    inputs = dict(first_batch(trainer))
    labels = inputs["labels"][:, 1:]
    keep = labels != -100
    batch = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.no_grad():
        student, teacher = (logits_of(m, batch)[keep] for m in (trainer.model, trainer.teacher_model))
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    expected = {
        "kd_loss": dense_loss(trainer, inputs, rescale="none").item() * 2
        - torch.nn.functional.cross_entropy(student, labels[keep]).item(),
        "ce_loss": torch.nn.functional.cross_entropy(student, labels[keep]).item(),
        "kl_tau1": (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        "student_entropy": -(log_q.exp() * log_q).sum(-1).mean().item(),
        "teacher_entropy": -(log_p.exp() * log_p).sum(-1).mean().item(),
        "token_agreement": (student.argmax(-1) == teacher.argmax(-1)).float().mean().item(),
        "kd_temperature": 3.0,
        "num_tokens": inputs["attention_mask"].sum().item(),
    }
    trainer.train()
    entry = trainer.state.log_history[0]
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert entry["loss"] == pytest.approx(0.5 * 9 * entry["kd_loss"] + 0.5 * entry["ce_loss"], rel=1e-5)
    assert entry["tokens_per_second"] > 0


def test_metrics_are_computed_only_where_they_are_logged(make_trainer, prompt_dataset, calls):
    trainer = make_trainer(
        max_steps=5, logging_steps=2, logging_first_step=True, eval_strategy="steps", eval_steps=5,
        eval_dataset=prompt_dataset,
    )  # fmt: skip
    trainer.train()
    # The first step, every second one, the last one, and the evaluation
    assert [bool(call["metrics"]) for call in calls] == [True, True, False, True, True, True]
    assert len(logged(trainer, "kl_tau1")) == 4
    # Counted over all steps, logged or not
    assert logged(trainer, "num_tokens")[-1] > 4 * 4 * 4


def test_tokens_per_second_is_about_training(make_trainer, prompt_dataset, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(meter, "time", clock)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            clock.now += 2

        def on_prediction_step(self, *args, **kwargs):
            clock.now += 100

    trainer = make_trainer(
        eval_dataset=prompt_dataset, eval_strategy="steps", eval_steps=1, kwargs={"callbacks": [Ticks()]}
    )
    trainer.train()
    seen = logged(trainer, "num_tokens")
    assert seen[1] == sum(map(len, trainer.train_dataset["input_ids"]))
    assert logged(trainer, "tokens_per_second") == [seen[0] / 2, (seen[1] - seen[0]) / 2]


def test_an_interrupted_evaluation_leaves_nothing(make_trainer, text_dataset):
    expected = make_trainer(eval_dataset=text_dataset, per_device_eval_batch_size=2).evaluate()

    class Interrupt(TrainerCallback):
        def on_prediction_step(self, *args, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer(
        eval_dataset=text_dataset, per_device_eval_batch_size=2, kwargs={"callbacks": [interrupt := Interrupt()]}
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    trainer.remove_callback(interrupt)
    assert trainer.evaluate()["eval_kl_tau1"] == expected["eval_kl_tau1"]


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_logging_strategies(make_trainer, strategy, calls):
    trainer = make_trainer(logging_strategy=strategy)
    trainer.train()
    assert [bool(call["metrics"]) for call in calls] == [strategy == "epoch"] * 2
    assert len(logged(trainer, "kl_tau1")) == (strategy == "epoch")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_weighs_every_token_the_same(make_trainer, text_dataset, batch_size):
    trainer = make_trainer(eval_dataset=text_dataset, per_device_eval_batch_size=batch_size, kd_ratio=0.5)
    everything = trainer.data_collator(list(trainer.eval_dataset.select_columns(["input_ids", "labels"])))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(dense_loss(trainer, everything).item(), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(2 * metrics["eval_kd_loss"] + 0.5 * metrics["eval_ce_loss"], rel=1e-5)
    assert metrics["eval_kd_temperature"] == 2.0
    assert trainer.state.log_history[-1]["eval_kl_tau1"] == metrics["eval_kl_tau1"]


def test_evaluation_sets_keep_their_names_and_current_tau(make_trainer, text_dataset, prompt_dataset):
    trainer = make_trainer(
        eval_dataset={"a": text_dataset, "b": prompt_dataset},
        eval_strategy="steps",
        eval_steps=2,
        kd_temperature_schedule="linear",
        kd_temperature_final=1.0,
    )
    trainer.train()
    a, b = logged(trainer, "eval_a_kl_tau1"), logged(trainer, "eval_b_kl_tau1")
    assert len(a) == len(b) == 1 and a != b
    assert logged(trainer, "eval_a_kd_temperature") == [1.0]  # the schedule has reached its end
    assert logged(trainer, "eval_b_loss") == pytest.approx(logged(trainer, "eval_b_kd_loss"), rel=1e-5)


def test_predict_gives_the_logits(make_trainer, text_dataset, tokenizer):
    trainer = make_trainer(eval_dataset=text_dataset)
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions.shape[0] == len(text_dataset) and output.predictions.shape[-1] == len(tokenizer)
    assert output.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


# The teacher


def test_teacher_is_untouched(make_trainer, make_model, tmp_path):
    teacher = make_model("gpt2", seed=1)  # with dropout, which must stay off
    before = parameters(teacher)
    trainer = make_trainer("llama", teacher, save_strategy="steps", save_steps=2)
    student = parameters(trainer.model)
    trainer.train()
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    torch.testing.assert_close(parameters(teacher), before, rtol=0, atol=0)
    assert any((p != student[name]).any() for name, p in trainer.model.named_parameters())
    assert json.loads((tmp_path / "out" / "checkpoint-2" / "config.json").read_text())["model_type"] == "llama"
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}


def test_models_by_name(make_model, make_config, tokenizer, prompt_dataset, tmp_path):
    for name, model in {"student": make_model(), "teacher": make_model(seed=1).to(torch.bfloat16)}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    trainer = TemperatureKDTrainer(
        str(tmp_path / "student"),
        args=make_config(teacher_model_name_or_path=str(tmp_path / "teacher")),
        train_dataset=prompt_dataset,
    )
    assert trainer.model.dtype == torch.float32  # to be trained
    assert trainer.teacher_model.dtype == torch.bfloat16  # as saved
    trainer.train()
    assert logged(trainer, "loss")[0] > 0
    trainer = TemperatureKDTrainer(
        str(tmp_path / "student"),
        str(tmp_path / "teacher"),  # before the name in the configuration
        make_config(teacher_model_name_or_path="nowhere", teacher_model_init_kwargs={"dtype": "float32"}),
        train_dataset=prompt_dataset,
    )
    assert trainer.teacher_model.dtype == torch.float32


def test_default_args(make_model, tokenizer, prompt_dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    bf16 = "transformers.training_args.is_torch_bf16_gpu_available"  # TRL's default
    monkeypatch.setattr(bf16, lambda: True)
    model = make_model()
    model.config._name_or_path = "somewhere/student"
    trainer = TemperatureKDTrainer(model, make_model(seed=1), train_dataset=prompt_dataset, processing_class=tokenizer)
    assert isinstance(trainer.args, KDConfig) and Path(trainer.args.output_dir).name == "student-KD"


# Refusals


def test_refuses_to_train_without_a_teacher(make_trainer, make_config, make_model, prompt_dataset, tokenizer):
    with pytest.raises(ValueError, match="teacher_model_name_or_path"):
        TemperatureKDTrainer(
            make_model(), args=make_config(), train_dataset=prompt_dataset, processing_class=tokenizer
        )


def test_refuses_a_teacher_that_is_the_student(make_trainer, make_model):
    model = make_model()
    with pytest.raises(ValueError, match=r"shares .* parameters"):
        make_trainer(model, model)


def test_refuses_other_kinds_of_arguments(make_trainer, make_model, make_config, prompt_dataset):
    with pytest.raises(TypeError, match="KDConfig"):
        TemperatureKDTrainer(make_model(), make_model(), {"divergence": "jsd"}, train_dataset=prompt_dataset)
    with pytest.raises(ValueError, match="compute_loss_func"):
        make_trainer(kwargs={"compute_loss_func": lambda *args, **kwargs: 0})
    with pytest.raises(ValueError, match="teacher_model_init_kwargs"):
        make_trainer(teacher_model_init_kwargs={"dtype": "auto"})
    with pytest.raises(ValueError, match="teacher_model_revision"):
        make_trainer(teacher_model_revision="main")


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_refuses_logits_that_it_cannot_compute(make_trainer, make_model, side):
    class Scaled(type(make_model())):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits * 2
            return outputs

    model = make_model(seed=2)
    model.__class__ = Scaled
    with pytest.raises(ValueError, match="Scaled"):
        make_trainer(**{side: model})


def test_refuses_a_vocabulary_of_another_size(make_trainer, make_model, tokenizer):
    with pytest.raises(ValueError, match="same tokenizer"):  # can't even read the student's tokens
        make_trainer("llama", make_model(vocab_size=len(tokenizer) - 1))
    with pytest.raises(ValueError, match="same tokenizer"):  # more than padding
        make_trainer("llama", make_model(vocab_size=len(tokenizer) + 2000))


def test_compares_the_tokenizers(make_trainer, make_model, tokenizer, tmp_path):
    teacher = make_model(seed=1)
    teacher.config._name_or_path = str(tmp_path)
    make_trainer("llama", teacher)  # no tokenizer there: sizes only

    def with_swapped_tokens(a, b):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        vocab, added = state["model"]["vocab"], state["added_tokens"]
        if a in vocab and b in vocab:
            vocab[a], vocab[b] = vocab[b], vocab[a]
        for token in added:  # rename a reserved one
            if token["content"] == a and b not in vocab:
                token["content"] = b
                vocab[b] = vocab.pop(a)
        other = Tokenizer.from_str(json.dumps(state))
        PreTrainedTokenizerFast(tokenizer_object=other, pad_token="<pad>").save_pretrained(tmp_path)

    with_swapped_tokens("<|system|>", "<|reserved|>")
    make_trainer("llama", teacher)
    with_swapped_tokens("a", "b")
    with pytest.raises(ValueError, match=r"2 ids mean different tokens.*`vocabulary_alignment`"):
        make_trainer("llama", teacher)


# The model card


def test_model_card(make_trainer, tmp_path):
    trainer = make_trainer(
        divergence="jsd", divergence_kwargs={"beta": 0.3}, student_kd_temperature=1.0, kd_temperature=4.0,
        kd_temperature_schedule="linear", kd_temperature_final=2.0,
    )  # fmt: skip
    trainer.create_model_card(model_name="student")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("temperature-kd", "jsd beta 0.3", "student tau 1.0", "teacher tau 4.0 to 2.0 (linear)",
                 "2606.00306", "1503.02531", "tau2"):  # fmt: skip
        assert text in card
    assert len(SENTENCES) == 8  # the data of these tests
