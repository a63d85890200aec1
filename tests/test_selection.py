# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A sweep in two stages: what is chosen, on what, and that the command runs no more than that."""

import json

import pytest
import yaml
from made_up_sweep import write_frontier

from trl_tempkd import cli
from trl_tempkd.study.runs import pool, work
from trl_tempkd.study.runs.cell import EVALUATION, Cell
from trl_tempkd.study.sweep import selection


def cell_of(divergence: str, tau: float, rule: str | None = None, seed: int = 0) -> Cell:
    factors = {"divergence": divergence, "tau": tau, "mode": "both", "rule": rule, "seed": seed}
    return Cell("-".join(map(str, factors.values())), factors, {})


def result_of(mean: float) -> dict:
    return {"scores": {"rouge_l": [[mean - 1, mean + 1]], "kl_tau1": [[mean] * 2]}}


class TestChoose:
    found = [cell_of(name, tau) for name in ("forward_kl", "tvd") for tau in (1, 2, 4)]
    found += [cell_of("forward_kl", 2, rule) for rule in ("zscore", "max_logit")]
    values = [5, 6, 4, 9, 8, 7, 1, 3]
    results = {cell.name: result_of(value) for cell, value in zip(found, values, strict=True)}

    @pytest.mark.parametrize("score, tau, own, rule", [("rouge_l", 2, 1, "max_logit"), ("kl_tau1", 4, 4, "zscore")])
    def test_the_best(self, score, tau, own, rule):
        found = selection.choose(self.found, self.results, {"seeds": [0], "score": score})
        forward, other = found["objectives"]
        assert forward["factors"] == {"divergence": "forward_kl"}
        assert forward["chosen"]["tau 1"]["factors"] == {"tau": 1, "mode": "both", "rule": None}
        assert forward["chosen"]["best tau"]["factors"] == {"tau": tau, "mode": "both", "rule": None}
        assert forward["chosen"]["best tau"]["among"] == 3
        assert forward["chosen"]["best rule"]["factors"] == {"tau": 2, "mode": "both", "rule": rule}
        # The best tau may be 1, and there need be no rule
        assert other["chosen"]["best tau"]["factors"]["tau"] == own and "best rule" not in other["chosen"]
        assert found["without_result"] == []

    def test_a_cell_without_a_result_is_not_chosen(self):
        results = {name: result for name, result in self.results.items() if name != self.found[1].name}
        results[self.found[2].name] = result_of(float("nan"))
        found = selection.choose(self.found, results, {"seeds": [0], "score": "rouge_l"})
        assert found["objectives"][0]["chosen"]["best tau"]["factors"]["tau"] == 1
        assert found["without_result"] == [self.found[1].name]

    def test_the_second_stage(self):
        select = {"seeds": [0], "score": "rouge_l"}
        everything = [Cell(c.name, {**c.factors, "seed": seed}, {}) for c in self.found for seed in (0, 1, 2)]
        assert [c.factors["seed"] for c in selection.first_stage(everything, select)] == [0] * len(self.found)
        chosen = selection.choose(self.found, self.results, select)
        rest = selection.second_stage(everything, select, chosen)
        places = {(c.factors["divergence"], c.factors["tau"], c.factors["rule"]) for c in rest}
        kept = {("forward_kl", 1, None), ("forward_kl", 2, None), ("forward_kl", 2, "max_logit"), ("tvd", 1, None)}
        assert places == kept and len(rest) == 8
        assert {c.factors["seed"] for c in rest} == {1, 2}


def test_the_command(tmp_path, monkeypatch, capsys):
    """Both stages, with made-up students; a second time nothing runs, and a failure of the first stage is no end."""
    monkeypatch.chdir(tmp_path)
    base = {
        "model_name_or_path": "tiny:student",
        "teacher_model_name_or_path": "tiny:teacher",
        "dataset_name": "tiny",
        "use_cpu": True,
        "bf16": False,
    }
    grid = {"divergence": ["forward_kl", "tvd"], "tau": [1.0, 2.0, 4.0], "seed": [0, 1, 2]}
    recipe = {"base": base, "grid": grid, "select": {"seeds": [0], "score": "rouge_l"}, "results_dir": "results"}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    made_up = {r["name"]: r for r in write_frontier(tmp_path / "made_up", grid, select=None, base=base)}
    ran: list[str] = []

    def measure(cell, folder):
        ran.append(cell.name)
        if cell.name == "tvd-tau4-both-seed0":
            raise RuntimeError("diverged")
        assert cell.evaluation == EVALUATION
        return {**made_up[cell.name], "settings": cell.settings}

    def run_cell(results_dir, name, process):
        return work.run(tmp_path / "results" / name / "cell.json")

    monkeypatch.setattr(work, "measure", measure)
    monkeypatch.setattr(pool, "run_cell", run_cell)

    assert cli.main(["sweep", "--config", str(path), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "6 cells" in said and "of 2 objectives on the seeds 1, 2, up to 12 cells" in said and not ran

    assert cli.main(["sweep", "--config", str(path), "--workers", "2"]) == 1
    assert sorted(ran[:6]) == sorted(f"{name}-tau{tau}-both-seed0" for name in grid["divergence"] for tau in (1, 2, 4))
    found = json.loads((tmp_path / "results/summary/selection.json").read_text(encoding="utf-8"))
    assert found["select"] == recipe["select"] and found["without_result"] == ["tvd-tau4-both-seed0"]
    taus = {
        o["factors"]["divergence"]: {c["factors"]["tau"] for c in o["chosen"].values()} for o in found["objectives"]
    }
    assert sorted(ran[6:]) == sorted(
        f"{name}-tau{tau:g}-both-seed{seed}" for name in taus for tau in taus[name] for seed in (1, 2)
    )
    assert "failed: tvd-tau4-both-seed0: RuntimeError: diverged" in capsys.readouterr().err

    ran.clear()
    assert cli.main(["sweep", "--config", str(path)]) == 1
    assert ran == ["tvd-tau4-both-seed0"]
