# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The head read from a checkpoint is that of the loaded model, in every form of checkpoint; nothing else is read."""

import json

import pytest
import safetensors
import torch
from accelerate import PartialState
from architectures import tiny_model
from made_models import ARCHITECTURES
from safetensors.torch import load_file, save_file

from trl_tempkd.heads import logit_scale, read_head
from trl_tempkd.teachers import head_file
from trl_tempkd.teachers.head_file import HeadFile


# Beside one of each way to the logits: other names in the checkpoint, and layers that can't be run without weights
OTHERS = ["gpt_neox", "bloom", "gptj", "mamba2", "falcon", "deepseek_v3", "recurrent_gemma"]


@pytest.fixture(autouse=True)
def state():
    PartialState()


def check_same(found, model):
    expected = read_head(model)
    for name in ("weight", "bias"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs)), name
    assert (found.logit_scale, found.final_logit_softcapping) == (
        expected.logit_scale,
        expected.final_logit_softcapping,
    )


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
def test_is_that_of_the_model(tmp_path, make_model, architecture, sharded):
    model = (
        make_model(architecture) if architecture in ARCHITECTURES else tiny_model(architecture, dtype=torch.float32)
    )
    model.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    file = HeadFile(str(tmp_path))
    check_same(file.read(), model)
    assert all(parameter.is_meta for parameter in file.model.parameters())


def test_reads_one_tensor_of_one_shard(tmp_path, make_model, monkeypatch):
    make_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    weights = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in {*weights.values()} - {weights["lm_head.weight"]}:
        (tmp_path / shard).unlink()  # as if it had never been downloaded
    read = []

    def opened(path, framework):
        file = safetensors.safe_open(path, framework)
        read.append(path)
        return file

    monkeypatch.setattr(head_file, "safe_open", opened)
    HeadFile(str(tmp_path)).read()
    assert len(read) == 1 and read[0].endswith(weights["lm_head.weight"])


def test_the_dtype_is_the_checkpoints(tmp_path, make_model):
    make_model("llama").bfloat16().save_pretrained(tmp_path)
    assert HeadFile(str(tmp_path)).read().weight.dtype == torch.bfloat16
    assert HeadFile(str(tmp_path)).read(torch.float32).weight.dtype == torch.float32


def rewritten(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: part.contiguous() for name, part in change(tensors).items()}, folder / "model.safetensors")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_other_prefixes_and_pickles(tmp_path, make_model, architecture):
    """Of a larger model, of a backbone without a prefix, and in PyTorch's own format."""
    model = make_model(architecture)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda tensors: {f"language_model.{name}": part for name, part in tensors.items()})
    check_same(HeadFile(str(tmp_path)).read(), model)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("language_model.").split(".", 1)[-1]: part for name, part in tensors.items()}
    if architecture != "llama":  # whose head has no prefix to lose
        rewritten(tmp_path, lambda tensors: bare)
        check_same(HeadFile(str(tmp_path)).read(), model)
    (tmp_path / "model.safetensors").unlink()
    torch.save(
        {name.removeprefix("language_model."): part for name, part in tensors.items()}, tmp_path / "pytorch_model.bin"
    )
    check_same(HeadFile(str(tmp_path)).read(), model)


def without_head(tensors):
    return {name: part for name, part in tensors.items() if name != "lm_head.weight"}


def smaller(tensors):
    return {**tensors, "lm_head.weight": tensors["lm_head.weight"][:-1]}


def quantized(tensors):
    return {**tensors, "lm_head.weight": tensors["lm_head.weight"].to(torch.int8)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without_head, r"has no weight of the head of .*, which the model calls lm_head.weight. Let `teacher_model"),
        (smaller, r"\(lm_head.weight in .*\) has shape \(\d+, 32\), and its config says \(\d+, 32\)"),
        (quantized, r"is torch.int8: a quantized head can't be read"),
    ],
)
def test_refuses(tmp_path, make_model, change, match):
    make_model("llama").save_pretrained(tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=match):
        HeadFile(str(tmp_path)).read()


def test_refuses_what_is_no_checkpoint(tmp_path, make_model):
    with pytest.raises(ValueError, match="`teacher_model_name_or_path`"):
        HeadFile(str(tmp_path / "nothing"))
    make_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match=r"model.safetensors can't be read"):
        HeadFile(str(tmp_path)).read()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights to read the head from"):
        HeadFile(str(tmp_path)).read()


def test_refuses_logits_of_another_kind(tmp_path, make_model, monkeypatch):
    """The model's own code says what it does to its logits, without its layers."""
    make_model("granite").save_pretrained(tmp_path)
    file = HeadFile(str(tmp_path))
    assert logit_scale(file.model.config) != 1
    file._empty = type(file._empty)(file._empty.weight)  # as if the scale weren't known
    with pytest.raises(ValueError, match="computes its logits in a way that isn't known here"):
        file.read()
