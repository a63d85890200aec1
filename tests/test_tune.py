# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tuning: recipe, space, the store and what survives in it, trials, and the files."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from datasets import DatasetDict, load_from_disk
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from standins import save_pair

from trl_tempkd import cli
from trl_tempkd.commands import distill
from trl_tempkd.files import Unwritable
from trl_tempkd.fingerprint import fingerprint
from trl_tempkd.study.runs import processes, work
from trl_tempkd.study.runs.study import DATABASE, NAME, open_storage
from trl_tempkd.study.runs.trial import Reporter
from trl_tempkd.study.tune import run as running
from trl_tempkd.study.tune.recipe import read_tuning
from trl_tempkd.study.tune.results import row_of, state_of
from trl_tempkd.study.tune.space import Choice, Range, read_space
from trl_tempkd.study.tune.store import JOURNAL, Store


ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes/tune").glob("*.yaml"))
BETA = {"jsd": {"beta": {"low": 0.05, "high": 0.95}}}
TAU = {"low": 1.0, "high": 8.0, "log": True}


def recipe_of(folder: Path, **changes) -> Path:
    recipe = {"base": {"model_name_or_path": "s"}, "space": {"tau": TAU}, **changes}
    path = folder / "tune.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}), encoding="utf-8")
    return path


@pytest.fixture
def tiny_recipe(tmp_path, make_model, tokenizer, prompt_dataset):
    """`tiny_recipe(**changes)`: a study on random models, trials of two steps."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    base = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": str(tmp_path / "data"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "max_length": 48,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    space = {
        "divergence": ["forward_kl", BETA],
        "tau": TAU,
        "learning_rate": {"low": "1e-3", "high": 0.1, "log": True},
    }

    def make(**changes) -> Path:
        found = {"base": base, "space": space, "rows": 3, "trials": 3, "results_dir": str(tmp_path / "results")}
        return recipe_of(tmp_path, **{**found, **changes})

    return make


@pytest.fixture
def in_process(monkeypatch):
    """The trials run in this process; `fail` has the numbers of those that raise. The list has those that ran."""

    def run(self, folder):
        ran.append(int(folder.name))
        (folder / "output.log").write_text("Killed\n", encoding="utf-8")
        return -9 if int(folder.name) in vanish else work.run(folder / "cell.json")

    def measure(cell, folder):
        if int(cell.name) in fail:
            raise RuntimeError("out of luck")
        return measured(cell, folder)

    ran: list[int] = []
    fail: set[int] = set()
    vanish: set[int] = set()
    measured = work.measure
    monkeypatch.setattr(work, "measure", measure)
    for kind in (processes.OwnProcess, processes.ForkingProcess):
        monkeypatch.setattr(kind, "run", run)
    return ran, fail, vanish


def tune(recipe: Path, *options: str) -> int:
    return cli.main(["tune", "--config", str(recipe), *options])


def trials_of(folder: Path) -> list[dict]:
    return json.loads((folder / "trials.json").read_text(encoding="utf-8"))["trials"]


def drawn(recipe: Path, folder: Path, count: int, score=lambda factors: factors["tau"]) -> list[dict]:
    """The settings of the first trials of a study in which nothing is trained."""
    store, found = Store(folder, read_tuning(recipe)), []
    for _ in range(count):
        trial, factors, held = store.ask()
        store.tell(trial, {"state": "complete", "score": score(factors)})
        held.close()
        found.append(factors)
    return found


class TestSpace:
    def test_parameters_belong_to_their_divergence(self, tmp_path):
        space = {"divergence": ["forward_kl", BETA, {"skew_reverse_kl": {"alpha": [0.1, 0.2]}}], "tau": TAU}
        recipe = recipe_of(tmp_path, space=space, trials=30)
        found = drawn(recipe, tmp_path / "results", 30)
        names = [each["divergence"] for each in found]
        assert "forward_kl" in names
        betas = [name["jsd"]["beta"] for name in names if "jsd" in name]
        alphas = [name["skew_reverse_kl"]["alpha"] for name in names if "skew_reverse_kl" in name]
        assert betas and all(0.05 <= beta <= 0.95 for beta in betas)
        assert set(alphas) == {0.1, 0.2}
        for trial in Store(tmp_path / "results", read_tuning(recipe)).trials:
            own = {"jsd": {"jsd.beta"}, "skew_reverse_kl": {"skew_reverse_kl.alpha"}}
            assert set(trial.params) == {"divergence", "tau"} | own.get(trial.params["divergence"], set())

    def test_it_is_not_random_alone(self, tmp_path):
        """After the first ten, settings come from what was found: a score that wants a low tau gets lower ones."""
        found = drawn(recipe_of(tmp_path, trials=30), tmp_path / "results", 30)
        taus = [each["tau"] for each in found]
        assert sum(taus[10:]) / 20 < 0.6 * sum(taus[:10]) / 10

    def test_what_has_no_effect_is_not_asked_for(self):
        space = read_space(
            {
                "tau": [1, 4.0],
                "mode": ["both", "teacher"],
                "kd_temperature_schedule": ["constant", "linear"],
                "kd_temperature_final": [1.0, 2.0],
            },
            "space",
        )

        def draw(**values):
            asked = []
            space.draw(lambda name, _: (asked.append(name), values[name])[1], {})
            return asked

        both = {"mode": "both", "kd_temperature_schedule": "linear", "kd_temperature_final": 2.0}
        assert draw(tau=1, **both) == ["tau", "kd_temperature_schedule", "kd_temperature_final"]
        assert draw(tau=4.0, **both) == ["tau", "mode", "kd_temperature_schedule", "kd_temperature_final"]
        assert draw(tau=4.0, mode="teacher") == ["tau", "mode"]
        assert draw(tau=1, kd_temperature_schedule="constant") == ["tau", "kd_temperature_schedule"]

    def test_corners(self):
        space = read_space(
            {"divergence": ["forward_kl", BETA], "tau": {"low": 1, "high": 8}, "lmbda": [0, 1]}, "space"
        )
        found = [[each[name] for name in ("divergence", "tau", "lmbda")] for each in space.corners({})]
        assert found == [
            ["forward_kl", 1.0, 0],
            [{"jsd": {"beta": 0.05}}, 1.0, 0],
            ["forward_kl", 8.0, 0],
            ["forward_kl", 1.0, 1],
            [{"jsd": {"beta": 0.95}}, 1.0, 0],
        ]

    def test_kinds_of_values(self):
        space = read_space(
            {
                "tau": {"low": 1, "high": 3},
                "warmup_steps": {"low": 0, "high": 5},
                "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
                "lr_scheduler_kwargs": [{"min_lr": 0.1}, None],
                "divergence": [{"jsd": {"beta": 0.3}}],
            },
            "space",
        )
        assert space.others["tau"] == Range(1.0, 3.0)
        assert space.others["learning_rate"] == Range(1e-4, 1e-2, log=True)
        assert space.others["lr_scheduler_kwargs"].labels == {'{"min_lr": 0.1}': {"min_lr": 0.1}, "null": None}
        # A value that stands alone is no choice, and not asked for
        assert space.divergences == {"jsd": {"beta": Choice((0.3,))}}
        assert space.draw(lambda name, values: next(iter(values)), {})["divergence"] == {"jsd": {"beta": 0.3}}

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"spaces": {}}, "Unknown key 'spaces' in .*; did you mean 'space'"),
            ({"space": None}, "has no `space`"),
            ({"space": {"divergense": []}}, "'divergense' in `space` .*did you mean 'divergence'"),
            ({"space": {"divergence": ["foward_kl"]}}, "'foward_kl' in `space` .*did you mean 'forward_kl'"),
            ({"space": {"divergence": [{"jsd": {"bet": [0.1]}}]}}, "has 'bet', but jsd takes beta"),
            ({"space": {"divergence": [{"jsd": {"beta": {"low": 0.5, "high": 2}}}]}}, "does not fit jsd"),
            ({"space": {"divergence": ["jsd", BETA]}}, "jsd stands there twice"),
            ({"space": {"divergence": "jsd"}}, "expected a list of divergences, got 'jsd'"),
            ({"space": {"divergence": [{"jsd": {}, "tvd": {}}]}}, "expected {name: {parameter: values}}"),
            ({"space": {"tau": {"low": 1, "hi": 2}}}, "'hi' in 'tau' in `space` .*did you mean 'high'"),
            ({"space": {"tau": {"low": 2, "high": 1}}}, "'tau' .*: expected {low: number, high: larger number"),
            ({"space": {"tau": {"low": 0, "high": 1, "log": True}}}, "the range starts above 0, got 0"),
            ({"space": {"tau": {"low": 0, "high": 1}}}, "expected positive numbers, got 0"),
            ({"space": {"tau": 2.0}}, "expected a list of values or a range"),
            ({"space": {"kd_temperature": [1.0]}}, "say `tau`"),
            ({"space": {"mode": ["student"]}}, "expected both or teacher, got 'student'"),
            ({"space": {"seed": [1, 2]}}, "finds the luckiest"),
            ({"space": {"max_steps": {"low": 1.5, "high": 3}}}, "expected whole numbers"),
            ({"score": "eval_loss"}, "eval_loss is the objective itself, .*Take eval_kl_tau1, or rouge_l"),
            ({"score": "kl"}, "expected eval_kl_tau1 or rouge_l, got 'kl'"),
            ({"sampling": {"seeds": [1]}}, "`sampling` .* is for the score rouge_l"),
            ({"score": "rouge_l", "sampling": {"seed": [1]}}, "'seed' in `sampling` .*did you mean 'seeds'"),
            ({"pruning": {"method": "best"}}, "expected {method: median or hyperband"),
            ({"pruning": {"eval_steps": 1}}, "say `max_steps`"),
            ({"score": "rouge_l", "pruning": {"eval_steps": 1}}, "measured in training: eval_kl_tau1, not rouge_l"),
            ({"overrides": {"max_steps": 9}, "pruning": {"eval_step": 1}}, "did you mean 'eval_steps'"),
            ({"overrides": {"max_steps": 9}, "pruning": {"method": "median"}}, "`eval_steps` .* got None"),
            (
                {"overrides": {"max_steps": 9}, "pruning": {"eval_steps": 9}},
                "fewer than the 9 steps of a trial, got 9",
            ),
            ({"rows": 1}, "`rows` in .*: expected a whole number from 2 on, got 1"),
            ({"trials": 0}, "`trials` in .*: expected a whole number from 1 on, got 0"),
        ],
    )
    def test_mistakes(self, changes, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            read_tuning(recipe_of(tmp_path, **changes))


class TestStore:
    def test_the_same_seed_draws_the_same(self, tmp_path):
        recipe = recipe_of(tmp_path, space={"divergence": ["forward_kl", BETA], "tau": TAU}, trials=14)
        first, second = (drawn(recipe, tmp_path / name, 14) for name in "ab")
        assert first == second
        other = drawn(
            recipe_of(tmp_path, space=yaml.safe_load(recipe.read_text())["space"], seed=1), tmp_path / "c", 3
        )
        assert other != first[:3]

    def test_an_interrupted_trial_is_run_again_and_changes_nothing(self, tmp_path):
        recipe = recipe_of(tmp_path, space={"divergence": ["forward_kl", BETA], "tau": TAU}, trials=14)
        whole = drawn(recipe, tmp_path / "whole", 14)
        folder = tmp_path / "cut"
        assert drawn(recipe, folder, 11) == whole[:11]
        store = Store(folder, read_tuning(recipe))
        trial, factors, held = store.ask()
        held.close()  # its process is gone, and has told nobody
        rest = drawn(recipe, folder, 3)
        assert factors == whole[11] == rest[0] and rest == whole[11:]
        assert state_of(store.trials[trial.number]) == "interrupted"
        assert store.trials[12].user_attrs["again"] == 11
        assert len(store.counted) == 14 and Store(folder, read_tuning(recipe)).ask() is None

    def test_a_trial_that_somebody_runs_is_left_alone(self, tmp_path):
        recipe = recipe_of(tmp_path, trials=2)
        store = Store(tmp_path / "results", read_tuning(recipe))
        other = Store(tmp_path / "results", read_tuning(recipe))
        first, _, held = store.ask()
        second, _, also_held = other.ask()
        assert (first.number, second.number) == (0, 1)
        assert store.ask() is None and [state_of(trial) for trial in other.trials] == ["running", "running"]
        held.close()
        also_held.close()

    def test_a_study_of_an_earlier_version_goes_on(self, tmp_path):
        """Its store was a journal, whose last line a killed process may have left without an end."""
        recipe = recipe_of(tmp_path, trials=4)
        whole = drawn(recipe, tmp_path / "whole", 4)
        assert drawn(recipe, tmp_path / "first", 2) == whole[:2]
        folder = tmp_path / "earlier"
        folder.mkdir()
        journal = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        source = open_storage(tmp_path / "first" / DATABASE)
        optuna.copy_study(from_study_name=NAME, from_storage=source, to_storage=journal, to_study_name=NAME)
        study = optuna.load_study(study_name=NAME, storage=journal)
        study.enqueue_trial({"tau": whole[2]["tau"]})
        study.ask()  # and so it runs, and its process is gone
        with (folder / JOURNAL).open("ab") as file:
            file.write(b'{"op_code":4,"worker_id":"x')
        (folder / f"{DATABASE}.part").write_text("of one that was killed while it copied")
        assert drawn(recipe, folder, 2) == whole[2:]
        states = [state_of(trial) for trial in Store(folder, read_tuning(recipe)).trials]
        assert states == ["complete", "complete", "interrupted", "complete", "complete"]

    @pytest.mark.distributed
    def test_killed_while_it_writes(self, tmp_path):
        """`kill -9` between and within writes: nobody waits for a lock, and nothing half written is read."""
        recipe, folder = recipe_of(tmp_path, trials=100_000), tmp_path / "results"
        drawn(recipe, folder, 1)
        code = """
