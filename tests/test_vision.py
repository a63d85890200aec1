# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Students and teachers that see: images travel with rows, and each model's processor makes its own pixels."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from vision_models import chat_rows, processor_of, rows, vision_model

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


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("gemma3", "qwen3_vl"), ("qwen2_5_vl", "qwen3_vl"), ("internvl", "idefics3"), ("idefics3", "llava_next")],
)
def test_a_teacher_of_another_family_sees_by_its_own_processor(float64, train, saved, monkeypatch, student, teacher):
    """Other pixels, other tokens for images, another template: the labelled tokens are where the two meet."""
    processor = processor_of(teacher, patch=8) if teacher == "qwen3_vl" else processor_of(teacher)
    monkeypatch.setattr("trl_tempkd.teachers.own_pixels.load_processor", lambda *args: processor)
    reads = vision_model(teacher, 1, torch.float64, patch=8 if teacher == "qwen3_vl" else 4)
    reads.config._name_or_path = "teacher"
    sees = vision_model(student, 0, torch.float64)
    trainer = train(sees, reads, processor=processor_of(student), divergence="forward_kl", kd_temperature=1.0)
    batch = trainer.data_collator(rows())
    assert batch["teacher_batch"].inputs["input_ids"].shape != batch["input_ids"].shape
    loss = trainer.compute_loss(trainer.model, dict(batch))
    theirs = VisionCollator(Processing(processor))(rows())
    mine = {name: value for name, value in batch.items() if name != "teacher_batch"}
    kept = [each["labels"][:, 1:].flatten() != -100 for each in (mine, theirs)]
    assert mine["labels"][:, 1:].flatten()[kept[0]].tolist() == theirs["labels"][:, 1:].flatten()[kept[1]].tolist()
    a, b = (
        logits_of(model, each)[:, :-1].flatten(0, 1)[own]
        for model, each, own in zip((sees, reads), (mine, theirs), kept, strict=True)
    )
    torch.testing.assert_close(loss, kd_loss(a, b, reduction="mean"), atol=1e-9, rtol=0)


def test_a_teacher_of_the_same_family_with_other_settings_has_pixels_of_its_own(train, saved):
    settings = {"settings": {"do_rescale": False}}
    student, same = vision_model("gemma3"), saved("gemma3", 1)
    other = saved("gemma3", 2, **settings)
    processor = processor_of("gemma3")
    assert "teacher_batch" not in train(student, same, processor=processor).data_collator(rows())
    batch = train(student, other, processor=processor).data_collator(rows())
    assert batch["teacher_batch"].inputs["pixel_values"].abs().max() > 10 * batch["pixel_values"].abs().max()


