# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A collator that pads on the left trains on the same tokens, at the same positions, as one that pads on the right."""

import pickle

import pytest
import torch
from architectures import tiny_model
from test_trainer import first_batch, logged, parameters
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForSeq2Seq
from trl.trainer import sft_trainer

from trl_tempkd.padding import aligned, right_padded


# Positions that are learned, rotated, counted from the mask, a slope of the attention; and recurrences
ARCHITECTURES = ["gpt2", "llama", "opt", "biogpt", "bloom", "mpt", "mamba", "rwkv", "recurrent_gemma"]


def padded(rows, side):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row.get("labels", row["input_ids"])) for row in rows]

    def pad(tensors, value):
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    mask = pad([torch.ones_like(row) for row in ids], 0)
    return {"input_ids": pad(ids, 1), "attention_mask": mask, "labels": pad(labels, -100)}


def left(rows):
    return padded(rows, "left")


def right(rows):
    return padded(rows, "right")


def test_rows_move_to_the_left_with_all_that_belongs_to_them():
    batch = {
        "input_ids": torch.tensor([[1, 1, 5, 6], [7, 8, 9, 4], [1, 1, 1, 1], [1, 3, 2, 1]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]),
        "labels": torch.tensor([[-100, -100, 5, 6], [7, 8, 9, 4], [-100] * 4, [-100, 3, 2, -100]]),
        "hidden": torch.arange(32.0).view(4, 4, 2),
        "number": 3,
    }
    moved = right_padded(batch)
    assert moved["input_ids"].tolist() == [[5, 6, 1, 1], [7, 8, 9, 4], [1, 1, 1, 1], [3, 2, 1, 1]]
    assert moved["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert moved["labels"].tolist() == [[5, 6, -100, -100], [7, 8, 9, 4], [-100] * 4, [3, 2, -100, -100]]
    assert moved["hidden"][0, :2].equal(batch["hidden"][0, 2:]) and moved["number"] == 3
    assert right_padded(moved)["input_ids"].equal(moved["input_ids"])


@pytest.mark.parametrize("batch", [right([{"input_ids": [5, 6]}, {"input_ids": [7]}]), {"labels": torch.ones(2, 3)}])
def test_a_batch_without_padding_in_front_is_not_touched(batch):
    assert right_padded(batch) is batch


def test_collators():
    own = sft_trainer.DataCollatorForLanguageModeling(pad_token_id=1)
    assert aligned(own) is own
    assert pickle.loads(pickle.dumps(aligned(left))).func is aligned(left).func  # for the workers of a data loader


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_the_rows_alone(make_trainer, text_dataset, architecture):
    student, teacher = tiny_model(architecture), tiny_model(architecture, seed=1)
    trainer = make_trainer(student, teacher, train_dataset=text_dataset, disable_dropout=True)
    rows = [{"input_ids": row["input_ids"]} for row in trainer.train_dataset.select(range(4))]
    losses = [trainer.compute_loss(student, right([row])) for row in rows]  # no padding at all
    counts = torch.tensor([len(row["input_ids"]) - 1 for row in rows])
    expected = (torch.stack(losses) * counts).sum() / counts.sum()
    assert len(set(counts.tolist())) > 1
    for collate in (left, right):
        loss = trainer.compute_loss(student, collate(rows))
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # rotations and recurrences are in float32


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_training_and_evaluation_do_not_see_the_side(make_trainer, text_dataset, architecture):
    results = []
    for collator in (None, left):
        trainer = make_trainer(
            architecture,
            architecture,
            train_dataset=text_dataset,
            eval_dataset=text_dataset,
            disable_dropout=True,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            dataloader_num_workers=0,
            kwargs={"data_collator": collator},
        )
        batch = first_batch(trainer)
        assert batch["attention_mask"][:, 0].all() and not batch["attention_mask"].all()
        trainer.train()
        figures = {name: logged(trainer, name) for name in ("loss", "kd_loss", "ce_loss", "num_tokens")}
        results.append(({**figures, **trainer.evaluate()}, parameters(trainer.model)))
    for name in ("loss", "kd_loss", "ce_loss", "num_tokens", "eval_loss", "eval_kl_tau1"):
        assert results[0][0][name] == pytest.approx(results[1][0][name], rel=1e-5), name
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


def test_the_collator_of_transformers_with_a_tokenizer_that_pads_on_the_left(make_trainer, text_dataset, tokenizer):
    tokenizer.padding_side = "left"
    collator = DataCollatorForSeq2Seq(tokenizer)
    losses = []
    for data_collator in (None, collator):  # TRL's own doesn't look at the tokenizer's side
        trainer = make_trainer(
            "gpt2", "gpt2", train_dataset=text_dataset, disable_dropout=True, kwargs={"data_collator": data_collator}
        )
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_completions_of_prompts_that_are_padded_on_the_left(make_trainer):
    prompts = []
    for collator in (None, left):
        trainer = make_trainer("gpt2", "gpt2", lmbda=1.0, max_new_tokens=3, kwargs={"data_collator": collator})
        trainer.train()
        prompts.append(trainer.rollouts.latest)
        assert logged(trainer, "on_policy_share") == [1.0, 1.0]
    assert [prompt for prompt, _ in prompts[0]] == [prompt for prompt, _ in prompts[1]]


def test_logits_are_those_of_the_labels_beside_them(make_trainer, text_dataset):
    seen = []

    def right_share(prediction):
        logits, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
        seen.append((logits.argmax(-1) == labels)[labels != -100].mean())
        return {"share": seen[-1]}

    for collator in (None, left):
        trainer = make_trainer(
            "gpt2",
            "gpt2",
            eval_dataset=text_dataset,
            disable_dropout=True,
            per_device_eval_batch_size=8,
            kwargs={"data_collator": collator, "compute_metrics": right_share},
        )
        trainer.evaluate()
    assert seen[0] == seen[1]
