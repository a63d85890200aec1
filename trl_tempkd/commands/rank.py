# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
One of the processes that `trl-tempkd COMMAND` starts to train: `python -m trl_tempkd.commands.rank COMMAND OPTIONS`.

It imports little itself, so that from its first moment it ends with its launcher, and without a word after Ctrl-C.
"""

import importlib
import sys

from ..processes import end_with_launcher, quiet_on_cpu, quiet_when_interrupted, uncollected


def main(command: str, options: list[str]) -> None:
    end_with_launcher()
    quiet_on_cpu()
    with quiet_when_interrupted():
        with uncollected():
            module = importlib.import_module(f"trl_tempkd.commands.{command}")
        from ..command_line import usage_errors_on_one_line

        parser = module.make_parser(f"trl-tempkd {command}")
        with usage_errors_on_one_line(parser.prog):
            values, _, _ = parser.parse(options, launched=True)
            module.main(*values)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
