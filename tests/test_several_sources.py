# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Several teachers from every source: in memory, from caches, behind servers, the student; on the device in turn."""

import json
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from datasets import Dataset, DatasetDict
from teacher_server import TeacherServer
from test_cached import builder_of
from test_own_prompt import FLASH, step_loss
from test_several_teachers import NAMES, PLAIN, ROUTED, ROWS, dtype

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.commands import cache, distill
from trl_tempkd.teachers.manifest import Manifest
from trl_tempkd.teachers.several import shards


HINTED = [{**row, "teacher_prompt": own["teacher_prompt"]} for row, own in zip(ROUTED, ROWS, strict=True)]
KINDS = {"moon": "llama", "cat": "gemma3_text"}


@pytest.fixture
def folders(tmp_path, make_model, tokenizer):
    """Of the models, by their names."""
    for seed, (name, architecture) in enumerate(KINDS.items(), start=1):
        make_model(architecture, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in KINDS}


@pytest.fixture
def make(folders, make_model, make_config, tokenizer):
    """`make(rows, {name: entry}, **fields)`: a trainer. An entry without a source has its model in memory."""

    def make(rows, entries, **fields):
        live = {"init_kwargs": dtype()}
        teachers = []
        for name in KINDS:
            entry = entries.get(name, {})
            served = {"model": folders[name]} if "server_url" in entry and "server_logprobs" not in entry else {}
            own = served if {"cache", "server_url"} & set(entry) else {"model": folders[name], **live}
            teachers.append({"name": name, **own, **entry})
        fields = {"per_device_train_batch_size": 4, "teachers": teachers, "learning_rate": 1e-3, **fields}
        fields = {"teacher_server_patience": 5.0, **fields}
        return TemperatureKDTrainer(
            make_model(), args=make_config(**fields), train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:5]) if "eval_strategy" in fields else None,
            processing_class=tokenizer,
        )  # fmt: skip

    return make


@pytest.fixture
def make_one(make_model, make_config, tokenizer):
    """`make_one(folder, rows, **fields)`: a trainer with one teacher, or none but in the fields."""

    def make(folder, rows, **fields):
        fields = {"teacher_model_init_kwargs": dtype() if folder else None, "learning_rate": 1e-3, **fields}
        args = make_config(teacher_model_name_or_path=folder, **fields)
        return TemperatureKDTrainer(
            make_model(), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )

    return make


@pytest.fixture
def cached(folders, make_one, tmp_path):
    """`cached(name, rows, **how)`: the folder of a cache of one of them."""

    def cached(name, rows, fields=None, **how):
        trainer = make_one(folders[name], rows, **(fields or {}))
        folder = tmp_path / f"{name}-cache"
        builder_of(trainer, folder, vocabulary=trainer.model.config.vocab_size, **how).build()
        return str(folder)

    return cached


@pytest.fixture
def serve(make_model, tokenizer):
    """`serve(name, **how)`: a server of one of them."""
    with ExitStack() as stack:

        def serve(name, **how):
            model = make_model(KINDS[name], seed=1 + list(KINDS).index(name))
            return stack.enter_context(TeacherServer(model, tokenizer, **how).running())

        yield serve


def history(trainer):
    trainer.train()
    unmeasured = ("_second", "_runtime", "flos", "epoch")
    names = {name for entry in trainer.state.log_history for name in entry if not name.endswith(unmeasured)}
    return {name: [entry[name] for entry in trainer.state.log_history if name in entry] for name in names}


def check_same(found, expected, rel=1e-3):
    assert set(found) == set(expected) and len(expected["loss"]) == 2
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=10 * rel if name == "grad_norm" else rel, abs=1e-4), name


