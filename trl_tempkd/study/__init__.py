# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The study: what looks at students. Nothing of the core imports it."""

import importlib.util

from ..errors import UsageImportError


PACKAGES = ("matplotlib", "optuna", "pandas", "rouge_score", "scipy")  # of the extra `study`


def check_installed(what: str) -> None:
    """Stop where a package of the extra is missing, before anything is loaded."""
    missing = [name.replace("_", "-") for name in PACKAGES if not _is_installed(name)]
    if missing:
        raise UsageImportError(
            f'{what} needs {", ".join(missing)}: pip install ".[study]" where you installed trl_tempkd from'
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
