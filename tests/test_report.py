# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The report: what it reads, what it computes, and the page as a file. tests/test_report_browser.py opens it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import GRID, HOSTILE, HYPOTHESES, write_frontier, write_sweep

from trl_tempkd import DIVERGENCES, cli
from trl_tempkd.study.diversity import GROUPS, common_range, measured, read_off
from trl_tempkd.study.report import read, repeat
from trl_tempkd.study.report.asymmetry import asymmetry, reading
from trl_tempkd.study.report.figures import PALETTE, style_of
from trl_tempkd.study.report.markdown import to_markdown
from trl_tempkd.study.report.page import Section, number, p_value, render
from trl_tempkd.study.report.plots import head_and_tail, quality_over_diversity, scores_over_tau, training_curves
from trl_tempkd.study.report.recommendation import recommend, said
from trl_tempkd.study.report.results import Series
from trl_tempkd.study.report.samples import samples
from trl_tempkd.study.report.scores import all_scores, by_item, conditions, ordered
from trl_tempkd.study.report.svg import draw, ticks
from trl_tempkd.study.scores import better, direction, label
from trl_tempkd.study.statistics import holm
from trl_tempkd.study.sweep import cells
from trl_tempkd.study.table import obstacles


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "sweep"
    write_sweep(folder, hypotheses=HYPOTHESES)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return read(folder)


def page_of(*folders: Path) -> str:
    return render([Section(read(folder), f"s{i}") for i, folder in enumerate(folders)], "0", "today")


