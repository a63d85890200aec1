# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A mistake of the user is one line that names it, in Python and on the command line; a bug is a traceback."""

import dataclasses
import importlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CHAT_TEMPLATE, build_tokenizer
from datasets import Dataset, DatasetDict, IterableDataset
from trl import SFTConfig, SFTTrainer

from trl_tempkd import KDConfig, TemperatureKDTrainer, chunked_kd_loss, cli
from trl_tempkd.counted_tokens import counted_tokens, has_target
from trl_tempkd.data_checks import check_rows
from trl_tempkd.divergences import DIVERGENCES, check_divergence
from trl_tempkd.errors import UsageError, UsageTypeError
from trl_tempkd.losses import TopK
from trl_tempkd.objectives import OBJECTIVES, check_objective
from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES, check_temperature_rule
from trl_tempkd.tiny import tiny_model_path
from trl_tempkd.trl_names import TRL_NAMES


PAIR = ["--model_name_or_path", "tiny:student", "--teacher_model_name_or_path", "tiny:teacher"]
CPU = ["--use_cpu", "--bf16", "false", "--report_to", "none"]


@pytest.fixture
def refused(capsys):
    """`refused(ARGS)`: the one line on stderr with which a command line is refused, at exit status 2."""

    def call(*args: object) -> str:
        try:
            status = cli.main([str(arg) for arg in args])
        except SystemExit as stop:
            status = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert status == 2, lines
        assert len(lines) == 1, lines
        return lines[0]

    return call


# Options: their types


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kd_temperature": "2"}, r"`kd_temperature` must be a number, got '2' \(str\)"),
        ({"kd_temperature": None}, r"`kd_temperature` must be a number, got None"),
        ({"kd_temperature": True}, r"`kd_temperature` must be a number, got True \(bool\)"),
        ({"kd_temperature": [2.0]}, r"`kd_temperature` must be a number, got \[2.0\] \(list\)"),
        ({"student_kd_temperature": "1"}, r"`student_kd_temperature` must be a number, or None, got '1'"),
        ({"lmbda": "0.5"}, r"`lmbda` must be a number"),
        ({"seq_kd": "false"}, r"`seq_kd` must be True or False, got 'false' \(str\)"),
        ({"max_new_tokens": 12.5}, r"`max_new_tokens` must be a whole number, got 12.5 \(float\)"),
        ({"max_new_tokens": "12"}, r"`max_new_tokens` must be a whole number, got '12'"),
        ({"kd_chunk_size": True}, r"`kd_chunk_size` must be a whole number, or None, got True"),
        ({"divergence": None}, r"`divergence` must be text, got None"),
        ({"divergence": 3}, r"`divergence` must be text, got 3 \(int\)"),
        (
            {"divergence_kwargs": [("beta", 0.1)]},
            r"`divergence_kwargs` must be a dict, on the command line its JSON, or None, got",
        ),
        ({"divergence": "jsd", "divergence_kwargs": {"beta": "0.1"}}, r"'beta' must be a number, got '0.1' \(str\)"),
        ({"divergence": "taid", "divergence_kwargs": {"t": None}}, r"'t' must be a number, got None"),
        (
            {"kd_temperature_rule": "max_logit", "kd_temperature_rule_kwargs": {"rho": "5"}},
            r"`kd_temperature_rule_kwargs` .* does not fit max_logit: 'rho' must be a number",
        ),
        ({"teacher_server_timeout": "60"}, r"`teacher_server_timeout` must be a number, got '60'"),
    ],
)
def test_an_option_of_the_wrong_type(make_config, fields, message):
    with pytest.raises(UsageError, match=message):
        make_config(**fields)


def test_every_number_of_ours_is_held_to_its_type(make_config):
    """Whatever option is added later, a word in the place of its number is named."""
    own = {f.name: f for f in dataclasses.fields(KDConfig)}
    for name in own.keys() - {f.name for f in dataclasses.fields(SFTConfig)}:
        if any(kind in str(own[name].type) for kind in ("float", "int", "bool")):
            with pytest.raises(UsageTypeError, match=f"`{name}` must be .*, got 'three'"):
                make_config(**{name: "three"})


