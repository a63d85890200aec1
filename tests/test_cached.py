# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The teacher cache: the live teacher's trajectory without the teacher, and what is refused, found and repaired."""

import copy
import json
import os
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import ranks
import torch
from peft import LoraConfig

from trl_tempkd import TemperatureKDTrainer, cli
from trl_tempkd.commands import cache as command
from trl_tempkd.commands import distill
from trl_tempkd.study.diagnostics import Plan, collect, diagnose
from trl_tempkd.teachers import CacheBuilder, CachedTeacher, build
from trl_tempkd.teachers.columns import CHECKSUM
from trl_tempkd.teachers.layouts import MODES


HIDDEN = "teacher_hidden"


MEASURES = (
    "loss",
    "grad_norm",
    "kd_loss",
    "kl_tau1",
    "teacher_entropy",
    "token_agreement",
    "eval_loss",
    "eval_kl_tau1",
)


def builder_of(trainer, folder, dtype=None, batch_size=3, **kwargs):
    dtype = dtype or str(trainer.teacher.model.dtype).removeprefix("torch.")
    splits = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    return CacheBuilder(
        Path(folder),
        {name: dataset for name, dataset in splits.items() if dataset is not None},
        trainer.teacher,
        trainer.data_collator,
        trainer.processing_class,
        trainer.accelerator,
        trainer.args,
        dtype=dtype,
        batch_size=batch_size,
        **kwargs,
    )


def history(trainer):
    trainer.train()
    log = trainer.state.log_history
    return {name: [entry[name] for entry in log if name in entry] for name in MEASURES}


def close(values, rel=1e-9):
    """A history, to be compared with another one."""
    return {name: pytest.approx(column, rel=rel, abs=rel) for name, column in values.items()}


def check_same(make, folder, rel=1e-9, **fields):
    live, offline = (history(make(**fields, **cache)) for cache in ({}, {"teacher_cache": str(folder)}))
    assert len(live["loss"]) == 4 and max(live["loss"]) > 1e-3
    assert offline == close(live, rel)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# The same trajectory


OBJECTIVES = {
    "forward": {"divergence": "forward_kl", "kd_temperature": 1.0},
    "reverse": {"divergence": "reverse_kl", "kd_temperature": 4.0, "kd_ratio": 0.5},
    "jsd": {"divergence": "jsd", "divergence_kwargs": {"beta": 0.3}, "teacher_kd_temperature": 3.0},
    "schedule": {
        "divergence": "adaptive_kl",
        "kd_temperature": 4.0,
        "kd_temperature_schedule": "linear",
        "kd_temperature_final": 1.0,
        "student_kd_temperature": 1.0,
    },
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "phi", "granite"])
def test_same_trajectory(make, tmp_path, prompt_dataset, architecture):
    # One cache for every objective. GPT-2's student has dropout, so the random numbers are the same too.
    data = {"train_dataset": prompt_dataset, "eval_dataset": prompt_dataset.select(range(5, 8))}
    builder_of(make(architecture, **data), tmp_path / "cache").build()
    for fields in OBJECTIVES.values():
        fields = {**fields, "eval_strategy": "steps", "eval_steps": 2}
        check_same(make, tmp_path / "cache", architecture=architecture, **data, **fields)


