# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What only a CUDA device can show. `make gpu` runs this file by its groups, whose names stand behind `test_`.

Without a device everything is skipped. GPU_TESTS_ON_CPU=1 runs the same bodies on the CPU, but for those that ask for
a device itself, so that none of them is code that has never run.
"""

import importlib.util
import os

import pytest
import torch
from datasets import Dataset
from loss_sources import SOURCES, make_problem, served
from made_models import SENTENCES, build_model
from peft import LoraConfig
from standins import save_pair
from test_cached import builder_of
from test_distributed import SCENARIOS, Launcher
from test_several_teachers import PLAIN, ROUTED

from trl_tempkd import OBJECTIVES, TemperatureKDTrainer
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.likeliest import head_mask
from trl_tempkd.losses import block
from trl_tempkd.temperature import log_softmax
from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES


CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NONE = "no CUDA device is here (GPU_TESTS_ON_CPU=1 runs what can be run on a CPU)"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA and os.environ.get("GPU_TESTS_ON_CPU") != "1", reason=NONE),
]
only_cuda = pytest.mark.skipif(not CUDA, reason=NONE)


def needs(package):
    absent = CUDA and importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


# The loss


def check(found, exact, low):
    """Loss and gradients, beside those in float64 on the CPU."""
    for ours, expected in zip(found, exact, strict=True):
        assert ours.device.type == DEVICE and ours.isfinite().all()
        ours, expected = ours.double().cpu().flatten(), expected.flatten()
        if not low:
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
        elif len(ours) == 1:
            torch.testing.assert_close(ours, expected, rtol=0.1, atol=1e-2)
        elif expected.norm() > 1e-6:
            assert torch.cosine_similarity(ours, expected, dim=0) > 0.98


CASES = [(source, name) for source in SOURCES for name in served(source, list(DIVERGENCES))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("source", "divergence"), CASES)
def test_loss_of_every_teacher(source, divergence, dtype):
    options = {"divergence": divergence, "compile": False, "kd_ratio": 0.7, "rescale": "tau2"}
    exact = make_problem(source).gradients(**options)
    problem = make_problem(source, DEVICE, dtype)
    found = problem.gradients(**options)
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype]
    # what low precision makes of the order of two near tokens can move a rank, or the head's last token
    if dtype == torch.float32 or (source != "ranks" and divergence != "adaptive_kl"):
        check(found, exact, low=dtype != torch.float32)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "tvd"])
def test_loss_under_autocast(divergence):
    problem = make_problem("whole", DEVICE, torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = problem.gradients(divergence=divergence, compile=False)
    assert all(t.dtype == torch.float32 for t in found)
    check(found, make_problem("whole").gradients(divergence=divergence, compile=False), low=True)


@pytest.mark.parametrize("rule", ROW_RULES)
def test_loss_of_every_rule(rule):
    options = {"temperature_rule": rule, "compile": False}
    found = make_problem("whole", DEVICE, torch.float32).gradients(**options)
    check(found, make_problem("whole").gradients(**options), low=False)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "adaptive_kl", "decoupled_kl"])
def test_loss_compiled(divergence):
    options = {"divergence": divergence, "metrics": True, "kd_ratio": 0.5}
    problem = make_problem("whole", DEVICE, torch.float32, size=3000)
    compiled = problem.gradients(**options, compile=True)
    check(compiled, [t.double().cpu() for t in problem.gradients(**options, compile=False)], low=False)


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_loss_the_head_is_the_same_one(spread, mu):
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    log_p = log_softmax(logits.bfloat16().double())
    assert torch.equal(head_mask(log_p.to(DEVICE), mu).cpu(), head_mask(log_p, mu))


@only_cuda
@pytest.mark.parametrize("source", [source for source in SOURCES if source != "stretches"])
def test_loss_waits_for_nothing_but_labels(source):
    problem = make_problem(source, DEVICE, torch.float32)
    problem = problem._replace(options={**problem.options, "labels": None})
    problem.gradients(compile=False)  # once, so that kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.gradients(compile=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@only_cuda
def test_loss_takes_no_memory_for_logits_in_full():
    n, size, width = 4096, 64000, 256
    hidden, weight = (torch.randn(rows, width, device=DEVICE, requires_grad=True) for rows in (n, size))
    options = {"labels": torch.zeros(n, dtype=torch.long, device=DEVICE), "chunk_size": 256}
    problem = make_problem("whole")._replace(
        hidden=hidden, weight=weight, teacher=hidden.detach() + 1, teacher_weight=weight.detach(), options=options
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    problem.loss().loss.backward()
    assert torch.cuda.max_memory_allocated() - before < n * size * 4 / 2


# Training


@pytest.fixture
def eager(monkeypatch):
    """Tiny losses don't wait for the compiler, which `test_loss_compiled` has tried."""
    monkeypatch.setattr(block, "pays_to_compile", lambda *_: False)


