# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Help with mistyped names."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def stands_twice(path: str | Path) -> str | None:
    """
    The first key that a YAML file has twice in one place, and where: a reader takes the last one without a word.

    Raises:
        `OSError`: If it can't be read.
        `yaml.YAMLError`: If it is no YAML, or no UTF-8.
    """
    import yaml

    with open(path, "rb") as file:
        waiting = [yaml.compose(file, Loader=yaml.SafeLoader)]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines and key.value != "<<":
                return f"{key.value!r} in line {lines[key.value]} and in line {line}"
            lines |= {key.value: line} if isinstance(key, yaml.ScalarNode) else {}
            waiting.append(value)
    return None
