# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A mistake of the user is one line that names it, in Python and on the command line; a bug is a traceback."""

import copy
import dataclasses
import importlib
import io
import json
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, IterableDataset
from made_models import CHAT_TEMPLATE, build_tokenizer
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl import SFTConfig, SFTTrainer

from trl_tempkd import KDConfig, TemperatureKDTrainer, chunked_kd_loss, cli, training
from trl_tempkd.command_line import usage_errors_on_one_line
from trl_tempkd.commands import distill
from trl_tempkd.counted_tokens import counted_tokens, has_target
from trl_tempkd.data.files import fault_of, files_of
from trl_tempkd.data_checks import check_rows
from trl_tempkd.divergences import DIVERGENCES, check_divergence
from trl_tempkd.errors import UsageError, UsageTypeError, is_for_the_user
from trl_tempkd.losses import TopK
from trl_tempkd.models import usable_device
from trl_tempkd.names import stands_twice
from trl_tempkd.objectives import OBJECTIVES, check_objective
from trl_tempkd.paths import check_model_name
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": "1e-3"}, r"`learning_rate` must be a number, got '1e-3' \(str\)"),
        ({"learning_rate": -1.0}, "`learning_rate` must be at least 0 and finite, got -1.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be at least 0 and finite, got nan"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1"),
        ({"per_device_train_batch_size": 2.5}, r"must be a whole number, got 2.5 \(float\)"),
        ({"per_device_eval_batch_size": -2}, "`per_device_eval_batch_size` must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1"),
        ({"max_steps": 1.5}, "`max_steps` must be a whole number"),
        ({"max_length": "128"}, "`max_length` must be a whole number, or None, got '128'"),
        ({"num_train_epochs": "3"}, "`num_train_epochs` must be a number, got '3'"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"data_seed": 2**32}, "`data_seed` must be below 4294967296, got 4294967296"),
        ({"adam_beta2": 1.0}, "`adam_beta2` must be below 1, got 1.0"),
        ({"dataloader_num_workers": -1}, "`dataloader_num_workers` must be at least 0"),
        ({"pad_to_multiple_of": 0}, "`pad_to_multiple_of` must be at least 1"),
        ({"optim_args": "rank"}, "`optim_args` must be as 'key=value,key=value', got 'rank'"),
        ({"packing": "true"}, r"`packing` must be True or False, got 'true' \(str\)"),
        ({"completion_only_loss": "no"}, "`completion_only_loss` must be True or False, or None, got 'no'"),
        ({"output_dir": 5}, "`output_dir` must be text, or None, got 5"),
        ({"packing_strategy": "bdf"}, "`packing_strategy` must be one of bfd, .*, got 'bdf'; did you mean 'bfd'"),
        ({"eval_strategy": "sometimes"}, "`eval_strategy` must be one of no, steps, epoch, got 'sometimes'"),
        ({"lr_scheduler_type": "cosin"}, "`lr_scheduler_type` must be one of .*; did you mean 'cosine'"),
    ],
    ids=lambda of: " ".join(of) if isinstance(of, dict) else "",
)
def test_options_of_trl_and_transformers(make_config, fields, message):
    with pytest.raises(UsageError, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "learning_rate": np.float32(0.1),
            "num_train_epochs": 2,
            "warmup_steps": 0.1,
            "per_device_train_batch_size": np.int64(2),
        },
        {"max_grad_norm": None, "max_length": None, "pad_to_multiple_of": "auto", "data_seed": None},
        {"lr_scheduler_type": SchedulerType.COSINE, "optim": "sgd", "include_num_input_tokens_seen": "all"},
        {"report_to": [], "resume_from_checkpoint": True, "output_dir": Path("out")},
    ],
    ids=" ".join,
)
def test_what_these_options_take_is_taken(make_config, fields):
    make_config(**fields)


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


