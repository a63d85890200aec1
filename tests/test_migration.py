# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Configurations of TRL's distillation trainers: the same run here."""

import dataclasses
from pathlib import Path

import pytest
import torch
from trl import SFTConfig
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig
from trl.experimental.server_distillation import ServerDistillationConfig

from trl_tempkd import KDConfig, TemperatureKDTrainer, from_trl
from trl_tempkd.errors import UsageError


try:
    from trl import DistillationConfig
except ImportError:
    from trl.experimental.distillation import DistillationConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of TRL's own configurations
CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.mark.parametrize(
    ("cls", "options", "wanted"),
    [
        (GKDConfig, {}, {"lmbda": 0.5, "divergence": "jsd", "divergence_kwargs": {"beta": 0.5}, "temperature": 0.9}),
        (GKDConfig, {"beta": 0.0, "lmbda": 0.0}, {"divergence": "forward_kl", "kd_temperature": 1.0, "lmbda": 0.0}),
        (GKDConfig, {"beta": 1, "max_new_tokens": 7}, {"divergence": "reverse_kl", "max_new_tokens": 7}),
        (DistillationConfig, {}, {"lmbda": 1.0, "divergence": "reverse_kl", "learning_rate": 1e-6}),
        (DistillationConfig, {"temperature": 0.7}, {"temperature": 0.7, "kd_temperature": 0.7}),
        (DistillationConfig, {"max_completion_length": 9}, {"max_new_tokens": 9, "shuffle_dataset": True}),
        (
            ServerDistillationConfig,
            {"teacher_model_server_url": "http://localhost:1", "loss_top_k": 5, "beta": 0.0},
            {"teacher_server_url": "http://localhost:1", "teacher_server_logprobs": 5, "lmbda": 1.0},
        ),
        (GOLDConfig, {}, {"lmbda": 0.5, "top_p": 0.95, "kd_temperature": 0.9, "max_new_tokens": 128}),
        (
            GOLDConfig,
            {"use_uld_loss": True, "uld_crossentropy_weight": 1.0, "uld_student_temperature": 2.0, "lmbda": 0.0},
            {"vocabulary_alignment": "uld", "divergence": "tvd", "kd_ratio": 0.5, "student_kd_temperature": 2.0},
        ),
        (SFTConfig, {"packing": True, "max_length": 77}, {"packing": True, "max_length": 77, "lmbda": 0.0}),
    ],
)
def test_each_of_them(cls, options, wanted, tmp_path):
    found = from_trl(cls(output_dir=str(tmp_path), **CPU, **options))
    assert isinstance(found, KDConfig)
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert found.kd_temperature_rescale == "none"


def test_all_of_the_rest_is_kept(tmp_path):
    """What isn't about distillation is TRL's own, at whatever it is set to."""
    config = GKDConfig(output_dir=str(tmp_path), **CPU, max_steps=3, weight_decay=0.3, assistant_only_loss=True)
    found = from_trl(config)
    inherited = [field.name for field in dataclasses.fields(SFTConfig) if field.init]
    assert [name for name in inherited if getattr(found, name) != getattr(config, name)] == []


def test_changes_win(tmp_path):
    config = GKDConfig(output_dir=str(tmp_path), **CPU)
    changes = {"kd_temperature": 2.0, "kd_temperature_rescale": "tau2", "divergence": "tvd", "divergence_kwargs": None}
    found = from_trl(config, **changes)
    assert {name: getattr(found, name) for name in changes} == changes
    with pytest.raises(TypeError, match="KDConfig has no `kd_temprature`"):
        from_trl(config, kd_temprature=2.0)


def test_what_is_left_out_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("trl_tempkd.migration.logger.warning", said.append)
    from_trl(DistillationConfig(output_dir=str(tmp_path), **CPU))
    assert said == []
    from_trl(GOLDConfig(output_dir=str(tmp_path), **CPU, lmbda=0.0, num_generations=1, uld_skip_student_eos=False))
    assert len(said) == 1 and said[0].startswith("`uld_skip_student_eos` is False: it is for a teacher with another")


def test_what_is_none_of_them(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(UsageError, match=r"must be one of TRL's GKDConfig, .*, got TrainingArguments"):
        from_trl(TrainingArguments(output_dir=str(tmp_path)))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_first_loss_is_that_of_gkd(beta, tmp_path, make_model, tokenizer, chat_dataset):
    """Of the same rows, with the same two models."""
    config = GKDConfig(output_dir=str(tmp_path), **CPU, beta=beta, lmbda=0.0, max_length=48, max_steps=1)
    models = {"model": make_model("llama"), "teacher_model": make_model("llama", seed=1)}
    rest = {"train_dataset": chat_dataset, "processing_class": tokenizer}
    theirs = GKDTrainer(**models, args=config, **rest)
    batch = next(iter(theirs.get_train_dataloader()))
    wanted = theirs.compute_loss(theirs.model.eval(), batch).item()
    ours = TemperatureKDTrainer(**models, args=from_trl(config, assistant_only_loss=True), **rest)
    ours.model.eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    count = (batch["labels"][:, 1:] != -100).sum()
    with torch.no_grad():
        found = ours.compute_loss(ours.model, inputs, num_items_in_batch=count).item()
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_defaults_of_the_page():
    """docs/from_trl.md, "Defaults"."""
    page = (Path(__file__).parent.parent / "docs/from_trl.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:3] == "| `"]
    classes = [GKDConfig, DistillationConfig, ServerDistillationConfig, GOLDConfig, KDConfig]
    found = 0
    for option, *cells in (row for row in rows if len(row) == 6):
        names = option.replace("`", "").split(" or ")
        for cls, cell in zip(classes, cells, strict=True):
            defaults = {field.name: field.default for field in dataclasses.fields(cls)}
            own = [defaults[name] for name in names if name in defaults]
            if cell == "" or cell.startswith("("):
                assert own == []
            else:
                assert str(own[0]) == cell, (cls.__name__, option)
                found += 1
    assert found >= 40
