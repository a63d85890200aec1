# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Verdicts on the two papers' claims, from made-up results whose answer is known."""

import numpy as np
import pytest

from trl_tempkd.sweep.claims import verdicts
from trl_tempkd.sweep.study import best, judge, name_of, studies


ITEMS = 40
HASHES = {"initial_weights": "w", "items": "i"}


def cell(divergence, tau, seed, rouge, mode="both", kl=1.0, noise=0.1, **more):
    """A finished cell whose scores are about these; the noise is the item's and the seed's own, as in pairs."""
    rng = np.random.default_rng([seed, len(str(divergence)), int(tau * 10)])
    items = np.linspace(0, 1, ITEMS)  # items differ much, as prompts do

    def around(mean):
        return [(mean + items + noise * rng.normal(size=ITEMS)).tolist()]

    factors = {"divergence": divergence, "tau": tau, "mode": mode, **more.pop("factors", {}), "seed": seed}
    return {
        "name": f"{divergence}-{tau}-{mode}-{seed}",
        "settings": {"factors": factors, "options": {"learning_rate": 0.1}},
        "hashes": {**HASHES, "batch_order": f"b{seed}"},
        "baseline": "base",
        "scores": {"rouge_l": around(rouge), "kl_tau1": around(kl), "self_bleu": around(more.pop("self_bleu", 0.0))},
        "log_history": [{"step": more.pop("steps", 10)}],
        **more,
    }


def grid(scores, mode="both", seeds=(1, 2, 3)):
    return [
        cell(divergence, tau, seed, rouge, mode if tau > 1 else "both")
        for divergence, by_tau in scores.items()
        for tau, rouge in by_tau.items()
        for seed in seeds
    ]


def of(found, key, mode="both"):
    [verdict] = [v for v in found if v.key == key and v.mode == mode]
    return verdict


# As the paper says: reverse KL ahead at tau 1, forward KL overtakes
CLAIMED = {"forward_kl": {1.0: 7.0, 2.0: 11.0, 4.0: 9.0}, "reverse_kl": {1.0: 9.0, 2.0: 9.5, 4.0: 7.0}}