def test_no_token_of_an_image_is_trained_on(train):
    """Of conversations all of which is trained on, the places of images aren't, nor what stands around them."""
    data = Dataset.from_list(
        [{"images": row["images"], "messages": row["prompt"] + row["completion"]} for row in rows()]
    )
    for family in FAMILIES:
        trainer = train(vision_model(family), vision_model(family, 1), data, processor_of(family))
        batch = trainer.data_collator(list(data))
        tokenizer = trainer.processing_class.tokenizer
        left = [
            tokenizer.decode(ids[labels != -100])
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
        ]
        assert "what Ġthe" not in left[0] and "Ġmoon" in left[0] and "Ġmat" in left[0] and "<|user|>" in left[0]
        assert not any(word in text for text in left for word in ("image", "img", "IMG", "vision", "row_"))
        only = train(
            vision_model(family), vision_model(family, 1), data, processor_of(family), assistant_only_loss=True
        )
        batch = only.data_collator(list(data))
        left = [tokenizer.decode(ids[ids != -100]).split() for ids in batch["labels"]]
        assert left[1] == ["Ġafter", "Ġthe", "Ġcat", "<eos>"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_are_those_of_each_row_alone(float64, family):
    """The three axes of Qwen's positions follow the images of a row, whatever batch it is in."""
    model, collate = vision_model(family, dtype=torch.float64), VisionCollator(Processing(processor_of(family)))
    batch = collate(rows())
    together = logits_of(model, batch)
    for i, row in enumerate(rows()):
        alone = logits_of(model, collate([row]))[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-9, rtol=0)
    ids = batch["mm_token_type_ids"], batch["image_grid_thw"]
    positions, _ = model.model.get_rope_index(batch["input_ids"], *ids, attention_mask=batch["attention_mask"])
    first = positions[:, 0]
    assert not torch.equal(first[0], first[1]) and torch.equal(positions[0, 2], positions[1, 2])  # the one without


def test_a_batch_without_images_and_one_with_some_train_together(train):
    data = Dataset.from_list([rows()[i] for i in (2, 2, 0, 1)])
    trainer = train(
        vision_model("gemma3"),
        vision_model("gemma3", 1),
        data,
        processor_of("gemma3"),
        max_steps=2,
        per_device_train_batch_size=2,
    )
    trainer.train()
    assert all(entry["kl_tau1"] > 0 for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_an_adapter_leaves_the_tower_alone_unless_it_is_asked_for(train, family):
    """Also where the tower's layers have the names that are meant for the language model's."""
    student, teacher, processor = vision_model(family), vision_model(family, 1), processor_of(family)

    def trained(**fields):
        config = LoraConfig(r=2, **fields)
        trainer = train(copy.deepcopy(student), teacher, processor=processor, kwargs={"peft_config": config})
        return trainer, [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]

    decoder = next(name for name, module in student.named_modules() if module is student.get_decoder())
    for targets in (["q_proj", "v_proj"], "all-linear"):
        trainer, names = trained(target_modules=targets)
        assert names and all(decoder in name for name in names)
    _, everywhere = trained(target_modules=r".*(proj|qkv|fc1|linear_1)")
    assert any(decoder not in name for name in everywhere)
    trainer.train()  # the last one of the language alone
    assert trainer.state.log_history[0]["kl_tau1"] > 0


def test_a_student_by_its_name_is_asked_for_its_tower(make_config, saved):
    config = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = TemperatureKDTrainer(
        saved("gemma3"), saved("gemma3", 1), make_config(), train_dataset=Dataset.from_list(rows()), peft_config=config
    )
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert names and all("language_model" in name for name in names)
    assert config.exclude_modules is None


REAL = {
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "gemma3": "gemma3",
    "idefics3": "idefics3",
    "llava_next": "llava_next",
}


@pytest.mark.parametrize("family", REAL)
def test_chat_templates_of_the_families_themselves(train, family):
    """As TRL ships them, also with conversations as a table has them: with nothing in each key that others have."""
    processor = processor_of(family)
    folder = Path(trl.__file__).parent / "chat_templates"
    processor.chat_template = (folder / f"{REAL[family]}.jinja").read_text(encoding="utf-8")
    one, two, none, _ = chat_rows()
    two["messages"][0]["content"].append({"type": "image"})
    del two["messages"][0]["content"][0]
    data = Dataset.from_list([two, one, none])
    assert data[1]["messages"][0]["content"][0]["text"] is None
    trainer = train(vision_model(family), vision_model(family, 1), data, processor, assistant_only_loss=True)
    batch = trainer.data_collator(list(trainer.train_dataset))
    tokenizer = processor.tokenizer
    left = [tokenizer.decode(ids[ids != -100]) for ids in batch["labels"]]
    assert "Ġcat" in left[0] and "Ġran" not in left[0] and "Ġmat" in left[1] and "Ġteacher Ġknows" in left[2]
    given = trainer.data_collator.collator.given(list(data))
    texts = [trainer.processing.text(row.pictured, whole=True) for row in given]
    assert [text.count(trainer.processing.placeholder) for text in texts] == [2, 1, 0]


def test_the_head_of_lfm2_vl(float64):
    """Its images are made by torchvision alone, so these are made here."""
    model = vision_model("lfm2_vl", dtype=torch.float64)
    image = model.config.image_token_id
    ids = torch.tensor([[5, *[image] * 4, 7, 8, 9], [6, 7, *[image] * 4, 9, 10]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0)),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    }
    expected = logits_of(model, batch)
    found = read_head(model).logits(last_hidden_state(model, batch))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    others = logits_of(model, {**batch, "pixel_values": batch["pixel_values"] + 1})
    assert (others - expected).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["streamed", "by_a_worker"])
def test_rows_come_in_every_way(train, how):
    data = Dataset.from_list(rows() * 2)
    fields = {"dataloader_num_workers": 1, "per_device_train_batch_size": 4} if how == "by_a_worker" else {}
    data = data.to_iterable_dataset() if how == "streamed" else data
    asked = {"lmbda": 0.5, "max_new_tokens": 4, "seed": 5}  # a step of each kind
    trainer = train(vision_model("gemma3"), vision_model("gemma3", 1), data, processor_of("gemma3"), **fields, **asked)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(entry["kl_tau1"] > 0 for entry in logs)