def test_an_unknown_option_of_a_subclass(tmp_path):
    @dataclasses.dataclass
    class Own(KDConfig):
        more: int = 1

    assert Own(str(tmp_path), more=2, use_cpu=True).more == 2
    with pytest.raises(UsageError, match=r"^Own has no `beta`: use `divergence='jsd'`"):
        Own(str(tmp_path), beta=0.5)
    with pytest.raises(UsageError, match="did you mean 'more'"):
        Own(str(tmp_path), mor=0.5)
    assert copy.deepcopy(Own(str(tmp_path), more=3, use_cpu=True)).more == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accelerator_config": {"split_batch": True}}, "got 'split_batch'; did you mean 'split_batches'"),
        ({"accelerator_config": '{"a": 1}'}, "`accelerator_config` takes split_batches, .*, got 'a'"),
        (
            {"lr_scheduler_kwargs": {"min_lr": 1}},
            "`lr_scheduler_kwargs` takes nothing with `lr_scheduler_type` linear",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_l": 1}},
            "`lr_scheduler_type` cosine_with_min_lr, got 'min_l'; did you mean 'min_lr'",
        ),
        ({"gradient_checkpointing_kwargs": {"reentrant": True}}, "got 'reentrant'; did you mean 'use_reentrant'"),
    ],
)
def test_an_unknown_key_in_a_dict_of_options(tmp_path, fields, message):
    with pytest.raises(UsageError, match=message):
        KDConfig(str(tmp_path), use_cpu=True, **fields)


def test_known_keys_in_dicts_of_options(tmp_path):
    fields = {
        "accelerator_config": {"split_batches": False},
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
        "gradient_checkpointing_kwargs": {"use_reentrant": False, "preserve_rng_state": True},
    }
    assert KDConfig(str(tmp_path), use_cpu=True, **fields).lr_scheduler_kwargs == {"min_lr": 1e-6}


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
    with pytest.raises(UsageError, match=r"`metrics` must be of kd, kl_tau1_coarse.*got 'kl_tau1'"):
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


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_csv_with_other_marks_between_its_columns(command, tmp_path, mark):
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt{mark}completion\nthe cat{mark}sat\n", encoding="utf-8")
    said = command("distill", dataset_name=path)
    assert f"That is one column: a CSV has commas between them, and this one {mark!r}" in said
    assert f"sep={mark!r}" in said and "dataset_text_field" not in said


@pytest.mark.parametrize(
    ("role", "meant"), [("usr", "user"), ("User", "user"), ("assistent", "assistant"), ("systm", "system")]
)
def test_a_mistyped_role(unloaded, role, meant):
    row = {"messages": [USER, {**ASSISTANT, "role": role}, ASSISTANT]}
    with pytest.raises(
        UsageError, match=f"'{role}' for the `role` of message 1 of `messages`; did you mean '{meant}'"
    ):
        unloaded(Dataset.from_list([row]))


@pytest.mark.parametrize("role", ["tool", "developer", "narrator"])
def test_a_role_that_a_template_may_know(unloaded, role):
    with pytest.raises(Loaded):
        unloaded(Dataset.from_list([{"messages": [{**USER, "role": role}, ASSISTANT]}]))


def test_top_k_of_sampling_is_not_that_of_a_cache(command):
    said = command("cache", dataset_name="tiny", mode="topk", top_k=8)
    assert "--top_k 8 is for sampling" in said and said.endswith("is --k 8")


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
        ({"prompt": "a", "completion": 3}, "int 3 in `completion`"),
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
    with pytest.raises(UsageError, match="`train_dataset`, row 0: the chat template can't write it: no system here"):
        unloaded(
            Dataset.from_list([{"messages": [{"role": "system", "content": "s"}, USER]}]), processing_class=tokenizer
        )


