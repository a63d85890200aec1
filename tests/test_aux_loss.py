# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The auxiliary loss of a mixture of experts is the model's own, and none where it has none."""

import logging

import pytest
import torch
from architectures import tiny_model
from peft import LoraConfig, get_peft_model
from test_trainer import first_batch, logged

from trl_tempkd.routers import run_backbone


# Those that compute one themselves
OWN = [
    "dbrx", "doge", "ernie4_5_moe", "flex_olmo", "gpt_oss", "granitemoe", "granitemoehybrid", "granitemoeshared",
    "jamba", "jetmoe", "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next",
]  # fmt: skip
# Mixtures, some of which say what their routers chose, but without a loss of their own
NONE = [
    "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "exaone_moe", "glm4_moe", "glm4_moe_lite",
    "hunyuan_v1_moe", "hy_v3", "lfm2_moe", "longcat_flash", "mimo_v2_flash", "nemotron_h", "solar_open", "zaya",
]  # fmt: skip
# Without a router at all, of families that have mixtures too and a coefficient by default
DENSE = {
    "granitemoehybrid": {"num_local_experts": 0, "num_experts_per_tok": 0, "layer_types": ["attention"] * 2},
    "doge": {"is_moe": False},
}


def native(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, output_router_logits=True, use_cache=False).aux_loss


@pytest.fixture
def make_moe_trainer(make_trainer, make_model):
    """A trainer of a model and a dense teacher, in float64."""

    def make(model, **fields):
        return make_trainer(model, make_model(seed=1).double(), disable_dropout=True, **fields)

    return make


@pytest.mark.parametrize("coefficient", [None, 0.5])
@pytest.mark.parametrize("architecture", OWN)
def test_it_is_the_models_own(make_moe_trainer, architecture, coefficient):
    trainer = make_moe_trainer(tiny_model(architecture), router_aux_loss_coef=coefficient)
    batch = first_batch(trainer)
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].numel()  # there is padding to be left out
    loss = trainer.compute_loss(trainer.model, batch)
    expected = trainer.router_aux_loss_coef * native(trainer.model, batch)
    trainer.aux_loss_enabled = False
    without = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, without + expected, rtol=1e-9, atol=1e-9)
    assert architecture in ("dbrx", "jetmoe") or trainer.router_aux_loss_coef > 0  # TRL reads it under one name only


@pytest.mark.parametrize("architecture", ["doge", "granitemoeshared", "jetmoe", "phimoe"])
def test_gradients_are_the_models_own(architecture):
    model = tiny_model(architecture)
    ids = torch.arange(3, 15).view(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])}
    _, aux_loss = run_backbone(model, inputs, aux_loss=True)
    aux_loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model(**inputs, output_router_logits=True, use_cache=False).aux_loss.backward()
    assert any(gradient is not None for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
        else:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "granitemoeshared"])
def test_padding_free_batches_have_no_mask(make_moe_trainer, architecture):
    trainer = make_moe_trainer(tiny_model(architecture), padding_free=True, max_length=None)
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    expected = trainer.router_aux_loss_coef * native(trainer.model, batch)
    trainer.aux_loss_enabled = False
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, batch) + expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", NONE)
def test_a_model_without_one_is_trained_without_one(make_moe_trainer, architecture):
    model = tiny_model(architecture)
    batch = first_batch(plain := make_moe_trainer(model))
    expected = plain.compute_loss(model, batch)
    trainer = make_moe_trainer(model, router_aux_loss_coef=0.25, max_steps=1)
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected, rtol=1e-12, atol=1e-12)


def test_it_says_once_that_there_is_none(make_moe_trainer, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("trl_tempkd.routers"), "warning_once", said.append, raising=False)
    trainer = make_moe_trainer(tiny_model("deepseek_v3"), router_aux_loss_coef=0.25)
    trainer.train()
    assert "aux_loss" not in trainer.state.log_history[0] and logged(trainer, "kd_loss")
    assert "`router_aux_loss_coef` is 0.25" in said[0] and "DeepseekV3ForCausalLM" in said[0]
    make_moe_trainer(tiny_model("deepseek_v3"), max_steps=1).train()
    assert len(said) == 2  # a coefficient that nobody asked for has nothing to say


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_it_says_that_reentrant_checkpointing_hides_the_routers(monkeypatch, use_reentrant):
    said = []
    monkeypatch.setattr(logging.getLogger("trl_tempkd.routers"), "warning_once", said.append, raising=False)
    model = tiny_model("mixtral").train()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    _, aux_loss = run_backbone(model, {"input_ids": torch.arange(3, 9)[None]}, aux_loss=True)
    assert aux_loss.requires_grad is not use_reentrant
    assert ["use_reentrant" in line for line in said] == [True] * use_reentrant


@pytest.mark.parametrize("coefficient", [None, 0.25])
@pytest.mark.parametrize("architecture", DENSE)
def test_a_dense_model_of_the_family_trains(make_moe_trainer, architecture, coefficient):
    model = tiny_model(architecture, **DENSE[architecture])
    trainer = make_moe_trainer(model, router_aux_loss_coef=coefficient, max_steps=1)
    trainer.train()
    assert "aux_loss" not in trainer.state.log_history[0] and logged(trainer, "kd_loss")
    with torch.no_grad():
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)


@pytest.mark.parametrize("architecture", ["granitemoe", "gpt_oss", "jetmoe"])
def test_training_and_evaluation_log_it(make_moe_trainer, prompt_dataset, architecture):
    trainer = make_moe_trainer(tiny_model(architecture), router_aux_loss_coef=0.5, eval_dataset=prompt_dataset)
    trainer.train()
    assert logged(trainer, "aux_loss")[0] > 0.5
    assert trainer.evaluate()["eval_aux_loss"] > 0.5


def test_an_adapter_leaves_it_the_models_own(make_moe_trainer):
    model = get_peft_model(tiny_model("qwen3_moe"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    trainer = make_moe_trainer(model, router_aux_loss_coef=0.5)
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    expected = 0.5 * native(trainer.model, batch)
    trainer.aux_loss_enabled = False
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, batch) + expected, rtol=1e-9, atol=1e-9)


def test_the_models_own_code_runs_once_more_without_a_head():
    # ... over outputs that are there: nothing is computed twice, and no logits are built
    model = tiny_model("mixtral")
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append("backbone"))
    model.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    inputs = {"input_ids": torch.arange(3, 9)[None]}
    _, aux_loss = run_backbone(model, inputs, aux_loss=True)
    assert calls == ["backbone"] and aux_loss is not None
    assert model.model in model.children() and model(**inputs).logits.shape[-1] == model.config.vocab_size


def test_a_formula_of_its_own_is_used(make_moe_trainer):
    model = tiny_model("mixtral")

    class Squared(type(model)):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.aux_loss = sum(logits.square().mean() for logits in outputs.router_logits or ())
            return outputs

    model.__class__ = Squared
    ids = torch.arange(3, 9)[None]
    _, aux_loss = run_backbone(model, {"input_ids": ids}, aux_loss=True)
    torch.testing.assert_close(aux_loss, model(ids, output_router_logits=True).aux_loss, rtol=1e-12, atol=1e-12)