@pytest.mark.parametrize("value", [2, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)])
def test_a_number_of_any_library_is_a_number(make_config, value):
    config = make_config(kd_temperature=value)
    assert config.kd_temperature == 2.0
    assert type(config.kd_temperature) in (int, float)  # which JSON and YAML can write
    config.to_json_string()


def test_a_path_is_text(make_config, tmp_path):
    assert make_config(teacher_model_name_or_path=tmp_path).teacher_model_name_or_path == str(tmp_path)
    assert make_config(seq_kd=np.bool_(True)).seq_kd is True


# Options: their names


def configs_of_trl():
    """The configurations of TRL's distillation trainers."""
    places = {
        "trl": "DistillationConfig",
        "trl.experimental.gkd": "GKDConfig",
        "trl.experimental.server_distillation": "ServerDistillationConfig",
        "trl.experimental.async_distillation": "AsyncDistillationConfig",
        "trl.experimental.gold": "GOLDConfig",
        "trl.experimental.iw_opd": "IWOPDConfig",
        "trl.experimental.sdft": "SDFTConfig",
        "trl.experimental.sdpo": "SDPOConfig",
    }
    return [getattr(importlib.import_module(module), name) for module, name in places.items()]


@pytest.mark.filterwarnings("ignore")
def test_every_option_of_trls_distillers_is_ours_or_has_its_place_named():
    ours = {field.name for field in dataclasses.fields(KDConfig)}
    for config in configs_of_trl():
        for field in dataclasses.fields(config):
            assert field.name in ours or field.name in TRL_NAMES, f"{config.__name__}.{field.name}"
    assert not ours & set(TRL_NAMES)
    quoted = {
        word.strip("`=") for text in TRL_NAMES.values() for word in text.replace("=", " ").split() if "`" in word
    }
    named = {word for word in quoted if word.isidentifier() and "_" in word}
    assert {"teacher_server_url", "max_new_tokens", "divergence_kwargs"} <= named <= ours


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beta", "KDConfig has no `beta`: use `divergence='jsd'` with `divergence_kwargs={'beta': ...}`"),
        ("max_completion_length", "KDConfig has no `max_completion_length`: use `max_new_tokens`"),
        ("teacher_model_server_url", "use `teacher_server_url`"),
        ("use_uld_loss", "another tokenizer"),
        ("kd_temprature", "KDConfig has no `kd_temprature`; did you mean 'kd_temperature'?"),
        ("learning_rat", "did you mean 'learning_rate'?"),
        ("xyzzy", "KDConfig has no `xyzzy`"),
    ],
)
def test_an_unknown_option_in_python(tmp_path, name, message):
    with pytest.raises(UsageError) as caught:
        KDConfig(str(tmp_path), **{name: 0.5})
    assert message in str(caught.value)
    assert isinstance(caught.value, TypeError)  # which is what Python says of an argument that there isn't


@pytest.mark.parametrize("command", ["distill", "cache"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beta", "beta: use `divergence='jsd'`"),
        ("teacher-model-server-url", "teacher-model-server-url: use `teacher_server_url`"),
        ("kd_temprature", "did you mean '--kd_temperature'?"),
    ],
)
def test_an_unknown_option_on_the_command_line(refused, command, name, message):
    assert message in refused(command, f"--{name}", "0.5")


