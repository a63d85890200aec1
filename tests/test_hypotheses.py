# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Hypotheses: how they are read, what made-up sweeps decide of them, and how often chance alone decides."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from trl_tempkd.errors import UsageError
from trl_tempkd.study.declared import read_hypotheses
from trl_tempkd.study.hypotheses import Contrast, decide
from trl_tempkd.study.statistics import estimate
from trl_tempkd.study.sweep import cells, read_recipe
from trl_tempkd.study.table import Cells, obstacles


ROOT = Path(__file__).parent.parent
FKL, RKL = "forward_kl", "reverse_kl"
OTHERS = ["jsd", "tvd", "todi"]
TAUS = (1.0, 2.0, 4.0)
ITEMS = 64

# Sweeps whose hypotheses are about nothing but their cells; those of one folder together
DECIDED = [
    ("study_tiny", "study_family"),
    *(
        (path.stem,)
        for path in sorted((ROOT / "recipes/sweeps").glob("study_*"))
        if path.stem not in ("study_tiny", "study_family")
    ),
    ("gpt2_dolly_day",),
    ("smollm2_360m_to_135m",),
]


def cell(divergence, tau, seed, scores, mode="both", steps=None):
    more = {} if steps is None else {"max_steps": steps}
    factors = {"divergence": divergence, "tau": tau, "mode": mode, **more, "seed": seed}
    return {
        "name": f"{divergence}-{tau}-{mode}-{seed}",
        "settings": {"factors": factors},
        "hashes": {"initial_weights": "w", "batch_order": f"b{seed}-{steps}", "items": "i"},
        "scores": scores,
    }


def sweep(means, seeds=5, noise=0.1, mode="both", score="rouge_l", rng=0):
    """Cells whose mean scores are these, by divergence and tau; items differ much, as prompts do."""
    rng, items = np.random.default_rng(rng), np.linspace(0, 9, ITEMS)
    return [
        cell(divergence, tau, seed, {score: [(mean + items + noise * rng.normal(size=ITEMS)).tolist()]}, mode)
        for divergence, by_tau in means.items()
        for tau, mean in by_tau.items()
        for seed in range(seeds)
    ]


def read(**kwargs):
    return read_hypotheses([{"name": "H", "says": "So it is.", **kwargs}], "x.yaml")


def outcome(results, **kwargs):
    [decision] = decide(read(**kwargs), results)
    return decision.outcome


# As the temperature paper says: reverse KL ahead at tau 1, forward KL overtakes
CLAIMED = {FKL: {1.0: 7.0, 2.0: 11.0, 4.0: 9.0}, RKL: {1.0: 9.0, 2.0: 9.5, 4.0: 7.0}}
CASES = {
    "a contrast": ({"a": {"divergence": RKL, "tau": 1}, "b": {"divergence": FKL, "tau": 1}}, "supported"),
    "its opposite": ({"a": {"divergence": FKL, "tau": 1}, "b": {"divergence": RKL, "tau": 1}}, "contradicted"),
    "less": (
        {"a": {"divergence": FKL, "tau": 1}, "b": {"divergence": RKL, "tau": 1}, "expect": "less"},
        "supported",
    ),
    "some of a": ({"a": {"divergence": FKL, "tau": [1, 2]}, "b": {"divergence": RKL}}, "supported"),
    "every of a": ({"a": {"divergence": FKL, "tau": {"every": [1, 2]}}, "b": {"divergence": RKL}}, "contradicted"),
    "most of a": ({"a": {"divergence": FKL, "tau": {"most": [1, 2, 4]}}, "b": {"divergence": RKL}}, "supported"),
    "best against best": (
        {"a": {"divergence": FKL, "tau": [1, 2, 4]}, "b": {"divergence": RKL, "tau": [1, 2, 4]}},
        "supported",
    ),
    "a change": ({"a": {"divergence": FKL}, "change": {"tau": [1, 2]}}, "supported"),
    "a change that is larger": (
        {"a": {"divergence": FKL}, "b": {"divergence": RKL}, "change": {"tau": [1, 2]}, "and": "a_gains"},
        "supported",
    ),
    "not worse": (
        {
            "a": {"divergence": RKL, "tau": 2},
            "b": {"divergence": RKL, "tau": 1},
            "expect": "not_worse",
            "margin": 0.5,
        },
        "supported",
    ),
    "worse": (
        {
            "a": {"divergence": RKL, "tau": 4},
            "b": {"divergence": RKL, "tau": 1},
            "expect": "not_worse",
            "margin": 0.5,
        },
        "contradicted",
    ),
    "the same": (
        {"a": {"divergence": RKL, "tau": 2}, "b": {"divergence": RKL, "tau": 1}, "expect": "same", "margin": 1},
        "supported",
    ),
    "not the same": (
        {"a": {"divergence": RKL, "tau": 2}, "b": {"divergence": RKL, "tau": 1}, "expect": "same", "margin": 0.1},
        "contradicted",
    ),
    "no such cells": ({"a": {"divergence": "tvd", "tau": 1}, "b": {"divergence": FKL, "tau": 1}}, "not tested"),
}


