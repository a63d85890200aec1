# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Students that are cut from a teacher."""

import pytest
import torch
from architectures import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_tempkd import cli, student_from_layers
from trl_tempkd.errors import UsageError
from trl_tempkd.students import check_layers


# Of each way in which the kind of a layer depends on its place: windows, rotation, experts, states or attention
FOUR = {
    "llama": {},
    "gpt2": {"n_layer": 4, "num_hidden_layers": None},
    "opt": {},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 3},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "qwen2_moe": {"mlp_only_layers": [0, 3]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "mamba": {},
}


def four(architecture: str):
    options = {"num_hidden_layers": 4, **FOUR[architecture]}
    return tiny_model(architecture, **{name: value for name, value in options.items() if value is not None})


def without(model, left_out):
    """The logits of a model whose layers of these numbers are passed over: the plain way to leave them out."""
    (stack,) = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 4)

    def passed(module, args, kwargs, output):
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    for at in left_out:
        stack[at].register_forward_hook(passed, with_kwargs=True)
    return model(input_ids=torch.arange(3, 12)[None], use_cache=False).logits


@pytest.mark.parametrize("kept", [[0, 2], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("architecture", FOUR)
def test_it_computes_what_the_teacher_does_without_the_others(architecture, kept, tmp_path):
    student = student_from_layers(four(architecture), kept)
    wanted = without(four(architecture), {0, 1, 2, 3} - {*kept})
    student.save_pretrained(tmp_path)
    for model in (student, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)):
        model.set_experts_implementation("eager")
        found = model(input_ids=torch.arange(3, 12)[None], use_cache=False).logits
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_teacher_is_left_as_it_is():
    teacher = four("llama").train()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = student_from_layers(teacher, 2)
    assert (student.config.num_hidden_layers, teacher.config.num_hidden_layers) == (2, 4)
    assert student.training and teacher.training
    student.model.embed_tokens.weight.data.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.mark.parametrize(("keep", "found"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))])
def test_layers_that_are_spread_evenly(keep, found):
    assert check_layers(keep, 10) == found


@pytest.mark.parametrize("layers", [0, 5, [], [0, 4], [-1, 0], [1, 0], [1, 1], [0.0, 1.0]], ids=str)
def test_layers_that_there_are_not(layers):
    with pytest.raises(UsageError, match="`layers` must be"):
        check_layers(layers, 4)


@pytest.mark.parametrize("architecture", ["llama4_text", "bart"])
def test_what_can_not_be_cut_is_refused(architecture):
    """Where the layers' kinds are nowhere listed, or there are two stacks: not a student that computes nonsense."""
    overrides = {"num_hidden_layers": 4} if architecture == "llama4_text" else {}
    with pytest.raises(UsageError, match="can't be cut"):
        student_from_layers(tiny_model(architecture, **overrides), [1, 3])


def test_the_command(tmp_path, capsys):
    output = tmp_path / "student"
    line = ["student", "--from", "tiny:teacher", "--layers", "0", "2", "--output", str(output)]
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert "layers 0, 2 of 6" in said and f"trl-tempkd distill --model_name_or_path {output}" in said
    student = AutoModelForCausalLM.from_pretrained(output)
    assert student.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(output)) == student.config.vocab_size
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(line)
    assert "is there already, and isn't empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from", "tiny:teacher", "--layers", "0", "6"], "`layers` must be numbers from 0 to 5"),
        (["--from", "tiny:teacher", "--num_layers", "7"], "at most 6"),
        (["--from", "tiny:teachr", "--num_layers", "2"], "tiny:teachr"),
        (["--from", "absent/model/of/mine", "--num_layers", "2"], "absent/model/of/mine"),
        (
            ["--from", "tiny:teacher", "--num_layers", "2", "--output_dir", "/proc/x"],
            "to /proc/x (--output_dir): /proc",
        ),
        (
            ["--from", "tiny:teacher", "--num_layers", "2", "--dtype", "fp16"],
            "--dtype: invalid choice: 'fp16' (choose from",
        ),
        (["--from", "tiny:teacher"], "one of the arguments --layers --num_layers is required"),
    ],
)
def test_what_is_wrong_is_said_on_a_line(options, said, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["student", "--output", str(tmp_path / "student"), *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