BAD_LATER = [
    ([CHAT_ROW, {"messages": []}], {}, "no messages in `messages`"),
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


# Data, packages and folders on the command line


@pytest.fixture
def command(monkeypatch, refused, tmp_path):
    """`command(NAME, **options)`: the line with which a command refuses its options, before it loads a model."""

    def load(*args, **kwargs):
        raise Loaded

    def launch(module, for_launch, for_script, use_cpu=False, work=None):
        name, *options = for_script
        module = importlib.import_module(f"trl_tempkd.commands.{name}")
        values, _, _ = module.make_parser("trl-tempkd").parse(options, launched=True)
        return module.main(*values)

    monkeypatch.setattr("trl.SFTTrainer.__init__", load)
    monkeypatch.setattr("trl_tempkd.study.one_model.load_model", load)
    monkeypatch.setattr("trl_tempkd.launch.launch", launch)
    pair = {"model_name_or_path": "tiny:student", "teacher_model_name_or_path": "tiny:teacher"}

    def call(name, **options):
        if name == "report":
            return refused(
                "report", tmp_path, *(part for key, value in options.items() for part in (f"--{key}", value))
            )
        if name in ("sweep", "tune"):
            where = {key: options.pop(key) for key in ("results_dir",) if key in options}
            base = {**pair, "dataset_test_split": "train", **options}
            study = (
                {"grid": {"seed": [1, 2]}, "evaluation": {"rows": 2}}
                if name == "sweep"
                else {"space": {"tau": [1.0, 2.0]}}
            )
            recipe = {"base": base, "results_dir": str(tmp_path / "results"), **study, **where}
            path = tmp_path / f"{name}.yaml"
            path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            return refused(name, "--config", path)
        if name in ("distill", "cache"):
            options = {"output_dir": tmp_path / "out", "use_cpu": True, "bf16": False, **options}
        if name == "cache":
            options = {"output": tmp_path / "cache", **options}
        return refused(name, *(part for key, value in {**pair, **options}.items() for part in (f"--{key}", value)))

    return call


def rows_in(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


READERS = ["distill", "cache", "evaluate", "diagnose", "sweep", "tune"]


@pytest.mark.parametrize("name", READERS)
def test_rows_of_another_format_on_the_command_line(command, tmp_path, name):
    path = rows_in(tmp_path / "rows.jsonl", *[{"question": "the cat", "answer": "sat"}] * 9)
    line = command(name, dataset_name=path)
    assert "question, answer" in line
    assert '`dataset.map(lambda row: {"prompt": row["question"], "completion": row["answer"]}' in line


@pytest.mark.parametrize("name", READERS)
def test_malformed_rows_on_the_command_line(command, tmp_path, name):
    path = rows_in(tmp_path / "rows.jsonl", PAIR_ROW, PAIR_ROW, '{"prompt": "a", completion: "b"}', PAIR_ROW)
    line = command(name, dataset_name=path)
    assert f"{path}, line 3: Expecting property name enclosed in double quotes (column 17): " in line


@pytest.mark.parametrize("name", READERS)
def test_an_empty_file_on_the_command_line(command, tmp_path, name):
    assert f"{tmp_path}/rows.jsonl is empty" in command(name, dataset_name=rows_in(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("name", ["distill", "cache", "sweep", "tune"])
def test_one_row_without_a_completion(command, tmp_path, name):
    """Before anything is started, and not by each cell or trial."""
    path = rows_in(tmp_path / "rows.jsonl", *[PAIR_ROW] * 40, {"prompt": "a cat"})
    assert "have no `completion` (row 40 is the first)" in command(name, dataset_name=path)


@pytest.mark.parametrize("name", ["distill", "cache"])
def test_a_run_without_a_row_left(command, tmp_path, name):
    path = rows_in(tmp_path / "rows.jsonl", *[LONG_ROW] * 3)
    assert "nothing left to train on in any of its 3 rows" in command(name, dataset_name=path, max_length=2)
    save = Dataset.from_list([PAIR_ROW]).select([])
    save.save_to_disk(tmp_path / "empty")
    assert "has no rows" in command(name, dataset_name=tmp_path / "empty")


FAULTS = {
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', "cut.jsonl, line 2: Unterminated string"),
    "bytes.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', "bytes.jsonl, line 2: byte 0xff is no UTF-8"),
    "scalars.jsonl": (b'"a"\n"b"\n', "scalars.jsonl, line 1: a row must be an object"),
    "blank.jsonl": (b"\n\n", "blank.jsonl has no rows"),
    "list.json": (b'[\n{"text": "a"},\n{"text": "b"}\n{"text": "c"}]', "list.json, line 4: Expecting ',' delimiter"),
    "ragged.csv": (
        b"prompt,completion\na,b\na,b,c\n",
        "ragged.csv: Error tokenizing data. C error: Expected 2 fields in line 3",
    ),
    "bytes.csv": (b"text\na\n\xff\n", "bytes.csv, line 3: byte 0xff is no UTF-8"),
    "head.csv": (b"prompt,completion\n", "it has no rows"),
    "bytes.txt": (b"a\nb\n\xfe\n", "bytes.txt, line 3: byte 0xfe is no UTF-8"),
    "no.parquet": (b"hello", "no.parquet is no Parquet file, or damaged"),
    "types.jsonl": (b'{"text": "a"}\n{"text": 3}\n', "row 1: has int 3 in `text`"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_a_file_at_fault_is_named_with_its_line(command, tmp_path, monkeypatch, name, streaming):
    content, said = FAULTS[name]
    logged = io.StringIO()  # beside that line: the handler of `datasets` has the stderr of its import
    monkeypatch.setattr(logging.getLogger("datasets"), "handlers", [logging.StreamHandler(logged)])
    (tmp_path / name).write_bytes(content)
    if streaming:
        if name in ("types.jsonl", "bytes.jsonl"):
            return  # the first row is fine, and the second is named when its turn comes
        said = "has no rows" if name in ("head.csv", "blank.jsonl") else said
    assert said in command("distill", dataset_name=tmp_path / name, dataset_streaming=streaming)
    assert not logged.getvalue()


def test_a_folder_with_a_file_at_fault(command, tmp_path):
    (tmp_path / "data").mkdir()
    rows_in(tmp_path / "data/a.jsonl", PAIR_ROW)
    rows_in(tmp_path / "data/b.jsonl", PAIR_ROW, "{")
    assert "data/b.jsonl, line 2: Expecting property name" in command("distill", dataset_name=tmp_path / "data")
    (tmp_path / "none").mkdir()
    assert "doesn't contain any data files" in command("distill", dataset_name=tmp_path / "none")


def test_files_whose_columns_differ(tmp_path):
    """As far apart as `datasets` reads at a time, which in a test is two files."""
    path = Path(rows_in(tmp_path / "rows.jsonl", PAIR_ROW, {**PAIR_ROW, "id": 1}))
    assert fault_of(path) is None
    assert "line 2: its columns (prompt, completion, id) aren't those of line 1" in fault_of(path, columns=True)
    assert files_of(str(path), [SimpleNamespace(path="json", data_files={"train": [str(path)]})]) == [path, path]


@pytest.mark.parametrize(
    ("name", "option", "path"),
    [
        ("distill", "output_dir", "out"),
        ("distill", "output_dir", "file"),
        ("distill", "output_dir", "file/out"),
        ("distill", "output_dir", "/proc/out"),
        ("cache", "output", "file/cache"),
        ("cache", "output_dir", "file"),
        ("evaluate", "output", "file/results.json"),
        ("evaluate", "output", "folder"),
        ("diagnose", "output", "/proc/no/table.csv"),
        ("sweep", "results_dir", "file/results"),
        ("tune", "results_dir", "/proc/results"),
        ("report", "output", "file/report.html"),
        ("report", "markdown", "folder"),
        ("report", "png", "file"),
    ],
)
def test_an_output_that_cannot_be_written(command, tmp_path, name, option, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to("/proc/nowhere")
    given = tmp_path / path
    line = command(name, **{option: str(given)}, **({} if name == "report" else {"dataset_name": "tiny"}))
    before = {("cache", "output"), ("sweep", "results_dir"), ("tune", "results_dir")}  # what `output_dir` was called
    assert f"cannot write to {given} (--{'output_dir' if (name, option) in before else option}): " in line
    assert not Path("/proc/results").exists()


def test_an_output_that_cannot_be_written_in_python(unloaded, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UsageError, match=r"cannot write to .*file \(`output_dir`\).*: it is a file; give another folder"
    ):
        unloaded(Dataset.from_list([PAIR_ROW]), output_dir=str(tmp_path / "file"))
    with pytest.raises(Loaded):
        unloaded(Dataset.from_list([PAIR_ROW]), output_dir=str(tmp_path / "a/b/c"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # looking leaves nothing behind


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"report_to": "trackio"}, "`report_to` has 'trackio', which isn't installed: `pip install trackio`"),
        ({"report_to": "wandbb"}, "did you mean 'wandb'?"),
        ({"use_vllm": True, "lmbda": 1.0}, "vLLM isn't installed"),
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes has, and it isn't installed: `pip install bitsandbytes`"),
        ({"optim": "schedule_free_adamw"}, "`pip install schedulefree`"),
    ],
)
def test_a_package_that_is_not_installed(command, unloaded, monkeypatch, options, said):
    monkeypatch.setattr("trl_tempkd.argument_checks.get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.setattr("trl_tempkd.argument_checks.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("trl_tempkd.rollouts.vllm.is_vllm_available", lambda: False)
    assert said in command("distill", dataset_name="tiny", **options)
    with pytest.raises(UsageError, match=re.escape(said)):
        unloaded(Dataset.from_list([PAIR_ROW]), **options)


def test_vllm_on_a_cpu(command, unloaded, monkeypatch):
    monkeypatch.setattr("trl_tempkd.rollouts.vllm.is_vllm_available", lambda: True)
    options = {"use_vllm": True, "lmbda": 1.0}
    assert "the student is on a CPU" in command("distill", dataset_name="tiny", **options)
    with pytest.raises(UsageError, match="the student is on a CPU"):
        unloaded(Dataset.from_list([PAIR_ROW]), **options)


def test_optional_packages_are_not_asked_for_in_vain(unloaded, monkeypatch):
    monkeypatch.setattr("trl_tempkd.argument_checks.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("trl_tempkd.rollouts.vllm.is_vllm_available", lambda: False)
    for fields in ({"use_vllm": True}, {"optim": "adamw_torch_fused"}, {"report_to": []}, {"optim": "sgd"}):
        with pytest.raises(Loaded):
            unloaded(Dataset.from_list([PAIR_ROW]), **fields)


# Names


@pytest.fixture
def online(monkeypatch):
    """The Hub is switched on, and out of reach: what asks it a second time would wait."""
    asked = []

    class ConnectError(Exception):
        pass

    def head(url, timeout):
        asked.append(url)
        raise ConnectError("no such host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    return asked


def test_a_mistyped_model_costs_no_retries(unloaded, command, online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/student").mkdir(parents=True)
    rows = Dataset.from_list([PAIR_ROW])
    for model, said in (
        ("./modles/student", "no such model (`model`): ./modles/student; did you mean 'models'?"),
        ("models/studnet", "the Hub can't be reached (https://huggingface.co: no such host); did you mean 'student'?"),
        ("modles/student", "it is no folder here, and there is nothing of it in the cache"),
        ("a model", "no name on the Hub can be so"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            TemperatureKDTrainer(model, "tiny", KDConfig("out", use_cpu=True, bf16=False), train_dataset=rows)
    assert len(online) == 2
    assert "did you mean 'student'" in command("evaluate", dataset_name="tiny", model_name_or_path="models/studnet")
    assert "the Hub can't be reached" in command("distill", dataset_name="owner/name")
    assert "did you mean 'student'" in command(
        "distill", dataset_name="tiny", teacher_model_name_or_path="models/studnet", output_dir=tmp_path / "out"
    )


def test_a_name_that_the_hub_may_know_is_left_to_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for answer in (lambda *args, **kwargs: None, lambda *args, **kwargs: (_ for _ in ()).throw(TimeoutError())):
        monkeypatch.setattr("huggingface_hub.get_session", lambda answer=answer: SimpleNamespace(head=answer))
        check_model_name("owner/name", None, "`model`")


def test_a_model_of_the_cache_needs_no_hub(online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: "/cache/config.json")
    check_model_name("owner/name", None, "`model`")
    assert not online


# The trainer's arguments


@pytest.mark.parametrize(
    ("arguments", "kwargs", "said"),
    [
        (
            lambda config, rows, tokenizer: ("m", config),
            {},
            "`teacher_model` is a KDConfig, which belongs into `args`",
        ),
        (lambda config, rows, tokenizer: ("m", rows), {}, "`teacher_model` is a Dataset, which belongs into `train_d"),
        (lambda config, rows, tokenizer: ("m", tokenizer), {}, "which belongs into `processing_class`"),
        (lambda config, rows, tokenizer: (config, "t"), {}, "`model` is a KDConfig, which belongs into `args`"),
        (
            lambda config, rows, tokenizer: (None, "t"),
            {},
            "`model` must be a model, or its name or folder, got NoneType",
        ),
        (
            lambda config, rows, tokenizer: ("m", "t", TrainingArguments("out", use_cpu=True)),
            {},
            "all options of `SFTC",
        ),
        (lambda config, rows, tokenizer: ("m", "t", "out"), {}, "`args` must be a `KDConfig`, got `str`"),
        (lambda config, rows, tokenizer: ("m", "t"), {"tokenizer": 1}, "it is called `processing_class` here"),
        (
            lambda config, rows, tokenizer: ("m", "t"),
            {"kd_temperature": 1},
            "`args=KDConfig(..., kd_temperature=...)`",
        ),
        (lambda config, rows, tokenizer: ("m", "t"), {"train_datset": 1}, "did you mean 'train_dataset'?"),
    ],
)
def test_arguments_in_the_wrong_place(make_config, tokenizer, arguments, kwargs, said):
    given = arguments(make_config(), Dataset.from_list([PAIR_ROW]), tokenizer)
    with pytest.raises(UsageTypeError, match=re.escape(said)):
        TemperatureKDTrainer(*given, **kwargs)


def test_a_path_is_a_name(unloaded, make_config, monkeypatch):
    student, teacher = (Path(tiny_model_path(name)) for name in ("student", "teacher"))
    with pytest.raises(Loaded):
        TemperatureKDTrainer(student, teacher, make_config(), train_dataset=Dataset.from_list([PAIR_ROW]))


# What is for the user, and what isn't


def test_what_a_library_says_of_the_users_values(command, refused):
    line = command("distill", dataset_name="tiny", fp16=True, bf16=True)
    assert "At most one of fp16 and bf16 can be True" in line
    assert "4 bit" in refused("distill", "--use_cpu", "--load_in_4bit", "--load_in_8bit").replace("-", " ")


def test_what_a_library_says_of_them_as_the_student_is_made(command, monkeypatch):
    """Modules of an adapter that aren't there, a dtype, a token: it shows in the middle of a command."""
    monkeypatch.setattr("trl.SFTTrainer.__init__", lambda *args, **kwargs: get_reporting_integration_callbacks("x"))
    assert command("distill", dataset_name="tiny").startswith("trl-tempkd distill: error: x is not supported")


@pytest.mark.parametrize("name", ["model_init_kwargs", "teacher_model_init_kwargs"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float33"}, "float33"),
        ({"dtyp": "float32"}, "unexpected keyword argument 'dtyp'"),
        ({"attn_implementation": "egaer"}, "egaer"),
    ],
    ids=str,
)
def test_what_a_model_is_loaded_with(tmp_path, capsys, monkeypatch, name, options, said):
    monkeypatch.setattr("trl_tempkd.job.end_with_launcher", lambda: None)
    flags = [
        *PAIR,
        *CPU,
        "--dataset_name",
        rows_in(tmp_path / "rows.jsonl", PAIR_ROW),
        "--output_dir",
        tmp_path / "out",
    ]
    flags += [f"--{name}", json.dumps(options)]
    values, _, _ = distill.make_parser().parse([*map(str, flags)], launched=True)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"), usage_errors_on_one_line("distill"):
        training.train(*values)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("distill: error: ") and said in line
    if name.startswith("teacher") or "dtyp" in options:
        assert f"`{name}`" in line


@pytest.fixture
def damaged_model(tmp_path):
    """A folder with everything of a model, and weights that broke off as they were copied."""
    folder = shutil.copytree(tiny_model_path("student"), tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    return folder


@pytest.mark.parametrize("of", ["model", "teacher_model"])
def test_an_output_that_is_a_model(command, tmp_path, of):
    """The trained student would take its place, and the next run would start from another one."""
    folder = shutil.copytree(tiny_model_path("student"), tmp_path / "model")
    option = f"{of}_name_or_path"
    said = command("distill", **{option: folder}, dataset_name="tiny", output_dir=f"{tmp_path}/./model/")
    assert f"is the folder of --{option}, which the trained student would take the place of: give another" in said


@pytest.mark.parametrize(
    ("problem", "said"),
    [("the Hub can't be reached", "can't be reached"), (None, "nobody is logged in: `hf auth login`")],
)
def test_a_hub_that_nothing_goes_to(command, monkeypatch, problem, said):
    monkeypatch.setattr("trl_tempkd.argument_checks.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("trl_tempkd.argument_checks.hub_problem", lambda: problem)
    monkeypatch.setattr("trl_tempkd.argument_checks.get_token", lambda: None)
    line = command("distill", dataset_name="tiny", push_to_hub=True)
    assert "`push_to_hub` is True, and " in line and said in line and "Leave it out" in line
    if problem is None:
        with pytest.raises(Loaded):
            command("distill", dataset_name="tiny", push_to_hub=True, hub_token="hf_x")


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("cosine_with_min_lr", None, "min_lr or min_lr_rate should be set"),
        ("warmup_stable_decay", {"decay_type": "steep"}, "decay"),
        ("polynomial", {"lr_end": 1e-2}, "lr_end"),
    ],
)
def test_a_schedule_that_can_not_be(make_config, name, kwargs, said):
    with pytest.raises(UsageError, match=f"`lr_scheduler_kwargs` is .* with `lr_scheduler_type` {name}: .*{said}"):
        make_config(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)


def test_a_metric_that_is_mistyped(unloaded):
    """transformers looks for it at the first evaluation, hours later."""
    data = Dataset.from_list([PAIR_ROW])
    for name, meant in (("kl_tau", "kl_tau1"), ("eval_kl_tau_1", "kl_tau1"), ("token_agrement", "token_agreement")):
        with pytest.raises(UsageError, match=f"`metric_for_best_model` is '{name}', .*; did you mean '{meant}'"):
            unloaded(data, metric_for_best_model=name)
    for name in ("eval_kl_tau1", "loss", "kl_tau1_coarse", "easy_loss", "accuracy", "aux_loss"):
        with pytest.raises(Loaded):
            unloaded(data, metric_for_best_model=name)
    # Of several data sets each has its own, under longer names
    for name in ("eval_my_token_agreement", "eval_x_kl_tau1"):
        with pytest.raises(Loaded):
            unloaded(data, {"my": data, "x": data}, metric_for_best_model=name)


def test_callbacks_that_are_none(make_config):
    with pytest.raises(UsageTypeError, match="`callbacks` must be of `TrainerCallback`, got str"):
        TemperatureKDTrainer("tiny:student", "tiny:teacher", make_config(), callbacks=["EarlyStopping"])


def test_weights_that_are_damaged(damaged_model, make_config, capsys):
    rows = {"train_dataset": Dataset.from_list([PAIR_ROW])}
    for pair in ((damaged_model, "tiny:teacher"), ("tiny:student", damaged_model)):
        with pytest.raises(UsageError, match=f"cannot load the .*{damaged_model}.* a file of its weights is damaged"):
            TemperatureKDTrainer(*pair, make_config(), **rows)
    for command, option in (("evaluate", "model"), ("student", "from")):
        options = ["--dataset_name", "tiny"] if command != "student" else ["--num_layers", "1"]
        option = option if command == "student" else f"{option}_name_or_path"
        with suppress(SystemExit):
            cli.main(
                [command, f"--{option}", str(damaged_model), *options, "--output_dir", f"{damaged_model}-{command}"]
            )
        assert f"(--{option}): a file of its weights is damaged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_device_that_is_not_here(refused, tmp_path, command, device):
    model = "model" if command == "evaluate" else "teacher_model"
    flags = [f"--{model}_name_or_path", "tiny:teacher", "--dataset_name", "tiny", "--device", device]
    said = refused(command, *flags, "--output_dir", tmp_path / "out")
    assert f"`device` is '{device}', which isn't here: " in said and said.endswith("Give cpu, or leave it out.")


def test_nothing_is_put_on_a_device_that_is_asked_for(monkeypatch):
    """The launcher asks too, and would hold memory of a GPU for as long as its processes train."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert usable_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="`device` is 'cuda:1', which isn't here: there are 1 of cuda"):
        usable_device("cuda:1")


def test_a_key_that_stands_twice(refused, tmp_path):
    """YAML's readers take the last one."""
    path = tmp_path / "twice.yaml"
    path.write_text("max_steps: 1\ndataset_name: tiny\nmax_steps: 2\n", encoding="utf-8")
    assert f"{path} has 'max_steps' in line 1 and in line 3: leave one of them out" in refused(
        "distill", "--config", path
    )
    path.write_text("base:\n  max_steps: 1\n  max_steps: 2\ngrid: {seed: [1], tau: [1.0]}\n", encoding="utf-8")
    for command in ("sweep", "tune"):
        assert f"{path} has 'max_steps' in line 2 and in line 3" in refused(command, "--config", path)
    for text in ("a: {b: 1}\nb: [{b: 1}, {b: 2}]\n", ""):
        path.write_text(text, encoding="utf-8")
        assert stands_twice(path) is None
    path.write_bytes(b"max_steps: \xff\n")
    for command in ("distill", "sweep", "tune"):
        assert f"{path} is not valid YAML: " in refused(command, "--config", path)


@pytest.mark.parametrize("name", ["revers_kl", "minilm"])
def test_a_mistyped_divergence(make_config, name):
    meant = {"revers_kl": "reverse_kl", "minilm": "minillm"}[name]
    with pytest.raises(UsageError, match=f"got '{name}'; did you mean '{meant}'\\? One of your own is registered"):
        make_config(divergence=name)


def test_teachers_as_json(refused):
    """Of a list of dicts the flag has each."""
    one, two = {"name": "a", "model": "tiny:teacher"}, {"name": "b", "model": "tiny:teacher", "weight": 2.0}
    flags = [*CPU, "--output_dir", "out", "--teachers"]
    (_, found, *_), _, _ = distill.make_parser().parse([*flags, json.dumps(one), json.dumps(two)], launched=True)
    assert found.teachers == [one, two]
    said = refused("distill", *flags, json.dumps([one, two]))
    assert "argument --teachers: expected JSON such as" in said and "several one by one" in said
    assert "argument --teachers: '{name: a}' is not valid JSON" in refused("distill", *flags, "{name: a}")


def test_a_bug_while_options_are_read_is_not_the_users(monkeypatch, capsys):
    def check(self):
        raise ValueError("a bug")

    monkeypatch.setattr("trl_tempkd.objectives.options.TemperatureOptions.check", check)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["distill", *PAIR, *CPU, "--dataset_name", "tiny"])
    monkeypatch.setattr("trl_tempkd.objectives.options.TemperatureOptions.check", lambda self: int("not a number"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["distill", *PAIR, *CPU, "--dataset_name", "tiny"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), TypeError("a bug"), ImportError("a bug")])
@pytest.mark.parametrize("name", ["diagnose", "evaluate", "distill"])
def test_a_bug_deep_inside_keeps_its_traceback(command, monkeypatch, name, error):
    def deep(*args, **kwargs):
        raise error

    monkeypatch.setattr("trl_tempkd.tiny.load_tiny_dataset", deep)
    with pytest.raises(type(error), match="a bug"):
        command(name, dataset_name="tiny")


def test_what_a_library_says_of_our_values_is_a_bug():
    """The same error of a library, where a command or a constructor hands on the user's values, and elsewhere."""
    scope = {"call": get_reporting_integration_callbacks}
    code = "def {name}():\n    call('x')"
    for module, name, expected in (
        ("trl_tempkd.commands.distill", "main", True),
        ("trl_tempkd.training", "make_trainer", True),
        ("trl_tempkd.study.one_model", "evaluate", True),
        ("trl_tempkd.study.runs.measure", "train", False),
        ("trl_tempkd.cli", "run", True),
        ("trl_tempkd.config", "__post_init__", True),
        ("trl_tempkd.trainer", "__init__", True),
        ("trl_tempkd.teachers.served", "__init__", False),
        ("trl_tempkd.trainer", "compute_loss", False),
        ("trl_tempkd.client", "run", False),
        ("trl_tempkd.losses.chunked", "forward", False),
        ("somewhere.else", "anything", True),
    ):
        scope["__name__"] = module
        exec(code.format(name=name), scope)
        with pytest.raises(ValueError, match="x is not supported") as caught:
            scope[name]()
        assert is_for_the_user(caught.value) is expected, (module, name)
    for bug in (lambda: int("x"), lambda: json.loads("{"), lambda: [][1], lambda: importlib.import_module("nope")):
        with pytest.raises((ValueError, IndexError, ImportError)) as caught:
            bug()
        assert not is_for_the_user(caught.value)
    assert is_for_the_user(UsageError("x"))


def test_a_stream_that_breaks_off_in_the_middle(command, tmp_path, monkeypatch):
    """What is read when the models are there is named too."""
    rows = [json.dumps({"text": "the cat " * 20_000})] * 100  # more than the 10 MB that `datasets` reads at a time
    path = rows_in(tmp_path / "rows.jsonl", *rows, '{"text": "a"', rows[0])

    class Trainer:
        accelerator = SimpleNamespace(print=print)

        def __init__(self, train_dataset, **kwargs):
            self.train_dataset = train_dataset

        def train(self, **kwargs):
            assert sum(1 for _ in self.train_dataset) > 0

    monkeypatch.setattr("trl_tempkd.trainer.TemperatureKDTrainer", Trainer)
    monkeypatch.setattr("trl_tempkd.console.set_progress", lambda trainer: None)
    monkeypatch.setattr("trl_tempkd.console.header", lambda trainer, named: "")
    said = command("distill", dataset_name=path, dataset_streaming=True)
    assert f"cannot load the data set: {path}, line 101: Expecting ',' delimiter" in said
