# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd report`: one HTML page from the results of sweeps."""

import argparse
from pathlib import Path

from ..errors import UsageError
from ..paths import check_file_writable, check_writable
from .arguments import HelpFormatter, OneLineParser


DESCRIPTION = """\
Write one HTML page from the results of `trl-tempkd sweep`: the verdict on each claim, scores over tau, every
divergence in a table, the asymmetry of the gradients, training curves, samples, and how to repeat it.

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
  trl-tempkd report results/tiny results/gpt2_dolly --output results/report.html"""


def main(args: argparse.Namespace) -> int:
    from datetime import datetime

    from .. import __version__
    from ..files import write_atomically
    from ..report import read
    from ..report.images import write_images
    from ..report.markdown import to_markdown
    from ..report.page import Section, render

    if len(args.results_dirs) > 1 and not args.output:
        raise UsageError("several folders: say with --output where their page goes")
    output = Path(args.output or Path(args.results_dirs[0], "report.html"))
    check_file_writable(output, "--output")
    if args.markdown:
        check_file_writable(args.markdown, "--markdown")
    if args.png:
        check_writable(args.png, "--png")
    sections = [Section(read(folder), f"s{i}") for i, folder in enumerate(args.results_dirs, start=1)]
    for section in sections:
        results = section.results
        print(
            f"{results.folder}: {len(results.cells)} finished cells; comparing them may take a minute or two",
            flush=True,
        )
    date = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    write_atomically(output, render(sections, __version__, date))
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    if args.markdown:
        write_atomically(Path(args.markdown), "\n".join(to_markdown(section.results) for section in sections))
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
    parser.add_argument("--output", help="the page (if left out: RESULTS_DIR/report.html)")
    parser.add_argument("--markdown", metavar="FILE", help="the verdicts and tables as Markdown too")
    parser.add_argument("--png", metavar="DIR", help="folder for the main figures as PNG files")
    return parser