def test_an_unknown_option_in_a_recipe(refused, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("beta: 0.5\n", encoding="utf-8")
    assert "unknown key 'beta' in" in (line := refused("distill", "--config", recipe))
    assert ": use `divergence='jsd'`" in line


def test_values_of_a_recipe_that_are_no_text_and_no_number(refused, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for line, message in (
        ("output_dir: [a]", "expected text, got ['a']"),
        ("metric_for_best_model: true", "expected text, got True"),
        ("label_smoothing_factor: null", "expected float, got nothing"),
        ("log_level: loud", "expected one of"),
    ):
        recipe.write_text(f"use_cpu: true\n{line}\n", encoding="utf-8")
        assert message in refused("distill", "--config", recipe)


# Metrics


def test_a_metric_that_a_truncated_teacher_has_no_numbers_for():
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4), torch.randn(8, 4)
    whole = torch.randn(3, 8).log_softmax(-1)
    teacher = TopK.from_log_probs(*reversed(whole.topk(4)), size=8)
    ask = lambda *names: chunked_kd_loss(hidden, weight, teacher, labels=torch.tensor([1, 2, 3]), metrics=names)  # noqa: E731
    with pytest.raises(UsageError, match=r"`metrics` has 'kl_tau1', and of this teacher there are kd, kl_tau1_coarse"):
        ask("kl_tau1")
    with pytest.raises(UsageError, match="teacher_ce"):
        ask("teacher_ce")
    assert set(ask(*TopK.metrics_of((1.0,)), "student_tau").metrics) == {*TopK.metrics_of((1.0,)), "student_tau"}
    whole_teacher = chunked_kd_loss(
        hidden, weight, hidden, weight, labels=torch.tensor([1, 2, 3]), metrics=["kl_tau1", "teacher_ce"]
    )
    assert set(whole_teacher.metrics) == {"kl_tau1", "teacher_ce"}
    with pytest.raises(UsageError, match="kl_tau1_coarse"):
        chunked_kd_loss(hidden, weight, hidden, weight, metrics=["kl_tau1_coarse"])


# A bug is no mistake of the user's


def broken(log_p, log_q, *, scale: float = 1.0):
    """scale times nothing. Source: this test."""
    first, _ = (log_p, log_q, scale)
    return first


def picky(log_p, log_q, *, scale: float = 1.0):
    """scale times the squared error. Source: this test."""
    if scale < 0:
        raise ValueError(f"`scale` must not be negative, got {scale}.")
    if scale > 1:
        int("a bug in a branch of its own")
    return scale * (log_p - log_q).square().sum(-1)


@pytest.mark.parametrize("kwargs", [None, {}, {"scale": 0.5}])
def test_a_bug_in_a_divergence_is_not_the_users(monkeypatch, make_config, kwargs):
    monkeypatch.setitem(DIVERGENCES, "broken", broken)
    with pytest.raises(ValueError, match="too many values to unpack") as caught:
        make_config(divergence="broken", divergence_kwargs=kwargs)
    assert not isinstance(caught.value, UsageError)


def test_a_divergence_of_ones_own_refuses_its_parameters(monkeypatch, make_config, refused):
    monkeypatch.setitem(DIVERGENCES, "picky", picky)
    make_config(divergence="picky", divergence_kwargs={"scale": 0.5})
    with pytest.raises(
        UsageError, match=r"`divergence_kwargs` \{'scale': -1.0\} does not fit picky: `scale` must not be"
    ):
        make_config(divergence="picky", divergence_kwargs={"scale": -1.0})
    with pytest.raises(ValueError, match="invalid literal") as caught:
        check_divergence("picky", {"scale": 2.0})
    assert not isinstance(caught.value, UsageError)
    assert "`scale` must not be negative, got -1" in refused(
        "distill", *CPU, "--divergence", "picky", "--divergence_kwargs", '{"scale": -1}'
    )


def test_a_rule_or_an_objective_of_ones_own(monkeypatch):
    def rule(z, v, tau_s, tau_t, *, rho):
        """rho. Source: this test."""
        if rho < 0:
            raise ValueError(f"`rho` must not be negative, got {rho}.")
        return tau_s * rho, tau_t * rho

    for rules in (ROW_RULES, TEMPERATURE_RULES):
        monkeypatch.setitem(rules, "mine", rule)
    with pytest.raises(UsageError, match="must have 'rho', which mine has no default for"):
        check_temperature_rule("mine")
    with pytest.raises(UsageError, match="does not fit mine: `rho` must not be negative"):
        check_temperature_rule("mine", {"rho": -1.0})
    check_temperature_rule("mine", {"rho": 1.0})

    class Bad:
        def __init__(self, scale: float = 1.0):
            raise KeyError("a bug")

    monkeypatch.setitem(OBJECTIVES, "bad", Bad)
    with pytest.raises(KeyError, match="a bug"):
        check_objective("bad")


# Data, in Python


class Loaded(Exception):
    """What is raised where a model would be loaded."""


@pytest.fixture
def unloaded(monkeypatch, make_config, tokenizer):
    """`unloaded(train_dataset=..., **fields)`: a trainer that stops where it would load a model."""

    def load(*args, **kwargs):
        raise Loaded

    monkeypatch.setattr("trl.SFTTrainer.__init__", load)

    def make(train_dataset, eval_dataset=None, processing_class=tokenizer, kwargs=None, **fields):
        student, teacher = (tiny_model_path(name) for name in ("student", "teacher"))
        TemperatureKDTrainer(
            student,
            teacher,
            make_config(**fields),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **(kwargs or {}),
        )

    return make


USER, ASSISTANT = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}
HUMAN, GPT = {"from": "human", "value": "the cat"}, {"from": "gpt", "value": "sat on the mat"}
PAIR_ROW = {"prompt": "the cat", "completion": " sat on the mat"}
CHAT_ROW = {"messages": [USER, ASSISTANT]}
LONG_ROW = {"prompt": "a teacher gives soft targets to a student", "completion": " so"}

