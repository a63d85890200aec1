# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Divergences and temperature rules that others write: registered in Python, by `--import`, and by a package."""

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from standins import save_pair

from trl_tempkd import KDConfig, cli, extensions, kd_loss, register_divergence, register_temperature_rule
from trl_tempkd.divergences import DIVERGENCES, check_divergence, forward_kl
from trl_tempkd.errors import UsageError
from trl_tempkd.losses import chunked_kd_loss
from trl_tempkd.objectives import OBJECTIVES, own_sources
from trl_tempkd.own import _OBJECTIVES, divergence_name
from trl_tempkd.study.runs.cell import Cell, finished
from trl_tempkd.study.sweep import cells, read_recipe


pytestmark = pytest.mark.usefixtures("own_forgotten")
ROOT = Path(__file__).parent.parent
FILE = '''
"""Two that anybody might write."""
from beside import HALF
from trl_tempkd import register_divergence, register_temperature_rule

@register_divergence("hellinger")
def hellinger(log_p, log_q, *, weight: float = 1.0):
    """weight sum (sqrt p - sqrt q)^2. Source: Hellinger, 1909."""
    return weight * ((HALF * log_p).exp() - (HALF * log_q).exp()).square().sum(-1)

@register_temperature_rule("doubled")
def doubled(z, v, tau_s, tau_t):
    return 2 * tau_s, 2 * tau_t
'''


def hellinger(log_p, log_q, *, weight: float = 1.0):
    return weight * ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1)


def of_target(log_p, log_q, target):
    return -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def doubled(z, v, tau_s, tau_t):
    return 2 * tau_s, 2 * tau_t


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)


@pytest.mark.parametrize("given", ["name", "function"])
def test_both_losses_take_it(given, tensors):
    """As the formula, softened, and with the gradient of autograd."""
    if given == "name":
        register_divergence("hellinger", hellinger)
    z, v = tensors
    z.requires_grad_()
    tau, divergence = 1.7, "hellinger" if given == "name" else hellinger
    log_p, log_q = (v / tau).log_softmax(-1), (z / tau).log_softmax(-1)
    wanted = 3 * ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1)
    options = {"divergence": divergence, "divergence_kwargs": {"weight": 3.0}}
    options |= {"student_temperature": tau, "teacher_temperature": tau}
    torch.testing.assert_close(kd_loss(z, v, **options), wanted, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(wanted.sum(), z)
    eye = torch.eye(5, dtype=torch.float64)
    chunked = chunked_kd_loss(z, eye, v, eye, normalizer=1.0, chunk_size=4, **options)
    torch.testing.assert_close(chunked.loss, wanted.sum().detach(), rtol=1e-12, atol=1e-12, check_dtype=False)
    (found,) = torch.autograd.grad(chunked.loss, z)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


def test_it_may_look_at_the_target(tensors):
    z, v = tensors
    labels = torch.tensor([0, 1, 2, -100, 4, 0])
    found = kd_loss(z, v, divergence=of_target, labels=labels)
    wanted = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    torch.testing.assert_close(found, wanted)
    with pytest.raises(UsageError, match="`labels` is required: of_target looks at the target token"):
        kd_loss(z, v, divergence=of_target)


@pytest.mark.parametrize("given", ["doubled", doubled])
def test_rules_too(given, tensors):
    register_temperature_rule("doubled", doubled)
    z, v = tensors
    found = kd_loss(z, v, temperature_rule=given, student_temperature=1.5, teacher_temperature=1.5)
    torch.testing.assert_close(found, kd_loss(z, v, student_temperature=3.0, teacher_temperature=3.0))


def test_a_configuration_takes_functions(tmp_path):
    here = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    args = KDConfig(**here, divergence=hellinger, kd_temperature_rule=doubled)
    assert (args.divergence, args.kd_temperature_rule) == ("hellinger", "doubled")
    json.dumps(args.to_dict())
    assert KDConfig(**here, divergence=forward_kl).divergence == "forward_kl"


def test_a_training_with_it(make_trainer):
    """The loss that is logged is that of the formula, and the resumed run is told of a source that has changed."""
    trainer = make_trainer(divergence=hellinger, max_steps=2)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
    wanted = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert own_sources({"divergence": "hellinger"}) == {"hellinger": wanted}
    from trl_tempkd.checkpoints.description import options_of

    assert options_of(trainer.args)["source"] == {"hellinger": wanted}


@pytest.mark.parametrize(
    ("name", "function", "said"),
    [
        ("forward_kl", hellinger, "The divergence 'forward_kl' comes with trl_tempkd"),
        ("minillm", hellinger, "The objective 'minillm' comes with trl_tempkd"),
        ("my divergence", hellinger, "must be letters, digits and underscores, got 'my divergence'"),
        ("mine", lambda log_p, log_q, weight: log_p, r"it takes \(log_p, log_q, weight\)"),
        ("mine", lambda log_p: log_p, r"it takes \(log_p\)"),
        ("mine", lambda log_p, log_q: log_p - log_q, r"it gave shape \(2, 3, 5\)"),
        ("mine", lambda log_p, log_q: (log_p - log_q).sum(), r"it gave shape \(\)"),
        ("mine", lambda log_p, log_q: (log_q - 1).sqrt().sum(-1), "isn't finite"),
    ],
)
def test_what_is_no_divergence(name, function, said):
    with pytest.raises(UsageError, match=said):
        register_divergence(name, function)
    assert name not in DIVERGENCES or name == "forward_kl"


def test_the_names_of_objectives():
    assert {*_OBJECTIVES} == {*OBJECTIVES} - {*DIVERGENCES}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda z, v: (z, v), r"it takes \(z, v\)"),
        (lambda z, v, s, t: s, "it gave"),
        (lambda z, v, s, t: (z, v), r"it gave \(torch.Size\(\[2, 3, 5\]\)"),
        (lambda z, v, s, t: (0 * s, t), "isn't positive"),
    ],
)
def test_what_is_no_rule(function, said):
    with pytest.raises(UsageError, match=said):
        register_temperature_rule("mine", function)