FORMATS = {
    "text": ("text_dataset", {}),
    "conversational": ("chat_dataset", {}),
    "assistant only": ("chat_dataset", {"assistant_only_loss": True}),
    "truncated": ("prompt_dataset", {"max_length": 8}),
    "shuffled": ("prompt_dataset", {"shuffle_dataset": True, "seed": 3}),
    "bfd": ("prompt_dataset", {"packing": True, "max_length": 32}),
    "bfd_split": ("text_dataset", {"packing": True, "max_length": 8, "packing_strategy": "bfd_split"}),
    "wrapped": ("text_dataset", {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}),
    "padding-free": ("prompt_dataset", {"padding_free": True, "max_length": None}),
    "padded": ("text_dataset", {"pad_to_multiple_of": 16}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FORMATS)
def test_data_formats(make, tmp_path, request, name):
    dataset, fields = FORMATS[name]
    fields = {"train_dataset": request.getfixturevalue(dataset), **fields}
    trainer = make(**fields)
    manifest = builder_of(trainer, tmp_path / "cache").build()
    assert manifest.splits["train"]["rows"] == len(trainer.train_dataset)
    check_same(make, tmp_path / "cache", **fields)


@pytest.mark.usefixtures("float64")
def test_only_what_the_loss_sees_is_stored(make, tmp_path):
    trainer = make()
    manifest = builder_of(trainer, tmp_path / "cache").build()
    rows = datasets.load_from_disk(str(tmp_path / "cache"))["train"]
    assert rows.column_names == ["input_ids", "labels", HIDDEN, CHECKSUM]
    kept = [[label != -100 for label in labels[1:]] + [False] for labels in rows["labels"]]
    assert [[len(part) > 0 for part in row] for row in rows[HIDDEN]] == kept
    assert manifest.splits["train"]["tokens"] == sum(map(sum, kept)) < sum(map(len, rows["input_ids"]))
    row = rows[0]
    with torch.no_grad():
        expected = trainer.teacher_model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0][kept[0]]
    stored = torch.frombuffer(bytearray().join(row[HIDDEN]), dtype=torch.float64)
    torch.testing.assert_close(stored.view(-1, 32), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_rows_are_found_whatever_their_order(make, tmp_path, prompt_dataset):
    builder_of(make(), tmp_path / "cache").build()
    other = prompt_dataset.shuffle(seed=1).select([5, 0, 0, 3, 6])
    check_same(make, tmp_path / "cache", train_dataset=other, seed=7, shuffle_dataset=True)
    check_same(make, tmp_path / "cache", train_dataset=other, padding_free=True, max_length=None)


def test_bf16(make, tmp_path, monkeypatch):
    # In fp32 half of the digits are lost; a teacher in bf16 has no more, and neither does autocast read more
    bound = 5e-2  # a bf16 number is known to 4e-3
    builder_of(make(), tmp_path / "half", dtype="bfloat16").build()
    assert (tmp_path / "half" / "train").exists()
    check_same(make, tmp_path / "half", rel=bound)
    with pytest.raises(AssertionError):
        check_same(make, tmp_path / "half")
    fields = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    trainer = make(**fields)
    made, hidden_states = [], trainer.teacher.hidden_states
    monkeypatch.setattr(trainer.teacher, "hidden_states", lambda batch: made.append(hidden_states(batch)) or made[-1])
    builder_of(trainer, tmp_path / "exact", dtype="bfloat16").build()
    stored = bytearray().join(chain(*datasets.load_from_disk(str(tmp_path / "exact"))["train"][HIDDEN]))
    states = torch.frombuffer(stored, dtype=torch.bfloat16).view(-1, 32)
    everything = {tuple(state) for batch in made for state in batch.flatten(0, -2).tolist()}
    assert {tuple(state) for state in states.tolist()} <= everything
    check_same(make, tmp_path / "exact", rel=bound, **fields)
    builder_of(make(bf16=True), tmp_path / "autocast", dtype="bfloat16").build()
    check_same(make, tmp_path / "autocast", rel=bound, bf16=True)


def test_no_teacher_is_loaded(make, tmp_path, monkeypatch):
    builder_of(make(), tmp_path / "cache").build()

    def refuse(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("trl_tempkd.teachers.load_teacher", refuse)
    for fields in ({}, {"teacher_model_name_or_path": None}):
        trainer = make(teacher_cache=str(tmp_path / "cache"), **fields)
        assert trainer.teacher_model is None
        assert history(trainer)["loss"][0] > 0


@pytest.mark.usefixtures("float64")
def test_its_own_data_set(make, tmp_path):
    """Selected from, through parquet (as the Hub has it), streamed, with workers: the rows carry what they need."""
    builder_of(make(), tmp_path / "cache").build()
    fields = {"teacher_cache": str(tmp_path / "cache"), "dataloader_num_workers": 0}
    expected = history(make(**fields))
    rows = datasets.load_from_disk(str(tmp_path / "cache"))["train"]
    assert history(make(train_dataset=rows, **fields)) == close(expected)
    assert history(make(train_dataset=rows, **{**fields, "dataloader_num_workers": 2})) == close(expected)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "hf"))
    assert read["train"].features == rows.features
    assert history(make(train_dataset=read["train"], **fields)) == close(expected)
    streamed = rows.to_iterable_dataset(num_shards=2)
    live = history(make(train_dataset=rows.remove_columns([HIDDEN, CHECKSUM]).to_iterable_dataset(num_shards=2)))
    assert history(make(train_dataset=streamed, **fields)) == close(live)


