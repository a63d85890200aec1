# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The configuration: its fields, what it refuses, and its way through the command line, YAML and JSON."""

import dataclasses
import inspect
import json

import pytest
import yaml
from trl import SFTConfig, TrlParser

from trl_tempkd import KDConfig
from trl_tempkd.errors import UsageError
from trl_tempkd.option_groups import groups_of


OWN_FIELDS = {field.name for field in dataclasses.fields(KDConfig)} - {f.name for f in dataclasses.fields(SFTConfig)}


def parse(*arguments):
    (config,) = TrlParser(KDConfig).parse_args_and_config(list(map(str, arguments)))
    return config


def test_defaults(tmp_path):
    config = KDConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (config.divergence, config.kd_temperature, config.kd_temperature_rescale) == ("forward_kl", 2.0, "tau2")
    assert (config.kd_ratio, config.kd_temperature_schedule) == (1.0, "constant")
    # Off-policy distillation trains like SFT, so its defaults hold
    fields = SFTConfig.__dataclass_fields__
    assert config.learning_rate == fields["learning_rate"].default
    assert config.max_length == fields["max_length"].default


def test_every_field_is_described_once():
    """Docstring and `--help` say the same of an option, since both are made of its field."""
    shown = inspect.getdoc(KDConfig)
    assert {field.name for group in groups_of(KDConfig) for field in dataclasses.fields(group)} == OWN_FIELDS
    for field in dataclasses.fields(KDConfig):
        if field.name in OWN_FIELDS:
            text = field.metadata["help"]
            assert len(text) > 20 and "%" not in text, field.name
            entry = shown.split(f"\n    {field.name} (", 1)[1]
            assert " ".join(entry.split(":\n", 1)[1].split()).startswith(text), field.name
    assert "\n    kd_temperature (`float`, *optional*, defaults to `2.0`):\n" in shown
    assert "\n    divergence_kwargs (`dict[str, Any]`, *optional*):\n" in shown
    assert max(map(len, shown.splitlines())) <= 119