# Every source says what the model in memory says


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (ROUTED, {"gradient_accumulation_steps": 2}),
        (HINTED, {"padding_free": True, "max_length": None}),
        (ROWS, {"gradient_accumulation_steps": 2, "kd_ratio": 0.7}),
        (PLAIN, {"packing": True, "max_length": 32}),
    ],
    ids=["routed", "routed behind own prompts", "mixed behind own prompts", "mixed and packed"],
)
@pytest.mark.filterwarnings(FLASH)
def test_a_cache_and_a_server_are_the_models(make, cached, serve, rows, fields):
    fields = {"divergence": "jsd", "kd_temperature": 1.5, **fields}
    if "packing" not in fields:  # else other rows are packed together
        fields |= {"eval_strategy": "steps", "eval_steps": 2}
    expected = history(make(rows, {}, **fields))
    assert {"kl_tau1/moon", "kd_loss/cat", "teacher_share/moon", "kl_tau1"} <= set(expected)
    assert ("eval_kl_tau1/cat" in expected) == ("packing" not in fields)
    how = {name: fields[name] for name in ("packing", "max_length", "padding_free") if name in fields}
    plain = [{key: row[key] for key in row if key != "teacher"} for row in rows]  # the eval rows are among them
    entries = {"moon": {"server_url": serve("moon", pooling=True).url}, "cat": {"cache": cached("cat", plain, how)}}
    check_same(history(make(rows, entries, **fields)), expected)


@pytest.mark.usefixtures("float64")
def test_caches_lose_nothing(make, cached):
    """Two caches, whose columns have the same names, and workers that read them."""
    fields = {"kd_temperature": 1.5, "dataloader_num_workers": 1}
    entries = {name: {"cache": cached(name, PLAIN)} for name in KINDS}
    expected, found = (history(make(PLAIN, of, **fields)) for of in ({}, entries))
    check_same(found, expected, rel=1e-9)


@pytest.mark.parametrize("rows", [ROUTED, HINTED, PLAIN], ids=["routed", "own prompts", "mixed"])
def test_on_policy(make, serve, rows):
    fields = {"lmbda": 1.0, "max_new_tokens": 6, "temperature": 0.0, "gradient_accumulation_steps": 2}
    fields |= {"divergence": "reverse_kl", "kd_temperature": 2.0, "max_steps": 2}
    server = serve("moon", pooling=True)
    expected = history(make(rows, {}, **fields))
    trainer = make(rows, {"moon": {"server_url": server.url}}, **fields)
    asked = server.count
    check_same(history(trainer), expected)
    # Each text once, and none that another teacher has
    own = NAMES.count("moon") if "teacher" in rows[0] else len(rows)
    assert server.count - asked == own * 2


@pytest.mark.usefixtures("float64")
def test_a_teacher_that_reads_the_students_prompt(make, cached):
    """One of a mixture is told a hint, and the other isn't: as if each was alone, of rows with it and without."""
    rows, plain = ROWS, [{key: row[key] for key in ("prompt", "completion")} for row in ROWS]
    entry = {"teacher_prompt": False}
    found, from_cache = (history(make(rows, {"cat": of})) for of in (entry, {**entry, "cache": cached("cat", plain)}))
    check_same(from_cache, found, rel=1e-9)
    hinted, unhinted = (history(make(of, {})) for of in (rows, plain))
    for name in ("kl_tau1", "kd_loss"):
        assert found[f"{name}/moon"][0] == pytest.approx(hinted[f"{name}/moon"][0], rel=1e-9)
        assert found[f"{name}/cat"][0] == pytest.approx(unhinted[f"{name}/cat"][0], rel=1e-9)
        assert found[f"{name}/cat"][0] != pytest.approx(hinted[f"{name}/cat"][0], rel=1e-3)


# Teachers of which a part is known


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("count", [5, 1000])
def test_a_part_of_the_vocabulary_is_routed_to(make, make_one, cached, folders, count):
    folder = cached("moon", PLAIN, mode="topk", count=count, taus=(1.0, 2.0))
    fields = {"divergence": "reverse_kl", "kd_temperature": 1.3, "per_device_train_batch_size": 8}
    entries = {"moon": {"cache": folder, "kd_temperature": 2.0}}
    routed = make(ROUTED, entries, **fields)
    loss, _ = step_loss(routed)
    total = count_all = 0
    for name, more in (("moon", {"teacher_cache": folder, "kd_temperature": 2.0}), ("cat", {})):
        part = [row for row, own in zip(PLAIN, NAMES, strict=True) if own == name]
        one = make_one(None if "teacher_cache" in more else folders[name], part, **{**fields, **more})
        tokens = sum(sum(label != -100 for label in row["labels"][1:]) for row in one.train_dataset)
        total, count_all = total + step_loss(one)[0] * tokens, count_all + tokens
    torch.testing.assert_close(loss, total / count_all, rtol=1e-9, atol=1e-12)
    found = history(routed)
    assert {"kl_tau1_coarse/moon", "student_mass_outside/moon", "kl_tau1/cat", "kd_loss/moon"} <= set(found)
    assert not {"kl_tau1", "teacher_entropy", "kl_tau1/moon", "student_mass_outside/cat"} & set(found)
    assert (max(found["student_mass_outside/moon"]) == 0) == (count == 1000)


