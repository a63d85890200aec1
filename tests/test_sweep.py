# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Sweeps: the grid, the files of the cells, what starts them, and their comparison."""

import hashlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import DatasetDict
from standins import save_pair
from vocabulary_pairs import metaspace, save_pair_of_two

from trl_tempkd import cli
from trl_tempkd.commands import cache
from trl_tempkd.commands import sweep as command
from trl_tempkd.errors import UsageError
from trl_tempkd.files import write_atomically
from trl_tempkd.fingerprint import by_hash, fingerprint
from trl_tempkd.study.comparisons import comparisons
from trl_tempkd.study.runs import measure as measuring
from trl_tempkd.study.runs import pool, processes, work
from trl_tempkd.study.runs.cell import Cell, finished, reason
from trl_tempkd.study.statistics import estimate, holm
from trl_tempkd.study.sweep import cells, read_recipe
from trl_tempkd.study.sweep.grid import grids_of
from trl_tempkd.study.table import obstacles


ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes/sweeps").glob("*.yaml"))


def recipe_of(tmp_path: Path, **changes) -> Path:
    recipe = {"base": {"model_name_or_path": "s", "kd_temperature": 3.0}, "grid": {"seed": [1]}, **changes}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}), encoding="utf-8")
    return path


class TestGrid:
    def test_cells(self, tmp_path):
        grid = {"divergence": ["forward_kl", {"jsd": {"beta": 0.1}}], "tau": [1, 2.5], "mode": ["both", "teacher"]}
        found = cells(read_recipe(recipe_of(tmp_path, grid={**grid, "seed": [1, 2], "max_grad_norm": [0.0, 1.0]})))
        # At tau 1 the mode makes no difference
        assert len(found) == 24 == len({cell.name for cell in found})
        assert found[0].name == "forward_kl-tau1-both-max_grad_norm0-seed1"
        assert found[-1].name == "jsdbeta0.1-tau2.5-teacher-max_grad_norm1-seed2"
        assert found[0].options == {
            "model_name_or_path": "s",
            "divergence": "forward_kl",
            "kd_temperature": 1,
            "seed": 1,
            "data_seed": 1,
            "max_grad_norm": 0.0,
        }
        assert found[-1].options == {
            "model_name_or_path": "s",
            "divergence": "jsd",
            "divergence_kwargs": {"beta": 0.1},
            "kd_temperature": 2.5,
            "student_kd_temperature": 1.0,
            "teacher_kd_temperature": 2.5,
            "seed": 2,
            "data_seed": 2,
            "max_grad_norm": 1.0,
        }

    def test_what_the_grid_leaves_out_is_the_bases(self, tmp_path):
        base = {"divergence": "jsd", "divergence_kwargs": {"beta": 0.2}, "teacher_kd_temperature": 4.0}
        [cell] = cells(read_recipe(recipe_of(tmp_path, base=base, grid={"seed": [7]})))
        assert cell.options == {**base, "seed": 7, "data_seed": 7}

    def test_a_base_is_a_recipe_that_overrides_change(self, tmp_path):
        base = str(ROOT / "recipes/tiny/distill.yaml")
        recipe = read_recipe(recipe_of(tmp_path, base=base, overrides={"max_steps": 3}))
        assert recipe["base"]["max_steps"] == 3 and recipe["base"]["max_length"] == 256
        assert recipe["results_dir"] == "results/sweep"

    def test_several_grids(self, tmp_path):
        """Their cells have the same factors, and one that two of them have is there once."""
        first = {"divergence": ["forward_kl", "tvd"], "tau": [1, 2], "seed": [1]}
        second = {"divergence": ["tvd"], "tau": [2], "lmbda": [0.0, 1.0], "seed": [1, 2]}
        found = {cell.name: cell for cell in cells(read_recipe(recipe_of(tmp_path, grid=[first, second])))}
        assert list(found) == [
            "forward_kl-tau1-both-lmbda0-seed1",
            "forward_kl-tau2-both-lmbda0-seed1",
            "tvd-tau1-both-lmbda0-seed1",
            "tvd-tau2-both-lmbda0-seed1",
            "tvd-tau2-both-lmbda0-seed2",
            "tvd-tau2-both-lmbda1-seed1",
            "tvd-tau2-both-lmbda1-seed2",
        ]
        assert {tuple(cell.factors) for cell in found.values()} == {("divergence", "tau", "mode", "lmbda", "seed")}
        assert {cell.options["lmbda"] for cell in found.values()} == {0.0, 1.0}

    def test_what_one_grid_leaves_out_is_the_bases(self, tmp_path):
        base = {"divergence": "jsd", "divergence_kwargs": {"beta": 0.2}, "kd_temperature": 4.0, "lmbda": 0.5}
        grid = [{"seed": [1]}, {"divergence": ["tvd"], "tau": [1.0], "lmbda": [1.0], "seed": [1]}]
        first, second = cells(read_recipe(recipe_of(tmp_path, base=base, grid=grid)))
        assert first.name == "jsdbeta0.2-tau4-both-lmbda0.5-seed1"
        assert first.options == {**base, "seed": 1, "data_seed": 1}
        assert second.options == {
            "divergence": "tvd",
            "kd_temperature": 1.0,
            "lmbda": 1.0,
            "seed": 1,
            "data_seed": 1,
        }

    def test_rules(self):
        base = {"kd_temperature_rule": "max_logit", "kd_temperature_rule_kwargs": {"rho": 3.0}, "max_steps": 2}
        grid = {"rule": [None, "zscore", {"target_entropy": {"share": 0.3}}], "seed": [1]}
        recipe = {"base": base, "grid": grid, "evaluation": {}, "tune_learning_rate": []}
        plain, named, with_parameters = cells(recipe)
        assert plain.name == "forward_kl-tau2-both-seed1" and plain.factors["rule"] is None
        assert plain.options == {"max_steps": 2, "seed": 1, "data_seed": 1}
        assert named.name == "forward_kl-tau2-both-zscore-seed1"
        assert named.options == {**plain.options, "kd_temperature_rule": "zscore"}
        assert with_parameters.name == "forward_kl-tau2-both-target_entropyshare0.3-seed1"
        rule = {"kd_temperature_rule": "target_entropy", "kd_temperature_rule_kwargs": {"share": 0.3}}
        assert with_parameters.options == {**plain.options, **rule}
        # What a grid without rules leaves out is the base's rule
        first = cells({**recipe, "grid": [{"seed": [1]}, grid]})[0]
        assert first.name == "forward_kl-tau2-both-max_logitrho3-seed1" and first.options == {
            **base,
            "seed": 1,
            "data_seed": 1,
        }

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"gird": {}}, "Unknown key 'gird' in .*; did you mean 'grid'"),
            ({"grid": None}, "has no `grid`"),
            ({"grid": {"divergense": ["forward_kl"]}}, "'divergense' in `grid` .*did you mean 'divergence'"),
            ({"grid": {"kd_temperature": [1.0]}}, "say `tau`"),
            ({"grid": {"tau": 2.0}}, "'tau' .*: expected a list of values, got 2.0"),
            ({"grid": {"tau": [0]}}, "expected positive numbers, got 0"),
            ({"grid": {"tau": [1, 1.0]}}, "Two cells have the name forward_kl-tau1-both-seed42"),
            ({"grid": {"kd_temperature_rule": ["zscore"]}}, "say `rule: \\[null, name"),
            (
                {"grid": [{"seed": [1]}, {"model_name_or_path": ["s"], "tau": 1}]},
                "'tau' .*: expected a list of values",
            ),
            (
                {"base": {"x": 1}, "grid": [{"seed": [1]}, {"model_name_or_path": ["s"]}]},
                "give it in every grid, or in",
            ),
            (
                {"grid": [{"tau": [1.2]}, {"tau": [1.2000001]}]},
                "Two cells of two grids have the name forward_kl-tau1.2",
            ),
            ({"grid": {"rule": [{"x": {}, "y": {}}]}}, "A rule with parameters is"),
            ({"select": {"seed": [1]}}, "'seed' in `select` .*did you mean 'seeds'"),
            (
                {"select": {"seeds": [1], "score": "rouge_l"}},
                "expected some, not all, of `seed` of every grid, got \\[1",
            ),
            (
                {"select": {"seeds": [1], "score": "ece"}, "grid": {"seed": [1, 2]}},
                "expected one of rouge_l, .* got 'ece'",
            ),
            (
                {"select": {"seeds": [1], "score": "rouge_l_greedy"}, "grid": {"seed": [1, 2]}},
                "rouge_l_greedy needs `greedy: true`",
            ),
            ({"grid": {"mode": ["student"]}}, "expected both or teacher, got 'student'"),
            ({"grid": {"divergence": [{"jsd": {}, "x": {}}]}}, "A divergence with parameters is"),
            ({"evaluation": {"row": 3}}, "'row' in `evaluation` .*did you mean 'rows'"),
            ({"evaluation": {"rows": 1}}, "expected a whole number from 2 on, got 1"),
            ({"evaluation": {"datasets": ["dolly"]}}, "expected a mapping of names to data sets, got \\['dolly'"),
            ({"workers": 0}, "`workers` in .*: expected a whole number from 1 on, got 0"),
            ({"tune_learning_rate": ["fast"]}, "expected a list of numbers"),
            ({"base": "nowhere.yaml"}, "Cannot read nowhere.yaml"),
        ],
    )
    def test_mistakes(self, changes, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            cells(read_recipe(recipe_of(tmp_path, **changes)))


class TestFiles:
    def test_written_whole(self, tmp_path):
        write_atomically(tmp_path / "new" / "x.json", "1")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]

    def test_other_settings_are_no_result(self, tmp_path):
        cell = Cell("a", {"seed": 1}, {"max_steps": 2})
        assert finished(tmp_path, cell) is None
        write_atomically(tmp_path / "a.json", json.dumps({"settings": cell.settings}))
        assert finished(tmp_path, cell) is not None
        with pytest.raises(ValueError, match=r"a\.json was reached with max_steps: 2, and the recipe now says 3"):
            finished(tmp_path, Cell("a", {"seed": 1}, {"max_steps": 3}))

    def test_results_of_earlier_versions_count(self, tmp_path):
        """The settings in a file have the same keys as ever, so that an old folder goes on."""
        options = {"max_steps": 2, "seed": 1, "data_seed": 1}
        settings = {"name": "a", "factors": {"seed": 1}, "options": options, "evaluation": {"rows": 4}}
        settings["tune_learning_rate"] = []
        write_atomically(tmp_path / "a.json", json.dumps({"settings": settings}))
        assert finished(tmp_path, Cell("a", {"seed": 1}, options, {"rows": 4})) is not None

    def test_one_process_has_a_cell(self, tmp_path):
        with work.claim(tmp_path) as mine:
            assert mine
            with work.claim(tmp_path) as other:
                assert not other
            assert pool.run_cell(str(tmp_path.parent), tmp_path.name, processes.OwnProcess(".")) == pool.BUSY
        with work.claim(tmp_path) as again:
            assert again


