# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What trackers get: real event files and databases, written and read back; those that ask a service, as stand-ins."""

import html
import json
import os
import re
import sqlite3
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, WandbCallback

from trl_tempkd.trackers import Trackers, markdown


ON_POLICY = {"lmbda": 1.0, "max_new_tokens": 4, "temperature": 1.0, "log_completions": True}


def events(folder):
    """Of TensorBoard's files in a folder: values by name and step, texts by name, and the names of the runs."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    read = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0}).AddRunsFromDirectory(str(folder)).Reload()
    values, texts = {}, {}
    for run, kinds in read.Runs().items():
        for tag in kinds["scalars"]:
            values.setdefault(tag, []).extend((event.step, event.value) for event in read.Scalars(run, tag))
        for tag in kinds["tensors"]:
            found = [
                (event.step, make_ndarray(event.tensor_proto).item().decode()) for event in read.Tensors(run, tag)
            ]
            texts.setdefault(tag.removesuffix("/text_summary"), []).extend(found)
    return values, texts, list(read.Runs())


def rows_of(project, table="metrics"):
    """What a project of Trackio has in its database."""
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"], f"{project}.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY id")]


def test_tensorboard(make_trainer, prompt_dataset, tmp_path):
    two = {"near": prompt_dataset.select([0, 1]), "far": prompt_dataset.select([2, 3])}
    seen = []

    class Reads(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = make_trainer(
        eval_dataset=two, report_to="tensorboard", eval_strategy="steps", eval_steps=2, divergence="jsd",
        kwargs={"callbacks": [Reads()]}, **ON_POLICY,
    )  # fmt: skip
    trainer.train()
    trainer.predict(trainer.eval_dataset["near"])
    values, texts, runs = events(tmp_path / "out")
    assert len(runs) == 1
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Ours in groups, with the numbers that stand in the log; TRL's own under TRL's names
    for shown, name in (
        ("train/kd/kl_tau1", "kl_tau1"),
        ("train/kd/loss", "kd_loss"),
        ("train/kd/temperature", "kd_temperature"),
        ("train/kd/token_agreement", "token_agreement"),
        ("train/rollouts/on_policy_share", "on_policy_share"),
        ("train/rollouts/lmbda", "lmbda"),
        ("train/completions/mean_length", "completions/mean_length"),
        ("train/loss", "loss"),
        ("train/num_tokens", "num_tokens"),
    ):
        assert [step for step, _ in values[shown]] == [1, 2]
        assert [value for _, value in values[shown]] == pytest.approx([entry[name] for entry in logged], rel=1e-6)
    evaluated = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    for data in ("near", "far"):
        assert values[f"eval/kd/{data}_kl_tau1"][0][1] == pytest.approx(evaluated[f"eval_{data}_kl_tau1"], rel=1e-6)
        assert f"eval/{data}_loss" in values
    of_kd = ("kl_tau1", "entropy", "agreement", "kd_", "ce_loss", "lmbda", "on_policy")
    assert [
        tag for tag in values if any(name in tag for name in of_kd) and "/kd/" not in tag and "/rollouts/" not in tag
    ] == []
    # Everybody else reads the names of the log
    assert "kl_tau1" in seen[0] and not [
        name for logs in seen for name in logs if name.startswith(("kd/", "rollouts/"))
    ]
    # The completions of both steps, whatever marks they have
    assert [step for step, _ in texts["completions"]] == [1, 2]
    assert texts["completions"][0][1].startswith("| step | prompt | completion |\n| --- | --- | --- |\n| 1 | ")
    config = json.loads(texts["args"][0][1])
    assert config["divergence_kwargs"] == {"beta": 0.5} and config["lmbda"] == 1.0


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # of its own copy
def test_cells_are_shown_as_they_are():
    from tensorboard.plugin_util import markdown_to_safe_html

    text = "a | b\n<b>*x*</b> _y_ `z` [l](m) &amp; \\| é"
    page = markdown_to_safe_html(markdown(pd.DataFrame({"step": [1], "completion": [text]})))
    cells = re.findall("<td>(.*?)</td>", page)
    assert [html.unescape(part) for part in cells[1].split("<br>")] == text.split("\n") and len(cells) == 2
    assert "<" not in cells[1].replace("<br>", "")


def test_trackio(make_trainer, prompt_dataset, tmp_path):
    project = f"of-{tmp_path.name}"
    fields = {"report_to": "trackio", "project": project, "save_strategy": "steps", "save_steps": 2, **ON_POLICY}
    make_trainer(kd_temperature_rule="target_entropy", **fields).train()
    found = [json.loads(row["metrics"]) for row in rows_of(project)]
    first = next(row for row in found if "train/kd/kl_tau1" in row)
    assert first["train/kd/temperature"] > 0 and first["train/rollouts/on_policy_share"] == 1.0
    assert "train/kl_tau1" not in first and "train/loss" in first
    tables = [row["completions"] for row in found if "completions" in row]
    assert len(tables) == 2 and "trackio.table" in json.dumps(tables[0])
    (config,) = (json.loads(row["config"]) for row in rows_of(project, "configs"))
    assert config["kd_temperature_rule_kwargs"] == {"share": 0.3}

    # A training that is resumed goes on with its run, though none was named
    make_trainer(kd_temperature_rule="target_entropy", **{**fields, "max_steps": 4}).train("auto")
    assert len({row["run_name"] for row in rows_of(project)}) == 1
    found = [json.loads(row["metrics"]) for row in rows_of(project)]
    assert [row["train/global_step"] for row in found if "train/kd/kl_tau1" in row] == [1, 2, 3, 4]


def test_tensorboard_goes_on_with_its_run(make_trainer, tmp_path):
    """Also where steps behind the checkpoint had been logged: they are logged again, and stand there once."""
    fields = {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    trainer = make_trainer(max_steps=4, **fields)

    class Stops(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("killed")

    trainer.add_callback(Stops())
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train()
    make_trainer(max_steps=4, **fields).train("auto")
    values, _, runs = events(tmp_path / "out")
    assert len(runs) == 1 and [step for step, _ in values["train/kd/kl_tau1"]] == [1, 2, 3, 4]


# Those that ask a service, by stand-ins that take the arguments that the packages take


class Wandb:
    """The module, as far as transformers and this library call it."""

    def __init__(self, monkeypatch):
        self.run, self.started, self.logged, self.given = None, [], [], {}
        self.config, self.summary, self.__spec__ = self, {}, ModuleSpec("wandb", None)
        for name, module in (
            ("wandb", self),
            *((name, SimpleNamespace()) for name in ("wandb.sdk", "wandb.sdk.lib")),
            ("wandb.sdk.lib.config_util", SimpleNamespace(ConfigError=ValueError)),
        ):
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
        for name in ("WANDB_RUN_ID", "WANDB_PROJECT"):
            monkeypatch.delenv(name, raising=False)

    def __setitem__(self, name, value):
        self.given[name] = value

    def update(self, given, allow_val_change=False):
        self.given.update(given)

    def init(self, *, project=None, entity=None, id=None, name=None, group=None, resume=None):
        self.started.append({"project": project, "entity": entity, "id": id, "name": name, "resume": resume})
        self.run = SimpleNamespace(
            id=id or "abc", project=project, entity="us", name=name, summary=self.summary, _label=lambda *, code: None
        )

    def log(self, data, step=None, commit=None):
        json.dumps({name: value for name, value in data.items() if not isinstance(value, pd.DataFrame)})
        self.logged.append(data)

    def Table(self, *, dataframe):
        assert isinstance(dataframe, pd.DataFrame)
        return dataframe

    def Image(self, image):
        return image

    def define_metric(self, name, step_metric=None, step_sync=None):
        pass


def test_wandb(make_trainer, monkeypatch):
    wandb = Wandb(monkeypatch)
    fields = {"save_strategy": "steps", "save_steps": 2, **ON_POLICY, "log_unique_prompts": True}
    trainer = make_trainer(kwargs={"callbacks": [WandbCallback()]}, **fields)
    trainer.train()
    assert wandb.started == [{"project": "huggingface", "entity": None, "id": None, "name": None, "resume": None}]
    first, table = wandb.logged[:2]
    assert first["train/kd/kl_tau1"] > 0 and first["train/rollouts/on_policy_share"] == 1.0 and "train/loss" in first
    assert list(table["completions"].columns) == ["step", "prompt", "completion"]
    assert table["completions"]["prompt"].is_unique
    assert wandb.given["divergence"] == "forward_kl" and wandb.given["lmbda"] == 1.0

    wandb.run = None  # another process
    make_trainer(kwargs={"callbacks": [WandbCallback()]}, **{**fields, "max_steps": 3}).train("auto")
    assert wandb.started[1:] == [
        {"project": "huggingface", "entity": "us", "id": "abc", "name": None, "resume": "allow"}
    ]
    # One that the user names is the user's choice, and so is one that is there
    wandb.run = None
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    make_trainer(kwargs={"callbacks": [WandbCallback()]}, **{**fields, "max_steps": 4}).train("auto")
    assert wandb.started[2]["id"] is None and len(wandb.started) == 3


class Mlflow:
    """The module, as far as transformers and this library call it."""

    __version__ = "3.0.0"
    utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100))
    exceptions = SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))

    def __init__(self, monkeypatch):
        self.active, self.runs, self.metrics, self.tables, self.params = None, [], [], {}, {}
        self.__spec__ = ModuleSpec("mlflow", None)
        monkeypatch.setitem(sys.modules, "mlflow", self)
        monkeypatch.setattr("transformers.integrations.integration_utils.is_mlflow_available", lambda: True)
        monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    def is_tracking_uri_set(self):
        return True

    def get_tracking_uri(self):
        return "sqlite:///here"

    def active_run(self):
        return self.active

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise self.exceptions.MlflowException(run_id)
        return SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"))

    def start_run(self, run_id=None, *, run_name=None, nested=False):
        run = run_id or os.environ.get("MLFLOW_RUN_ID") or f"run{len(self.runs)}"
        self.runs.append(run)
        self.active = SimpleNamespace(info=SimpleNamespace(run_id=run))

    def end_run(self):
        self.active = None

    def log_params(self, params, synchronous=None):
        self.params.update(params)

    def log_metrics(self, metrics, step=None, synchronous=None):
        self.metrics.append((step, metrics))

    def log_table(self, data, artifact_file):
        self.tables[artifact_file] = data


def test_mlflow(make_trainer, prompt_dataset, monkeypatch):
    mlflow = Mlflow(monkeypatch)
    fields = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, **ON_POLICY}

    def train(max_steps):
        callbacks = {"callbacks": [MLflowCallback()]}
        make_trainer(eval_dataset=prompt_dataset, kwargs=callbacks, **{**fields, "max_steps": max_steps}).train("auto")

    train(2)
    named = {name for _, metrics in mlflow.metrics for name in metrics}
    assert {"kd/kl_tau1", "eval_kd/kl_tau1", "rollouts/lmbda", "completions/mean_length", "loss", "eval_loss"} <= named
    assert not {"kl_tau1", "eval_kl_tau1", "lmbda"} & named
    assert list(mlflow.tables) == ["completions/completions_00001.json", "completions/completions_00002.json"]
    assert mlflow.params["divergence"] == "forward_kl"
    train(3)
    assert mlflow.runs == ["run0", "run0"] and "MLFLOW_RUN_ID" not in os.environ
    mlflow.runs.clear()  # a run that has been deleted
    train(4)
    assert mlflow.runs == ["run0"] and mlflow.active is None


def test_others_are_left_alone(make_trainer, monkeypatch):
    """A callback that the user has made of a tracker's reads the names that it knows."""
    wandb = Wandb(monkeypatch)
    seen = []

    class Own(WandbCallback):
        def on_log(self, args, state, control, model=None, logs=None, **kwargs):
            seen.append(logs["kl_tau1"] if "loss" in logs else None)

    make_trainer(kwargs={"callbacks": [Own()]}).train()
    assert seen[0] > 0 and wandb.logged == []


