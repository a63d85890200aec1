# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Caches of a teacher that sees: rows are known by their pixels and by what both models see them through."""

import json
import math
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict
from vision_models import noise, processor_of, rows, save_pair_that_sees

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.commands import cache
from trl_tempkd.errors import UsageError


@pytest.fixture
def build(tmp_path):
    """`build(folder, *options)`: the student, the teacher and the rows of a cache that the command has built."""
    student, teacher = save_pair_that_sees(tmp_path)
    data = Dataset.from_list(rows() * 2)
    DatasetDict(train=data, test=data.select(range(4))).save_to_disk(tmp_path / "data")

    def run(folder, *options):
        line = f"""--model_name_or_path {student} --teacher_model_name_or_path {teacher}
            --dataset_name {tmp_path / "data"} --output {folder} --use_cpu --bf16 false --report_to none
            --per_device_eval_batch_size 3 --max_length 64 --do_eval true --cache_dtype float32
            --output_dir {tmp_path / "made"} --disable_tqdm true"""
        cache.main(*cache.make_parser().parse([*line.split(), *options], launched=True)[0])
        return student, teacher, data

    return run


@pytest.mark.parametrize(
    "mode",
    [[], ["--mode", "topk", "--k", "8"], ["--mode", "sampled", "--samples", "8"]],
    ids=["hidden", "topk", "sampled"],
)
def test_a_run_from_a_cache(mode, tmp_path, build, make_config):
    """Of hidden states it is the run beside the teacher; the order of rows is the run's own."""
    folder = tmp_path / "cache"
    student, teacher, data = build(folder, *mode)
    shuffled = data.shuffle(seed=3)
    logs = []
    for own in ({}, {"teacher_cache": str(folder)}):
        config = make_config(max_length=64, divergence="forward_kl", per_device_train_batch_size=3, **own)
        named = None if own else teacher
        trainer = TemperatureKDTrainer(
            student, named, config, train_dataset=shuffled, eval_dataset=data.select([1, 2])
        )
        trainer.train()
        trainer.evaluate()
        logs.append([entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history])
    near = pytest.approx(logs[0][:2] + logs[0][-1:], rel=1e-3)
    found = logs[1][:2] + logs[1][-1:]
    assert found == near if not mode else all(map(math.isfinite, found))


def test_what_is_not_in_a_cache(tmp_path, build, make_config):
    folder = tmp_path / "cache"
    student, teacher, data = build(folder)
    config = make_config(max_length=64, teacher_cache=str(folder))

    def refused(train_dataset, config=config, teacher=None, processor=None):
        with pytest.raises(UsageError) as caught:
            TemperatureKDTrainer(student, teacher, config, train_dataset=train_dataset, processing_class=processor)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    changed = rows()
    changed[1]["images"][1].putpixel((3, 3), (1, 2, 3))  # one pixel
    assert "1 of 4 rows of the train data set, the first being row 1, aren't in the cache" in refused(
        Dataset.from_list(changed)
    )
    other = [{**rows()[0], "images": [noise(5)]}]
    assert "1 of 1 rows" in refused(Dataset.from_list(other))
    assert "built with `processor`" in refused(data, processor=processor_of("gemma3", do_rescale=False))
    processor_of("gemma3", do_normalize=False).save_pretrained(teacher)
    assert "built with `teacher_processor`" in refused(data, teacher=teacher)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["processor"] == manifest["teacher_processor"]


def test_a_run_with_images_goes_on_from_its_checkpoint(tmp_path, make_config):
    student, teacher = save_pair_that_sees(tmp_path)
    data = Dataset.from_list(rows() * 2)
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}

    def train(**own):
        trainer = TemperatureKDTrainer(student, teacher, make_config(**fields, **own), train_dataset=data)
        trainer.train(resume_from_checkpoint=own.get("resume_from_checkpoint"))
        return trainer

    whole = train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    again = train(resume_from_checkpoint="auto")
    assert again.trained_steps == 2
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    other = Dataset.from_list(rows(seed=7) * 2)
    trainer = TemperatureKDTrainer(student, teacher, make_config(**fields), train_dataset=other)
    with pytest.raises(UsageError, match=r"data.sample"):
        trainer.train(resume_from_checkpoint="auto")
