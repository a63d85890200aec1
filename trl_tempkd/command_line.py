# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a command line says to whoever has mistyped it, and how its help looks."""

import argparse
import copy
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .errors import UsageError, is_for_the_user
from .extensions import FLAG, HELP, take_imports
from .names import did_you_mean


_SECONDS = 20.0  # that the first process of a node has to make the complaint of another one


@contextmanager
def usage_errors_on_one_line(prog: str) -> Iterator[None]:
    """
    Turn a user's mistake into one line on stderr and exit status 2. Everything else is a bug and keeps its traceback.
    """
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        if not is_for_the_user(error):
            raise
        sys.exit(complain(prog, str(error)))


def complain(prog: str, message: str) -> int:
    """Say on one line what is wrong. Returns the exit status."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # As a rule all processes of a node make the same complaint, and the launcher ends the others with the first
        time.sleep(_SECONDS)
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Have `--help` list it. It is taken out before anything is parsed: see [`~extensions.take_imports`]."""
    parser.add_argument(FLAG, metavar="FILE", default=argparse.SUPPRESS, help=HELP)


class OneLineParser(argparse.ArgumentParser):
    """
    An `ArgumentParser` whose error is one line, without the usage of every option before it, and which imports what
    `--import` names.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        add_import_flag(self)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            args = take_imports(sys.argv[1:] if args is None else list(args))
        except UsageError as error:
            self.error(str(error))
        for arg in args:  # before what is required: an unknown flag is the likelier reason of what is missing
            flag = arg.partition("=")[0]
            if flag.startswith("--") and flag not in {*self._option_string_actions, "--"}:
                self.error(f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        sys.exit(complain(self.prog, message + _of_several(self, message)))


def _of_several(parser: argparse.ArgumentParser, message: str) -> str:
    """Help with several values that are written as one word, as `0,2`."""
    found = re.match(r"argument (--\w+).*: invalid \w+ value: '(.*)'$", message)
    action = parser._option_string_actions.get(found[1]) if found else None
    if found is None or action is None or action.nargs not in ("+", "*") or "," not in found[2]:
        return ""
    values = found[2].strip("[]").replace(",", " ").split()
    return f". Give several with spaces between them: {found[1]} {' '.join(values)}"


# Where results go has one name. These are what it was called before, and are still taken
OUTPUT, _BEFORE = "--output_dir", ("--output", "--results_dir")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """
    Keeps the line breaks of the examples, names types, and shows `--an_option` without its twin `--an-option` and what
    it was called before.
    """

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if len(action.option_strings) > 1:
            action = copy.copy(action)
            action.option_strings = [o for o in action.option_strings if "-" not in o.lstrip("-") and o not in _BEFORE]
        return super()._format_action_invocation(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {"string_to_bool": "BOOL", "json_dict": "JSON"}.get(type_name(action), type_name(action).upper())

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def type_name(action: argparse.Action) -> str:
    """The name of what an option takes, such as `int`."""
    return getattr(action.type, "__name__", "str")


def json_dict(text: str) -> dict[str, Any]:
    """Type of an option: a dict, as JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"expected JSON such as '{{\"key\": 1}}', and several one by one, got {text!r}"
        )
    return value


def positive(text: str) -> int:
    """Type of an option: a whole number above 0."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Type of an option: a share of a GPU."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1 (a share of a GPU), got {text!r}")
    return value
