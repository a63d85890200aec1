# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tiny random models, a tokenizer and data sets, all made here: the tests need no network and no download."""

import gc
import os
import shutil
import tempfile
import uuid


# Before the libraries are imported. Offline turns off TRL's telemetry too.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns once, of whichever test imports it first
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # of this process

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING

import pytest

from trl_tempkd.processes import freeze, handlers_kept, uncollected


with uncollected():
    import datasets
    import torch
    from rounding import Rounding
    from standins import save_pair
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


if TYPE_CHECKING:
    from trl_tempkd import KDConfig, TemperatureKDTrainer


def pytest_addoption(parser):
    parser.addoption("--rounding", type=float, default=0.0, help="share by which fp32 results are off: rounding.py")


def _new_fingerprint(*_) -> str:
    return uuid.uuid4().hex[:16]


# datasets names what comes of a function after all that this refers to, and finding that out takes longer than the
# function on a few rows. No test looks for what another one has left on the disk.
for module in (datasets.fingerprint, datasets.arrow_dataset):
    module.update_fingerprint = _new_fingerprint


def pytest_xdist_auto_num_workers():
    """One more than there are cores: some tests wait for servers, for locks, or for processes to end."""
    return (os.cpu_count() or 1) + 1


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["TRACKIO_DIR"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    share = item.config.getoption("--rounding")
    with Rounding(share) if share else nullcontext(), handlers_kept():  # of signals, which the next test may ask for
        return (yield)


LONG = {"test_vision_study"}  # beside those that start several processes


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that none is left over when the others are done."""
    long = {item.path for item in items if item.get_closest_marker("distributed") or item.path.stem in LONG}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """What is imported is no garbage. Every training collects some, and looks through all that is there each time."""
    with uncollected():
        found = yield
    freeze()
    return found


SENTENCES = [
    "the cat sat on the mat and looked at the moon",
    "a teacher gives soft targets to a student",
    "warm logits carry more than the top choice",
    "what is the capital of the moon",
    "there is none but the cat said cheese",
    "temperature divides the logits before the softmax",
    "a dog ran after the cat",
    "the student learns what the teacher knows",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %} {{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %} {{ message['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # wide enough for distributions that are far from uniform
    "head_dim": 8,
}
_MOE = {**_SMALL, "num_experts_per_tok": 2}

# One of each way of turning the last hidden state into logits
ARCHITECTURES = {
    "llama": _SMALL,
    "qwen3": {**_SMALL, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    # project_in and project_out: the head is narrower than the layers
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "init_std": 0.3,
        "dropout": 0.0,
    },
    "phi": {k: v for k, v in _SMALL.items() if k != "head_dim"},  # a bias in the head
    "gemma3_text": {**_SMALL, "final_logit_softcapping": 2.0, "sliding_window": 16},
    "granite": {**_SMALL, "logits_scaling": 4.0},
    "cohere": {**_SMALL, "logit_scale": 0.5},
    "falcon_h1": {
        **_SMALL,
        "lm_head_multiplier": 0.25,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "mixtral": {**_MOE, "num_local_experts": 4},
    "qwen3_moe": {**_MOE, "num_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
}


@cache
def _tokenizer_state() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<pad>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(vocab_size=192, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE tokenizer with a chat template that marks the assistant's turns."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_state()),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(architecture: str = "llama", seed: int = 0, **overrides) -> PreTrainedModel:
    """A random causal language model for that tokenizer."""
    tokenizer = build_tokenizer()
    kwargs = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        **ARCHITECTURES[architecture],
        **overrides,
    }
    torch.default_generator.manual_seed(seed)  # of the CPU alone: for other devices torch would keep the stack
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**kwargs), dtype=torch.float32)
    # Biases start at zero, where dropping them would show nowhere
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    if torch.get_default_dtype() == torch.float64:  # by the fixture of this name
        model.double()
        if "num_experts_per_tok" in kwargs:
            model.set_experts_implementation("eager")  # the grouped matmuls aren't there in float64
    return model


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