def result_of(divergence: str, tau: float, seed: int, scores: list[list[float]], **hashes: str) -> dict:
    return {
        "name": f"{divergence}-tau{tau}-seed{seed}",
        "settings": {"factors": {"divergence": divergence, "tau": tau, "seed": seed}},
        "hashes": {"initial_weights": "w", "batch_order": f"b{seed}", "items": "i", **hashes},
        "scores": {"rouge_l": scores},
    }


class TestComparisons:
    def test_pairs_and_correction(self):
        rng = np.random.default_rng(0)
        results = [
            result_of(divergence, tau, seed, rng.normal(tau, 1, size=(2, 8)).tolist())
            for divergence in ("fkl", "rkl")
            for tau in (1, 2)
            for seed in (1, 2, 3)
        ]
        rows = comparisons(results)
        # Each differs in one factor: not forward KL at 1 against reverse KL at 2
        found = [(row["factor"], row["first"], row["second"], *row["shared"].values()) for row in rows]
        assert found == [
            ("tau", 1, 2, "fkl"),
            ("divergence", "fkl", "rkl", 1),
            ("divergence", "fkl", "rkl", 2),
            ("tau", 1, 2, "rkl"),
        ]
        assert {(row["n_seeds"], row["n_items"]) for row in rows} == {(3, 8)}
        first, second = (
            [np.mean(result["scores"]["rouge_l"], axis=0) for result in results[start : start + 3]] for start in (0, 3)
        )
        expected = estimate(np.subtract(second, first))
        assert rows[0]["difference"] == expected.mean and rows[0]["low"] == expected.interval()[0]
        assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])

    def test_no_cell_is_compared_with_itself_nor_two_twice(self):
        """At tau 1 a cell stands for both modes."""
        results = []
        for divergence, tau, mode in itertools.product(("fkl", "rkl"), (1, 2), ("both", "teacher")):
            for seed in (1, 2) if (tau, mode) != (1, "teacher") else ():
                result = result_of(divergence, tau, seed, [[1.0, 2.0 * tau]])
                result["name"] += mode
                result["settings"]["factors"]["mode"] = mode
                results.append(result)
        found = [(row["factor"], row["first"], row["second"], *row["shared"].values()) for row in comparisons(results)]
        assert sorted(found, key=str) == [
            ("divergence", "fkl", "rkl", 1, "both"),
            ("divergence", "fkl", "rkl", 2, "both"),
            ("divergence", "fkl", "rkl", 2, "teacher"),
            ("mode", "both", "teacher", "fkl", 2),
            ("mode", "both", "teacher", "rkl", 2),
            ("tau", 1, 2, "fkl", "both"),
            ("tau", 1, 2, "rkl", "both"),
            ("tau", 2, 1, "fkl", "teacher"),
            ("tau", 2, 1, "rkl", "teacher"),
        ]

    def test_only_pairs_that_started_alike(self):
        scores = [[1.0, 2.0, 4.0]]
        results = [result_of("fkl", 1, 1, scores), result_of("fkl", 2, 1, scores, initial_weights="other")]
        results += [result_of("fkl", tau, 2, scores) for tau in (1, 2)]
        [row] = comparisons(results)
        assert (row["n_seeds"], row["n_items"], row["p"]) == (1, 3, None)
        [line] = obstacles(results)
        assert line == "seed 1: the cells differ in their initial student: fkl-tau1-seed1; fkl-tau2-seed1"
        assert comparisons(results[:2]) == []

    def test_scores_that_are_not_finite(self):
        results = [result_of("fkl", 1, 1, [[1.0, 2.0]]), result_of("fkl", 2, 1, [[1.0, float("nan")]])]
        assert comparisons(results) == []
        assert obstacles(results) == ["fkl-tau2-seed1: rouge_l is not finite"]


