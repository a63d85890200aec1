# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""PEFT students: what is trained and saved, the base as teacher, kinds of adapters, quantized bases, refusals."""

import copy
import functools
import importlib.util

import pytest
import torch
from datasets import DatasetDict
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from standins import save_pair
from test_trainer import dense_loss, first_batch, logged, parameters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitsAndBytesConfig

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.commands import distill
from trl_tempkd.errors import UsageError
from trl_tempkd.teachers import STUDENT_BASE


# PEFT says of some of these adapters that they are unusual; they are here because they are
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]

ATTENTION = ["q_proj", "v_proj"]


# The student's base, by the name in the configuration: as an argument of `make_trainer` a string is an architecture
BASE = {"teacher": None, "teacher_model_name_or_path": STUDENT_BASE}


def lora(**fields) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ATTENTION, **fields})


def perturb_adapter(model: PeftModel) -> PeftModel:
    """As if it had been trained: adapters start as the identity, where many a mistake shows nowhere."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


# What is trained and saved


@pytest.mark.usefixtures("float64")
def test_lora(make_trainer):
    trainer = make_trainer(gradient_checkpointing=True, kwargs={"peft_config": lora()}, max_steps=3)
    before = parameters(trainer.model)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if (p != before[name]).any()}
    assert changed and all("lora" in name for name in changed)
    # The first loss is the full model's: LoRA starts as the identity
    full = make_trainer()
    full.train()
    assert logged(trainer, "loss")[0] == pytest.approx(logged(full, "loss")[0], rel=1e-9)


def test_lora_with_trained_head(make_trainer):
    trainer = make_trainer(kwargs={"peft_config": lora(modules_to_save=["lm_head"])})
    before = parameters(trainer.model)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if (p != before[name]).any()}
    assert any("lm_head.modules_to_save" in name for name in changed)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # qwen3: the head is the embedding
@pytest.mark.parametrize(("peft_config", "expected"), [(lora(), 3), (None, 4), (lora(modules_to_save=["lm_head"]), 4)])
def test_frozen_head_takes_three_matmuls(make_trainer, tokenizer, architecture, peft_config, expected):
    trainer = make_trainer(architecture, architecture, kwargs={"peft_config": copy.deepcopy(peft_config)})
    batch = first_batch(trainer)
    over_vocabulary = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            is_matmul = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
            if is_matmul and any(len(tokenizer) in tensor.shape for tensor in tensors):
                over_vocabulary.append(func)
            return func(*args, **(kwargs or {}))

    with Spy():
        trainer.compute_loss(trainer.model, batch).backward()
    assert len(over_vocabulary) == expected


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_merged_weights_give_the_same_loss(make_trainer, prompt_dataset, fields):
    trainer = make_trainer(eval_dataset=prompt_dataset, kwargs={"peft_config": lora(**fields)}, max_steps=5)
    untrained = trainer.evaluate()["eval_loss"]
    trainer.train()
    expected = trainer.evaluate()["eval_loss"]
    merged = make_trainer(trainer.model.merge_and_unload(), eval_dataset=prompt_dataset)
    assert abs(untrained - expected) > 1e-2
    assert merged.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_saved_adapter_loads(make_trainer, make_model, tmp_path):
    trainer = make_trainer(kwargs={"peft_config": lora(modules_to_save=["lm_head"])}, max_steps=3)
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
    inputs = {name: value for name, value in first_batch(trainer).items() if name != "labels"}
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-9, atol=1e-9)
        assert (loaded.get_base_model()(**inputs).logits == expected).all()
        with loaded.disable_adapter():
            assert (loaded(**inputs).logits != expected).any()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("teacher", [{"teacher": "llama"}, BASE], ids=["a model", "the base"])
def test_resume_reproduces_the_run(make_trainer, tmp_path, teacher):
    fields = {
        **teacher,
        "max_steps": 6,
        "kd_ratio": 0.5,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
    }

    def run(checkpoint=None, **more):
        config = lora(lora_dropout=0.2, modules_to_save=["lm_head"])
        trainer = make_trainer("llama", kwargs={"peft_config": config}, **fields, **more)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run(save_strategy="steps", save_steps=3)
    resumed = run(str(tmp_path / "out" / "checkpoint-3"))
    assert len(logged(whole, "loss")) == 6
    for name in ("loss", "kl_tau1"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), rel=1e-9)
    torch.testing.assert_close(parameters(resumed.model), parameters(whole.model), rtol=1e-9, atol=1e-9)


# The base as teacher


BASES = {
    "lora": ("llama", {}, {}),
    "rslora": ("llama", {"use_rslora": True}, {}),
    "dora": ("llama", {"use_dora": True}, {}),
    "dropout": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_dropout": 0.3}, {}),
    "tied head": ("qwen3", {}, {}),
    "trained head": ("llama", {"modules_to_save": ["lm_head"]}, {}),
    "trained head, tied before": ("qwen3", {"modules_to_save": ["lm_head"]}, {}),
    "trained embedding": ("llama", {"modules_to_save": ["embed_tokens"]}, {}),
    "trained embedding and head, tied": (
        "qwen3",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {},
    ),
    "trained tokens": ("llama", {"trainable_token_indices": [3, 4, 5, 10, 20, 30]}, {}),
    "trained tokens, tied head": ("qwen3", {"trainable_token_indices": [3, 4, 5, 10, 20, 30]}, {}),
    "head bias and scale": ("phi", {}, {}),
    "mixture of experts": ("mixtral", {"target_parameters": ["experts.gate_up_proj"]}, {"router_aux_loss_coef": 0.0}),
    "checkpointing": ("llama", {}, {"gradient_checkpointing": True}),
    "reentrant checkpointing": (
        "llama",
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "bf16": ("llama", {"modules_to_save": ["lm_head"]}, {"bf16": True}),
}


@pytest.mark.parametrize("case", BASES)
def test_base_teaches_as_a_copy_of_it_does(make_trainer, make_model, prompt_dataset, request, case):
    architecture, peft_fields, fields = BASES[case]
    bound = 5e-2  # of what is rounded to bf16
    if "bf16" not in fields:
        request.getfixturevalue("float64")
        bound = 1e-9
    runs = []
    for teacher in (BASE, {"teacher": make_model(architecture)}):
        trainer = make_trainer(
            architecture,
            **teacher,
            eval_dataset=prompt_dataset,
            kwargs={"peft_config": lora(**peft_fields)},
            max_steps=3,
            kd_ratio=0.6,
            teacher_kd_temperature=3.0,
            **fields,
        )
        trainer.train()
        runs.append((trainer, trainer.evaluate()))
    (base, base_metrics), (copied, copied_metrics) = runs
    assert base.teacher_model is None and copied.teacher_model is not None
    for name in ("loss", "kd_loss", "kl_tau1", "teacher_entropy", "grad_norm"):
        assert logged(base, name) == pytest.approx(logged(copied, name), rel=bound, abs=bound * 1e-2), name
    assert base_metrics["eval_loss"] == pytest.approx(copied_metrics["eval_loss"], rel=bound)
    if "bf16" not in fields:
        torch.testing.assert_close(parameters(base.model), parameters(copied.model), rtol=1e-9, atol=1e-9)
    assert logged(base, "kl_tau1")[-1] > 1e-4  # it has moved away from its base, and the base hasn't followed


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_base_starts_without_loss(make_trainer, fields):
    trainer = make_trainer("llama", **BASE, kwargs={"peft_config": lora(**fields)}, kd_temperature=4.0)
    trainer.train()
    assert abs(logged(trainer, "loss")[0]) < 1e-6
    assert logged(trainer, "grad_norm")[0] < 1e-4
    assert logged(trainer, "token_agreement")[0] == 1.0


@pytest.mark.usefixtures("float64")
def test_base_of_a_trained_student_with_several_adapters(make_trainer, make_model):
    student = perturb_adapter(get_peft_model(make_model(), lora()))
    student.add_adapter("other", lora(r=2, target_modules=["o_proj"]))
    student.set_adapter("other")
    perturb_adapter(student)
    for active in ("other", "default"):
        student.set_adapter(active)
        losses = []
        for teacher in (BASE, {"teacher": make_model()}):
            trainer = make_trainer(student, **teacher)
            losses.append(trainer.compute_loss(trainer.model, first_batch(trainer)).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9) and losses[0] > 1e-3
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert trained and all(f".{active}." in name for name in trained)


def test_base_leaves_the_student_as_it_was(make_trainer):
    trainer = make_trainer("llama", **BASE, kwargs={"peft_config": lora(modules_to_save=["lm_head"])})
    model, batch = trainer.model, first_batch(trainer)
    frozen = next(p for p in model.parameters() if p.requires_grad)
    frozen.requires_grad_(False)  # a choice that PEFT itself wouldn't remember
    for training in (True, False):
        model.train(training)
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        modes = {name: module.training for name, module in model.named_modules()}
        for inputs in (batch, {**batch, "input_ids": None}):
            if inputs["input_ids"] is None:
                with pytest.raises(ValueError, match="input_ids"):
                    trainer.teacher.hidden_states({name: v for name, v in inputs.items() if name != "labels"})
            else:
                trainer.compute_loss(model, inputs)
            assert {name: p.requires_grad for name, p in model.named_parameters()} == before
            assert {name: module.training for name, module in model.named_modules()} == modes
            assert model.get_model_status().enabled is True


def test_base_is_refused_where_there_is_none(make_trainer, make_model):
    with pytest.raises(ValueError, match=r"teacher_model_name_or_path.*'student_base'.*peft_config"):
        make_trainer("llama", **BASE)
    peft = {"kwargs": {"peft_config": lora()}}
    with pytest.raises(ValueError, match=r"teacher_model_revision.*'student_base'"):
        make_trainer("llama", **BASE, teacher_model_revision="main", **peft)
    with pytest.raises(ValueError, match=r"teacher_model_init_kwargs.*'student_base'"):
        make_trainer("llama", **BASE, teacher_model_init_kwargs={"dtype": "auto"}, **peft)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_base_is_refused_where_it_is_trained(make_trainer, bias):
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, bias=bias)
    with pytest.raises(ValueError, match=r"parameters, the first being .*bias='none'"):
        make_trainer("gpt2", **BASE, kwargs={"peft_config": config})
    make_trainer("gpt2", "gpt2", kwargs={"peft_config": copy.deepcopy(config)}).train()  # another teacher may


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_base_is_refused_where_the_adapter_took_a_part_of_it(make_trainer, init):
    with pytest.raises(ValueError, match=f"init_lora_weights='{init}'"):
        make_trainer("llama", **BASE, kwargs={"peft_config": lora(init_lora_weights=init)})


def test_refuses_the_student_itself_and_names_its_base(make_trainer, make_model):
    student = get_peft_model(make_model(), lora())
    for teacher in (student, student.get_base_model()):
        with pytest.raises(ValueError, match=r"shares .* parameters.*student_base"):
            make_trainer(student, teacher)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make_teacher", [copy.deepcopy, lambda m: get_peft_model(m, lora())])
def test_peft_teacher(make_trainer, make_model, make_teacher):
    teacher = make_teacher(make_model(seed=1))
    losses = []
    for candidate in (teacher, make_model(seed=1)):
        trainer = make_trainer("llama", candidate)
        losses.append(trainer.compute_loss(trainer.model, first_batch(trainer)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


# Kinds of adapters


ADAPTERS = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "all linear": lora(target_modules="all-linear"),
    "embedding": lora(target_modules=["embed_tokens"]),
    "parameters of experts": lora(target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    "trained tokens": lora(trainable_token_indices=[3, 4, 5, 10, 20, 30]),
    "head in full": lora(modules_to_save=["lm_head"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(target_modules=ATTENTION, r=2),
    "lokr": LoKrConfig(target_modules=ATTENTION, r=2),
    "oft": OFTConfig(target_modules=ATTENTION, r=4, oft_block_size=0),
    "vera": VeraConfig(target_modules=["q_proj"], r=4),
    "layer norms": LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_kinds_of_adapters(make_trainer, make_model, name, tied):
    config = copy.deepcopy(ADAPTERS[name])
    config.task_type = "CAUSAL_LM"
    architecture = "mixtral" if getattr(config, "target_parameters", None) else "qwen3"
    student = make_model(architecture, tie_word_embeddings=tied)
    fields = {"router_aux_loss_coef": 0.0} if architecture == "mixtral" else {}
    trainer = make_trainer(student, architecture, kwargs={"peft_config": config}, kd_ratio=0.7, **fields)
    perturb_adapter(trainer.model).train()
    batch = first_batch(trainer)

    def gradients(loss):
        trainer.model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    loss, expected = trainer.compute_loss(trainer.model, batch), dense_loss(trainer, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    got, wanted = gradients(loss), gradients(expected)
    assert wanted.keys() == got.keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_refuses_prompt_learning(make_trainer, config):
    with pytest.raises(ValueError, match=f"Prompt-learning.*{config.peft_type.value}"):
        make_trainer(kwargs={"peft_config": config})


@pytest.mark.parametrize(
    "config",
    [
        AdaLoraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, total_step=10),
        LoraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, alora_invocation_tokens=[3]),
    ],
    ids=["adalora", "alora"],
)
def test_refuses_adapters_that_act_outside_the_backbone(make_trainer, config):
    with pytest.raises(ValueError, match=r"outside the backbone.*plain LoRA"):
        make_trainer(kwargs={"peft_config": config})


def test_refuses_an_adapter_on_the_head(make_trainer):
    with pytest.raises(ValueError, match="lm_head"):
        make_trainer(kwargs={"peft_config": lora(target_modules=["lm_head"])})


# On the command line


@pytest.fixture
def arguments(make_model, tokenizer, prompt_dataset, tmp_path):
    """`arguments(*ARGS)`: the command line of a tiny run, parsed, for `distill.main` and `distill.check`."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    DatasetDict(train=prompt_dataset).save_to_disk(tmp_path / "data")
    common = (
        f"--model_name_or_path {student} --teacher_model_name_or_path {teacher} --dataset_name {tmp_path / 'data'} "
        f"--output_dir {tmp_path / 'out'} --max_steps 2 --logging_steps 1 --use_cpu --bf16 false --disable_tqdm true "
        "--report_to none --learning_rate 1e-2 --per_device_train_batch_size 4 --save_strategy no"
    ).split()

    def parse(*args: str):
        return distill.make_parser().parse([*common, *args], launched=True)[0]

    return parse


