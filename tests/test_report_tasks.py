# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What the LM evaluation harness measured stands in the report, beside the scores of the sweep."""

import json
import re

import pytest
from made_up_sweep import write_sweep

from trl_tempkd import cli
from trl_tempkd.study.report import read
from trl_tempkd.study.report.tasks import task_rows


def measured(accuracy, rows=100, **more):
    """As `harness.run_tasks` has it of one task."""
    return {"scores": {"acc,none": accuracy, "acc_stderr,none": 0.05, **more}, "rows": rows, "version": 1.0}


def write(path, model, **tasks):
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"settings": {"model_name_or_path": model}, "runs": [], **({"lm_eval": tasks} if tasks else {})}
    path.write_text(json.dumps(results), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "sweep"
    write_sweep(folder, {"divergence": ["tvd"], "seed": [1, 2]})
    return folder


@pytest.fixture
def cell(sweep):
    """A cell of the sweep that was evaluated into its own folder."""
    name = sorted(path.parent.name for path in sweep.glob("*/cell.json"))[0]
    path = sweep / name / "results.json"
    more = {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"}
    write(path, str(sweep / name / "model"), words=measured(0.5), sums=measured(0.75, **more))
    yield name
    path.unlink()


def test_a_page(sweep, cell, tmp_path, capsys):
    """Of a cell that was evaluated into its folder, and of another model by its file."""
    other = write(tmp_path / "start" / "results.json", "some/model", words=measured(0.4, rows=50))
    page, markdown = tmp_path / "x.html", tmp_path / "x.md"
    line = ["report", str(sweep), "--output", str(page), "--markdown", str(markdown), "--evaluations", other]
    assert cli.main(line) == 0
    found = re.findall(r"<tr>.*?</tr>", page.read_text(encoding="utf-8").split('-tasks">')[1].split("</table>")[0])
    texts = [[re.sub("<[^>]+>", "", part) for part in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in found]
    assert texts == [
        ["Task", "Metric", cell, "some/model", "Rows", "Version"],
        ["words", "acc", "0.5 ± 0.05", "0.4 ± 0.05", "100 / 50", "1.0"],
        ["sums", "acc", "0.75 ± 0.05", "–", "100", "1.0"],
        ["sums", "exact_match (strict-match)", "0.25", "–", "100", "1.0"],
    ]
    assert "| words | acc | 0.5 ± 0.05 | 0.4 ± 0.05 | 100 / 50 | 1.0 |" in markdown.read_text(encoding="utf-8")
    verdicts = json.loads((sweep / "summary" / "report.json").read_text(encoding="utf-8"))
    assert verdicts["lm_eval"]["some/model"]["words"]["scores"]["acc,none"] == 0.4
    assert verdicts["lm_eval"][cell]["words"]["rows"] == 100


def test_without_any(sweep, tmp_path):
    assert read(sweep).evaluations == {} and task_rows(read(sweep)) == []
    assert cli.main(["report", str(sweep), "--output", str(tmp_path / "x.html")]) == 0
    assert "harness" not in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_two_of_the_same_name_stand_both(sweep, tmp_path):
    files = [write(tmp_path / name / "results.json", "m", words=measured(0.1)) for name in ("a", "b")]
    assert list(read(sweep, [files[0], tmp_path / "b"]).evaluations) == ["m", f"m ({files[1]})"]


@pytest.mark.parametrize(
    ("file", "says"),
    [("absent.json", "There is no"), ("none.json", "evaluate with --lm_eval TASKS"), ("broken.json", "broken.json")],
)
def test_what_is_no_such_file(file, says, sweep, tmp_path, capsys):
    write(tmp_path / "none.json", "m")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(sweep), "--output_dir", str(tmp_path), "--evaluations", str(tmp_path / file)])
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
