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
    ["caching", "generating"],
    ["training"],
    ["launch", "recipes", "generated_rows"],
    ["console", "prompts"],
    ["migration"],
    ["trainer"],
    ["argument_checks"],
    ["data_checks"],
    ["counted_tokens", "vision_data"],
    ["checkpoints", "accumulation", "card"],
    ["run_recipe"],
    ["config", "citation"],
    ["objectives"],
    ["rollouts", "meter", "logged_steps"],
    ["teachers", "trackers"],
    ["packing", "padding", "routers", "sharding"],
    ["losses"],
    ["heads"],
    ["own"],
    ["temperature_rules"],
    ["temperature"],
    ["divergences"],
    ["likeliest"],
    ["students"],
    ["data", "models"],
    ["tiny"],
    ["vision"],
    ["vocabularies"],
    ["job", "chat", "fingerprint", "option_checks", "option_groups", "parameters", "row_formats"],
    ["paths"],
    ["files"],
    ["command_line", "help_text", "locks", "processes", "trl_names"],
    ["extensions"],
    ["errors", "names", "compat", "_version"],
]
HEIGHT = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
# The study has floors of its own
STUDY_FLOORS = [
    ["report"],
    ["tune"],
    ["sweep"],
    ["runs"],
    ["one_model"],
    ["comparisons", "derived", "hypotheses"],
    ["declared"],
    ["diversity", "harness", "table"],
    ["prediction", "scores", "statistics"],
    ["diagnostics"],
    ["evaluation"],
    ["bits_per_byte", "metrics", "to_teacher"],
]
STUDY_HEIGHT = {name: -floor for floor, names in enumerate(STUDY_FLOORS) for name in names}
# Whoever makes or shows the built-in models stands at the top; loading them is at the bottom.
PROGRAMS = {"tiny/demo.py", "tiny/jobs.py", "tiny/train.py"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> list[str]:
    """`trl_tempkd/teachers/live.py` -> `["teachers", "live"]`."""
    return list(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, by their name directly below `trl_tempkd`."""
    return {name.split(".")[1] for name in origins_of(path) if name.startswith("trl_tempkd.")}


def origins_of(path: Path) -> set[str]:
    """What a file imports, by its full name. A name in a string counts: `python -m` and `importlib` import it."""
    here = ["trl_tempkd", *module_of(path)]
    found = set(names_in_strings(path))
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
        found |= {*names}
    return found


def names_in_strings(path: Path) -> list[str]:
    """The modules of this package that strings name, those of docstrings aside."""
    tree = tree_of(path)
    with_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, with_docstring)}
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    # Not a text that tells the reader what to import
    found = (
        re.findall(r"(?:^|-m |import )(trl_tempkd(?:\.[a-z_]\w*)+)", text) for text in strings if text not in docs
    )
    return [name for names in found for name in names]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    here = module_of(path)[0]
    if here == "__init__" or path.relative_to(PACKAGE).as_posix() in PROGRAMS:
        return
    for name in imports_of(path) - {here}:
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
    found = {tuple(name.split(".")[2:3]) for name in names_in_strings(path) if name.startswith("trl_tempkd.study.")}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = [
                *package[: len(package) - node.level + 1],
                *((node.module or "").split(".") if node.module else []),
            ]
            names = origin[2:3] or [alias.name for alias in node.names] if origin[1:2] == ["study"] else []
            found |= {(name,) for name in names}
    for (name,) in found - {(here,)}:
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
        assert not {"study", "commands"} & imports_of(path), path


def test_a_name_in_a_string_is_an_import(tmp_path, monkeypatch):
    """As the study once started the commands above it: `python -m trl_tempkd.commands.cell`."""
    monkeypatch.setattr("test_house.PACKAGE", tmp_path)
    path = tmp_path / "study" / "runs.py"
    path.parent.mkdir()
    path.write_text(
        '"""`trl_tempkd.trainer`"""\nstart("trl_tempkd.commands.cell")\nimport_module(f"trl_tempkd.tiny.{x}")'
    )
    assert imports_of(path) == {"commands", "tiny"}


def test_commands_are_thin():
    """Arguments in, one call, words out: what a command does is of the core or the study."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "commands").glob("*.py")}
    assert max(lines.values()) < 150 and sum(lines.values()) < 1200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_short(path):
    limit = 300 if path.name == "trainer.py" else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) < limit


def test_the_trainer_knows_no_kind_of_teacher():
    """A new source is a file of teachers/ and a line in its factory."""
    tree = tree_of(PACKAGE / "trainer.py")
    asked = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 2]
    assert not [call for call in asked if call.startswith("isinstance(") and "teacher" in call.lower()]
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "teachers" in (node.module or "")]
    assert [(node.module, [alias.name for alias in node.names]) for node in froms] == [("teachers", ["make_teacher"])]