import sys, optuna
from trl_tempkd.study.runs.study import NAME, open_storage
study = optuna.load_study(study_name=NAME, storage=open_storage(sys.argv[1]))
print(flush=True)
while True:
    trial = study.ask()
    trial.set_user_attr("much", "x" * 2000)
    study.tell(trial, trial.suggest_float("tau", 1.0, 8.0, log=True))
"""
        line, before = [sys.executable, "-c", code, str(folder / DATABASE)], 1
        for seconds in (0.3, 0.4):
            process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(seconds)
            process.kill()
            assert process.communicate() == (b"", b"") and process.returncode == -signal.SIGKILL
            start = time.monotonic()
            store = Store(folder, read_tuning(recipe))
            trial, _, held = store.ask()
            assert time.monotonic() - start < 20  # for the lock of a journal Optuna waits 30 seconds
            store.tell(trial, {"state": "complete", "score": 1.0})
            held.close()
            states = [state_of(trial) for trial in store.trials]
            assert states.count("complete") > before and states.count("running") == 0
            before = states.count("complete")

    def test_another_recipe_is_an_error_that_names_the_key(self, tmp_path):
        folder = tmp_path / "results"
        Store(folder, read_tuning(recipe_of(tmp_path, base={"learning_rate": 0.1})))
        Store(folder, read_tuning(recipe_of(tmp_path, base={"learning_rate": 0.1}, trials=99, workers=2)))
        for changes, message in [
            ({"base": {"learning_rate": 0.2}}, "made with base.learning_rate: 0.1, and the recipe now says 0.2"),
            ({"space": {"tau": {"low": 1.0, "high": 9.0}}}, "made with space.tau: {.*8.0.*}, and .* now says {.*9.0"),
            ({"rows": 5}, "made with rows: 128, and the recipe now says 5"),
            ({"score": "rouge_l"}, "and the recipe now says"),
        ]:
            with pytest.raises(ValueError, match=message):
                Store(folder, read_tuning(recipe_of(tmp_path, **{"base": {"learning_rate": 0.1}, **changes})))


def test_a_study(tiny_recipe, tmp_path, in_process, capsys, prompt_dataset):
    ran, fail, vanish = in_process
    fail.add(1)
    recipe = tiny_recipe(trials=4)
    assert tune(recipe) == 0
    assert ran == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert "trial 1: failed" in said and "RuntimeError: out of luck" in said and "3 complete, 1 failed" in said
    folder = tmp_path / "results"
    rows = trials_of(folder)
    assert [row["state"] for row in rows] == ["complete", "failed", "complete", "complete"]
    assert rows[1]["reason"] == "RuntimeError: out of luck" and rows[1]["score"] is None
    assert "out of luck" in (folder / "trials/0001.error.txt").read_text(encoding="utf-8")
    assert all(0 < row["score"] < 10 for row in rows if row["state"] == "complete")
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["score"] or 0) for row in table] == [row["score"] or 0 for row in rows]
    assert {"divergence", "jsd.beta", "tau", "learning_rate"} < table[0].keys()
    assert not list(folder.rglob("*.safetensors"))

    # Scored on rows of the training split, which it is not trained on
    data = load_from_disk(str(folder / "data"))
    assert sorted([*data["train"]["prompt"], *data["validation"]["prompt"]]) == sorted(prompt_dataset["prompt"])
    assert len(data["validation"]) == 3
    prints = {split: fingerprint(rows) for split, rows in data.items()}
    assert json.loads((folder / "trials.json").read_text(encoding="utf-8"))["fingerprints"] == prints
    line = f"Fingerprints of the rows: train {prints['train']}, validation {prints['validation']}"
    assert line in said and f"# {line}\n" in (folder / "best.yaml").read_text(encoding="utf-8")

    # Nothing is left to do; then some more, on the rows that were held out at the start, whatever the data is by now
    ran.clear()
    DatasetDict(train=prompt_dataset.take(6), test=prompt_dataset).save_to_disk(tmp_path / "data")
    assert tune(recipe) == 0
    assert ran == [] and line in capsys.readouterr().out
    vanish.add(4)
    assert tune(recipe, "--trials", "6", "--workers", "2") == 0
    assert ran == [4, 5]
    rows = trials_of(folder)
    assert "ended with exit status -9" in rows[4]["reason"] and "Killed" in rows[4]["reason"]
    best = min((row for row in rows if row["score"]), key=lambda row: row["score"])
    assert f"best {best['score']:.4f} (trial {best['trial']})" in capsys.readouterr().out

    # The best as a recipe: it parses and trains, on the whole split
    text = (folder / "best.yaml").read_text(encoding="utf-8")
    assert f"#   trl-tempkd distill --config {folder / 'best.yaml'}\n" in text and f"trial {best['trial']}:" in text
    values, for_launch, _ = distill.make_parser().parse(["--config", str(folder / "best.yaml")], launched=True)
    assert for_launch == []
    assert values[1].learning_rate == pytest.approx(best["parameters"]["learning_rate"])
    assert values[1].kd_temperature == pytest.approx(best["parameters"]["tau"])
    assert values[0].dataset_name == str(tmp_path / "data")
    distill.main(*values)
    assert (folder / "best/model.safetensors").is_file()


def test_a_full_disk_is_no_result(tiny_recipe, tmp_path, in_process, monkeypatch, capsys):
    """Whatever the settings, it would fail. The study stops, and the trial is run again."""
    ran, _, _ = in_process
    measured = work.measure

    def full(cell, folder):
        (folder / "output.log").write_text("Traceback ...\n\ncannot write here: No space left on device\n")
        if cell.trial["number"] == 1:
            raise Unwritable("cannot write here: No space left on device")
        return measured(cell, folder)

    monkeypatch.setattr(work, "measure", full)
    recipe = tiny_recipe()
    with pytest.raises(SystemExit) as stop:
        tune(recipe)
    assert stop.value.code == 2 and ran == [0, 1]
    said = "error: 0001: cannot write here: No space left on device; the same command goes on where it stopped"
    assert said in capsys.readouterr().err
    monkeypatch.setattr(work, "measure", measured)
    assert tune(recipe) == 0
    found = trials_of(tmp_path / "results")
    assert [trial["state"] for trial in found] == ["complete", "interrupted", "complete", "complete"]
    assert found[2]["parameters"] == found[1]["parameters"]


def test_the_same_seed_gives_the_same_scores(tiny_recipe, tmp_path, in_process):
    recipe = tiny_recipe(trials=2)
    for name in ("a", "b"):
        assert tune(recipe, "--results_dir", str(tmp_path / name)) == 0
    first, second = ([(row["score"], row["parameters"]) for row in trials_of(tmp_path / name)] for name in ("a", "b"))
    assert first == second


def test_the_score_is_of_the_student_that_was_trained(tiny_recipe, tmp_path, in_process):
    """A learning rate at which nothing is learnt scores worse than one at which something is."""
    assert tune(tiny_recipe(space={"learning_rate": [1e-9, 1e-2]}, trials=6)) == 0
    scores = {row["parameters"]["learning_rate"]: row["score"] for row in trials_of(tmp_path / "results")}
    assert scores[1e-2] < scores[1e-9]


@pytest.mark.parametrize("method", ["median", "hyperband"])
def test_pruning(method, tiny_recipe, tmp_path, in_process):
    """A trial that is behind at a step is stopped there: one with a learning rate far too large, after good ones."""
    own = {"median": {"startup_trials": 2}, "hyperband": {"reduction_factor": 2}}[method]
    recipe = tiny_recipe(
        base={**yaml.safe_load(tiny_recipe().read_text())["base"], "max_steps": 4},
        space={"learning_rate": [3e-3, 1e-2, 2e-2, 3.0]},
        pruning={"method": method, "eval_steps": 1, **own},
        trials=8,
    )
    assert tune(recipe) == 0
    rows = trials_of(tmp_path / "results")
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and all(len(row["by_step"]) == row["steps"] < 4 for row in pruned)
    complete = [row for row in rows if row["state"] == "complete"]
    assert complete and all(list(row["by_step"]) == ["1", "2", "3"] for row in complete)
    if method == "median":
        assert 3.0 in {row["parameters"]["learning_rate"] for row in pruned}
        assert 3.0 not in {row["parameters"]["learning_rate"] for row in complete}


def test_rouge_l(tiny_recipe, tmp_path, in_process):
    sampling = {"seeds": [10], "max_new_tokens": 4}
    assert tune(tiny_recipe(score="rouge_l", sampling=sampling, trials=2)) == 0
    rows = trials_of(tmp_path / "results")
    assert all(row["state"] == "complete" and 0 <= row["score"] <= 100 for row in rows)
    assert all(row["scores"]["rouge_l"] == row["score"] and row["scores"]["kl_tau1"] > 0 for row in rows)
    best = max(rows, key=lambda row: row["score"])
    assert f"rouge_l {best['score']:.4f}" in (tmp_path / "results/best.yaml").read_text(encoding="utf-8")


def test_no_trial_is_complete(tiny_recipe, in_process, capsys):
    _, fail, _ = in_process
    fail |= {0, 1}
    assert tune(tiny_recipe(trials=2)) == 1
    assert "No trial is complete" in capsys.readouterr().out


def test_a_score_that_is_not_finite(tmp_path):
    trial = optuna.create_study().ask()
    reporter = Reporter(trial, "eval_kl_tau1")
    state = type("State", (), {"global_step": 3, "max_steps": 9})
    with pytest.raises(ValueError, match="eval_kl_tau1 is nan after 3 steps: the training has diverged"):
        reporter.on_evaluate(None, state, None, metrics={"eval_kl_tau1": float("nan")})


def test_dry_run(tiny_recipe, tmp_path, capsys):
    recipe = tiny_recipe()
    assert tune(recipe, "--dry_run") == 0
    said = capsys.readouterr().out
    space, trials, shared = (
        yaml.safe_load(part)
        for part in said.replace("# The first", "---\n#").replace("# What", "---\n#").split("---\n")
    )
    assert space["space"]["jsd.beta"] == "0.05 to 0.95 (of jsd alone)"
    assert not (tmp_path / "results").exists()
    assert shared["base"]["max_steps"] == 2
    # What it shows is what is drawn
    found = drawn(recipe, tmp_path / "results", 3)
    assert [each["tau"] for each in trials["trials"].values()] == [each["tau"] for each in found]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"overrides": {"max_step": 3}}, "Unknown key 'max_step' in `base` or `overrides`"),
        ({"overrides": {"resume_from_checkpoint": "auto"}}, "start from the beginning"),
        ({"overrides": {"dataset_name": "./nowhere"}}, "no such data set: ./nowhere"),
        ({"space": {"kd_ratio": [1.0, 2.0]}}, "`kd_ratio` must be in [0, 1], got 2.0."),
        ({"space": {"kd_temperature_schedule": ["linear"]}}, "which needs `kd_temperature_final`"),
        ({"space": {"learning_rate": ["fast"]}}, "learning_rate in"),
        ({"score": "eval_loss"}, "Take eval_kl_tau1, or rouge_l"),
    ],
)
def test_mistakes_are_one_line(changes, message, tiny_recipe, capsys):
    with pytest.raises(SystemExit, match="2"):
        tune(tiny_recipe(**changes), "--dry_run")
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_optuna_is_asked_for_only_where_it_is_needed(tiny_recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="2"):
        tune(tiny_recipe())
    assert 'pip install ".[study]"' in capsys.readouterr().err


def test_an_interruption_is_one_line(tiny_recipe, tmp_path, monkeypatch, capsys, in_process):
    def interrupted(*_):
        raise KeyboardInterrupt

    ran, _, _ = in_process
    with monkeypatch.context() as patched:
        patched.setattr(running, "cell_of", interrupted)
        assert tune(tiny_recipe(trials=1)) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert tune(tiny_recipe(trials=1)) == 0
    assert ran == [1]  # trial 0 had begun, and is run again


@pytest.mark.distributed
def test_killed_and_resumed(tiny_recipe, tmp_path, in_process):
    """After `kill -9` in a trial the same command runs its settings again, and doesn't count it."""
    folder, recipe = tmp_path / "results", tiny_recipe(trials=2)
    line = [sys.executable, "-m", "trl_tempkd", "tune", "--config", str(recipe)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600
    while not (folder / "trials/0000/output.log").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (folder / DATABASE).is_file() and not (folder / "trials.json").exists()

    ran, _, _ = in_process
    assert tune(recipe) == 0
    rows = trials_of(folder)
    assert ran == [1, 2]
    assert [row["state"] for row in rows] == ["interrupted", "complete", "complete"]
    assert rows[0]["parameters"] == rows[1]["parameters"] != rows[2]["parameters"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe, monkeypatch, tmp_path, capsys, in_process, make_model, tokenizer, prompt_dataset):
    """Every recipe is read, and its first trial runs, with stand-ins for models and data."""
    monkeypatch.chdir(ROOT)
    assert f"trl-tempkd tune --config {recipe.relative_to(ROOT).as_posix()}" in recipe.read_text(encoding="utf-8")
    assert tune(recipe, "--dry_run") == 0
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "data")
    read = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    read["overrides"] |= {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "teacher_model_init_kwargs": {},
        "dataset_name": str(tmp_path / "data"),
        "per_device_train_batch_size": 2,
        "max_length": 48,
        "max_steps": 2,
        "warmup_steps": 0,
    }
    read |= {"rows": 3, "pruning": {**read["pruning"], "eval_steps": 1}, "output_dir": str(tmp_path / "results")}
    (tmp_path / recipe.name).write_text(yaml.safe_dump(read), encoding="utf-8")
    assert tune(tmp_path / recipe.name, "--trials", "1") == 0
    [row] = trials_of(tmp_path / "results")
    assert row["state"] == "complete" and list(row["by_step"]) == ["1"]
    assert row_of(Store(tmp_path / "results", read_tuning(tmp_path / recipe.name)).trials[0]) == row
