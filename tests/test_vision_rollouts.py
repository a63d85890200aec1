# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Completions are generated with the images of their rows, trained on with them, kept with them and shown."""

import sys
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from transformers.integrations import WandbCallback
from vision_models import processor_of, rows, vision_model

from trl_tempkd import TemperatureKDTrainer, kd_loss
from trl_tempkd.errors import UsageError
from trl_tempkd.rollouts.rows import Row, join, rows_of, split
from trl_tempkd.vision import Pictured, Processing, VisionCollator


FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "llava_next", "internvl")
GREEDY = {"lmbda": 1.0, "temperature": 0.0, "max_new_tokens": 6}


@pytest.fixture
def train(make_config):
    """`train(student, teacher, family, **fields)`: a trainer of models in memory, on rows that only ask."""

    def make(student, teacher, family="gemma3", data=None, eval_dataset=None, **fields):
        asked = Dataset.from_list([{name: row[name] for name in ("images", "prompt")} for row in rows()])
        return TemperatureKDTrainer(
            student,
            teacher,
            make_config(**{**GREEDY, **fields}),
            train_dataset=asked if data is None else data,
            eval_dataset=eval_dataset,
            processing_class=processor_of(family),
        )

    return make


def logits_of(model, batch):
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "teacher_batch")}
    return model(**{name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}).logits


def said_by(model, collator, row, count):
    """What the model says to one row, token by token, with no cache, no padding and nothing that is generated."""
    batch = collator([{name: value for name, value in row.items() if name != "completion"}])
    batch.pop("labels")
    batch.pop("pictured", None)
    tokens = []
    silent = sorted(collator.processing.markup)
    for _ in range(count):
        logits = logits_of(model, batch)[0, -1]
        logits[silent] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == model.generation_config.eos_token_id:
            break
        for name, value in batch.items():
            if name in ("input_ids", "attention_mask") or name.endswith("token_type_ids"):
                new = {"input_ids": tokens[-1], "attention_mask": 1}.get(name, 0)
                batch[name] = torch.cat([value, torch.tensor([[new]])], dim=1)
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_are_what_the_model_says_to_the_images(float64, train, family):
    student, teacher = vision_model(family, 0, torch.float64), vision_model(family, 1, torch.float64)
    trainer = train(student, teacher, family)
    batch = trainer.data_collator(list(trainer.train_dataset))
    (new,) = trainer.rollouts([batch], 0, 0.0)
    alone = [said_by(student, trainer.data_collator.collator.collator, row, 6) for row in rows()]
    found = [row.input_ids[-len([i for i in row.labels if i != -100]) :] for row in rows_of(new)]
    assert sorted(map(tuple, found)) == sorted(map(tuple, alone))
    assert "pixel_values" in new and len({*map(tuple, alone)}) > 2
    loss = trainer.compute_loss(trainer.model, dict(new))
    mine, theirs = (logits_of(model, new)[:, :-1].flatten(0, 1) for model in (student, teacher))
    labels = new["labels"][:, 1:].flatten()
    tau = {"student_temperature": 2.0, "teacher_temperature": 2.0, "rescale": "tau2"}
    expected = kd_loss(mine, theirs, labels=labels, reduction="mean", **tau)
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=0)


def test_a_teacher_with_a_processor_of_its_own_sees_what_was_generated(float64, train, monkeypatch):
    processor = processor_of("qwen3_vl", patch=8)
    monkeypatch.setattr("trl_tempkd.teachers.own_pixels.load_processor", lambda *args: processor)
    student, teacher = vision_model("gemma3", 0, torch.float64), vision_model("qwen3_vl", 1, torch.float64, patch=8)
    teacher.config._name_or_path = "teacher"
    trainer = train(student, teacher, kd_temperature=1.0, divergence="reverse_kl")
    (new,) = trainer.rollouts([trainer.data_collator(list(trainer.train_dataset))], 0, 0.0)
    own = new["teacher_batch"]
    loss = trainer.compute_loss(trainer.model, dict(new))
    labels = new["labels"][:, 1:].flatten()
    kept = new["labels"].roll(-1, 1).flatten() != -100
    mine = logits_of(student, new)[:, :-1].flatten(0, 1)[labels != -100]
    theirs = logits_of(teacher, own.inputs).flatten(0, 1)[own.source[kept]]
    torch.testing.assert_close(
        loss, kd_loss(mine, theirs, divergence="reverse_kl", reduction="mean"), atol=1e-9, rtol=0
    )
    # Each row of the teacher's ends in what the student has said
    for row, ids, mask in zip(rows_of(new), own.inputs["input_ids"], own.inputs["attention_mask"], strict=True):
        said = [i for i in row.labels if i != -100]
        assert ids[mask.bool()].tolist()[-len(said) :] == said


