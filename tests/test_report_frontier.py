# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The frontier table: of seeds and items that nothing was chosen on."""

import json

import numpy as np
import pytest
from made_up_sweep import write_frontier, write_sweep

from trl_tempkd import cli
from trl_tempkd.report import read
from trl_tempkd.report.frontier import frontier, frontier_figure
from trl_tempkd.report.markdown import to_markdown
from trl_tempkd.statistics import holm, sign_flip_test


SELECT = {"seeds": [0], "score": "rouge_l"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier") / "sweep"
    write_frontier(folder, select=SELECT)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return frontier(read(folder))


def row_of(rows, label: str, treatment: str):
    [found] = [row for row in rows if row.series.label.startswith(label) and row.treatment == treatment]
    return found


def table_of(folder, name: str, score: str = "rouge_l") -> np.ndarray:
    """Of the seeds 1 to 3 and the second half of twelve items."""
    results = [json.loads((folder / f"{name}-seed{seed}.json").read_text()) for seed in (1, 2, 3)]
    return np.array([result["scores"][score][0][6:] for result in results])


def test_what_the_rows_are(rows):
    found = [(row.series.label, row.treatment, row.chosen, row.leading) for row in rows]
    forward = [("tau 1", "tau 1", False), ("best tau", "tau 2", False), ("best rule", "zscore, tau 2", True)]
    assert [each[1:] for each in found if each[0] == "forward_kl"] == forward
    # Where the best tau is 1, the row says it; reverse KL has no rule
    assert ("tvd", "best tau", "tau 1", False) in found
    assert [each[1:3] for each in found if each[0] == "reverse_kl, lmbda 1.0"] == [
        ("tau 1", "tau 1"),
        ("best tau", "tau 1"),
    ]
    assert len(found) == 8 and found[0][0] == "forward_kl"  # the best of all


def test_numbers_are_of_other_seeds_and_items(folder, rows):
    row = row_of(rows, "forward_kl", "best rule")
    own = table_of(folder, "forward_kl-tau2-both-zscore-lmbda0")
    reference = table_of(folder, "forward_kl-tau1-both-lmbda0")
    assert len(row.cells) == 3
    mean = row.means["rouge_l"]
    assert mean.value == pytest.approx(own.mean()) and mean.low < mean.value < mean.high
    change = row.to_reference["rouge_l"]
    assert change.difference == pytest.approx((own - reference).mean())
    assert change.low < change.difference < change.high
    assert (change.n_seeds, change.n_items) == (3, 6)
    assert row.means["kl_tau1"].value == pytest.approx(
        table_of(folder, "forward_kl-tau2-both-zscore-lmbda0", "kl_tau1").mean()
    )
    # Of forward KL, both differences are the same one
    assert row.to_own["rouge_l"] is change


def test_the_correction_is_over_every_difference_once(folder, rows):
    names = {
        "forward_kl-tau2-both-lmbda0": "forward_kl-tau1-both-lmbda0",
        "forward_kl-tau2-both-zscore-lmbda0": "forward_kl-tau1-both-lmbda0",
        "reverse_kl-tau1-both-lmbda1": "forward_kl-tau1-both-lmbda0",
        "tvd-tau1-both-lmbda0": "forward_kl-tau1-both-lmbda0",
        "tvd-tau2-both-zscore-lmbda0": "forward_kl-tau1-both-lmbda0",
        "tvd-tau2-both-zscore-lmbda0 ": "tvd-tau1-both-lmbda0",
    }
    p = [sign_flip_test((table_of(folder, a.strip()) - table_of(folder, b)).mean(0)) for a, b in names.items()]
    changes = [
        row_of(rows, "forward_kl", "best tau").to_reference,
        row_of(rows, "forward_kl", "best rule").to_reference,
        row_of(rows, "reverse_kl", "best tau").to_reference,
        row_of(rows, "tvd", "tau 1").to_reference,
        row_of(rows, "tvd", "best rule").to_reference,
        row_of(rows, "tvd", "best rule").to_own,
    ]
    assert [change["rouge_l"].p_items for change in changes] == pytest.approx(holm(p))
    assert row_of(rows, "tvd", "best tau").to_own == {} == row_of(rows, "forward_kl", "tau 1").to_reference


def test_what_a_step_costs(rows):
    assert row_of(rows, "forward_kl", "tau 1").ms == 100 and row_of(rows, "forward_kl", "best tau").ratio == 1
    assert row_of(rows, "tvd", "best rule").ms == 200 and row_of(rows, "tvd", "best rule").ratio == 2


def test_the_figure(rows):
    figure = frontier_figure(rows)
    assert [panel.title for panel in figure.panels] == ["ROUGE-L", "KL(teacher, student) at tau 1"]
    leading = figure.lines(figure.panels[0], "leading")
    assert {line.name: line.x for line in leading} == {
        "forward_kl": [1.0],
        "tvd": [2.0],
        "reverse_kl, lmbda 1.0": [1.0],
    }
    row = row_of(rows, "forward_kl", "best rule")
    assert leading[0].y == [row.means["rouge_l"].value] and leading[0].low == [row.means["rouge_l"].low]


def test_before_the_second_stage(folder, tmp_path):
    """A row whose cells are not finished is there without numbers."""
    write_frontier(tmp_path, select=SELECT)
    for path in tmp_path.glob("*.json"):
        if "seed0" not in path.name:
            path.unlink()
    found = frontier(read(tmp_path))
    assert len(found) == 8 and not any(row.means or row.cells or row.ms for row in found)
    assert frontier_figure(found) is None
    assert "## Frontier" in to_markdown(read(tmp_path))


def test_the_command(folder, rows, tmp_path):
    page, markdown = tmp_path / "x.html", tmp_path / "x.md"
    line = ["report", str(folder), "--output", str(page), "--markdown", str(markdown), "--png", str(tmp_path)]
    assert cli.main(line) == 0
    mean = row_of(rows, "forward_kl", "best rule").means["rouge_l"]
    text = f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
    html = page.read_text(encoding="utf-8")
    assert text in html and "▸ best rule" in html and 'id="s1-frontier"' in html and 'href="#s1-frontier"' in html
    written = markdown.read_text(encoding="utf-8")
    assert f"| forward_kl | **best rule** | zscore, tau 2 | 3 | {text} |" in written
    assert (tmp_path / "frontier_leading.png").stat().st_size > 5000


def test_a_sweep_without_selection_has_none(tmp_path):
    write_sweep(tmp_path, {"divergence": ["forward_kl"], "tau": [1.0, 2.0], "seed": [1]})
    assert frontier(read(tmp_path)) == [] and "## Frontier" not in to_markdown(read(tmp_path))