def test_log_probabilities(make, serve):
    whole, part = serve("moon"), serve("moon", most=8)
    few = {"server_url": part.url, "server_logprobs": 8, "divergence": "forward_kl"}
    expected = history(make(PLAIN, {}, kd_temperature=2.0))
    check_same(
        history(make(PLAIN, {"moon": {"server_url": whole.url, "model": "teacher"}}, kd_temperature=2.0)), expected
    )
    found = history(make(ROUTED, {"moon": {**few, "kd_temperature": 1.0}}, kd_temperature=2.0))
    assert "kl_tau1_coarse/moon" in found and "kl_tau1/cat" in found
    with pytest.raises(ValueError, match=r"`teachers`, moon: .* at the temperatures 1 alone.*`kd_temperature` is 2"):
        make(ROUTED, {"moon": few}, kd_temperature=2.0)
    with pytest.raises(ValueError, match=r"`teachers`, moon: `divergence` todi|`teachers`, moon: .*whole rows"):
        make(ROUTED, {"moon": {**few, "divergence": "diversity_reverse_kl", "kd_temperature": 1.0}})
    with pytest.raises(ValueError, match=r"`teachers`, moon: the server .* and the mixture of several needs them"):
        make(PLAIN, {"moon": {"server_url": part.url, "server_logprobs": 8}}, kd_temperature=1.0)


def test_a_truncated_cache_is_refused_before_models_are_loaded(make, cached, monkeypatch):
    folder = cached("moon", PLAIN, mode="sampled", count=4, taus=(1.0,))
    monkeypatch.setattr("trl_tempkd.teachers.live.load_teacher", None)
    with pytest.raises(ValueError, match=r"`teachers`, moon: the cache in .* the mixture of several needs them"):
        make(PLAIN, {"moon": {"cache": folder}}, kd_temperature=1.0, divergence="forward_kl")
    with pytest.raises(ValueError, match=r"`teachers`, moon: .*reverse_kl"):
        make(ROUTED, {"moon": {"cache": folder, "divergence": "reverse_kl"}})
    with pytest.raises(ValueError, match=r"`teachers`, moon: The cache in .*at the temperatures 1 alone"):
        make(ROUTED, {"moon": {"cache": folder, "divergence": "forward_kl", "teacher_kd_temperature": 2.0}})


# What is refused