def test_groups_of_evaluations_by_any_name():
    trackers = Trackers(SimpleNamespace(callbacks=[]), "out")
    trackers.see("kd", ["loss", "kl_tau1", "student_kd_temperature", "kl_tau1/kd_math"], "eval_far_off")
    trackers.see("kd", ["kl_tau1"], "held_out")
    assert trackers._names == {
        "eval_far_off_kl_tau1": "eval_kd/far_off_kl_tau1",
        "eval_far_off_student_kd_temperature": "eval_kd/far_off_student_temperature",
        "eval_far_off_kl_tau1/kd_math": "eval_kd/far_off_kl_tau1/kd_math",
        "held_out_kl_tau1": "held_out_kd/kl_tau1",
    }


def test_a_configuration_for_trackers(make_config, make_trainer):
    """Every field, the parameters that act, the teacher's name, and nothing that lets anybody in."""
    config = make_config(
        teacher_server_url="https://me:secret@host:8000", divergence="skew_forward_kl", kd_temperature_rule="zscore",
        model_init_kwargs={"dtype": torch.float32, "token": "hf_secret", "quantization_config": {"token": "secret"}},
    )  # fmt: skip
    fields = json.loads(config.to_json_string())
    assert fields["divergence_kwargs"] == {"alpha": 0.1} and fields["kd_temperature_rule_kwargs"] == {}
    assert "secret" not in config.to_json_string() and fields["teacher_server_url"] == "https://***@host:8000"
    teacher = make_trainer().teacher_model
    teacher.config._name_or_path = "somebody/teacher"
    trainer = make_trainer(teacher=teacher)
    assert trainer.args.teacher_model_name_or_path is None
    assert trainer.args.to_dict()["teacher_model_name_or_path"] == "somebody/teacher"
