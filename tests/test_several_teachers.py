# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Several teachers: rows with one each, and the mixture of all, against plain formulas."""

import pytest
import torch
from datasets import Dataset
from test_own_prompt import FLASH, pairs_of, rows_of_text, step_loss

from trl_tempkd import TemperatureKDTrainer, kd_loss
from trl_tempkd.divergences import DIVERGENCES


ROWS = rows_of_text()
NAMES = ["moon", "cat", "moon", "moon", "cat", "cat", "moon", "cat"]
PLAIN = [{name: row[name] for name in ("prompt", "completion")} for row in ROWS]
ROUTED = [{**row, "teacher": name} for row, name in zip(PLAIN, NAMES, strict=True)]


@pytest.fixture
def make(tmp_path, make_model, make_config, tokenizer):
    """`make(rows, teachers, **fields)`: a trainer whose teachers `moon` and `cat` have folders; more of each entry."""
    folders = {}
    for seed, (name, architecture) in enumerate((("moon", "llama"), ("cat", "gemma3_text")), start=1):
        model = make_model(architecture, seed=seed)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    student = make_model()
    state = {name: value.clone() for name, value in student.state_dict().items()}

    def make(rows, more=None, names=("moon", "cat"), **fields):
        more = more or {}
        teachers = [
            {"name": name, "model": folders[name.split("_")[0]], "init_kwargs": dtype(), **more.get(name, {})}
            for name in names
        ]
        student.load_state_dict(state)
        fields = {"per_device_train_batch_size": 8, "teachers": teachers, **fields}
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        return TemperatureKDTrainer(
            student, args=make_config(**fields), train_dataset=data, processing_class=tokenizer,
            eval_dataset=Dataset.from_list(rows) if "eval_strategy" in fields else None,
        )  # fmt: skip

    return make


def dtype():
    return {"dtype": torch.get_default_dtype()}


def answers(model, prompt, said):
    return model(torch.tensor([prompt + said]), use_cache=False).logits[0, len(prompt) - 1 : -1]


def teacher_logits(trainer, name, prompt, said):
    with torch.no_grad():
        return answers(trainer.accelerator.unwrap_model(trainer.teacher.members[name].model), prompt, said)


def check_gradients(trainer, loss, gradients, expected):
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-12)
    expected.backward()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-7, atol=1e-11)
    trainer.model.zero_grad()