def test_its_own_error_keeps_its_traceback():
    def wrong(log_p, log_q):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        register_divergence("wrong", wrong)


def test_two_of_one_name():
    """That of a cell of a notebook that is run again is the same one; another is not."""
    namespace = {}
    for factor in (1, 2):
        exec(f"def of_a_cell(log_p, log_q):\n    return {factor} * (log_p - log_q).square().sum(-1)", namespace)
        register_divergence("of_a_cell", namespace["of_a_cell"])
    assert DIVERGENCES["of_a_cell"] is namespace["of_a_cell"]
    with pytest.raises(UsageError, match=r"is registered from .* already"):
        register_divergence("of_a_cell", hellinger)
    for nameless in (lambda log_p, log_q: 0, partial(hellinger, weight=2.0)):
        with pytest.raises(UsageError, match="without a name of its own can't be a divergence"):
            divergence_name(nameless)
    register_divergence("twice", partial(hellinger, weight=2.0))


def test_an_unknown_name_says_what_to_do():
    with pytest.raises(UsageError, match="registered with `register_divergence`, in a file that `--import` names"):
        check_divergence("hellinger")


@pytest.mark.parametrize("argument", ["mine.py", "mine", "./mine.py", "absolute"])
def test_the_list_has_it(argument, mine, capsys):
    argument = str(mine) if argument == "absolute" else argument
    assert cli.main(["divergences", "--format", "markdown", "--import", argument]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `hellinger`")]
    (line,) = lines
    assert f"| `weight=1.0` | registered from {mine} |" in line and "(sqrt p - sqrt q)^2" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--import", "absent.py"], "--import absent.py: there is no such file"),
        (["--import=absent"], "--import absent: there is no such module, nor a file absent.py here"),
        (["--import"], "--import needs a Python file or module behind it"),
        (["--import", "--format"], "--import needs a Python file or module behind it"),
    ],
)
@pytest.mark.parametrize("command", ["divergences", "distill"])
def test_what_is_no_module(command, arguments, said, mine, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import absent_package", "--import MINE: No module named 'absent_package'."),
        ("from json import absent_name", "--import MINE: cannot import name 'absent_name' from 'json'"),
        ("def f(x) return x", "--import MINE: MINE, line 1: expected ':'."),
        ("\n\nif True:\nx = 1", "--import MINE: MINE, line 4: expected an indented block"),
    ],
)
def test_a_module_that_can_not_be_imported(mine, capsys, code, said):
    mine.write_text(code)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["divergences", "--import", "mine.py"])
    (line,) = capsys.readouterr().err.splitlines()
    assert said.replace("MINE", str(mine)) in line


