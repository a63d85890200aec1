# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Recipes and the options of commands that train, read strictly: what the reader cannot place is one line on stderr and
exit status 2.

TRL's parser hands keys that it does not know on to `accelerate launch` or drops them. Here each unknown key or flag is
an error that names the closest known one, and so is each value of the wrong type.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from .command_line import HelpFormatter, OneLineParser, add_import_flag, json_dict, type_name
from .errors import UsageError, is_for_the_user
from .extensions import KEY, take_imports
from .files import write_atomically
from .names import stands_twice
from .processes import uncollected
from .trl_names import hint_for


with uncollected():
    from trl import TrlParser


def launcher_actions() -> dict[str, argparse.Action]:
    """The options of `accelerate launch`, and `--accelerate_config`, by their flags."""
    from .compat import launch_command_parser

    actions = {flag: action for action in launch_command_parser()._actions for flag in action.option_strings}
    return {**actions, "--accelerate_config": argparse.Action(["--accelerate_config"], "accelerate_config")}


# The class that first defines a field -> the group under which `--help` lists it. The order is that of `--help`.
GROUPS = {
    "CacheArguments": "cache",
    "DiagnoseArguments": "diagnostics",
    "GenerateConfig": "generation",
    **dict.fromkeys(("DivergenceOptions", "TemperatureOptions"), "divergence and temperature"),
    **dict.fromkeys(
        (
            "MemoryOptions",
            "TeacherOptions",
            "ServerOptions",
            "ServedTargetOptions",
            "VocabularyOptions",
            "ResumingOptions",
            "DiagnosticsOptions",
        ),
        "teacher, memory and diagnostics",
    ),
    **dict.fromkeys(
        ("RolloutOptions", "SamplingOptions", "GenerationOptions", "VLLMOptions", "CompletionLogOptions"),
        "on-policy training: who writes the completions, and how",
    ),
    "ScriptArguments": "data",
    "DatasetMixtureConfig": "data mixtures (a list in the recipe)",
    "EvaluateConfig": "evaluation",
    "ModelConfig": "student model, LoRA and quantization",
    "SFTConfig": "sequences (trl.SFTConfig)",
    "TrainingArguments": "optimization, logging and checkpoints (transformers.TrainingArguments)",
}
# With these options a training asks nothing of the hardware
ANYWHERE = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--tf32", "false"]
LONG_GROUPS = {"SFTConfig", "TrainingArguments"}  # only `--help_all` lists these


