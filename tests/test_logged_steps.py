# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which steps of a training are logged with what is measured of the distillation."""

import pytest
from transformers import TrainerCallback


MEASURES = {"kd_loss", "kl_tau1", "student_entropy", "teacher_entropy", "token_agreement", "num_tokens", "loss"}


def logged(trainer) -> list[int]:
    """The steps of the log, of which each has every measure and none stands twice."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(set(entry) >= MEASURES for entry in entries)
    steps = [entry["step"] for entry in entries]
    assert len(steps) == len(set(steps))
    return steps


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"logging_steps": 10, "max_steps": 3}, [3]),  # shorter than logging_steps
        ({"logging_steps": 2, "max_steps": 5}, [2, 4, 5]),
        ({"logging_steps": 0.4, "max_steps": 5}, [2, 4, 5]),
        ({"logging_steps": 3, "max_steps": 4, "logging_first_step": True}, [1, 3, 4]),
        ({"logging_steps": 10, "max_steps": -1, "num_train_epochs": 2}, [4]),  # 8 rows in batches of 4
        ({"logging_steps": 10, "max_steps": 3, "gradient_accumulation_steps": 2}, [3]),
        ({"logging_strategy": "epoch", "max_steps": 3}, [2, 3]),
        ({"logging_strategy": "no", "max_steps": 3, "logging_first_step": True}, [1]),
    ],
)
def test_the_last_step_is_logged(make_trainer, fields, steps):
    trainer = make_trainer(**fields)
    trainer.train()
    assert logged(trainer) == steps


def test_the_last_entry_is_of_the_last_step(make_trainer):
    """What is measured in it is that step's, as in a run that logs each."""
    entries = []
    for logging_steps in (1, 2):
        trainer = make_trainer(max_steps=3, logging_steps=logging_steps)
        trainer.train()
        entries.append([entry for entry in trainer.state.log_history if "loss" in entry][-1])
    each, last = entries
    for name in ("kd_loss", "kl_tau1", "token_agreement", "num_tokens", "loss"):
        assert last[name] == pytest.approx(each[name], rel=1e-4), name


def test_the_last_step_is_logged_after_a_resume(make_trainer, tmp_path):
    fields = {"max_steps": 5, "logging_steps": 3}
    make_trainer(**fields, save_strategy="steps", save_steps=4).train()
    trainer = make_trainer(**fields)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert logged(trainer) == [3, 5]


def test_a_run_that_a_callback_stops_early(make_trainer):
    """Nobody knew that its last step was the last one: it is logged if its turn had come."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = make_trainer(max_steps=9, logging_steps=2, kwargs={"callbacks": [Stop()]})
    trainer.train()
    assert logged(trainer) == [2]
