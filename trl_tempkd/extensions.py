# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What others write: modules that register divergences and temperature rules of their own, and what is known of these.

They are named by `--import`, by the key `import` of a recipe, or by an entry point of the group `trl_tempkd` of a
package that is installed. Processes that are started later import them too.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .errors import UsageError, UsageImportError


IMPORTS = "TRL_TEMPKD_IMPORT"  # environment variable: the modules that this process and those below it import
FLAG, KEY = "--import", "import"
HELP = (
    "a Python file or module to import first, which registers divergences or temperature rules of its own with "
    "`register_divergence` and `register_temperature_rule`; may be given again (in a recipe: `import`, one or a list)"
)

_loaded: set[str] = set()
# By the function: the file that it is in, and the SHA-256 of that, as far as either is known
_registered: dict[Callable[..., Any], tuple[str | None, str | None]] = {}


def take_imports(args: list[str]) -> list[str]:
    """
    Import what a command line and the recipe that it names ask for, and have processes below this one do so too.

    Args:
        args (`list[str]`): the command line.

    Returns:
        `list[str]`: It without `--import`.

    Raises:
        [`UsageError`]: If there is no such file or module. What it raises itself goes through.
    """
    rest: list[str] = []
    found: list[str] = []
    config: str | None = None
    given = iter(args)
    for arg in given:
        flag, joined, value = arg.partition("=")
        if flag not in (FLAG, "--config"):
            rest.append(arg)
            continue
        value = value if joined else next(given, "")
        if flag == FLAG and (not value or value.startswith("--")):
            raise UsageError(f"{FLAG} needs a Python file or module behind it.")
        if flag == FLAG:
            found.append(value)
        else:
            config, rest = value, [*rest, *([arg] if joined else [arg, *([value] if value else [])])]
    add_imports([*_of_recipe(config), *found])
    load_extensions()
    return rest


def _of_recipe(path: Any) -> list[str]:
    """What a recipe says, and the one that it starts from. Whoever reads it next says what is wrong with it."""
    import yaml

    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return []
    if not isinstance(recipe, dict):
        return []
    found = recipe.get(KEY) or []
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"`{KEY}` in {path}: expected a Python file or module, or a list of them, got {found!r}.")
    base = recipe.get("base")
    return [*(_of_recipe(base) if isinstance(base, str) else []), *found]


def add_imports(names: Iterable[str]) -> None:
    """Have [`load_extensions`] import these too, here and in the processes that this one starts."""
    before = [name for name in os.environ.get(IMPORTS, "").split(os.pathsep) if name]
    resolved = dict.fromkeys([*before, *map(_resolved, names)])
    if resolved:
        os.environ[IMPORTS] = os.pathsep.join(resolved)


def _resolved(name: str) -> str:
    """The absolute path of a file, or the name of a module. A file may be named as a module that lies here."""
    is_file = name.endswith(".py") or os.sep in name
    path = Path(name if is_file else f"{name.replace('.', os.sep)}.py").absolute()
    if path.is_file():
        return str(path)
    if is_file:
        raise UsageError(f"{FLAG} {name}: there is no such file.")
    return name


def load_extensions() -> None:
    """Import what entry points of the group `trl_tempkd` and the environment name, each once in a process."""
    for entry in _installed():
        if entry.value not in _loaded:
            _loaded.add(entry.value)
            entry.load()
    for name in os.environ.get(IMPORTS, "").split(os.pathsep):
        if name and name not in _loaded:
            _loaded.add(name)  # before it is run: what it imports may ask for the same
            try:
                _import(name)
            except BaseException as error:
                _loaded.discard(name)
                if isinstance(error, SyntaxError):
                    raise UsageError(f"{FLAG} {name}: {error.filename}, line {error.lineno}: {error.msg}.") from error
                if isinstance(error, ImportError) and not isinstance(error, UsageError):
                    raise UsageImportError(f"{FLAG} {name}: {error}.") from error
                raise


@cache  # every package that is installed is looked at
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group="trl_tempkd"))


def are_loaded() -> bool:
    """Whether this process has imported any."""
    return bool(_loaded)


def _import(name: str) -> None:
    if not name.endswith(".py"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and misses another one
            raise UsageError(f"{FLAG} {name}: there is no such module, nor a file {name}.py here.") from error
        return
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{FLAG} {name}: there is no such file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # it may be named as a module that is imported already
    sys.path.append(str(path.parent))  # for what lies beside it, as if it were run
    spec.loader.exec_module(module)


def register(
    kind: str, registry: MutableMapping[str, Callable[..., Any]], name: str, function: Callable[..., Any]
) -> None:
    """
    Enter a function under a name. One that was defined again, as in a cell of a notebook, takes its own place.

    Raises:
        [`UsageError`]: If the name can't be one, or is another function's.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UsageError(f"The name of a {kind} must be letters, digits and underscores, got {name!r}.")
    other = registry.get(name)
    if other is not None and other is not function:
        if other not in _registered:
            raise UsageError(f"The {kind} {name!r} comes with trl_tempkd. Give yours another name.")
        if _place(other) != _place(function):
            raise UsageError(f"The {kind} {name!r} is registered from {_place(other)[0]} already. Give another name.")
    if other is not function:
        _registered[function] = _source(function)
        registry[name] = function


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return getattr(function, "__module__", "?"), getattr(function, "__qualname__", repr(function))


def name_of(kind: str, registry: Mapping[str, Callable[..., Any]], given: Any) -> str:
    """The name that a function has in a registry, or else its own, under which it may be registered."""
    for name, function in registry.items():
        if function is given:
            return name
    name = getattr(given, "__name__", "")
    if not name.isidentifier():
        raise UsageError(f"A function without a name of its own can't be a {kind}: register {given!r} under one.")
    return name


def _source(function: Callable[..., Any]) -> tuple[str | None, str | None]:
    """The file of a function and the hash of it; of what was typed into a notebook the hash of its own lines."""
    plain = inspect.unwrap(function)
    plain = plain if inspect.isroutine(plain) or inspect.isclass(plain) else type(plain)
    try:
        path = inspect.getsourcefile(plain)
        if path is not None and Path(path).is_file():
            return path, hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return None, hashlib.sha256(inspect.getsource(plain).encode()).hexdigest()
    except (OSError, TypeError):
        return None, None


def source_of(function: Callable[..., Any]) -> tuple[str | None, str | None] | None:
    """The file of a registered function, and its SHA-256; `None` of one that comes with the library."""
    return _registered.get(function)


def source_in(function: Callable[..., Any]) -> str:
    """The first sentence behind `Source:` in the docstring of a divergence, an objective or a rule."""
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n")]
    source = next((text.removeprefix("Source: ") for text in paragraphs if text.startswith("Source: ")), "")
    return re.split(r"(?<=\.) (?=[A-Z])", source)[0]


def sources(registries: Mapping[str, Mapping[str, Callable[..., Any]]], options: Mapping[str, Any]) -> dict[str, str]:
    """
    What options of a run name that comes from somewhere else.

    Args:
        registries (`Mapping`): by option, the functions that it may name.
        options (`Mapping`): the options.

    Returns:
        `dict[str, str]`: By name, the SHA-256 of its source.
    """
    found = {}
    for option, registry in registries.items():
        name = options.get(option)
        own = source_of(registry[name]) if isinstance(name, str) and name in registry else None
        if own is not None:
            found[str(name)] = own[1] or "unknown"
    return found
