# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Served teachers against vLLM itself, which `make test-servers` installs and starts. Skipped where there is none.

The built-in teacher stands behind three servers: last hidden states in fp32 and in bf16, and log-probabilities.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM

from trl_tempkd import KDConfig, TemperatureKDTrainer
from trl_tempkd.teachers import CacheBuilder
from trl_tempkd.tiny import resolve


if "TEACHER_SERVERS" not in os.environ:
    pytest.skip("vLLM isn't here: `make test-servers` installs and starts it", allow_module_level=True)

pytestmark = pytest.mark.servers
ROOT = Path(__file__).parent.parent
URLS = json.loads(os.environ["TEACHER_SERVERS"])  # states, bf16, logprobs
SENTENCES = [
    "Once upon a time there was a little girl named Lily who liked to play in the park with her dog.",
    "The sum of three and four is seven, and the sum of seven and five is twelve.",
    "def add(a, b): return a + b, and then print the result of the call with two arguments.",
    "A teacher knows which of the answers are almost right, and the student learns from that.",
    "The boy saw a big red ball under the tree, and he wanted to take it home to his sister.",
    "Water boils at a hundred degrees, and ice melts at zero, if the pressure is that of the sea.",
]
ON_POLICY = {"lmbda": 1.0, "max_new_tokens": 24, "gradient_accumulation_steps": 2}
OBJECTIVES = {
    "forward": {"divergence": "forward_kl", "kd_temperature": 2.0},
    "jsd": {"divergence": "jsd", "teacher_kd_temperature": 3.0, "kd_temperature": 1.5},
    "schedule": {"kd_temperature": 4.0, "kd_temperature_schedule": "linear", "kd_temperature_final": 1.0},
    "rule": {"kd_temperature_rule": "token_adaptive", "kd_temperature_rule_kwargs": {"keep": 0.6}},
    "on-policy": {"divergence": "reverse_kl", "kd_temperature": 2.0, **ON_POLICY},
}


@pytest.fixture
def said(capsys):
    """Show a figure, whether or not pytest captures what is printed."""

    def say(text):
        with capsys.disabled():
            print(f"\n  {text}")

    return say


def rows():
    pairs = [" ".join(pair) for pair in zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True)] + SENTENCES
    return Dataset.from_list([{"prompt": text[:40], "completion": text[40:]} for text in pairs])


@pytest.fixture
def make(tmp_path):
    def make(url, dtype="float32", **fields):
        values = {
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "max_length": 128,
            "model_init_kwargs": {"dtype": "float32"},
            "teacher_model_name_or_path": resolve("tiny:teacher"),
            "teacher_model_init_kwargs": {"dtype": dtype},
            "teacher_server_url": url,
            **fields,
        }
        args = KDConfig(str(tmp_path / "out"), **values)
        return TemperatureKDTrainer(resolve("tiny:student"), args=args, train_dataset=rows())

    return make


def losses(trainer):
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == 6 and min(found) > 1e-2
    return found


