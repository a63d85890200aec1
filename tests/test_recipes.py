# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Every recipe is read strictly, and trains for two steps with tiny stand-ins for its models and its data."""

import importlib.util
import json
import math
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, load_from_disk
from standins import save_pair
from teacher_server import TeacherServer
from transformers import AutoModelForCausalLM
from vision_models import chat_rows as pictured_chat_rows
from vision_models import rows as pictured_rows
from vision_models import save_pair_that_sees
from vocabulary_pairs import CHAT, metaspace, save_pair_of_two

from trl_tempkd.commands import cache, distill
from trl_tempkd.teachers import STUDENTS


ROOT = Path(__file__).parent.parent
# Those of sweeps, of studies and of claims are in test_sweep.py, test_tune.py and test_hypotheses.py
OTHERS = ("sweeps", "tune", "hypotheses")
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name not in OTHERS)
# A recipe is of the family that its folder names, and so is its stand-in: LoRA finds the layers that it targets.
ARCHITECTURES = {
    **{"qwen3": "qwen3", "smollm2": "llama", "llama3": "llama", "gpt2_dolly": "gpt2"},
    **{"tiny": "llama", "stories260k": "llama"},
}
# Data sets of the recipes -> the fixture with rows of the same format. TRL's own formatting runs on them.
ROWS = {
    "trl-lib/Capybara": "chat_dataset",
    "HuggingFaceTB/smol-smoltalk": "chat_dataset",
    "outputs/data/dolly": "prompt_dataset",
    "outputs/other-tokenizer/data": "chat_dataset",
    "outputs/smollm2-study/data": "chat_dataset",
    "outputs/smollm2-study/rows": "chat_dataset",
    "outputs/stories260k/data": "prompt_dataset",
    "outputs/stories260k/few": "prompt_dataset",
    "outputs/tiny-hints": "hinted_dataset",
    "outputs/tiny-teachers": "routed_dataset",
    "outputs/tiny-vision/data": "pictured_dataset",
    "HuggingFaceH4/llava-instruct-mix-vsft": "pictured_chats",
    "tiny": "prompt_dataset",
}


