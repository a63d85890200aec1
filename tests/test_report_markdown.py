# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The report as Markdown: the same verdicts and figures as on the page."""

import json
import re

import numpy as np
import pytest
from made_up_sweep import HYPOTHESES, write_sweep

from trl_tempkd import cli
from trl_tempkd.study.report import read
from trl_tempkd.study.report.markdown import table, to_markdown
from trl_tempkd.study.report.page import Section


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markdown") / "sweep"
    write_sweep(folder, hypotheses=HYPOTHESES)
    return folder


def page_of(folder):
    return to_markdown(Section(read(folder), "s"))


def test_what_it_says(folder):
    section, page = Section(read(folder), "s"), page_of(folder)
    assert section.recommendation.command in page and section.recommendation.sure in page
    assert len(section.decisions) >= len(HYPOTHESES)
    for decision in section.decisions:
        assert f"**{decision.outcome}** | {decision.sentence.replace('|', chr(92) + '|')} |" in page
    assert all(line in page for line in section.reading) and section.reading
    seeds = [
        np.mean(json.loads((folder / f"reverse_kl-tau2-both-seed{seed}.json").read_text())["scores"]["rouge_l"])
        for seed in (1, 2)
    ]
    [row] = re.findall(r"^\| reverse_kl \| 2 \| both \| (.*)$", page, flags=re.MULTILINE)
    assert row.startswith(f"2 | {np.mean(seeds):.2f} [")
    # At tau 1 both modes are one run
    assert len(re.findall(r"^\| reverse_kl \| 1 \|", page, flags=re.MULTILINE)) == 1


def test_it_is_valid(folder):
    tables = re.findall(r"(?:^\|.*\n)+", page_of(folder), flags=re.MULTILINE)
    assert len(tables) >= 3
    for each in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in each.splitlines()}) == 1
    assert table(("a",), [("x|y",)]) == "| a |\n| --- |\n| x\\|y |"


def test_the_recipe_is_in_it(folder):
    page = page_of(folder)
    assert "```yaml\nbase:" in page and "Not finished" not in page


def test_the_command_writes_it(folder, tmp_path, capsys):
    file = tmp_path / "docs" / "sweep.md"
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "x.html"), "--markdown", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == page_of(folder) and str(file) in capsys.readouterr().out
