# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd divergences`: the families, read off the functions themselves, so that they cannot be out of date."""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..command_line import HelpFormatter, OneLineParser
from ..extensions import source_in, source_of


DESCRIPTION = """\
List what `--divergence` and `--kd_temperature_rule` choose from: the divergences, the objectives that need more than
two distributions, and the rules that give each token a temperature. Each with its definition, its parameters with
their defaults, and where it comes from. p is the teacher's distribution and q the student's, both softened by the
temperature; v and z are their logits."""

EPILOG = """\
examples:
  trl-tempkd divergences
  trl-tempkd divergences --import my_divergence.py
  trl-tempkd divergences --format markdown > docs/divergences.md"""

PAGE = """\
# Divergences, objectives, temperature rules

`p` is the teacher's distribution over the vocabulary and `q` the student's, both softened by the temperature
(docs/temperature.md), and `v` and `z` are their logits. This page is the output of `trl-tempkd divergences --format
markdown`. docs/your_own_objective.md says how to use a divergence or a rule of your own.

## Divergences

All are true divergences, in nats per token: 0 exactly when `p = q`, so runs can be compared.

Choose one with `--divergence NAME`, its parameters with `--divergence_kwargs '{{"parameter": value}}'`; in a recipe:

```yaml
divergence: jsd
divergence_kwargs: {{beta: 0.1}}
```

{divergences}

## Objectives

They need more than `p` and `q`: the other tokens of a completion, who wrote it, or what the training has learnt so
far (docs/objectives.md). They are chosen as divergences are. In a run `taid` is the objective, whose t moves; in
`kd_loss` and `chunked_kd_loss` it is the divergence above, at the t that it is given.

{objectives}

## Temperature rules

They give each token a temperature of its own (docs/temperature.md). Choose one with `--kd_temperature_rule NAME`, its
parameters with `--kd_temperature_rule_kwargs '{{"parameter": value}}'`; in a recipe:

```yaml
kd_temperature_rule: target_entropy
kd_temperature_rule_kwargs: {{share: 0.4}}
```

{rules}"""

TITLES = {
    "divergences": "divergences (p: teacher, q: student, both softened by the temperature)",
    "objectives": "objectives, chosen as divergences are",
    "rules": "temperature rules (v: the teacher's logits, z: the student's)",
}


@dataclass(frozen=True)
class Row:
    """What a table says of one divergence, objective or rule."""

    name: str
    definition: str
    parameters: str
    source: str


def describe(name: str, function: Callable) -> Row:
    """
    Read a row off a function or a class: the definition is the first paragraph of the docstring, the source the first
    sentence of the paragraph `Source: ...`, and the parameters are the arguments that have a default.
    """
    first = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    definition, source = (re.sub(r"\[`~?(?:\w+\.)*(\w+)`\]", r"\1", text) for text in (first, source_in(function)))
    if (own := source_of(function)) is not None:
        source = "; ".join(filter(None, [source, f"registered from {own[0] or 'a session of Python'}"]))
    found = inspect.signature(function).parameters.values()
    parameters = [f"{of.name}={of.default}" for of in found if of.default is not of.empty]
    return Row(name, definition or "(without a docstring)", ", ".join(parameters), source)


def families() -> dict[str, list[Row]]:
    """The rows of each table."""
    from ..divergences import DIVERGENCES
    from ..objectives import OBJECTIVES
    from ..temperature_rules import TEMPERATURE_RULES

    found: list[Mapping[str, Callable]] = [DIVERGENCES, OBJECTIVES, TEMPERATURE_RULES]
    return {key: [describe(*each) for each in family.items()] for key, family in zip(TITLES, found, strict=True)}


def markdown(rows: list[Row]) -> str:
    """A table of docs/divergences.md."""
    cells = [
        [f"`{row.name}`", row.definition, f"`{row.parameters}`" * bool(row.parameters), row.source] for row in rows
    ]
    lines = [["name", "definition", "parameters", "source"], ["---"] * 4, *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page() -> str:
    """The page docs/divergences.md."""
    return PAGE.format(**{key: markdown(rows) for key, rows in families().items()})


def main(args: argparse.Namespace) -> None:
    if args.format == "markdown":
        print(page())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for key, rows in families().items():
        table = Table(title=TITLES[key], show_lines=True)
        table.add_column("name, parameters", no_wrap=True)
        table.add_column("definition", ratio=3)
        table.add_column("source", ratio=2)
        for row in rows:
            # As `Text`: rich would take square brackets in a definition for markup
            parameters = row.parameters.replace(", ", "\n  ")
            name = Text(row.name, style="bold").append(f"\n  {parameters}" if parameters else "", style="not bold")
            table.add_row(name, *(Text(cell.replace("`", "")) for cell in (row.definition, row.source)))
        Console().print(table)


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--format", choices=("table", "markdown"), default="table", help="what to print")
    return parser
