# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The built-in pair and its data."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_tempkd.tiny import data, load_tiny_dataset, resolve, tiny_model_path
from trl_tempkd.tiny.measure import measure


@pytest.fixture(scope="module")
def dataset():
    return load_tiny_dataset()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_model_path("teacher"))


@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForCausalLM.from_pretrained(tiny_model_path(name)) for name in ("teacher", "student")}


# --- data


def module_of(prompt: str) -> str:
    return re.search(r"\)` of `([\w.]+)` do\?\n$", prompt).group(1)


def modules_of(rows) -> set[str]:
    return set(map(module_of, rows["prompt"]))


def test_sizes_and_columns(dataset):
    assert set(dataset) == {"general", "train", "test"}
    assert all(rows.column_names == ["prompt", "completion"] for rows in dataset.values())
    assert dataset["general"].num_rows > 20_000
    assert 3_000 < dataset["train"].num_rows < dataset["general"].num_rows / 2
    assert 700 < dataset["test"].num_rows < dataset["train"].num_rows / 2


def test_splits_share_no_module_and_no_completion(dataset):
    for first, second in (("general", "train"), ("general", "test"), ("train", "test")):
        assert not modules_of(dataset[first]) & modules_of(dataset[second])
        assert not set(dataset[first]["completion"]) & set(dataset[second]["completion"])


def test_completions_are_short_distinct_lines(dataset):
    for rows in dataset.values():
        completions = list(rows["completion"])
        assert len(set(completions)) == len(completions)
        assert all(20 <= len(text) <= 300 and text == " ".join(text.split()) for text in completions)


def test_no_test_suites(dataset):
    assert not any({"test", "tests", "conftest"} & set(module.split(".")) for module in modules_of(dataset["general"]))


def test_a_module_keeps_its_split():
    # These may never change: they follow from the modules' names alone.
    splits = {name: data.split_of(name) for name in ("torch.nn.modules.linear", "argparse", "pathlib", "queue")}
    assert splits == {
        "torch.nn.modules.linear": "general",
        "argparse": "train",
        "pathlib": "general",
        "queue": "test",
    }


@pytest.fixture
def small_source(tmp_path, monkeypatch):
    """Two modules in place of the installed packages, and an empty cache."""
    source = tmp_path / "source.py"
    source.write_text(
        '''
def add(a, b, *rest, key=None, **more):
    """Add two
    numbers together.

    More text.
    """

class Box(dict):
    "A box with a lid, made of wood."

    def __init__(self, size): ...

    def open(self):
        """Open the lid of the box."""

    def short(self):
        """Too short."""

def many(a, b, c, d, e, f, g, h, i):
    "Take very many arguments."
'''
    )
    copy = tmp_path / "copy.py"
    copy.write_text(
        'def plus(a, b):\n    "Add two numbers together."\n\nasync def wait():\n    "Wait until it is over."\n'
    )
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    files = [("queue", copy), ("pathlib", source), ("zzz", broken)]
    monkeypatch.setattr(data, "source_files", lambda: iter(files))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_rows_of_a_module(small_source):
    rows = data.build_rows(progress=False)
    assert sorted(rows["general"], key=lambda row: row["prompt"]) == [
        {
            "prompt": "What does `Box(size)` of `pathlib` do?\n",
            "completion": "A box with a lid, made of wood.",
        },
        {
            "prompt": "What does `Box.open()` of `pathlib` do?\n",
            "completion": "Open the lid of the box.",
        },
        {
            "prompt": "What does `add(a, b, *rest, key, **more)` of `pathlib` do?\n",
            "completion": "Add two numbers together.",
        },
        {
            "prompt": "What does `many(a, b, c, d, e, f, g, h, ...)` of `pathlib` do?\n",
            "completion": "Take very many arguments.",
        },
    ]
    # The docstring that both modules have is held out nowhere
    assert rows["test"] == [
        {"prompt": "What does `wait()` of `queue` do?\n", "completion": "Wait until it is over."},
    ]
    assert rows == data.build_rows(progress=False)


def rows_of(files: dict[str, str], folder: Path, monkeypatch) -> dict[str, list[dict[str, str]]]:
    """The rows of some modules, by name their text."""
    paths = {name: folder / f"{name}.py" for name in files}
    for name, path in paths.items():
        path.write_text(files[name], encoding="utf-8")
    monkeypatch.setattr(data, "source_files", lambda: iter(paths.items()))
    return data.build_rows(progress=False)


def functions(*names: str) -> str:
    return "\n".join(f'def {name}():\n    """Do what {name} does, and nothing else."""' for name in names)


# `argparse` is of the split train, `queue` of test, `pathlib` of general
SOURCES = {
    "argparse": functions("parse", "format", "complain", "exit"),
    "queue": functions("put", "get", "join"),
    "pathlib": functions("open", "read"),
}


