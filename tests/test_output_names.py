# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where results go is called `output_dir` in every command, and what it was called before is still taken."""

import importlib
import sys
from pathlib import Path

import pytest
import yaml

from trl_tempkd import cli
from trl_tempkd.errors import UsageError
from trl_tempkd.paths import output_file
from trl_tempkd.study.sweep import read_recipe
from trl_tempkd.study.tune.recipe import read_tuning


PAIR = ["--model_name_or_path", "tiny:student", "--teacher_model_name_or_path", "tiny:teacher"]
DATA = ["--dataset_name", "tiny"]
CPU = ["--use_cpu", "--bf16", "false"]
# What each command needs besides, how the folder was called before, and what is found under which name of its parser
COMMANDS = {
    "distill": ([*PAIR, *DATA, *CPU], "--output_dir", "output_dir"),
    "cache": ([*PAIR, *DATA, *CPU], "--output", "output"),
    "generate": ([*PAIR[2:], *DATA], "--output", "output"),
    "student": (["--from", "tiny:teacher", "--num_layers", "2"], "--output", "output"),
    "sweep": (["--config", "recipes/sweeps/tiny.yaml"], "--results_dir", "results_dir"),
    "tune": (["--config", "recipes/tune/tiny.yaml"], "--results_dir", "results_dir"),
}
FILES = {
    "evaluate": ([*PAIR, *DATA], "results.json"),
    "diagnose": ([*PAIR, *DATA], "diagnostics.csv"),
    "report": (["results/tiny"], "report.html"),
}


def parsed(command, *args):
    """By name what the parser of a command makes of a command line."""
    parser = importlib.import_module(f"trl_tempkd.commands.{command}").make_parser("trl-tempkd")
    if not hasattr(parser, "parse_here"):
        return vars(parser.parse_args(list(args)))
    values, _, _ = parser.parse(list(args), launched=True)
    return {name: value for part in reversed(values) for name, value in vars(part).items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder(command):
    more, before, name = COMMANDS[command]
    for flag in ("--output_dir", before):
        assert parsed(command, *more, flag, "here")[name] == "here"
        assert parsed(command, *more, f"{flag}=here")[name] == "here"


@pytest.mark.parametrize("command", FILES)
def test_a_file(command, monkeypatch):
    """The folder, with the usual name in it, or the file itself. Both are a contradiction."""
    more, usual = FILES[command]
    found = parsed(command, *more, "--output_dir", "here")
    if command == "report":  # which says later where its page is
        assert (found["output_dir"], parsed(command, *more, "--output", "x.html")["output"]) == ("here", "x.html")
        with pytest.raises(SystemExit):
            parsed(command, *more, "--output_dir", "here", "--output", "x.html")
        return
    assert found["output"] == str(Path("here", usual))
    assert parsed(command, *more)["output"] == usual
    other = usual.replace(".", "2.")
    assert parsed(command, *more, "--output", other)["output"] == other
    with pytest.raises(SystemExit):
        parsed(command, *more, "--output", other, "--output_dir", "here")


def test_every_command_that_writes_is_here():
    assert {*COMMANDS, *FILES, "divergences"} == {command.name for command in cli.COMMANDS}


@pytest.mark.parametrize("command", [*COMMANDS, *FILES])
def test_the_help_has_the_one_name(command, capsys, monkeypatch):
    """And no other for a folder."""
    monkeypatch.setattr(sys, "argv", ["trl-tempkd", "distill", "--help_all"])
    with pytest.raises(SystemExit):
        cli.main([command, "--help_all" if command == "distill" else "--help"])
    said = capsys.readouterr().out
    assert "--output_dir" in said and "--results_dir" not in said
    assert ("--output " in said) == (command in FILES)


def test_recipes(tmp_path, refused_line):
    """Keys of a recipe, in which `output_dir` beside a cache is the training's, as it was."""
    path = tmp_path / "recipe.yaml"

    def written(**keys):
        path.write_text(yaml.safe_dump(keys), encoding="utf-8")
        return str(path)

    for key in ("output", "output_dir"):
        assert parsed("generate", "--config", written(**{key: "here"}))["output"] == "here"
    assert "leave one of them out" in refused_line("generate", "--config", written(output="a", output_dir="b"))
    found = parsed("cache", *CPU, "--config", written(output="cache", output_dir="run"))
    assert (found["output"], found["output_dir"]) == ("cache", "run")
    found = parsed("cache", *CPU, "--config", written(output_dir="run"), "--output_dir", "cache")
    assert (found["output"], found["output_dir"]) == ("cache", "run")
    for both in (["--output", "cache", "--output_dir", "run"], ["--output_dir=run", "--output=cache"]):
        found = parsed("cache", *CPU, *both)  # as before the flag had its name
        assert (found["output"], found["output_dir"]) == ("cache", "run")
    assert parsed("cache", *CPU, "--config", written(output_dir="run"))["output"] is None
    for file in ("evaluate", "diagnose"):
        found = parsed(file, "--config", written(output_dir="here"))
        assert found["output"] == str(Path("here", FILES[file][1]))

    base = {"model_name_or_path": "tiny:student"}
    for read, more in ((read_recipe, {"grid": {"tau": [1.0]}}), (read_tuning, {"space": {"tau": [1.0, 2.0]}})):
        for key in ("output_dir", "results_dir"):
            found = read(written(base=base, **more, **{key: "here"}))
            assert (found["results_dir"] if isinstance(found, dict) else found.results_dir) == "here"
        with pytest.raises(UsageError, match="its old name: leave one out"):
            read(written(base=base, **more, output_dir="a", results_dir="b"))


@pytest.fixture
def refused_line(capsys):
    """`refused_line(ARGS)`: the one line with which a command line is refused."""

    def call(*args):
        with pytest.raises(SystemExit, match="2"):
            cli.main(list(args))
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def test_a_flag_that_is_mistyped(refused_line):
    for command in (*COMMANDS, *FILES):
        more = (COMMANDS | FILES)[command][0]
        assert "did you mean '--output_dir'?" in refused_line(command, *more, "--otput_dir", "x"), command


def test_output_file():
    assert output_file("a", "r.json", "r.json") == str(Path("a", "r.json")) == output_file("a", "a/r.json", "r.json")
    with pytest.raises(UsageError, match="give one of them"):
        output_file("a", "b.json", "r.json")
