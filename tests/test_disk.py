# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A disk that takes no more: one line that names the place, nothing that was there lost, nothing left of the try."""

import errno
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from made_models import SENTENCES
from safetensors.torch import save_file
from standins import save_pair

from trl_tempkd import cli, data
from trl_tempkd.commands import distill
from trl_tempkd.files import Unwritable, whole_file, write_atomically, written
from trl_tempkd.job import prepared
from trl_tempkd.study.runs import pool, processes
from trl_tempkd.study.tune.recipe import read_tuning
from trl_tempkd.study.tune.results import state_of
from trl_tempkd.study.tune.store import Store
from trl_tempkd.tiny import load_tiny_dataset


resource = pytest.importorskip("resource")
FULL = Path("/dev/full")  # a device that is


@contextmanager
def file_size(limit: int):
    """No file gets larger: what a full disk does, without a disk, and to root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_stream(name):
    schema = pa.schema([("a", pa.float64())])
    with pa.ipc.new_stream(name, schema) as stream:
        stream.write(pa.record_batch([pa.array(np.random.rand(10**5))], schema=schema))


def write_text(name):
    with open(name, "w") as file:
        file.write("x" * 10**6)


TENSOR = {"a": torch.ones(10**5)}
WRITERS = {
    "safetensors": lambda name: save_file(TENSOR, name),
    "torch": lambda name: torch.save(TENSOR, name),
    "torch-old": lambda name: torch.save(TENSOR, name, _use_new_zipfile_serialization=False),
    "parquet": lambda name: pd.DataFrame({"a": np.random.rand(10**5)}).to_parquet(name),
    "arrow": write_stream,
    "text": write_text,
    "png": lambda name: matplotlib.image.imsave(name, np.random.rand(300, 300), format="png"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file(kind, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(Unwritable) as e, file_size(2**16), whole_file(path) as name:
        WRITERS[kind](name)
    assert str(e.value) == f"cannot write {path}: {os.strerror(errno.EFBIG)}"
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with whole_file(path) as name:
        WRITERS[kind](name)
    assert path.stat().st_size > 2**16
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_other_errors_stay(tmp_path):
    for error in (RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "no such file"), KeyError("x")):
        with pytest.raises(type(error)), written(tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="a bug"), whole_file(tmp_path / "file") as name:
        Path(name).touch()
        raise RuntimeError("a bug")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not FULL.exists(), reason="there is no such device")
def test_no_space_left_on_device(tmp_path):
    said = "cannot write results: No space left on device"
    with pytest.raises(Unwritable, match=said), written("results"), FULL.open("w") as file:
        file.write("x")


def test_a_pipe_and_a_link_stay(tmp_path):
    """`--output /dev/stdout` mustn't put a file in its place."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        write_atomically(tmp_path / "pipe", "{}")
        assert read.result(20) == "{}"
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", "{}")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "{}"
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unwritable, match=r"cannot write .*folder: Is a directory"):
        write_atomically(tmp_path / "folder", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "file", "folder"}