@pytest.mark.parametrize(
    ("change", "gone", "new"),
    [
        ({"argparse": functions("parse", "warn", "format", "complain", "exit")}, {}, {"train": ["warn"]}),
        ({"argparse": functions("exit", "complain", "parse")}, {"train": ["format"]}, {}),
        (
            {"argparse": SOURCES["argparse"].replace("Do what format does", "Format")},
            {"train": ["format"]},
            {"train": ["format"]},
        ),
        ({"queue": functions("put", "get", "join", "peek")}, {}, {"test": ["peek"]}),
        ({"aaa": functions("first"), "zzz": functions("last")}, {}, {"general": ["first", "last"]}),
        # A copy elsewhere: it is held out no longer
        ({"zzz": functions("get")}, {"test": ["get"]}, {"general": ["get"]}),
    ],
)
def test_another_version_changes_its_own_rows_alone(change, gone, new, tmp_path, monkeypatch):
    before = rows_of(SOURCES, tmp_path, monkeypatch)
    after = rows_of({**SOURCES, **change}, tmp_path, monkeypatch)

    def names(rows, others):
        return sorted(re.search(r"`(\w+)\(", row["prompt"]).group(1) for row in rows if row not in others)

    for split in data.SPLITS:
        assert names(before[split], after[split]) == gone.get(split, [])
        assert names(after[split], before[split]) == new.get(split, [])
        # All others in the same order
        kept = [row for row in before[split] if row in after[split]]
        assert kept == [row for row in after[split] if row in before[split]]


def test_the_indentation_of_a_docstring_makes_no_difference(tmp_path, monkeypatch):
    # Python 3.13 strips it when it compiles, and earlier versions don't
    lines = ["Open the lid", "of the box.", "", "  x"]
    deep, flat = (
        'class Box:\n    def open(self):\n        """\n'
        + "".join(f"{space}{line}\n" for line in lines)
        + f'{space}"""'
        for space in ("        ", "")
    )
    assert rows_of({"queue": deep}, tmp_path, monkeypatch) == rows_of({"queue": flat}, tmp_path, monkeypatch)


def test_the_first_rows_are_a_sample(dataset):
    # As many of the standard library among the first rows as among all, though its modules stand last by name
    share = [sum("torch" in module for module in map(module_of, rows["prompt"])) / len(rows) for rows in
             (dataset["train"], dataset["train"].take(1000))]  # fmt: skip
    assert share[0] > 0.1 and abs(share[0] - share[1]) < 0.06


