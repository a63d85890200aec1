# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What the site's pages need beyond Markdown: the README as the first page, and links that leave this folder."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File


ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Make the first page of the README, whose links are seen from above this folder."""
    text = re.sub(r"(\[|\]\()docs/", r"\1", (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=f"---\nhide: [navigation]\n---\n\n{text}"))
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