def test_command_line(arguments, make_model, tmp_path, monkeypatch):
    (tmp_path / STUDENT_BASE).mkdir()  # a folder of that name changes nothing
    monkeypatch.chdir(tmp_path)
    values = arguments(
        "--use_peft", "--lora_r", "4", "--teacher_model_name_or_path", STUDENT_BASE, "--kd_ratio", "0.5"
    )
    distill.main(*values)
    adapter = PeftModel.from_pretrained(make_model(), tmp_path / "out")
    assert adapter.peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--teacher_model_name_or_path", STUDENT_BASE], "needs --use_peft"),
        (["--load_in_4bit"], "needs --use_peft"),
        (["--load_in_4bit", "--use_peft"], "pip install '.[quantization]'"),
        (["--load_in_8bit", "--use_peft"], "pip install '.[quantization]'"),
    ],
)
def test_command_line_refusals(arguments, args, expected, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UsageError) as error:
        distill.check(*arguments(*args))
    assert expected in str(error.value) and "\n" not in str(error.value)


# Quantized bases


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def make_4_bit_trainer(make_model, tokenizer, prompt_dataset, make_config, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 4, "head_dim": 16}  # blocks of 64
    wide = functools.partial(make_model, **sizes)
    student, other = save_pair(tmp_path, wide, tokenizer)

    def make(teacher: str = other) -> TemperatureKDTrainer:
        return TemperatureKDTrainer(
            student,
            teacher,
            args=make_config(kd_ratio=0.5, max_steps=4),
            train_dataset=prompt_dataset,
            eval_dataset=prompt_dataset,
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            peft_config=lora(),
        )

    return make


@needs_bitsandbytes
@pytest.mark.parametrize("teacher", [[], [STUDENT_BASE]], ids=["a model", "the base"])
def test_4_bit_student(make_4_bit_trainer, monkeypatch, teacher):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # weights stay as on a GPU
    trainer = make_4_bit_trainer(*teacher)
    quantized = trainer.model.get_base_model().model.layers[0].mlp.up_proj.weight
    assert quantized.dtype == torch.uint8
    before, loss = quantized.clone(), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert (quantized == before).all()
    assert all(p.grad is None or p.grad.any() for p in trainer.model.parameters())
    assert trainer.evaluate()["eval_loss"] < loss


@needs_bitsandbytes
def test_refuses_4_bit_weights_without_gradient(make_4_bit_trainer):
    from bitsandbytes.nn.modules import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("on this CPU bitsandbytes leaves the weights as they are")
    with pytest.raises(ValueError, match=r"4-bit .* this CPU"):
        make_4_bit_trainer()
