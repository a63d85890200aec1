# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: whole or passed over, of this run or refused; a finished run stays finished; streams."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from made_models import SENTENCES
from peft import LoraConfig
from safetensors.torch import load_file
from standins import save_pair
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from trl_tempkd.checkpoints import description, find_checkpoint, newest_whole, problem_of, whole
from trl_tempkd.checkpoints.description import sample_of
from trl_tempkd.checkpoints.resuming import ResumingTrainer, names_in
from trl_tempkd.commands import distill
from trl_tempkd.errors import UsageError
from trl_tempkd.parameters import parameter_hash
from trl_tempkd.rollouts.options import (
    CompletionLogOptions,
    GenerationOptions,
    RolloutOptions,
    SamplingOptions,
    VLLMOptions,
)
from trl_tempkd.teachers import CachedTeacher, ServedTeacher, StudentBaseTeacher


RECORD = "distillation.json"
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2}
ON_POLICY = {"lmbda": 0.7, "replay_size": 2, "replay_ratio": 0.5, "max_new_tokens": 4}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def weights(path):
    return {name: tensor.clone() for name, tensor in load_file(path).items()}  # not those on the disk, mapped


def ten_rows():
    pairs = [sentence.split(" ", 3) for sentence in (SENTENCES * 2)[:10]]
    return Dataset.from_list([{"prompt": " ".join(p[:3]), "completion": " " + p[3]} for p in pairs])


class Steps(TrainerCallback):
    """Counts optimizer steps."""

    def __init__(self):
        self.count = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.count += 1