class RecipeParser(TrlParser):
    """
    TRL's `TrlParser`, strict, and with a help that groups the options.

    Args:
        dataclass_types (`Iterable[type]`):
            Dataclasses to fill, as for `TrlParser`.
        prog (`str`, *optional*):
            Name of the command in messages.
        description (`str`, *optional*):
            First paragraph of `--help`.
        epilog (`str`, *optional*):
            Last paragraph of `--help`, for examples.

    Attributes:
        ignored (`tuple[str, ...]`):
            Keys of a recipe that mean nothing to this command.
    """

    ignored: tuple[str, ...] = ()
    _action_groups: list[argparse._ArgumentGroup]

    def __init__(self, dataclass_types, prog: str | None = None, description: str = "", epilog: str = ""):
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        self._hints: dict[str, Any] = {}
        self._recipe = "the recipe"
        self._keys: dict[str, str] = {}  # keys of a recipe by another name than their option's
        self._before: set[str] = set()  # flags that meant two options before one of them got the other's name
        super().__init__(
            dataclass_types,
            prog=prog,
            usage="%(prog)s [--config RECIPE.yaml] [--accelerate_config NAME] [--OPTION VALUE ...]",
            description=description,
            epilog=epilog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,  # `--kd_temp 4` must not be taken for another option that starts so
        )
        self.add_argument(
            "--help_all", action="help", default=argparse.SUPPRESS, help="list TRL's and transformers' options too"
        )
        add_import_flag(self)

    error = OneLineParser.error

    def call(self, dest: str, name: str) -> None:
        """
        Have an option called otherwise, its old name still taken: as a flag, and as a key of a recipe, where `name`
        may be another option's. Then that is what the key goes on to mean.
        """
        action = next(action for action in self._actions if action.dest == dest)
        other = next((action for action in self._actions if action.dest == name), None)
        if other is None:
            self._keys[name] = dest
        else:
            other.option_strings = [f"--training_{name}"]
            self._option_string_actions[f"--training_{name}"] = other
            self._before = {f"--{name}", f"--{dest}"}
        new = [f"--{name}", f"--{name.replace('_', '-')}"]
        action.option_strings = [*new, *action.option_strings]
        self._option_string_actions |= dict.fromkeys(new, action)

    def _add_dataclass_arguments(self, dtype) -> None:
        hints = get_type_hints(dtype)
        if not self._groups:  # all at the first dataclass, to have them in order
            groups = {title: self.add_argument_group(title) for title in dict.fromkeys(GROUPS.values())}
            self._groups = {name: groups[title] for name, title in GROUPS.items()}
        for field in dataclasses.fields(dtype):
            if not field.init:
                continue
            field.type = self._hints[field.name] = hints[field.name]
            # The base that comes first in the hierarchy owns the field: SFTConfig only changes defaults of its bases.
            owners = [b.__name__ for b in reversed(dtype.__mro__) if field.name in vars(b).get("__annotations__", {})]
            group = next((self._groups[owner] for owner in owners if owner in self._groups), self)
            self._parse_dataclass_field(group, field)
        for action in self._actions:
            if get_origin(action.type) is dict:  # of a list of them, of which the flag has each as JSON
                action.type = json_dict

    def format_help(self) -> str:
        groups = self._action_groups
        if "--help_all" not in sys.argv:
            long_titles = {GROUPS[name] for name in LONG_GROUPS}
            self._action_groups = [group for group in groups if group.title not in long_titles]
        try:
            return super().format_help()
        finally:
            self._action_groups = groups

    def set_defaults_with_config(self, **config) -> list[str]:
        """As in TRL, but checked: returns what is for `accelerate launch`, and stops at any key that is for nobody."""
        actions: dict[str, argparse.Action] = {}
        for action in self._actions:
            if action.dest not in ("help", "help_all", KEY):
                actions.setdefault(action.dest, action)
        launcher = launcher_actions()
        for_launch: list[str] = []
        config.pop(KEY, None)  # its modules are imported already
        for key, dest in self._keys.items():
            if key in config and dest in config and config[key] != config[dest]:
                self.error(f"{key} and {dest}, its old name, in {self._recipe}: leave one of them out")
            config |= {dest: config.pop(key)} if key in config else {}
        for key, value in list(config.items()):
            if key in actions:
                config[key] = self._checked(key, value, actions[key])
            elif f"--{key}" in launcher:
                takes_value = launcher[f"--{key}"].nargs != 0
                if takes_value:
                    self._check_launch(f"{key} in {self._recipe}", str(value), launcher[f"--{key}"])
                if takes_value or value:
                    for_launch += [f"--{key}", *([str(value)] if takes_value else [])]
            else:
                hint = hint_for(key, [*actions, *(flag.lstrip("-") for flag in launcher)])
                self.error(f"unknown key {key!r} in {self._recipe}{hint}")
        known = {key: value for key, value in config.items() if key in actions and key not in self.ignored}
        super().set_defaults_with_config(**known)
        return for_launch

    def _checked(self, key: str, value: Any, action: argparse.Action) -> Any:
        """The value of a key of the recipe, held to the type and the choices that the flag of that name has."""
        if isinstance(value, list) and action.nargs in ("+", "*"):
            return [self._checked(key, each, action) for each in value]
        if value is False and action.choices and "no" in action.choices:
            return "no"  # YAML reads a bare `no` as false, as in `eval_strategy: no`
        expected = type_name(action)
        kinds = set(get_args(self._hints.get(key))) or {self._hints.get(key)}
        if value is None and action.default is not None and NoneType not in kinds and Any not in kinds:
            self.error(f"{key} in {self._recipe}: expected {expected.replace('string_to_', '')}, got nothing")
        if kinds <= {str, NoneType}:
            if isinstance(value, bool | list | dict):
                self.error(f"{key} in {self._recipe}: expected text, got {value!r}")
            value = value if value is None else str(value)  # YAML reads a name of digits as a number
        if expected in ("int", "float", "string_to_bool") and value is not None:
            try:
                if isinstance(value, list | dict):
                    raise ValueError
                self._get_value(action, str(value))
            except (ValueError, argparse.ArgumentError):
                self.error(f"{key} in {self._recipe}: expected {expected.replace('string_to_', '')}, got {value!r}")
        if action.choices and value is not None and value not in list(action.choices):
            self.error(
                f"{key} in {self._recipe}: expected one of {', '.join(map(str, action.choices))}, got {value!r}"
            )
        return value

    def _check_flags(self, unknown: list[str], launched: bool) -> None:
        """Stop at the first argument that neither the dataclasses nor `accelerate launch` take."""
        launcher = {} if launched else launcher_actions()
        before: argparse.Action | None = None
        for arg in unknown:
            flag, joined, value = arg.partition("=")
            if before is not None and before.nargs is None and arg.startswith("--"):
                self.error(f"expected a value after {before.option_strings[0]}")
            if flag in launcher:
                before = None if joined else launcher[flag]
                if joined:
                    self._check_launch(flag, value, launcher[flag])
            elif arg.startswith("--"):
                self.error(f"unknown flag {flag}{hint_for(flag, [*self._option_string_actions, *launcher])}")
            elif before is None or before.nargs == 0:
                self.error(f"unexpected argument {arg!r}")
            else:
                self._check_launch(before.option_strings[0], arg, before)
                before = None
        if before is not None and before.nargs is None:
            self.error(f"expected a value after {before.option_strings[0]}")

    def _check_launch(self, name: str, text: str, action: argparse.Action) -> None:
        """Hold what `accelerate launch` gets to its type and choices: its own complaint is a page of usage."""
        try:
            value = self._get_value(action, text)
        except argparse.ArgumentError:
            self.error(f"{name}: expected {type_name(action)}, got {text!r}")
        if action.choices and value not in action.choices:
            self.error(f"{name}: expected one of {', '.join(map(str, action.choices))}, got {text!r}")

    def parse(self, args: list[str] | None = None, launched: bool = False) -> tuple[list[Any], list[str], list[str]]:
        """
        Read a command line and the recipe that it names.

        Args:
            args (`list[str]`, *optional*):
                Command line, by default that of the process.
            launched (`bool`, *optional*, defaults to `False`):
                Whether `accelerate launch` has started this process already. Options of the launcher in the recipe
                have then served their purpose, and on the command line they are unknown.

        Returns:
            `tuple`: The dataclass instances, the arguments that are for `accelerate launch`, and those that are not.
        """
        try:
            args = take_imports(sys.argv[1:] if args is None else args)
        except UsageError as error:
            self.error(str(error))
        if self._before and self._before <= {arg.partition("=")[0] for arg in args}:  # as they were before
            args = [arg.replace("--output_dir", "--training_output_dir", 1) for arg in args]
        # `--config=x` as `--config x`, which is the only form that TRL looks for.
        joined = ("--config=", "--accelerate_config=")
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith(joined) else [arg])]
        for flag in ("--config", "--accelerate_config"):
            if flag in args and args.index(flag) + 1 == len(args):
                self.error(f"expected a value after {flag}")
        flags = args
        if "--config" in args:
            at = args.index("--config")
            self._recipe, flags = args[at + 1], args[:at] + args[at + 2 :]
        # Before any value is looked at: an unknown flag is the likelier reason of what is wrong.
        known, unknown = self.parse_known_args(flags)
        self._check_flags(unknown, launched)
        import yaml

        try:
            if "--config" in args and (twice := stands_twice(self._recipe)):
                self.error(f"{self._recipe} has {twice}: leave one of them out")
            *values, for_launch, _ = self.parse_args_and_config(
                args, return_remaining_strings=True, separate_remaining_strings=True
            )
        except OSError as error:  # the recipe, or a file that one of its values names
            if error.filename is None and not is_for_the_user(error):
                raise
            self.error(f"cannot read {error.filename or self._recipe}: {error.strerror or error}")
        except yaml.YAMLError as error:
            self.error(f"{self._recipe} is not valid YAML: {error}")
        except json.JSONDecodeError as error:  # of an option that is a dict
            words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
            of = next((f"{flag}: " for flag, word in pairwise(words) if word == error.doc), "")
            self.error(f"{of}{error.doc!r} is not valid JSON: {error}")
        except (ValueError, ImportError) as error:  # the dataclasses' checks
            if not is_for_the_user(error):
                raise
            # Who has named next to nothing yet is told so, and not what a default can't be here
            lacks = unnamed(vars(known)) if "--config" not in args else None
            self.error(lacks if lacks and self._fits_elsewhere(args) else str(error))
        for part in values:
            for name in getattr(part, "_VALID_DICT_FIELDS", []):
                if name.endswith("_kwargs") and isinstance(getattr(part, name), str):
                    self.error(f"{name}: expected JSON such as '{{\"key\": 1}}', got {getattr(part, name)!r}")
        rest = iter(unknown)
        current = next(rest, None)
        kept = []  # `unknown` is `args` with some left out, in the same order
        for arg in args:
            if arg == current:
                current = next(rest, None)
            else:
                kept.append(arg)
        return values, for_launch + unknown, kept

    def _fits_elsewhere(self, args: list[str]) -> bool:
        """Whether nothing but this machine's hardware is in the way of these options."""
        try:
            self.parse_args_and_config([*args, *ANYWHERE], return_remaining_strings=True)
        except (ValueError, ImportError):
            return False
        return True

    def parse_here(self, args: list[str] | None = None) -> list[Any]:
        """The dataclass instances, for a command that runs in this process and has nothing to launch."""
        values, for_launch, _ = self.parse(args, launched=True)
        if for_launch:
            self.error(f"{for_launch[0]} is for `accelerate launch`, which this command does not use")
        return values