def names_in(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] for line in lines}


def test_third_party_imports_are_declared():
    """The core's among the dependencies, the study's in the extra `study` too, and what images need in `vision`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = names_in(project["dependencies"])
    study = core | names_in(project["optional-dependencies"]["study"])
    vision = core | names_in(project["optional-dependencies"]["vision"])
    known_as = {"yaml": "pyyaml", "rouge_score": "rouge-score", "PIL": "pillow"}
    # Trackers are imported where they are in use, and Ray and the harness, which are extras, where they are asked for
    local = {"trl_tempkd", "mlflow", "wandb", "trackio", "ray", "lm_eval"}
    import sys

    for path in FILES:
        in_study = module_of(path)[0] == "study" or path.relative_to(PACKAGE).as_posix() in PROGRAMS
        # What `datasets` reads a CSV file with says best what is wrong with one
        brought = {"pandas"} if path.relative_to(PACKAGE).as_posix() == "data/files.py" else set()
        for node in ast.walk(tree_of(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names} - local - brought - set(sys.stdlib_module_names):
                declared = study if in_study else vision if module_of(path)[0] == "vision" else core
                assert known_as.get(name, name) in declared, (
                    f"{path.name} imports {name}: declare it in pyproject.toml"
                )


# What these libraries document, as modules to import from
PUBLIC = {
    "accelerate": {"accelerate", "accelerate.logging", "accelerate.utils"},
    "datasets": {"datasets", "datasets.utils"},
    "peft": {"peft"},
    "transformers": {"transformers", "transformers.trainer_utils", "transformers.utils"},
    "trl": {"trl"},
}


def private_imports(source: str) -> list[str]:
    """What is imported of these libraries that they don't document."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            pairs = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            pairs = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in pairs:
            public = PUBLIC.get(module.split(".")[0])
            if public is not None and (module not in public or name.startswith("_")):
                found.append(f"{module} {name}".strip())
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_private_names_of_others_are_imported_in_one_file(path):
    if path.name != "compat.py":
        assert private_imports(path.read_text(encoding="utf-8")) == [], "import it in compat.py"


def test_what_counts_as_private():
    assert private_imports("from trl.models.utils import add_hooks") == ["trl.models.utils add_hooks"]
    assert private_imports("def f():\n    from peft import _x, y") == ["peft _x"]
    assert private_imports("import trl.trainer.utils as u, torch._inductor") == ["trl.trainer.utils"]
    assert private_imports("from trl import SFTTrainer\nfrom .compat import add_hooks") == []


def test_the_study_asks_for_its_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    from trl_tempkd.study import PACKAGES

    assert {name.replace("_", "-") for name in PACKAGES} == names_in(project["optional-dependencies"]["study"])


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = names_in([*project["dependencies"], *extras["study"], *extras["test"]]) - {"trl-tempkd"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].replace("-", "_").lower() for line in lines if "==" in line}
    assert {name.replace("-", "_").lower() for name in wanted} <= pinned


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
