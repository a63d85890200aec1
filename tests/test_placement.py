# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
The loss on a GPU, without one: every tensor is made where the others are, and nothing waits for the device but must.

Torch's fake tensors have a device and no numbers. The device is `meta` here, which every build of torch knows. Two of
different devices don't go together, as on a GPU, and a copy from the CPU, for which a program stops until the GPU has
done what it was asked before, is seen as one.
"""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from loss_sources import SOURCES, make_problem, served
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from trl_tempkd import KDConfig
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.heads import Head
from trl_tempkd.losses import METRICS, kd_loss, measure_tokens
from trl_tempkd.losses.values import WHOLE
from trl_tempkd.objectives import OBJECTIVES, make_loss
from trl_tempkd.temperature_rules import ROW_RULES, TEMPERATURE_RULES, token_adaptive


class Gpu(TorchDispatchMode):
    """Counts what a GPU would be waited for, and says what it may: labels are good, and all tokens count."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "nonzero":
            self.found["nonzero"] += 1
            return torch.arange(len(args[0]), device=args[0].device).unsqueeze(-1)
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found["mask"] += 1
            return args[0] if args[0].is_floating_point() else args[0][:0]  # of labels those that are wrong
        if name in ("_local_scalar_dense", "masked_select", "equal", "unique_consecutive", "_unique2"):
            raise AssertionError(f"{name} reads a tensor that a GPU has")
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_", "copy"):
            (there, here) = (args[0], args[1]) if name != "_to_copy" else (out, args[0])
            if there.device.type != here.device.type:
                self.found["copy"] += 1
        return out


def on_gpu(run):
    """What `run(device)` would wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which doesn't know this device
        return waits(run)


def waits(run):
    with torch._functorch.config.patch(fake_tensor_allow_meta=True), FakeTensorMode(), Gpu() as gpu:
        made = run("meta")  # what it is made of may be copied
        gpu.found.clear()
        made()
    return gpu.found


def test_the_test_finds_what_is_in_the_wrong_place():
    def mixed(device):
        x = torch.randn(4, device=device)
        return lambda: x + torch.ones(4)

    def read(device):
        x = torch.randn(4, device=device)
        return lambda: x.sum().item()

    def copied(device):
        x = torch.randn(4, device=device)
        return lambda: x * torch.ones(4).to(device)

    def made_of_a_number(device):
        x = torch.randn(4, device=device)
        return lambda: x * torch.tensor(2.0, device=device)  # a copy too, made before anything is dispatched

    with pytest.raises(Exception, match="at least two devices"):
        on_gpu(mixed)
    with pytest.raises(AssertionError, match="reads a tensor"):
        on_gpu(read)
    with pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
        on_gpu(made_of_a_number)
    assert on_gpu(copied) == {"copy": 1}


def step(source, **options):
    def run(device):
        problem = make_problem(source, device, torch.float32)
        return lambda: problem.gradients(compile=False, **options)

    return run


SOME = ["forward_kl", "jsd", "adaptive_kl", "decoupled_kl"]
CASES = [(of, name) for of in SOURCES for name in served(of, list(DIVERGENCES) if of == "whole" else SOME)]


@pytest.mark.parametrize(("source", "divergence"), CASES)
def test_every_divergence_of_every_teacher(source, divergence):
    """
    Labels are checked, and rows without one dropped: once for all chunks, and nothing else is waited for. Of another
    vocabulary's teacher the rows that are compared are looked up, and then the others; with stretches all of it twice.
    """
    found = on_gpu(step(source, divergence=divergence, metrics=True, kd_ratio=0.5, chunk_size=6))
    passes = 2 if source == "stretches" else 1
    lookups = 2 if source in ("bins", "ranks", "stretches") else 1
    assert set(found) <= {"nonzero", "mask"}
    assert found["mask"] <= passes and found["nonzero"] <= passes * lookups


@pytest.mark.parametrize("rule", ROW_RULES)
@pytest.mark.parametrize("source", ["whole", "logits", "bins"])
def test_every_rule(source, rule):
    found = on_gpu(step(source, temperature_rule=rule, metrics=True))
    assert set(found) <= {"nonzero", "mask"} and max(found.values()) == (2 if source == "bins" else 1)


def test_tokens_of_their_own_temperature_and_weight():
    def run(device):
        problem = make_problem("whole", device, torch.float32)
        rows = torch.rand(len(problem.hidden), device=device)
        options = {"student_temperature": 1 + rows, "teacher_temperature": 2 + rows, "kd_weight": rows}
        options |= {
            "ce_weight": rows,
            "normalizer": rows.sum(),
            "divergence": "taid",
            "divergence_kwargs": {"t": rows},
        }
        return lambda: problem.gradients(compile=False, **options)

    assert set(on_gpu(run)) <= {"nonzero", "mask"}


def test_the_rule_of_all_tokens():
    def run(device):
        distance, taus = torch.rand(24, device=device), torch.ones(2, 24, device=device)
        return lambda: token_adaptive(distance, *taus, keep=0.5)

    assert not on_gpu(run)


def test_metrics_without_a_loss():
    def run(device):
        problem = make_problem("whole", device, torch.float32)
        names = ("student_bias", "teacher_bias", "labels")
        options = {name: problem.options[name] for name in names}
        return lambda: measure_tokens(*problem[:4], metrics=WHOLE, **options)

    assert set(on_gpu(run)) <= {"nonzero", "mask"}


@pytest.mark.parametrize(("divergence", "rule"), [*((name, None) for name in DIVERGENCES), ("jsd", "target_entropy")])
def test_the_dense_loss(divergence, rule):
    def run(device):
        z, v = (torch.randn(3, 8, 50, device=device) for _ in range(2))
        labels = torch.zeros(3, 8, dtype=torch.long, device=device)
        z.requires_grad_()
        options = {"divergence": divergence, "student_temperature": 2.0, "teacher_temperature": 3.0}

        def dense():
            loss = kd_loss(z, v, labels=labels, reduction="mean", rescale="tau2", temperature_rule=rule, **options)
            return torch.autograd.grad(loss, z)

        return dense

    assert set(on_gpu(run)) <= {"mask"}


STEPS = {
    **{name: {"divergence": name, "lmbda": 1.0} for name in OBJECTIVES},
    **{rule: {"kd_temperature_rule": rule} for rule in TEMPERATURE_RULES},
    "mixed with cross-entropy": {"kd_ratio": 0.5, "kd_temperature_rescale": "tau2"},
}


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_the_loss_of_a_step(name, on_policy):
    """With what is logged. A batch asks which tokens count; `token_adaptive` has to know how many, in each process."""
    config = KDConfig("unused", use_cpu=True, bf16=False, **STEPS[name])
    loss = make_loss(config, Accelerator(cpu=True), METRICS)
    loss.begin(0.5)

    def run(device):
        problem = make_problem("whole", device, torch.float32)
        heads = Head(problem.weight), Head(problem.teacher_weight)
        targets = torch.zeros(3, 8, dtype=torch.long, device=device)
        how = {"logged": True, "training": True, "on_policy": on_policy}

        def step():
            out = loss(problem.hidden, heads[0], problem.teacher, heads[1], targets, None, **how)
            return torch.autograd.grad(out.loss, (problem.hidden, problem.weight))

        return step

    found = on_gpu(run)
    assert set(found) <= {"nonzero", "mask"} and sum(found.values()) <= 8
