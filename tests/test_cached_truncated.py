# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Caches that have less than the teacher's whole rows: training from them, and what they can't serve."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from test_cached import builder_of, check_same, contents, history, options

from trl_tempkd import cli
from trl_tempkd.commands import cache as command
from trl_tempkd.commands import distill
from trl_tempkd.teachers import base, build
from trl_tempkd.teachers.columns import CHECKSUM
from trl_tempkd.teachers.layouts import layout_of
from trl_tempkd.teachers.manifest import Manifest
from trl_tempkd.temperature import centred


EVERY = 161  # tokens, the whole vocabulary
TAUS = (1.0, 2.0, 4.0)


@pytest.fixture
def built(make, tmp_path):
    """`built(count, taus, **fields)`: the folder of a cache."""

    def built(count=8, taus=TAUS, dtype=None, mode="topk", name=None, **fields):
        folder = tmp_path / (name or mode)
        builder_of(make(**fields), folder, dtype, mode=mode, count=count, taus=taus).build()
        return str(folder)

    return built


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


OBJECTIVES = {
    "forward": {"divergence": "forward_kl", "kd_temperature": 1.0},
    "reverse": {"divergence": "reverse_kl", "kd_temperature": 4.0, "kd_ratio": 0.5},
    "jsd": {"divergence": "jsd", "teacher_kd_temperature": 2.0, "kd_temperature": 3.0},
    "tvd": {
        "divergence": "tvd",
        "kd_temperature": 4.0,
        "kd_temperature_schedule": "step",
        "kd_temperature_final": 1.0,
        "student_kd_temperature": 1.3,
    },
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi", "granite"])
def test_every_token_is_the_live_trajectory(make, built, architecture, prompt_dataset):
    folder = built(count=1000, architecture=architecture)
    assert layout_of(Manifest.read(Path(folder))).count == EVERY
    for fields in OBJECTIVES.values():
        live, offline = (make(architecture, **fields, **cache) for cache in ({}, {"teacher_cache": folder}))
        assert losses(offline) == pytest.approx(losses(live), rel=1e-9, abs=1e-9)


def test_some_tokens_are_less_and_are_learned_from(make, built):
    folder = built()
    for fields in OBJECTIVES.values():
        fields = {**fields, "max_steps": 12, "kd_ratio": 1.0, "kd_temperature_schedule": "constant"}
        fields["kd_temperature_final"] = None
        live, offline = (history(make(**fields, **cache)) for cache in ({}, {"teacher_cache": folder}))
        assert 0 < offline["loss"][0] < live["loss"][0]
        assert offline["loss"][-1] < 0.9 * offline["loss"][0]


@pytest.mark.usefixtures("float64")
def test_what_is_logged(make, built, prompt_dataset):
    fields = {"kd_temperature": 4.0, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    fields["eval_dataset"] = prompt_dataset
    trainers = [make(**fields), make(teacher_cache=built(eval_dataset=prompt_dataset), **fields)]
    live, offline = ({k: v for e in t.state.log_history for k, v in e.items()} for t in trainers if t.train())
    for name in ("student_entropy", "ce_loss", "token_agreement"):
        assert offline[name] == pytest.approx(live[name], rel=1e-9)
        assert f"eval_{name}" in offline
    assert not {"kl_tau1", "teacher_entropy", "eval_kl_tau1"} & set(offline)
    assert 0 < offline["kl_tau1_coarse"] < live["kl_tau1"]
    assert offline["eval_kl_tau1_coarse"] > 0
    without = make(teacher_cache=built(taus=(4.0,), name="at 4"), kd_temperature=4.0, max_steps=1)
    without.train()
    assert "kl_tau1_coarse" not in without.state.log_history[0]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_what_is_stored(make, built, dtype, tmp_path, request):
    wide, rounded, bound = 4, 1e-2, 1e-3  # bytes of what is known of the rest at each temperature, beside bf16 logits
    if dtype == "float64":
        request.getfixturevalue("float64")
        wide, rounded, bound = 8, 1e-9, 1e-9
    folder = tmp_path / "topk"
    trainer = make()
    rows = datasets.load_from_disk(built(dtype=dtype))["train"]
    assert rows.column_names == ["input_ids", "labels", "teacher_topk", CHECKSUM]
    manifest = Manifest.read(folder)
    assert manifest.truncated == {"count": 8, "taus": list(TAUS), "vocabulary": EVERY}
    assert not (folder / "head.safetensors").exists()
    layout, shares = layout_of(manifest), []
    for row in rows:
        with torch.no_grad():
            v = centred(trainer.teacher_model(torch.tensor([row["input_ids"]])).logits[0])
        kept = torch.tensor([len(part) > 0 for part in row["teacher_topk"]])
        data = bytearray().join(row["teacher_topk"])
        assert len(data) == layout.size * kept.sum() == (3 * wide + 8 * (layout.dtype.itemsize + 2)) * kept.sum()
        read = layout.read(torch.frombuffer(data, dtype=torch.uint8).view(-1, layout.size))
        values, ids = v[kept].topk(8)
        torch.testing.assert_close(v[kept].gather(-1, read.ids), values, rtol=bound, atol=bound)
        torch.testing.assert_close(read.logits.to(v), values, rtol=rounded, atol=rounded)
        for i, tau in enumerate(TAUS):
            whole = torch.logaddexp((values / tau).logsumexp(-1), read.rest[:, i])
            torch.testing.assert_close(whole, (v[kept] / tau).logsumexp(-1), rtol=bound, atol=bound)
        shares.append([(v[kept] / tau).softmax(-1).gather(-1, ids).sum(-1) for tau in TAUS])
    measured = [torch.cat(parts).mean().item() for parts in zip(*shares, strict=True)]
    assert manifest.splits["train"]["coverage"] == pytest.approx(
        dict(zip(map(str, TAUS), measured, strict=True)), abs=rounded
    )


def test_coverage_is_said(make, built, capsys, monkeypatch, caplog):
    monkeypatch.setattr(build.logger, "propagate", True)
    built(count=EVERY)
    assert "Of the train data the top 161 tokens hold 1.000 at tau 1, 1.000 at tau 2" in capsys.readouterr().out
    assert not caplog.records
    built(name="few")
    assert "At tau 1, 2, 4 less than 0.8 of the train data's mass is inside the top 8" in caplog.text


def test_a_half_build_goes_on_to_the_same(make, built, tmp_path, monkeypatch):
    """Coverage is of all shards, whoever wrote them."""
    monkeypatch.setattr(build, "SHARD_BYTES", 800)
    folder = tmp_path / "topk"
    built()
    whole = contents(folder)
    first, *others = sorted(folder.glob("train/*.arrow"))
    assert len(others) > 2
    others[0].unlink()
    data = first.read_bytes()
    first.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    built()
    assert contents(folder) == whole
    with pytest.raises(ValueError, match=r"`truncated.count` 8, but the recipe now says 9.*--output"):
        built(count=9)
    with pytest.raises(ValueError, match=r"`mode` 'topk', but the recipe now says 'hidden'.*--output"):
        builder_of(make(), folder).build()


def test_another_caches_rows(make, built, tmp_path):
    rows = datasets.load_from_disk(built(name="a"))["train"].to_iterable_dataset()
    with pytest.raises(ValueError, match="of another teacher's cache"):
        losses(make(train_dataset=rows, teacher_cache=built(name="b", taus=(1.0, 2.0)), kd_temperature=2.0))
    with pytest.raises(ValueError, match="a row has no `teacher_topk`"):
        hidden = tmp_path / "hidden"
        builder_of(make(), hidden).build()
        rows = datasets.load_from_disk(str(hidden))["train"].to_iterable_dataset()
        losses(make(train_dataset=rows, teacher_cache=built(name="a"), dataset_kwargs={"skip_prepare_dataset": True}))


def test_padded_heads(make, built, tmp_path):
    """The common prefix is stored, and a student with less than that is refused."""
    folder = tmp_path / "padded"
    builder_of(make(), folder, mode="topk", count=1000, taus=TAUS, vocabulary=150).build()
    layout = layout_of(Manifest.read(folder))
    assert (layout.count, layout.vocabulary) == (150, 150)
    row = datasets.load_from_disk(str(folder))["train"][0]["teacher_topk"]
    read = layout.read(torch.frombuffer(bytearray().join(row), dtype=torch.uint8).view(-1, layout.size))
    assert read.ids.max() < 150 and (read.rest == -torch.inf).all()

    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["truncated"]["vocabulary"] = EVERY + 1
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"student's vocabulary has size 161, and the cache .* has tokens of 162"):
        make(teacher_cache=str(folder))


REFUSED = {
    r"knows the teacher at the temperatures 1, 2, 4 alone, and the run's `kd_temperature` is 3.0": {
        "kd_temperature": 3.0
    },
    "the run's `teacher_kd_temperature` is 3.0": {"teacher_kd_temperature": 3.0},
    "the run's `kd_temperature_final` is 3.0": {
        "kd_temperature_schedule": "step",
        "kd_temperature_final": 3.0,
        "student_kd_temperature": 1.0,
    },
    "pass through every value": {"kd_temperature_schedule": "linear", "kd_temperature_final": 4.0},
    "`divergence` concrete_score needs the teacher's whole rows": {"divergence": "concrete_score"},
    "`divergence` alpha_beta needs": {"divergence": "alpha_beta", "divergence_kwargs": {"alpha": 0.5}},
    "`kd_diagnostics_steps` is 5": {"kd_diagnostics_steps": 5},
}


def test_what_it_cannot_serve_is_refused(make, built):
    folder = built()
    for match, fields in REFUSED.items():
        with pytest.raises(ValueError, match=f"{match}.*--mode hidden"):
            make(teacher_cache=folder, **fields)
    schedule = {"kd_temperature_schedule": "linear", "kd_temperature_final": 4.0}
    for fields in ({"student_kd_temperature": 3.0}, {**schedule, "teacher_kd_temperature": 4.0}):
        assert losses(make(teacher_cache=folder, **fields, max_steps=1))[0] > 0
    fields = {"divergence": "alpha_beta", "divergence_kwargs": {"alpha": 0.5, "beta": 0.5}}
    assert losses(make(teacher_cache=folder, **fields, max_steps=1))[0] > 0
    trainer = make(teacher_cache=folder)
    with pytest.raises(ValueError, match=r"whole rows are needed here, and the cache .* hasn't them.*--mode hidden"):
        from trl_tempkd.study.diagnostics import collect

        collect(trainer, trainer.train_dataset)


def test_what_means_something_else_is_warned_of(make, built, monkeypatch, caplog):
    monkeypatch.setattr(base.logger, "propagate", True)
    assert losses(make(teacher_cache=built(), divergence="adaptive_kl", max_steps=1))[0] > 0
    assert "`divergence` adaptive_kl of the cache" in caplog.text


@pytest.mark.usefixtures("float64")
def test_its_own_data_set_and_lengths(make, built, tmp_path):
    folder = built(packing=True, max_length=32)
    fields = {"teacher_cache": folder, "packing": True, "max_length": 32}
    expected = losses(make(**fields))
    rows = datasets.load_from_disk(folder)["train"]
    assert losses(make(train_dataset=rows, **fields)) == pytest.approx(expected, rel=1e-9)
    assert losses(make(train_dataset=rows, dataloader_num_workers=2, **fields)) == pytest.approx(expected, rel=1e-9)


def test_bf16_autocast(make, built, tmp_path):
    """Under autocast the logits have no more digits than are stored."""
    for dtype in ("bfloat16", "float32"):
        folder = built(dtype=dtype, bf16=True, count=EVERY, name=dtype)
        live, offline = (make(bf16=True, **cache) for cache in ({}, {"teacher_cache": folder}))
        assert losses(offline) == pytest.approx(losses(live), rel=5e-2)


@pytest.mark.usefixtures("float64")
def test_the_hidden_cache_is_still_the_live_trajectory(make, built, tmp_path):
    check_same(make, built(mode="hidden"))


def test_the_command(tmp_path, pair, prompt_dataset, capsys):
    arguments = options(tmp_path, pair(), prompt_dataset)
    folder = str(tmp_path / "cache")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("taus: [1, 3]\n")
    values, _, _ = command.make_parser().parse(
        ["--config", str(recipe), *arguments, "--output", folder, "--mode", "topk", "--k", "5"], launched=True
    )
    command.main(*values)
    said = capsys.readouterr().out
    assert "the top 5 tokens hold" in said and "8 rows of train, 4 rows of eval" in said
    assert Manifest.read(tmp_path / "cache").truncated == {"count": 5, "taus": [1, 3], "vocabulary": EVERY}
    arguments += ["--teacher_cache", folder, "--kd_temperature", "3", "--divergence", "skew_reverse_kl"]
    values, _, _ = distill.make_parser().parse(arguments, launched=True)
    distill.main(*values)
    assert json.loads((tmp_path / "output/eval_results.json").read_text())["eval_kl_tau1_coarse"] > 0


def test_what_the_command_refuses(capsys):
    recipe = ["--config", "recipes/tiny/distill.yaml", "--output", "x"]
    for more, match in (
        (["--k", "3"], "--k is for --mode topk, and this is --mode hidden"),
        (["--mode", "topk", "--samples", "3"], "--samples is for --mode sampled"),
        (["--taus", "1", "2"], "--taus is for --mode topk and sampled"),
        (["--mode", "topk", "--k", "0"], "--k must be at least 1, got 0"),
        (["--mode", "topk", "--taus", "1", "-2"], "--taus must be positive and finite, got 1.0 -2.0"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["cache", *recipe, *more])
        assert stop.value.code == 2
        assert match in capsys.readouterr().err