class TestReading:
    def test_places(self, results):
        assert [series.label for series in results.series] == ["forward_kl", "reverse_kl", "jsd(beta=0.1)"]
        assert results.modes == ["both", "teacher"] and results.taus == [1, 2, 4]
        assert len(results.cells) == 30  # at tau 1 the modes are one run
        forward = results.series[0]
        assert results.table[forward, "teacher", 1.0] == results.table[forward, "both", 1.0]
        assert results.table[forward, "teacher", 2.0][1]["name"] == "forward_kl-tau2-teacher-seed1"

    def test_what_else_the_grid_varies_is_in_the_label(self, tmp_path):
        grid = {"divergence": ["tvd"], "seed": [1], "max_grad_norm": [0.0, 1.0]}
        write_sweep(tmp_path, grid)
        first, second = read(tmp_path).series
        assert (first.label, second.label) == ("tvd, max_grad_norm 0", "tvd, max_grad_norm 1")
        one, other = style_of(first), style_of(second)
        assert one.colour == other.colour and one.dash != other.dash

    def test_failed_and_unfinished(self, tmp_path):
        write_sweep(tmp_path)
        (tmp_path / "forward_kl-tau1-both-seed1.json").unlink()
        (tmp_path / "forward_kl-tau2-both-seed1.json").unlink()
        (tmp_path / "forward_kl-tau1-both-seed1.error.txt").write_text("Traceback\nValueError: broke\n")
        found = read(tmp_path)
        assert found.unfinished == ["forward_kl-tau2-both-seed1"]
        assert repeat.failures(found)[0][:2] == ("forward_kl-tau1-both-seed1", "ValueError: broke")
        page = page_of(tmp_path)
        assert "forward_kl-tau1-both-seed1 failed: ValueError: broke" in page
        assert "1 cells are not finished" in page and "28 finished of 30" in page

    @pytest.mark.parametrize("left", [0, 1, 7])
    @pytest.mark.parametrize("part", ["first", "last", "tau 1", "one seed", "search", "no baseline", "torn"])
    def test_an_unfinished_sweep_has_a_page(self, part, left, tmp_path):
        """Whatever is there already, in whichever order the cells have ended."""
        if part == "search":
            write_frontier(tmp_path, select={"seeds": [0], "score": "rouge_l"})
        else:
            write_sweep(tmp_path, hypotheses=HYPOTHESES)
        files = sorted(tmp_path.glob("*.json"), reverse=part == "last")
        named = {"tau 1": "-tau1-", "one seed": "seed1", "search": "seed0"}.get(part, "")
        kept = [path for path in files if named in path.name][:left]
        for path in {*files} - {*kept}:
            path.unlink()
        if part == "no baseline":
            (tmp_path / "summary/baselines/k.json").unlink()
        if part == "torn":
            for path in tmp_path.glob("*/diagnostics.csv"):
                path.write_text(path.read_text()[:150])
        assert "not finished" in page_of(tmp_path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
    @pytest.mark.parametrize("where", ["an item", "a cell", "every cell", "baselines", "live"])
    def test_scores_that_are_no_numbers(self, value, where, tmp_path):
        """As of a training that has diverged: the others are shown, and what is for programs is JSON."""
        write_sweep(tmp_path, hypotheses=HYPOTHESES)
        for i, path in enumerate(sorted(tmp_path.glob("*.json"))):
            result = json.loads(path.read_text())
            if where == "an item" and i == 0:
                result["scores"]["rouge_l"][0][0] = value
            if where == "every cell" or (where == "a cell" and i == 0):
                result["scores"] = {name: [[value] * 12] * len(each) for name, each in result["scores"].items()}
                result["means"] = dict.fromkeys(result["means"], value)
                result["log_history"] = [{**entry, "loss": value} for entry in result["log_history"]]
            path.write_text(json.dumps(result))
        if where == "baselines":
            path = tmp_path / "summary/baselines/k.json"
            found = json.loads(path.read_text())
            found["diagnostics"] = [{**row, "value": float("nan")} for row in found["diagnostics"]]
            found["teacher"] = None if value is None else {**found["teacher"], "scores": {"rouge_l": [[value] * 12]}}
            path.write_text(json.dumps({**found, "diagnostics": found["diagnostics"] if found["teacher"] else []}))
        if where == "live":
            for path in tmp_path.glob("*/diagnostics.csv"):
                path.write_text(path.read_text().replace("0.4", "nan").replace("0.7", "0"))
        assert cli.main(["report", str(tmp_path), "--markdown", str(tmp_path / "x.md")]) == 0

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        json.loads((tmp_path / "summary/report.json").read_text(), parse_constant=refuse)
        lines = obstacles(read(tmp_path).cells)
        assert ("not finite" in " ".join(lines)) == (where in ("an item", "a cell", "every cell"))

    @pytest.mark.parametrize(
        "files, message",
        [
            (None, "There is no folder"),
            ({}, "has no cell of a sweep"),
            ({"x.json": "{"}, r"x\.json is not valid JSON"),
            ({"x.json": '{"scores": {}}'}, r"x\.json has no settings, hashes: no sweep has written it"),
        ],
    )
    def test_no_results(self, files, message, tmp_path):
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "nowhere" if files is None else tmp_path)


