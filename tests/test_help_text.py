# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The help that is written down is the one that the parsers would print, and costs no import of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trl_tempkd import cli, help_text


ROOT = Path(__file__).parent.parent
HELPED = re.search(r"^HELPED := (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
PINNED = dict(re.findall(r"^(trl|transformers)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
AS_PINNED = f"trl {PINNED['trl']}, transformers {PINNED['transformers']}"


@pytest.mark.skipif(help_text.stamp() != AS_PINNED, reason="other versions are installed")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse folds lines in another way")
@pytest.mark.parametrize("command", HELPED)
def test_it_is_what_the_parser_says(command, monkeypatch, capsys):
    written = help_text.written_help(command, ["--help"])
    monkeypatch.setenv("COLUMNS", "102")
    monkeypatch.setattr(help_text, "FOLDER", ROOT / "nowhere")
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert written == capsys.readouterr().out, "run `make help-texts`"


def test_nothing_is_imported():
    code = (
        "import sys\nfrom trl_tempkd import cli, help_text\n"
        "help_text.stamp = lambda: (help_text.FOLDER / 'distill.txt').read_text().splitlines()[0]\n"
        "try:\n    cli.main(['distill', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'trl', 'transformers'} & {*sys.modules}"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert "--kd_temperature" in ran.stdout


@pytest.mark.parametrize("args", [[], ["--help_all"], ["--help", "--import", "x"], ["--max_steps", "2"]])
def test_whatever_else_is_asked_for(args):
    assert help_text.written_help("distill", args) is None


def test_other_versions_have_other_options(monkeypatch):
    monkeypatch.setattr(help_text, "stamp", lambda: "trl 9, transformers 9")
    assert help_text.written_help("distill", ["--help"]) is None