# Rows with one teacher each


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "kd_ratio": 0.7},
        {"padding_free": True, "max_length": None},
        {"own prompts": True},
        {"stream": True},
        {"lmbda": 1.0, "max_new_tokens": 5, "temperature": 0.0, "own prompts": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings(FLASH)
def test_each_row_has_its_teacher(make, tokenizer, fields):
    fields = dict(fields)
    rows = ROUTED
    if fields.pop("own prompts", False):
        rows = [{**row, "teacher_prompt": own["teacher_prompt"]} for row, own in zip(ROUTED, ROWS, strict=True)]
    data = Dataset.from_list(rows).to_iterable_dataset() if fields.pop("stream", False) else rows
    more = {
        "moon": {"kd_temperature": 3.0, "weight": 0.3},
        "cat": {"divergence": "jsd", "divergence_kwargs": {"beta": 0.2}, "teacher_kd_temperature": 0.7},
    }
    trainer = make(data, more, divergence="reverse_kl", kd_temperature=1.5, **fields)
    loss, gradients = step_loss(trainer)
    pairs = pairs_of([{"teacher_prompt": None, **row} for row in rows], tokenizer)
    if "lmbda" in fields:
        known = {tuple(prompt): (own, name) for (prompt, own, _), name in zip(pairs, NAMES, strict=True)}
        written = [(prompt, *known[tuple(prompt)], said) for prompt, said in trainer.rollouts.latest]
    else:
        written = [(prompt, own, name, said) for (prompt, own, said), name in zip(pairs, NAMES, strict=True)]
    trainer.model.eval()
    total, count = 0.0, 0
    kinds = {
        "moon": ("reverse_kl", None, 3.0, 3.0, 0.3),
        "cat": ("jsd", {"beta": 0.2}, 1.5, 0.7, 1.0),
    }
    ratio = trainer.args.kd_ratio
    for prompt, own, name, said in written:
        divergence, kwargs, tau_s, tau_t, weight = kinds[name]
        z, v = answers(trainer.model, prompt, said), teacher_logits(trainer, name, own, said)
        kd = kd_loss(
            z, v, divergence=divergence, divergence_kwargs=kwargs, student_temperature=tau_s,
            teacher_temperature=tau_t, rescale="tau2",
        ).sum()  # fmt: skip
        ce = torch.nn.functional.cross_entropy(z, torch.tensor(said), reduction="sum")
        total, count = total + ratio * weight * kd + (1 - ratio) * ce, count + len(said)
    check_gradients(trainer, loss, gradients, total / count)


@pytest.mark.usefixtures("float64")
def test_routing_is_the_sum_of_the_runs_on_the_parts(make, make_trainer, tokenizer):
    routed = make(ROUTED)
    expected = 0.0

    def tokens_of(rows):
        return sum(len(said) for _, _, said in pairs_of([{**row, "teacher_prompt": None} for row in rows], tokenizer))

    for name in ("moon", "cat"):
        part = [row for row, other in zip(PLAIN, NAMES, strict=True) if other == name]
        teacher = routed.accelerator.unwrap_model(routed.teacher.members[name].model)
        one = make_trainer("llama", teacher, train_dataset=Dataset.from_list(part), per_device_train_batch_size=8)
        tokens = sum(
            len(said) for _, _, said in pairs_of([{**row, "teacher_prompt": None} for row in part], tokenizer)
        )
        expected += step_loss(one)[0] * tokens
    loss, _ = step_loss(routed)
    torch.testing.assert_close(loss, expected / tokens_of(PLAIN), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [ROUTED, PLAIN], ids=["routed", "mixture"])
def test_what_is_logged(make, tokenizer, rows):
    trainer = make(
        rows, eval_strategy="steps", eval_steps=1, max_steps=1, per_device_eval_batch_size=3, learning_rate=0.0
    )
    trainer.train()
    first = trainer.state.log_history[0]
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    of = {"moon": [], "cat": []}
    trainer.model.eval()
    pairs = pairs_of([{**row, "teacher_prompt": None} for row in PLAIN], tokenizer)
    for (prompt, _, said), own in zip(pairs, NAMES, strict=True):
        for name in [own] if rows is ROUTED else list(of):
            v, z = teacher_logits(trainer, name, prompt, said), answers(trainer.model, prompt, said)
            of[name].append(kd_loss(z, v, student_temperature=1.0, teacher_temperature=1.0).detach())
    counts = {name: len(torch.cat(values)) for name, values in of.items()}
    tokens = sum(len(said) for _, _, said in pairs)
    for name, values in of.items():
        assert first[f"kl_tau1/{name}"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-9)
        assert evaluated[f"eval_kl_tau1/{name}"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-9)
        assert first[f"teacher_share/{name}"] == pytest.approx(counts[name] / tokens)
        assert first[f"kd_loss/{name}"] > 0
    assert evaluated["eval_loss"] == pytest.approx(first["loss"], rel=1e-9)
    if rows is ROUTED:
        mean = sum(torch.cat(values).sum().item() for values in of.values()) / tokens
        assert first["kl_tau1"] == pytest.approx(mean, rel=1e-9)


def test_a_teacher_without_rows_is_left_out_of_the_log(make):
    trainer = make([{**row, "teacher": "moon"} for row in PLAIN], max_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["teacher_share/moon"] == 1 and first["teacher_share/cat"] == 0
    assert "kl_tau1/moon" in first and "kl_tau1/cat" not in first


# A mixture


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "tvd", "diversity_reverse_kl"])
@pytest.mark.parametrize("fields", [{}, {"padding_free": True, "max_length": None, "kd_chunk_size": 5}], ids=str)
@pytest.mark.filterwarnings(FLASH)
def test_the_mixture_is_of_probabilities_after_tau(make, tokenizer, divergence, fields):
    rows = ROWS if fields else PLAIN  # behind a prompt of the teachers too
    more = {"moon": {"weight": 3.0, "teacher_kd_temperature": 2.5}, "cat": {"weight": 1.0}}
    trainer = make(rows, more, divergence=divergence, kd_temperature=1.5, student_kd_temperature=0.8, **fields)
    loss, gradients = step_loss(trainer)
    trainer.model.eval()
    total, count = 0.0, 0
    for prompt, own, said in pairs_of([{"teacher_prompt": None, **row} for row in rows], tokenizer):
        p = 0.75 * (teacher_logits(trainer, "moon", own, said) / 2.5).softmax(-1)
        p = p + 0.25 * (teacher_logits(trainer, "cat", own, said) / 1.5).softmax(-1)
        log_q = (answers(trainer.model, prompt, said) / 0.8).log_softmax(-1)
        target = [torch.tensor(said)] if divergence == "diversity_reverse_kl" else []
        total = total + DIVERGENCES[divergence](p.log(), log_q, *target).sum() * 0.8 * (0.75 * 2.5 + 0.25 * 1.5)
        count += len(said)
    check_gradients(trainer, loss, gradients, total / count)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fields", [{}, {"divergence": "jsd", "kd_temperature": 3.0, "kd_ratio": 0.6}], ids=str)