class TestDecisions:
    @pytest.mark.parametrize("name", CASES)
    def test_cases(self, name):
        hypothesis, expected = CASES[name]
        assert outcome(sweep(CLAIMED), **hypothesis) == expected

    def test_a_tau_that_harms_both_helps_neither(self):
        """Forward KL loses less than reverse KL: the change is larger, and is no help."""
        harmed = {FKL: {1.0: 9.0, 2.0: 8.0}, RKL: {1.0: 9.0, 2.0: 5.0}}
        change = {"a": {"divergence": FKL}, "b": {"divergence": RKL}, "change": {"tau": [1, 2]}}
        assert outcome(sweep(harmed), **change) == "supported"
        assert outcome(sweep(harmed), **change, **{"and": "a_gains"}) == "contradicted"

    def test_noise_supports_nothing(self):
        """Large noise leaves "keeps up" and "the same" undecided."""
        noisy = sweep({FKL: {1.0: 7.0}, RKL: {1.0: 7.0}}, noise=30.0)
        sides = {"a": {"divergence": FKL, "tau": 1}, "b": {"divergence": RKL, "tau": 1}}
        assert outcome(noisy, **sides, expect="not_worse", margin=0.5) == "undecided"
        assert outcome(noisy, **sides, expect="same", margin=0.5) == "undecided"

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_few_seeds_decide_nothing(self, seeds):
        hypothesis, _ = CASES["a contrast"]
        assert outcome(sweep(CLAIMED, seeds=seeds), **hypothesis) == "too few runs"
        assert outcome(sweep(CLAIMED, seeds=seeds), **hypothesis, over="items") == "supported"

    def test_a_score_that_is_not_finite_decides_nothing(self):
        results = sweep(CLAIMED)
        results[0]["scores"]["rouge_l"][0][3] = float("nan")
        [decision] = decide(read(a={"divergence": RKL, "tau": 1}, b={"divergence": FKL, "tau": 1}), results)
        assert decision.outcome == "undecided" and "isn't finite in forward_kl-1.0-both-0" in decision.sentence

    def test_other_scores_are_counted(self):
        results = sweep(CLAIMED)
        for number, result in enumerate(results):
            own = np.array(result["scores"]["rouge_l"])
            result["scores"] |= {"kl_tau1": (-own).tolist(), "self_bleu": own.tolist(), "length": own.tolist()}
            result["scores"]["agreement"] = np.random.default_rng(number).normal(0, 9, own.shape).tolist()
        [decision] = decide(read(**CASES["a contrast"][0]), results)
        assert (decision.agree, decision.contradict) == (["kl_tau1"], ["self_bleu"])

    def test_one_of_each_setting(self):
        """What is not named is held equal; the run at tau 1 is of both modes."""
        later = {name: {tau: v for tau, v in by_tau.items() if tau > 1} for name, by_tau in CLAIMED.items()}
        results = sweep(CLAIMED) + sweep(later, mode="teacher")
        found = decide(read(a={"divergence": FKL}, change={"tau": [1, 2]}), results)
        assert [each.setting for each in found] == [{"mode": "both"}, {"mode": "teacher"}]
        assert {each.outcome for each in found} == {"supported"}

    def test_steps_that_differ_on_purpose(self):
        items = np.linspace(0, 1, ITEMS)
        results = [
            cell(FKL, 1.0, seed, {"rouge_l": [(items + steps / 100 + seed * items / 9).tolist()]}, steps=steps)
            for steps in (100, 400)
            for seed in (1, 2, 3)
        ]
        assert not obstacles(results)
        assert outcome(results, a={"divergence": FKL, "tau": 1}, change={"max_steps": [100, 400]}) == "supported"

    def test_holm_over_the_page(self):
        rng = np.random.default_rng(3)
        results = sweep({FKL: {1.0: 7.0}, RKL: {1.0: 7.65}}, noise=3.0, rng=rng)
        sides = {"a": {"divergence": RKL, "tau": 1}, "b": {"divergence": FKL, "tau": 1}}
        one = decide(read(**sides), results)
        assert one[0].outcome == "supported" and one[0].p == one[0].p_holm
        idle = {"a": {"divergence": FKL, "tau": 1}, "b": {"divergence": FKL, "tau": 1}}
        many = [{"name": f"H{i}", "says": "So it is.", **(idle if i else sides)} for i in range(200)]
        crowd = decide(read_hypotheses(many, "x.yaml"), results)
        assert crowd[0].p == one[0].p and crowd[0].outcome == "undecided"


