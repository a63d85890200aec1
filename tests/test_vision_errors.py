# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What can't work with images is said on one line, that names the row or the option, and before a model is loaded."""

import importlib.util
import json

import pytest
from datasets import Dataset, Features, Image, List
from made_models import build_model, build_tokenizer
from vision_models import config_of, noise, processor_of, rows, vision_model, vision_tokenizer

from trl_tempkd import TemperatureKDTrainer, vision_data
from trl_tempkd.errors import UsageError, UsageImportError


@pytest.fixture
def refused(make_config, monkeypatch):
    """`refused(data, **fields)`: what a trainer says, which has a student's name and may not load it."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    def refuse(data=None, student=None, teacher=None, processor=None, error=UsageError, kwargs=None, **fields):
        monkeypatch.setattr("trl.trainer.sft_trainer.SFTTrainer.__init__", load)
        with pytest.raises(error) as caught:
            TemperatureKDTrainer(
                student or vision_model("gemma3"),
                vision_model("gemma3", 1) if teacher is None else teacher or None,
                make_config(**fields),
                train_dataset=Dataset.from_list(rows()) if data is None else data,
                processing_class=processor_of("gemma3") if processor is None else processor or None,
                **(kwargs or {}),
            )
        said = str(caught.value)
        assert "\n" not in said
        return said

    return refuse


def test_a_student_that_reads_text_alone(refused, tmp_path):
    said = refused(processor=build_tokenizer())
    assert "`train_dataset` has images, and the student reads text alone" in said and "pass its processor" in said
    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert "the student reads text alone" in refused(student=str(tmp_path), processor=False)


def test_a_teacher_that_reads_text_alone(make_config, tmp_path):
    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    data = Dataset.from_list(rows())
    with pytest.raises(UsageError, match="reads text alone, and the rows have images"):
        TemperatureKDTrainer(
            vision_model("gemma3"),
            str(tmp_path),
            make_config(),
            train_dataset=data,
            processing_class=processor_of("gemma3"),
        )


def test_images_and_places_that_differ(refused):
    good, bad = rows()[1], rows()[1]
    parts = [{"type": "image"}, {"type": "text", "text": "the moon"}]
    bad["prompt"] = [{"role": "user", "content": parts}]
    good["prompt"] = [{"role": "user", "content": [{"type": "image"}, *parts]}]
    assert "row 1: has 2 images and 1 places for them" in refused(Dataset.from_list([good, bad]))
    bad["prompt"] = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, *parts]}]
    assert "row 1: has 2 images and 3 places for them" in refused(Dataset.from_list([good, bad]))
    text = [
        {"images": [noise(0)], "prompt": "look <start_of_image> at it", "completion": "the cat"},
        {"images": [noise(0)], "prompt": "look at it", "completion": "the cat"},
    ]
    assert "row 1: has 1 image and 0 places for them" in refused(Dataset.from_list(text))


def test_an_image_that_cannot_be_opened(refused, make_config, tmp_path):
    good, damaged, short = tmp_path / "good.png", tmp_path / "damaged.png", tmp_path / "short.png"
    noise(0).save(good)
    damaged.write_bytes(b"no image")
    short.write_bytes(good.read_bytes()[:200])
    text = {"prompt": "look at <start_of_image>", "completion": "the cat"}

    def data(*paths):
        return Dataset.from_list([{"images": [str(path)], **text} for path in paths])

    for path, reason in ((damaged, "cannot identify"), (short, "truncated"), (tmp_path / "no.png", "No such file")):
        said = refused(data(good, path))
        assert f"row 1: has '{path}', which can't be opened as an image" in said and reason in said
    as_images = data(good, damaged).cast(Features({**data(good).features, "images": List(Image())}))
    assert f"row 1: has '{damaged}'" in refused(as_images)
    assert "addresses aren't followed" in refused(data(good, "https://example.com/a.png"))
    # Behind the rows that are looked at first, it is found when its turn comes


def test_an_image_that_cannot_be_opened_is_found_when_its_turn_comes(make_config, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(41)]
    for path in paths:
        noise(0).save(path)
    text = {"prompt": "look at <start_of_image>", "completion": "the cat"}
    data = Dataset.from_list([{"images": [str(path)], **text} for path in paths])
    data = data.cast(Features({**data.features, "images": List(Image())}))
    paths[40].write_bytes(b"no image")
    args = make_config(max_steps=-1, num_train_epochs=1, per_device_train_batch_size=8)
    student, teacher = vision_model("gemma3"), vision_model("gemma3", 1)
    trainer = TemperatureKDTrainer(student, teacher, args, train_dataset=data, processing_class=processor_of("gemma3"))
    with pytest.raises(UsageError, match=r"the train data, row 40: has '.*40.png', which can't be opened"):
        trainer.train()


def test_the_data_are_looked_through_for_a_message_alone(make_config, monkeypatch):
    asked = []
    monkeypatch.setattr(vision_data, "where", lambda datasets, row: asked.append(row) or "that row")
    student, teacher, data = vision_model("gemma3"), vision_model("gemma3", 1), Dataset.from_list(rows())
    config = make_config()
    trainer = TemperatureKDTrainer(
        student, teacher, config, train_dataset=data, processing_class=processor_of("gemma3")
    )
    trainer.train()
    assert trainer.state.global_step == 2 and not asked  # it would take as long as there are rows, for each of a batch
    with pytest.raises(UsageError, match="that row has no `prompt`"):
        trainer.data_collator([{"images": rows()[0]["images"]}])
    assert len(asked) == 1


def test_options_that_images_do_not_go_with(refused):
    assert "`packing` is True, and `train_dataset` has images" in refused(packing=True)
    assert "`padding_free` is True" in refused(padding_free=True, max_length=None)
    with pytest.warns(FutureWarning, match="keep_end"):
        assert "`truncation_mode` is 'keep_end'" in refused(truncation_mode="keep_end")
    assert "`use_vllm` is True" in refused(use_vllm=True, lmbda=1.0)
    assert "`ds3_gather_for_generation` is False" in refused(lmbda=1.0, ds3_gather_for_generation=False)
    assert "`formatting_func` makes text" in refused(kwargs={"formatting_func": str})
    assert "`data_collator` is of the user's own" in refused(kwargs={"data_collator": list})
    assert "`assistant_only_loss` is about `messages`" in refused(assistant_only_loss=True)
    said = refused(max_length=8)
    assert "row 0: has 24 tokens, and `max_length` 8 cuts it before the end of its images" in said
    alone = {"eval_dataset": Dataset.from_list(rows())}
    text = Dataset.from_list([{"prompt": "the cat", "completion": " sat"}])
    assert "`eval_dataset` has images, and `train_dataset` has no column" in refused(text, kwargs=alone)


def test_teachers_that_do_not_read_images(refused, tmp_path):
    build_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    kinds = [
        {"teacher_model_name_or_path": "teacher", "teacher_server_url": "http://localhost:1"},
        {"teachers": [{"name": "a", "model": str(tmp_path)}, {"name": "b", "model": str(tmp_path)}]},
        {"teacher_model_name_or_path": str(tmp_path), "vocabulary_alignment": "bytes"},
    ]
    for fields in kinds:
        said = refused(teacher=False, **fields)
        assert "has images, which such a teacher isn't shown. Use one teacher" in said


def test_text_for_a_student_that_sees(make_config, refused):
    """It goes through the processor, which knows what the chat template wants; and its tokenizer still takes it."""
    turns = [{"role": "user", "content": "what is the moon"}, {"role": "assistant", "content": "the cat"}]
    data, args = Dataset.from_list([{"messages": turns}] * 4), make_config()
    models = vision_model("idefics3"), vision_model("idefics3", 1)
    trainer = TemperatureKDTrainer(
        *models, args, train_dataset=data, eval_dataset=data, processing_class=processor_of("idefics3")
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert "Ġmoon" in trainer._tokenizer.decode(batch["input_ids"][0])
    trainer.train()
    assert trainer.state.log_history[0]["kl_tau1"] > 0
    assert trainer.evaluate()["eval_kl_tau1"] > 0
    # What needs tokens beforehand gets them from its tokenizer, and so does what only the preparation of text reads
    said = [{"from": "user", "value": "the moon"}, {"from": "assistant", "value": "the cat"}]
    for rows_of_text, own in (
        ([{"conversations": said}] * 4, {}),
        ([{"question": "the moon"}] * 4, {"formatting_func": lambda row: row["question"] + " the cat"}),
    ):
        own |= {"train_dataset": Dataset.from_list(rows_of_text), "processing_class": processor_of("gemma3")}
        trainer = TemperatureKDTrainer(vision_model("gemma3"), vision_model("gemma3", 1), make_config(), **own)
        assert "input_ids" in trainer.train_dataset.column_names
    args = make_config(packing=True, max_length=32, packing_strategy="wrapped")
    trainer = TemperatureKDTrainer(*models, args, train_dataset=data, processing_class=processor_of("idefics3"))
    assert "input_ids" in trainer.train_dataset.column_names


def test_text_of_a_model_that_sees_and_one_that_does_not(make_config):
    """On either side, with one tokenizer."""
    tokenizer = vision_tokenizer()
    size = {"vocab_size": len(tokenizer)}
    data = Dataset.from_list([{"prompt": "the cat", "completion": " sat on the mat"}] * 4)
    pairs = [
        (vision_model("gemma3"), build_model(seed=1, **size), processor_of("gemma3")),
        (build_model(**size), vision_model("gemma3", 1), tokenizer),
    ]
    for student, teacher, processing_class in pairs:
        trainer = TemperatureKDTrainer(
            student, teacher, make_config(), train_dataset=data, processing_class=processing_class
        )
        trainer.train()
        assert trainer.state.log_history[0]["kl_tau1"] > 0


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is there")
def test_a_processor_that_needs_torchvision(refused, tmp_path):
    processor = processor_of("qwen3_vl")
    config_of("qwen3_vl").save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        settings |= {"processor_class": "Qwen3VLProcessor", "video_processor_type": "Qwen3VLVideoProcessor"}
        (tmp_path / name).write_text(json.dumps(settings))
    said = refused(student=str(tmp_path), processor=False, error=UsageImportError)
    assert f"The processor of the student '{tmp_path}' needs torchvision" in said and "pip install" in said