def unnamed(given: Mapping[str, Any]) -> str | None:
    """What to say of the options of a training where more than one is missing that it can't do without."""
    sources = ("teacher_model_name_or_path", "teacher_cache", "teacher_server_url", "teachers")
    if not {"model_name_or_path", "dataset_name", *sources} <= given.keys():
        return None  # of another command
    named = {
        "student (--model_name_or_path)": given["model_name_or_path"],
        f"teacher (--{' or --'.join(sources[:-1])})": any(given[name] for name in sources),
        "data (--dataset_name)": given["dataset_name"] or given.get("datasets"),
    }
    missing = [name for name, value in named.items() if not value]
    if len(missing) < 2:
        return None
    return f"There is no {', no '.join(missing)}. A recipe that has all of them: --config recipes/tiny/distill.yaml"


def training_parser(
    prog: str | None = None, description: str = "", epilog: str = "", first: tuple[type, ...] = ()
) -> RecipeParser:
    """The parser of a training's options: the dataclasses of TRL's `sft.py` with [`KDConfig`], behind `first`."""
    with uncollected():
        from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

        from .config import KDConfig

    dataclass_types = (*first, ScriptArguments, KDConfig, ModelConfig, DatasetMixtureConfig)
    return RecipeParser(dataclass_types, prog=prog, description=description, epilog=epilog)


def read_options(options: dict[str, Any], folder: Path, prog: str, flags: list[str] | None = None) -> list[Any]:
    """The dataclasses of a training with these options that writes to a folder. Its `recipe.yaml` is left there."""
    import yaml

    recipe = folder / "recipe.yaml"
    write_atomically(recipe, yaml.safe_dump({**options, "output_dir": str(folder)}, sort_keys=False))
    values, _, _ = training_parser(prog).parse(["--config", str(recipe), *(flags or [])], launched=True)
    return values


def try_options(options: dict[str, Any], prog: str) -> list[Any]:
    """As [`read_options`], but on whatever hardware, and without a trace: what is wrong with them shows here."""
    with tempfile.TemporaryDirectory() as folder:
        return read_options(options, Path(folder), prog, ANYWHERE)