def test_a_teacher_that_writes_sees_the_images(float64, train):
    student, teacher = vision_model("gemma3", 0, torch.float64), vision_model("gemma3", 1, torch.float64)
    trainer = train(student, teacher, lmbda=0.0, seq_kd=True)
    batch = trainer.data_collator(list(trainer.train_dataset))
    (new,) = trainer.rollouts([batch], 0, 0.0)
    alone = [said_by(teacher, trainer.data_collator.collator.collator, row, 6) for row in rows()]
    assert sorted([i for i in row.labels if i != -100] for row in rows_of(new)) == sorted(alone)


def test_rows_keep_their_images_in_a_checkpoint(tmp_path, train):
    trainer = train(
        vision_model("gemma3"), vision_model("gemma3", 1), replay_size=8, replay_ratio=0.0, temperature=1.0
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.rollouts([batch], 0, 0.0)
    kept = list(trainer.rollouts.replay)
    trainer.rollouts.save(str(tmp_path))
    trainer.rollouts.load(str(tmp_path))
    assert len(kept) == 4 and any(len(row.pictured.images) == 2 for row in kept)
    for before, after in zip(kept, trainer.rollouts.replay, strict=True):
        assert (before.input_ids, before.labels) == (after.input_ids, after.labels)
        assert before.pictured.asked == after.pictured.asked
        assert [i.tobytes() for i in before.pictured.images] == [i.tobytes() for i in after.pictured.images]
    again = trainer.rollouts._collated(kept)
    after = trainer.rollouts._collated(list(trainer.rollouts.replay))
    assert all(torch.equal(again[name], after[name]) for name in again)
    teacher = Pictured("what the teacher reads", kept[0].pictured.images)
    (row,) = split(join([Row([1, 2], [-100, 2], pictured=kept[0].pictured._replace(teacher=teacher))]))
    assert row.pictured.teacher.asked == teacher.asked and len(row.pictured.teacher.images) == len(teacher.images)


def test_training_evaluation_and_what_is_shown(tmp_path, train):
    """On-policy, then replayed; rows that only ask are evaluated on what the student says."""
    data = Dataset.from_list(rows())
    asked = data.remove_columns("completion")
    trainer = train(
        vision_model("gemma3"),
        vision_model("gemma3", 1),
        data=data,
        eval_dataset=asked,
        log_completions=True,
        replay_size=4,
        replay_ratio=1.0,
        max_steps=3,
        temperature=1.0,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["on_policy_share"] == 1.0 and logs[2]["replay_share"] == 1.0
    assert trainer.evaluate()["eval_kl_tau1"] > 0
    table = pyarrow.parquet.read_table(tmp_path / "out" / "completions" / "completions_00001.parquet").to_pylist()
    assert sorted(len(row["images"]) for row in table) == [0, 1, 1, 2]
    shown = next(row["prompt"] for row in table if len(row["images"]) == 1)
    assert "<image>x4" in shown and len(shown) < 150
    answered = TemperatureKDTrainer.evaluate(trainer, data)  # answers that are there stay
    assert answered["eval_ce_loss"] > 0


def test_trackers_are_shown_the_images(train, monkeypatch):
    sent = []
    wandb = SimpleNamespace(
        run=True, Image=lambda image: image.size, Table=lambda dataframe: dataframe, log=sent.append
    )
    trainer = train(vision_model("gemma3"), vision_model("gemma3", 1), log_completions=True)
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # a stand-in, which nothing may look for as a package
    trainer.rollouts([trainer.data_collator(list(trainer.train_dataset))], 0, 0.0)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    trainer.add_callback(WandbCallback())
    trainer.rollouts.log_completions(1, trainer.trackers)
    assert list(sent[0]["completions"]["images"]) == [[row.size for row in each["images"]] for each in rows()]


def test_prompts_that_leave_no_room(train):
    student, teacher = (vision_model("gemma3", seed, max_position_embeddings=32) for seed in (0, 1))
    trainer = train(student, teacher, max_new_tokens=8)
    with pytest.raises(
        UsageError, match="A prompt with images has 26 tokens, and before `max_new_tokens` 8 the model has"
    ):
        trainer.train()


def test_messages_are_asked_up_to_their_last_answer():
    collate = VisionCollator(Processing(processor_of("gemma3")), asks=True)
    row = rows()[1]
    batch = collate([{"images": row["images"], "messages": row["prompt"] + row["completion"]}])
    alone = collate([{"images": row["images"], "prompt": row["prompt"]}])
    assert batch["pictured"].prompts == alone["pictured"].prompts
    assert batch["pictured"].prompts[0] == alone["input_ids"][0].tolist()
    with pytest.raises(UsageError, match="has images and no prompt"):
        collate([{"images": row["images"][:1], "text": "look <start_of_image>"}])
