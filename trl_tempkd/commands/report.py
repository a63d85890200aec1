# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd report`: one HTML page from the results of sweeps."""

import argparse
import json
from pathlib import Path

from ..command_line import HelpFormatter, OneLineParser
from ..errors import UsageError
from ..paths import check_file_writable, check_writable


DESCRIPTION = """\
Write one HTML page from the results of `trl-tempkd sweep`: which objective and temperature to use, scores over tau,
the hypotheses of its recipe, the asymmetry of the gradients, training curves, samples, and how to repeat it. The
folder gets the same verdicts as JSON (summary/report.json) and every score of every cell as a table (results.csv).

The page holds all that it shows and asks for nothing from elsewhere, so it can be sent, kept and printed. It may be
written while a sweep still runs, from the cells that are finished. docs/report.md says what each part means."""

EPILOG = """\
examples:
  # results/tiny/report.html
  trl-tempkd report results/tiny

  # the main figures as PNG files too
  trl-tempkd report results/tiny --png results/figures

  # the tables as Markdown, to keep beside the code
  trl-tempkd report results/tiny --markdown docs/results/tiny.md

  # two sweeps on one page
  trl-tempkd report results/tiny results/gpt2_dolly --output_dir results/both"""


def main(args: argparse.Namespace) -> int:
    from dataclasses import replace
    from datetime import datetime

    from .._version import __version__
    from ..files import write_atomically
    from ..study.declared import read_declared
    from ..study.report import read
    from ..study.report.images import write_images
    from ..study.report.markdown import to_markdown
    from ..study.report.page import Section, render, verdicts_of
    from ..study.report.tidy import to_csv

    if len(args.results_dirs) > 1 and not (args.output or args.output_dir):
        raise UsageError("several folders: say with --output_dir where their page goes")
    output = Path(args.output or Path(args.output_dir or args.results_dirs[0], "report.html"))
    check_file_writable(output, "--output" if args.output else "--output_dir")
    if args.markdown:
        check_file_writable(args.markdown, "--markdown")
    if args.png:
        check_writable(args.png, "--png")
    given = [args.evaluations, *[[]] * len(args.results_dirs)]  # beside the first folder
    folders = zip(args.results_dirs, given, strict=False)
    sections = [Section(read(*each), f"s{i}") for i, each in enumerate(folders, start=1)]
    if args.hypotheses:
        declared = read_declared(args.hypotheses, args.hypotheses)
        sections = [replace(each, results=replace(each.results, hypotheses=declared)) for each in sections]
    for section in sections:
        print(f"{section.results.folder}: {len(section.results.cells)} finished cells", flush=True)
    date = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    write_atomically(output, render(sections, __version__, date))
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    for section in sections:
        folder = section.results.folder
        write_atomically(folder / "summary" / "report.json", json.dumps(verdicts_of(section), indent=1))
        write_atomically(folder / "results.csv", to_csv(section.results))
    if args.markdown:
        write_atomically(Path(args.markdown), "\n".join(to_markdown(section) for section in sections))
        print(args.markdown)
    if args.png:
        for section in sections:
            prefix = section.results.title if len(sections) > 1 else ""
            for path in write_images(section.figures, Path(args.png), prefix):
                print(path)
    return 0


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("results_dirs", nargs="+", metavar="RESULTS_DIR", help="folder of a sweep's results")
    parser.add_argument("--hypotheses", metavar="FILE", help="hypotheses to decide, in place of those of the recipe")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output_dir", metavar="DIR", help="folder of the page, report.html (if left out: RESULTS_DIR)"
    )
    where.add_argument("--output", metavar="FILE", help="the page itself, under another name")
    help = "results of `trl-tempkd evaluate --lm_eval` to show too (those in the folders of cells are found)"
    parser.add_argument("--evaluations", nargs="+", default=[], metavar="FILE", help=help)
    parser.add_argument("--markdown", metavar="FILE", help="the recommendation, decisions and scores as Markdown too")
    parser.add_argument("--png", metavar="DIR", help="folder for the main figures as PNG files")
    return parser
