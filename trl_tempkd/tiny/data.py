# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Real text that every install already has: the docstrings of Python and of this library's own dependencies."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import written
from ..fingerprint import row_hash
from ..locks import locked


if TYPE_CHECKING:
    from datasets import DatasetDict


# Import name to distribution name. All of them are (transitive) dependencies of this library, so they are always
# there.
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "peft": "peft",
    "huggingface_hub": "huggingface_hub",
    "pandas": "pandas",
    "sympy": "sympy",
    "networkx": "networkx",
    "mpmath": "mpmath",
    "fsspec": "fsspec",
    "jinja2": "Jinja2",
    "pyarrow": "pyarrow",
}
# A docstring that stands in modules of several splits belongs to the first of these.
SPLITS = ("general", "train", "test")
MIN_CHARS, MAX_CHARS = 20, 300
MAX_ARGUMENTS = 8
# Part of the cache key: raise it whenever the rows change for the same package versions.
CODE_VERSION = 2


def split_of(module: str) -> str:
    """
    Name the split of a module: about 86% of the modules are `general`, 10% `train` and 4% `test`.

    The choice depends on the module's name alone, so that a new version of a package moves no module to another split.

    Args:
        module (`str`):
            Dotted name of the module.

    Returns:
        `str`: `"general"`, `"train"` or `"test"`.
    """
    bucket = int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100
    if bucket < 4:
        return "test"
    return "train" if bucket < 14 else "general"


def load_tiny_dataset() -> "DatasetDict":
    """
    Load the built-in data set: questions on Python functions and classes, answered by their docstrings.

    The rows are read from the source files of the standard library and of this library's dependencies, without
    importing them. Other versions of these have other docstrings, so a result holds for the rows of its
    [`~trl_tempkd.fingerprint.fingerprint`]. But a docstring that is new, changed or gone changes its own row alone:
    the module's name decides the split, and within it the rows stand in the order of their hashes, so that the first
    so many are a sample that stays. The first call takes about half a minute and shows a progress bar on a terminal;
    later calls read the cache, which lies in `$XDG_CACHE_HOME/trl_tempkd` (by default `~/.cache/trl_tempkd`).

    Returns:
        [`~datasets.DatasetDict`]: Splits `general` (pretraining of the built-in pair), `train` (rows to distil on) and
        `test` (held out), each with the columns `prompt` and `completion`. No module and no completion stands in two
        splits.

    Example:

    ```python
    >>> from trl_tempkd.tiny import load_tiny_dataset

    >>> dataset = load_tiny_dataset()
    >>> dataset["train"].column_names
    ['prompt', 'completion']
    ```
    """
    from datasets import DatasetDict

    folder = cache_folder() / f"tiny-{cache_key()}"
    if not folder.is_dir():
        _write_cache(folder)
    return DatasetDict.load_from_disk(folder)


