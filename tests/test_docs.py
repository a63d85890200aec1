# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The documents are true: their Python runs, their commands and recipes parse, and the names in them exist."""

import dataclasses
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from documents import blocks, check_command, commands_in
from standins import save_pair

import trl_tempkd
from trl_tempkd import DIVERGENCES, KDConfig, chunked_kd_loss, kd_loss
from trl_tempkd.caching import COUNT, TAUS
from trl_tempkd.cli import EXAMPLES
from trl_tempkd.commands import cache, diagnose, distill, divergences, evaluate, report, student, sweep, tune
from trl_tempkd.objectives.temperatures import QUANTILES
from trl_tempkd.study.declared import read_hypotheses
from trl_tempkd.teachers.layouts import MODES, make_layout
from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES
from trl_tempkd.trl_names import TRL_NAMES


ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
GUIDE = [
    f"docs/guide/{path.name}" for path in sorted((ROOT / "docs/guide").glob("*.md"))
]  # tests/test_guide.py runs it
PAGES += GUIDE
TEXTS = {
    **{page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES},
    "trl-tempkd --help": EXAMPLES,
    "trl-tempkd distill --help": distill.DESCRIPTION + "\n" + distill.EPILOG,
    "trl-tempkd student --help": student.EPILOG,
    "trl-tempkd cache --help": cache.EPILOG,
    "trl-tempkd evaluate --help": evaluate.DESCRIPTION + "\n" + evaluate.EPILOG,
    "trl-tempkd diagnose --help": diagnose.EPILOG,
    "trl-tempkd sweep --help": sweep.EPILOG,
    "trl-tempkd tune --help": tune.EPILOG,
    "trl-tempkd report --help": report.EPILOG,
    "trl-tempkd divergences --help": divergences.EPILOG,
    "examples/distill.py": (ROOT / "examples/distill.py").read_text(encoding="utf-8"),
    **{
        path.relative_to(ROOT).as_posix(): re.sub(r"(?m)^# ?", "", path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "recipes").glob("*/*.yaml"))
    },
}


PYTHON = {
    f"{page}-{number}": code
    for page in ("README.md", "docs/on_policy.md", "docs/loss.md")
    for number, code in enumerate(blocks(TEXTS[page], "python"))
}


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON)
def test_python_runs(code, tmp_path, monkeypatch, make_model, tokenizer, chat_dataset):
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: chat_dataset)
    small = 'max_steps=2, max_length=48, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, '
    code = code.replace("KDConfig(", f"KDConfig({small}").replace("max_new_tokens=256", "max_new_tokens=8")
    code = code.replace("Qwen/Qwen3-0.6B", student).replace("Qwen/Qwen3-8B", teacher)
    exec(compile(code, "the page", "exec"), {})


