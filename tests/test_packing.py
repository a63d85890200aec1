# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Sequences that lie end to end don't see each other, or the model is refused before it is trained on them."""

from types import SimpleNamespace

import pytest
import torch
from architectures import tiny_model
from made_models import build_tokenizer
from peft import LoraConfig, get_peft_model
from test_trainer import first_batch
from transformers import AttentionInterface, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_tempkd import packing
from trl_tempkd.errors import UsageError
from trl_tempkd.heads import check_head, last_hidden_state
from trl_tempkd.packing import PackingCheck


# What happens without the kernels of `causal_conv1d`, `mamba_ssm` and `flash-linear-attention`, and without flash
# attention: the mask is made from the positions, the positions are counted from the mask or not at all, a recurrence
# or a short convolution runs on, or transformers itself raises.
APART = [
    "codegen", "cohere2", "dbrx", "deepseek_v2", "deepseek_v3", "exaone4", "gemma2", "gemma3_text", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe", "helium", "hunyuan_v1_moe",
    "jetmoe", "llama", "minicpm3", "ministral", "mistral", "mixtral", "nemotron", "olmo2", "olmoe", "phi", "phi3",
    "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
]  # fmt: skip
TOGETHER = [
    "afmoe", "bamba", "bart", "biogpt", "bloom", "doge", "falcon", "falcon_h1", "falcon_mamba", "gpt_oss",
    "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "mamba", "mamba2", "minimax", "mpt", "nemotron_h", "olmo_hybrid",
    "openai-gpt", "opt", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zaya",
]  # fmt: skip
PACKED = {"packing": True, "max_length": 32}
PADDING_FREE = {"padding_free": True, "max_length": None}


def check(model, side="student", **options):
    options = {"packing": True, "packing_strategy": "bfd", "padding_free": False, **options}
    PackingCheck(side, SimpleNamespace(**options)).begin(model)