# Rows that can't be trained on -> what is said, and the columns that the named conversion makes of them
CONVERTED = [
    ({"question": "the cat", "answer": "sat"}, "it has question, answer", {"prompt", "completion"}),
    ({"query": "the cat", "response": "sat", "id": 3}, "it has query, response, id", {"prompt", "completion"}),
    ({"problem": "the cat", "solution": "sat"}, "it has problem, solution", {"prompt", "completion"}),
    ({"instruction": "look", "input": "", "output": "sat"}, "alpaca_prompt", {"prompt", "completion"}),
    ({"instruction": "look", "context": "moon", "response": "sat"}, 'row["context"]', {"prompt", "completion"}),
    ({"instruction": "look", "output": "sat"}, 'alpaca_prompt(row["instruction"])', {"prompt", "completion"}),
    ({"conversations": [HUMAN, GPT]}, "'human' for the `from` of message 0", {"messages"}),
    ({"conversation": [HUMAN, GPT]}, "it has conversation", {"messages"}),
    ({"messages": [HUMAN, GPT]}, "`from` and `value` in message 0", {"messages"}),
    ({"messages": [{**USER, "role": "human"}, {**ASSISTANT, "role": "gpt"}]}, "'human' for the `role`", {"messages"}),
    ({"conversations": [USER, ASSISTANT]}, "it has conversations", {"messages"}),
    ({"dialog": [USER, ASSISTANT]}, "it has dialog", {"messages"}),
    ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "it has chosen, rejected", {"messages"}),
    ({"messages": json.dumps([USER, ASSISTANT])}, "as JSON in a text", {"messages"}),
    ({"prompt": [USER], "completion": "sat"}, "text in one of", {"prompt", "completion"}),
    ({"prompt": "the cat", "completion": [ASSISTANT]}, "text in one of", {"prompt", "completion"}),
]