# Damage


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folders with checkpoints of steps 2 and 4, by kind. Each is made once; tests copy it."""
    from made_models import build_model, build_tokenizer

    from trl_tempkd import KDConfig, TemperatureKDTrainer

    made = {}

    def make(kind):
        if kind in made:
            return made[kind]
        folder = tmp_path_factory.mktemp(kind.replace(" ", "_"))
        fields = {**SAVING, "divergence": "taid", "save_only_model": kind == "model alone"}
        TemperatureKDTrainer(
            build_model(),
            build_model(seed=1),
            KDConfig(
                str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
                activation_checkpointing=False, **fields, **ON_POLICY,
            ),
            train_dataset=ten_rows(),
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(target_modules=["q_proj"]) if kind == "adapter" else None,
        ).train()  # fmt: skip
        for checkpoint in folder.glob("checkpoint-*"):
            if "sharded" in kind:  # as a large model is written
                (checkpoint / "model.safetensors").unlink()
                build_model().save_pretrained(checkpoint, max_shard_size="20KB")
            record = whole.record_of(checkpoint)
            (checkpoint / RECORD).write_text(json.dumps({**record, "files": whole.sizes_of(checkpoint)}))
            if "earlier" in kind:
                (checkpoint / RECORD).unlink()
        made[kind] = folder
        return folder

    return make


def damaged(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    else:  # "zeros": a file whose blocks never reached the disk
        path.write_bytes(bytes(path.stat().st_size))


READ = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
STATES = ["objective.json", "rollouts_0.safetensors"]
KINDS = {
    "full": ["model.safetensors", *READ, *STATES],
    "adapter": ["adapter_model.safetensors", *READ, *STATES],
    "sharded": ["model.safetensors.index.json", "SHARD", "optimizer.pt"],
    "full, earlier version": ["model.safetensors", *READ],
    "sharded, earlier version": ["model.safetensors.index.json", "SHARD"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_passed_over(runs, tmp_path, kind):
    shutil.copytree(runs(kind), tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoint-4"
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    intact = state.read_bytes()
    for name in KINDS[kind]:
        file = sorted(newest.glob("model-*.safetensors"))[1] if name == "SHARD" else newest / name
        before = file.read_bytes()
        for how in ("missing", "empty", "cut off", "zeros"):
            assert problem_of(newest) is None and find_checkpoint("auto", tmp_path) == (str(newest), {})
            damaged(file, how)
            problem = problem_of(newest)
            nobody_knows = (how, name) == ("missing", "model.safetensors.index.json") and "earlier" in kind
            said = "model.safetensors" if nobody_knows else file.name
            assert problem is not None and problem.startswith(said) and len(problem.splitlines()) == 1, (name, how)
            for resume in ("auto", "true", True):
                assert find_checkpoint(resume, tmp_path) == (str(state.parent), {"checkpoint-4": problem})
            with pytest.raises(UsageError, match=rf"checkpoint-4 .*isn't whole: {said}"):
                find_checkpoint(str(newest), tmp_path)
            damaged(state, "empty")
            with pytest.raises(UsageError, match=r"no checkpoint in .* checkpoint-2: trainer_state.json is empty"):
                find_checkpoint("auto", tmp_path)
            state.write_bytes(intact)
            file.write_bytes(before)


def test_what_a_checkpoint_does_not_need_may_go(runs, tmp_path):
    shutil.copytree(runs("full"), tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoint-4"
    for name in ("training_args.bin", "tokenizer.json"):
        (newest / name).unlink()
    (newest / "config.json").write_text("{ }")
    (newest / "notes.txt").write_text("mine")
    (newest / "trainer_state.json").write_text(
        json.dumps(json.loads((newest / "trainer_state.json").read_text()))
    )  # of another size
    assert problem_of(newest) is None


def test_resuming_falls_back_and_says_so(make_trainer, tmp_path, caplog):
    fields = {**SAVING, **ON_POLICY}
    whole_run = make_trainer("gpt2", "gpt2", **fields)
    whole_run.train()
    expected = parameters(whole_run.model)
    damaged(tmp_path / "out/checkpoint-4/optimizer.pt", "cut off")
    trainer = make_trainer("gpt2", "gpt2", **fields)
    trainer.train(resume_from_checkpoint=True)
    said = [r.message for r in caplog.records if "Newer" in r.message]
    assert len(said) == 1 and "checkpoint-2" in said[0] and "checkpoint-4: optimizer.pt has" in said[0]
    torch.testing.assert_close(parameters(trainer.model), expected, rtol=0, atol=0)
    assert problem_of(tmp_path / "out/checkpoint-4") is None  # it was written again
    with pytest.raises(UsageError, match="there is no checkpoint"):
        make_trainer(output_dir=str(tmp_path / "empty")).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_weights_that_are_written_under_other_names_come_back(make_trainer, tmp_path, architecture):
    """Transformers writes each expert for itself, has them together in memory, and its trainer doesn't translate."""
    fields = {**SAVING, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    data = {"eval_dataset": Dataset.from_list([{"prompt": "the cat", "completion": " sat on the mat"}])}
    whole_run = make_trainer(architecture, architecture, **fields, **data)
    whole_run.train()
    assert names_in(tmp_path / "out/checkpoint-4") - set(whole_run.model.state_dict())
    expected = parameters(whole_run.model)
    shutil.rmtree(tmp_path / "out/checkpoint-4")
    trainer = make_trainer(architecture, architecture, **fields, **data)
    trainer.train(resume_from_checkpoint=True)
    torch.testing.assert_close(parameters(trainer.model), expected, rtol=0, atol=0)


def test_nothing_is_lost_when_all_are_damaged(make_trainer, tmp_path):
    make_trainer(**SAVING).train()
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        damaged(checkpoint / "model.safetensors", "empty")
    for resume in (True, "auto"):
        with pytest.raises(
            UsageError, match=r"no checkpoint in .* is whole .*delete them to start from the beginning"
        ):
            make_trainer(**SAVING).train(resume_from_checkpoint=resume)
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2


# Visible whole


@pytest.mark.parametrize("method", ["_save", "_save_rng_state"])
def test_a_kill_while_writing_leaves_nothing_to_be_taken_for_a_checkpoint(make_trainer, tmp_path, monkeypatch, method):
    trainer = make_trainer(**{**SAVING, "save_steps": 1})
    original = getattr(trainer, method)
    seen = []

    def killed(*args, **kwargs):
        seen.append(sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")))
        original(*args, **kwargs)
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, method, killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert seen == [[], ["checkpoint-1"], ["checkpoint-1", "checkpoint-2"]]  # none before it is whole
    assert get_last_checkpoint(tmp_path / "out") == str(tmp_path / "out/checkpoint-2")
    assert (tmp_path / "out" / whole.WRITING / "checkpoint-3").is_dir()
    resumed = make_trainer(**SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert not (tmp_path / "out" / whole.WRITING).exists()
    assert newest_whole(tmp_path / "out") == (tmp_path / "out/checkpoint-4", {})


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(make_trainer, tmp_path, monkeypatch):
    make_trainer(**SAVING).train()
    move = shutil.move

    def killed(source, target):
        move(source, target)
        raise KeyboardInterrupt

    trainer = make_trainer(**SAVING)
    trainer.train(resume_from_checkpoint=True)
    monkeypatch.setattr(shutil, "move", killed)
    with pytest.raises(KeyboardInterrupt):  # the old one is away, and the new one has no name yet
        trainer._save_checkpoint(trainer.model, None)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    again = make_trainer(**SAVING)
    again.train(resume_from_checkpoint="auto")
    assert (again.state.global_step, again.trained_steps) == (4, 0)
    assert newest_whole(tmp_path / "out") == (tmp_path / "out/checkpoint-4", {})


def test_the_limit_never_takes_the_only_whole_one(make_trainer, tmp_path):
    make_trainer(**{**SAVING, "save_steps": 1}).train()
    for step in (3, 4):
        damaged(tmp_path / f"out/checkpoint-{step}/scheduler.pt", "cut off")
    trainer = make_trainer(**{**SAVING, "save_total_limit": 1})
    seen = []

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")))

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=True)
    assert seen == [["checkpoint-3"], ["checkpoint-4"]]
    assert problem_of(tmp_path / "out/checkpoint-4") is None


def test_the_best_one_stays(make_trainer, prompt_dataset, tmp_path):
    fields = {
        **SAVING, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1,
        "load_best_model_at_end": True, "learning_rate": 10.0, "eval_dataset": prompt_dataset,
    }  # fmt: skip
    trainer = make_trainer(**fields)
    trainer.train()
    losses = logged(trainer, "eval_loss")
    best = tmp_path / "out" / f"checkpoint-{1 + losses.index(min(losses))}"
    assert best.name != "checkpoint-4"
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {best.name, "checkpoint-4"}
    for state in (trainer.state.__dict__, json.loads((tmp_path / "out/checkpoint-4/trainer_state.json").read_text())):
        assert state["best_model_checkpoint"] == str(best)
    expected = weights(best / "model.safetensors")
    again = make_trainer(**fields)
    again.train(resume_from_checkpoint=True)
    for model in (trainer.model, again.model):
        torch.testing.assert_close(
            {k: v for k, v in parameters(model).items() if k in expected}, expected, rtol=0, atol=0
        )
    # Of a best one that is damaged nothing is loaded
    damaged(best / "model.safetensors", "cut off")
    last = make_trainer(**fields)
    last.train(resume_from_checkpoint=True)
    assert last.state.best_model_checkpoint is None
    expected = weights(tmp_path / "out/checkpoint-4/model.safetensors")
    torch.testing.assert_close(parameters(last.model)["lm_head.weight"], expected["lm_head.weight"], rtol=0, atol=0)


def test_a_checkpoint_is_pushed_once_it_has_its_name(make_trainer, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        SFTTrainer, "_push_from_checkpoint", lambda self, folder: pushed.append((folder, problem_of(folder)))
    )
    monkeypatch.setattr(SFTTrainer, "init_hf_repo", lambda *args, **kwargs: None)
    trainer = make_trainer(**SAVING, push_to_hub=True, hub_model_id="me/mine")
    trainer.train()
    assert pushed == [(str(tmp_path / f"out/checkpoint-{step}"), None) for step in (2, 4)]


# Finished


FINISHED = {
    "in an epoch": {"max_steps": 4},
    "uneven": {"max_steps": 4, "gradient_accumulation_steps": 2},
    "one and a half epochs": {"max_steps": -1, "num_train_epochs": 1.5},
    "on-policy": {"max_steps": 4, **ON_POLICY},
    "stream": {"max_steps": 7, "train_dataset": "stream", "gradient_accumulation_steps": 2},
    "by epochs": {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "epoch"},
    "model alone": {"max_steps": 4, "save_only_model": True, "divergence": "taid"},
    "adapter": {"max_steps": 4, "kwargs": "lora"},
}


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_stays_finished(make_trainer, tmp_path, name):
    fields = {**SAVING, "train_dataset": ten_rows(), **FINISHED[name]}
    if fields["train_dataset"] == "stream":
        fields["train_dataset"] = ten_rows().to_iterable_dataset()
    if fields.get("kwargs") == "lora":
        fields["kwargs"] = {"peft_config": LoraConfig(target_modules=["q_proj"])}
    first = make_trainer(**fields)
    output = first.train()
    expected, last = parameters(first.model), first.state.global_step
    checkpoint = tmp_path / f"out/checkpoint-{last}"
    files = {path.name: path.stat().st_mtime_ns for path in checkpoint.iterdir()}
    for resume in (True, "auto", str(checkpoint)) if name == "in an epoch" else (True,):
        again, steps = make_trainer(**fields), Steps()
        again.add_callback(steps)
        result = again.train(resume_from_checkpoint=resume)
        assert (again.state.global_step, result.global_step, steps.count, again.trained_steps) == (last, last, 0, 0)
        assert result.training_loss == pytest.approx(output.training_loss)
        assert result.metrics["train_loss"] == result.training_loss
        torch.testing.assert_close(parameters(again.model), expected, rtol=0, atol=0)
        assert logged(again, "loss") == logged(first, "loss")
    assert {path.name: path.stat().st_mtime_ns for path in checkpoint.iterdir()} == files
    assert get_last_checkpoint(tmp_path / "out") == str(checkpoint)


@pytest.mark.parametrize(
    "fields", [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 0.5}], ids=["steps", "epochs"]
)
def test_a_shorter_run_is_noticed(make_trainer, caplog, fields):
    first = make_trainer(**SAVING)
    first.train()
    option = "max_steps" if fields["max_steps"] > 0 else "num_train_epochs"
    with pytest.raises(
        UsageError, match=rf"checkpoint-4 is at step 4, .*`{option}` .* has only [23]\. Resume an earlier"
    ):
        make_trainer(**{**SAVING, **fields}).train(resume_from_checkpoint=True)
    insisting = make_trainer(**{**SAVING, **fields, "resume_with_changes": True})
    insisting.train(resume_from_checkpoint=True)
    torch.testing.assert_close(parameters(insisting.model), parameters(first.model), rtol=0, atol=0)
    assert f"`{option}` was" in caplog.text


def test_a_longer_run_goes_on(make_trainer, caplog):
    make_trainer(**SAVING).train()
    longer = make_trainer(**{**SAVING, "max_steps": 6})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 6 and longer.trained_steps == 2
    assert "was made with other options: `max_steps` was 4, is 6." in caplog.text


def test_the_model_alone_is_not_enough_to_go_on(make_trainer, caplog):
    fields = {**SAVING, "save_only_model": True}
    make_trainer(**fields).train()
    with pytest.raises(UsageError, match=r"checkpoint-4 has nothing but the model .*`save_only_model`.* 2 steps left"):
        make_trainer(**{**fields, "max_steps": 6}).train(resume_from_checkpoint=True)
    insisting = make_trainer(**{**fields, "max_steps": 6, "resume_with_changes": True})
    insisting.train(resume_from_checkpoint=True)
    assert insisting.trained_steps == 2
    assert "the optimizer and the schedule of the learning rate start anew" in caplog.text


@pytest.mark.parametrize(("file", "under"), [("global_step4/x.pt", "DeepSpeed"), ("pytorch_model_fsdp.bin", "FSDP")])
def test_a_checkpoint_of_another_backend(make_trainer, tmp_path, file, under):
    """Transformers would take the model and a new optimizer."""
    make_trainer(**SAVING).train()
    checkpoint = tmp_path / "out/checkpoint-4"
    (checkpoint / file).parent.mkdir(exist_ok=True)
    shutil.copy(checkpoint / "optimizer.pt", checkpoint / file)
    (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer.bin")
    (checkpoint / "latest").write_text("global_step4")
    (checkpoint / RECORD).unlink()
    with pytest.raises(UsageError, match=f"written under {under}, and what a run under one process or DDP goes on"):
        make_trainer(**{**SAVING, "max_steps": 6}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(("stage", "processes"), [(2, 4), (3, 1), (2, 2), (0, 4)])
def test_the_parts_of_an_optimizer(tmp_path, stage, processes):
    """DeepSpeed would end with a traceback, after all is loaded."""
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "global_step3/x.pt").touch()
    (tmp_path / RECORD).write_text(json.dumps({"target": {}, "run": {"processes": 2}}))
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    trainer = SimpleNamespace(
        is_deepspeed_enabled=True,
        accelerator=SimpleNamespace(num_processes=processes, state=state),
        args=SimpleNamespace(resume_with_changes=False),
        _description={"run": {"processes": processes}},
    )
    if stage and processes != 2:
        with pytest.raises(UsageError, match=f"in parts of 2 processes, .* among {processes}. Resume with 2 proc"):
            ResumingTrainer._compared(trainer, tmp_path)
    else:
        assert len(ResumingTrainer._compared(trainer, tmp_path)) == (processes != 2)


# The command


@pytest.fixture
def distil(make_model, tokenizer, tmp_path, monkeypatch):
    """Runs `trl-tempkd distill` in this process. Returns what it has printed."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=ten_rows(), test=ten_rows().select(range(4))).save_to_disk(tmp_path / "data")
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*flags):
        options = {
            "model_name_or_path": student, "teacher_model_name_or_path": teacher, "dataset_name": tmp_path / "data",
            "output_dir": tmp_path / "output", "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2,
            "logging_steps": 1, "report_to": "none", "bf16": "false", "disable_tqdm": "true",
        }  # fmt: skip
        args = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        distill.main(*distill.make_parser().parse([*args, "--use_cpu", "--do_eval", *flags])[0])

    return run


def test_a_finished_job_saves_and_evaluates_what_is_there(distil, tmp_path, capsys):
    output = tmp_path / "output"
    distil("--resume_from_checkpoint", "auto")
    assert "starting from the beginning" in capsys.readouterr().out
    expected = weights(output / "model.safetensors")
    scores = json.loads((output / "eval_results.json").read_text())
    training = (output / "train_results.json").read_text()
    for left in ("half written", "nothing"):
        if left == "half written":
            damaged(output / "model.safetensors", "cut off")
        if left == "nothing":  # a kill between the last checkpoint and the end
            for path in output.iterdir():
                if path.is_file():
                    path.unlink()
        distil("--resume_from_checkpoint", "auto")
        assert "step 4, the last one: nothing is left to train" in capsys.readouterr().out
        torch.testing.assert_close(weights(output / "model.safetensors"), expected, rtol=0, atol=0)
        again = json.loads((output / "eval_results.json").read_text())
        assert {k: v for k, v in again.items() if "loss" in k or "kl" in k} == {
            k: v for k, v in scores.items() if "loss" in k or "kl" in k
        }
        assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 4
        results = (output / "train_results.json").read_text()
        assert results == training if left != "nothing" else json.loads(results)["train_loss"] > 0


def test_a_checkpoint_that_does_not_do_is_one_line(distil, tmp_path, monkeypatch):
    distil()
    damaged(tmp_path / "output/checkpoint-4/trainer_state.json", "cut off")
    with pytest.raises(UsageError, match=r"isn't whole: trainer_state\.json was cut off"):
        distil("--resume_from_checkpoint", str(tmp_path / "output/checkpoint-4"))
    distil("--resume_from_checkpoint", "auto")
    assert problem_of(tmp_path / "output/checkpoint-4") is None
    monkeypatch.setattr("trl_tempkd.trainer.TemperatureKDTrainer.__init__", None)  # nothing is loaded for this
    with pytest.raises(UsageError, match=r"is of another run: `kd_temperature` was 2[.]0, is 3[.]0"):
        distil("--resume_from_checkpoint", "auto", "--kd_temperature", "3")


# Of this run


OTHERS = {
    "divergence": ({"divergence": "jsd"}, "`divergence` was 'forward_kl', is 'jsd'"),
    "kd_temperature": ({"kd_temperature": 4.0}, "`kd_temperature` was 2.0, is 4.0"),
    "one side": ({"student_kd_temperature": 1.0}, "`student_kd_temperature` was None, is 1.0"),
    "rescale": ({"kd_temperature_rescale": "none"}, "`kd_temperature_rescale` was 'tau2', is 'none'"),
    "kd_ratio": ({"kd_ratio": 0.5}, "`kd_ratio` was 1.0, is 0.5"),
    "schedule": (
        {"kd_temperature_schedule": "linear", "kd_temperature_final": 1.0},
        "`kd_temperature_schedule` was 'constant', is 'linear'",
    ),
    "rule": ({"kd_temperature_rule": "zscore"}, "`kd_temperature_rule` was None, is 'zscore'"),
    "lmbda": ({"lmbda": 0.5, "max_new_tokens": 4}, "`lmbda` was 0.0, is 0.5"),
    "teacher": ({"teacher": 2}, "`teacher.identity` was"),
    "data": ({"train_dataset": 9}, "`data.rows` was 10, is 9"),
    "labels": ({"completion_only_loss": False}, "`data.sample` was"),
    "adapter": ({"kwargs": "lora"}, "`adapter` was None, is"),
    "student": ({"student": "larger"}, "`student_parameters` was"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused(make_trainer, make_model, runs, tmp_path, name):
    fields, message = OTHERS[name]
    if not hasattr(runs, "plain"):
        make_trainer(train_dataset=ten_rows(), output_dir=str(runs_folder := tmp_path / "plain"), **SAVING).train()
        runs.plain = shutil.copytree(runs_folder, tmp_path.parent / "plain", dirs_exist_ok=True)
    fields = {"train_dataset": 10, "teacher": 1, **fields}
    teacher = make_model(seed=fields.pop("teacher"))
    data = ten_rows().select(range(fields.pop("train_dataset")))
    student = make_model(hidden_size=40) if fields.pop("student", None) else make_model()
    if fields.pop("kwargs", None):
        fields["kwargs"] = {"peft_config": LoraConfig(target_modules=["q_proj"])}
    trainer = make_trainer(student, teacher, data, output_dir=str(runs.plain), **{**SAVING, "max_steps": 6, **fields})
    with pytest.raises(UsageError) as caught:
        trainer.train(resume_from_checkpoint=True)
    assert message in str(caught.value) and "checkpoint-4 is of another run" in str(caught.value)
    assert "`resume_with_changes`" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_insisting_on_another_run(make_trainer, caplog):
    make_trainer(**SAVING).train()
    trainer = make_trainer(**{**SAVING, "max_steps": 6}, kd_temperature=4.0, seed=7, resume_with_changes=True)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.trained_steps == 2
    (said,) = [r.message for r in caplog.records if "other options" in r.message]
    assert "`kd_temperature` was 2.0, is 4.0; " in said and "`seed` was 42, is 7" in said


def test_the_rest_is_a_warning(make_trainer, caplog):
    make_trainer(**SAVING).train()
    fields = {**SAVING, "max_steps": 6, "seed": 7, "learning_rate": 0.5, "gradient_accumulation_steps": 2}
    make_trainer(**fields).train(resume_from_checkpoint=True)
    (said,) = [r.message for r in caplog.records if "other options" in r.message]
    assert [part.split("`")[1] for part in said.split("; ")] == [
        "seed", "max_steps", "gradient_accumulation_steps", "learning_rate",
    ]  # fmt: skip


def test_the_same_run_says_nothing(make_trainer, make_model, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    make_trainer(**SAVING, divergence="jsd").train()
    caplog.clear()
    # A default that is named, another type of number, a teacher of another name and dtype: it is the same run
    teacher = make_model(seed=1).to(torch.bfloat16)
    teacher.config._name_or_path = "elsewhere"
    fields = {"divergence_kwargs": {"beta": 0.5}, "kd_temperature": 2}
    make_trainer("llama", teacher, **SAVING, divergence="jsd", **fields).train(resume_from_checkpoint=True)
    assert not [r.message for r in caplog.records if "checkpoint" in r.message]
    record = json.loads((tmp_path / "out/checkpoint-4" / RECORD).read_text())
    assert record["step"] == 4 and record["target"]["divergence_kwargs"] == {"beta": 0.5}
    assert {"seed", "processes", "versions"} <= set(record["run"])


def test_every_option_of_the_rollouts_has_its_place():
    groups = (RolloutOptions, SamplingOptions, GenerationOptions, VLLMOptions, CompletionLogOptions)
    own = {field.name for group in groups for field in dataclasses.fields(group)}
    of_the_target = {*description._SOURCES, *description._SAMPLING}
    # What changes the cost, or what is shown
    others = {"cache_implementation", "generation_batch_size", "ds3_gather_for_generation", "use_vllm"}
    others |= {"log_completions", "num_completions_to_print", "log_unique_prompts"}
    rest = {name for name in own - of_the_target - others if not name.startswith("vllm_")}
    assert of_the_target <= own and not rest, "say in checkpoints/description.py whether it decides the target"


def test_a_checkpoint_of_an_earlier_version(make_trainer, tmp_path, caplog):
    whole_run = make_trainer("gpt2", "gpt2", **SAVING)
    whole_run.train()
    (tmp_path / "out/checkpoint-2" / RECORD).unlink()
    trainer = make_trainer("gpt2", "gpt2", **SAVING)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert "doesn't say what run it is of" in caplog.text
    torch.testing.assert_close(parameters(trainer.model), parameters(whole_run.model), rtol=0, atol=0)


def test_another_base_of_an_adapter(make_trainer, make_model):
    fields = {**SAVING, "kwargs": {"peft_config": LoraConfig(target_modules=["q_proj"])}}
    make_trainer(**fields).train()
    with pytest.raises(UsageError, match="`student_base` was"):
        make_trainer(make_model(seed=5), **fields).train(resume_from_checkpoint=True)


def test_fingerprints(make_model):
    model = make_model()
    same = parameter_hash(model.parameters())
    assert parameter_hash(make_model().to(torch.bfloat16).parameters()) == same
    for p in model.model.layers[1].self_attn.q_proj.parameters():  # as merging an adapter does
        p.data += 0.1
    assert parameter_hash(model.parameters()) not in (same, None)
    assert parameter_hash(make_model().to("meta").parameters()) is None


def test_teachers_that_are_no_model():
    def described(kind, **attributes):
        teacher = object.__new__(kind)
        teacher.__dict__.update(attributes)
        return {"teacher": teacher.identity()}

    def cache(seed, name):
        return described(CachedTeacher, manifest=SimpleNamespace(seed=seed, teacher_model_name_or_path=name))

    def server(model, url):
        return described(ServedTeacher, client=SimpleNamespace(model=model, url=url))

    same = [
        (cache(5, "here"), cache(5, "there")),
        (server("large", "http://a"), server("large", "http://b")),
        (described(StudentBaseTeacher), described(StudentBaseTeacher)),
    ]
    assert all(description.differences(*pair) == [] for pair in same)
    others = [
        (cache(5, "here"), cache(6, "here")),
        (server("large", "http://a"), server("small", "http://a")),
        (cache(5, "large"), server("large", "http://a")),
    ]
    assert all("`teacher." in description.differences(*pair)[0] for pair in others)


def test_samples_of_data(make_trainer):
    rows = make_trainer(train_dataset=ten_rows()).train_dataset
    stream = rows.to_iterable_dataset()
    assert sample_of(rows) == sample_of(rows.with_format("torch")) and sample_of(rows)["rows"] == 10
    assert sample_of(stream) == sample_of(stream) and sample_of(stream)["rows"] is None
    for other in (rows.select(range(9)), rows.map(lambda row: {"labels": row["labels"][::-1]})):
        assert sample_of(other) != sample_of(rows)
        assert sample_of(other.to_iterable_dataset()) != sample_of(stream)
    assert sample_of(rows.select([])) == sample_of(rows.select([])) and sample_of(None) == {}


# Streams


def stream_fields(**fields):
    return {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 8, **fields}


@pytest.mark.parametrize("batches", [5, 1])
def test_a_stream_is_trained_on_as_its_rows_are(make_trainer, batches):
    """With 5 batches and 3 to a step the second step of each pass has two: their gradient is no other step's."""
    rows = Dataset.from_list(ten_rows().to_list() * 2).select(range(2 * batches))
    fields = stream_fields(train_sampling_strategy="sequential", gradient_accumulation_steps=3, max_steps=5)
    stored = make_trainer("llama", "llama", rows, **fields)
    streamed = make_trainer("llama", "llama", rows.to_iterable_dataset(), **fields)
    stored.train(), streamed.train()
    for name in ("loss", "grad_norm", "kl_tau1", "num_tokens"):
        assert logged(streamed, name) == pytest.approx(logged(stored, name), rel=1e-4), name
    assert len(logged(stored, "loss")) == 5


@pytest.mark.parametrize("fields", [{}, ON_POLICY], ids=["off-policy", "on-policy"])
def test_a_stream_is_resumed_where_it_was(make_trainer, tmp_path, fields):
    # Five batches a pass: steps 3 and 6 are the last of theirs. Shuffled anew each pass
    data = ten_rows().to_iterable_dataset().shuffle(seed=3, buffer_size=4)
    fields = stream_fields(**fields)
    whole_run = make_trainer("gpt2", "gpt2", data, save_strategy="steps", save_steps=1, **fields)
    whole_run.train()
    for step in (2, 3, 6) if "lmbda" not in fields else (4,):
        resumed = make_trainer("gpt2", "gpt2", data, **fields)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"out/checkpoint-{step}"))
        assert logged(resumed, "loss") == logged(whole_run, "loss"), step
        torch.testing.assert_close(parameters(resumed.model), parameters(whole_run.model), rtol=0, atol=0)