# The setting of the simulation: deviations of a difference by item and of the rest, for 64 items half of what they are
# for 256, which is the same for the mean
ITEM, REST = 2.0, 3.0
KINDS = {
    "a contrast": {"a": {"divergence": RKL, "tau": 1}, "b": {"divergence": FKL, "tau": 1}},
    "some": {"a": {"divergence": FKL, "tau": [2, 4]}, "b": {"divergence": RKL}},
    "a change": {"a": {"divergence": FKL}, "change": {"tau": [1, 2]}},
    "a change that is larger": {
        "a": {"divergence": FKL},
        "b": {"divergence": RKL},
        "change": {"tau": [1, 2]},
        "and": "a_gains",
    },
    "most": {"a": {"divergence": {"most": OTHERS}}, "change": {"tau": [1, 2]}},
    "the mean": {"a": {"divergence": {"mean": OTHERS}}, "change": {"tau": [1, 2]}},
    "best against best": {
        "a": {"divergence": FKL, "tau": [1, 2, 4]},
        "b": {"divergence": RKL, "tau": [1, 2, 4]},
    },
    # At the edge of their margins, where a mistake is likeliest
    "not worse": {
        "a": {"divergence": [FKL, RKL], "tau": [1, 2]},
        "b": {"divergence": OTHERS, "tau": [1, 2]},
        "expect": "not_worse",
        "margin": 0.5,
    },
    "the same": {
        "a": {"divergence": FKL, "tau": 1},
        "b": {"divergence": "jsd", "tau": 1},
        "expect": "same",
        "margin": 0.5,
    },
}
EDGE = dict.fromkeys(OTHERS, 0.5)


def simulated(count, seeds, deviation, rng, means=None):
    """Cells with as many sweeps at once, all in the one array of a score. `deviation` is that of a difference."""
    found = []
    for divergence in (FKL, RKL, *OTHERS):
        for tau in TAUS:
            items = rng.normal(0, ITEM, (count, ITEMS)) / np.sqrt(2)
            mean = (means or {}).get((divergence, tau), (means or {}).get(divergence, 0.0))
            for seed in range(seeds):
                run = rng.normal(0, deviation, (count, 1)) / np.sqrt(2)
                rest = rng.normal(0, REST, (count, ITEMS)) / np.sqrt(2)
                found.append(cell(divergence, tau, seed, {"rouge_l": (mean + items + run + rest)[None]}))
    return Cells(found)


