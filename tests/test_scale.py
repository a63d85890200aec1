# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""docs/scale.md: its tables are what benchmarks/memory.py prints, whose models are those of transformers."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trl_tempkd.launch import ACCELERATE_CONFIGS


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")

spec = importlib.util.spec_from_file_location("memory", ROOT / "benchmarks/memory.py")
memory = sys.modules["memory"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)


def test_the_tables_are_what_the_script_prints(capsys):
    memory.main([])
    assert capsys.readouterr().out in PAGE, "put the output of `python benchmarks/memory.py` into docs/scale.md"


def test_every_config_is_explained():
    assert memory.CONFIGS == ACCELERATE_CONFIGS
    for name in ACCELERATE_CONFIGS:
        assert f"| `{name}` |" in PAGE, name


@pytest.mark.parametrize("name", memory.SHAPES)
def test_the_parameters_are_those_of_transformers(name):
    shape = memory.SHAPES[name]
    config = AutoConfig.for_model(
        shape.model_type,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        assert model.num_parameters() == shape.parameters
        assert sum(p.numel() for p in model.model.layers[0].parameters()) == shape.layer
        projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=projections))
    assert adapted.get_nb_trainable_parameters()[0] == shape.lora(8)


def test_options(capsys):
    command = "--teacher llama3.1-70b --student llama3.1-8b --gpus 16 --configs zero3 --rollout-rows 8"
    memory.main([*command.split(), "--gather-for-generation"])
    shown = capsys.readouterr().out
    assert "llama3.1-70b to llama3.1-8b, 4096 tokens per GPU, on-policy, 8 rows" in shown
    assert shown.count("| `zero3` | 16 |") == 1
    for mistake in ("--student gpt", "--gpus 0"):
        with pytest.raises(SystemExit):
            memory.main(mistake.split())


def test_what_more_gpus_and_less_work_do():
    setup = memory.Setup(memory.SHAPES["llama3.1-8b"], memory.SHAPES["llama3.1-70b"])
    parts = memory.memory(setup)

    def peak(**changes) -> float:
        return memory.peak(memory.memory(memory.replace(setup, **changes)))

    assert parts["teacher"] == 2 * setup.teacher.parameters / 8
    assert parts["AdamW"] == 16 * setup.student.parameters / 8
    assert peak(gpus=16) < peak()
    assert peak(tokens=1024) < peak()
    assert peak(lora_rank=8) < peak()
    assert peak(offload_optimizer=True) == peak() - parts["AdamW"]
    assert peak(config="zero2") > peak(config="zero3")
    assert peak(rollout_rows=1) == peak()  # generation and training take turns
    assert peak(rollout_rows=256) > peak(rollout_rows=128) > peak()
