# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The student as its own teacher: the weights of the step, and an average of those it had."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from test_own_prompt import check, pairs_of, plain_loss, rows_of_text, step_loss
from transformers import TrainerCallback

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.teachers import STUDENT, STUDENT_EMA


OWN = Dataset.from_list(rows_of_text())
PLAIN = OWN.remove_columns("teacher_prompt")


def named(name, **fields):
    return {"teacher": None, "teacher_model_name_or_path": name, "per_device_train_batch_size": 8, **fields}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [STUDENT, STUDENT_EMA])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])  # a head of its own, a tied one, dropout
def test_its_own_target_is_a_constant(make_trainer, tokenizer, name, architecture):
    trainer = make_trainer(architecture, train_dataset=OWN, disable_dropout=True, divergence="jsd", **named(name))
    check(trainer, pairs_of(rows_of_text(), tokenizer), teacher=copy.deepcopy(trainer.model).eval())
    assert trainer.model.training and all(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.usefixtures("float64")
def test_self_distillation_at_another_temperature(make_trainer, tokenizer):
    fields = {"student_kd_temperature": 1.0, "teacher_kd_temperature": 0.5}
    trainer = make_trainer(train_dataset=PLAIN, **named(STUDENT, **fields))
    pairs = pairs_of([{**row, "teacher_prompt": None} for row in PLAIN], tokenizer)
    taus = {"student_temperature": 1.0, "teacher_temperature": 0.5}
    check(trainer, pairs, teacher=copy.deepcopy(trainer.model).eval(), **taus)


class Averages(TrainerCallback):
    """The plain average of whole parameters, and the loss that it makes of the step that follows."""

    def __init__(self, trainer, pairs, decay):
        self.trainer, self.pairs, self.decay = trainer, pairs, decay
        self.average, self.expected = copy.deepcopy(trainer.model).eval(), []
        for module in self.average.modules():  # TRL has put another one on the model, which a copy would share
            module.__dict__.pop("forward", None)
        self.expect()

    @torch.no_grad()
    def expect(self):
        training = self.trainer.model.training
        self.trainer.model.eval()
        self.expected.append(plain_loss(self.trainer, self.pairs, teacher=self.average).item())
        self.trainer.model.train(training)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model, **kwargs):
        pairs = zip(self.average.named_parameters(), model.named_parameters(), strict=True)
        for (_, mine), (_, new) in pairs:
            mine.copy_(self.decay * mine + (1 - self.decay) * new)
        self.expect()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("llama", None),
        ("qwen3", None),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "init_lora_weights": False}),
    ],
    ids=["whole", "tied", "lora", "lora and head"],
)
def test_the_average_is_that_of_what_is_trained(make_trainer, tokenizer, architecture, lora):
    kwargs = {} if lora is None else {"peft_config": LoraConfig(**lora)}
    fields = named(STUDENT_EMA, teacher_ema_decay=0.6, max_steps=4, learning_rate=1e-2)
    trainer = make_trainer(architecture, train_dataset=OWN, eval_dataset=OWN, kwargs=kwargs, **fields)
    averages = Averages(trainer, pairs_of(rows_of_text(), tokenizer), 0.6)
    trainer.add_callback(averages)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(averages.expected[:4], rel=1e-8)
    assert len({round(loss, 9) for loss in losses}) == 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(averages.expected[4], rel=1e-8)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {*trainer.teacher._average} == {*trained}
    moved = [(trainer.teacher._average[name] - p).abs().max() for name, p in trained.items()]
    assert max(moved) > 1e-6  # and the weights that are trained are the student's own again


@pytest.mark.usefixtures("float64")
def test_the_average_goes_on_after_a_resume(make, tmp_path):
    fields = {"teacher_model_name_or_path": STUDENT_EMA, "teacher_ema_decay": 0.6, "train_dataset": OWN, "seed": 3}
    fields |= {"save_strategy": "steps", "save_steps": 2}

    def losses(trainer, **kwargs):
        trainer.train(**kwargs)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    trainer = make(**fields)
    expected = losses(trainer)
    folder = f"{trainer.args.output_dir}/checkpoint-2"
    resumed = make(**fields)
    assert losses(resumed, resume_from_checkpoint=folder) == pytest.approx(expected, rel=1e-9)
    for name, average in trainer.teacher._average.items():
        torch.testing.assert_close(resumed.teacher._average[name], average, rtol=1e-9, atol=1e-12)
    assert {*load_file(f"{folder}/student_ema_0.safetensors")} == {*trainer.teacher._average}
    with pytest.raises(ValueError, match=r"`teacher.name` was 'decay 0.6', is 'decay 0.7'"):
        losses(make(**{**fields, "teacher_ema_decay": 0.7}), resume_from_checkpoint=folder)


def test_a_second_training_starts_from_the_student(make_trainer):
    trainer = make_trainer(train_dataset=OWN, **named(STUDENT_EMA, teacher_ema_decay=0.6))
    trainer.train()
    before = trainer.teacher._average["model.norm.weight"].clone()
    trainer.teacher.load(None)
    assert trainer.teacher._average is None
    trainer.teacher.ask([])
    assert not torch.equal(trainer.teacher._average["model.norm.weight"], before)


@pytest.mark.usefixtures("float64")
def test_what_the_student_writes(make_trainer, tokenizer):
    fields = {"lmbda": 1.0, "max_new_tokens": 5, "temperature": 0.0, "divergence": "reverse_kl"}
    trainer = make_trainer(train_dataset=OWN, **named(STUDENT_EMA, **fields))
    loss, _ = step_loss(trainer)
    own = {tuple(prompt): own for prompt, own, _ in pairs_of(rows_of_text(), tokenizer)}
    written = [(prompt, own[tuple(prompt)], said) for prompt, said in trainer.rollouts.latest]
    trainer.model.eval()
    expected = plain_loss(trainer, written, teacher=trainer.model).detach()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [STUDENT, STUDENT_EMA])
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_to_learn_is_refused(make_trainer, name, stream):
    data = PLAIN.to_iterable_dataset() if stream else PLAIN
    with pytest.raises(ValueError, match=f"The teacher is '{name}', and the rows have no `teacher_prompt`"):
        make_trainer(train_dataset=data, **named(name))
    with pytest.raises(ValueError, match="nothing to learn"):
        make_trainer(train_dataset=data, **named(name, student_kd_temperature=2.0, teacher_kd_temperature=2.0))


def test_the_labels_alone_are_said(make_trainer, caplog):
    make_trainer(train_dataset=PLAIN, **named(STUDENT, kd_ratio=0.5))
    assert "nothing to learn but from the labels" in caplog.text


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_the_decay_has_bounds(make_config, decay):
    with pytest.raises(ValueError, match=r"`teacher_ema_decay` must be in \[0, 1\)"):
        make_config(teacher_ema_decay=decay)


def test_it_is_not_loaded(make_model, make_config, tokenizer):
    with pytest.raises(ValueError, match="'student', which is in memory"):
        TemperatureKDTrainer(
            make_model(), STUDENT, make_config(teacher_model_revision="main"), train_dataset=OWN,
            processing_class=tokenizer,
        )  # fmt: skip
