# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The documents build into a site, and links that lead nowhere are errors."""

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("mkdocs")
pytest.importorskip("material")
ROOT = Path(__file__).parent.parent


def build(root: Path, output: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(output)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("site")
    done = build(ROOT, output)
    assert done.returncode == 0, done.stderr
    return output


def test_every_page_is_there(site):
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    for page in pages:
        place = page.parent if page.name == "index" else page
        assert (site / place / "index.html").is_file(), page
    assert "trl-tempkd" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "guide/first_hour.ipynb").is_file()


def test_no_link_leaves_the_folder_of_documents(site):
    """Files of the repository are named; what the browser fetches is in the site."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"#?]+)', text):
            if not re.match(r"[a-z]+:", target):
                start = site if target.startswith("/") else path.parent
                assert (start / target.lstrip("/")).exists(), (path, target)
        fetched = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]* (?:href|src)="(https?:[^"]+)', text)
        assert fetched == [], path


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](../recipes/nowhere.yaml)", "nowhere.yaml, which isn't there"),
        ("[x](index.md#nowhere)", "#nowhere"),
    ],
)
def test_a_broken_link_is_an_error(tmp_path, link, says):
    (tmp_path / "docs/guide").mkdir(parents=True)
    for name in ("hooks.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    (tmp_path / "README.md").write_text("# Start\n", encoding="utf-8")
    (tmp_path / "docs/page.md").write_text(f"# Page\n\n{link}\n", encoding="utf-8")
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(configuration + "\nnav: [index.md, page.md]\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert says in done.stdout + done.stderr
    (tmp_path / "docs/page.md").write_text("# Page\n\n[x](index.md) [R](../README.md)\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "site").returncode == 0


def test_the_public_names(site):
    """Each has its place, with its docstring read: no section, list or reference of its style is left as it was."""
    import trl_tempkd

    text = (site / "api/index.html").read_text(encoding="utf-8")
    page = html.unescape(text.split("<article")[1].split("</article>")[0])
    for name in trl_tempkd.__all__:
        assert f'<h2 id="{name.lower()}"><code>{name}</code>' in page, name
    assert 'id="kdconfigto_dict"' in page and 'id="temperaturekdtrainertrain"' in page
    shown = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert not re.search(r"\[(<code>|`)~?[\w.]+|^\s*(Args|Returns|Raises):\s*$", shown, re.MULTILINE)
    assert '<a href="#kdconfig"><code>KDConfig</code></a>' in page
    for entry in ("student_hidden, teacher_hidden", "kd_temperature_rescale", "teacher_model", "layers"):
        assert f"<li><strong>{entry}</strong> (" in re.sub(r"<p>(?=<strong>)", "", shown), entry
    assert "adaptive_kl" in shown and "token_adaptive" in shown and "minillm" in shown
