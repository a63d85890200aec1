# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What users get wrong is one line that names it, in Python and on the command line; what we get wrong is a traceback."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from trl import SFTConfig

from trl_tempkd import KDConfig, chunked_kd_loss, cli
from trl_tempkd.divergences import DIVERGENCES, check_divergence
from trl_tempkd.errors import UsageError, UsageTypeError
from trl_tempkd.losses import TopK
from trl_tempkd.objectives import OBJECTIVES, check_objective
from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES, check_temperature_rule
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
        ({"divergence_kwargs": [("beta", 0.1)]}, r"`divergence_kwargs` must be a dict, or None, got"),
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
    first, second = (log_p, log_q, scale)
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
