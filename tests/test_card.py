# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The card of a model says what was made of what, runs as it stands, and tells nothing of the machine."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import DatasetDict
from huggingface_hub import ModelCard
from peft import LoraConfig
from standins import save_pair

from trl_tempkd import register_divergence, training
from trl_tempkd.citation import PAPERS, bibtex, credits_of
from trl_tempkd.commands import distill
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.objectives import OBJECTIVES
from trl_tempkd.recipes import training_parser
from trl_tempkd.run_recipe import is_on_the_hub, public_name
from trl_tempkd.temperature_rules import TEMPERATURE_RULES
from trl_tempkd.tiny import tiny_model_path


ROOT = Path(__file__).parent.parent


def blocks(card, language):
    return re.findall(rf"^```{language}\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)


def parsed(recipe, folder):
    """The dataclasses that a recipe of a card makes, read as `trl-tempkd distill --config` does."""
    path = Path(folder, "of_card.yaml")
    path.write_text(recipe, encoding="utf-8")
    return training_parser().parse(["--config", str(path)], launched=True)[0]


def run_snippet(card, folder, monkeypatch):
    """What the lines of a card print, run beside the folder of the model."""
    monkeypatch.chdir(folder)
    (snippet,) = blocks(card, "python")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(snippet, "card", "exec"), {})
    return out.getvalue()