def test_dicts_may_be_json(make_config):
    dicts = {"divergence_kwargs", "kd_temperature_rule_kwargs", "generation_kwargs", "teacher_model_init_kwargs"}
    assert set(KDConfig._VALID_DICT_FIELDS) == {*SFTConfig._VALID_DICT_FIELDS, *dicts}
    for name in dicts:
        with pytest.raises(ValueError, match=f"`{name}` must be a dict.*JSON, e.g. '{{\""):
            make_config(**{name: "beta=0.1"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"divergence": "kl"}, "divergence.*kl.*forward_kl"),
        ({"divergence": "jsd", "divergence_kwargs": {"gamma": 1.0}}, "gamma.*beta"),
        ({"divergence_kwargs": "beta=0.1"}, "divergence_kwargs.*JSON"),
        ({"teacher_model_init_kwargs": "dtype=auto"}, "teacher_model_init_kwargs.*JSON"),
        ({"kd_temperature": 0.0}, "`kd_temperature`.*0.0"),
        ({"kd_temperature": float("inf")}, "`kd_temperature`.*inf"),
        ({"kd_temperature": float("nan")}, "`kd_temperature`.*nan"),
        ({"student_kd_temperature": -1.0}, "`student_kd_temperature`.*-1.0"),
        ({"teacher_kd_temperature": 0.0}, "`teacher_kd_temperature`.*0.0"),
        ({"kd_temperature_final": 0.0, "kd_temperature_schedule": "linear"}, "`kd_temperature_final`.*0.0"),
        ({"kd_temperature_rescale": "tau3"}, "`kd_temperature_rescale`.*none, tau, tau2.*tau3"),
        ({"kd_temperature_schedule": "square"}, "`kd_temperature_schedule`.*linear.*square"),
        ({"kd_temperature_schedule": "linear"}, "needs `kd_temperature_final`"),
        ({"kd_temperature_final": 1.0}, "never be reached"),
        (
            {
                "kd_temperature_schedule": "step",
                "kd_temperature_final": 1.0,
                "student_kd_temperature": 1.0,
                "teacher_kd_temperature": 2.0,
            },
            "no effect",
        ),
        ({"kd_ratio": 1.1}, "`kd_ratio`.*1.1"),
        ({"kd_ratio": -0.1}, "`kd_ratio`.*-0.1"),
        ({"kd_chunk_size": 0}, "`kd_chunk_size`.*0"),
        ({"kd_diagnostics_steps": 0}, "`kd_diagnostics_steps`.*0"),
        ({"loss_type": "dft"}, "`loss_type`.*dft"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`.*0.1"),
        ({"use_liger_kernel": True}, "`use_liger_kernel`"),
        ({"torch_compile": True}, "`torch_compile`.*backbone"),
    ],
)
def test_refusals_name_the_field_and_the_value(make_config, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


@pytest.mark.parametrize("gpu", [False, True])
def test_bf16_where_no_device_has_it(tmp_path, monkeypatch, gpu):
    for name, there in (("bf16_gpu", False), ("xla", False), ("cuda", gpu)):
        monkeypatch.setattr(f"transformers.training_args.is_torch_{name}_available", lambda there=there: there)
    out = "set `{0}` to False, which trains in fp32" if gpu else "set `use_cpu` to True and `{0}` to False"
    for fields, name, got in (
        ({}, "bf16", "which it is unless set, "),
        ({"bf16": True}, "bf16", ""),
        ({"bf16": False, "bf16_full_eval": True}, "bf16_full_eval", ""),
    ):
        with pytest.raises(UsageError) as refused:
            KDConfig(output_dir=str(tmp_path), **fields)
        assert str(refused.value).startswith(f"`{name}` is True, {got}and ")
        assert out.format(name) in str(refused.value)
    for fields in ({"use_cpu": True}, {"bf16": False}):
        KDConfig(output_dir=str(tmp_path), **fields)


def test_command_line(tmp_path):
    config = parse(
        "--output_dir", tmp_path, "--use_cpu", "--bf16", "false", "--divergence", "jsd",
        "--divergence_kwargs", '{"beta": 0.3}', "--kd_temperature", "3", "--student_kd_temperature", "1",
        "--teacher_model_init_kwargs", '{"dtype": "bfloat16"}', "--kd_chunk_size", "64", "--disable_dropout",
    )  # fmt: skip
    assert config.divergence_kwargs == {"beta": 0.3}
    assert config.teacher_model_init_kwargs == {"dtype": "bfloat16"}
    assert (config.kd_temperature, config.student_kd_temperature, config.kd_chunk_size) == (3.0, 1.0, 64)
    assert config.disable_dropout


def test_yaml_recipe_and_unknown_keys(tmp_path):
    recipe = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "divergence": "skew_forward_kl",
        "divergence_kwargs": {"alpha": 0.2},
        "kd_temperature": 4,
        "kd_temperature_schedule": "cosine",
        "kd_temperature_final": 1.0,
        "teacher_model_name_or_path": "org/teacher",
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(recipe))
    config = parse("--config", path)
    assert {name: getattr(config, name) for name in recipe} == recipe
    path.write_text(yaml.safe_dump({**recipe, "kd_temprature": 2.0}))
    with pytest.raises(ValueError, match="kd_temprature"):
        parse("--config", path)


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in OWN_FIELDS)


def test_round_trip(make_config):
    config = make_config(divergence="jsd", divergence_kwargs={"beta": 0.3}, student_kd_temperature=1.0, kd_ratio=0.5)
    saved = json.loads(config.to_json_string())
    # transformers masks every field that is called a token, also TRL's `eos_token` and `pad_token`
    again = KDConfig(**{name: value for name, value in saved.items() if not name.endswith("_token")})
    assert {name: getattr(again, name) for name in OWN_FIELDS} == {name: saved[name] for name in OWN_FIELDS}
    assert again.activation_checkpointing is config.activation_checkpointing is False


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("value", [True, False])
def test_checkpointing_by_either_name_without_a_warning(tmp_path, name, value):
    # TRL's default stands under the name that transformers deprecates; warnings are errors here
    config = KDConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})
    assert config.activation_checkpointing is config.gradient_checkpointing is value
    assert KDConfig(output_dir=str(tmp_path), use_cpu=True).activation_checkpointing is True  # as in TRL


def test_description(make_config):
    config = make_config(student_kd_temperature=1.0, kd_temperature_schedule="linear", kd_temperature_final=1.5)
    assert config.describe() == (
        "forward_kl, student tau 1.0, teacher tau 2.0 to 1.5 (linear), rescale tau2, kd_ratio 1.0"
    )


def test_each_process_reads_its_own_batches(make_config):
    """Accelerate's other way, its default for streams, puts batches together that aren't of one shape, nor tensors."""
    for given in (None, {"dispatch_batches": True}, {"split_batches": False}):
        assert make_config(accelerator_config=given).accelerator_config.dispatch_batches is False
