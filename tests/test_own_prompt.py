# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher that reads a prompt of its own: the same answer behind two prompts, whatever is done to the rows."""

import copy

import pytest
import test_prompt_rows as prompt_rows
import torch
from datasets import Dataset, IterableDataset
from made_models import SENTENCES
from peft import LoraConfig
from teacher_server import TeacherServer
from test_cached import builder_of

from trl_tempkd import kd_loss
from trl_tempkd.row_formats import CONTEXTS, TEACHER_PROMPTS, contexts_of, problem_of


FLASH = "ignore:.*[Ff]lash:UserWarning"
KEEP_END = "ignore:The `'keep_end'` truncation mode:FutureWarning"
MEASURES = ("loss", "kl_tau1", "teacher_entropy", "eval_loss", "eval_kl_tau1")


def rows_of_text():
    """Hints of several lengths; one row has none, and the teacher reads there what the student does."""
    rows = []
    for i, sentence in enumerate(SENTENCES):
        parts = sentence.split(" ", 2)
        hint = " ".join(SENTENCES[(3 * i + 1) % 8].split(" ")[: 1 + 2 * (i % 4)])
        own = None if i == 5 else f"{hint} so {parts[0]}" if i % 2 else parts[0]
        rows.append({"prompt": " ".join(parts[:2]), "completion": " " + parts[2], "teacher_prompt": own})
    return rows


def turn(role, content):
    return {"role": role, "content": content}


def rows_of_turns(kind):
    rows = []
    for i, sentence in enumerate(SENTENCES):
        asked, said = [turn("user", sentence)], [turn("assistant", SENTENCES[-1 - i])]
        shown = [turn("user", SENTENCES[i - 1]), turn("assistant", "the moon")] * (i % 3)  # demonstrations
        own = [*shown, turn("user", f"look {sentence}")]
        rows.append({"messages": asked + said} if kind == "messages" else {"prompt": asked, "completion": said})
        rows[-1]["teacher_prompt"] = own
    return rows


KINDS = {
    "text": (rows_of_text, {}),
    "turns": (lambda: rows_of_turns("turns"), {}),
    "messages": (lambda: rows_of_turns("messages"), {"assistant_only_loss": True}),
}


def pairs_of(rows, tokenizer):
    """Of each row the tokens of both prompts and of the answer, the plain way."""
    pairs = []
    for row in rows:
        if isinstance(row["teacher_prompt"] or "", str):
            prompt = tokenizer(row["prompt"])["input_ids"]
            own = prompt if row["teacher_prompt"] is None else tokenizer(row["teacher_prompt"])["input_ids"]
            said = tokenizer(row["completion"] + tokenizer.eos_token)["input_ids"]
        else:
            asked = row["prompt"] if "prompt" in row else row["messages"][:1]
            last = (row["completion"] if "prompt" in row else row["messages"])[-1]
            prompt, own = (
                tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
                for turns in (asked, row["teacher_prompt"])
            )
            said = tokenizer(" " + last["content"] + tokenizer.eos_token)["input_ids"]
        pairs.append((prompt, own, said))
    return pairs


def answer_logits(model, prompt, said):
    return model(torch.tensor([prompt + said]), use_cache=False).logits[0, len(prompt) - 1 : -1]


def plain_loss(trainer, pairs, teacher=None, **kwargs):
    """Two forward passes a row, one behind each prompt."""
    teacher = trainer.teacher_model if teacher is None else teacher
    total, count = 0.0, 0
    for prompt, own, said in pairs:
        with torch.no_grad():
            v = answer_logits(teacher, own, said)
        z = answer_logits(trainer.model, prompt, said)
        args = trainer.args
        kwargs = {"student_temperature": args.kd_temperature, "teacher_temperature": args.kd_temperature, **kwargs}
        total = total + kd_loss(z, v, divergence=args.divergence, rescale=args.kd_temperature_rescale, **kwargs).sum()
        count += len(said)
    return total / count


def step_loss(trainer, kind=None):
    """The loss of the first optimizer step, and the gradient, as training has them."""
    batches = iter(trainer.get_train_dataloader())
    steps = trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = steps
    batches, count = trainer.get_batch_samples(batches, steps, trainer.accelerator.device)
    losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=count) for batch in batches]
    loss = torch.stack(losses).sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return loss.detach(), found


def check(trainer, pairs, **kwargs):
    loss, gradients = step_loss(trainer)
    trainer.model.eval()
    expected = plain_loss(trainer, pairs, **kwargs)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-12)
    expected.backward()
    for name, parameter in trainer.model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-7, atol=1e-11)
    trainer.model.zero_grad()
    trainer.model.train()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 64, "per_device_train_batch_size": 16},
    ],
    ids=str,
)
@pytest.mark.filterwarnings(FLASH)
def test_the_same_answer_behind_two_prompts(make_trainer, tokenizer, kind, fields):
    rows, more = KINDS[kind][0](), KINDS[kind][1]
    fields = {"per_device_train_batch_size": 8, "divergence": "jsd", "kd_temperature": 1.5, **more, **fields}
    trainer = make_trainer("llama", "qwen3", train_dataset=Dataset.from_list(rows), **fields)
    check(trainer, pairs_of(rows, tokenizer), divergence_kwargs=None)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "phi"])