@pytest.fixture
def tiny_recipe(tmp_path, make_model, tokenizer, prompt_dataset) -> Path:
    """A sweep of four cells on random models: two divergences at two temperatures, two steps each."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    base = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": str(tmp_path / "data"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return recipe_of(
        tmp_path,
        base=base,
        grid={"divergence": ["forward_kl", "reverse_kl"], "tau": [1.0, 2.0], "seed": [3]},
        evaluation={"rows": 4, "seeds": [10, 20], "max_new_tokens": 4},
        results_dir=str(tmp_path / "results"),
    )


NAMES = [f"{divergence}-tau{tau}-both-seed3" for divergence in ("forward_kl", "reverse_kl") for tau in (1, 2)]


@pytest.fixture
def in_process(monkeypatch):
    """The cells run in this process; the list has the names of those that did. `fail` are names that raise."""

    def run_cell(results_dir: str, name: str, process: processes.OwnProcess) -> int:
        ran.append(name)
        return work.run(Path(results_dir, name, "cell.json"))

    def measured(cell, folder):
        if cell.name in fail:
            raise RuntimeError("out of luck")
        return measure(cell, folder)

    ran: list[str] = []
    fail: set[str] = set()
    measure = work.measure
    monkeypatch.setattr(work, "measure", measured)
    monkeypatch.setattr(pool, "run_cell", run_cell)
    return ran, fail


def sweep(recipe: Path, *options: str) -> int:
    return cli.main(["sweep", "--config", str(recipe), *options])


def test_a_sweep(tiny_recipe, tmp_path, in_process, capsys, prompt_dataset):
    ran, fail = in_process
    fail.add(NAMES[1])
    assert sweep(tiny_recipe) == 1
    assert ran == NAMES
    said = capsys.readouterr()
    assert f"failed: {NAMES[1]}: RuntimeError: out of luck" in said.err
    assert "seeds x items" in said.out and "1 x 4" in said.out
    folder = tmp_path / "results"
    assert {path.name for path in folder.glob("*.json")} == {f"{name}.json" for name in NAMES if name not in fail}
    assert "RuntimeError: out of luck" in (folder / f"{NAMES[1]}.error.txt").read_text(encoding="utf-8")

    # The failed one alone runs again
    ran.clear()
    fail.clear()
    assert sweep(tiny_recipe) == 0
    assert ran == NAMES[1:2]
    assert not list(folder.glob("*.error.txt"))
    results = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES]
    assert len({json.dumps(result["hashes"]) for result in results}) == 1
    assert len({json.dumps(result["scores"]["kl_tau1"]) for result in results}) == 4
    for result in results:
        assert [len(scores) for scores in result["scores"]["rouge_l"]] == [4, 4]
        [kl] = result["scores"]["kl_tau1"]
        assert len(kl) == 4 and all(value > 0 for value in kl)
        steps = [entry["step"] for entry in result["log_history"] if "loss" in entry]
        assert steps == [1, 2]
        assert result["machine"]["threads"] == torch.get_num_threads() and result["versions"]["trl"]
        assert result["seconds"].keys() == {"training", "evaluation", "baseline"}
    summary = json.loads((folder / "summary" / "comparisons.json").read_text(encoding="utf-8"))
    assert summary["cells"] == 4 and summary["not_compared"] == []
    # All rows are trained on; those with the smallest hashes are scored
    scored = prompt_dataset.select(by_hash(prompt_dataset)[:4])
    prints = {"train": fingerprint(prompt_dataset), "test": fingerprint(scored)}
    assert summary["fingerprints"] == prints and all(result["fingerprints"] == prints for result in results)
    assert f"train {prints['train']}, test {prints['test']}" in capsys.readouterr().out
    assert len(summary["comparisons"]) == 8  # four pairs, two scores

    # Nothing is left to do
    ran.clear()
    assert sweep(tiny_recipe) == 0
    assert ran == []

    # Another number of steps is another sweep
    recipe = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    recipe["overrides"] = {"max_steps": 1}
    tiny_recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        sweep(tiny_recipe)
    assert "was reached with max_steps: 2, and the recipe now says 1" in capsys.readouterr().err


def test_the_hashes_are_of_what_a_run_saw(tiny_recipe, tmp_path, make_model, tokenizer):
    found = cells(read_recipe(tiny_recipe))[0]
    recorder, same, other = measuring.Recorder(), measuring.Recorder(), measuring.Recorder()
    measuring.train(found.options, tmp_path / "one", recorder)
    measuring.train({**found.options, "kd_temperature": 9.0}, tmp_path / "two", same)
    measuring.train({**found.options, "seed": 4, "data_seed": 4}, tmp_path / "three", other)
    assert recorder.initial_weights == same.initial_weights == other.initial_weights
    assert recorder.initial_weights == measuring.hash_of_weights(make_model(seed=0))
    assert recorder.initial_weights != measuring.hash_of_weights(make_model(seed=1))
    assert recorder.batches.hexdigest() == same.batches.hexdigest() != other.batches.hexdigest()
    assert recorder.batches.hexdigest() != hashlib.sha256().hexdigest()


def test_learning_rates_are_tuned(tiny_recipe, tmp_path):
    found = cells(read_recipe(tiny_recipe))[0]
    tuned = Cell(found.name, found.factors, found.options, {**found.evaluation, "rows": 3}, [1e-6, 1e-2])
    result = measuring.measure(tuned, tmp_path / "cell")
    by_rate = result["tuning"]["eval_kl_tau1"]
    assert by_rate.keys() == {"1e-06", "0.01"} and by_rate["0.01"] < by_rate["1e-06"]
    assert result["tuning"]["chosen"] == result["learning_rate"] == 0.01
    assert result["tuning"]["rows"] == 3


def test_an_adapter_and_the_student_as_its_teacher(tiny_recipe, tmp_path):
    found = cells(read_recipe(tiny_recipe))[0]
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "teacher_model_name_or_path": "student_base"}
    cell = Cell(found.name, found.factors, {**found.options, **lora, "student_kd_temperature": 1.0}, found.evaluation)
    result = measuring.measure(cell, tmp_path / "cell")
    [kl] = result["scores"]["kl_tau1"]
    assert len(kl) == 4 and all(0 < value < 1 for value in kl)


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_rows_of_the_same_name_are_not_mixed(split, tiny_recipe, tmp_path, in_process, capsys, prompt_dataset):
    """What another version of the data does to a sweep that goes on: its new cells stop before they train."""
    _, fail = in_process
    fail.add(NAMES[1])
    assert sweep(tiny_recipe) == 1
    fail.clear()
    capsys.readouterr()
    changed = prompt_dataset.map(lambda row: {"completion": row["completion"] + "!"})
    data = {"train": prompt_dataset, "test": prompt_dataset, split: changed}
    DatasetDict(data).save_to_disk(tmp_path / "data")
    assert sweep(tiny_recipe) == 1
    error = capsys.readouterr().err
    assert f"{NAMES[0]}.json was reached on other rows: the fingerprint of its {split} rows is" in error
    assert not (tmp_path / "results" / f"{NAMES[1]}.json").exists()
    assert not (tmp_path / "results" / NAMES[1] / "model.safetensors").exists()
    # In another folder they are a sweep of their own
    assert sweep(tiny_recipe, "--results_dir", str(tmp_path / "other")) == 0


def test_rows_that_are_too_few(tiny_recipe, tmp_path):
    found = cells(read_recipe(tiny_recipe))[0]
    cell = Cell(found.name, found.factors, found.options, {**found.evaluation, "rows": 9})
    with pytest.raises(UsageError, match=r"has 8 rows, and .* needs 9"):
        measuring.measure(cell, tmp_path / "cell")


def test_other_data_sets(tiny_recipe, tmp_path):
    """They are scored as the test split is, in any format, and compared under their own names."""
    other = tmp_path / "other.jsonl"
    other.write_text(
        "\n".join(json.dumps({"instruction": word, "output": ["the mat", "a mat"]}) for word in ("cat", "dog", "sun")),
        encoding="utf-8",
    )
    [first, second, *_] = cells(read_recipe(tiny_recipe))
    results = []
    for found in (first, second):
        cell = Cell(found.name, found.factors, found.options, {**found.evaluation, "datasets": {"mine": str(other)}})
        results.append(measuring.measure(cell, tmp_path / "results" / found.name))
    assert [len(items) for items in results[0]["scores"]["rouge_l@mine"]] == [3, 3]
    assert results[0]["means"]["rouge_l@mine"] != results[0]["means"]["rouge_l"]
    assert [(row["score"], row["n_items"]) for row in comparisons(results)] == [
        ("rouge_l", 4),
        ("rouge_l@mine", 3),
        ("kl_tau1", 4),
        ("kl_tau1@mine", 3),
    ]


def test_what_cells_share_is_measured_once(tiny_recipe, tmp_path, monkeypatch):
    [first, second, *_] = cells(read_recipe(tiny_recipe))
    results = [measuring.measure(cell, tmp_path / "results" / cell.name) for cell in (first, second)]
    [path] = (tmp_path / "results" / "summary" / "baselines").glob("*.json")
    assert {result["baseline"] for result in results} == {path.stem}
    found = json.loads(path.read_text(encoding="utf-8"))
    assert abs(found["teacher"]["means"]["kl_tau1"]) < 1e-4 < found["start"]["means"]["kl_tau1"]
    for where in ("train", "held_out"):
        assert 0 < found["teacher"][where]["top_1"] < 1 and found["teacher"][where]["teacher_entropy"] > 0
    assert found["teacher"]["held_out"]["ce"] == pytest.approx(found["teacher"]["means"]["ce"], rel=1e-3)
    assert {(row["objective"], row["mode"]) for row in found["diagnostics"]} >= {
        (name, mode) for name in ("forward_kl", "reverse_kl") for mode in ("both", "teacher")
    }
    other = Cell(first.name, first.factors, {**first.options, "max_length": 7}, first.evaluation)
    assert measuring.measure(other, tmp_path / "results" / "other")["baseline"] != path.stem


def changed(recipe: Path, **overrides) -> Path:
    read = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({**read, "overrides": overrides}), encoding="utf-8")
    return recipe


def test_a_cache_without_its_teacher(tiny_recipe, tmp_path, in_process, capsys):
    """The students are scored by what needs no teacher, and all has its place on a page."""
    base = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))["base"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    flags = [
        "--config",
        str(tmp_path / "base.yaml"),
        "--output",
        str(tmp_path / "cache"),
        "--output_dir",
        str(tmp_path),
    ]
    cache.main(*cache.make_parser().parse(flags, launched=True)[0])
    changed(tiny_recipe, teacher_cache=str(tmp_path / "cache"), teacher_model_name_or_path=None)
    assert sweep(tiny_recipe) == 0
    for name in NAMES:
        result = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert {"rouge_l", "ce"} <= result["scores"].keys() and "kl_tau1" not in result["scores"]
    [path] = (tmp_path / "results/summary/baselines").glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["teacher"] is None and found["diagnostics"] == [] and "rouge_l" in found["start"]["scores"]
    assert cli.main(["report", str(tmp_path / "results"), "--markdown", str(tmp_path / "x.md")]) == 0
    assert "| start |" in (tmp_path / "x.md").read_text() and "| teacher |" not in (tmp_path / "x.md").read_text()


@pytest.mark.parametrize("where", [{}, {"teacher_cache": "."}, {"teacher_server_url": "http://127.0.0.1:1"}])
def test_a_teacher_that_cannot_be_compared_with(where, tiny_recipe, tmp_path, in_process, capsys):
    """Before anything is trained, also where the training itself needs no such model, and in every part of a grid."""
    ran, _ = in_process
    changed(tiny_recipe, teacher_model_name_or_path="no-such-owner/no-such-model", **where)
    with pytest.raises(SystemExit, match="2"):
        sweep(tiny_recipe)
    assert "cannot load the model 'no-such-owner/no-such-model' (--teacher_model" in capsys.readouterr().err
    read = yaml.safe_load(changed(tiny_recipe, **where).read_text(encoding="utf-8"))
    teachers = [read["base"]["teacher_model_name_or_path"], "no-such-owner/no-such-model"]
    read["grid"]["teacher_model_name_or_path"] = teachers
    tiny_recipe.write_text(yaml.safe_dump(read), encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        sweep(tiny_recipe)
    assert "cannot load the model 'no-such-owner/no-such-model' (--teacher_model" in capsys.readouterr().err
    assert ran == []


def test_rates_at_which_training_diverges_are_not_chosen(tiny_recipe, tmp_path, monkeypatch):
    def train(options, folder, callback):
        value = {1.0: float("nan"), 2.0: 3.0, 3.0: float("inf")}[options["learning_rate"]]
        callback.evaluation = {"eval_kl_tau1": value}

    monkeypatch.setattr(measuring, "train", train)
    found = cells(read_recipe(tiny_recipe))[0]
    cell = Cell(found.name, found.factors, found.options, {**found.evaluation, "rows": 3}, [1.0, 2.0, 3.0])
    assert measuring.tune(cell, tmp_path / "cell")["chosen"] == 2.0
    cell = Cell(found.name, found.factors, found.options, {**found.evaluation, "rows": 3}, [1.0, 3.0])
    with pytest.raises(UsageError, match="the training has diverged at every rate"):
        measuring.tune(cell, tmp_path / "cell")


@pytest.mark.parametrize(
    "error, expected",
    [
        (UsageError("the split has\n  8 rows"), "trl_tempkd.errors.UsageError: the split has 8 rows"),
        (RuntimeError(), "RuntimeError"),
        ("The process of the cell ended with exit status -9. Its last output:\n\nKilled\n", None),
        ("", "no reason given"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(error, expected):
    if isinstance(error, Exception):
        try:
            try:
                raise KeyError("first")
            except KeyError as first:
                raise error from first
        except Exception:
            error = traceback.format_exc()
    expected = expected or "The process of the cell ended with exit status -9. Its last output: Killed"
    assert reason(error) == expected


def test_weights_are_deleted_where_they_are_not_kept(tiny_recipe, tmp_path, in_process):
    recipe = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    tiny_recipe.write_text(yaml.safe_dump({**recipe, "keep_models": False}), encoding="utf-8")
    _, fail = in_process
    fail.add(NAMES[1])
    assert sweep(tiny_recipe) == 1
    folder = tmp_path / "results"
    assert not list(folder.rglob("*.safetensors")) and (folder / NAMES[0] / "recipe.yaml").is_file()


def test_rows_of_text_have_no_samples(tiny_recipe, tmp_path, text_dataset):
    found = cells(read_recipe(tiny_recipe))[0]
    DatasetDict(train=text_dataset, test=text_dataset).save_to_disk(tmp_path / "text")
    cell = Cell(found.name, found.factors, {**found.options, "dataset_name": str(tmp_path / "text")}, found.evaluation)
    result = measuring.measure(cell, tmp_path / "results" / "cell")
    assert len(result["scores"]["kl_tau1"][0]) == 4 and "rouge_l" not in result["scores"]
    assert result["completions"] == []


def test_dry_run(tiny_recipe, tmp_path, capsys):
    assert sweep(tiny_recipe, "--dry_run") == 0
    said = capsys.readouterr().out
    differing, shared = yaml.safe_load_all(said.replace("# What they share", "---"))
    assert list(differing) == NAMES
    assert differing[NAMES[0]] == {"divergence": "forward_kl", "kd_temperature": 1.0}
    assert shared["every cell"]["max_steps"] == 2 and shared["evaluation"]["rows"] == 4
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_step": 3}, "Unknown key 'max_step' in `base` or `overrides`; did you mean 'max_steps'?"),
        ({"divergence": "x"}, "got 'x'"),
        ({"kd_ratio": 2.0}, "`kd_ratio` must be in [0, 1], got 2.0."),
        ({"resume_from_checkpoint": "auto"}, "start from the beginning"),
        ({"dataset_name": "./nowhere"}, "no such data set: ./nowhere"),
    ],
)
def test_mistakes_are_one_line(changes, message, tiny_recipe, capsys):
    recipe = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    recipe["overrides"] = changes
    if "divergence" in changes:
        recipe["grid"]["divergence"] = ["x"]
    tiny_recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        sweep(tiny_recipe, "--dry_run")
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe, monkeypatch, capsys, tmp_path, make_model, tokenizer, prompt_dataset):
    """Every recipe is read, and its last cell runs, with stand-ins for models and data that aren't here."""
    monkeypatch.chdir(ROOT)
    assert f"trl-tempkd sweep --config {recipe.relative_to(ROOT).as_posix()}" in recipe.read_text(encoding="utf-8")
    read = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if "vocabulary_alignment" in read["base"]:
        student, teacher = save_pair_of_two(tmp_path, make_model, tokenizer, metaspace(seed=1))
        score = "bits_per_byte"
    else:
        (student, teacher), score = save_pair(tmp_path, make_model, tokenizer), "kl_tau1"
    splits = DatasetDict(train=prompt_dataset, test=prompt_dataset, written=prompt_dataset)
    splits.save_to_disk(tmp_path / "data")
    (tmp_path / "other.jsonl").write_text(
        '{"instruction": "cat", "input": "", "output": "mat"}\n' * 2, encoding="utf-8"
    )
    stand_ins = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "teacher_model_init_kwargs": {},
        "dataset_name": str(tmp_path / "data"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_length": 48,
        "max_new_tokens": 4,
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
    }
    read["overrides"] = {**read.get("overrides", {}), **stand_ins}
    if "teacher_cache" in read_recipe(recipe)["base"]:
        read["overrides"]["teacher_cache"] = None  # the teacher itself is there
    for grid in grids_of(read):
        for name in ("max_steps", "model_name_or_path", "teacher_model_name_or_path", "teacher_cache"):
            grid.pop(name, None)
    few = {"rows": 4, "seeds": [10], "max_new_tokens": 4, "diagnostics_rows": 2}
    few["datasets"] = dict.fromkeys(read["evaluation"].get("datasets", {}), str(tmp_path / "other.jsonl"))
    read["evaluation"] |= few
    here = tmp_path / recipe.name
    here.write_text(yaml.safe_dump(read), encoding="utf-8")
    assert sweep(here, "--dry_run") == 0
    cell = cells(read_recipe(here))[-1]
    result = measuring.measure(cell, tmp_path / "results" / cell.name)
    names = {"rouge_l", score, *(f"rouge_l@{name}" for name in few["datasets"])}
    assert names <= result["scores"].keys() and np.isfinite(result["scores"][score]).all()


