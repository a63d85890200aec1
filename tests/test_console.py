# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a training says in the terminal."""

import io
import json
import re
import shlex
import shutil
import sys

import pytest
from datasets import DatasetDict
from standins import save_pair
from transformers import PrinterCallback, ProgressCallback

from trl_tempkd import cli, console, training
from trl_tempkd.commands import distill
from trl_tempkd.processes import VERBOSITY


@pytest.fixture
def run(tmp_path, make_model, tokenizer, prompt_dataset, monkeypatch, capsys):
    """`run(*flags)`: what `trl-tempkd distill` prints, in this process."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    options = (
        f"--model_name_or_path {student} --teacher_model_name_or_path {teacher} --dataset_name {tmp_path / 'data'}"
    )
    options += f" --output_dir {tmp_path / 'out'} --max_steps 3 --logging_steps 1 --use_cpu --bf16 false"
    options += " --report_to none --eval_strategy no --save_steps 2"
    monkeypatch.setattr("trl_tempkd.job.end_with_launcher", lambda: None)
    capsys.readouterr()

    def run(*flags: str) -> str:
        values, _, _ = distill.make_parser().parse([*options.split(), *flags], launched=True)
        training.train(*values)
        return capsys.readouterr().out.replace(str(tmp_path), "HERE")

    return run


def test_a_header_lines_and_an_ending(run):
    options = ["--do_eval", "true", "--lmbda", "0.5", "--max_new_tokens", "4"]
    said = run(*options)
    header, steps = said.split("step 1/3")[0], re.findall(r"^step .*", said, re.MULTILINE)
    names = [line.split(":")[0] for line in header.splitlines()]
    assert names == ["student", "teacher", "data", "objective", "output"]
    assert "HERE/student: " in header and "parameters" in header and "8 rows, 8 held out" in header
    assert "tau 2.0" in header and "the student's own text in 50% of the steps" in header
    logged = [line for line in steps if "'loss'" in line]
    assert len(logged) == 3
    assert re.match(r"step 1/3, \d:\d\d:\d\d left: \{'loss'", logged[0]) and " left" not in logged[2]
    text = "\n".join(said.splitlines()[-4:])
    assert re.search(r"KL at tau 1 from the teacher [\d.e-]+ -> [\d.e-]+ nats a token, agreement [\d.]+% -> ", text)
    assert "(training text and the student's own, mixed, steps 1 and 3)" in text
    assert "On held-out text: KL at tau 1" in text
    assert (
        "Model saved to HERE/out. Next: trl-tempkd evaluate --model_name_or_path HERE/out "
        "--teacher_model_name_or_path HERE/teacher --dataset_name HERE/data --output_dir HERE/out/evaluation\n"
    ) in said
    assert "***** train metrics" not in said
    assert "Going on from HERE/out/checkpoint-3." in run(*options, "--resume_from_checkpoint", "auto")


NEXT = "Next: trl-tempkd evaluate --model_name_or_path HERE/out --teacher_model_name_or_path HERE/teacher "


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--vocabulary_alignment bytes", f"{NEXT[: NEXT.index('--teacher')]}--dataset_name HERE/data "),
        ("--teacher_model_revision main", f"{NEXT}--teacher_model_revision main --dataset_name HERE/data "),
        ("--dataset_test_split train", f"{NEXT}--dataset_name HERE/data --dataset_test_split train "),
        (
            "--dataset_name HERE/rows.jsonl",
            NEXT.replace(":", ", with rows that it wasn't trained on in the place of HERE/rows.jsonl:", 1)
            + "--dataset_name HERE/rows.jsonl ",
        ),
        (
            "--dataset_name HERE/written",
            NEXT.replace(":", ", with rows that it wasn't trained on in the place of HERE/written:", 1)
            + "--dataset_name HERE/written ",
        ),
    ],
)
def test_the_command_that_is_next_can_be_run(run, tmp_path, prompt_dataset, monkeypatch, flags, said):
    """As it is printed: it names all that the evaluation can't guess, and no teacher that it couldn't compare."""
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompt_dataset), encoding="utf-8")
    (tmp_path / "written").mkdir()
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "written/train.jsonl")
    (tmp_path / "written/_failed.jsonl").touch()
    last = run(*flags.replace("HERE", str(tmp_path)).split(), "--max_steps", "1").splitlines()[-1]
    assert last == f"Model saved to HERE/out. {said}--output_dir HERE/out/evaluation"
    command = shlex.split(last.split("trl-tempkd ")[1].replace("HERE", str(tmp_path)))
    assert cli.main([*command, "--seeds", "--greedy", "false", "--batch_size", "2"]) == 0
    assert (tmp_path / "out/evaluation/results.json").is_file()


def test_an_adapter_is_trained(run):
    assert re.search(r"[\d.]+ k parameters, of which \d+ are trained", run("--use_peft", "--lora_r", "4"))


@pytest.mark.parametrize(("verbosity", "said"), [("quiet", ""), ("verbose", "***** train metrics *****")])
def test_less_and_more(verbosity, said, run, monkeypatch):
    import transformers

    before = transformers.utils.logging.get_verbosity()
    monkeypatch.setenv(VERBOSITY, verbosity)
    try:
        found = run()
    finally:
        monkeypatch.delenv(VERBOSITY)
        console.set_verbosity()
        transformers.utils.logging.set_verbosity(before)
    assert said in found
    assert bool(found) == bool(said)


@pytest.mark.parametrize("flag", ["--quiet", "--verbose"])
def test_the_flags_reach_every_process(flag, monkeypatch):
    monkeypatch.delenv(VERBOSITY, raising=False)
    seen = []
    monkeypatch.setattr(cli, "run", lambda command, argv: seen.append((command.name, argv)) or 0)
    assert cli.main(["distill", "--max_steps", "2", flag]) == 0
    assert seen == [("distill", ["--max_steps", "2"])]
    assert cli.os.environ.pop(VERBOSITY) == flag.lstrip("-")


def test_a_bar_in_a_terminal(make_trainer, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    trainer = make_trainer(max_steps=2, logging_steps=1, disable_tqdm=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    console.set_progress(trainer)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert console.Bar in kinds and not {ProgressCallback, PrinterCallback, console.Lines} & {*kinds}
    trainer.train()
    last = terminal.getvalue().split("\r")[-1]
    assert "2/2" in last and "loss=" in last and "kl_tau1=" in last
    assert "grad_norm" not in terminal.getvalue()