def program(name: str):
    """One of those that prepare data for recipes/tiny."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"recipes/tiny/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hinted_dataset(prompt_dataset):
    return prompt_dataset.map(program("prepare_hints").hinted)


@pytest.fixture
def routed_dataset(prompt_dataset):
    return prompt_dataset.map(program("prepare_teachers").routed)


@pytest.fixture
def pictured_dataset():
    return Dataset.from_list(pictured_rows())


@pytest.fixture
def pictured_chats():
    return Dataset.from_list(pictured_chat_rows())


def name_of(recipe: Path) -> str:
    return f"{recipe.parent.name}/{recipe.stem}"


def comments(recipe: Path) -> list[str]:
    return [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]


def how_to_cache(recipe: Path, folder: str) -> list[str]:
    """The options of the cache, from the command on top that writes what the recipe reads from a folder."""
    text = re.sub(r"\\\n#\s*", " ", "\n".join(comments(recipe)))
    commands = [shlex.split(line) for line in re.findall(r"^#\s+trl-tempkd cache (.*)$", text, flags=re.MULTILINE)]
    (own,) = [each for each in commands if folder in each]
    launched = own.index("--accelerate_config") if "--accelerate_config" in own else None
    assert own[:2] == ["--config", recipe.relative_to(ROOT).as_posix()]
    return own[2:launched]


@lru_cache
def read(recipe: Path) -> dict:
    return yaml.safe_load(recipe.read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_keys_and_values(recipe):
    keys = re.findall(r"^(\w+):", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(keys) == len(set(keys)), "a key twice: YAML would keep the second one silently"
    # On this machine bf16 may be out of reach. The rest of the recipe is read as it is.
    values, for_launch, _ = distill.make_parser().parse(["--config", str(recipe), "--bf16", "false", "--use_cpu"])
    assert for_launch == []
    training_args = values[1]
    for key, value in read(recipe).items():
        assert any(hasattr(part, key) for part in values), key
        if key.startswith(("divergence", "kd_")):
            assert getattr(training_args, key) == value


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_says_how_to_run_it(recipe):
    relative = recipe.relative_to(ROOT).as_posix()
    commands = [line for line in comments(recipe) if f"trl-tempkd distill --config {relative}" in line]
    assert commands, "the exact command belongs in the comment on top"
    for line in comments(recipe):
        for path in re.findall(r"(?:recipes|examples|tests)/\S+\.(?:yaml|py)", line):
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_trains(recipe, tmp_path, make_model, tokenizer, request):
    if "vocabulary_alignment" in read(recipe):
        other = metaspace(seed=1)
        other.chat_template = CHAT
        student, teacher = save_pair_of_two(tmp_path, make_model, tokenizer, other)
    elif recipe.stem == "vision":
        student, teacher = save_pair_that_sees(tmp_path)
    else:
        student, teacher = save_pair(tmp_path, make_model, tokenizer, ARCHITECTURES[recipe.parent.name])
    rows = request.getfixturevalue(ROWS[read(recipe)["dataset_name"]])
    DatasetDict(train=rows, test=rows, written=rows, general=rows).save_to_disk(tmp_path / "data")
    output = tmp_path / "output"
    overrides = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "teacher_model_init_kwargs": "{}",
        "dataset_name": tmp_path / "data",
        "output_dir": output,
        "max_length": 48,
        "max_new_tokens": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "eval_steps": 2,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    if read(recipe).get("teacher_model_name_or_path") in (*STUDENTS, None):
        del overrides["teacher_model_name_or_path"]
    own = tmp_path / "recipe.yaml"
    values = read(recipe)
    server, caches = nullcontext(), {}
    if "teacher_cache" in read(recipe):
        overrides["teacher_cache"] = tmp_path / "cache"
        caches[read(recipe)["teacher_cache"]] = tmp_path / "cache"
    served = [entry for entry in values.get("teachers", []) if "server_url" in entry]
    if "teacher_server_url" in read(recipe) or served:
        pooling = "--runner pooling" in "\n".join(comments(recipe))
        server = TeacherServer(AutoModelForCausalLM.from_pretrained(teacher), tokenizer, pooling=pooling).running()
        if not pooling:
            overrides["teacher_model_name_or_path"] = "teacher"
    with server as running:
        for entry in values.get("teachers", []):
            entry |= {"model": teacher, **({} if entry in served else {"init_kwargs": {}})}
            if "cache" in entry:
                caches[entry["cache"]] = tmp_path / entry["name"]
                entry["cache"] = str(tmp_path / entry["name"])
        for entry in served:
            entry["server_url"] = running.url
        own.write_text(yaml.safe_dump(values))
        if "teacher_server_url" in read(recipe):
            overrides["teacher_server_url"] = running.url
        args = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        for folder, built in caches.items():
            more = [*how_to_cache(recipe, folder), "--output", str(built)]
            cache.main(*cache.make_parser().parse(["--config", str(own), *args, *more], launched=True)[0])
        values, _, _ = distill.make_parser().parse(["--config", str(own), *args], launched=True)
        distill.main(*values)

    saved = {path.name for path in output.iterdir()}
    weights = "adapter_model.safetensors" if read(recipe).get("use_peft") else "model.safetensors"
    assert {weights, "tokenizer.json", "train_results.json", "trainer_state.json"} <= saved
    log = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 2
    # Of MiniLLM a part is a policy gradient, whose loss says nothing but its gradient
    low = -1e4 if values[1].divergence == "minillm" else 0
    assert all(low <= loss < 1e4 for loss in losses)
    assert ("eval_results.json" in saved) == values[1].do_eval


def test_the_rows_of_another_tokenizer(tmp_path):
    """No question is asked twice, and what the teacher has written stands beside the references to the same."""
    path = ROOT / "recipes/smollm2/prepare_other_tokenizer.py"
    rows = [{"instruction": f"say {i}", "input": "", "output": str(i)} for i in range(230)]
    rows += [{"instruction": "say 1", "input": "", "output": "again"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run = [sys.executable, str(path), str(tmp_path / "rows.jsonl"), str(tmp_path)]
    subprocess.run(run, check=True, timeout=600)
    splits = load_from_disk(tmp_path / "rows")
    questions = [row["prompt"][0]["content"] for split in splits.values() for row in split]
    assert len(splits["test"]) == 200 and sorted(questions) == sorted({row["instruction"] for row in rows})
    said = [{"role": "assistant", "content": "well"}]
    written = [{**splits["train"][i], "completion": said, "row": i} for i in (4, 2)]
    (tmp_path / "written").mkdir()
    (tmp_path / "written" / "train.jsonl").write_text("\n".join(map(json.dumps, written)), encoding="utf-8")
    subprocess.run(run, check=True, timeout=600)
    data = load_from_disk(tmp_path / "data")
    assert data["written"]["completion"] == [said] * 2 and data["train"]["prompt"] == data["written"]["prompt"]
    assert data["train"]["completion"] == splits["train"].select([4, 2])["completion"]


def program_at(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_between_two(tmp_path, make_model, tokenizer):
    """The ends are the two themselves, and half way every weight is their mean."""
    first, second = save_pair(tmp_path, make_model, tokenizer)
    paths = program_at("recipes/mix_models.py").mix(first, second, str(tmp_path / "mixed"), [0.0, 0.5, 1.0])
    assert [path.name for path in paths] == ["0", "0.5", "1"]
    own, other, *mixed = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (first, second, *paths))
    for name, weight in own.items():
        for model, share in zip(mixed, (0.0, 0.5, 1.0), strict=True):
            torch.testing.assert_close(model[name], weight + share * (other[name] - weight))


def test_a_model_with_random_weights(tmp_path, make_model, tokenizer):
    student, _ = save_pair(tmp_path, make_model, tokenizer)
    for seed, name in ((7, "a"), (7, "b"), (8, "c")):
        program_at("recipes/random_model.py").random_model(student, str(tmp_path / name), seed)
    own, *random = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (student, *map(tmp_path.joinpath, "abc"))
    )
    assert all({k: v.shape for k, v in each.items()} == {k: v.shape for k, v in own.items()} for each in random)
    name = next(name for name in own if "q_proj" in name)
    assert torch.equal(random[0][name], random[1][name])
    assert not torch.equal(random[0][name], random[2][name]) and not torch.equal(random[0][name], own[name])


def test_rows_that_were_trained_on(tmp_path, prompt_dataset):
    """A sample of the split, in whatever order that is."""
    found = []
    for name, rows in (("a", prompt_dataset), ("b", prompt_dataset.select(range(len(prompt_dataset) - 1, -1, -1)))):
        DatasetDict(train=rows).save_to_disk(tmp_path / name)
        found.append(program_at("recipes/seen_rows.py").seen_rows(str(tmp_path / name), 3).to_list())
    assert found[0] == found[1] and len(found[0]) == 3
    assert all(row in prompt_dataset.to_list() for row in found[0])


@pytest.mark.parametrize("slope, verdict", [(2.0, "yes"), (0.0, "no")])
def test_the_dial(slope, verdict, tmp_path, capsys, monkeypatch):
    """Of made-up cells whose gain is a line over the log of what is lifted, the line is found; where none is, none."""
    rng = np.random.default_rng(0)
    for pair in ("one", "two", "other"):
        (tmp_path / pair / "summary/baselines").mkdir(parents=True)
        for share in (0.0, 0.25, 0.5, 1.0):
            ratios = {"forward_kl": math.exp(1 + 2 * share), "reverse_kl": math.exp(1 - share / 4)}
            rows = [
                {
                    "objective": name,
                    "mode": "both",
                    "tau": 2.0,
                    "measure": "lifted_ratio",
                    "bucket": "top_10",
                    "value": x,
                }
                for name, x in ratios.items()
            ]
            baseline = {"diagnostics": rows, "teacher": {"train": {"top_1": 0.5}}}
            (tmp_path / pair / f"summary/baselines/{share}.json").write_text(json.dumps(baseline))
            for objective, ratio in ratios.items():
                shift = 0.0 if slope else rng.normal()
                for tau, seed in ((1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)):
                    gain = (tau - 1) * (slope * math.log(ratio) + shift) + 0.01 * rng.normal()
                    scores = {name: [[5.0 + gain, 7.0 + gain]] for name in ("rouge_l", "rouge_l_greedy@seen")}
                    factors = {"divergence": objective, "tau": tau, "mode": "both", "seed": seed}
                    start = "elsewhere" if pair == "other" and share > 0.25 else "student"
                    options = {"model_name_or_path": start, "teacher_model_name_or_path": f"{pair}/{share}"}
                    cell = {
                        "settings": {"factors": factors, "options": options},
                        "baseline": str(share),
                        "scores": scores,
                        "means": dict.fromkeys(("kl_tau1", "student_entropy", *scores), math.exp(-gain)),
                    }
                    (tmp_path / pair / f"{objective}{share}{tau}{seed}.json").write_text(json.dumps(cell))
    markdown, figure = tmp_path / "dial.md", tmp_path / "dial.png"
    *folders, other = (str(tmp_path / pair) for pair in ("one", "two", "other"))
    monkeypatch.setattr(
        sys, "argv", ["dial.py", *folders, "--markdown", str(markdown), "--png", str(figure), "--test", other]
    )
    program_at("recipes/dial.py").main()
    said = capsys.readouterr().out
    assert (
        markdown.read_text().startswith("# The dial")
        and markdown.read_text().endswith(said)
        and figure.stat().st_size > 1000
    )
    lines = {
        line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("| ") and "16, 8" in line
    }
    assert len(lines) == 4 and all(line.rstrip("| ").endswith(verdict) for line in lines.values())
    # Of those that start as the line's own points did, it isn't a test
    assert said.count("was said") == said.count("elsewhere") == 4 * 4 and said.count("is off by") == 4
    if slope:
        assert all("+1.00 [+" in line and "+2.0" in line for line in lines.values())


def test_head_and_tail_by_step(tmp_path):
    """Means over the seeds of those cells that trained as long, a line for each step and objective."""
    for objective, steps, seed in (("a", 60, 1), ("a", 60, 2), ("b", 60, 1), ("a", 400, 1)):
        diagnostics = [
            {"step": step, "bucket": bucket, "measure": measure, "value": step + seed + (bucket == "tail")}
            for step in (0, 20, 60)
            for bucket in ("head", "tail")
            for measure in ("error", "forward_kl", "reverse_kl")
        ]
        settings = {"options": {"max_steps": steps}, "factors": {"divergence": objective}}
        cell = {"settings": settings, "diagnostics": diagnostics}
        (tmp_path / f"{objective}{steps}{seed}.json").write_text(json.dumps(cell))
    _, _, start, *lines = program_at("recipes/head_and_tail.py").table(tmp_path, [20, 60]).splitlines()
    assert start == "| 0 | not yet | 1.500 | 1.500 | 1.500 | 2.500 | 2.500 | 2.500 |"
    assert lines[0] == "| 20 | a (2 seeds) | 21.500 | 21.500 | 21.500 | 22.500 | 22.500 | 22.500 |"
    assert lines[3].startswith("| 60 | b (1 seeds) | 61.000") and len(lines) == 4
