# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Reading the head of a causal language model."""

from types import SimpleNamespace

import pytest
import torch
from made_models import ARCHITECTURES
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, LlamaForCausalLM, RecurrentGemmaConfig

from trl_tempkd.heads import backbone, check_head, gathered_head, logit_scale, read_head


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_gives_the_logits_of_the_model(make_model, architecture):
    model = make_model(architecture).eval()
    check_head(model)
    input_ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), gathered_head(model) as head:
        hidden = backbone(model)(input_ids=input_ids).last_hidden_state
        torch.testing.assert_close(head.logits(hidden), model(input_ids=input_ids).logits)
    assert head.weight is model.get_output_embeddings().weight  # not a copy: its gradient is the model's


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"model_type": "llama"}, 1.0),
        ({"model_type": "mpt", "logit_scale": None}, 1.0),
        ({"model_type": "cohere", "logit_scale": 0.0625}, 0.0625),
        ({"model_type": "muse_glimmer", "output_multiplier": 0.5}, 0.5),
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.25}, 0.25),
        ({"model_type": "granite", "logits_scaling": 8.0}, 0.125),
        ({"model_type": "minicpm3", "logits_scaling": 10.0}, 0.1),
        ({"model_type": "hyperclovax", "logits_scaling": 8.0}, 8.0),
    ],
)
def test_logit_scales(config, scale):
    assert logit_scale(SimpleNamespace(**config)) == scale


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.4}),
        ("gemma3_text", {"final_logit_softcapping": None}),
        ("gemma3_text", {"final_logit_softcapping": 3.0}),
    ],
)
def test_check_finds_a_scale_or_cap_that_is_read_wrong(make_model, monkeypatch, architecture, change):
    model = make_model(architecture)
    wrong = SimpleNamespace(**{**model.config.to_dict(), "model_type": architecture, **change})
    monkeypatch.setattr(type(model.config), "get_text_config", lambda self, *args, **kwargs: wrong)
    with pytest.raises(ValueError, match=f"{type(model).__name__}.*heads.py"):
        check_head(model)


def test_check_finds_an_unknown_architecture(make_model):
    class Shifted(type(make_model())):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits + torch.arange(outputs.logits.shape[-1])
            return outputs

    model = make_model()
    model.__class__ = Shifted
    model.train()
    with pytest.raises(ValueError, match=r"Shifted.*'llama'.*differ"):
        check_head(model)
    assert model.training


def test_check_in_half_precision(make_model):
    for architecture in ("llama", "gemma3_text", "falcon_h1"):
        check_head(make_model(architecture).to(torch.bfloat16))


def test_recurrent_gemma_names_its_cap_differently(make_model):
    config = RecurrentGemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        lru_width=32, logits_soft_cap=1.0, w_init_variance_scale=1.0, attention_window_size=8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    check_head(model)
    assert read_head(model).final_logit_softcapping == 1.0


def test_adapters(make_model):
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    check_head(model)
    assert backbone(model) is model.base_model.model.model
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert read_head(model).weight.requires_grad  # the trained copy, not the frozen original


def test_refuses_what_has_no_linear_head_of_its_own(make_model):
    model = make_model()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="unquantized"):
        read_head(model)
    model.lm_head = torch.nn.Identity()
    with pytest.raises(ValueError, match="Identity"):
        read_head(model)
    with pytest.raises(ValueError, match="backbone"):
        backbone(model.model)
    bert = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    with pytest.raises(ValueError, match="BertLMHeadModel"):  # a layer and a norm between hidden state and head
        check_head(AutoModelForCausalLM.from_config(bert))


def test_check_refuses_a_head_of_another_width(make_model):
    model = make_model()
    model.lm_head = torch.nn.Linear(48, model.config.vocab_size, bias=False)
    model.forward = lambda **kwargs: SimpleNamespace(logits=torch.zeros(1, 4, model.config.vocab_size))
    with pytest.raises(ValueError, match=r"size 32.*48"):
        check_head(model)


def test_check_passes_over_models_that_are_not_here():
    with torch.device("meta"):
        check_head(LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1)))