class TestScores:
    def test_which_way_is_better(self):
        lower = {"kl_tau1", "reverse_kl_tau1", "ce", "perplexity", "ece", "self_bleu", "self_bleu_greedy"}
        assert {name for name in lower if direction(name) == -1} == lower
        assert all(direction(name) == 1 for name in ("rouge_l", "rouge_l_greedy", "agreement", "distinct_2"))
        assert direction("length") == 0 and better("length") == "neither way is better"
        assert label("rouge_l_greedy") == "ROUGE-L, greedy" and label("mine") == "mine"
        assert direction("kl_tau1@dolly") == -1 and label("rouge_l_greedy@dolly") == "ROUGE-L, greedy, dolly"
        assert ordered(["rouge_l@dolly", "ece", "rouge_l_greedy"]) == ["rouge_l_greedy", "ece", "rouge_l@dolly"]

    def test_their_order(self, results):
        assert all_scores(results) == ["rouge_l", "kl_tau1", "perplexity"]
        assert by_item(results) == ["rouge_l", "kl_tau1"]

    def test_a_condition(self, results):
        found = conditions(results)
        assert len(found) == 3 + 3 * 2 * 2  # at tau 1 the modes are one run
        row = next(each for each in found if each.label == "reverse_kl at tau 2, teacher alone softened")
        table = [np.mean(cell["scores"]["rouge_l"], axis=0) for cell in row.cells.values()]
        assert row.means["rouge_l"].value == pytest.approx(np.mean(table))
        assert row.means["rouge_l"].low < np.mean(table) < row.means["rouge_l"].high
        best = max(found, key=lambda each: each.means["rouge_l"].value)
        others = [each for each in found if each is not best]
        assert "rouge_l" not in best.to_best and all(each.to_best["rouge_l"]["difference"] < 0 for each in others)
        assert [each.to_best["rouge_l"]["p_holm"] for each in others] == holm(
            [each.to_best["rouge_l"]["p"] for each in others]
        )
        # Of the KL less is better
        assert all(each.to_best.get("kl_tau1", {"difference": 1})["difference"] > 0 for each in found)

    def test_what_did_not_start_alike_is_not_compared(self, tmp_path):
        for result in write_sweep(tmp_path, {"divergence": ["forward_kl"], "tau": [1.0, 2.0], "seed": [1]}):
            if result["settings"]["factors"]["tau"] == 2:
                result["hashes"]["initial_weights"] = "other"
                (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
        assert all(each.to_best == {} for each in conditions(read(tmp_path)))
        assert "the cells differ in their initial student" in page_of(tmp_path)

    def test_of_a_search_only_what_it_was_not_chosen_by(self, tmp_path):
        write_frontier(tmp_path, select={"seeds": [0], "score": "rouge_l"})
        found = conditions(read(tmp_path))
        assert found and all(0 not in each.cells for each in found)
        forward = {each.tau for each in found if each.series.divergence == "forward_kl"}
        assert forward == {1.0, 2.0}  # its best tau, and tau 1
        assert next(each.ms for each in found if each.series.divergence == "tvd") == pytest.approx(200)


class TestRecommendation:
    def test_the_best_with_how_sure_it_is(self, tmp_path):
        for result in write_sweep(tmp_path, {**GRID, "seed": [1, 2, 3]}, rows=40):
            factors = result["settings"]["factors"]
            if (factors["divergence"], factors["tau"], factors["mode"]) == ("forward_kl", 4.0, "both"):
                result["scores"]["rouge_l"] = (np.array(result["scores"]["rouge_l"]) + 9).tolist()
                (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
        results = read(tmp_path)
        found = recommend(results, conditions(results))
        assert found.best.label == "forward_kl at tau 4" and found.score == "rouge_l"
        assert (found.behind, found.level, found.chosen_again) == (14, [], 3)
        assert said(found).startswith("forward_kl at tau 4 has the best ROUGE-L of 15 conditions: 22.")
        assert found.command.startswith(
            f"trl-tempkd distill --config {tmp_path}/forward_kl-tau4-both-seed1/recipe.yaml"
        )

    def test_few_seeds_are_a_guess(self, results):
        found = recommend(results, conditions(results))
        assert found.sure.startswith("With 2 seeds this is a guess")
        assert len(found.level) + found.behind == 14

    def test_the_command_without_the_cells_recipe(self, tmp_path):
        for result in write_sweep(tmp_path, {"divergence": [{"jsd": {"beta": 0.1}}], "tau": [2.0], "seed": [1]}):
            (tmp_path / result["name"] / "recipe.yaml").unlink()
        results = read(tmp_path)
        command = recommend(results, conditions(results)).command
        assert "--divergence jsd" in command and "--kd_temperature 2.0" in command and "--seed" not in command
        assert """--divergence_kwargs '{"beta": 0.1}'""" in command

    def test_none_without_a_score_that_all_have(self, tmp_path):
        cells = write_sweep(tmp_path, {"divergence": ["tvd"], "tau": [1.0, 2.0], "seed": [1]})
        for result, score in zip(cells, ("rouge_l", "kl_tau1"), strict=True):
            result |= {"scores": {score: [[1.0] * 12]}, "means": {}}
            (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
        results = read(tmp_path)
        assert recommend(results, conditions(results)) is None
        assert "Nothing can be recommended yet" in page_of(tmp_path)


class TestDiversity:
    def curve(self, quality, seed=0):
        """Points at four temperatures; without a part of the texts both measures are a little different."""
        rng = np.random.default_rng(seed)
        parts = rng.normal(0, 0.1, (2, GROUPS))
        return [
            {
                "temperature": temperature,
                "rouge_l": [quality + diversity / 10, *(quality + diversity / 10 + parts[0])],
                "self_bleu": [diversity, *(diversity + parts[1])],
                "length": [30.0] * (GROUPS + 1),
            }
            for temperature, diversity in ((1.0, 10.0), (0.9, 20.0), (0.8, 30.0))
        ]

    def test_read_off(self):
        values = read_off(self.curve(5), 15)
        assert len(values) == GROUPS and np.mean(values) == pytest.approx(6.5)
        # The scatter is that of the delete-a-group jackknife
        parts = np.array(
            [
                read_off(
                    [{**p, **{m: [p[m][i]] * (GROUPS + 1) for m in ("rouge_l", "self_bleu")}} for p in self.curve(5)],
                    15,
                )[0]
                for i in range(1, GROUPS + 1)
            ]
        )
        jackknife = (GROUPS - 1) / GROUPS * ((parts - parts.mean()) ** 2).sum()
        assert np.var(values, ddof=1) / GROUPS == pytest.approx(jackknife)
        assert read_off(self.curve(5), 9.9) is None and read_off([], 15) is None
        assert common_range([self.curve(5), self.curve(6)[1:]]) == (20, 30)

    def test_measured_without_each_part(self):
        from trl_tempkd.study.evaluation import Completion

        texts = [f"a b c {'d ' * (i % 4)}" for i in range(25)]
        found = measured([Completion(text, len(text), True) for text in texts], [["a b c"]] * 25)
        kept = [text for i, text in enumerate(texts) if i % GROUPS != 3]
        assert found["length"][0] == np.mean([len(text) for text in texts])
        assert found["length"][4] == pytest.approx(np.mean([len(text) for text in kept]))
        assert all(len(values) == GROUPS + 1 for values in found.values())

    def test_a_score_like_any_other(self, tmp_path):
        """Forward KL is sharper at every temperature, and no better at equal diversity."""
        grid = {"divergence": ["forward_kl", "reverse_kl"], "tau": [1.0], "seed": [1, 2, 3]}
        for result in write_sweep(tmp_path, grid):
            factors = result["settings"]["factors"]
            quality = 5.0 + (factors["divergence"] == "reverse_kl")
            curve = self.curve(quality, factors["seed"])
            (tmp_path / f"{result['name']}.json").write_text(json.dumps({**result, "curve": curve}))
        sides = {"a": {"divergence": "reverse_kl", "tau": 1}, "b": {"divergence": "forward_kl", "tau": 1}}
        for at, outcome in ((15, "supported"), (99, "not tested")):
            declared = [{"name": "Q", "says": "It is better.", **sides, "score": f"rouge_l_at_self_bleu_{at}"}]
            (tmp_path / "summary").mkdir(exist_ok=True)
            (tmp_path / "summary" / "hypotheses.json").write_text(json.dumps({"hypotheses": declared}))
            [decision] = Section(read(tmp_path), "s").decisions
            assert decision.outcome == outcome
        assert label("rouge_l_at_self_bleu_15") == "ROUGE-L at self-BLEU 15"


class TestFigures:
    def test_scores_with_bands(self, results):
        figure = scores_over_tau(results)
        [line] = [line for line in figure.lines(figure.panels[0], "kl_tau1") if line.name == "forward_kl"]
        cells = results.table[results.series[0], "both", 4.0].values()
        expected = np.mean([np.mean(cell["scores"]["kl_tau1"]) for cell in cells])
        assert line.x == [1, 2, 4] and line.y[2] == pytest.approx(expected, rel=1e-4)
        assert all(low < y < high for low, y, high in zip(line.low, line.y, line.high, strict=True))
        names = [line.name for line in figure.lines(figure.panels[1], "rouge_l")]
        assert names == ["forward_kl", "reverse_kl", "jsd(beta=0.1)", "teacher", "student before training"]

    def test_quality_over_diversity(self, results):
        figure = quality_over_diversity(results)
        assert list(figure.views)[:3] == ["tau 1", "tau 2", "tau 4"]
        quality, length = figure.panels[0], figure.panels[2]
        assert quality.title == "ROUGE-L; both sides softened" and length.y_title == "length in tokens"
        [line] = [line for line in figure.lines(quality, "tau 2") if line.name == "forward_kl"]
        cells = list(results.table[results.series[0], "both", 2.0].values())
        points = [[point for point in cell["curve"] if point["temperature"] == 0.8] for cell in cells]
        x, y = (np.mean([point[name][0] for (point,) in points]) for name in ("self_bleu", "rouge_l"))
        assert line.x[1] == pytest.approx(x, rel=1e-4) and line.y[1] == pytest.approx(y, rel=1e-4)
        assert line.x == sorted(line.x) and all(a < b < c for a, b, c in zip(line.low, line.y, line.high, strict=True))

    def test_no_diversity_without_several_temperatures(self, tmp_path):
        write_frontier(tmp_path)
        assert quality_over_diversity(read(tmp_path)) is None

    def test_how_often_the_gradient_was_clipped(self, tmp_path):
        grid = {"divergence": ["tvd"], "tau": [1.0, 2.0], "seed": [1], "max_grad_norm": [0.0, 1.0]}
        write_sweep(tmp_path, grid, steps=5)
        found = {(each.series.label, each.tau): each.clipped for each in conditions(read(tmp_path))}
        # norms of tau / step, of which 2 / 1 alone is beyond 1
        assert found["tvd, max_grad_norm 1", 2.0] == 0.2 and found["tvd, max_grad_norm 1", 1.0] == 0
        assert found["tvd, max_grad_norm 0", 2.0] == 0

    def test_modes_have_one_scale(self, results):
        for figure in (
            quality_over_diversity(results),
            scores_over_tau(results),
            training_curves(results),
            *asymmetry(results),
        ):
            for view in figure.views or [""]:
                ranges = {}
                for panel in figure.panels:
                    ranges.setdefault(figure.y_title(panel, view), []).append(figure.y_range(panel, view))
                assert all(each == same[0] for same in ranges.values() for each in same)

    def test_a_divergence_looks_the_same_everywhere(self, results):
        scores, where = scores_over_tau(results), asymmetry(results)[0]
        looks = {line.name.split(",")[0]: set() for line in where.panels[0].lines}
        for line in [*scores.panels[0].lines, *where.panels[0].lines]:
            if line.name.split(",")[0] in looks:
                looks[line.name.split(",")[0]].add((line.colour, line.symbol))
        assert [len(each) for each in looks.values()] == [1, 1]

    def test_no_two_divergences_look_the_same(self):
        styles = {(style.colour, style.symbol) for name in DIVERGENCES if (style := style_of(Series(name, name)))}
        assert len(styles) == len(DIVERGENCES)

    def test_contrast(self):
        def luminance(colour: str) -> float:
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
            return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

        def contrast(one: str, other: str) -> float:
            low, high = sorted((luminance(one), luminance(other)))
            return (high + 0.05) / (low + 0.05)

        css = Path(read.__code__.co_filename).with_name("page.css").read_text(encoding="utf-8")
        for theme in re.findall(r":root.*?\{(.*?)\}", css, flags=re.DOTALL):
            names = dict(re.findall(r"--(\w[\w-]*): (#\w{6})", theme))
            for text, behind in (("ink", "page"), ("muted", "page"), ("muted", "surface"), ("accent", "page"),
                                 ("good", "good-soft"), ("bad", "bad-soft"), ("ink", "soft")):  # fmt: skip
                assert contrast(names[text], names[behind]) >= 4.5, (text, behind)
            for colour in PALETTE:
                assert contrast(colour, names["surface"]) >= 3, colour

    def test_drawn(self, results):
        figure = scores_over_tau(results)
        drawn = draw(figure, figure.panels[0], "rouge_l")
        assert drawn.count('data-name="') == 5 and drawn.count("<polygon") == 3  # no band of the teacher
        [line] = [line for line in figure.lines(figure.panels[0], "rouge_l") if line.name == "forward_kl"]
        assert f"forward_kl\ntau 4: {line.y[2]:.4g} [{line.low[2]:.4g}, {line.high[2]:.4g}]</title>" in drawn
        ranks = asymmetry(results)[-1]
        assert draw(ranks, ranks.panels[0], "").count("<rect") == 4 * 3  # buckets by temperatures

    @pytest.mark.parametrize(
        "low, high, expected",
        [
            (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (-3, 7, [-2, 0, 2, 4, 6]),
            (5, 5, [5]),
            (980, 1020, [980, 990, 1000, 1010, 1020]),
        ],
    )
    def test_ticks(self, low, high, expected):
        assert ticks(low, high) == expected

    def test_asymmetry(self, results):
        figures = {figure.key: figure for figure in asymmetry(results)}
        assert list(figures) == [
            "lifted", "mass_outside", "cosine_tau1", "fkl_rkl", "norm_ratio", "effective_tokens", "ranks",
        ]  # fmt: skip
        said = reading(results)
        assert len(said) == 2 and "forward KL lifts what is outside the teacher's top 10 by x8 and x64" in said[0]
        assert "reverse KL by x2 and x4: 16 times as much at tau 4" in said[0] and "0.50 and 0.25" in said[0]
        [line] = figures["fkl_rkl"].panels[0].lines
        assert line.y == pytest.approx([0.6, 0.7, 0.9])
        assert len(figures["mass_outside"].panels[1].lines) == 6
        assert figures["ranks"].panels[0].lines[0].x == ["1", "2-10", "11-100", "101-512"]

    def test_curves_are_thinned_to_the_last_step(self, tmp_path):
        write_sweep(tmp_path, {"divergence": ["forward_kl"], "tau": [1.0], "seed": [1, 2]}, steps=1001)
        [loss, kl] = training_curves(read(tmp_path)).panels
        assert len(loss.lines[0].x) <= 121 and loss.lines[0].x[-1] == 1001
        assert kl.lines[0].y[0] == 1 and kl.y_title.startswith("KL(teacher, student) at tau 1")

    def test_head_and_tail(self, results):
        figure = head_and_tail(results)
        assert [panel.title.split(";")[0] for panel in figure.panels] == ["head", "tail"] * 2
        lines = figure.lines(figure.panels[1], "error 1")
        assert [line.name for line in lines] == ["forward_kl", "reverse_kl", "jsd(beta=0.1)"]
        assert (lines[0].x, lines[0].y[0]) == ([0, 5], 0.7)
        assert list(figure.views.values())[:2] == ["abs(p - q), trained at tau 1", "abs(p - q), trained at tau 2"]


class TestSamples:
    def test_the_same_prompts_every_time(self, results):
        found = samples(results)
        assert [s.number for s in found.samples] == [s.number for s in samples(results).samples]
        assert len(found.samples) == 8
        sample = found.samples[0]
        assert sample.texts["Teacher"] == f"tiny:teacher says {sample.number}"
        assert sample.texts["reverse_kl, tau 1"] == f"reverse_kl-tau1-both-seed1 says {sample.number}"
        assert len(found.conditions) == 3 * 5  # tau 1 once
        assert found.shown == {
            f"{name}, tau {tau}" for name in ("forward_kl", "reverse_kl")
            for tau in ("1", "4, both sides softened")
        }  # fmt: skip

    def test_several_students_to_begin_with(self, tmp_path):
        for result in write_sweep(tmp_path):
            result["baseline"] = "k" if result["settings"]["factors"]["tau"] == 1 else "other"
            (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
        other = json.loads((tmp_path / "summary/baselines/k.json").read_text())
        other["start"]["name"] = "large"
        (tmp_path / "summary/baselines/other.json").write_text(json.dumps(other))
        texts = samples(read(tmp_path)).samples[0].texts
        before = ["Teacher", "Before training (large)", "Before training (tiny:student)"]
        assert set(before) <= set(texts)
        lines = scores_over_tau(read(tmp_path)).panels[0].lines
        assert "student before training (large)" in {line.name for line in lines}

    def test_without_prompts(self, tmp_path):
        write_sweep(tmp_path, baseline=False)
        assert samples(read(tmp_path)) is None


class TestRepeat:
    def test_the_recipe_has_these_cells(self, results):
        import yaml

        again = cells(yaml.safe_load(repeat.recipe_of(results)))
        assert {cell.name: cell.settings for cell in again} == {s["name"]: s for s in results.settings}
        assert len(repeat.commands_of(results)) == 30

    def test_two_grids_in_a_folder_have_no_recipe(self, tmp_path):
        write_sweep(tmp_path, {"divergence": ["forward_kl"], "tau": [1.0], "seed": [1]})
        write_sweep(tmp_path, {"divergence": ["tvd"], "tau": [2.0], "seed": [1]})
        assert repeat.recipe_of(read(tmp_path)) is None
        assert "no single recipe" in page_of(tmp_path)

    def test_versions_that_differ_are_all_named(self, tmp_path):
        result = write_sweep(tmp_path)[0]
        result["versions"]["torch"] = "3.0"
        (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
        assert set(repeat.distinct(read(tmp_path), "versions")["torch"].split(", ")) == {"2.0", "3.0"}

    def test_the_rows_are_named(self, tmp_path):
        result = write_sweep(tmp_path)[0]
        named = "train 0123456789abcdef, test fedcba9876543210"
        assert named in page_of(tmp_path) and named in to_markdown(Section(read(tmp_path), "s"))
        # Cells of other rows, which an earlier version let pass
        other = {"train": "0" * 16, "test": result["fingerprints"]["test"]}
        (tmp_path / f"{result['name']}.json").write_text(json.dumps({**result, "fingerprints": other}))
        assert set(repeat.distinct(read(tmp_path), "fingerprints")["train"].split(", ")) == {"0" * 16, named[6:22]}


class Names(HTMLParser):
    """The ids of a page, what refers to them, and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.ids, self.references, self.fetched = [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [found[name] for name in ("for", "aria-labelledby", "data-rows") if name in found]
        if tag == "a":
            assert found["href"].startswith("#"), found
            self.references.append(found["href"][1:])
        self.fetched += [found[name] for name in ("src", "srcset", "href", "data") if name in found and tag != "a"]


class TestPage:
    def test_it_asks_for_nothing_and_its_links_lead_somewhere(self, folder):
        names = Names()
        page = page_of(folder, folder)
        names.feed(page)
        assert names.fetched == []
        assert len(names.ids) == len(set(names.ids)) and set(names.references) <= set(names.ids)
        assert "@import" not in page and "url(" not in page
        assert "default-src 'none'" in page

    def test_everything_is_escaped(self, tmp_path):
        grid = {"divergence": ["forward_kl"], "tau": [1.0, 2.0], "seed": [1]}
        for result in write_sweep(tmp_path, grid):
            result["completions"] = [[HOSTILE] * 12] * 2
            result["scores"][HOSTILE] = [[1.0] * 12]
            result["machine"]["cpu"] = HOSTILE
            (tmp_path / f"{result['name']}.json").write_text(json.dumps(result))
        (tmp_path / "x.error.txt").write_text(HOSTILE)
        page = page_of(tmp_path)
        assert "<img" not in page and "&lt;img src=x" in page and "{{ 7 * 7 }}" in page

    def test_what_is_said(self, folder):
        page = page_of(folder)
        for text in (
            "What to use",
            "this is a guess",
            "Too few runs",
            "Not tested",
            "Supported",
            "2 seeds x 12 items",
        ):
            assert text in page
        assert page.index("What to use</h3>") < page.index("Hypotheses</h3>") < page.index("Repeat it</h3>")
        assert len(page.encode()) < 1e6

    def test_without_hypotheses(self, tmp_path):
        write_sweep(tmp_path, {"divergence": ["forward_kl"], "tau": [1.0], "seed": [1]})
        assert "Hypotheses" not in page_of(tmp_path)

    def test_a_line_in_place_of_what_is_not_there(self, tmp_path):
        write_sweep(tmp_path, {"divergence": ["forward_kl"], "tau": [1.0], "seed": [1]}, baseline=False, live=False)
        page = page_of(tmp_path)
        for text in ("The gradients were not measured", "set kd_diagnostics_steps", "The prompts are not here"):
            assert text in page

    def test_a_folder_in_which_nothing_is_finished(self, tmp_path):
        for result in write_sweep(tmp_path, baseline=False):
            (tmp_path / f"{result['name']}.json").unlink()
        page = page_of(tmp_path)
        assert "No cell is finished yet" in page and "30 cells are not finished" in page

    def test_numbers(self):
        assert [number(x) for x in (None, 0.12345, -12.345, 123.45, 12345.6)] == [
            "–",
            "0.123",
            "−12.35",
            "123.5",
            "12346",
        ]
        assert number(1.234, 2, True) == "+1.23" and number(-1.234, 2, True) == "−1.23"
        assert [p_value(p) for p in (None, 0.0004, 0.04)] == ["–", "< 0.001", "0.040"]


class TestCommand:
    def test_page_and_images(self, folder, tmp_path, capsys):
        assert cli.main(["report", str(folder), "--output", str(tmp_path / "x.html"), "--png", str(tmp_path)]) == 0
        assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        images = sorted(path.name for path in tmp_path.glob("*.png"))
        diversity = [f"diversity_tau_{tau}.png" for tau in (1, 2, 4)]
        others = "fkl_rkl lifted mass_outside ranks scores_kl_tau1 scores_rouge_l".split()
        assert images == ["cosine_tau1.png", *diversity, *(f"{name}.png" for name in others)]
        assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in images)
        assert "x.html (" in capsys.readouterr().out

    def test_the_same_for_programs(self, folder, tmp_path):
        """The verdicts as JSON, and the scores as a table."""
        assert cli.main(["report", str(folder), "--output", str(tmp_path / "x.html")]) == 0
        found = json.loads((folder / "summary" / "report.json").read_text(encoding="utf-8"))
        section = Section(read(folder), "s")
        assert found["recommendation"]["command"] == section.recommendation.command
        assert [each["outcome"] for each in found["hypotheses"]] == [each.outcome for each in section.decisions]
        table = pd.read_csv(folder / "results.csv")
        assert list(table.columns) == ["cell", "divergence", "tau", "mode", "seed", "score", "value", "n_items"]
        [value] = table[(table["cell"] == "forward_kl-tau2-both-seed1") & (table["score"] == "rouge_l")]["value"]
        scores = json.loads((folder / "forward_kl-tau2-both-seed1.json").read_text())["scores"]
        assert value == pytest.approx(np.mean(scores["rouge_l"])) and len(table) == 30 * 3

    def test_other_hypotheses(self, folder, tmp_path):
        path = tmp_path / "h.yaml"
        path.write_text('[{name: X, says: "Other.", a: {divergence: forward_kl}, change: {tau: [1, 2]}}]')
        output = str(tmp_path / "x.html")
        assert cli.main(["report", str(folder), "--output", output, "--hypotheses", str(path)]) == 0
        found = json.loads((folder / "summary" / "report.json").read_text(encoding="utf-8"))
        assert {each["name"] for each in found["hypotheses"]} == {"X"}

    def test_where_the_page_goes(self, tmp_path):
        write_sweep(tmp_path, GRID)
        assert cli.main(["report", str(tmp_path)]) == 0
        assert (tmp_path / "report.html").is_file()
        assert read(tmp_path).cells  # the page does not get into the way of the next one

    def test_several_folders(self, folder, tmp_path):
        assert cli.main(["report", str(folder), str(folder), "--output", str(tmp_path / "x.html")]) == 0
        assert (tmp_path / "x.html").read_text(encoding="utf-8").count("<h2") == 2

    @pytest.mark.parametrize("folders, message", [(2, "--output"), (0, "There is no folder")])
    def test_mistakes(self, folders, message, folder, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", *([str(folder)] * folders or ["nowhere"])])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1
