# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The guide can be gone through: its files are written, its commands parse, and those that take seconds run."""

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from documents import blocks, check_command, commands_in

from trl_tempkd import cli
from trl_tempkd.commands import distill, sweep, tune
from trl_tempkd.errors import UsageError
from trl_tempkd.row_formats import problem_of


ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs/guide"
STEPS = sorted(GUIDE.glob("[0-9]*.md"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two folders below one that has `tests`, as `outputs/guide` is."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "outputs/guide"
    path.mkdir(parents=True)
    monkeypatch.chdir(path)
    return path


def scripts_in(text: str) -> list[str]:
    """The Python that a page's commands run."""
    found = [
        code
        for block in blocks(text, "bash")
        for code in re.findall(r"python - <<'EOF'\n(.*?)^EOF", block, re.S | re.M)
    ]
    return [code for code in found if "adapter" not in code and "pipeline" not in code]  # which need a training


def write_files(text: str) -> list[str]:
    """Write the files that a page's commands write, and name them."""
    found = re.findall(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF", text, re.S | re.M)
    for name, content in found:
        Path(name).write_text(content, encoding="utf-8")
    return [name for name, _ in found]


def test_the_guide_from_start_to_end(folder, capsys):
    written = []
    for step in STEPS:
        text = step.read_text(encoding="utf-8")
        written += write_files(text)
        for code in scripts_in(text):
            exec(compile(code, step.name, "exec"), {})
        commands = commands_in("\n".join(blocks(text, "bash")))
        assert commands, step
        for command in commands:
            check_command(command)
            if command[1] == "student":
                assert cli.main(command[1:]) == 0
        if step.name.startswith("1_"):
            # What the page shows is what is said
            values, _, _ = distill.make_parser().parse(commands[0][2:], launched=True)
            with pytest.raises(UsageError) as refused:
                distill.main(*values)
            assert f"trl-tempkd distill: error: {refused.value}" in text
    assert written == ["distill.yaml", "sweep.yaml", "tune.yaml"]
    assert len(Path("rows/test.jsonl").read_text(encoding="utf-8").splitlines()) == 64
    assert (folder / "student/model.safetensors").is_file()

    # The recipes name rows and a student that are there
    capsys.readouterr()
    for command in (sweep, tune):
        name = command.__name__.rsplit(".", 1)[1]
        command.main(command.make_parser().parse_args(["--config", f"{name}.yaml", "--dry_run"]))
    assert "# 12 cells" in capsys.readouterr().out
    small = "--max_steps 1 --per_device_train_batch_size 2 --max_length 32 --do_eval false --disable_tqdm true"
    values, _, _ = distill.make_parser().parse(["--config", "distill.yaml", *small.split()], launched=True)
    distill.main(*values)
    said = capsys.readouterr().out
    for name in ("student:", "teacher:", "data:", "objective:", "output:", "step 1/1", "Model saved to distilled"):
        assert name in said
    # The numbers that the page explains are those that there are
    numbers = yaml.safe_load(re.search(r"step 1/1: (\{'loss'.*\})", said)[1])
    (shown,) = blocks((GUIDE / "3_train.md").read_text(encoding="utf-8"), "text")
    assert said.rstrip().splitlines()[-1] == shown.rstrip().splitlines()[-1]  # with the command that is next
    assert {*re.findall(r"'(\w+)':", shown.split("\nstep 60/60: ")[1])} <= {*numbers}


def test_every_page_leads_to_the_next():
    pages = [GUIDE / "index.md", *STEPS]
    for page, following in zip(pages, STEPS, strict=False):
        title = following.read_text(encoding="utf-8").split("\n")[0]
        question = title.removeprefix("# ").split(". ", 1)[1]
        assert f"Next: [{question}]({following.name})" in page.read_text(encoding="utf-8")
        assert f"[{question}]({following.name})" in pages[0].read_text(encoding="utf-8")


def test_no_output_is_missing():
    for page in STEPS:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text
        assert blocks(text, "text"), page


def test_the_notebook_runs(folder, monkeypatch):
    """Its code in one namespace, as a kernel runs it: a server of Jupyter isn't needed for that."""
    notebook = json.loads((GUIDE / "first_hour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum("max_steps=40" in cell for cell in cells) == 1
    namespace: dict = {"__name__": "__main__"}
    try:
        for cell in cells:
            cell = cell.replace("max_steps=40", "max_steps=4").replace("logging_steps=10", "logging_steps=2")
            exec(compile(cell, "first_hour.ipynb", "exec"), namespace)
    finally:
        datasets.enable_progress_bars()
    assert namespace["after"]["eval_kl_tau1"] < namespace["before"]["eval_kl_tau1"]
    assert (folder / "distilled/model.safetensors").is_file()
    for cell in notebook["cells"]:
        outputs = json.dumps(cell.get("outputs", []))
        assert "error" not in outputs and "/work" not in outputs and "stderr" not in outputs


ROWS = {
    "question and answer": {"question": "What is a cat?", "answer": "An animal."},
    "Alpaca": {"instruction": "Say it.", "input": "a {word}", "output": "word"},
    "ShareGPT": {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]},
    "a conversation": {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}


@pytest.mark.parametrize("name", ROWS)
def test_conversions_of_the_page_of_data(name):
    """docs/data.md, "Rows in another format": each refused before, and taken after."""
    code = next(
        block for block in blocks((ROOT / "docs/data.md").read_text("utf-8"), "python") if f"# {name}" in block
    )
    code = next(part for part in re.split(r"^(?=# )", code, flags=re.M) if part.startswith(f"# {name}"))
    code = re.sub(r"^dataset\.", "converted = dataset.", code, count=1, flags=re.M)
    namespace = {"dataset": datasets.Dataset.from_list([ROWS[name]])}
    assert problem_of(ROWS[name]) is not None
    exec(compile(code, "data.md", "exec"), namespace)
    (row,) = namespace["converted"]
    assert problem_of(row) is None
    told = json.dumps(row)
    for text in ("What is a cat?", "An animal.", "Say it.", "a {word}", "A cat."):
        assert (text in told) == (text in json.dumps(ROWS[name]))
    assert {*namespace["converted"].column_names} <= {"prompt", "completion", "messages"}


def test_families_of_chat_templates(monkeypatch):
    """docs/chat_templates.md: which work with `assistant_only_loss`, by the templates that TRL has."""
    import trl.chat_template_utils as templates
    from transformers import AutoTokenizer

    from trl_tempkd.tiny import tiny_model_path

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path("student"))
    text = (ROOT / "docs/chat_templates.md").read_text(encoding="utf-8")
    ours, marked, refused = (
        re.search(rf"^\| ([^|]+) \| {says}", text, flags=re.M)[1].split(", ")
        for says in ("works: TRL", "works: the template", "refused: use")
    )
    named = {
        **{"cohere": "Cohere", "cohere2": "Cohere 2", "deepseek_r1_distill": "DeepSeek-R1-Distill"},
        **{"deepseekv3": "DeepSeek-V3", "gemma": "Gemma", "gemma3": "Gemma 3", "glm4moe": "GLM-4-MoE"},
        **{"gptoss": "GPT-OSS", "lfm2": "LFM2", "llama3": "Llama 3", "nemotron_3_nano": "Nemotron 3"},
        **{"phi3": "Phi-3", "phi3_5": "Phi-3.5", "qwen2_5": "Qwen2.5", "qwen3": "Qwen3", "qwen3_6": "Qwen3.6"},
        **{"qwen3_instruct_2507": "Qwen3-2507", "qwen3_5_think": "Qwen3.5", "qwen3_8": "Qwen3.8"},
        **{"lfm2_2_5": "LFM2.5", "gemma4": "Gemma 4", "llama3_1": "Llama 3.1", "llama3_2": "Llama 3.2"},
    }
    found: dict[str, list[str]] = {"ours": [], "marked": [], "refused": []}
    for file, name in named.items():
        tokenizer.chat_template = getattr(templates, f"{file}_chat_template")
        try:
            kind = "marked" if templates.get_training_chat_template(tokenizer) is None else "ours"
        except ValueError:
            kind = "refused"
        found[kind].append(name)
    assert [sorted(names) for names in found.values()] == [sorted(ours), sorted(marked), sorted(refused)]


@pytest.mark.parametrize("page", ["chat_templates.md"])
def test_python_of_the_page_runs(page, capsys):
    convert, look = blocks((ROOT / "docs" / page).read_text(encoding="utf-8"), "python")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    namespace = {"dataset": datasets.Dataset.from_list([{"messages": messages}])}
    exec(f"converted = {convert}", namespace)
    assert namespace["converted"][0] == {"prompt": messages[:1], "completion": messages[1:]}
    exec(compile(look, page, "exec"), {})
    said = re.search(r"It prints `(.*?)`:", (ROOT / "docs" / page).read_text(encoding="utf-8"))[1]
    assert capsys.readouterr().out.strip() == said