@pytest.mark.parametrize("source", [source for source in TEXTS if source not in GUIDE])
@pytest.mark.usefixtures("own_forgotten")
def test_commands_parse(source, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for command in commands_in(TEXTS[source]):
        check_command(command)


@pytest.mark.parametrize("source", [source for source in TEXTS if source not in GUIDE])
@pytest.mark.usefixtures("own_forgotten")
def test_recipes_in_documents_parse(source, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(TEXTS[source], "yaml"):
        if "hypotheses" in (found := yaml.safe_load(block)):
            assert read_hypotheses(found["hypotheses"], source)
            continue
        (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
        arguments = ["--config", str(tmp_path / "recipe.yaml"), "--use_cpu", "--bf16", "false"]
        values, _, _ = distill.make_parser().parse(arguments)
        for key, value in yaml.safe_load(block).items():
            assert key == "import" or getattr(values[1], key) == value


def test_the_page_of_own_objectives_shows_the_example():
    file = (ROOT / "examples/my_divergence.py").read_text(encoding="utf-8")
    assert blocks(TEXTS["docs/your_own_objective.md"], "python")[0] in file


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    text = TEXTS[page]
    for path in re.findall(r"\b(?:trl_tempkd|recipes|examples|tests|docs)/[\w./]*\w", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (?:\w+=\S+ )*(\w+)", TEXTS[page], flags=re.MULTILINE)) <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_another_python_has_an_environment_of_its_own():
    def environment_of(*arguments):
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV", "MAKEFLAGS")}
        command = ["make", "--dry-run", "--always-make", *arguments, "test"]
        done = subprocess.run(command, cwd=ROOT, env=inherited, capture_output=True, text=True, check=True)
        return re.search(r"(\S+)/bin/python -m pytest", done.stdout).group(1)

    assert environment_of() == ".venv"
    assert environment_of("PYTHON=/opt/python3.13") == ".venv-python3.13"
    assert environment_of("PYTHON=python3.12", "VENV=elsewhere") == "elsewhere"


@pytest.mark.parametrize("page", PAGES)
def test_fields_exist(page):
    fields = {field.name for field in dataclasses.fields(KDConfig)}
    # Names of ours that are not options: the loss, its arguments, and what is logged.
    others = {"kd_loss", "chunked_kd_loss", *inspect.signature(chunked_kd_loss).parameters}
    others |= {f"kd_temperature_{quantile}" for quantile in QUANTILES}
    others |= {*TRL_NAMES} if page == "docs/from_trl.md" else set()
    named = set(re.findall(r"\b(?:chunked_)?(?:\w+_)?kd_\w+|\bteacher_model_\w+|\bdivergence_\w+", TEXTS[page]))
    assert {name.removeprefix("eval_") for name in named} - fields - others == set()


def test_defaults_of_the_options():
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", TEXTS["docs/options.md"], flags=re.MULTILINE)
    assert len(rows) > 10
    for fields, default in rows:
        for name, value in zip(re.findall(r"`(\w+)`", fields), default.split(", ") * 2, strict=False):
            expected = getattr(KDConfig, name)
            assert value.strip("`") == ("none" if expected is None else str(expected)), name


def test_the_readme_is_short():
    assert TEXTS["README.md"].count("\n") < 120


@pytest.mark.parametrize("page", ["README.md", "docs/commands.md", "docs/evaluation.md", "docs/diagnostics.md"])
def test_results_have_a_folder(page):
    """Without one they go into the folder where one is, and the next evaluation finds another's results there."""
    commands = [c for c in commands_in("\n".join(blocks(TEXTS[page], "bash"))) if c[1] in ("evaluate", "diagnose")]
    assert commands
    for command in commands:
        assert "--output_dir" in command, command


def test_the_file_tree_exists():
    tree = re.search(r"^trl_tempkd/\n(.*?)```", TEXTS["CONTRIBUTING.md"], flags=re.DOTALL | re.MULTILINE)
    inside = re.findall(r"^  (\S+)", tree[1], flags=re.MULTILINE)
    for name in inside:
        assert (ROOT / "trl_tempkd" / name).exists(), name
    package = {path.name for path in (ROOT / "trl_tempkd").iterdir() if path.suffix == ".py" or path.is_dir()}
    shown = {name.rstrip("/") for name in inside}
    assert package - shown == {"__init__.py", "__main__.py", "__pycache__"} & package


def test_the_page_of_divergences_is_up_to_date():
    assert TEXTS["docs/divergences.md"] == divergences.page() + "\n", (
        "run: trl-tempkd divergences --format markdown > docs/divergences.md"
    )


def test_sizes_of_caches():
    """docs/teachers.md, "For 100 million tokens": by what the layouts say of a token."""
    text = TEXTS["docs/teachers.md"].split("\n## ")[0]
    per_token = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| (?:2 H, so )?(\d+)(?: at H = (\d+))? \|", text, flags=re.MULTILINE
    )
    assert [mode for mode, *_ in per_token] == list(MODES)
    for mode, size, hidden in per_token:
        assert make_layout(mode, "bfloat16", int(hidden or 1), 2**17, count=COUNT, taus=TAUS).size == int(size)
    rows = re.findall(r"^\| \S+ \(H (\d+), V (\d+)\) \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 2
    for hidden, size, cells in rows:
        kinds = [("hidden", ()), ("topk", TAUS), ("sampled", TAUS), ("sampled", TAUS[:1])]
        layouts = [
            make_layout(mode, "bfloat16", int(hidden), int(size), count=COUNT, taus=taus) for mode, taus in kinds
        ]
        assert [float(cell) for cell in cells.split("|")] == [round(layout.size / 10) for layout in layouts]


def test_the_command_shows_every_family(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    divergences.main(divergences.make_parser().parse_args([]))
    shown = capsys.readouterr().out
    for rows in divergences.families().values():
        for row in rows:
            assert row.name in shown
            assert row.definition and row.source, row.name
    assert "momentum=0.99" in shown  # a parameter of an objective
    assert "span=20.0" in shown  # and of a rule


def test_the_index_of_papers():
    """docs/paper_index.md: its symbols, recipes and tests exist, and it has every paper of the code."""
    index = TEXTS["docs/paper_index.md"]
    rows = [
        row for row in re.findall(r"^\| .* \|$", index, flags=re.MULTILINE) if not row.startswith(("| paper", "| ---"))
    ]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`([^`]+)`", row)
        symbols = [name for name in named if "/" not in name]
        assert symbols, row
        for symbol in symbols:
            pkgutil.resolve_name(f"trl_tempkd.{symbol}")
        tests = [name for name in named if name.startswith("tests/")]
        assert tests, row
        for path, *parts in (test.split("::") for test in tests):
            text = (ROOT / path).read_text(encoding="utf-8")
            for part in parts:
                assert re.search(rf"^\s*(?:def|class) {part}\b", text, flags=re.MULTILINE), (path, part)
        for name in set(named) - {*symbols, *tests}:
            assert name.startswith("recipes/") and (ROOT / name).is_file(), name
    files = sorted((ROOT / "trl_tempkd").rglob("*.py"))
    cited = {paper for path in files for paper in re.findall(r"(?i)arxiv[ :]*(\d{4}\.\d{5})", path.read_text("utf-8"))}
    assert len(cited) > 15
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", index))


def test_what_is_said_of_trl():
    """docs/temperature.md, "Elsewhere in TRL 1.16"."""
    from trl import DistillationConfig, DistillationTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    assert "temperature" in inspect.signature(GKDTrainer.generalized_jsd_loss).parameters
    assert "temperature" not in inspect.getsource(GKDTrainer.compute_loss)
    assert GKDConfig.temperature == 0.9
    assert DistillationConfig.temperature == 1.0
    source = inspect.getsource(DistillationTrainer)
    assert '"temperature": self.temperature' in source  # generation
    assert source.count("temperature=self.temperature") >= 2  # vLLM and the loss


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == trl_tempkd.__version__


def test_adding_a_divergence(tmp_path, monkeypatch, capsys, make_model, tokenizer, chat_dataset):
    """CONTRIBUTING.md: one function and one line, and everything takes it from there."""
    code, _ = blocks(TEXTS["CONTRIBUTING.md"], "python")
    namespace: dict = {}
    exec(inspect.cleandoc("\n" + code), namespace)
    monkeypatch.setitem(DIVERGENCES, "squared_hellinger", namespace["squared_hellinger"])

    # the losses: zero where both are equal, and the same with and without logits in full
    torch.manual_seed(0)
    hidden_s, hidden_t, weight_s, weight_t = (
        torch.randn(s, dtype=torch.float64) for s in ((6, 4), (6, 5), (9, 4), (9, 5))
    )
    hidden_s.requires_grad_()
    options = {"divergence": "squared_hellinger", "student_temperature": 3.0, "teacher_temperature": 3.0}
    dense = kd_loss(hidden_s @ weight_s.T, hidden_t @ weight_t.T, reduction="mean", **options)
    chunked = chunked_kd_loss(hidden_s, weight_s, hidden_t, weight_t, chunk_size=4, **options).loss
    torch.testing.assert_close(chunked, dense)
    dense_grad, chunked_grad = (torch.autograd.grad(loss, hidden_s)[0] for loss in (dense, chunked))
    torch.testing.assert_close(chunked_grad, dense_grad)
    assert kd_loss(weight_s, weight_s, reduction="sum", **options).abs() < 1e-9

    # the table
    divergences.main(divergences.make_parser().parse_args(["--format", "markdown"]))
    assert "| `squared_hellinger` | scale (1 - sum sqrt(p q)). | `scale=1.0` | Hellinger," in capsys.readouterr().out

    # the command line and the trainer
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    chat_dataset.save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": tmp_path / "data",
        "divergence": "squared_hellinger",
        "divergence_kwargs": '{"scale": 2.0}',
        "output_dir": tmp_path / "output",
        "max_steps": 2,
        "max_length": 48,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    values, _, _ = distill.make_parser().parse(arguments, launched=True)
    distill.main(*values)
    assert (tmp_path / "output/model.safetensors").is_file()


@pytest.mark.usefixtures("float64")
def test_adding_a_temperature_rule(monkeypatch, capsys, make_trainer):
    """CONTRIBUTING.md: one function and one line, and everything takes it from there."""
    _, code = blocks(TEXTS["CONTRIBUTING.md"], "python")
    namespace: dict = {}
    exec(inspect.cleandoc("\n" + code), namespace)
    # TEMPERATURE_RULES is made of ROW_RULES when the file is read
    for family in (ROW_RULES, TEMPERATURE_RULES):
        monkeypatch.setitem(family, "top_share", namespace["top_share"])

    # the losses: as the definition says, clamped, and the same with and without logits in full
    torch.manual_seed(0)
    hidden_s, hidden_t = torch.randn(6, 4, requires_grad=True), torch.randn(6, 5)
    weight_s, weight_t = torch.randn(9, 4), torch.randn(9, 5)
    logits_s, logits_t = hidden_s @ weight_s.T, hidden_t @ weight_t.T
    tau = {"student_temperature": 3.0, "teacher_temperature": 3.0, "rescale": "tau2"}
    rule = {"temperature_rule": "top_share", "temperature_rule_kwargs": {"factor": 4.0}}
    options = {**tau, **rule}
    each = 3.0 * 4.0 ** logits_t.softmax(-1).amax(-1)
    expected = kd_loss(logits_s, logits_t, student_temperature=each, teacher_temperature=each, rescale="tau2")
    torch.testing.assert_close(kd_loss(logits_s, logits_t, **options), expected)
    assert (expected - kd_loss(logits_s, logits_t, **tau)).abs().max() > 1e-3
    dense = kd_loss(logits_s, logits_t, reduction="mean", **options)
    chunked = chunked_kd_loss(hidden_s, weight_s, hidden_t, weight_t, chunk_size=4, metrics=["teacher_tau"], **options)
    torch.testing.assert_close(chunked.loss, dense)
    torch.testing.assert_close(chunked.metrics["teacher_tau"], each)
    dense_grad, chunked_grad = (torch.autograd.grad(loss, hidden_s)[0] for loss in (dense, chunked.loss))
    torch.testing.assert_close(chunked_grad, dense_grad)
    with pytest.raises(ValueError, match="`factor` must be positive, got -1"):
        kd_loss(logits_s, logits_t, temperature_rule="top_share", temperature_rule_kwargs={"factor": -1})

    # the table
    divergences.main(divergences.make_parser().parse_args(["--format", "markdown"]))
    assert "| `top_share` | tau factor^max(p), p the teacher's at tau 1" in capsys.readouterr().out

    # the configuration and the trainer
    with pytest.raises(ValueError, match="`kd_temperature_rule_kwargs` has 'share', but top_share takes factor"):
        KDConfig("unused", use_cpu=True, kd_temperature_rule="top_share", kd_temperature_rule_kwargs={"share": 1})
    trainer = make_trainer(
        kd_temperature_rule="top_share", kd_temperature_rule_kwargs={"factor": 4.0}, max_steps=2, logging_steps=1
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:  # its 2.0 is the default of `kd_temperature`
        assert 2.0 < entry["kd_temperature_q10"] < entry["kd_temperature_q90"] <= 8.0


def test_extras_are_installed_as_the_package_is():
    """It isn't on PyPI, so `pip install 'trl-tempkd[...]'` finds nothing."""
    for path in [
        *(ROOT / "trl_tempkd").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.yaml"),
        *(ROOT / "docs").rglob("*.md"),
    ]:
        assert "install 'trl-tempkd[" not in path.read_text(encoding="utf-8"), path