class TestTemperature:
    def test_as_claimed(self):
        found = verdicts(grid(CLAIMED), {})
        first = of(found, "A1", None)
        assert first.outcome == "supported" and first.conditions["learning_rate"] == 0.1
        assert first.evidence[0]["difference"] == pytest.approx(2.0, abs=0.1)
        assert (first.evidence[0]["n_seeds"], first.evidence[0]["n_items"]) == (3, ITEMS)
        assert f"ROUGE-L {first.evidence[0]['difference']:+.2f} [" in first.sentence
        overtaken = of(found, "A2")
        # Chosen on half of the items, tested on the other half
        assert overtaken.outcome == "supported" and overtaken.evidence[0]["n_items"] == ITEMS // 2
        assert overtaken.evidence[0]["label"] == "reverse_kl at tau 4 to forward_kl at tau 4"
        assert overtaken.evidence[0]["difference"] == pytest.approx(2.0, abs=0.1)
        assert of(found, "A3").evidence[0]["label"] == "forward_kl at tau 1 to forward_kl at tau 2"
        assert of(found, "A4").evidence[0]["difference"] == pytest.approx(4.0 - 0.5, abs=0.15)
        at_best = of(found, "A8")
        assert at_best.evidence[0]["label"] == "reverse_kl at tau 2 to forward_kl at tau 2"
        assert at_best.outcome == "supported" and at_best.evidence[0]["difference"] == pytest.approx(1.5, abs=0.1)
        assert [of(found, key).outcome for key in ("A2", "A3", "A4", "A6")] == ["supported"] * 3 + ["not tested"]

    def test_seeds_that_not_all_have(self):
        results = [
            r for r in grid(CLAIMED) if (r["settings"]["factors"]["seed"], r["name"][:12]) != (3, "reverse_kl-2")
        ]
        more = of(verdicts(results, {}), "A4")
        assert more.outcome == "supported" and more.evidence[0]["n_seeds"] == 2

    def test_the_opposite(self):
        swapped = {"forward_kl": CLAIMED["reverse_kl"], "reverse_kl": CLAIMED["forward_kl"]}
        found = verdicts(grid(swapped), {})
        assert [of(found, "A1", None).outcome, of(found, "A4").outcome] == ["contradicted", "contradicted"]
        assert of(found, "A2").outcome == "contradicted"

    def test_nothing_to_see(self):
        same = {name: {1.0: 7.0, 2.0: 7.0} for name in CLAIMED}
        results = [cell(d, tau, seed, 7.0, noise=1.0) for d in same for tau in (1.0, 2.0) for seed in (1, 2, 3)]
        assert of(verdicts(results, {}), "A1", None).outcome == "not supported"

    def test_less_is_better(self):
        """Where there is no text to score, the distance to the teacher decides."""
        results = [
            cell(d, tau, seed, 0.0, kl=kl)
            for d, tau, kl in (("forward_kl", 1.0, 2.0), ("reverse_kl", 1.0, 1.0))
            for seed in (1, 2)
        ]
        for result in results:
            del result["scores"]["rouge_l"]
        first = of(verdicts(results, {}), "A1", None)
        assert first.evidence[0]["difference"] < 0 and first.outcome == "supported"

    def test_the_run_at_tau_1_is_of_both_modes(self):
        results = grid(CLAIMED) + [r for r in grid(CLAIMED, "teacher") if r["settings"]["factors"]["tau"] > 1]
        found = verdicts(results, {})
        assert of(found, "A2", "teacher").outcome == of(found, "A2", "both").outcome == "supported"
        assert len([v for v in found if v.key == "A1"]) == 1

    def test_family(self):
        others = {"jsd": {1.0: 5.0, 2.0: 6.0}, "tvd": {1.0: 5.0, 2.0: 6.5}, "todi": {1.0: 6.0, 2.0: 5.0}}
        found = verdicts(grid({**CLAIMED, **others}), {})
        family = of(found, "A6")
        assert family.outcome == "supported" and "Of 3 other objectives, 2 gain" in family.sentence
        assert [row["label"].split(" ")[0] for row in family.evidence] == ["tvd", "jsd", "todi"]
        assert of(found, "A7").outcome == "supported"
        strong = {"jsd": {1.0: 5.0, 2.0: 12.0}}
        assert of(verdicts(grid({**CLAIMED, **strong}), {}), "A7").outcome == "contradicted"

    def test_only_what_started_alike(self):
        results = grid(CLAIMED)
        for result in results:
            if result["settings"]["factors"]["divergence"] == "forward_kl":
                result["hashes"] = {**result["hashes"], "initial_weights": "other"}
        assert {v.outcome for v in verdicts(results, {}) if v.key in ("A1", "A2", "A4")} == {"not tested"}

    @pytest.mark.parametrize(
        "moved, turned, outcome",
        [
            ({"forward_kl": 0.9, "reverse_kl": 0.62}, 0.95, "supported"),
            ({"forward_kl": 0.9, "reverse_kl": 0.9}, 0.95, "not supported"),
            ({"forward_kl": 0.9, "reverse_kl": 0.62}, 0.4, "not supported"),
        ],
    )
    def test_asymmetry(self, moved, turned, outcome):
        rows = [
            {"objective": name, "mode": mode, "tau": tau, "measure": measure, "bucket": bucket, "value": value}
            for name, share in moved.items()
            for mode in ("both", "teacher")
            for tau, outside, cosine in ((1.0, 0.6, 1.0), (4.0, share, turned), (8.0, 0.0, 0.0))
            for measure, bucket, value in (("mass_outside", "top_10", outside), ("cosine", "tau_1", cosine))
        ]
        rows = [{**row, "tokens": 10} for row in rows]
        peaked = {"top_1": 0.5, "teacher_entropy": 2.0}
        baseline = {"teacher": {"name": "t", "train": peaked, "held_out": peaked}, "start": {"name": "s"}}
        found = verdicts(grid(CLAIMED), {"base": {**baseline, "diagnostics": rows}})
        verdict = of(found, "A5", "teacher")
        assert verdict.outcome == outcome and "From tau 1 to 4" in verdict.sentence
        assert verdict.conditions["teacher on training rows"] == "mean top-1 0.50, entropy 2.00 nats"