def test_other_architectures(make_trainer, tokenizer, architecture):
    rows = rows_of_text()
    fields = {"per_device_train_batch_size": 8, "disable_dropout": True}
    trainer = make_trainer(architecture, architecture, train_dataset=Dataset.from_list(rows), **fields)
    check(trainer, pairs_of(rows, tokenizer))


@pytest.mark.usefixtures("float64")
def test_a_stream(make_trainer, tokenizer):
    rows = rows_of_text()
    data = Dataset.from_list(rows).to_iterable_dataset()
    check(make_trainer(train_dataset=data, per_device_train_batch_size=8), pairs_of(rows, tokenizer))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.filterwarnings(KEEP_END)
def test_cutting_the_student_cuts_no_prompt_of_the_teacher(make_trainer, tokenizer, mode):
    """Of what is left of the answer each token is predicted after the teacher's whole prompt and all before it."""
    rows = rows_of_text()
    trainer = make_trainer(
        train_dataset=Dataset.from_list(rows), per_device_train_batch_size=8, max_length=6, truncation_mode=mode
    )
    (loss, _), total, count = step_loss(trainer), 0.0, 0
    trainer.model.eval()
    cut_into = 0
    for prompt, own, said in pairs_of(rows, tokenizer):
        whole = prompt + said
        start = 0 if mode == "keep_start" else max(0, len(whole) - 6)
        left = whole[start : start + 6]
        seen = range(max(start + 1, len(prompt)), start + len(left))  # predicted, and part of the answer
        if not seen:
            continue
        cut_into += start > len(prompt)
        logits = trainer.model(torch.tensor([left]), use_cache=False).logits[0]
        z = torch.stack([logits[i - start - 1] for i in seen])
        v = answer_logits(trainer.teacher_model, own, said)
        v = torch.stack([v[i - len(prompt)] for i in seen])
        total, count = (
            total + kd_loss(z, v, student_temperature=2.0, teacher_temperature=2.0).sum() * 4,
            count + len(z),
        )
    assert bool(cut_into) == (mode == "keep_end")
    torch.testing.assert_close(loss, (total / count).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_evaluation_reads_it_too(make_trainer, tokenizer):
    rows = rows_of_text()
    plain = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
    sets = {"own": Dataset.from_list(rows), "same": Dataset.from_list(plain)}
    trainer = make_trainer(train_dataset=sets["same"], eval_dataset=sets, per_device_eval_batch_size=3)
    trainer.model.eval()
    expected, without = (
        plain_loss(trainer, pairs).item()
        for pairs in (
            pairs_of(rows, tokenizer),
            pairs_of([{**row, "teacher_prompt": None} for row in plain], tokenizer),
        )
    )
    assert abs(expected - without) > 1e-3
    assert trainer.evaluate()["eval_own_loss"] == pytest.approx(expected, rel=1e-9)
    assert trainer.evaluate(sets)["eval_same_loss"] == pytest.approx(without, rel=1e-9)
    assert trainer.evaluate(sets["own"])["eval_loss"] == pytest.approx(expected, rel=1e-9)  # trained without one


# On-policy


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"padding_free": True, "max_length": None}, {"packing": True, "max_length": 64}],
    ids=str,
)
@pytest.mark.filterwarnings(FLASH)
def test_what_the_student_writes_is_read_behind_the_teachers_prompt(make_trainer, tokenizer, kind, fields):
    rows, more = KINDS[kind][0](), KINDS[kind][1]
    fields = {
        "per_device_train_batch_size": 8,
        "lmbda": 1.0,
        "max_new_tokens": 5,
        "temperature": 0.0,
        **more,
        **fields,
    }
    trainer = make_trainer(train_dataset=Dataset.from_list(rows), **fields)
    loss, _ = step_loss(trainer)
    prompts = {tuple(prompt): own for prompt, own, _ in pairs_of(rows, tokenizer)}
    written = [(prompt, prompts[tuple(prompt)], said) for prompt, said in trainer.rollouts.latest]
    assert len(written) == 8
    trainer.model.eval()
    torch.testing.assert_close(loss, plain_loss(trainer, written).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_rows_that_only_ask_and_replay(make_trainer, tokenizer, tmp_path):
    rows = [{name: row[name] for name in ("prompt", "teacher_prompt")} for row in rows_of_text()]
    fields = {"per_device_train_batch_size": 8, "lmbda": 1.0, "max_new_tokens": 5, "temperature": 0.0}
    data = Dataset.from_list(rows)
    trainer = make_trainer(train_dataset=data, eval_dataset=data, replay_size=8, replay_ratio=1.0, **fields)
    loss, _ = step_loss(trainer)
    own = {tuple(prompt): own for prompt, own, _ in pairs_of([{**row, "completion": ""} for row in rows], tokenizer)}
    written = [(prompt, own[tuple(prompt)], said) for prompt, said in trainer.rollouts.latest]
    trainer.model.eval()
    expected = plain_loss(trainer, written)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-12)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-9)
    # What is replayed, in this run and after a resume, is read behind the same
    trainer.rollouts.save(str(tmp_path))
    again = make_trainer(train_dataset=data, replay_size=8, replay_ratio=1.0, **fields)
    again.rollouts.load(str(tmp_path))
    assert list(again.rollouts.replay) == list(trainer.rollouts.replay)
    assert {tuple(row.context) for row in again.rollouts.replay} == set(map(tuple, own.values()))
    for each in (trainer, again):
        torch.manual_seed(0)
        batches = list(iter(each.get_train_dataloader()))
        new = each.rollouts(batches, 3, 0.5)
        assert each.rollouts.counts["replay"] > 0
        kept = [(row.input_ids[:-n], row.context, row.input_ids[-n:]) for row in each.rollouts.replay
                for n in [row.targets]]  # fmt: skip
        drawn = [kept[[row.input_ids for row in each.rollouts.replay].index(ids[mask.bool()].tolist())]
                 for ids, mask in zip(new[0]["input_ids"], new[0]["attention_mask"], strict=True)]  # fmt: skip
        each.model.eval()
        found = each.compute_loss(each.model, new[0]).detach()
        torch.testing.assert_close(found, plain_loss(each, drawn).detach(), rtol=1e-9, atol=1e-12)


