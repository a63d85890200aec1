# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The same results as Markdown, to keep beside the code."""

from collections.abc import Iterable, Sequence

from ..scores import digits, label
from ..table import name_of
from .page import Section
from .recommendation import Recommendation, said
from .repeat import failures, overview, provenance, recipe_of
from .results import Results
from .scores import Condition, Mean, items_of, mean_of


# What the table of all conditions shows, where it was scored
COLUMNS = (
    *("rouge_l", "bits_per_byte", "rouge_l_greedy", "kl_tau1", "reverse_kl_tau1", "student_entropy", "agreement"),
    "self_bleu",
)


def to_markdown(section: Section) -> str:
    """A folder of results as a page of Markdown."""
    results, found = section.results, section.recommendation
    parts = [
        f"# {results.title}",
        f"Written by `trl-tempkd report {results.folder} --markdown`, not by hand.",
        table(("", ""), list(overview(results).items())),
        *(use(found) if found is not None else []),
        *decisions(section),
        "## Scores",
        "Means over seeds and items, with 95% intervals for other seeds and items. Lower is better for both KLs, bits "
        "per byte and self-BLEU. `teacher` and `start` are the teacher and the student before training. p is that of "
        "the difference to the best condition in the first score, after Holm's correction.",
        scores(section),
        *tasks(section),
        *(["## Asymmetry of the gradients", *section.reading] if section.reading else []),
        "## How to repeat it",
        *repeat(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def use(found: Recommendation) -> list[str]:
    return ["## What to use", f"**{said(found)}** {found.sure}", f"```bash\n{found.command}\n```"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def decisions(section: Section) -> list[str]:
    """The hypotheses that were declared, and what was decided of each in each setting."""
    rows = []
    for each in section.decisions:
        setting = ", ".join(f"{name} {name_of(value)}" for name, value in each.setting.items() if value is not None)
        rows.append((f"{each.hypothesis.name}: {each.hypothesis.says}", setting, f"**{each.outcome}**", each.sentence))
    return ["## Hypotheses", table(("hypothesis", "in", "outcome", "why"), rows)] if rows else []


def tasks(section: Section) -> list[str]:
    """What the LM evaluation harness measured, with its standard errors."""
    rows, models = section.task_rows, section.task_models
    if not rows:
        return []
    lines = [(each.task, each.metric, *map(each.said, models), each.rows, each.version) for each in rows]
    return ["## LM evaluation harness", table(("task", "metric", *models, "rows", "version"), lines)]


def scores(section: Section) -> str:
    """Every condition: the mean of each score, and how sure the first one's difference to the best is."""
    names = [name for name in COLUMNS if any(name in each.means for each in section.conditions)]
    if not names:
        return "No cell is finished yet."
    rows = []
    for baseline in section.results.baselines.values():
        for who in ("teacher", "start"):
            if baseline[who] is None:  # a teacher that a cache alone was left of
                continue
            means = [mean_of(None if (v := items_of(baseline[who], n)) is None else v[None]) for n in names]
            cells = [interval(mean, name) for mean, name in zip(means, names, strict=True)]
            several = len(section.results.baselines) > 1
            rows.append((f"{who} {baseline[who]['name']}" if several else who, "", "", "", *cells, ""))
    rows += [row_of(each, names) for each in section.conditions]
    return table(("objective", "tau", "softened", "seeds", *map(label, names), "p"), rows)


def row_of(condition: Condition, names: Sequence[str]) -> tuple[str, ...]:
    p = condition.to_best.get(names[0], {}).get("p_holm")
    return (
        condition.series.label,
        f"{condition.tau:g}",
        "" if condition.tau == 1 else condition.mode,
        str(len(condition.cells)),
        *(interval(condition.means.get(name), name) for name in names),
        "" if p is None else f"{p:.2g}",
    )


def interval(mean: Mean | None, score: str) -> str:
    if mean is None:
        return ""
    places = digits(score)
    ends = "" if mean.low is None else f" [{mean.low:.{places}f}, {mean.high:.{places}f}]"
    return f"{mean.value:.{places}f}{ends}"


def repeat(results: Results) -> list[str]:
    recipe = recipe_of(results)
    facts = ", ".join(f"{name} {value}" for name, value in provenance(results).items())
    said = [f"{len(results.cells)} cells. {facts}."]
    said += [f"Not compared: {line}" for line in results.obstacles]
    said += [f"Failed: {name}: {reason}" for name, reason, _ in failures(results)]
    if results.unfinished:
        said.append(f"Not finished: {len(results.unfinished)} cells.")
    return [*said, *(["The recipe, with every option:", f"```yaml\n{recipe.rstrip()}\n```"] if recipe else [])]