@pytest.mark.parametrize(
    ("entry", "fields", "message"),
    [
        ({}, {}, "a: it must have a `model`, a `cache` or a `server_url`"),
        ({"model": 3}, {}, "a: `model` must be text, got 3"),
        (
            {"cache": "x", "server_url": "http://me:secret@h"},
            {},
            r"a: `cache` is 'x' and `server_url` 'http://\*\*\*@h'",
        ),
        ({"server_url": "host:8000"}, {}, "`teachers`, a: `server_url` must begin with http"),
        ({"model": "m", "server_model": "x"}, {}, "a: `server_model` is 'x', and is of a teacher with a `server_url`"),
        ({"server_url": "http://h", "server_logprobs": 1}, {}, "a: `server_logprobs` must be at least 2, got 1"),
        ({"cache": "x"}, {"lmbda": 0.5}, r"a: `cache` x has nothing for completions .*`lmbda` to 0 \(got 0.5\)"),
        ({"teacher_cache": "x"}, {}, "'teacher_cache', and an entry takes .*; it is called 'cache' here"),
        ({"server_url": "http://h"}, {"teacher_server_requests": 0}, "`teacher_server_requests` must be at least 1"),
        ({"model": "m", "teacher_prompt": "be wise"}, {}, "a: `teacher_prompt` must be True or False, got 'be wise'"),
        ({"cache": "x"}, {"teachers_offload": "disk"}, "`teachers_offload` is 'disk', and none of the `teachers`"),
        ({"model": "m"}, {"teachers_offload": "gpu"}, "`teachers_offload` must be one of cpu, disk"),
    ],
    ids=str,
)
def test_options_are_refused_by_name(make_config, entry, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        make_config(teachers=[{"name": "a", **entry}], **fields)
    assert "secret" not in str(error.value)


def test_a_password_is_never_shown(make_config):
    for wrong in (
        {"server_url": "http://me:secret@h"},
        ["http://me:secret@h"],
        '[{"server_url": "http://me:secret@h"}]',
    ):
        with pytest.raises(ValueError, match="must be a list of dicts") as error:
            make_config(teachers=wrong)
        assert "secret" not in str(error.value)
    args = make_config(teachers=[{"name": "a", "server_url": "http://me:secret@host"}])
    assert "secret" not in json.dumps(args.to_dict()) and "secret" not in repr(args.to_dict())
    assert args.teachers[0]["server_url"] == "http://me:secret@host"


def test_rows_that_are_not_in_the_cache(make, cached, tmp_path):
    part = [row for row, own in zip(PLAIN, NAMES, strict=True) if own == "cat"]
    folder = cached("cat", part)
    make(ROUTED, {"cat": {"cache": folder}})  # it has all that are routed to it
    with pytest.raises(ValueError, match=r"`teachers`, cat: 4 of 8 rows of the train data set, .*aren't in the cache"):
        make(PLAIN, {"cat": {"cache": folder}})
    with pytest.raises(ValueError, match=r"`teachers`, cat: `teacher_cache` .*nowhere is no teacher cache"):
        make(PLAIN, {"cat": {"cache": str(tmp_path / "nowhere")}})


# In recipes


def test_every_source_in_a_recipe(folders, serve, tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    names = ["moon", "cat", "itself", "average"]
    rows = [
        {**row, "teacher": names[i % 4], "teacher_prompt": ROWS[i]["teacher_prompt"]} for i, row in enumerate(PLAIN)
    ]
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows)).save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": str(tmp_path / "student"), "dataset_name": str(tmp_path / "data"), "do_eval": True,
        "eval_strategy": "no", "use_cpu": True, "bf16": False, "max_steps": 2, "save_strategy": "no",
        "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
        "teachers": [
            {"name": "moon", "cache": str(tmp_path / "moon-cache"), "model": folders["moon"]},
            {"name": "cat", "server_url": serve("cat", pooling=True).url, "model": folders["cat"]},
            {"name": "itself", "model": "student"},
            {"name": "average", "model": "student_ema", "teacher_kd_temperature": 0.7},
        ],
    }  # fmt: skip

    def parsed(command, name, *more):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**options, "output_dir": str(tmp_path / name)}))
        return command.make_parser().parse(["--config", str(recipe), *more], launched=True)[0]

    with pytest.raises(ValueError, match="no such teacher cache"):
        distill.main(*parsed(distill, "out"))
    built = ("--output", str(tmp_path / "moon-cache"), "--cache_dtype", "float32")
    with pytest.raises(ValueError, match="give --teacher, one of moon, cat, itself, average"):
        cache.main(*parsed(cache, "none", *built))
    with pytest.raises(ValueError, match=r"no teacher 'mon'.*did you mean 'moon'"):
        cache.main(*parsed(cache, "none", *built, "--teacher", "mon"))
    with pytest.raises(ValueError, match="student is in memory"):
        cache.main(*parsed(cache, "none", *built, "--teacher", "itself"))
    cache.main(*parsed(cache, "none", *built, "--teacher", "moon"))
    assert Manifest.read(tmp_path / "moon-cache").splits["train"]["rows"] == 2  # its own
    distill.main(*parsed(distill, "out"))
    log = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert {f"kl_tau1/{name}" for name in names} <= {key for entry in log for key in entry}


