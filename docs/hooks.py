# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What the site's pages need beyond Markdown: the README as the first page, the public names of the package as a page,
and links that leave this folder.
"""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File


ROOT = Path(__file__).parent.parent
API = "api.md"
# What the page says of the public names that are no functions or classes
TABLES = {
    "DIVERGENCES": "[Divergences](divergences.md#divergences) by name, as functions of rows of log-probabilities",
    "OBJECTIVES": "[Objectives](divergences.md#objectives) that need more than two distributions, by name, as classes",
    "TEMPERATURE_RULES": "[Rules](divergences.md#temperature-rules) that give each token a temperature, by name",
}
SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Raises|Example|Examples):$", re.MULTILINE)
ENTRY = re.compile(r"^([\w, *]+) \((.+)\):(.*)$")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Make the first page of the README, whose links are seen from above this folder."""
    text = re.sub(r"(\[|\]\()docs/", r"\1", (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=f"---\nhide: [navigation]\n---\n\n{text}"))
    if API in str(config.nav):
        files.append(File.generated(config, API, content=api_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a link to a file outside of this folder into its name: it is no page of the site."""
    docs, of_readme = ROOT / "docs", page.file.src_uri == "index.md"
    beside = (docs / page.file.src_uri).parent

    def plain(match: re.Match) -> str:
        text, target = match[1], match[2]
        inside = (beside / target).resolve()
        if inside.is_relative_to(docs) and (inside.exists() or not of_readme):
            return match[0]  # MkDocs looks whether it is there
        found = (ROOT / target).resolve() if of_readme else inside
        if not found.exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which isn't there.")
        name = found.relative_to(ROOT).as_posix()
        return f"`{name}`" if text.strip("`") == name else text

    return LINK.sub(plain, markdown)


def api_page() -> str:
    """A page of the public names, from their signatures and docstrings as they are once they are imported."""
    import trl_tempkd

    parts = ["# Python", "Everything that `from trl_tempkd import ...` gives, from its docstrings."]
    names = trl_tempkd.__all__
    classes = [name for name in names if inspect.isclass(getattr(trl_tempkd, name))]
    functions = [name for name in names if name not in (*classes, *TABLES)]
    for name in (*classes, *functions):
        found = getattr(trl_tempkd, name)
        parts += [f"## `{name}`", _signature(name, found), _described(found, names)]
        for method, function in _methods(found).items():
            parts += [f"### `{name}.{method}`", _signature(method, function), _described(function, names)]
    for name, text in TABLES.items():
        parts += [f"## `{name}`", f"{text}: {', '.join(f'`{key}`' for key in getattr(trl_tempkd, name))}."]
    return "\n\n".join(parts) + "\n"


def _methods(found: Any) -> dict[str, Any]:
    """Those of a class that this package says something of."""
    bases = [cls for cls in getattr(found, "__mro__", ()) if cls.__module__.startswith("trl_tempkd")]
    own = [vars(cls) for cls in bases if not cls.__name__.endswith(("Options", "OptionGroup"))]
    documented = {name: of for part in own for name, of in part.items() if inspect.isfunction(of) and of.__doc__}
    return {name: of for name, of in documented.items() if not name.startswith("_")}


def _signature(name: str, found: Any) -> str:
    """How it is called, without the types, which stand with the parameters. Of very many parameters there are none."""
    signature = inspect.signature(found)
    parameters = [of.replace(annotation=of.empty) for of in signature.parameters.values() if of.name != "self"]
    line = f"{name}{signature.replace(parameters=parameters, return_annotation=signature.empty)}"
    if len(parameters) > 30 or {"args", "kwargs"} >= {of.name for of in parameters}:
        line = f"{name}(output_dir, **options)"
    if len(line) > 100:
        texts = [str(of) for of in parameters]
        alone = [i for i, of in enumerate(parameters) if of.kind is of.KEYWORD_ONLY]
        if alone and parameters[alone[0] - 1].kind is not inspect.Parameter.VAR_POSITIONAL:
            texts.insert(alone[0], "*")
        line = "\n".join([f"{name}(", *(f"    {text}," for text in texts), ")"])
    return f"```python\n{line}\n```"


def _described(found: Any, names: list[str]) -> str:
    """A docstring of Hugging Face's style as Markdown: its sections as lists, and its references as links or names."""

    def reference(match: re.Match) -> str:
        name = match[1].rpartition(".")[2]
        return f"[`{name}`](#{name.lower()})" if name in names else f"`{name}`"

    start, *sections = SECTION.split(inspect.getdoc(found) or "")
    parts = [start.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        body = textwrap.dedent(body.strip("\n"))
        parts.append(f"**{'Parameters' if title == 'Args' else title}**")
        parts.append(body if title.startswith("Example") else _listed(body))
    # What stands in a block of code is no reference
    pieces = re.split(r"(```.*?```)", "\n\n".join(filter(None, parts)), flags=re.DOTALL)
    return "".join(p if p.startswith("```") else re.sub(r"\[`~?([\w.]+)`\](?!\()", reference, p) for p in pieces)


def _listed(body: str) -> str:
    """The entries of a section as a list; a heading of TRL's style (`> Parameters that ...`) as a line of its own."""
    lines: list[str] = []
    for line in body.splitlines():
        if line.startswith("> "):
            lines += ["", f"*{line[2:]}*", ""]
        elif (entry := ENTRY.match(line)) is not None:
            lines.append(f"- **{entry[1]}** ({entry[2]}):{entry[3]}")
        elif (entry := re.match(r"^(\w+):(.*)$", line)) is not None:
            lines.append(f"- **{entry[1]}**:{entry[2]}")
        elif line and not line.startswith(" ") and re.match(r"[`\[].*:", line):
            lines.append(f"- {line}")
        else:
            lines.append(f"  {line.strip()}" if line.strip() else "")
    return "\n".join(lines)
