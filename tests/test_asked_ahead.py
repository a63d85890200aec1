# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where the student writes some of the steps, a server is asked ahead about those that keep the data set's text."""

import time

import pytest
from datasets import Dataset
from made_models import SENTENCES
from teacher_server import TeacherServer
from transformers import TrainerCallback

from trl_tempkd import TemperatureKDTrainer


PROBES = 4  # requests at the start
MIXED = {"lmbda": 0.5, "max_new_tokens": 5, "temperature": 0.0, "gradient_accumulation_steps": 2, "seed": 1}
STEPS, ROWS = 8, 4  # of a step
# Each text but once
PAIRS = [sentence.split(" ", 3) for sentence in SENTENCES]
DATA = [{"prompt": " ".join(p[:3]), "completion": " " + q[3]} for p in PAIRS for q in PAIRS[:4]]


@pytest.fixture
def checkpoint(tmp_path, make_model, tokenizer):
    make_model(seed=1).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def server(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer, pooling=True).running() as server:
        yield server


@pytest.fixture
def make(checkpoint, make_model, make_config, tokenizer):
    def make(**fields):
        fields = {"max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-3, **MIXED, **fields}
        args = make_config(
            teacher_model_name_or_path=checkpoint, max_length=None, train_sampling_strategy="sequential", **fields
        )
        data = Dataset.from_list(DATA)
        return TemperatureKDTrainer(make_model(), args=args, train_dataset=data, processing_class=tokenizer)

    return make


class Look(TrainerCallback):
    """At the end of a step: which rows of the next one the server has been asked about."""

    def __init__(self, trainer, server):
        self.rows = [tuple(row["input_ids"]) for row in trainer.train_dataset]
        self.server, self.found = server, {}

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        rows = {*self.rows[ROWS * step : ROWS * (step + 1)]}
        if not rows:
            return
        deadline = time.monotonic() + (5 if self.keeps(step) else 0)
        while True:
            asked = {tuple(text) for body in list(self.server.bodies) for text in body["input"]}
            if rows <= asked or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        self.found[step] = len(rows & asked) / len(rows)


def test_what_stays_is_asked_about_a_step_before(make, server):
    expected = [entry["loss"] for entry in losses_of(make())]
    trainer = make(teacher_server_url=server.url)
    look = Look(trainer, server)
    look.keeps = lambda step: trainer.rollouts.keeps(0, step)
    trainer.add_callback(look)
    entries = losses_of(trainer)
    assert [entry["loss"] for entry in entries] == pytest.approx(expected, rel=1e-3)
    kept = [entry["on_policy_share"] == 0 for entry in entries]
    assert kept == [trainer.rollouts.keeps(0, step) for step in range(STEPS)]
    assert look.found == {step: float(kept[step]) for step in range(1, STEPS)} and {*kept[1:]} == {True, False}
    # Each text once, also one that is written more often: the rows of a step have one prompt
    written = sum(not each for each in kept)
    assert server.count == PROBES + (STEPS - written) * ROWS + written


def losses_of(trainer):
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_what_is_not_known_before_is_asked_about_in_its_step(make):
    rollouts = make().rollouts
    assert any(rollouts.keeps(0, step) for step in range(STEPS))
    rollouts.args.seq_kd = True
    assert not any(rollouts.keeps(0, step) for step in range(STEPS))
    rollouts.args.seq_kd, rollouts.args.lmbda_schedule = False, "adaptive"
    assert not any(rollouts.keeps(0, step) for step in range(STEPS))