@pytest.mark.usefixtures("float64")
def test_resumed_training(make, tmp_path):
    builder_of(make(), tmp_path / "cache").build()
    fields = {"teacher_cache": str(tmp_path / "cache"), "max_steps": 4}
    whole = history(make(save_strategy="steps", save_steps=2, **fields))
    resumed = make(**fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == close(whole)["loss"]


@pytest.mark.usefixtures("float64")
def test_evaluation_of_fresh_rows(make, tmp_path, prompt_dataset, text_dataset):
    builder_of(make(), tmp_path / "cache").build()
    trainer = make(teacher_cache=str(tmp_path / "cache"))
    live = make().evaluate(prompt_dataset.select(range(3)))
    assert trainer.evaluate(prompt_dataset.select(range(3)))["eval_loss"] == pytest.approx(live["eval_loss"], rel=1e-9)
    with pytest.raises(ValueError, match="8 of 8 rows of the eval data set"):
        trainer.evaluate(text_dataset)


@pytest.mark.usefixtures("float64")
def test_a_lora_student(make, pair, make_config, tmp_path, prompt_dataset):
    builder_of(make(), tmp_path / "cache").build()
    student, teacher = pair()
    losses = []
    for fields in ({"teacher_model_name_or_path": teacher}, {"teacher_cache": str(tmp_path / "cache")}):
        trainer = TemperatureKDTrainer(
            student,
            args=make_config(model_init_kwargs={"dtype": torch.float64}, **fields),
            train_dataset=prompt_dataset,
            peft_config=LoraConfig(target_modules="all-linear"),
        )
        losses.append(history(trainer)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_diagnostics(make, tmp_path):
    builder_of(make(), tmp_path / "cache").build()
    plan = Plan(["reverse_kl"], [1.0, 4.0], ["both"])
    tables = []
    for fields in ({}, {"teacher_cache": str(tmp_path / "cache")}):
        trainer = make(**fields)
        tables.append([row["value"] for row in diagnose(trainer, collect(trainer, trainer.train_dataset), plan)])
    assert tables[1] == pytest.approx(tables[0], rel=1e-9, abs=1e-9)


# Mismatches


def test_refuses_generated_completions(make_config):
    for fields in ({"lmbda": 0.5}, {"seq_kd": True}):
        with pytest.raises(ValueError, match=r"`teacher_cache` x has nothing for completions"):
            make_config(teacher_cache="x", **fields)


def test_refuses_a_model_beside_it(make, make_trainer, tmp_path):
    builder_of(make(), tmp_path / "cache").build()
    with pytest.raises(ValueError, match=r"`teacher_cache` .* and `teacher_model` a LlamaForCausalLM"):
        make_trainer(teacher_cache=str(tmp_path / "cache"))


def test_mismatches_name_the_field(make, pair, tmp_path, tokenizer, prompt_dataset, text_dataset):
    builder_of(make(), tmp_path / "cache").build()
    fields = {"teacher_cache": str(tmp_path / "cache")}

    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            make(**{**fields, **changes})

    refused(r"aren't in the cache .*`max_length` \(1024 in the cache, 8 in the run\)", max_length=8)
    refused(r"2 of 3 rows of the train data set.*`packing` \(False", packing=True, max_length=32)
    refused("8 of 8 rows of the eval data set, the first being row 0", eval_dataset=text_dataset)
    rows = datasets.load_from_disk(str(tmp_path / "cache"))["train"]
    refused(r"prepared already\..*`packing`", train_dataset=rows, packing=True, max_length=32)
    streamed = prompt_dataset.to_iterable_dataset()
    refused(r"To stream the train data set, stream the cache's own", train_dataset=streamed)
    refused("`teacher_model_init_kwargs.dtype` None", teacher_model_init_kwargs={"dtype": "float64"})
    refused(
        "`teacher_model_name_or_path` .*, but the run says 'nobody/else'", teacher_model_name_or_path="nobody/else"
    )
    student, _ = pair()
    refused("`teacher_weights`", teacher_model_name_or_path=student)

    tokenizer.chat_template += " "
    refused("`chat_template`", processing_class=tokenizer)
    tokenizer.add_tokens("<new>")
    refused("`tokenizer`", processing_class=tokenizer)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("complete", False, "isn't complete"),
        ("format", 2, "`format` 2, this version reads 1"),
        ("mode", "logits", "`mode` 'logits', this version trains from hidden, topk, sampled"),
        ("mood", "hidden", "can't be read"),
    ],
)
def test_refuses_what_it_cannot_read(make, tmp_path, field, value, match):
    builder_of(make(), tmp_path / "cache").build()
    path = tmp_path / "cache" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=match):
        make(teacher_cache=str(tmp_path / "cache"))
    path.unlink()
    with pytest.raises(ValueError, match="is no teacher cache: it has no manifest"):
        make(teacher_cache=str(tmp_path / "cache"))


