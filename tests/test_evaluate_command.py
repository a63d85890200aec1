# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd evaluate`: what it writes, that it goes on where it stopped, and what it refuses."""

import json
from pathlib import Path

import pytest
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from standins import save_pair

from trl_tempkd import cli
from trl_tempkd.commands.evaluate import make_parser
from trl_tempkd.fingerprint import fingerprint
from trl_tempkd.prompts import alpaca_prompt
from trl_tempkd.study import evaluation
from trl_tempkd.study.diversity import at_even_diversity
from trl_tempkd.study.evaluation import rouge_l


DATA = Path(__file__).parent.parent.parent / "shared/data/self_instruct_eval_252.jsonl"
TINY = ["--model_name_or_path", "tiny:student", "--dataset_name", "tiny", "--device", "cpu"]


@pytest.fixture
def pair(tmp_path, make_model, tokenizer) -> tuple[str, str]:
    return save_pair(tmp_path, make_model, tokenizer)


@pytest.fixture
def evaluate(tmp_path, pair, prompt_dataset):
    """`evaluate(ARGS, **options)`: the results of the command with a random pair of models."""
    data = tmp_path / "rows.jsonl"
    prompt_dataset.to_json(data)
    output = tmp_path / "new" / "results.json"

    def call(*args: str, status: int = 0, **options) -> dict:
        defaults = {
            "model_name_or_path": pair[0],
            "teacher_model_name_or_path": pair[1],
            "dataset_name": data,
            "device": "cpu",
            "max_new_tokens": 6,
            "output": output,
        }
        given = [f"--{name}={value}" for name, value in {**defaults, **options}.items() if value is not None]
        if "--seeds" not in args:
            args = (*args, "--seeds", "10", "20")
        assert cli.main(["evaluate", *given, *args]) == status
        return json.loads(output.read_text(encoding="utf-8"))

    call.output, call.data = output, data
    return call


def refused(capsys, call, *args, **kwargs) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*args, **kwargs)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert stop.value.code == 2
    assert len(lines) == 1
    return lines[0]


def test_results(evaluate, prompt_dataset, capsys):
    found = evaluate()
    assert [run["seed"] for run in found["runs"]] == [10, 20, None]
    assert found["rows"] == [{"prompt": row["prompt"], "references": [row["completion"]]} for row in prompt_dataset]
    for run in found["runs"]:
        assert run["items"]["rouge_l"] == rouge_l(run["items"]["completion"], prompt_dataset["completion"])
    settings = found["settings"]
    assert settings["temperature"] == settings["top_p"] == 1
    assert settings["rows"] == len(prompt_dataset)
    assert settings["fingerprint"] == fingerprint(prompt_dataset)
    assert settings["model"]["weights"] != settings["teacher"]["weights"]
    assert {"torch", "transformers", "python", "trl_tempkd", "device"} <= set(settings["environment"])
    assert found["compared"]["scores"]["kl_tau1"] > 0
    table = capsys.readouterr().out
    assert f"Fingerprint of the rows: {settings['fingerprint']}" in table
    for name in ("rouge_l", "self_bleu", "distinct_4", "stop_rate", "ece", "reverse_kl_tau1", "mean over 2 seeds"):
        assert name in table
    assert [path.name for path in evaluate.output.parent.iterdir()] == ["results.json"]  # nothing partial