def test_a_mixture_of_one_teacher_twice_is_that_teacher(make, make_trainer, fields):
    twice = make(PLAIN, {"moon_a": {"weight": 0.2}}, names=("moon_a", "moon_b"), max_steps=3, **fields)
    twice.train()
    teacher = twice.accelerator.unwrap_model(twice.teacher.members["moon_a"].model)
    one = make_trainer(
        "llama", teacher, train_dataset=Dataset.from_list(PLAIN), max_steps=3, per_device_train_batch_size=8, **fields
    )
    one.train()
    for name in ("loss", "grad_norm", "kd_loss", "kl_tau1", "teacher_entropy", "token_agreement", "ce_loss"):
        expected, found = ([e[name] for e in t.state.log_history if name in e] for t in (one, twice))
        assert len(found) == 3 and found == pytest.approx(expected, rel=1e-8), name
    for name in ("kd_loss", "kl_tau1"):
        expected, found = ([e[key] for e in twice.state.log_history if key in e] for key in (name, f"{name}/moon_b"))
        assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.usefixtures("float64")
def test_resumed(make, tmp_path):
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    fields["model_init_kwargs"] = None

    def losses(trainer, **kwargs):
        trainer.train(**kwargs)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    trainer = make(ROUTED, **fields)
    expected, folder = losses(trainer), f"{trainer.args.output_dir}/checkpoint-2"
    assert losses(make(ROUTED, **fields), resume_from_checkpoint=folder) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="`teachers` was"):
        losses(make(ROUTED, {"moon": {"weight": 2.0}}, **fields), resume_from_checkpoint=folder)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [PLAIN, ROUTED], ids=["mixed", "routed"])
def test_an_average_of_the_student_among_them_goes_on_after_a_resume(make, rows):
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "teacher_ema_decay": 0.6}
    fields |= {"per_device_train_batch_size": 2}

    def losses(**kwargs):
        trainer = make(rows, {"cat": {"model": "student_ema", "init_kwargs": None}}, **fields)
        trainer.train(**kwargs)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.args.output_dir

    expected, folder = losses()
    assert losses(resume_from_checkpoint=f"{folder}/checkpoint-2")[0] == pytest.approx(expected, rel=1e-9)


# What is refused


ONE = {"name": "a", "model": "m"}


@pytest.mark.parametrize(
    ("teachers", "fields", "message"),
    [
        ([], {}, "must be a list of dicts"),
        ("a", {}, "must be a list of dicts"),
        ([3], {}, "got 3 in it"),
        ([{"name": "a"}], {}, "must have a `model`"),
        ([ONE, ONE], {}, "has 'a' twice"),
        ([{**ONE, "wieght": 1}], {}, "'wieght', and an entry takes .*did you mean 'weight'"),
        ([{**ONE, "weight": 0}], {}, "a: `weight` must be positive"),
        ([{**ONE, "kd_temperature": "hot"}], {}, "`kd_temperature` must be positive and finite, got 'hot'"),
        ([{**ONE, "divergence": "taid"}], {}, "`divergence` is taid with `teachers`"),
        ([{**ONE, "divergence": "jsd", "divergence_kwargs": {"beta": 3}}], {}, "a: .*beta"),
        ([ONE], {"divergence": "minillm", "lmbda": 1.0}, "`divergence` is minillm with"),
        ([ONE], {"seq_kd": True}, "`seq_kd` is True"),
        ([ONE], {"kd_temperature_rule": "zscore"}, "`kd_temperature_rule` is 'zscore'"),
        ([ONE], {"teacher_model_name_or_path": "x"}, "`teacher_model_name_or_path` is 'x'"),
        ([ONE], {"teacher_server_url": "http://me:secret@host"}, r"`teacher_server_url` is 'http://\*\*\*@host'"),
    ],
    ids=str,
)
def test_options_are_refused_by_name(make_config, teachers, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(teachers=teachers, **fields)


@pytest.mark.parametrize(
    ("rows", "more", "fields", "message"),
    [
        ([{**row, "teacher": "dog"} for row in PLAIN], {}, {}, "'dog' in `teacher`, and `teachers` has moon, cat"),
        (ROUTED, {}, {"packing": True, "max_length": 32}, "`packing` lays rows together"),
        (PLAIN, {"cat": {"divergence": "jsd"}}, {}, "cat: `divergence` is of its own"),
        (PLAIN, {"cat": {"student_kd_temperature": 2.0}}, {}, "cat: `student_kd_temperature` is of its own"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings(FLASH)
def test_rows_that_cannot_be_routed_are_refused(make, rows, more, fields, message):
    with pytest.raises(ValueError, match=message):
        make(rows, more, **fields)


def test_a_vocabulary_that_differs_is_refused_by_name(make, make_model, tmp_path):
    make_model(seed=1, vocab_size=120).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"`teachers`, cat: .*the teacher's vocabulary 120"):
        make(PLAIN, {"cat": {"model": str(tmp_path / "small")}})