def test_refuses_another_teachers_rows(make, tmp_path):
    for name, dtype in (("a", "float32"), ("b", "bfloat16")):
        builder_of(make(), tmp_path / name, dtype=dtype).build()
    rows = datasets.load_from_disk(str(tmp_path / "a"))["train"].to_iterable_dataset()
    with pytest.raises(ValueError, match="of another teacher's cache"):
        history(make(train_dataset=rows, teacher_cache=str(tmp_path / "b")))


# Damage and interruption


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(build, "SHARD_BYTES", 2000)


def test_damage_is_found_and_repaired(make, tmp_path, small_shards, prompt_dataset):
    folder = tmp_path / "cache"
    data = {"eval_dataset": prompt_dataset.select(range(4))}
    builder_of(make(**data), folder).build()
    whole = contents(folder)
    shards = sorted(name for name in whole if name.endswith(".arrow"))
    assert len(shards) > 4
    fields = {"teacher_cache": str(folder), **data}

    def damage(name, change):
        (folder / name).write_bytes(change(whole[name]))

    def flipped(data, at):
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    rows = datasets.load_from_disk(str(folder))["train"]
    row = rows[0]
    state = next(part for part in row[HIDDEN] if part)
    ids = np.asarray(row["input_ids"], dtype=rows.features["input_ids"].feature.dtype).tobytes()
    name = next(name for name in shards if name.startswith("train") and state in whole[name])
    cases = {
        "a row is damaged": (name, lambda data: flipped(data, data.index(state) + 5)),
        "has .* bytes of": (name, lambda data: data[:-50]),
        "head.safetensors is damaged": ("head.safetensors", lambda data: flipped(data, len(data) - 1)),
        "head.safetensors can't be read": ("head.safetensors", lambda data: data[:100]),
        "train is damaged: its tokens": (name, lambda data: flipped(data, data.index(ids))),
        "can't be read": (name, lambda data: flipped(data, 0)),
    }
    for match, (name, change) in cases.items():
        damage(name, change)
        with pytest.raises(ValueError, match=f"{match}.*Run `trl-tempkd cache` again"):
            make(**fields, num_train_epochs=1, max_steps=-1).train()
        builder_of(make(**data), folder).build()
        assert contents(folder) == whole, match
    (folder / name).unlink()
    with pytest.raises(ValueError, match="0 bytes of"):
        make(**fields)


class Killed(BaseException):
    pass


def test_a_build_may_be_killed_anywhere(make, tmp_path, small_shards, monkeypatch):
    trainer = make()
    builder_of(trainer, tmp_path / "whole").build()
    expected = contents(tmp_path / "whole")
    forwards = []
    hidden_states = trainer.teacher.hidden_states
    monkeypatch.setattr(trainer.teacher, "hidden_states", lambda batch: forwards.append(1) or hidden_states(batch))
    builder_of(trainer, tmp_path / "counted").build()
    steps, replace, killed = len(forwards), os.replace, 0
    for at in range(100):
        folder = tmp_path / str(at)
        calls = []

        def dying(source, target, at=at, calls=calls):
            calls.append(target)
            if len(calls) == at + 1:
                Path(source).write_bytes(Path(source).read_bytes()[:-10])  # what hadn't reached the disk
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            builder_of(trainer, folder).build()
            break
        except Killed:
            killed += 1
        monkeypatch.setattr(os, "replace", replace)
        if (folder / "manifest.json").exists():
            options = copy.copy(trainer.args)
            options.teacher_cache = str(folder)
            with pytest.raises(ValueError, match="isn't complete"):
                CachedTeacher(None, options)
        there = len(list(folder.rglob("data-*.arrow")))
        forwards.clear()
        builder_of(trainer, folder).build()
        assert contents(folder) == expected
        assert len(forwards) == steps - there  # a batch for each of these shards
    assert killed == len(calls) >= 8


