# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Options in small groups. Each is described once, by its field; docstring, `--help` and checks are made of that."""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from .errors import UsageError


C = TypeVar("C", bound=type)

_WIDTH = 111  # of the docstring's lines, without their indentation


class OptionGroup:
    """A part of a configuration: a dataclass of options that are about one thing, with the check of their values."""

    if TYPE_CHECKING:  # a group may look at the options of the others, and of TRL

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def check(self) -> None:
        """
        Raises:
            [`UsageError`]: Names the option, its value, and the way out.
        """


def option(default: Any, help: str, **metadata: Any) -> Any:
    """
    A field of an [`OptionGroup`].

    Args:
        default (`Any`):
            Its default.
        help (`str`):
            What it does, for `--help` and for the docstring. Of a dict it has an example, in backticks.
        metadata:
            More for the parser, such as `choices`, a list of the values that it may have.
    """
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def groups_of(cls: type) -> list[type[OptionGroup]]:
    """The groups that a configuration consists of, in the order of their fields."""
    return [base for base in reversed(cls.__mro__) if OptionGroup in base.__bases__]


def check_groups(options: Any) -> None:
    """
    Hold the options of every group against what they may be.

    Raises:
        [`UsageError`]: As `check` of the groups does, and if text stands in the place of a dict.
    """
    for group in groups_of(type(options)):
        for field in dataclasses.fields(group):  # type: ignore[arg-type]
            if isinstance(getattr(options, field.name), str) and field.name in options._VALID_DICT_FIELDS:
                (example,) = re.findall(r"`({.*?})`", field.metadata["help"])
                must(options, field.name, False, f"a dict, or on the command line its JSON, e.g. '{example}'")
        group.check(options)


def must(options: Any, name: str, ok: bool, wanted: str, way_out: str = "") -> None:
    """
    Raises:
        [`UsageError`]: Unless the option is `ok`.
    """
    if not ok:
        raise UsageError(f"`{name}` must be {wanted}, got {getattr(options, name)!r}. {way_out}".rstrip())


def named(names: Iterable[str]) -> str:
    """Names as a help text lists them."""
    return ", ".join(f"`{name}`" for name in names)


def assembled(cls: C) -> C:
    """
    A dataclass made of groups: its docstring lists their options, and `_VALID_DICT_FIELDS` of transformers has those
    that are dicts.
    """
    fields = {group: dataclasses.fields(group) for group in groups_of(cls)}  # type: ignore[arg-type]
    sections = (
        "\n".join([f"    > {str(group.__doc__).rstrip('.')}\n", *map(_entry, of)]) for group, of in fields.items()
    )
    cls.__doc__ = f"{inspect.getdoc(cls)}\n\nParameters:\n" + "\n\n".join(sections)
    dicts = [field.name for of in fields.values() for field in of if _is_dict(field.type)]
    cls._VALID_DICT_FIELDS = [*cls._VALID_DICT_FIELDS, *dicts]  # type: ignore[attr-defined]
    return cls


def _is_dict(hint: Any) -> bool:
    return dict in {get_origin(kind) for kind in (hint, *get_args(hint))}


def _entry(field: dataclasses.Field) -> str:
    """An option as TRL's docstrings have it, with type and default."""
    kinds: list[Any] = list(get_args(field.type)) if isinstance(field.type, UnionType) else [field.type]
    left_out = (NoneType, str) if _is_dict(field.type) else (NoneType,)  # text is the JSON of a dict
    kinds = [kind for kind in kinds if kind not in left_out]
    texts = (str(kind).replace("typing.", "") if get_args(kind) else kind.__name__ for kind in kinds)
    default = field.default if isinstance(field.default, bool) else json.dumps(field.default)
    defaults = "" if field.default is None else f", defaults to `{default}`"
    about = textwrap.wrap(field.metadata["help"], _WIDTH, break_on_hyphens=False, break_long_words=False)
    lines = [f"{field.name} (`{' or '.join(texts)}`, *optional*{defaults}):", *(f"    {line}" for line in about)]
    return textwrap.indent("\n".join(lines), "    ")