@pytest.fixture
def card(tmp_path, make_model, tokenizer, prompt_dataset, monkeypatch):
    """`card(**options)`: the card of a training from a recipe, with the names of folders on this machine."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    monkeypatch.setattr("trl_tempkd.job.end_with_launcher", lambda: None)
    options = {
        "model_name_or_path": student, "teacher_model_name_or_path": teacher, "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"), "max_steps": 3, "logging_steps": 1, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "learning_rate": 0.01,
    }  # fmt: skip

    def make(**more) -> str:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**options, **more}), encoding="utf-8")
        values, _, _ = distill.make_parser().parse(["--config", str(tmp_path / "recipe.yaml")], launched=True)
        training.train(*values)
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert str(tmp_path) not in text and str(Path.home()) + "/" not in text
        return text

    return make


def test_of_the_command_line(card, tmp_path, monkeypatch):
    text = card(divergence="jsd", divergence_kwargs={"beta": 0.3}, kd_temperature=4.0, do_eval=True)
    data = ModelCard(text).data
    assert data.base_model is None and data.datasets is None and "temperature-kd" in data.tags
    assert "# out\n\nA student that began as `student`, distilled on `data` from `teacher`." in text
    assert "jsd beta 0.3, student tau 4.0, teacher tau 4.0" in text
    assert run_snippet(text, tmp_path, monkeypatch)
    # First and last step, and held out
    rows = re.findall(r"^\| (training text|held out) \| (\d) \| ([\d.]+) \| ([\d.]+)% \|$", text, re.MULTILINE)
    assert [row[:2] for row in rows] == [("training text", "1"), ("training text", "3"), ("held out", "3")]
    assert float(rows[1][2]) < float(rows[0][2])
    # The recipe is this run's
    (recipe,) = blocks(text, "yaml")
    assert yaml.safe_load(recipe) == {
        "dataset_name": "data", "model_name_or_path": "student", "teacher_model_name_or_path": "teacher",
        "output_dir": "out", "max_steps": 3, "logging_steps": 1, "use_cpu": True, "bf16": False, "do_eval": True,
        "save_strategy": "no", "learning_rate": 0.01, "divergence": "jsd", "divergence_kwargs": {"beta": 0.3},
        "kd_temperature": 4.0, **({"report_to": "none"} if "report_to" in recipe else {}),
    }  # fmt: skip
    _, args, model, _ = parsed(recipe, tmp_path)
    assert (args.divergence_kwargs, args.kd_temperature, args.max_steps) == ({"beta": 0.3}, 4.0, 3)
    assert model.model_name_or_path == "student"
    for paper in ("2306.13649", "1503.02531", "2606.00306"):
        assert f"[arXiv {paper}]" in text and f"eprint        = {{{paper}}}" in text
    assert "vonwerra2020trl" in text


def test_of_an_adapter(card, tmp_path, monkeypatch):
    """Also what PEFT writes of it, in a checkpoint and whenever the model is saved again."""
    text = card(use_peft=True, lora_r=4, lmbda=0.5, max_new_tokens=4, save_strategy="steps", save_steps=3)
    assert "An adapter for `student`" in text and "the student's own text in 50% of the steps" in text
    assert run_snippet(text, tmp_path, monkeypatch)
    recipe = yaml.safe_load(blocks(text, "yaml")[0])
    assert recipe["use_peft"] is True and recipe["lora_r"] == 4 and recipe["lmbda"] == 0.5
    assert "arXiv 2306.13649" in text
    assert str(tmp_path) not in (tmp_path / "out/checkpoint-3/README.md").read_text(encoding="utf-8")


def test_in_python(make_trainer, make_model, tmp_path):
    student = make_model("llama")
    student.config._name_or_path = "somebody/student-1b"
    trainer = make_trainer(
        student, kwargs={"peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")},
        model_init_kwargs=None, teacher_model_init_kwargs=None, push_to_hub=False, hub_token="hf_secret",
        kd_temperature=1.0, optim="sgd", kd_temperature_schedule="linear", kd_temperature_final=2.0, max_length=None,
    )  # fmt: skip
    trainer.args.weight_decay = np.float64(0.25)  # after the configuration was made
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="mine", dataset_name="somebody/data", tags="more")
    trainer.save_model()  # PEFT writes into what is there
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert data.base_model == "somebody/student-1b" and data.datasets == ["somebody/data"] and "more" in data.tags
    assert "[somebody/student-1b](https://huggingface.co/somebody/student-1b)" in text
    assert "[somebody/data](https://huggingface.co/datasets/somebody/data)" in text
    (recipe,) = blocks(text, "yaml")
    found = yaml.safe_load(recipe)
    assert found["weight_decay"] == 0.25 and found["optim"] == "sgd" and found["lora_r"] == 4
    assert found["max_length"] is None and found["dataset_name"] == "somebody/data"
    assert "secret" not in text and str(tmp_path) not in text
    _, args, model, _ = parsed(recipe, tmp_path)
    assert args.kd_temperature_final == 2.0 and args.max_length is None and model.lora_target_modules == "q_proj"


def test_what_yaml_can_not_say(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    given = {"model_init_kwargs": {"quantization_config": object()}, "teacher_model_init_kwargs": {"dtype": "float32"}}
    monkeypatch.setattr(trainer.args, "_given", {**trainer.args._given, **given})
    trainer.create_model_card()
    (recipe,) = blocks((tmp_path / "out" / "README.md").read_text(encoding="utf-8"), "yaml")
    assert recipe.startswith("# Left out, as YAML can't say it: model_init_kwargs\n")
    assert parsed(recipe, tmp_path)[1].teacher_model_init_kwargs == {"dtype": "float32"}


def test_of_a_server(make_trainer, tmp_path, monkeypatch):
    """Neither where it is nor who asks it: not in the card, nor in its recipe."""
    trainer = make_trainer()
    args = trainer.args
    given = {
        "teacher_server_url": "http://me:secret@10.0.0.7:8000",
        "teacher_server_model": "big",
        "report_to": "none",
    }
    monkeypatch.setattr(type(trainer.teacher), "name", "big")
    monkeypatch.setattr(args, "teacher_server_url", given["teacher_server_url"])
    monkeypatch.setattr(args, "_given", {**args._given, **given, "model_init_kwargs": {"token": "hf_secret"}})
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "secret" not in text and "10.0.0.7" not in text and "from `big`, on a server" in text
    assert yaml.safe_load(blocks(text, "yaml")[0])["teacher_server_url"] == "http://localhost:8000"


@pytest.mark.parametrize(
    ("fields", "said", "paper"),
    [
        ({"teacher_cache": "/data/me/cache"}, "from `big`, whose target was stored before", None),
        (
            {"vocabulary_alignment": "uld", "alm_weight": 0.1},
            "from `big`, which has another tokenizer (compared by `uld`)",
            "2402.12030",
        ),
        ({"teacher_model_name_or_path": "student_ema"}, "from an average of itself", "2601.19897"),
        ({"seq_kd": True}, "on text of the teacher's", None),
        ({"lmbda": 0.5, "replay_size": 4}, "on the student's own text in 50% of the steps", "2402.03898"),
    ],
)
def test_of_other_kinds(make_trainer, tmp_path, monkeypatch, fields, said, paper):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.teacher), "name", "/data/me/big")
    for name, value in fields.items():
        monkeypatch.setattr(trainer.args, name, value)
    monkeypatch.setattr(trainer.args, "_given", {**trainer.args._given, **fields})
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert said in text and "/data/me" not in text and (paper is None or f"[arXiv {paper}]" in text)
    recipe = yaml.safe_load(blocks(text, "yaml")[0])
    assert {name: recipe[name] for name in fields} == {
        **fields,
        **{k: "cache" for k in fields if k == "teacher_cache"},
    }


def test_of_a_model_that_sees(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "processing", object())
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.pipeline_tag == "image-text-to-text" and '"type": "image"' in text
    compile(blocks(text, "python")[0], "card", "exec")


def test_of_several_teachers(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    entries = [
        {"name": "near", "model": tiny_model_path("teacher"), "kd_temperature": 3.0},
        {"name": "far", "server_url": "https://me:secret@far:1", "server_model": "big", "divergence": "tvd"},
        {"name": "own", "model": "student_ema"},
    ]
    monkeypatch.setattr(trainer.args, "teachers", entries)
    monkeypatch.setattr(trainer.args, "_given", {**trainer.args._given, "teachers": entries})
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "several teachers: `near` (`tiny:teacher`), `far` (`big`), `own` (an average of itself)" in text
    assert "secret" not in text and str(ROOT) not in text
    found = yaml.safe_load(blocks(text, "yaml")[0])["teachers"]
    assert [entry.get("model") for entry in found] == ["tiny:teacher", None, "student_ema"]
    assert "arXiv 2307.15190" in text and "arXiv 2601.19897" in text


def test_of_an_objective_of_ones_own(make_trainer, tmp_path, own_forgotten):
    """Nobody is credited with it but whom its docstring names; the recipe imports it."""

    @register_divergence("mine")
    def mine(log_p, log_q):
        """Somebody's distance."""
        return (log_p - log_q).square().mean(-1)

    trainer = make_trainer(divergence="mine", kd_temperature=1.0)
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- the divergence `mine` (of the author's own): no source is given" in text
    assert "arXiv" not in text and "luong" not in text.lower() and "hinton" not in text.lower()
    recipe = yaml.safe_load(blocks(text, "yaml")[0])
    assert recipe["import"] == ["test_card.py"] and recipe["divergence"] == "mine"


def test_of_a_function(make_trainer, tmp_path, own_forgotten):
    def plain(log_p, log_q):
        """
        A distance.

        Source: Somebody, arXiv 2404.02657.
        """
        return (log_p - log_q).abs().mean(-1)

    trainer = make_trainer(divergence=plain)
    trainer.save_model()  # with its arguments, which a function of this test couldn't be among
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(blocks(text, "yaml")[0])["divergence"] == "plain"
    assert "Somebody, [arXiv 2404.02657]" in text and "author        = {Wu, Taiqiang and others}" in text


def test_every_function_has_its_papers(make_config):
    """Each that the code names has an entry, and all stand in the index of papers."""
    index = (ROOT / "docs/paper_index.md").read_text(encoding="utf-8")
    for number in PAPERS:
        assert f"arxiv.org/abs/{number}" in index
    for name in {*DIVERGENCES, *OBJECTIVES}:
        lmbda = {"distillm2": 0.5, "minillm": 1.0}.get(name, 0.0)
        sources = [source for _, source in credits_of(make_config(divergence=name, lmbda=lmbda))]
        numbers = re.findall(r"\d{4}\.\d{5}", " ".join(sources))
        assert {*numbers} <= {*PAPERS}, name
        assert len(bibtex(" ".join(numbers))) == len(numbers)
    for name in TEMPERATURE_RULES:
        kind, source = credits_of(make_config(kd_temperature_rule=name))[1]
        assert name in kind and (bibtex(source) or source == "this library.")


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name, shown, on_hub in (
        (tiny_model_path("student"), "tiny:student", False),
        ("tiny:student", "tiny:student", False),
        (str(tmp_path / "here"), "here", False),
        ("here", "here", False),
        ("./gone", "gone", False),
        ("~/models/x/", "x", False),
        ("gpt2", "gpt2", True),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", True),
        ("/c/hub/models--Qwen--Qwen3-0.6B/snapshots/0a1b2c", "Qwen/Qwen3-0.6B", False),
        ("", None, False),
        (None, None, False),
    ):
        assert (public_name(name), is_on_the_hub(name)) == (shown, on_hub), name