def test_shares_of_the_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert pool.share_of_machine(1, 2, 1) == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "6"}
    assert [pool.share_of_machine(i, 4, 0.5)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["4", "4", "6", "6"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 6)
    assert pool.share_of_machine(1, 3, 0) == {"OMP_NUM_THREADS": "2"}
    with pytest.raises(ValueError, match="3 workers with 1 GPUs per cell need 3 GPUs, got 2"):
        pool.share_of_machine(0, 3, 1)


def test_a_cell_that_another_process_runs_is_waited_for(tiny_recipe, monkeypatch, in_process):
    ran, _ = in_process
    run_cell, busy = pool.run_cell, [NAMES[2]]

    def sometimes_busy(results_dir, name, *rest):
        if name in busy:
            busy.remove(name)
            return pool.BUSY
        return run_cell(results_dir, name, *rest)

    monkeypatch.setattr(pool, "run_cell", sometimes_busy)
    assert sweep(tiny_recipe) == 0
    assert ran == [NAMES[0], NAMES[1], NAMES[3], NAMES[2]]


def test_an_interruption_is_one_line(tiny_recipe, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "run_local", interrupted)
    assert sweep(tiny_recipe) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [processes.OwnProcess, processes.ForkingProcess])
def test_a_process_that_dies_is_a_failure(kind, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cell.json").write_text("{", encoding="utf-8")
    process = kind(".", {"PYTHONPATH": "", "PYTHONHOME": "/nowhere"})
    assert pool.run_cell(str(tmp_path), "a", process) == pool.FAILED
    assert "ended with exit status 1" in (tmp_path / "a.error.txt").read_text(encoding="utf-8")


@pytest.mark.distributed
def test_killed_and_resumed(tiny_recipe, tmp_path, in_process):
    """`kill -9` of the sweep ends the cell that runs; the same command goes on with it, and skips what is finished."""
    ran, fail = in_process
    fail |= set(NAMES[1:])
    assert sweep(tiny_recipe) == 1
    first, second = (tmp_path / "results" / f"{name}.json" for name in NAMES[:2])
    at = first.stat().st_mtime_ns

    line = [sys.executable, "-m", "trl_tempkd", "sweep", "--config", str(tiny_recipe)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started = second.with_suffix("") / "output.log"
    deadline = time.monotonic() + 600
    while not started.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert second.with_suffix("").is_dir() and not second.exists()
    pool.wait_until_free([second.stem], tmp_path / "results", 0.1)  # the cell sees that nobody waits for it

    ran.clear()
    fail.clear()
    assert sweep(tiny_recipe) == 0
    assert ran == NAMES[1:]
    assert first.stat().st_mtime_ns == at
    assert len({json.dumps(json.loads(path.read_text())["hashes"]) for path in (first, second)}) == 1


def test_ray_is_asked_for_only_where_it_is_needed(tiny_recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match="2"):
        sweep(tiny_recipe, "--launcher", "ray")
    assert "--launcher ray needs Ray: pip install '.[ray]'" in capsys.readouterr().err


def test_ray_leaves_signals_alone(monkeypatch, tmp_path):
    """It ends a process that is told to stop by a handler of its own, without the line that says what goes on."""

    def init(**_):
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    ray = SimpleNamespace(is_initialized=lambda: False, init=init, remote=lambda **_: lambda cell: cell)
    monkeypatch.setattr(pool, "import_ray", lambda: ray)
    before = signal.getsignal(signal.SIGTERM)
    assert list(pool.run_ray(lambda: None, tmp_path, 0)) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.distributed
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray isn't installed")
@pytest.mark.filterwarnings("ignore")
def test_ray(tiny_recipe, tmp_path):
    import ray

    changed = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    changed["grid"]["tau"] = [1.0]  # a process for each cell imports for seconds
    tiny_recipe.write_text(yaml.safe_dump(changed), encoding="utf-8")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert sweep(tiny_recipe, "--launcher", "ray", "--gpus_per_cell", "0") == 0
    finally:
        ray.shutdown()
    assert {path.stem for path in (tmp_path / "results").glob("*.json")} == set(NAMES[::2])


def test_shares_of_a_gpu_are_checked(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.make_parser("x").parse_args(["--config", "y", "--gpus_per_cell", "2"])
    assert "a share of a GPU" in capsys.readouterr().err