def off(found, expected):
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "bound"), [("states", 1e-3), ("bf16", 0.5)])
def test_logits_are_those_of_the_model(make, said, name, bound):
    """Of a text of 2 tokens and of the whole context, of the same again, and of shared prefixes."""
    trainer = make(URLS[name])
    model = AutoModelForCausalLM.from_pretrained(resolve("tiny:teacher"), dtype=torch.float32)
    tokens = trainer.processing_class(" ".join(SENTENCES * 6))["input_ids"]
    worst = 0.0
    for text in (tokens[:2], tokens[:200], tokens[:200], tokens[:300], tokens[:100] + tokens[5:55], tokens[:512]):
        ids = torch.tensor([text])
        hidden = trainer.teacher.hidden_states({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with trainer.teacher.head() as head, torch.no_grad():
            worst = max(worst, (head.logits(hidden).float() - model(ids).logits).abs().max().item())
    said(f"{name}: logits within {worst:.2g} of the model's in fp32")
    assert worst < bound


@pytest.mark.parametrize("name", OBJECTIVES)
def test_trajectory_of_states(make, said, name):
    fields = OBJECTIVES[name]
    worst = off(losses(make(URLS["states"], **fields)), losses(make(None, **fields)))
    said(f"states in fp32, {name}: losses within {worst:.2g} of the live teacher's")
    assert worst < 1e-5


def test_trajectory_of_states_in_bf16(make, said):
    fields = OBJECTIVES["forward"]
    worst = off(losses(make(URLS["bf16"], "bfloat16", **fields)), losses(make(None, "bfloat16", **fields)))
    said(f"states in bf16, forward: losses within {worst:.2g} of the live teacher's in bf16")
    assert worst < 1e-2


@pytest.mark.parametrize("name", ["forward", "on-policy"])
def test_trajectory_of_log_probabilities(make, said, name):
    fields = OBJECTIVES[name]
    served = make(URLS["logprobs"], teacher_model_name_or_path="teacher", teacher_model_init_kwargs=None, **fields)
    worst = off(losses(served), losses(make(None, **fields)))
    said(f"all log-probabilities, {name}: losses within {worst:.2g} of the live teacher's")
    assert worst < 1e-4


def test_bins_of_the_likeliest(make):
    fields = {"teacher_model_name_or_path": "teacher", "teacher_model_init_kwargs": None}
    trainer = make(URLS["logprobs"], teacher_server_logprobs=16, kd_temperature=1.0, **fields)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    ids, found = batch["input_ids"], trainer.teacher.rows(batch)
    model = AutoModelForCausalLM.from_pretrained(resolve("tiny:teacher"), dtype=torch.float32)
    with torch.no_grad():
        p = model(ids).logits[0, :-1].double().softmax(-1)
    largest, own = p.topk(16).indices, ids[0, 1:, None]
    outside = ~(largest == own).any(-1)
    assert outside.any() and not outside.all()
    bins = found.log_bins(1.0, torch.float64)[:-1].exp()
    kept = torch.zeros_like(p, dtype=torch.bool).scatter_(1, largest, True).scatter_(1, own, True)
    torch.testing.assert_close(bins[:, -1], (p * ~kept).sum(-1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(bins[outside, -2], p.gather(-1, own)[outside, 0], rtol=1e-3, atol=1e-9)
    assert (bins[~outside, -2] == 0).all()


def test_the_teacher_writes(make, said):
    """Greedily, by the server beside that of the states."""
    fields = {"seq_kd": True, "max_new_tokens": 16, "temperature": 0.0}
    served = make(URLS["states"], teacher_server_generation_url=URLS["logprobs"], **fields)
    worst = off(losses(served), losses(make(None, **fields)))
    said(f"seq_kd with states: losses within {worst:.2g} of the live teacher's")
    assert worst < 1e-3


def test_a_cache_from_states(make, said, tmp_path):
    found = {}
    for name, url in (("live", None), ("served", URLS["states"])):
        trainer = make(url)
        parts = (trainer.teacher, trainer.data_collator, trainer.processing_class, trainer.accelerator, trainer.args)
        folder = tmp_path / name
        CacheBuilder(folder, {"train": trainer.train_dataset}, *parts, dtype="float32").build()
        found[name] = losses(make(None, teacher_cache=str(folder), kd_temperature=2.0))
    worst = off(found["served"], found["live"])
    said(f"a hidden cache built from states: losses within {worst:.2g} of one built by the model")
    assert worst < 1e-5


def test_says_what_the_teacher_is(make, capsys):
    make(URLS["bf16"], "bfloat16")
    assert "serves teacher exactly: last hidden states of size 192 in bfloat16" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"gives last hidden states, and the head .* perhaps"):
        make(URLS["states"], teacher_model_name_or_path=None)


def test_the_recipe_is_the_live_teacher(said, tmp_path):
    """
    `accelerate launch examples/distill.py --config recipes/tiny/served_on_policy.yaml`, shortened: Adam makes of
    rounding what it makes of a gradient, so sooner or later the student draws another token, and what follows differs.
    """
    recipe = yaml.safe_load((ROOT / "recipes/tiny/served_on_policy.yaml").read_text())
    assert (recipe["divergence"], recipe["kd_temperature"], recipe["lmbda"]) == ("reverse_kl", 2.0, 1.0)
    urls = {"served": URLS["states"], "bf16": URLS["bf16"], "live": None}
    found = {}
    for name, url in urls.items():
        values = {**recipe, "teacher_server_url": url, "max_steps": 3, "logging_steps": 1}
        if url is None:
            del values["teacher_server_url"], values["teacher_server_requests"]
            values["teacher_model_init_kwargs"] = {"dtype": "float32"}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        command += ["examples/distill.py", "--config", str(file), "--output_dir", str(tmp_path / name)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        found[name] = [entry["loss"] for entry in log if "loss" in entry]
        assert len(found[name]) == 3 and all(entry["on_policy_share"] == 1 for entry in log if "loss" in entry)
    worst = off(found["served"], found["live"])
    said(f"the recipe, in fp32: losses within {worst:.2g} of the live teacher's")
    rounded = off(found["bf16"], found["live"])
    said(f"the recipe, with states in bf16: within {rounded:.2g} of those of the live teacher in fp32")
    assert worst < 1e-5
    assert off(found["bf16"][:1], found["live"][:1]) < 0.05  # from then on the student may write something else


def test_the_engine_writes_for_the_student(said):
    """vLLM in the training process, through TRL, with the weights of each step."""
    command = [os.environ["VLLM_PYTHON"], "tests/colocated.py", sysconfig.get_paths()["purelib"]]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    worst = float(done.stdout.splitlines()[-1])
    said(f"vLLM in the process, greedy: losses within {worst:.2g} of those on transformers' completions")
    assert worst < 1e-4