def test_a_build_that_was_begun_otherwise(make, tmp_path, text_dataset, pair):
    trainer = make()
    builder_of(trainer, tmp_path / "cache").build()
    cases = {
        "`dtype` 'float32', but the recipe now says 'bfloat16'": (trainer, {"dtype": "bfloat16"}),
        "`splits.train.fingerprint`": (make(train_dataset=text_dataset), {}),
        "`preparation.max_length` 1024": (make(max_length=512), {}),
        "`teacher_weights`": (make(teacher_model_name_or_path=pair()[0]), {}),
    }
    for match, (other, fields) in cases.items():
        with pytest.raises(ValueError, match=f"{match}.*--output"):
            builder_of(other, tmp_path / "cache", **fields).build()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="something else in it"):
        builder_of(trainer, tmp_path / "full").build()


def test_the_disk_is_checked_first(make, tmp_path, monkeypatch, capsys):
    builder = builder_of(make(), tmp_path / "cache")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(ValueError, match=r"are free\. Give another --output"):
        builder.build()
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    builder.build()
    written = sum((tmp_path / "cache" / "train" / name).stat().st_size for name in ("data-00000-of-00001.arrow",))
    assert written == pytest.approx(builder.bytes, rel=0.25)  # the schema weighs on a cache of eight rows


# The command


def options(folder, pair, prompt_dataset, **more):
    student, teacher = pair
    datasets.DatasetDict(train=prompt_dataset, test=prompt_dataset.select(range(4))).save_to_disk(folder / "data")
    values = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": folder / "data",
        "output_dir": folder / "output",
        "max_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "bf16": False,
        "use_cpu": True,
        "do_eval": True,
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def losses_of(folder):
    """Of a run that has ended."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_the_command(tmp_path, pair, prompt_dataset, capsys):
    arguments = options(tmp_path, pair(), prompt_dataset)
    folder = str(tmp_path / "cache")
    # the recipe may name the cache already
    values, _, _ = command.make_parser().parse(
        [*arguments, "--output", folder, "--cache_dtype", "float32", "--teacher_cache", folder], launched=True
    )
    command.main(*values)
    assert "8 rows of train, 4 rows of eval" in capsys.readouterr().out

    results = []
    for more in ([], ["--teacher_cache", folder]):
        values, _, _ = distill.make_parser().parse([*arguments, *more], launched=True)
        distill.main(*values)
        losses = losses_of(tmp_path / "output")
        evaluated = json.loads((tmp_path / "output/eval_results.json").read_text())
        results.append([*losses, evaluated["eval_loss"]])
    assert len(results[0]) == 4
    assert results[1] == pytest.approx(results[0], rel=1e-6)


def test_what_the_command_refuses(capsys):
    recipe = ["--config", str(Path(__file__).parent.parent / "recipes/tiny/distill.yaml")]
    for more, match in (
        ([], "no folder for the cache: give --output"),
        (["--output", "x", "--lmbda", "0.5"], "can't be cached: give --lmbda 0"),
        (["--output", "x", "--mode", "logits"], "invalid choice"),
        (["--output", "x", "--teacher_model_name_or_path", "student_base"], "isn't cached"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["cache", *recipe, *more])
        assert stop.value.code == 2
        assert match in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["distill", *recipe, "--teacher_cache", "./nowhere"])
    assert "no such teacher cache (--teacher_cache): ./nowhere" in capsys.readouterr().err


@pytest.mark.distributed
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_build_what_one_builds(tmp_path, pair, prompt_dataset, mode, capfd):
    arguments = options(tmp_path, pair(), prompt_dataset)
    for processes, name in ((1, "one"), (2, "two")):
        build = [*arguments, "--mode", mode, "--output_dir", str(tmp_path / name)]
        if mode == "hidden" and processes == 2:  # the whole way
            two = "--accelerate_config multi_gpu --num_processes 2 --main_process_port 0".split()
            assert cli.main(["cache", *build, *two]) == 0, capfd.readouterr().err
            continue
        status, said = ranks.command("cache", build, tmp_path / f"run {name}", processes)
        assert status == 0, said
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "two").rglob("data-*.arrow"))) == 2  # one for each process