def test_no_bar_where_nobody_looks(tmp_path):
    """A cold cache costs half a minute, and yet standard error of a command stays what the command says."""
    code = """
        import sys
        from trl_tempkd.tiny import data
        found = [(name, path) for name, path in data.source_files() if name in ("queue", "argparse", "pathlib")]
        data.source_files = lambda: iter(found)
        data.load_tiny_dataset()
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", dedent(code)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list((tmp_path / "trl_tempkd").iterdir())) == 1


def test_cache_is_written_once_and_read_again(small_source, monkeypatch):
    # An empty split would have no columns, so `train` gets a module too.
    files = [*data.source_files(), ("argparse", small_source / "third.py")]
    (small_source / "third.py").write_text('def apply(x):\n    "Apply a linear map to x."\n')
    monkeypatch.setattr(data, "source_files", lambda: iter(files))
    first = load_tiny_dataset()

    def refuse(**kwargs):
        raise AssertionError("the cache was there")

    monkeypatch.setattr(data, "build_rows", refuse)
    second = load_tiny_dataset()
    assert {split: rows.to_list() for split, rows in first.items()} == {
        split: rows.to_list() for split, rows in second.items()
    }
    cache = small_source / "cache" / "trl_tempkd"
    assert [path.name for path in cache.iterdir()] == [f"tiny-{data.cache_key()}"]  # no scratch folder is left

    monkeypatch.setattr(data, "CODE_VERSION", data.CODE_VERSION + 1)
    with pytest.raises(AssertionError, match="the cache was there"):
        load_tiny_dataset()


def test_interrupted_build_leaves_nothing(small_source, monkeypatch):
    from datasets import DatasetDict

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetDict, "save_to_disk", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_tiny_dataset()
    assert list((small_source / "cache" / "trl_tempkd").iterdir()) == []


# --- names


def test_resolve():
    assert resolve("tiny:teacher") == tiny_model_path("teacher")
    assert Path(resolve("tiny:student")).parts[-2:] == ("models", "student")
    for name in ("Qwen/Qwen3-0.6B", "./tiny", "tiny", "some:tiny:teacher", r"C:\models\tiny"):
        assert resolve(name) == name
    with pytest.raises(ValueError, match="tiny:teacher, tiny:student; got tiny:other"):
        resolve("tiny:other")


def test_import_is_light():
    code = "import sys, trl_tempkd.tiny; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "Return the sum of `a` and `b`.",
        "  two  spaces,\ttab\nnew line\n\n",
        "naïve café — 温度 🌡️ Ω≈ç√",
        "".join(map(chr, range(1, 256))),
        "",
    ],
)
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens(tokenizer):
    assert len(tokenizer) == 4096
    assert tokenizer.bos_token is None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("text")["input_ids"] == tokenizer("text", add_special_tokens=False)["input_ids"]


def test_both_models_have_the_same_tokenizer(tokenizer):
    other = AutoTokenizer.from_pretrained(tiny_model_path("student"))
    assert other.get_vocab() == tokenizer.get_vocab()
    assert other.chat_template == tokenizer.chat_template


def conversation(row) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["prompt"].removesuffix("\n")},
        {"role": "assistant", "content": row["completion"]},
    ]


def test_chat_template_equals_prompt_completion(dataset, tokenizer):
    for row in dataset["test"].take(50):
        messages = conversation(row)
        expected = tokenizer(row["prompt"])["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)
        assert prompt["input_ids"] == expected
        both = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        assert both["input_ids"] == expected + completion
        assert both["assistant_masks"] == [0] * len(expected) + [1] * len(completion)


def test_chat_template_of_many_turns(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "Be brief.\nOne?\nYes.<|eos|>Two?\n"


@pytest.mark.parametrize("conversational", [False, True])
def test_sft_trainer_takes_the_data(dataset, tokenizer, models, conversational, tmp_path):
    rows = dataset["train"].take(4)
    options = {"completion_only_loss": True}
    if conversational:
        rows = rows.map(lambda row: {"messages": conversation(row)}, remove_columns=rows.column_names)
        options = {"assistant_only_loss": True}
    args = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        use_cpu=True,
        report_to="none",
        activation_checkpointing=False,
        **options,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("student"), dtype=torch.float32)
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    completions = {
        (*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id) for row in dataset["train"].take(4)
    }
    assert {tuple(labels[labels != -100].tolist()) for labels in batch["labels"]} == completions
    trainer.train()


# --- models


def test_models_are_small_and_bf16(models):
    for model in models.values():
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    folder = Path(tiny_model_path("teacher")).parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 12e6
    assert models["student"].num_parameters() < 0.7 * models["teacher"].num_parameters()
    assert models["student"].config.vocab_size == models["teacher"].config.vocab_size == 4096


def test_teacher_beats_student_on_held_out_rows(dataset, tokenizer, models):
    # All of them: a sample's margin moves with the rows, which other versions of the packages change
    losses = {name: measure(model, tokenizer, dataset["test"])["loss"] for name, model in models.items()}
    assert losses["teacher"] < losses["student"] - 0.05


def test_teacher_is_peaked_on_the_rows_to_distil_on(dataset, tokenizer, models):
    figures = measure(models["teacher"], tokenizer, dataset["train"].take(300))
    assert figures["top1"] > 0.6
    assert figures["top1"] > measure(models["student"], tokenizer, dataset["train"].take(300))["top1"] + 0.1


def test_measure_agrees_with_the_models_own_loss(dataset, tokenizer, models):
    row = dataset["test"][0]
    prompt = tokenizer(row["prompt"])["input_ids"]
    input_ids = torch.tensor([prompt + tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]])
    labels = input_ids.clone()
    labels[:, : len(prompt)] = -100
    loss = models["teacher"](input_ids=input_ids, labels=labels).loss.item()
    assert measure(models["teacher"], tokenizer, dataset["test"].take(1))["loss"] == pytest.approx(loss, rel=2e-2)


def test_teacher_generates_a_sentence_and_stops(dataset, tokenizer, models):
    prompt = tokenizer(dataset["train"][0]["prompt"], return_tensors="pt")
    output = models["teacher"].generate(**prompt, do_sample=False)
    assert output[0, -1] == tokenizer.eos_token_id
    assert output.shape[1] - prompt["input_ids"].shape[1] > 3


def test_model_cards_tell_the_measured_figures():
    for name in ("teacher", "student"):
        card = (Path(tiny_model_path(name)) / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlicense: apache-2.0\n")
        assert "trl_tempkd.tiny.train --output" in card
        assert "| bf16, as shipped | `test` |" in card
        config = json.loads((Path(tiny_model_path(name)) / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == "bfloat16"


# --- training program


def test_last_checkpoint_passes_over_those_cut_off(tmp_path):
    from trl_tempkd.tiny.train import last_checkpoint

    assert last_checkpoint(tmp_path / "none") is None
    for step, state in ((250, "{}"), (500, "{}"), (1000, '{"cut')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-1250").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-500")


@pytest.mark.parametrize("by_name", [True, False], ids=["argument", "option"])
def test_the_trainer_takes_the_names(tmp_path, by_name, chat_dataset):
    from trl_tempkd import KDConfig, TemperatureKDTrainer

    options = {"max_length": 32, "use_cpu": True, "bf16": False, "report_to": "none"}
    if not by_name:
        options["teacher_model_name_or_path"] = "tiny:teacher"
    trainer = TemperatureKDTrainer(
        "tiny:student",
        "tiny:teacher" if by_name else None,
        args=KDConfig(str(tmp_path), **options),
        train_dataset=chat_dataset,
    )
    assert trainer.model.config.num_hidden_layers == 2
    assert trainer.teacher.model.config.num_hidden_layers == 6