def cache_folder() -> Path:
    """
    Folder of this library's cache, which need not exist yet.

    Returns:
        `pathlib.Path`: `$XDG_CACHE_HOME/trl_tempkd`.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl_tempkd"


def cache_key() -> str:
    """
    Hash of everything that the rows depend on: the versions of Python and of the packages, and this code's version.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    # The ABI part of the version ("+cpu", "+cu130") changes binaries, not docstrings.
    versions = [f"{name}=={importlib.metadata.version(dist).split('+')[0]}" for name, dist in PACKAGES.items()]
    text = "\n".join([f"code=={CODE_VERSION}", f"python=={platform.python_version()}", *versions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_rows(progress: bool = True) -> dict[str, list[dict[str, str]]]:
    """
    Read all rows from the source files.

    Args:
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over the source files where the output is a terminal.

    Returns:
        `dict[str, list[dict[str, str]]]`: For each split its rows, with the keys `prompt` and `completion`, in the
        order of their hashes.
    """
    from tqdm.auto import tqdm

    found: dict[str, tuple[str, str]] = {}  # completion -> split, prompt
    files = sorted(source_files())
    for module, path in tqdm(files, desc="Reading docstrings", unit="file", disable=None if progress else True):
        split = split_of(module)
        for name, completion in documented_names(path):
            # A docstring copied between modules must not leak from `test` into the others, so it counts once: in the
            # first split that has it, and there for the first module.
            known = found.get(completion)
            if known is None or SPLITS.index(split) < SPLITS.index(known[0]):
                found[completion] = split, f"What does `{name}` of `{module}` do?\n"
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for completion, (split, prompt) in found.items():
        rows[split].append({"prompt": prompt, "completion": completion})
    return {split: sorted(each, key=row_hash) for split, each in rows.items()}


def source_files() -> Iterator[tuple[str, Path]]:
    """
    List the modules whose docstrings are read: the standard library and `PACKAGES`, without their test suites.

    Yields:
        `tuple[str, pathlib.Path]`: Dotted name of a module and its source file.
    """
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for path in stdlib.rglob("*.py"):
        parts = path.relative_to(stdlib).parts
        # Folders and files that are no identifiers are build settings, which differ between platforms.
        if all(part.removesuffix(".py").isidentifier() for part in parts) and not is_test(parts):
            yield module_name(parts), path
    for name in PACKAGES:
        # For a top-level name `find_spec` finds the folder without importing the package.
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"The built-in data reads the sources of {name}, which is not installed.")
        root = Path(spec.submodule_search_locations[0])
        for path in root.rglob("*.py"):
            parts = (name, *path.relative_to(root).parts)
            if not is_test(parts):
                yield module_name(parts), path


def is_test(parts: tuple[str, ...]) -> bool:
    """
    Whether a source file belongs to a test suite.

    Args:
        parts (`tuple[str, ...]`):
            Parts of the file's path, the last one being the file's name.

    Returns:
        `bool`: `True` for a test suite's file.
    """
    return any(
        part.removesuffix(".py") in ("test", "tests", "idle_test", "testing", "conftest")
        or part.startswith(("test_", "_test"))
        or part.endswith("_test.py")
        for part in parts
    )


def module_name(parts: tuple[str, ...]) -> str:
    """
    Dotted name of the module in a source file.

    Args:
        parts (`tuple[str, ...]`):
            Parts of the file's path, beginning with the package.

    Returns:
        `str`: The module's name.
    """
    name = ".".join(parts).removesuffix(".py")
    return name.removesuffix(".__init__")


def documented_names(path: Path) -> list[tuple[str, str]]:
    """
    Read what a source file documents, without importing it.

    Args:
        path (`pathlib.Path`):
            The source file.

    Returns:
        `list[tuple[str, str]]`: For each function, method and class with a usable docstring, its name with signature
        and the docstring's first paragraph.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        # Python ships a few files that are wrong on purpose.
        return []
    return list(_walk(tree, prefix=""))


def first_paragraph(docstring: str) -> str | None:
    """
    First paragraph of a docstring on one line.

    Args:
        docstring (`str`):
            The cleaned docstring.

    Returns:
        `str` or `None`: The paragraph, or `None` if it is too short, too long, or no prose.
    """
    text = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    if not MIN_CHARS <= len(text) <= MAX_CHARS or text.startswith((">>>", "Args:", "Parameters", "Returns:", "```")):
        return None
    return text


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """
    Argument names of a function as they stand between its parentheses, without `self` and `cls`.

    Args:
        node (`ast.FunctionDef` or `ast.AsyncFunctionDef`):
            The function.

    Returns:
        `str`: Names joined by commas; after `MAX_ARGUMENTS` of them an ellipsis.
    """
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if names[:1] in (["self"], ["cls"]):
        names = names[1:]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    if len(names) > MAX_ARGUMENTS:
        names = [*names[:MAX_ARGUMENTS], "..."]
    return ", ".join(names)


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    # Functions inside functions are left out: nobody can look them up by name.
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}({signature(child)})"
        elif isinstance(child, ast.ClassDef):
            init = next((item for item in child.body if getattr(item, "name", None) == "__init__"), None)
            name = f"{prefix}{child.name}({signature(init) if isinstance(init, ast.FunctionDef) else ''})"
        else:
            if isinstance(child, ast.If | ast.Try):
                yield from _walk(child, prefix)
            continue
        text = first_paragraph(ast.get_docstring(child) or "")
        if text:
            yield name, text
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, prefix=f"{prefix}{child.name}.")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars of `datasets`, for a second's work."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _write_cache(folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    # Several processes may want it at once: one builds it, and the others wait. What a killed one left is deleted.
    lock, part = folder.with_name(f".{folder.name}.lock"), folder.with_name(f".{folder.name}.part")
    with written(folder), locked(lock):
        try:
            shutil.rmtree(part, ignore_errors=True)
            if not folder.is_dir():
                rows = build_rows()
                with no_progress_bars():
                    DatasetDict({split: Dataset.from_list(rows[split]) for split in SPLITS}).save_to_disk(part)
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)