def test_goes_on_and_refuses_other_settings(evaluate, capsys, monkeypatch, make_model, pair, prompt_dataset):
    first = evaluate("--seeds", "10", "--no_greedy")
    assert [run["seed"] for run in first["runs"]] == [10]
    monkeypatch.setattr(evaluation, "compare", None)
    more = evaluate()
    assert [run["seed"] for run in more["runs"]] == [10, 20, None]
    assert more["runs"][0] == first["runs"][0]
    monkeypatch.setattr(evaluation, "sample", None)
    assert evaluate() == more
    monkeypatch.undo()
    assert "other settings (top_p)" in refused(capsys, evaluate, top_p=0.5)
    evaluate.data.write_text(evaluate.data.read_text(encoding="utf-8").replace("moon", "sun"), encoding="utf-8")
    assert "other settings (fingerprint, rows_sha256)" in refused(capsys, evaluate)
    prompt_dataset.to_json(evaluate.data)
    make_model(seed=3).save_pretrained(pair[0])  # other weights in the same folder
    assert "other settings (model)" in refused(capsys, evaluate)
    again = evaluate("--overwrite", "--seeds", "--no_greedy", top_p=0.5)
    assert again["runs"] == []
    assert again["settings"]["top_p"] == 0.5


def test_interrupted_it_keeps_what_is_finished(evaluate, monkeypatch):
    inner = evaluation.sample

    def interrupt(*args, **kwargs):
        if kwargs.get("seed") == 20:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    monkeypatch.setattr(evaluation, "sample", interrupt)
    assert [run["seed"] for run in evaluate(status=130)["runs"]] == [10]
    monkeypatch.undo()
    whole = evaluate()
    assert whole == evaluate("--overwrite")


def test_adapter_folder(evaluate, pair, tmp_path, make_model, capsys):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(pair[0])
    adapted = get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "adapter")
    found = evaluate("--seeds", teacher_model_name_or_path=pair[0], model_name_or_path=tmp_path / "adapter")
    assert found["settings"]["model"]["adapter"]
    assert found["compared"]["scores"]["kl_tau1"] > 1e-4
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    (tmp_path / "merged" / "tokenizer.json").write_text((Path(pair[0]) / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "merged" / "tokenizer_config.json").write_text(
        (Path(pair[0]) / "tokenizer_config.json").read_text(encoding="utf-8")
    )
    options = {"teacher_model_name_or_path": pair[0], "model_name_or_path": tmp_path / "merged"}
    merged = evaluate("--seeds", "--overwrite", **options)
    assert merged["compared"]["scores"] == pytest.approx(found["compared"]["scores"], rel=1e-2)
    assert merged["runs"][0]["items"] == found["runs"][0]["items"]


def test_rows_without_a_reference_are_counted(evaluate, prompt_dataset, capsys):
    """One of them leaves ROUGE-L out, and is named: the table alone doesn't say why there is none."""
    rows = [*prompt_dataset][:3]
    evaluate.data.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"prompt": "a cat"}]), encoding="utf-8")
    assert "rouge_l" not in evaluate("--seeds")["runs"][0]["scores"]
    assert "No ROUGE-L: 1 of 4 rows have no reference, the first is row 3.\n" in capsys.readouterr().out


def test_a_teacher_with_another_tokenizer(evaluate, capsys):
    """The way out is one that this command has."""
    said = refused(capsys, evaluate, teacher_model_name_or_path="tiny:teacher")
    assert "need the same tokenizer" in said
    assert said.endswith("Without --teacher_model_name_or_path the model is evaluated by itself.")
    assert "vocabulary_alignment" not in said


def test_recipe_and_splits(evaluate, tmp_path, prompt_dataset, capsys):
    folder = tmp_path / "data"
    DatasetDict({"train": prompt_dataset, "test": prompt_dataset.select([2, 3, 4])}).save_to_disk(folder)
    (tmp_path / "recipe.yaml").write_text("seeds: [30, 40]\ngreedy: false\nnum_rows: 2\n", encoding="utf-8")
    options = {"dataset_name": folder, "teacher_model_name_or_path": None}
    found = evaluate("--seeds", "30", "--config", str(tmp_path / "recipe.yaml"), **options)
    assert [run["seed"] for run in found["runs"]] == [30]
    assert [row["prompt"] for row in found["rows"]] == prompt_dataset["prompt"][2:4]
    assert "kl_tau1" not in found["compared"]["scores"]
    found = evaluate("--overwrite", dataset_test_split="train", **options)
    assert len(found["rows"]) == len(prompt_dataset)