def errors(start, early, end):
    """The error in (head, tail) at three steps, as a cell's live diagnostics have it."""
    return [
        {"step": step, "measure": "error", "bucket": bucket, "value": value}
        for step, pair in ((0, start), (5, early), (50, end))
        for bucket, value in zip(("head", "tail"), pair, strict=True)
    ]


class TestEpochs:
    def results(self, early, kl_at_the_end=(0.5, 0.5), diversity=5.0):
        found = []
        for seed in (1, 2, 3):
            for name in ("forward_kl", "reverse_kl", "adaptive_kl"):
                few = {"factors": {"max_steps": 10}, "self_bleu": diversity if name == "adaptive_kl" else 9.0}
                found.append(cell(name, 1.0, seed, {"adaptive_kl": 9.0}.get(name, 8.0), kl=1.0 + len(name), **few))
            for name, kl in zip(("forward_kl", "reverse_kl"), kl_at_the_end, strict=True):
                rows = errors((1.0, 1.0), early[name], (0.3, 0.3))
                many = {"factors": {"max_steps": 100}, "steps": 100, "diagnostics": rows}
                found.append(cell(name, 1.0, seed, 9.0, kl=kl, **many))
        return found

    def test_head_and_tail(self):
        early = {"forward_kl": (0.5, 0.9), "reverse_kl": (0.9, 0.5)}
        assert of(verdicts(self.results(early), {}), "B1", None).outcome == "supported"
        early = {"forward_kl": (0.9, 0.5), "reverse_kl": (0.5, 0.9)}
        results = self.results(early)
        assert of(verdicts(results, {}), "B1", None).outcome == "contradicted"
        two = of(verdicts([r for r in results if r["settings"]["factors"]["seed"] < 3], {}), "B1", None)
        assert two.outcome == "not supported" and "2 seeds, too few to decide" in two.sentence

    def test_the_same_end(self):
        early = dict.fromkeys(("forward_kl", "reverse_kl"), (0.5, 0.5))
        end = of(verdicts(self.results(early), {}), "B2", None)
        assert end.outcome == "supported" and "100 steps" in end.evidence[0]["label"]
        assert of(verdicts(self.results(early, (0.5, 0.7)), {}), "B2", None).outcome == "contradicted"

    def test_akl(self):
        early = dict.fromkeys(("forward_kl", "reverse_kl"), (0.5, 0.5))
        found = verdicts(self.results(early), {})
        assert [of(found, key, None).outcome for key in ("B3", "B4")] == ["supported", "supported"]
        assert of(verdicts(self.results(early, diversity=12.0), {}), "B4", None).outcome == "contradicted"

    def test_no_live_diagnostics(self):
        early = dict.fromkeys(("forward_kl", "reverse_kl"), (0.5, 0.5))
        results = [{**result, "diagnostics": []} for result in self.results(early)]
        verdict = of(verdicts(results, {}), "B1", None)
        assert verdict.outcome == "not tested" and "kd_diagnostics_steps" in verdict.sentence


def test_the_best_is_chosen_on_every_second_item():
    results = grid(CLAIMED)
    for result in results:
        if result["settings"]["factors"]["tau"] == 4.0:
            result["scores"]["rouge_l"][0][1::2] = [100.0] * (ITEMS // 2)
    [study] = studies(results)
    assert best(study.of("forward_kl", "both"), "rouge_l").tau == 2.0


def test_names_and_signs():
    assert name_of("jsd") == "jsd" and name_of({"jsd": {"beta": 0.1}}) == "jsd(beta=0.1)"
    found = {"difference": -1.0, "low": -2.0, "high": -0.5}
    assert judge({**found, "score": "kl_tau1"}) == "supported"
    assert judge({**found, "score": "rouge_l"}) == "contradicted"