def test_a_recipe_that_trains_from_a_cache_builds_it_through_a_server(folders, serve, tmp_path, capsys):
    Dataset.from_list(PLAIN).save_to_disk(tmp_path / "data/train")
    (tmp_path / "data/dataset_dict.json").write_text('{"splits": ["train"]}')
    folder, recipe = str(tmp_path / "cache"), tmp_path / "recipe.yaml"
    options = {
        "model_name_or_path": folders["moon"], "teacher_model_name_or_path": folders["moon"], "teacher_cache": folder,
        "dataset_name": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "eval_strategy": "no",
        "use_cpu": True, "bf16": False,
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(options))
    arguments = ["--config", str(recipe), "--teacher_server_url", serve("moon", pooling=True).url]
    cache.main(*cache.make_parser().parse([*arguments, "--output", folder], launched=True)[0])
    assert Manifest.read(tmp_path / "cache").complete
    with pytest.raises(SystemExit):  # of a training the target comes from one of them
        distill.make_parser().parse(arguments, launched=True)
    assert "the target comes from one of them" in capsys.readouterr().err


# On the device in turn


class Watched:
    """How many bytes of the teachers' weights there are while one of them runs, and while the student does."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.models = {name: member.model for name, member in trainer.teacher.members.items()}
        self.runs, self.most, self.beside_the_student = [], 0, 0
        for name, model in self.models.items():
            model.register_forward_pre_hook(lambda *_, name=name: self.see(name))
            model.get_decoder().register_forward_pre_hook(lambda *_, name=name: self.see(name))
        trainer.model.get_decoder().register_forward_pre_hook(lambda *_: self.see(None))

    def size(self, name):
        head = self.models[name].get_output_embeddings().weight
        return sum(p.nbytes for p in self.models[name].parameters() if p is not head)

    def see(self, name):
        size = sum(map(self.size, self.models))
        if name is None:
            self.beside_the_student = max(self.beside_the_student, size)
        else:
            self.runs.append(name)
            self.most = max(self.most, size)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (ROUTED, {"eval_strategy": "steps", "eval_steps": 1}),
        (HINTED, {"lmbda": 1.0, "max_new_tokens": 5, "temperature": 0.0}),
        (PLAIN, {"eval_strategy": "steps", "eval_steps": 2}),
    ],
    ids=["routed", "on-policy", "mixed"],
)
def test_one_teacher_at_a_time_is_in_memory(make, rows, fields):
    fields = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, **fields}
    both = [Watched(make(rows, {}, **more, **fields)) for more in ({}, {"teachers_offload": "disk"})]
    sizes = [both[0].size(name) for name in KINDS]
    expected, found = (history(watched.trainer) for watched in both)
    check_same(found, expected, rel=1e-9)
    assert both[0].most == both[0].beside_the_student == sum(sizes)
    watched, trainer = both[1], both[1].trainer
    assert {*watched.runs} == {*KINDS} and watched.most == max(sizes) and watched.beside_the_student == 0
    # A run of one teacher after the other in each step, and not for each micro-batch
    if "eval_strategy" not in fields:
        turns = [name for i, name in enumerate(watched.runs) if name != watched.runs[i - 1] or not i]
        assert len(turns) <= 2 * trainer.state.global_step, turns


def test_what_cannot_leave_the_device(make, monkeypatch):
    with pytest.raises(
        ValueError, match=r"`teachers`, moon: `teachers_offload` is 'cpu', .* in the CPU's memory: 'disk'"
    ):
        make(ROUTED, {}, teachers_offload="cpu")
    monkeypatch.setattr("trl_tempkd.teachers.several.shards", lambda accelerator: "ZeRO-3")
    with pytest.raises(ValueError, match="`teachers_offload` is 'disk', and with ZeRO-3 each process has a shard"):
        make(ROUTED, {}, teachers_offload="disk")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"distributed_type": DistributedType.NO}, None),
        ({"distributed_type": DistributedType.MULTI_GPU}, None),
        ({"distributed_type": DistributedType.DEEPSPEED, "zero_stage": 2}, None),
        ({"distributed_type": DistributedType.DEEPSPEED, "zero_stage": 3}, "ZeRO-3"),
        ({"distributed_type": DistributedType.FSDP}, "FSDP"),
        ({"distributed_type": DistributedType.MULTI_GPU, "is_fsdp2": True}, "FSDP"),
    ],
    ids=str,
)
def test_what_shards_a_teacher(found, said):
    plugin = SimpleNamespace(zero_stage=found.get("zero_stage"))
    state = SimpleNamespace(deepspeed_plugin=plugin)
    assert shards(SimpleNamespace(**{"is_fsdp2": False, **found}, state=state)) == said