@pytest.mark.parametrize("limit", [30_000, 150_000], ids=["model", "optimizer"])
def test_a_checkpoint_that_does_not_fit(limit, tmp_path, make_model, tokenizer, prompt_dataset, capsys):
    """The model is 92 kB, and its optimizer twice that. An earlier checkpoint stays as it is."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=Dataset.from_list(prompt_dataset.to_list())).save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "output",
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "report_to": "none",
    }
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    flags += ["--use_cpu", "--bf16", "false", "--disable_tqdm", "true"]

    def train(steps: int) -> None:
        more = ["--max_steps", str(steps), "--resume_from_checkpoint", "auto"]
        distill.main(*distill.make_parser().parse([*flags, *more], launched=True)[0])

    train(1)
    earlier = tmp_path / "output" / "checkpoint-1"
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    model = (tmp_path / "output" / "model.safetensors").read_bytes()
    assert len(model) < 150_000 < (earlier / "optimizer.pt").stat().st_size
    said = rf"cannot write {tmp_path / 'output'}.*: (File too large|not all of it)"
    with pytest.raises(Unwritable, match=said), file_size(limit):
        train(3)
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert (tmp_path / "output" / "model.safetensors").read_bytes() == model
    assert not (tmp_path / "output" / "_in_use.json").exists()


@pytest.mark.parametrize("variable", ["HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_cache_that_cannot_be_written_is_named(variable, tmp_path, monkeypatch):
    for other in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "caches" / "here"))
    for place in ("caches", "caches/here", "caches/here/json/tmp123"):
        error = OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / place))
        said = rf"{place}: Read-only file system; set {variable} to another folder"
        with pytest.raises(Unwritable, match=said), written(tmp_path / "output"):
            raise error
    with pytest.raises(Unwritable) as e, written(tmp_path / "output"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(e.value) == f"cannot write {tmp_path / 'output'}: No space left on device"


def test_no_room_for_the_built_in_data(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Unwritable, match="Not a directory; set XDG_CACHE_HOME to another folder"):
        load_tiny_dataset()


def test_no_room_for_the_cache_of_a_data_set(tmp_path, monkeypatch):
    """`datasets` wraps what has happened in an error of its own that doesn't say it."""
    from trl import DatasetMixtureConfig, ScriptArguments

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Dataset.from_list([{"text": f"{i} " * 1000} for i in range(200)]).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(Unwritable, match=f"cannot write {tmp_path / 'cache'}: File too large"), file_size(2**16):
        data.load_data(ScriptArguments(dataset_name=str(tmp_path / "rows.jsonl")), DatasetMixtureConfig())
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that `datasets` leaves open
def test_prepared_rows_that_do_not_fit_are_no_stray_file(tmp_path):
    Dataset.from_list([{"text": sentence * 1000} for sentence in SENTENCES]).save_to_disk(tmp_path / "rows")
    rows = load_from_disk(tmp_path / "rows")
    before = {path.name for path in (tmp_path / "rows").iterdir()}
    (tmp_path / "rows" / "tmp_of_another").touch()
    with pytest.raises(Unwritable, match="File too large"), file_size(2**16), prepared(rows):
        rows.map(lambda row: {"again": row["text"]})
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {*before, "tmp_of_another"}
    gc.collect()


class Ended(processes.OwnProcess):
    def run(self, folder):
        (folder / "output.log").write_text("its last words")
        return 1


def test_a_sweep_that_cannot_note_a_failure(tmp_path):
    assert pool.run_cell(str(tmp_path), "a", Ended(".")) == pool.FAILED
    assert "its last words" in (tmp_path / "a.error.txt").read_text()
    with pytest.raises(Unwritable, match=r"cannot write .*a\.error\.txt: File too large"), file_size(20):
        pool.run_cell(str(tmp_path), "a", Ended("."))
    assert not list(tmp_path.glob(".*"))


def test_a_store_that_does_not_fit(tmp_path):
    """What SQLite says comes from Optuna in two wrappings. What was in it before stays."""
    recipe = tmp_path / "tune.yaml"
    recipe.write_text("{base: {model_name_or_path: s}, space: {tau: {low: 1.0, high: 8.0}}}")
    store = Store(tmp_path / "results", read_tuning(recipe))
    trial, _, held = store.ask()
    with (
        pytest.raises(Unwritable, match=f"cannot write {tmp_path / 'results'}: (File too large|disk I/O error)"),
        file_size(store.database.stat().st_size),
        written(tmp_path / "results"),
    ):
        trial.set_user_attr("reason", "x" * 10**6)
    held.close()
    store.recover()
    assert state_of(Store(tmp_path / "results", read_tuning(recipe)).trials[0]) == "interrupted"


def test_every_command_says_it_on_one_line(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trl_tempkd.commands.divergences.main", full)
    with pytest.raises(SystemExit) as stop:
        cli.main(["divergences"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "trl-tempkd divergences: error: cannot write: No space left on device\n"