@pytest.mark.parametrize(("row", "said", "columns"), CONVERTED, ids=[row[1] for row in CONVERTED])
def test_rows_in_another_format_have_their_conversion_named(unloaded, row, said, columns):
    dataset = Dataset.from_list([row, row])
    with pytest.raises(UsageError) as caught:
        unloaded(dataset)
    line = str(caught.value)
    assert line.startswith("`train_dataset`, row 0: has ")
    assert said in line
    # What it says to do is done, and works
    scope = {"dataset": dataset, "json": json}
    for code in re.findall(r"`((?:from |dataset\.)[^`]*)`", line):
        exec(f"dataset = {code}" if code.startswith("dataset") else code, scope)
    dataset = scope["dataset"]
    assert columns <= set(dataset.column_names)
    with pytest.raises(Loaded):
        unloaded(dataset)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a": 1, "b": 2}, "no column to train on, which are .*: it has a, b"),
        ({"story": "the cat", "n": 3}, "`dataset_text_field` 'story'"),
        ({"text": None}, r"nothing \(None\) in `text`"),
        ({"text": 3}, "int 3 in `text`"),
        ({"prompt": "a", "completion": None}, r"nothing \(None\) in `completion`"),
        ({"prompt": None, "completion": "a"}, r"nothing \(None\) in `prompt`"),
        ({"prompt": [], "completion": [ASSISTANT]}, "no messages in `prompt`"),
        ({"messages": []}, "no messages in `messages`"),
        ({"messages": None}, r"nothing \(None\) in `messages`"),
        ({"messages": [{"role": "user", "content": None}]}, "for the `content` of message 0 of `messages`"),
        ({"messages": [{"content": "x"}]}, "for the `role` of message 0 of `messages`"),
        ({"messages": ["the cat"]}, "str 'the cat' as message 0"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "int 3 for the `content` of message 1"),
        ({"input_ids": "1 2 3"}, "in `input_ids`, which must be a list of token ids"),
        ({"input_ids": [1.5, 2.5]}, "in `input_ids`, which must be a list of token ids"),
        ({"input_ids": [1, 2], "labels": [1]}, "2 `input_ids` and 1 `labels`"),
    ],
)
def test_rows_that_are_not_what_they_should_be(unloaded, make_config, row, said):
    with pytest.raises(UsageError, match=f"^`train_dataset`, row 0: has .*{said}"):
        unloaded(IterableDataset.from_generator(lambda: iter([row])))
    good = [{"text": "the cat"}, PAIR_ROW, CHAT_ROW, {"input_ids": [3, 4]}]
    for other in good:
        if set(other) & set(row):
            with pytest.raises(UsageError, match=f"^`train_dataset`, row 2: has .*{said}"):
                check_rows([other, other, row], "`train_dataset`", make_config())


@pytest.mark.parametrize(
    "row",
    [
        {"text": "the cat sat"},
        PAIR_ROW,
        CHAT_ROW,
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b c"}]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, ASSISTANT]},
        {"messages": [{"role": "system", "content": ""}, USER, ASSISTANT], "extra": 1},
        {"input_ids": [3, 4, 5]},
        {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]},
        {"prompt": "the cat"},
        {"prompt": [USER]},
        {"text": "the cat", "messages": None},
        {"prompt": "", "completion": "sat"},
    ],
)
def test_rows_that_are_fine(unloaded, row):
    for dataset in (Dataset.from_list([row, row]), Dataset.from_list([row]).to_iterable_dataset()):
        with pytest.raises(Loaded):
            unloaded(dataset)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([LONG_ROW] * 3, {"max_length": 3}, r"nothing left to train on in any of its 3 rows, .*`max_length` 3"),
        ([CHAT_ROW] * 3, {"max_length": 4, "assistant_only_loss": True}, "and number 6 is the first to be trained on"),
        ([{"prompt": [USER], "completion": [ASSISTANT]}], {"max_length": 4}, "`max_length` 4"),
        ([{"text": "the cat sat"}], {"max_length": 1}, "and number 2 is the first to be trained on"),
        ([{"input_ids": [3, 4, 5], "labels": [-100] * 3}], {}, "none of which is trained on"),
        ([{"input_ids": [3, 4, 5], "labels": [3, -100, -100]}], {}, "none of which is trained on"),
    ],
)
def test_every_row_is_cut_away(unloaded, make_trainer, rows, fields, said, streamed):
    dataset = Dataset.from_list(rows)
    with pytest.raises(UsageError, match=said):
        unloaded(dataset.to_iterable_dataset() if streamed else dataset, **fields)
    if not fields.get("assistant_only_loss"):  # the evaluation's rows too
        with pytest.raises(UsageError, match=said):
            unloaded(Dataset.from_list([{"text": "a much longer text"}] * 9), dataset, **fields)