# Templates


# One of each kind: headers, thoughts that are opened or left out of earlier turns, tools, an end that isn't EOS
FAMILIES = [
    "deepseekv3", "diffusion_gemma", "glm4moe", "gptoss", "lfm2_2_5", "llama3_2", "nemotron_3_nano", "phi3_5",
    "qwen2_5", "qwen3", "qwen3_5_think", "smolvlm",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_templates(make_config, name):
    """What the teacher reads is what its template makes of its own turns and the same answer."""
    tokenizer = prompt_rows.byte_tokenizer(name)
    cases, parts = prompt_rows.cases_of(tokenizer)
    said = (prompt_rows.in_parts if parts else list)([prompt_rows.answer("a dog")])
    shown = (prompt_rows.in_parts if parts else list)([prompt_rows.user("tell me, in a word")])
    rows = [
        {"prompt": shown, "completion": said, "teacher_prompt": turns, "tools": tools} for turns, tools, _ in cases
    ]
    data = IterableDataset.from_generator(lambda: iter(rows))
    args = make_config(lmbda=0.5, max_length=None)
    prepared = list(prompt_rows.prepare(tokenizer, data, args))
    assert len(prepared) == len(cases) >= 2
    for row, (turns, tools, asked) in zip(prepared, cases, strict=True):
        (context,), (generated,) = contexts_of(row[CONTEXTS]), row[TEACHER_PROMPTS]
        answer = row["input_ids"][next(i for i, label in enumerate(row["labels"]) if label != -100) :]
        whole = tokenizer.apply_chat_template([*turns, *said], tools=tools, return_dict=False)
        alone = tokenizer.apply_chat_template([*shown, *said], tools=tools, return_dict=False)
        assert row["input_ids"] == alone
        assert list(generated) == asked
        if name == "diffusion_gemma" and turns[-1]["role"] == "tool":  # an answer has a header that isn't asked for
            assert context == whole[: len(context)] and answer == whole[-len(answer) :]
        else:
            assert [*context, *answer] == whole, tokenizer.decode([*context, *answer])


@pytest.mark.parametrize("kind", ["turns", "messages"])
def test_words_of_an_answer_that_are_not_trained_on(make_config, tokenizer, kind):
    """The header of an answer may be trained on, or a part of the answer not: the rest is the same behind both."""
    tokenizer.chat_template = prompt_rows.THINKING
    rows = rows_of_turns(kind)
    args = make_config(max_length=None, assistant_only_loss=True)
    data = IterableDataset.from_generator(lambda: iter(rows))
    for row, prepared in zip(rows, prompt_rows.prepare(tokenizer, data, args), strict=True):
        (context,) = contexts_of(prepared[CONTEXTS])
        labels = prepared["labels"]
        answer = prepared["input_ids"][next(i for i, label in enumerate(labels) if label != -100) :]
        said = row["completion"] if kind == "turns" else row["messages"][1:]
        whole = tokenizer.apply_chat_template([*row["teacher_prompt"], *said], return_dict=False)
        assert [*context, *answer] == whole


# What is refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "teacher_prompt": [turn("user", "c")]}, "a conversation in `teacher_prompt`"),
        ({"prompt": [turn("user", "c")], "teacher_prompt": "a"}, "text in `teacher_prompt` and a conversation"),
        ({"text": "a", "teacher_prompt": "b"}, "in the place of the `prompt`, and none"),
        ({"prompt": "a", "completion": "b", "teacher_prompt": 3}, "int 3 in `teacher_prompt`"),
        ({"prompt": "a", "completion": "b", "teacher_prompt": ""}, "str '' in `teacher_prompt`"),
        ({"prompt": [turn("user", "c")], "teacher_prompt": [{"role": "user"}]}, "`content` of message 0 of `teacher_"),
        ({"messages": [turn("assistant", "b")] * 2, "teacher_prompt": [turn("user", "c")]}, "2 turns"),
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(row, message):
    assert message in problem_of(row)


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (rows_of_text(), {"completion_only_loss": False}, "`completion_only_loss` is False"),
        (rows_of_turns("messages"), {}, "`assistant_only_loss` is False"),
        (rows_of_text(), {"packing": True, "max_length": 32, "packing_strategy": "wrapped"}, "`packing_strategy`"),
    ],
    ids=["prompt", "turns", "pieces"],
)
def test_what_would_be_trained_on_before_the_answer_is_refused(make_trainer, rows, fields, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(train_dataset=Dataset.from_list(rows), **fields)


def test_a_prompt_that_is_too_long_for_the_teacher_is_refused(make_trainer):
    rows = [{**row, "teacher_prompt": "the cat " * 40} for row in rows_of_text()]
    trainer = make_trainer("gpt2", "gpt2", train_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match=r"With its `teacher_prompt` a row has .* positions for 64"):
        trainer.train()


# Other sources


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fields", [{}, {"packing": True, "max_length": 64}], ids=str)
@pytest.mark.filterwarnings(FLASH)
def test_a_cache_has_what_the_teacher_read(make, tmp_path, fields):
    data = {"train_dataset": Dataset.from_list(rows_of_text()), **fields}
    manifest = builder_of(make(**data), tmp_path / "cache").build()
    assert manifest.own_prompts
    live, cached = make(**data), make(**data, teacher_cache=str(tmp_path / "cache"))
    for trainer in (live, cached):
        trainer.train()
    expected, found = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (live, cached))
    assert found == pytest.approx(expected, rel=1e-9)
    # Another prompt of the teacher is another row
    for change in ("the mat and", None):
        rows = [{**row, "teacher_prompt": change} for row in rows_of_text()]
        with pytest.raises(ValueError, match="rows of the train data set"):
            make(**{**data, "train_dataset": Dataset.from_list(rows)}, teacher_cache=str(tmp_path / "cache"))
    without = data["train_dataset"].remove_columns("teacher_prompt")
    with pytest.raises(ValueError, match="does not read a `teacher_prompt` of these rows, and read one for the cache"):
        make(**{**data, "train_dataset": without}, teacher_cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "fields",
    [{}, {"teacher_server_logprobs": 20, "kd_temperature": 1.0}, {"lmbda": 1.0, "max_new_tokens": 8}],
    ids=["whole", "top 20", "on-policy"],
)
def test_a_server_is_asked_with_it(make, tokenizer, fields):
    data = {"train_dataset": Dataset.from_list(rows_of_text()), "max_steps": 2, "seed": 1}
    live = make(**data)
    server = TeacherServer(live.teacher.model, tokenizer)
    with server.running() as running:
        served = make(**data, **fields, teacher_model_name_or_path="teacher", teacher_server_url=running.url)
        if not fields:
            batch = next(iter(served.get_train_dataloader()))
            expected, found = (each.compute_loss(each.model, dict(batch)).item() for each in (live, served))
            assert found == pytest.approx(expected, rel=1e-4)
        served.train()
    losses = [entry["loss"] for entry in served.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)


@pytest.mark.usefixtures("float64")
def test_the_base_of_a_lora_student_reads_it(make_trainer, tokenizer):
    peft_config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    fields = {"teacher": None, "teacher_model_name_or_path": "student_base", "per_device_train_batch_size": 8}
    data = Dataset.from_list(rows_of_text())
    trainer = make_trainer(train_dataset=data, kwargs={"peft_config": peft_config}, **fields)
    base = copy.deepcopy(trainer.model).unload()
    for module in base.modules():  # TRL has put another one on the model, which a copy would share
        module.__dict__.pop("forward", None)
    check(trainer, pairs_of(rows_of_text(), tokenizer), teacher=base.eval())
