# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Options, environment and order of the tests. What they are given is in given.py."""

import os
import shutil
import tempfile


# Before the libraries are imported. Offline turns off TRL's telemetry too.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns once, of whichever test imports it first
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # of this process


def pytest_addoption(parser):
    parser.addoption("--rounding", type=float, default=0.0, help="share by which fp32 results are off: rounding.py")


def pytest_configure(config):
    # The process that hands tests out to others runs none itself, and the libraries take seconds to import
    if not config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("given")


def pytest_xdist_auto_num_workers():
    """One more than there are cores: some tests wait for servers, for locks, or for processes to end."""
    return (os.cpu_count() or 1) + 1


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["TRACKIO_DIR"], ignore_errors=True)


LONG = {"test_vision_study"}  # beside those that start several processes


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that none is left over when the others are done."""
    long = {item.path for item in items if item.get_closest_marker("distributed") or item.path.stem in LONG}
    items.sort(key=lambda item: item.path not in long)
