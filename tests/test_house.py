# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The house: data flows downward through it once, so a file imports only what stands below it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trl_tempkd"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the roof down. A module may import those of later lines, and its neighbours in its own folder.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["commands"],
    ["study"],
    ["prompts"],
    ["trainer"],
    ["argument_checks"],
    ["data_checks"],
    ["counted_tokens"],
    ["checkpoints", "accumulation"],
    ["config", "citation"],
    ["objectives"],
    ["rollouts", "meter", "logged_steps"],
    ["teachers"],
    ["packing", "padding", "routers"],
    ["losses"],
    ["heads"],
    ["temperature_rules"],
    ["temperature"],
    ["divergences"],
    ["tiny"],
    ["job", "chat", "fingerprint", "option_checks", "row_formats"],
    ["paths"],
    ["files", "compat"],
    ["locks", "processes", "trl_names"],
    ["errors", "names"],
]
HEIGHT = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
# The study has floors of its own
STUDY_FLOORS = [
    ["report"],
    ["tune"],
    ["sweep"],
    ["comparisons", "derived", "hypotheses"],
    ["declared"],
    ["diversity", "table"],
    ["scores", "statistics"],
    ["diagnostics"],
    ["evaluation"],
    ["metrics"],
]
STUDY_HEIGHT = {name: -floor for floor, names in enumerate(STUDY_FLOORS) for name in names}
# Whoever makes or shows the built-in models stands at the top; loading them is at the bottom.
PROGRAMS = {"tiny/demo.py", "tiny/train.py"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> list[str]:
    """`trl_tempkd/teachers/live.py` -> `["teachers", "live"]`."""
    return list(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, by their name directly below `trl_tempkd`."""
    here = ["trl_tempkd", *module_of(path)]
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` and `from .. import x` import modules by their own name
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "trl_tempkd" else [origin]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("trl_tempkd.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    here = module_of(path)[0]
    if here == "__init__" or path.relative_to(PACKAGE).as_posix() in PROGRAMS:
        return
    for name in imports_of(path) - {here, "__version__"}:
        assert name in HEIGHT, f"give {name} a floor in FLOORS"
        assert HEIGHT[name] < HEIGHT[here], f"{here} imports {name}, which stands above it"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "study").rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_imports_of_the_study_point_down(path):
    here = module_of(path)[1]
    if here == "__init__":
        return
    package = ["trl_tempkd", *module_of(path)][:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = [
                *package[: len(package) - node.level + 1],
                *((node.module or "").split(".") if node.module else []),
            ]
            names = origin[2:3] or [alias.name for alias in node.names] if origin[1:2] == ["study"] else []
            for name in {*names} - {here}:
                assert STUDY_HEIGHT[name] < STUDY_HEIGHT[here], f"study/{here} imports {name}, which stands above it"


def test_every_module_has_a_floor():
    top_level = {module_of(path)[0] for path in FILES} - {"__init__"}
    assert top_level <= set(HEIGHT)
    inside = {module_of(path)[1] for path in (PACKAGE / "study").rglob("*.py")} - {"__init__"}
    assert inside == set(STUDY_HEIGHT)


def test_the_core_names_no_module_of_the_study():
    """Who only trains needs nothing of it: neither by an import nor by a name in a string."""
    for path in FILES:
        if module_of(path)[0] in ("study", "commands", "cli", "__main__") or str(path).endswith(tuple(PROGRAMS)):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _is_docstring(node, path):
                assert "trl_tempkd.study" not in node.value and "trl_tempkd.commands" not in node.value, path
        assert "study" not in imports_of(path), path


def _is_docstring(node: ast.Constant, path: Path) -> bool:
    return any(
        ast.get_docstring(each, clean=False) == node.value
        for each in ast.walk(tree_of(path))
        if isinstance(each, ast.Module | ast.ClassDef | ast.FunctionDef)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_short(path):
    limit = 300 if path.name == "trainer.py" else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) < limit


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] for line in project["dependencies"]}
    known_as = {"yaml": "pyyaml", "rouge_score": "rouge-score"}
    # trackers are imported where they are in use, and Ray and Optuna, extras, where they are asked for
    local = {"trl_tempkd", "wandb", "trackio", "ray", "optuna"}
    import sys

    for path in FILES:
        for node in ast.walk(tree_of(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names} - local - set(sys.stdlib_module_names):
                assert known_as.get(name, name) in declared, (
                    f"{path.name} imports {name}: declare it in pyproject.toml"
                )


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].replace("-", "_").lower() for line in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].replace("-", "_").lower() for line in lines if "==" in line}
    assert names <= pinned


def test_import_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, trl_tempkd, trl_tempkd.cli; assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    import trl_tempkd

    assert set(trl_tempkd.__all__) <= set(dir(trl_tempkd))
    for name in trl_tempkd.__all__:
        assert getattr(trl_tempkd, name) is not None
    with pytest.raises(AttributeError, match="nope"):
        _ = trl_tempkd.nope
