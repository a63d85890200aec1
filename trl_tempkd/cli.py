# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd COMMAND`: a static list of commands, each with `make_parser()` and `main()`, as TRL's scripts have."""

import difflib
import importlib
import os
import sys
from dataclasses import dataclass
from functools import partial

from ._version import __version__
from .processes import VERBOSITY, quiet_on_cpu, say_stopped, stopped_by_signals, uncollected


@dataclass(frozen=True)
class Command:
    """
    One command: the module `trl_tempkd.commands.<name>`, imported only when the command runs.

    Args:
        name (`str`):
            What is typed after `trl-tempkd`.
        help (`str`):
            What it does, in one line.
        launched (`bool`, *optional*, defaults to `False`):
            Whether it may take many processes, and so starts through `accelerate launch`, as `trl sft` does.
        again (`str`, *optional*, defaults to `""`):
            What the same command does after an interruption, if anything of it is kept.
        study (`bool`, *optional*, defaults to `False`):
            Whether it is of the study, which needs the extra `study`.
    """

    name: str
    help: str
    launched: bool = False
    again: str = ""
    study: bool = False


GOES_ON = "the same command goes on where it stopped"

COMMANDS = [
    Command(
        "distill",
        "train a student on a teacher's distributions, at any temperature, with any divergence",
        launched=True,
        again="with --resume_from_checkpoint auto the same command goes on from its last checkpoint",
    ),
    Command(
        "cache",
        "run a teacher once over a recipe's data and store its exact target, to distil without it",
        launched=True,
        again=GOES_ON,
    ),
    Command("student", "cut a student from a teacher: a copy with some of its layers"),
    Command(
        "generate",
        "let a teacher complete the prompts of a data set, and write a data set of them",
        launched=True,
        again=GOES_ON,
    ),
    Command(
        "evaluate",
        "generate from a model with fixed seeds, score it, and measure its distance from the teacher",
        again=GOES_ON,
        study=True,
    ),
    Command(
        "diagnose", "measure what objectives and temperatures do to a student's gradient, without training", study=True
    ),
    Command(
        "sweep",
        "distil over a grid of divergences, temperatures, modes and seeds, and compare",
        again=GOES_ON,
        study=True,
    ),
    Command(
        "tune",
        "choose divergence, temperature and other options together, by a score on held-out rows",
        again=GOES_ON,
        study=True,
    ),
    Command("report", "write one HTML page from a sweep's results: what to use, scores, hypotheses", study=True),
    Command("divergences", "list divergences, objectives and temperature rules: parameters, defaults, sources"),
]

EXAMPLES = """\
examples:
  trl-tempkd distill --config recipes/tiny/distill.yaml
  trl-tempkd distill --config recipes/qwen3/distill.yaml --kd_temperature 4 --divergence reverse_kl
  trl-tempkd distill --config recipes/qwen3/distill.yaml --accelerate_config zero2 --num_processes 4
  trl-tempkd student --from tiny:teacher --layers 0 2 4 --output_dir outputs/tiny-student
  trl-tempkd cache --config recipes/tiny/distill.yaml --mode hidden --output_dir outputs/tiny-cache
  trl-tempkd generate --teacher_model_name_or_path tiny:teacher --dataset_name tiny --output_dir outputs/tiny-written
  trl-tempkd evaluate --model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher \\
      --dataset_name tiny --output_dir outputs/scores
  trl-tempkd diagnose --model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher \\
      --dataset_name tiny --output_dir outputs/gradients
  trl-tempkd sweep --config recipes/sweeps/tiny.yaml --workers 2
  trl-tempkd tune --config recipes/tune/tiny.yaml
  trl-tempkd report results/tiny
  trl-tempkd divergences

`trl-tempkd COMMAND --help` explains a command. With --quiet it says nothing but errors and results, with --verbose all
that the libraries have to say."""


def help_text() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.help}" for command in COMMANDS]
    return "\n".join(["usage: trl-tempkd COMMAND [OPTIONS]", "", "commands:", *lines, "", EXAMPLES])


def main(argv: list[str] | None = None) -> int:
    """
    Run the command line. Returns the exit status: 0, 2 for a mistake in the command or the recipe, 128 and the number
    of a signal that told it to stop.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not sys.stderr.isatty():  # in a file or a pipe a bar hides what is said; read when the libraries are imported
        for library in ("DATASETS", "HUB"):
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    commands = {command.name: command for command in COMMANDS}
    if argv[0] not in commands:
        close = difflib.get_close_matches(argv[0], commands, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(commands)}"
        print(f"trl-tempkd: error: unknown command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    command = commands[argv[0]]
    quiet_on_cpu()
    for flag in ("--quiet", "--verbose"):
        if flag in argv:
            os.environ[VERBOSITY] = flag.lstrip("-")
            argv = [arg for arg in argv if arg != flag]
    try:
        with stopped_by_signals():
            status = run(command, argv[1:])
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        return say_stopped(f"trl-tempkd {command.name}", stop, command.again)
    except BrokenPipeError:  # whoever reads the output, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def run(command: Command, argv: list[str]) -> int:
    """Run one command in this process, or start the processes that train."""
    from .help_text import written_help

    if (text := written_help(command.name, argv)) is not None:
        print(text, end="")
        raise SystemExit(0)
    from .command_line import usage_errors_on_one_line

    prog = f"trl-tempkd {command.name}"
    if command.study:
        from .study import check_installed

        with usage_errors_on_one_line(prog):
            check_installed("this command")
    from .files import written

    # One thread until then, as those of torch would be missing in a fork. Who calls this may have others already
    alone = command.launched and "torch" not in sys.modules
    with uncollected():
        module = importlib.import_module(f"trl_tempkd.commands.{command.name}")
        parser = module.make_parser(prog=prog)
    with usage_errors_on_one_line(prog), written():
        if not command.launched:
            if hasattr(parser, "parse_here"):
                return module.main(*parser.parse_here(argv)) or 0
            return module.main(parser.parse_args(argv)) or 0
        import torch

        from .commands import rank
        from .extensions import are_loaded
        from .launch import launch

        if alone:
            torch.set_num_threads(1)
        # Everything is parsed and checked here first, so that a mistake costs no start of eight processes.
        values, for_launch, for_script = parser.parse(argv)
        module.check(*values)
        use_cpu = any(getattr(part, "use_cpu", False) for part in values)
        work = partial(rank.main, command.name, for_script) if alone and not are_loaded() else None
        return launch("trl_tempkd.commands.rank", for_launch, [command.name, *for_script], use_cpu, work)


if __name__ == "__main__":
    raise SystemExit(main())
