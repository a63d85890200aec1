# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Students and teachers that see: images travel with rows, and each model's processor makes its own pixels."""

from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from vision_models import processor_of, rows, vision_model

from trl_tempkd import TemperatureKDTrainer, kd_loss
from trl_tempkd.heads import last_hidden_state, read_head
from trl_tempkd.vision import Processing, VisionCollator


MEAN = {"rescale": "tau2", "reduction": "mean"}
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "llava_next", "internvl")


@pytest.fixture
def train(make_config) -> Callable[..., TemperatureKDTrainer]:
    """`train(student, teacher, **fields)`: a trainer of models in memory, on rows with images."""

    def make(student, teacher, data=None, processor=None, eval_dataset=None, kwargs=None, **fields):
        return TemperatureKDTrainer(
            student,
            teacher,
            make_config(**fields),
            train_dataset=Dataset.from_list(rows()) if data is None else data,
            eval_dataset=eval_dataset,
            processing_class=processor,
            **(kwargs or {}),
        )

    return make


@pytest.fixture
def saved(tmp_path) -> Callable[..., str]:
    """`saved(family, seed)`: a folder of a model and its processor."""

    def save(family, seed=0, dtype=torch.float32, settings=None, **text):
        folder = tmp_path / f"{family}-{seed}"
        vision_model(family, seed, dtype, **text).save_pretrained(folder)
        processor_of(family, **(settings or {})).save_pretrained(folder)
        return str(folder)

    return save


def logits_of(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    pixels = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    return model(**pixels).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_and_the_head_are_the_models_own_logits(float64, family):
    model = vision_model(family, dtype=torch.float64)
    batch = VisionCollator(Processing(processor_of(family)))(rows())
    hidden = last_hidden_state(model, {name: value for name, value in batch.items() if name != "labels"})
    expected = logits_of(model, batch)
    torch.testing.assert_close(read_head(model).logits(hidden), expected, atol=1e-9, rtol=0)
    others = logits_of(model, VisionCollator(Processing(processor_of(family)))(rows(seed=9)))
    assert (others - expected)[0].abs().max() > 1e-3  # the pixels count
    assert (others - expected)[2][batch["attention_mask"][2].bool()].abs().max() < 1e-9  # it has none


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_batch_is_that_of_the_models_own_logits(float64, train, family):
    student, teacher = (vision_model(family, seed, torch.float64) for seed in (0, 1))
    trainer = train(student, teacher, processor=processor_of(family), divergence="jsd", kd_temperature=2.0)
    batch = trainer.data_collator(rows())
    loss = trainer.compute_loss(trainer.model, dict(batch))
    mine, theirs = (logits_of(model, batch)[:, :-1].flatten(0, 1) for model in (student, teacher))
    labels = batch["labels"][:, 1:].flatten()
    expected = kd_loss(
        mine, theirs, divergence="jsd", student_temperature=2.0, teacher_temperature=2.0, labels=labels, **MEAN
    )
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=0)