def decided(kind, cells):
    """The shares of the sweeps in which a claim is supported and contradicted, before any correction over a page."""
    p_for, p_against, _ = Contrast(read(**KINDS[kind])[0], cells, {"mode": "both"}).weigh("rouge_l")
    return (p_for <= 0.025).mean(), (p_against <= 0.025).mean()


class TestChance:
    @pytest.mark.parametrize("deviation", [0.0, 0.4, 0.8, 1.5])
    @pytest.mark.parametrize(("seeds", "most"), [(3, 0.08), (5, 0.06)])
    def test_false_decisions(self, seeds, most, deviation):
        rng = np.random.default_rng(7)
        null, edge = (simulated(4000, seeds, deviation, rng, means) for means in (None, EDGE))
        for kind in KINDS:
            shares = decided(kind, edge if kind in ("not worse", "the same") else null)
            assert sum(shares) <= most, (kind, shares)

    def test_power(self):
        """A difference of 2 with a run-to-run deviation of 0.4 is found by 5 seeds nine times in ten, or more."""
        means = {(FKL, 2.0): 2.0, (RKL, 1.0): 2.0, ("jsd", 2.0): 2.0, ("tvd", 2.0): 2.0}
        cells = simulated(500, 5, 0.4, np.random.default_rng(7), means)
        for kind in ("a contrast", "some", "a change", "a change that is larger"):
            assert decided(kind, cells)[0] >= 0.9, kind


class TestReading:
    @pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "hypotheses").glob("*.yaml")), ids=lambda p: p.stem)
    def test_of_the_papers(self, path):
        found = read_hypotheses(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
        lettered = {"temperature": ("A", 8), "study_match": ("B", 6), "other_tokenizer": ("T", 7)}
        letter, count = lettered.get(path.stem, (found[0].name[0], None))
        own = [each.name for each in found if each.name[0] == letter]
        assert own == [f"{letter}{i + 1}" for i in range(count or len(own))]

    @pytest.mark.parametrize("names", DECIDED, ids="-".join)
    def test_each_is_decided_by_its_sweep(self, names, monkeypatch):
        """No condition is misspelt, and none is missing of the grid: whatever the scores, there is an outcome."""
        monkeypatch.chdir(ROOT)
        recipes = [read_recipe(ROOT / f"recipes/sweeps/{name}.yaml") for name in names]
        hypotheses = read_hypotheses(recipes[0]["hypotheses"], names[0])
        assert all(recipe["hypotheses"] == recipes[0]["hypotheses"] for recipe in recipes)
        rng, results = np.random.default_rng(0), []
        for each in {each.name: each for recipe in recipes for each in cells(recipe)}.values():
            scores = {hypothesis.score: [rng.normal(size=4).tolist()] for hypothesis in hypotheses}
            hashes = dict.fromkeys(("initial_weights", "batch_order", "items"), "same")
            settings = {"factors": each.factors}
            results.append({"name": each.name, "settings": settings, "hashes": hashes, "scores": scores})
        decisions = decide(hypotheses, results)
        assert [each.hypothesis.name for each in decisions] == [each.name for each in hypotheses]
        assert {each.outcome for each in decisions} <= {"supported", "contradicted", "undecided"}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scores": "rouge_l"}, "Unknown key 'scores' in hypothesis 1 in x.yaml; did you mean 'score'"),
            ({"name": ""}, "has no `name`"),
            ({"a": ["forward_kl"]}, "`a` of hypothesis H in x.yaml: expected factors"),
            ({"b": None}, "`b` of hypothesis H in x.yaml: expected factors"),
            ({"score": "rouge"}, "unknown score 'rouge'; did you mean 'rouge_l'"),
            ({"expect": "more"}, "expected one of greater, less, not_worse, same, got 'more'"),
            ({"expect": "same"}, "same needs one, in units of the score"),
            ({"margin": 1}, "greater takes none, got 1"),
            ({"margin": "1"}, "expected a number from 0 on, got '1'"),
            ({"change": {"tau": [1, 2, 4]}}, "expected a factor with two values"),
            ({"and": "b_gains"}, "expected a_gains, beside `change` and `b`, got 'b_gains'"),
            ({"and": "a_gains"}, "expected a_gains, beside `change`"),
            ({"a": {"tau": []}}, "'tau' in `a` of hypothesis H in x.yaml: expected a list"),
            ({"over": "seeds"}, "expected runs or items, got 'seeds'"),
        ],
    )
    def test_mistakes(self, changes, message):
        good = {"name": "H", "says": "So it is.", "a": {"tau": 1}, "b": {"tau": 2}}
        with pytest.raises(UsageError, match=message):
            read_hypotheses([{**good, **changes}], "x.yaml")

    def test_a_name_twice(self):
        one = {"name": "H", "says": "So it is.", "a": {"tau": 1}, "b": {"tau": 2}}
        with pytest.raises(UsageError, match="'H' is the name of 2 of them"):
            read_hypotheses([one, one], "x.yaml")
        with pytest.raises(UsageError, match="expected a list"):
            read_hypotheses(one, "x.yaml")