def test_quality_over_diversity(evaluate, capsys):
    """As a sweep measures it; what a file has already isn't sampled again, and other temperatures are added."""
    line, options = ("--no_greedy", "--seeds", "10"), {"max_new_tokens": 4}
    found = evaluate(*line, "--temperatures", "1", ".5", **options)
    assert [point["temperature"] for point in found["curve"]] == [1.0, 0.5]
    assert found["curve"][0]["rouge_l"][0] == pytest.approx(found["runs"][0]["scores"]["rouge_l"])
    assert found["curve"][0]["self_bleu"][0] == pytest.approx(found["runs"][0]["scores"]["self_bleu"])
    said = capsys.readouterr().out
    assert "Quality over diversity" in said and "0.5" in said
    again = evaluate(*line, "--temperatures", "1", ".5", ".1", **options)
    assert again["curve"][:2] == found["curve"] and again["curve"][2]["temperature"] == 0.1
    assert evaluate(*line, **options)["curve"] == again["curve"]


def test_a_curve_at_even_diversity():
    points = [(12.0, 5.0, 20.0), (28.0, 9.0, 28.0), (20.0, 7.0, 24.0)]
    curve = [{"self_bleu": [x], "rouge_l": [y], "length": [z]} for x, y, z in points]
    assert at_even_diversity(curve) == [(15.0, 5.75, 21.5), (20.0, 7.0, 24.0), (25.0, 8.25, 26.5)]
    assert [value for value, *_ in at_even_diversity(curve[:1] + curve[2:])] == list(range(12, 21))
    assert at_even_diversity([]) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--temperatures", "0"], "`temperatures` must be positive, got [0.0]"),
        (["--temperatures", "1", "--seeds"], "give one seed at least"),
        (["--sedes", "1"], "unknown flag --sedes; did you mean '--seeds'?"),
        (["--num_processes", "2"], "unknown flag --num_processes"),
        (["--seeds", "ten"], "invalid int value: 'ten'"),
        (["--seeds", "1", "1"], "must be different"),
        (["--temperature", "0"], "`temperature` must be positive"),
        (["--top_p", "0"], "got 0.0"),
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--prompt_format", "chat"], "invalid choice: 'chat'"),
        (["--dataset_test_split", "valid"], "no split 'valid'; it has: general, train"),
        (["--model_name_or_path", "./nope"], "no such model (--model_name_or_path): ./nope"),
        (["--model_name_or_path", "tiny:x"], "tiny:teacher"),
        (
            ["--model_name_or_path", "no-such-owner/no-such-model"],
            "cannot load the model 'no-such-owner/no-such-model'",
        ),
        (["--dataset_name", "./nope.jsonl"], "no such data set"),
        (["--output", __file__], "holds no results"),
    ],
)
def test_mistakes(tmp_path, capsys, args, message):
    assert message in refused(capsys, cli.main, ["evaluate", *TINY, "--output", str(tmp_path / "r.json"), *args])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: [1]", "unknown key 'sedes'"),
        ("seeds: [1, two]", "expected int, got 'two'"),
        ("num_processes: 2", "which this command does not use"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path, capsys, text, message):
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert message in refused(capsys, cli.main, ["evaluate", *TINY, "--config", str(tmp_path / "recipe.yaml")])


def test_one_seed_in_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seeds: 10\ngreedy: false\n", encoding="utf-8")
    (args,) = make_parser().parse_here(["--config", str(tmp_path / "recipe.yaml")])
    assert (args.seeds, args.greedy) == ([10], False)


@pytest.mark.skipif(not DATA.is_file(), reason="needs the instructions of Self-Instruct")
def test_instructions(evaluate):
    found = evaluate(dataset_name=DATA, num_rows=12, teacher_model_name_or_path=None)
    lines = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()[:12]]
    expected = [{"prompt": alpaca_prompt(x["instruction"], x["input"]), "references": [x["output"]]} for x in lines]
    assert found["rows"] == expected
