# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The same results as Markdown, to keep beside the code: verdicts, a table of scores, the commands."""

from collections.abc import Iterable, Sequence

import numpy as np

from ..sweep.claims import Verdict, verdicts
from ..sweep.scores import digits, label
from ..sweep.study import SCORES
from .frontier import Change, Mean, Row, frontier
from .repeat import distinct, failures, hours, overview, recipe_of
from .results import MODES, Results
from .scores import all_scores, family, items_of, table_of


# What the table of all conditions shows, where it was scored
COLUMNS = ("rouge_l", "rouge_l_greedy", "kl_tau1", "reverse_kl_tau1", "student_entropy", "agreement", "self_bleu")


def to_markdown(results: Results) -> str:
    """A folder of results as a page of Markdown. Of a sweep with `select`, nothing that it chose by."""
    found = verdicts(results.cells, results.baselines)
    everything = [
        "## Verdicts",
        *(verdict_lines(verdict) for verdict in found if verdict.outcome != "not tested"),
        untested(found),
        "## Scores",
        "Means over seeds and items, ± the standard deviation of the seeds' means. Lower is better for both KLs and "
        "self-BLEU. `teacher` and `start` are the teacher and the student before training.",
        scores(results),
        *families(results),
    ]
    parts = [
        f"# {results.title}",
        f"Written by `trl-tempkd report {results.folder} --markdown`, not by hand.",
        table(("", ""), [(name, value) for name, value in overview(results).items()]),
        *conditions(found),
        *(everything if results.selection is None else frontiers(results)),
        "## How to repeat it",
        *repeat(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def conditions(found: Sequence[Verdict]) -> list[str]:
    """What each verdict depends on, once for each combination."""
    different = list({str(v.conditions): v.conditions for v in found}.values())
    return [table(("condition", ""), [(name, str(value)) for name, value in each.items()]) for each in different]


def verdict_lines(verdict: Verdict) -> str:
    whom = f", {MODES[verdict.mode]}" if verdict.mode else ""
    varied = {name: value for name, value in verdict.conditions.items() if name == "max_steps"}
    steps = "".join(f", {value} steps" for value in varied.values())
    return f"- **{verdict.key}{whom}{steps}: {verdict.title} {verdict.outcome.capitalize()}.** {verdict.sentence}"


def untested(found: Sequence[Verdict]) -> str:
    titles = dict.fromkeys(f"{v.key}, {v.title[0].lower()}{v.title[1:-1]}" for v in found if v.outcome == "not tested")
    return f"Not tested by this sweep: {'; '.join(titles)}." if titles else ""


def scores(results: Results) -> str:
    """Every condition: the mean of each score, and how much the seeds differ."""
    names = [name for name in COLUMNS if name in all_scores(results)]
    rows = []
    for baseline in results.baselines.values():
        for who in ("teacher", "start"):
            found = {name: items_of(baseline[who], name) for name in names}
            values = [mean_of(None if v is None else v[None], digits(name)) for name, v in found.items()]
            rows.append((f"{who} {baseline[who]['name']}" if len(results.baselines) > 1 else who, "", "", "", *values))

    for series in results.series:
        for mode in results.modes:
            for tau in results.taus:
                seeds = results.table.get((series, mode, tau), {})
                if not seeds or (tau == 1 and mode != results.modes[0]):
                    continue
                cells = [mean_of(table_of(seeds.values(), name), digits(name)) for name in names]
                whom = "" if tau == 1 else mode
                rows.append((series.label, f"{tau:g}", whom, str(len(seeds)), *cells))
    return table(("divergence", "tau", "softened", "seeds", *map(label, names)), rows)


def mean_of(values: np.ndarray | None, decimals: int) -> str:
    if values is None:
        return ""
    spread = f" ± {values.mean(1).std(ddof=1):.{decimals}f}" if len(values) > 1 else ""
    return f"{values.mean():.{decimals}f}{spread}"


def families(results: Results) -> list[str]:
    """Every divergence at its best tau against tau 1, by the score that decides."""
    if len(results.taus) < 2 or 1.0 not in results.taus:
        return []
    name = "rouge_l" if "rouge_l" in all_scores(results) else "kl_tau1"
    rows = []
    for row in family(results, name):
        change = "" if row.difference is None else f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
        at_1 = "" if row.at_1 is None else f"{row.at_1:.2f}"
        p = "" if row.p_items is None else f"{row.p_items:.3g}"
        rows.append((row.series.label, row.mode, at_1, f"{row.best_tau:g}", f"{row.best:.2f}", change, p))
    head = ("divergence", "softened", "at tau 1", "best tau", "there", "change [95% interval]", "p of items, Holm")
    return [f"## {label(name)} at the best tau", table(head, rows)]


def frontiers(results: Results) -> list[str]:
    """The table of a sweep with `select`: every objective at tau 1, its best tau and its best rule."""
    rows = frontier(results)
    if not rows or results.selection is None:
        return []
    select = results.selection["select"]
    names = [name for name in SCORES if any(name in row.means for row in rows)]
    means, changes = [], []
    for row in rows:
        who = (row.series.label, f"**{row.treatment}**" if row.leading else row.treatment, row.chosen)
        scored = [interval(mean.value, mean, name) if (mean := row.means.get(name)) else "" for name in names]
        cost = ["" if value is None else f"{value:.{digit}f}" for value, digit in ((row.ms, 1), (row.ratio, 2))]
        means.append((*who, str(len(row.cells)), *scored, *cost))
        changes.append((*who, *(part for name in names for part in change_of(row, name))))
    compared = [f"{label(name)}, to {other}" for name in names for other in ("forward_kl at tau 1", "itself at tau 1")]
    return [
        "## Frontier",
        f"Chosen by {label(select['score'])} of the search seeds ({', '.join(map(str, select['seeds']))}) on the "
        "first half of the items; the numbers are of the other seeds and of the second half. In bold the treatment "
        "that the search found the best of its objective. Intervals are 95% bootstrap intervals over seeds and items. "
        "ms / step is the median over seeds, and the ratio that to forward_kl at tau 1.",
        table(("objective", "at", "which is", "seeds", *map(label, names), "ms / step", "ratio"), means),
        "Differences, with p over items (would these students differ on other items?) by Holm's correction over all "
        "differences of a score.",
        table(("objective", "at", "which is", *(part for name in compared for part in (name, "p"))), changes),
    ]


def change_of(row: Row, name: str) -> list[str]:
    found = []
    for change in (row.to_reference.get(name), row.to_own.get(name)):
        p = "" if change is None or change.p_items is None else f"{change.p_items:.3g}"
        found += ["" if change is None else interval(change.difference, change, name, "+"), p]
    return found


def interval(value: float, ends: Mean | Change, name: str, sign: str = "") -> str:
    low, high, middle = (f"{end:{sign}.{digits(name)}f}" for end in (ends.low, ends.high, value))
    return f"{middle} [{low}, {high}]"


def repeat(results: Results) -> list[str]:
    recipe = recipe_of(results)
    versions = ", ".join(f"{name} {value}" for name, value in distinct(results, "versions").items())
    machine = ", ".join(f"{name} {value}" for name, value in distinct(results, "machine").items())
    said = [f"{len(results.cells)} cells took {hours(results):.1f} hours of one process each. {versions}. {machine}."]
    said += [f"Not compared: {line}" for line in results.obstacles]
    said += [f"Failed: {name}: {reason}" for name, reason, _ in failures(results)]
    if results.unfinished:
        said.append(f"Not finished: {len(results.unfinished)} cells.")
    return [*said, *(["The recipe, with every option:", f"```yaml\n{recipe.rstrip()}\n```"] if recipe else [])]