def test_what_a_module_raises_is_its_own(mine):
    mine.write_text("{}['key']")
    with pytest.raises(KeyError, match="key"):
        cli.main(["divergences", "--import", "mine"])


def test_entry_points_of_a_package(mine, monkeypatch):
    """They are looked for when a name isn't known, so that a script needn't import the package."""
    entry = EntryPoint("mine", "mine", "trl_tempkd")
    monkeypatch.setattr(extensions, "entry_points", lambda group: [entry] if group == "trl_tempkd" else [])
    monkeypatch.setattr(extensions, "_installed", extensions._installed.__wrapped__)
    monkeypatch.syspath_prepend(mine.parent)
    check_divergence("hellinger", {"weight": 2.0})


def command_of(tmp_path: Path, make_model, tokenizer, prompt_dataset) -> dict[str, object]:
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    return {
        "model_name_or_path": str(student),
        "teacher_model_name_or_path": str(teacher),
        "dataset_name": str(tmp_path / "data"),
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 1,
    }


def test_a_recipe_names_it(mine, make_model, tokenizer, prompt_dataset):
    """`trl-tempkd distill` trains in a process of its own, which imports it too."""
    import yaml

    options = command_of(mine.parent, make_model, tokenizer, prompt_dataset)
    options |= {"import": "mine.py", "divergence": "hellinger", "kd_temperature_rule": "doubled", "output_dir": "out"}
    (mine.parent / "recipe.yaml").write_text(yaml.safe_dump(options))
    line = [sys.executable, "-m", "trl_tempkd", "distill", "--config", "recipe.yaml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(line, cwd=mine.parent, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (record,) = (mine.parent / "out").glob("checkpoint-1/distillation.json")
    hashed = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert json.loads(record.read_text())["target"]["source"] == {"hellinger": hashed, "doubled": hashed}


def test_a_sweep_with_it(mine, make_model, tokenizer, prompt_dataset, monkeypatch):
    """Its cells say which source they were reached with, and those of another one are not mixed with them."""
    import yaml

    base = command_of(mine.parent, make_model, tokenizer, prompt_dataset)
    recipe = {"import": ["mine"], "base": base, "grid": {"divergence": ["hellinger", "forward_kl"], "seed": [1]}}
    recipe |= {"evaluation": {"rows": 2, "max_new_tokens": 2, "diagnostics_rows": 0}, "results_dir": "results"}
    (mine.parent / "sweep.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert cli.main(["sweep", "--config", "sweep.yaml"]) == 0
    result = json.loads(next(Path("results").glob("hellinger*.json")).read_text())
    hashed = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert result["settings"]["own"] == {"hellinger": hashed}
    assert "own" not in json.loads(next(Path("results").glob("forward_kl*.json")).read_text())["settings"]
    (cell,) = (cell for cell in cells(read_recipe("sweep.yaml")) if "hellinger" in cell.name)
    assert finished(Path("results"), cell) is not None
    changed = Cell(**{**cell.settings, "own": {"hellinger": "0"}})
    with pytest.raises(UsageError, match=f"was reached with hellinger: {hashed}, and the recipe now says 0"):
        finished(Path("results"), changed)
