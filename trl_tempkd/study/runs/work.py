# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""One cell, in the process that it is started in: `python -m trl_tempkd.study.runs.work NAME/cell.json`."""

import json
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...extensions import load_extensions
from ...files import Unwritable, write_atomically
from ...locks import locked
from ...processes import end_with_input
from .cell import Cell, delete_weights, error_file, finished


# Exit status of a cell's process; busy: another process runs it; unwritable: the disk takes no more
DONE, FAILED, UNWRITABLE, BUSY = 0, 1, 74, 75


def claim(folder: Path) -> AbstractContextManager[bool]:
    """Context that says whether the cell of this folder is ours. The lock goes with the process, however it ends."""
    return locked(folder / "lock", wait=False)


def run(file: Path) -> int:
    """
    Run the cell of a file `RESULTS_DIR/NAME/cell.json`, unless it is finished or another process runs it.

    Returns:
        `int`: Exit status: `DONE`, `FAILED`, `BUSY`, or `UNWRITABLE` where the disk takes no more, which is no result.
    """
    folder, results = file.parent, file.parent.parent
    with claim(folder) as free:
        if not free:
            return BUSY
        cell = Cell(**json.loads(file.read_text(encoding="utf-8")))
        try:
            load_extensions()
            if finished(results, cell) is None:
                error_file(results, cell.name).unlink(missing_ok=True)
                found = measure(cell, folder)
                write_atomically(results / f"{cell.name}.json", json.dumps(found, indent=1))
        except Unwritable as error:
            traceback.print_exc()
            delete_weights(folder)  # it starts anew, and the disk is full
            print(f"\n{error}", flush=True)
            return UNWRITABLE
        except (Exception, SystemExit):
            traceback.print_exc()
            delete_weights(folder)
            return _failed(error_file(results, cell.name))
    return DONE


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train and score a cell: what its file holds."""
    if cell.trial:
        from . import trial

        return trial.measure(cell, folder)
    from . import measure

    return measure.measure(cell, folder)


def _failed(error: Path) -> int:
    text = traceback.format_exc()
    try:
        write_atomically(error, text)
    except Unwritable as full:
        print(f"\n{full}", flush=True)
        return UNWRITABLE
    return FAILED


if __name__ == "__main__":
    end_with_input()
    raise SystemExit(run(Path(sys.argv[1])))