class TestPooled:
    """`{mean: [...]}`: what several conditions do on average, of which each alone is too noisy."""

    POOL = {"divergence": {"mean": OTHERS}}

    def test_equals_the_estimate_of_the_averaged_differences(self):
        results = sweep({name: {1.0: 5.0, 2.0: 5.0 + i} for i, name in enumerate(OTHERS)}, seeds=4)
        [found] = decide(read(a=self.POOL, change={"tau": [1, 2]}), results)
        tables = {tau: [] for tau in (1.0, 2.0)}
        for result in results:
            tables[result["settings"]["factors"]["tau"]].append(np.array(result["scores"]["rouge_l"][0]))
        first, second = (np.array(tables[tau]).reshape(3, 4, ITEMS).mean(0) for tau in (1.0, 2.0))
        expected = estimate(second - first)
        own = found.evidence[0].estimate
        assert (own.mean, own.error, own.freedom) == pytest.approx((expected.mean, expected.error, expected.freedom))
        assert found.outcome == "supported" and found.p < 0.01 and (own.n_seeds, own.n_items) == (4, ITEMS)
        assert "the mean of jsd, tvd, todi, tau 1 to 2" in found.sentence

    def test_the_other_side_is_paired_with_each(self):
        """What `b` doesn't name is as in `a`: each objective's tau 2 with its own tau 1."""
        results = sweep({name: {1.0: 9.0 * i, 2.0: 9.0 * i + 1} for i, name in enumerate(OTHERS)})
        [found] = decide(read(a={**self.POOL, "tau": 2}, b={"tau": 1}), results)
        assert found.outcome == "supported" and found.evidence[0].estimate.mean == pytest.approx(1.0, abs=0.1)

    def test_is_not_the_same_as_most(self):
        """One that gains much outweighs two that lose a little."""
        results = sweep({"jsd": {1.0: 5.0, 2.0: 9.0}, "tvd": {1.0: 5.0, 2.0: 4.5}, "todi": {1.0: 5.0, 2.0: 4.5}})
        change = {"tau": [1, 2]}
        assert outcome(results, a=self.POOL, change=change) == "supported"
        assert outcome(results, a={"divergence": {"most": OTHERS}}, change=change) == "contradicted"

    def test_needs_every_one(self):
        results = sweep({name: {1.0: 5.0, 2.0: 6.0} for name in OTHERS[:2]})
        assert outcome(results, a=self.POOL, change={"tau": [1, 2]}) == "not tested"