def test_a_conversion_to_text_whose_rows_are_cut_away(make_trainer):
    """What `formatting_func` makes of the rows is known when it has."""
    dataset = Dataset.from_list([{"a": "the cat"}] * 3)
    with pytest.raises(UsageError, match="the train data has nothing to train on: of 3 rows none has a token"):
        make_trainer(train_dataset=dataset, kwargs={"formatting_func": lambda row: row["a"]}, max_length=1)


def test_some_rows_are_cut_away(make_trainer, caplog):
    rows = Dataset.from_list([PAIR_ROW, LONG_ROW, PAIR_ROW, LONG_ROW])
    with caplog.at_level("WARNING"):
        trainer = make_trainer(train_dataset=rows, max_length=6)
    assert len(trainer.train_dataset) == 2
    said = "2 of 4 rows of the train data (50.0%) have no token left to train on after `max_length` 6"
    assert caplog.text.count(said) == 1


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"completion_only_loss": False},
        {"completion_only_loss": True, "truncation_mode": "keep_end"},
        {"assistant_only_loss": True},
    ],
)
def test_what_is_left_is_what_trl_leaves(make_config, tokenizer, fields):
    """The rows that TRL's own preparation keeps, and no others, are those with a token to train on."""
    texts = ["the cat", "the cat sat on", "warm logits carry more than", "what"]
    chats = [{"messages": [{**USER, "content": a}, {**ASSISTANT, "content": b}]} for a in texts for b in texts]
    shares = [
        {"conversations": [{"from": t["role"], "value": t["content"]} for t in row["messages"]]} for row in chats
    ]
    plain = [
        [{"prompt": a, "completion": b} for a in texts for b in ("", " x", " the moon")],
        [{"text": text} for text in texts],
        [{"input_ids": list(range(n)), "labels": [-100] * (n - 1) + [1]} for n in (1, 2, 5, 12)],
    ]
    talks = [{"prompt": [USER], "completion": [{**ASSISTANT, "content": text}]} for text in texts]
    args = make_config(**fields)
    for rows in (chats, shares, talks, *([] if args.assistant_only_loss else plain)):
        only = "completion" in rows[0] if args.completion_only_loss is None else args.completion_only_loss
        trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=only)
        stream = Dataset.from_list([{**row, "number": i} for i, row in enumerate(rows)]).to_iterable_dataset()
        for args.max_length in (None, 1, 2, 5, 9, 14):
            left = list(SFTTrainer._prepare_dataset(trainer, stream, tokenizer, args, False, None, "train"))
            labels = {row["number"]: row["labels"] for row in left}
            for number, row in enumerate(rows):
                counted = counted_tokens(row, tokenizer, args)
                if args.max_length is None:
                    assert counted == [label != -100 for label in labels[number]], row
                wanted = any(label != -100 for label in labels.get(number, [])[1:])
                assert has_target(counted, args) == wanted, (row, args.max_length)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("where", ["train", "eval", "evals"])
def test_an_empty_split(unloaded, where, streamed):
    some = Dataset.from_list([PAIR_ROW])
    empty = IterableDataset.from_generator(lambda: iter([])) if streamed else some.select([])
    given = {"train": (empty, None), "eval": (some, empty), "evals": (some, {"a": some, "b": empty})}[where]
    name = {"train": "`train_dataset`", "eval": "`eval_dataset`", "evals": "`eval_dataset['b']`"}[where]
    with pytest.raises(UsageError, match=re.escape(f"{name} has no rows")):
        unloaded(*given)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (None, "`train_dataset` is None"),
        ([PAIR_ROW], "must be a `datasets.Dataset` or `IterableDataset`, got list"),
        (DatasetDict(train=Dataset.from_list([PAIR_ROW]), test=Dataset.from_list([PAIR_ROW])), "splits, train, test"),
    ],
)
def test_what_is_no_data_set(unloaded, dataset, said):
    with pytest.raises(UsageError, match=said):
        unloaded(dataset)