def difference_of_rows(model):
    """Largest relative difference between the hidden states of three sequences end to end and of each alone."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 90, (length,), generator=generator) for length in (9, 4, 17)]
    collator = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)
    packed = collator([{"input_ids": row.tolist()} for row in rows])
    del packed["labels"]
    with torch.no_grad():
        together = last_hidden_state(model, packed).split([9, 4, 17], dim=1)
        alone = [last_hidden_state(model, {"input_ids": row[None]}) for row in rows]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("architecture", APART)
def test_what_passes_keeps_them_apart(architecture):
    model = tiny_model(architecture)
    check(model)
    assert difference_of_rows(model) < 1e-5  # rotations and routers are in float32


@pytest.mark.parametrize("architecture", TOGETHER)
def test_what_does_not_is_refused(architecture):
    model = tiny_model(architecture)
    with pytest.raises(UsageError, match=r"The student, .*doesn't keep apart.*`packing` \(True\).*Leave `packing`"):
        check(model)
    try:
        assert difference_of_rows(model) > 1e-3
    except ValueError as error:  # of transformers, in the middle of a step
        assert "can't keep packed sequences apart" in str(error)
    check(model, packing=False)  # padded rows are nobody's business
    check(model, packing_strategy="wrapped")  # a row is one sequence by definition


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_single_and_half_precision(dtype):
    for architecture in ("llama", "qwen3_moe", "gemma3_text", "gpt2"):
        check(tiny_model(architecture, dtype=dtype))
    for architecture in ("mamba", "opt", "jamba", "rwkv"):
        with pytest.raises(UsageError, match="doesn't keep apart"):
            check(tiny_model(architecture, dtype=dtype))


def make_vision_language_model():
    tokenizer = build_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).double().eval()


def test_positions_of_several_axes_are_refused():
    model = make_vision_language_model()
    check_head(model)
    with pytest.raises(UsageError, match=r"The teacher, Qwen2VL.*doesn't keep apart"):
        check(model, side="teacher")


@pytest.mark.parametrize(("fields", "option"), [(PACKED, "packing"), (PADDING_FREE, "padding_free")])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_trainer_refuses_either_side(make_trainer, make_model, side, fields, option):
    pair = [make_model(), make_model(seed=1)]
    pair[["student", "teacher"].index(side)] = tiny_model("mamba", dtype=torch.float32)
    with pytest.raises(UsageError, match=f"The {side}, MambaForCausalLM.*`{option}` .True.*Leave `{option}` out"):
        make_trainer(*pair, **fields)
    make_trainer(*pair)


def test_the_base_of_a_student_is_its_own_teacher(make_trainer):
    model = get_peft_model(tiny_model("rwkv", dtype=torch.float32), LoraConfig(target_modules=["key"]))
    with pytest.raises(UsageError, match=r"The student, RwkvForCausalLM"):
        make_trainer(model, kwargs={}, **PACKED, teacher_model_name_or_path="student_base", teacher=None)


def flattened(rows):
    """A collator of one's own: rows end to end, told by their positions alone."""
    ids = [row["input_ids"] for row in rows]
    positions = [list(range(len(row))) for row in ids]
    labels = [[-100, *row[1:]] for row in ids]
    return {
        name: torch.tensor([[value for part in parts for value in part]])
        for name, parts in {"input_ids": ids, "position_ids": positions, "labels": labels}.items()
    }


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_collator_of_ones_own_is_found_at_its_first_batch(make_trainer, make_model, text_dataset, side):
    pair = [make_model(), make_model(seed=1)]
    trainer = make_trainer(*pair, train_dataset=text_dataset, kwargs={"data_collator": flattened})
    trainer.train()
    pair[["student", "teacher"].index(side)] = tiny_model("mamba", dtype=torch.float32)
    trainer = make_trainer(*pair, train_dataset=text_dataset, kwargs={"data_collator": flattened})
    with pytest.raises(UsageError, match=f"The {side}, Mamba.*the data collator lays end to end.*Let it pad the rows"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_mask_beside_positions_that_start_anew(make_trainer, make_model, text_dataset):
    # A mask of ones says that the whole row is one sequence, and the positions are then not looked at for borders
    def collate(rows):
        batch = flattened(rows)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    def padded(rows):
        batch = DataCollatorForLanguageModeling(pad_token_id=1)(rows)
        return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}

    trainer = make_trainer(make_model(), train_dataset=text_dataset, kwargs={"data_collator": collate})
    with pytest.raises(UsageError, match=r"The teacher, Llama.*the data collator lays end to end"):
        trainer.train()
    make_trainer(make_model(), train_dataset=text_dataset, kwargs={"data_collator": padded}).train()


def test_a_sharded_student_is_checked_at_its_first_batch(make_trainer, make_model, monkeypatch):
    monkeypatch.setattr(packing, "is_here", lambda model: False)
    student = tiny_model("mamba", dtype=torch.float32)
    trainer = make_trainer(student, **PACKED)
    trainer.model.train()
    with pytest.raises(UsageError, match="The student, Mamba"):
        trainer.compute_loss(trainer.model, first_batch(trainer))
    assert trainer.model.training
    trainer = make_trainer(**PACKED)
    trainer.train()


def test_a_check_leaves_the_model_as_it_was(make_model):
    model = make_model("gpt2", resid_pdrop=0.5).train()  # dropout would make any two forwards differ
    check(model)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_attention_in_half_precision_runs_as_in_training(make_model):
    seen = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append(query.dtype)
        assert query.dtype == torch.bfloat16, "only fp16 and bf16"
        return torch.zeros_like(query).transpose(1, 2) + value.sum() * 0, None

    AttentionInterface.register("flash_of_the_tests", attention)
    model = make_model("gpt2")
    model.config._attn_implementation = "flash_of_the_tests"
    check_head(model)
    check(model)
    assert len(seen) == 2 * (2 + 3) and model.dtype == torch.float32


def test_evaluation_is_packed_only_as_training_is(make_config):
    with pytest.raises(UsageError, match=r"`eval_packing` is True and `packing` False"):
        make_config(eval_packing=True)
    for training, evaluation, strategy in ((True, True, "bfd"), (True, False, "bfd"), (False, True, "wrapped")):
        make_config(packing=training, eval_packing=evaluation, packing_strategy=strategy)