def history(trainer):
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == trainer.args.max_steps and all(0 <= loss < 100 for loss in losses)
    assert trainer.args.device.type == DEVICE
    assert {t.device.type for t in trainer.model.parameters()} == {DEVICE}
    return losses


def here(**fields):
    return {"use_cpu": DEVICE == "cpu", "eval_strategy": "steps", "eval_steps": 2, **fields}


GREEDY = {"lmbda": 1.0, "max_new_tokens": 8, "temperature": 0.0}
SCHEDULE = {"kd_temperature_schedule": "linear", "kd_temperature_final": 1.0}
RUNS = {
    "forward": {},
    "jsd of a schedule": {"divergence": "jsd", "kd_temperature": 4.0, **SCHEDULE},
    "adaptive": {"divergence": "adaptive_kl", "gradient_accumulation_steps": 2},
    "checkpointed": {"gradient_checkpointing": True, "kd_ratio": 0.5},
    **{f"rule {rule}": {"kd_temperature_rule": rule} for rule in TEMPERATURE_RULES},
    **{name: {"divergence": name, **GREEDY} for name in OBJECTIVES},
    "on-policy": {**GREEDY, "divergence": "reverse_kl"},
    "replayed": {**GREEDY, "lmbda": 0.5, "replay_size": 4, "replay_ratio": 0.5},
    "sampled": {**GREEDY, "temperature": 1.0, "top_p": 0.9},
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", RUNS)
def test_training_is_that_of_the_cpu(make_trainer, prompt_dataset, name):
    fields = {"learning_rate": 1e-3, **RUNS[name]}
    data = {"eval_dataset": prompt_dataset.select(range(3))}
    found = history(make_trainer(**data, **here(**fields)))
    if "lmbda" not in fields:  # the first tokens that are as good as tied lead to other completions
        expected = make_trainer(**data, eval_strategy="steps", eval_steps=2, **fields)
        expected.train()
        losses = [entry["loss"] for entry in expected.state.log_history if "loss" in entry]
        assert found == pytest.approx(losses, rel=1e-2)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("policy", ["given", "on-policy"])
@pytest.mark.parametrize("dtype", ["bf16", "bf16 weights", "fp16"])
def test_training_in_low_precision(make_trainer, make_model, prompt_dataset, dtype, policy):
    student, teacher = make_model(), make_model(seed=1)
    if dtype == "bf16 weights":
        student, teacher = student.bfloat16(), teacher.bfloat16()
    if dtype == "fp16" and not CUDA:
        pytest.skip("a gradient scaler is for a GPU")
    fields = {"bf16": dtype == "bf16", "fp16": dtype == "fp16", **(GREEDY if policy == "on-policy" else {})}
    history(make_trainer(student, teacher, eval_dataset=prompt_dataset.select(range(3)), **here(**fields)))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fields", [{}, GREEDY], ids=["given", "on-policy"])
@pytest.mark.parametrize("teacher", ["llama", "student_base"])
def test_training_of_an_adapter(make_model, make_config, tokenizer, prompt_dataset, teacher, fields):
    options = {"train_dataset": prompt_dataset, "eval_dataset": prompt_dataset, "processing_class": tokenizer}
    options |= {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
    beside = teacher if teacher == "student_base" else make_model(teacher, seed=1)
    history(TemperatureKDTrainer(make_model(), beside, args=make_config(**here(**fields)), **options))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("mode", ["hidden", "topk", "sampled"])
def test_training_from_a_cache(make, prompt_dataset, tmp_path, mode):
    cut = {} if mode == "hidden" else {"count": 8, "taus": (1.0, 2.0)}
    fields = here(eval_strategy="no", max_steps=2)
    builder_of(make(**fields), tmp_path / "cache", mode=mode, **cut).build()
    live, cached = (history(make(**fields, **own)) for own in ({}, {"teacher_cache": str(tmp_path / "cache")}))
    assert mode != "hidden" or cached == pytest.approx(live, rel=1e-3)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("where", [None, pytest.param("cpu", marks=only_cuda), "disk"])
@pytest.mark.parametrize("rows", [PLAIN, ROUTED], ids=["mixed", "routed"])
def test_training_with_several_teachers(make_model, make_config, tokenizer, tmp_path, rows, where):
    teachers = []
    for seed, name in enumerate(("moon", "cat"), start=1):
        build_model("llama", seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        teachers.append({"name": name, "model": str(tmp_path / name)})
    args = make_config(**here(eval_strategy="no", teachers=teachers, teachers_offload=where))
    data = Dataset.from_list(rows)
    history(TemperatureKDTrainer(make_model(), args=args, train_dataset=data, processing_class=tokenizer))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("alignment", ["bytes", "shared", "uld"])
def test_training_with_a_teacher_of_another_tokenizer(make_pair, alignment):
    history(make_pair(vocabulary_alignment=alignment, use_cpu=DEVICE == "cpu"))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("teacher", ["student", "student_ema"])
def test_training_by_the_student_itself(make_model, make_config, tokenizer, prompt_dataset, teacher):
    hinted = prompt_dataset.map(lambda row: {"teacher_prompt": f"{SENTENCES[0]} {row['prompt']}"})
    more = {"teacher_ema_decay": 0.6} if teacher == "student_ema" else {}
    args = make_config(**here(eval_strategy="no", **more))
    options = {"train_dataset": hinted, "processing_class": tokenizer}
    history(TemperatureKDTrainer(make_model(), teacher, args=args, **options))


@only_cuda
@needs("bitsandbytes")
@pytest.mark.usefixtures("eager")
def test_training_with_a_4_bit_teacher(make_model, make_config, tokenizer, prompt_dataset, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 4, "head_dim": 16}  # blocks of 64
    student, teacher = save_pair(tmp_path, lambda *args, **more: make_model(*args, **{**sizes, **more}), tokenizer)
    quantized = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "device_map": {"": 0}}
    args = make_config(**here(eval_strategy="no", teacher_model_init_kwargs=quantized))
    history(TemperatureKDTrainer(student, teacher, args=args, train_dataset=prompt_dataset))


# Several devices


@pytest.mark.skipif(CUDA and torch.cuda.device_count() < 2, reason="one CUDA device is here, and two are needed")
@pytest.mark.parametrize("backend", ["ddp", "zero3", "fsdp2"])
def test_processes_give_what_one_gives(tmp_path, monkeypatch, backend):
    if backend == "zero3":
        pytest.importorskip("deepspeed")
    monkeypatch.setenv("KD_DEVICE", DEVICE)
    launcher, names = Launcher(tmp_path), ("untied", "on_policy", "mixed")
    for launch in ("single", backend):
        launcher.results[launch] = {}
        launcher.start(launch, {name: SCENARIOS[name] for name in names})
    launcher.server.stop()
    for name in names:
        one, two = (losses_of(launcher.run(launch, name)) for launch in ("single", backend))
        assert len(one) == 5 and two == pytest.approx(one, rel=1e-2), name


def losses_of(result):
    return [entry["loss"] for entry in result["log_history"] if "loss" in entry]


# vLLM


@only_cuda
@needs("vllm")
def test_vllm_writes_what_the_student_would(tmp_path):
    from trl_tempkd import KDConfig
    from trl_tempkd.tiny import resolve

    args = KDConfig(
        str(tmp_path), bf16=False, lmbda=1.0, temperature=0.0, max_new_tokens=16, use_vllm=True, max_steps=2,
        vllm_gpu_memory_utilization=0.2, vllm_max_model_length=256, per_device_train_batch_size=4, report_to="none",
        logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": f"What does a function do that should {what}?"} for what in SENTENCES])
    trainer = TemperatureKDTrainer(resolve("tiny:student"), resolve("tiny:teacher"), args, train_dataset=data)
    assert len(history(trainer)) == 2
