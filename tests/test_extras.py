# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Who only trains installs nothing of the study, and who needs it is told so on one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import DatasetDict
from standins import save_pair

from trl_tempkd import cli


ROOT = Path(__file__).parent.parent
# Nobody finds the packages; pandas, which TRL and datasets bring, nobody finds from here
WITHOUT = """
import builtins, sys
from importlib.machinery import PathFinder

ABSENT = {"matplotlib", "optuna", "plotly", "ray", "rouge_score", "scipy"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
found = builtins.__import__

def find(name, globals=None, locals=None, fromlist=(), level=0):
    if name.split(".")[0] == "pandas" and (globals or {}).get("__name__", "").startswith("trl_tempkd"):
        raise ImportError("no pandas")
    return found(name, globals, locals, fromlist, level)

builtins.__import__ = find
"""
TRAIN = """
from trl_tempkd import KDConfig, TemperatureKDTrainer, chunked_kd_loss, kd_loss
from trl_tempkd.commands import distill

values, _, _ = distill.make_parser().parse(sys.argv[1:], launched=True)
assert isinstance(values[1], KDConfig)
distill.main(*values)
assert not {*ABSENT, "evaluate", "trl_tempkd.study"} & set(sys.modules), {*ABSENT} & set(sys.modules)
"""


def test_the_core_trains_without_the_study(tmp_path, make_model, tokenizer, prompt_dataset):
    """Also on the student's own completions, which are written as a table."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    options = f"""--model_name_or_path {student} --teacher_model_name_or_path {teacher}
        --dataset_name {tmp_path / "data"} --output_dir {tmp_path / "out"} --max_steps 2 --use_cpu --bf16 false
        --report_to none --save_strategy no --lmbda 1 --max_new_tokens 4 --log_completions --logging_steps 1
        --per_device_train_batch_size 2 --do_eval true --disable_tqdm true"""
    line = [sys.executable, "-c", WITHOUT + TRAIN, *options.split()]
    ran = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "out/model.safetensors").is_file()
    assert list((tmp_path / "out/completions").glob("*.parquet"))


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "sweep", "tune", "report"])
@pytest.mark.parametrize("package", ["matplotlib", "optuna", "pandas", "rouge_score", "scipy"])
def test_a_command_of_the_study_says_what_it_needs(command, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--nothing", "of this is read"])
    assert stop.value.code == 2
    said = f"trl-tempkd {command}: error: this command needs {package.replace('_', '-')}"
    assert capsys.readouterr().err == f'{said}: pip install ".[study]" where you installed trl_tempkd from\n'


def test_it_is_said_before_anything_is_loaded():
    code = (
        WITHOUT
        + """
from trl_tempkd import cli
try:
    cli.main(["sweep", "--config", "x"])
except SystemExit as stop:
    assert stop.code == 2
assert not {"torch", "transformers", "trl", "datasets"} & set(sys.modules)
from trl_tempkd import kd_loss  # for a loop of one's own
assert not {"transformers", "trl", "peft", "accelerate", "datasets"} & set(sys.modules)
"""
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == (
        "trl-tempkd sweep: error: this command needs matplotlib, optuna, rouge-score, scipy: "
        'pip install ".[study]" where you installed trl_tempkd from\n'
    )


def test_live_measures_need_the_study(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy", None)
    pair = "--model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher --dataset_name tiny --use_cpu"
    options = f"{pair} --bf16 false --kd_diagnostics_steps 1 --output_dir {tmp_path}"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["distill", *options.split()])
    assert '--kd_diagnostics_steps needs scipy: pip install ".[study]"' in capsys.readouterr().err
