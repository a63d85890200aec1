# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is measured of models that see, and what they write: evaluations, sweeps, diagnoses, generated data."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from trl import DatasetMixtureConfig, ScriptArguments
from vision_models import chat_rows, rows, save_pair_that_sees

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.commands import distill
from trl_tempkd.errors import UsageError
from trl_tempkd.generating import GenerateConfig, generate
from trl_tempkd.models import auto_class, load_processor
from trl_tempkd.study.diagnostics.setup import DiagnoseArguments, measure
from trl_tempkd.study.one_model import EvaluateConfig, evaluate
from trl_tempkd.study.runs import measure as measuring
from trl_tempkd.study.runs.cell import EVALUATION, Cell
from trl_tempkd.study.to_teacher import compare_pictured
from trl_tempkd.vision import Processing


ROOT = Path(__file__).parent.parent


@pytest.fixture
def pair(tmp_path):
    return save_pair_that_sees(tmp_path)


@pytest.fixture
def data(tmp_path) -> str:
    """Prompts and completions to train on, the same as conversations to test on."""
    splits = {"train": Dataset.from_list(rows()), "test": Dataset.from_list(chat_rows())}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


def test_an_evaluation_is_what_the_trainer_measures(tmp_path, pair, data, make_config):
    student, teacher = pair
    found = {}
    for split in ("train", "test"):
        args = EvaluateConfig(
            model_name_or_path=student,
            teacher_model_name_or_path=teacher,
            dataset_name=data,
            dataset_test_split=split,
            seeds=[10],
            max_new_tokens=6,
            batch_size=3,
            device="cpu",
            output=str(tmp_path / f"{split}.json"),
        )
        found[split] = evaluate(args)
        args.overwrite = False
        assert evaluate(args)["runs"] == found[split]["runs"]  # nothing is left to be done
    config = make_config(max_length=None)
    asked = load_from_disk(data)["train"]
    trainer = TemperatureKDTrainer(student, teacher, config, train_dataset=asked, eval_dataset=asked)
    measured = trainer.evaluate()
    for split in found:
        assert found[split]["compared"]["scores"]["kl_tau1"] == pytest.approx(measured["eval_kl_tau1"], rel=1e-3)
        assert found[split]["rows"][0]["references"] == ["the cat sat on the mat"]
        assert len(found[split]["runs"]) == 2 and len(found[split]["runs"][1]["items"]["completion"]) == 4
        json.dumps(found[split])
    greedy = [run["items"]["completion"] for run in (found["train"]["runs"][1], found["test"]["runs"][1])]
    assert greedy[0] == greedy[1] and len({*greedy[0]}) > 1
    with pytest.raises(UsageError, match="other settings"):
        args.dataset_test_split = "train"
        evaluate(args)


def test_a_cell_of_a_sweep(tmp_path, pair, data):
    student, teacher = pair
    options = {
        "model_name_or_path": student, "teacher_model_name_or_path": teacher, "dataset_name": data, "max_steps": 2,
        "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True, "bf16": False, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "do_eval": False, "seed": 1, "max_length": 64,
    }  # fmt: skip
    own = {"rows": 4, "seeds": [10], "greedy": True, "max_new_tokens": 4, "diagnostics_rows": 2}
    cell = Cell("one", {"divergence": "forward_kl"}, options, {**EVALUATION, **own, "temperatures": [1.0]})
    result = measuring.measure(cell, tmp_path / "results" / "one")
    assert result["means"]["kl_tau1"] > 0 and len(result["completions"][0]) == 4 and result["curve"]
    (shared,) = (tmp_path / "results" / "summary" / "baselines").glob("*.json")
    baseline = json.loads(shared.read_text(encoding="utf-8"))
    assert baseline["teacher"]["train"]["tokens"] == baseline["teacher"]["held_out"]["tokens"]
    assert baseline["start"]["means"]["kl_tau1"] > result["means"]["kl_tau1"] and baseline["diagnostics"]


def test_a_diagnosis(tmp_path, pair, data):
    args = DiagnoseArguments(*pair, output=str(tmp_path / "table.csv"), num_rows=3, temperatures=[1.0, 2.0])
    found = measure(args, ScriptArguments(dataset_name=data), DatasetMixtureConfig())
    assert found.tokens == 7 + 4 + 5 and found.rows


def test_what_a_teacher_writes_is_data_with_images(tmp_path, pair, data, make_config):
    student, teacher = pair
    own = {"output": str(tmp_path / "new"), "device": "cpu", "max_new_tokens": 6, "batch_size": 2, "temperature": 0.0}
    args = GenerateConfig(teacher_model_name_or_path=teacher, **own)
    counts = generate(args, ScriptArguments(dataset_name=data))
    assert counts["written"] == 4
    new = Dataset.from_json(str(tmp_path / "new" / "train.jsonl"))
    assert [len(row["images"]) for row in new] == [1, 2, 0, 1]
    assert all(Path(path).is_file() for row in new for path in row["images"])
    config = make_config(lmbda=0.0, seq_kd=True, max_new_tokens=6, temperature=0.0)
    trainer = TemperatureKDTrainer(student, teacher, config, train_dataset=load_from_disk(data)["train"])
    (batch,) = trainer.rollouts([trainer.data_collator(list(trainer.train_dataset))], 0, 0.0)
    decode = partial(trainer._tokenizer.decode, skip_special_tokens=True)
    said = sorted(decode([i for i in labels.tolist() if i != -100]) for labels in batch["labels"])
    assert said == sorted(row["completion"][0]["content"] for row in new) and len({*said}) > 1
    trainer = TemperatureKDTrainer(student, teacher, make_config(), train_dataset=new)  # which is trained on
    assert "pixel_values" in trainer.data_collator(list(trainer.train_dataset))
    args = GenerateConfig(teacher_model_name_or_path=teacher, **{**own, "teacher_server_url": "http://localhost:1"})
    with pytest.raises(UsageError, match="isn't shown any"):
        generate(args, ScriptArguments(dataset_name=data))


def test_a_student_learns_from_a_teacher_what_pictures_show(tmp_path):
    """With the tiny recipe, from pictures that are drawn here: the KL falls, and what the student says needs them."""
    path = ROOT / "recipes" / "tiny" / "prepare_vision.py"
    spec = importlib.util.spec_from_file_location("prepare_vision", path)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    folder = tmp_path / "vision"
    program.main(str(folder), count=512, steps=220)
    output = tmp_path / "out"
    overrides = {
        "model_name_or_path": folder / "student", "teacher_model_name_or_path": folder / "teacher",
        "dataset_name": folder / "data", "output_dir": output, "max_steps": 150, "disable_tqdm": True,
        "logging_steps": 10, "do_eval": "false",
    }  # fmt: skip
    args = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    recipe = ["--config", str(ROOT / "recipes" / "tiny" / "vision.yaml")]
    distill.main(*distill.make_parser().parse([*recipe, *args], launched=True)[0])
    log = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    distances = [entry["kl_tau1"] for entry in log if "kl_tau1" in entry]
    assert distances[-1] < 0.3 * distances[0]

    student, teacher = (
        auto_class(str(each), None, False).from_pretrained(each).eval() for each in (output, folder / "teacher")
    )
    processing = Processing(load_processor(str(output), None, False, "student"))
    data = load_from_disk(folder / "data")
    seen, blank = (
        compare_pictured(student, teacher, list(data[split]), 64, processing)[0] for split in ("test", "blank")
    )
    assert seen["kl_tau1"] < 0.5 * distances[0]
    assert blank["ce"] > 1.3 * seen["ce"]