def test_conversations_without_a_template(unloaded, tokenizer, tmp_path):
    rows = Dataset.from_list([CHAT_ROW])
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        unloaded(rows, processing_class=tokenizer)
    path = tmp_path / "chat.jinja"
    path.write_text(CHAT_TEMPLATE, encoding="utf-8")
    with pytest.raises(Loaded):
        unloaded(rows, processing_class=tokenizer, chat_template_path=str(path))
    with pytest.raises(UsageError, match="no such chat template"):
        unloaded(rows, processing_class=tokenizer, chat_template_path=str(tmp_path / "chta.jinja"))


def test_assistant_only_loss_without_marks(unloaded, tokenizer, tmp_path):
    plain = re.sub(r"{% (end)?generation %}", "", CHAT_TEMPLATE)
    rows = Dataset.from_list([CHAT_ROW])
    tokenizer.chat_template = plain
    with pytest.raises(UsageError, match=r"\{% generation %\}.* Use rows of `prompt` and `completion`"):
        unloaded(rows, processing_class=tokenizer, assistant_only_loss=True)
    path = tmp_path / "chat.jinja"
    path.write_text(plain, encoding="utf-8")
    with pytest.raises(UsageError, match=r"\{% generation %\}"):
        unloaded(rows, assistant_only_loss=True, chat_template_path=str(path))
    with pytest.raises(Loaded):
        unloaded(rows, processing_class=build_tokenizer(), assistant_only_loss=True)
    with pytest.raises(UsageError, match="has no conversations, and `assistant_only_loss` is about their turns"):
        unloaded(Dataset.from_list([PAIR_ROW]), assistant_only_loss=True)


def test_a_template_that_refuses_a_row(unloaded, make_trainer, tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}x y"
    )
    with pytest.raises(UsageError, match="`train_dataset`, row 0: the tokenizer can't write it: no system here"):
        unloaded(
            Dataset.from_list([{"messages": [{"role": "system", "content": "s"}, USER]}]), processing_class=tokenizer
        )


BAD_LATER = [
    ([CHAT_ROW, {"messages": []}], {}, "no messages in `messages`"),
    ([PAIR_ROW, {"prompt": "a", "completion": None}], {}, r"nothing \(None\) in `completion`"),
    ([CHAT_ROW, {"messages": [USER]}], {"assistant_only_loss": True}, "has no message of the assistant"),
    ([{"input_ids": [3, 4], "labels": [3, 4]}, {"input_ids": [3, 4], "labels": [3]}], {}, "`input_ids`"),
]


@pytest.mark.parametrize(("rows", "fields", "said"), BAD_LATER, ids=[case[2] for case in BAD_LATER])
def test_a_bad_row_far_into_the_data_is_named(make_trainer, rows, fields, said):
    good, bad = rows
    dataset = Dataset.from_list([good] * 40 + [bad])
    with pytest.raises(UsageError, match=f"the train data, row 40: .*{said}"):
        make_trainer(train_dataset=dataset, **fields).train()
    stream = make_trainer(train_dataset=dataset.to_iterable_dataset(), max_steps=20, **fields)
    with pytest.raises(UsageError, match=f"the train data, row 40: .*{said}"):
        stream.train()


def test_a_bug_in_the_preparation_is_not_the_datas(make_trainer, monkeypatch):
    def prepare(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", prepare)
    with pytest.raises(KeyError, match="a bug"):
        make_trainer()


def test_a_stream_that_trains_nothing(make_trainer, monkeypatch):
    """Also where it is too long to be looked at before."""
    monkeypatch.setattr("trl_tempkd.data_checks.MOST_ROWS", 20)
    stream = Dataset.from_list([LONG_ROW] * 30).to_iterable_dataset()
    trainer = make_trainer(train_dataset=stream, max_length=3)
    with pytest.raises(UsageError, match="Nothing was trained on: the data gave no batch"):
        trainer.train()
    few = make_trainer(train_dataset=Dataset.from_list([PAIR_ROW] * 3), dataloader_drop_last=True)
    with pytest.raises(UsageError, match="dataloader_drop_last"):
        few.train()
