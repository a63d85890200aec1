# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What tests are given, and what is done around each of them: conftest.py loads it where tests run."""

import gc
import os
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from trl_tempkd.processes import freeze, handlers_kept, uncollected


with uncollected():
    import datasets
    import torch
    from made_models import SENTENCES, build_model, build_tokenizer
    from rounding import Rounding
    from standins import save_pair
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


if TYPE_CHECKING:
    from trl_tempkd import KDConfig, TemperatureKDTrainer


def _new_fingerprint(*_) -> str:
    return uuid.uuid4().hex[:16]


# datasets names what comes of a function after all that this refers to, and finding that out takes longer than the
# function on a few rows. No test looks for what another one has left on the disk.
for module in (datasets.fingerprint, datasets.arrow_dataset):
    module.update_fingerprint = _new_fingerprint


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    share = item.config.getoption("--rounding")
    with Rounding(share) if share else nullcontext(), handlers_kept():  # of signals, which the next test may ask for
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """What is imported is no garbage. Every training collects some, and looks through all that is there each time."""
    with uncollected():
        found = yield
    freeze()
    gc.set_threshold(50_000)  # each training collects anyway
    return found


@pytest.fixture
def float64():
    """
    Models of these fixtures are in float64, and so is what becomes of them: training, what it logs, and evaluation.

    For a claim that two ways lead to the same: there 1e-9 holds on every processor, while in fp32 what rounding makes
    of it depends on the kernels that a processor gets.
    """
    to, as_float, softmax = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax

    def keeping(function):
        """Leaves float64 as it is where models say float32, as in their norms."""

        def kept(tensor, *args, **kwargs):
            if tensor.dtype == torch.float64:
                args = [torch.float64 if arg is torch.float32 else arg for arg in args]
                kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in kwargs.items()}
            return function(tensor, *args, **kwargs)

        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", keeping(to))
        patch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else as_float(t))
        patch.setattr(torch.nn.functional, "softmax", keeping(softmax))
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", autouse=True)
def left_alone():
    """What a file leaves, as what it was the first to import, is no garbage for the next one to look through."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """`make_model(architecture="llama", seed=0, **config)`: a random causal language model."""
    return build_model


@pytest.fixture
def text_dataset() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"text": sentence} for sentence in SENTENCES])


@pytest.fixture
def prompt_dataset() -> datasets.Dataset:
    pairs = [sentence.split(" ", 3) for sentence in SENTENCES]
    return datasets.Dataset.from_list([{"prompt": " ".join(p[:3]), "completion": " " + p[3]} for p in pairs])


@pytest.fixture
def chat_dataset() -> datasets.Dataset:
    turns = zip(SENTENCES, reversed(SENTENCES), strict=True)
    return datasets.Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in turns
        ]
    )


@pytest.fixture
def make_config(tmp_path) -> Callable[..., "KDConfig"]:
    """`make_config(**fields)`: a configuration for two steps on the CPU in float32."""

    from trl_tempkd import KDConfig

    def make(**fields) -> KDConfig:
        return KDConfig(
            **{
                "output_dir": str(tmp_path / "out"),
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "report_to": "none",
                "disable_tqdm": True,
                "save_strategy": "no",
                "logging_steps": 1,
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                **fields,
            }
        )

    return make


@pytest.fixture
def own_forgotten(monkeypatch):
    """What a test registers or imports for `--import` is gone behind it."""
    import sys

    from trl_tempkd import extensions
    from trl_tempkd.divergences import DIVERGENCES
    from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES

    registries = (DIVERGENCES, TEMPERATURE_RULES, ROW_RULES, extensions._registered)
    before, modules = [{**registry} for registry in registries], {**sys.modules}
    monkeypatch.setattr(extensions, "_loaded", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(extensions.IMPORTS, raising=False)
    yield
    os.environ.pop(extensions.IMPORTS, None)
    for registry, names in zip(registries, before, strict=True):
        registry.clear()
        registry.update(names)
    for name in {"mine", "beside", "my_divergence"} - {*modules}:
        sys.modules.pop(name, None)


@pytest.fixture
def make_trainer(make_model, make_config, tokenizer, prompt_dataset) -> Callable[..., "TemperatureKDTrainer"]:
    """`make_trainer(student, teacher, **fields)`: models or architectures, then arguments and fields of the config."""
    from trl_tempkd import TemperatureKDTrainer

    def make(
        student: str | PreTrainedModel = "llama",
        teacher: str | PreTrainedModel = "llama",
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        kwargs: dict | None = None,
        **fields,
    ) -> TemperatureKDTrainer:
        return TemperatureKDTrainer(
            model=make_model(student) if isinstance(student, str) else student,
            teacher_model=make_model(teacher, seed=1) if isinstance(teacher, str) else teacher,
            args=make_config(**fields),
            train_dataset=prompt_dataset if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            **(kwargs or {}),
        )

    return make


@pytest.fixture
def pair(tmp_path, make_model, tokenizer):
    """`pair(architecture)`: folders of a student and a teacher."""
    return lambda architecture="llama": save_pair(tmp_path / architecture, make_model, tokenizer, architecture)


@pytest.fixture
def make(pair, make_config, prompt_dataset):
    """`make(architecture, train_dataset, eval_dataset, **fields)`: a trainer of models from folders."""

    from trl_tempkd import TemperatureKDTrainer

    def make(architecture="llama", train_dataset=None, eval_dataset=None, processing_class=None, **fields):
        student, teacher = pair(architecture)
        fields = {"teacher_model_name_or_path": teacher, "max_steps": 4, "per_device_train_batch_size": 2, **fields}
        if torch.get_default_dtype() == torch.float64:
            fields = {"model_init_kwargs": {"dtype": torch.float64}, **fields}
        train_dataset = prompt_dataset if train_dataset is None else train_dataset
        return TemperatureKDTrainer(
            student,
            args=make_config(**fields),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
        )

    return make


@pytest.fixture
def make_pair(tmp_path, make_model, make_config):
    """`make_pair(student, teacher, dataset, **fields)`: a trainer of two tokenizers, made here by default."""
    from vocabulary_pairs import TEXT, byte_level, metaspace, save_pair_of_two

    from trl_tempkd import TemperatureKDTrainer

    def make(student=None, teacher=None, dataset=TEXT, eval_dataset=None, padding=3, formatting_func=None, **fields):
        student, teacher = student or byte_level(), teacher or metaspace(seed=1)
        folders = save_pair_of_two(tmp_path / "pair", make_model, student, teacher, padding)
        fields = {
            "teacher_model_name_or_path": folders[1],
            "vocabulary_alignment": "bytes",
            "max_length": 128,
            "per_device_train_batch_size": 2,
            **fields,
        }
        if torch.get_default_dtype() == torch.float64:
            fields["model_init_kwargs"] = {"dtype": torch.float64}
        return TemperatureKDTrainer(
            folders[0],
            args=make_config(**fields),
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            formatting_func=formatting_func,
        )

    return make
