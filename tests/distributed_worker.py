# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What `accelerate launch` starts for `test_distributed.py`: trains scenario after scenario, a JSON for each."""

import gc
import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from trl_tempkd.processes import freeze, uncollected


with uncollected():
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from datasets import load_from_disk
    from peft import LoraConfig
    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM, AutoProcessor, TrainerCallback

    import trl_tempkd.objectives.several as several_module
    import trl_tempkd.objectives.step_loss as step_loss_module
    from trl_tempkd import KDConfig, TemperatureKDTrainer
    from trl_tempkd.checkpoints import find_checkpoint
freeze()


ON_CPU = os.environ.get("KD_DEVICE", "cpu") == "cpu"
WRAPPERS = {"single": None, "ddp": "DistributedDataParallel", "fsdp2": "FSDP"}  # every other one is DeepSpeed


class Watch(TrainerCallback):
    """Counts the losses that are computed inside the wrapper's forward and outside of it; may kill its process."""

    def __init__(self, kill_at: int | None):
        self.kill_at = kill_at
        self.depth = 0
        self.losses = {"inside": 0, "outside": 0}
        self.sharded: list[list[bool]] = []  # of each step: student and teacher
        self.longest: list[int] = []  # completion that was generated on this rank, of each step

    def on_train_begin(self, args, state, control, model, **kwargs):
        wrapper = self.trainer.model_wrapped
        wrapper.register_forward_pre_hook(lambda *_: self.enter(1))
        wrapper.register_forward_hook(lambda *_: self.enter(-1), always_call=True)

    def enter(self, change: int) -> None:
        self.depth += change

    def on_step_end(self, args, state, control, **kwargs):
        latest = self.trainer.rollouts.latest if self.trainer.rollouts else []
        # Here, since FSDP keeps the root's parameters whole after an evaluation
        unwrap, models = (
            self.trainer.accelerator.unwrap_model,
            (self.trainer.model_wrapped, self.trainer.teacher_model or self.trainer.model_wrapped),
        )
        self.sharded.append([all(map(is_sharded, unwrap(model).parameters())) for model in models])
        self.longest.append(max((len(completion) for _, completion in latest), default=0))
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def counting(self, trainer: TemperatureKDTrainer):
        self.trainer, loss = trainer, step_loss_module.chunked_kd_loss

        def counted(*args, **kwargs):
            if torch.is_grad_enabled():  # evaluation needs no wrapper
                self.losses["inside" if self.depth else "outside"] += 1
            return loss(*args, **kwargs)

        for module in (step_loss_module, several_module):
            module.chunked_kd_loss = counted
        yield
        for module in (step_loss_module, several_module):
            module.chunked_kd_loss = loss


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of a parameter that may be sharded. Every rank must call it."""
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor().clone()
    context = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        context = deepspeed.zero.GatheredParameters([parameter])
    with context:
        return parameter.detach().clone()


def is_sharded(parameter: torch.nn.Parameter) -> bool:
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel() < parameter.numel() or parameter.shape[0] == 1  # one row has no halves
    return hasattr(parameter, "ds_id") and parameter.numel() == 0


def prepare(backend: str) -> None:
    """Before the first arguments are made."""
    if backend.startswith("zero"):
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first


def make_trainer(backend: str, scenario: dict[str, Any], watch: Watch) -> TemperatureKDTrainer:
    processes = 1 if backend == "single" else 2
    fields = dict(scenario["fields"])
    # The scenario says how many rows a step has, on however many processes
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        fields[name] //= processes
    args = KDConfig(use_cpu=ON_CPU, bf16=False, report_to="none", disable_tqdm=True, **fields)
    if backend == "fsdp2" and ON_CPU:  # without it, FSDP2 on CPU is DDP without a sign
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    lora, load = scenario.get("lora"), AutoModelForCausalLM.from_pretrained if scenario.get("loaded") else str
    data = [load_from_disk(scenario[name]) for name in ("train_dataset", "eval_dataset")]
    if scenario.get("streamed"):
        data = [dataset.to_iterable_dataset() for dataset in data]
    trainer = TemperatureKDTrainer(
        model=load(scenario["student"]),
        # The student, by its name, or several
        teacher_model=None if "teachers" in fields else scenario.get("itself") or load(scenario["teacher"]),
        args=args,
        processing_class=AutoProcessor.from_pretrained(scenario["student"]),
        train_dataset=data[0],
        eval_dataset=data[1],
        compute_metrics=(lambda output: {"rows": len(output.predictions)})
        if scenario.get("compute_metrics")
        else None,
        peft_config=LoraConfig(**lora) if lora else None,
        callbacks=[watch],
    )
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.num_processes
    return trainer


def run(backend: str, scenario: dict[str, Any]) -> dict[str, Any]:
    watch = Watch(scenario.get("kill_at"))
    trainer = make_trainer(backend, scenario, watch)
    if trainer.accelerator.is_main_process:
        for checkpoint, pattern in scenario.get("cut", {}).items():
            path = sorted(Path(trainer.args.output_dir, checkpoint).glob(pattern))[-1]
            os.truncate(path, path.stat().st_size * 2 // 3)
    trainer.accelerator.wait_for_everyone()
    checkpoint = find_checkpoint("auto", trainer.args.output_dir)[0] if scenario.get("resume") else None
    with watch.counting(trainer):
        trainer.train(resume_from_checkpoint="auto" if scenario.get("resume") else None)
    wrapper = type(trainer.model_wrapped).__name__
    expected = WRAPPERS.get(backend, "DeepSpeedEngine")
    assert expected is None or wrapper.startswith(expected), wrapper

    student = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    # A server may have the teacher, or the student be it
    teacher = trainer.teacher_model and trainer.accelerator.unwrap_model(trainer.teacher_model)
    sums = torch.stack([whole(p).double().abs().sum() for p in student.parameters()])
    teacher_now = {name: whole(p) for name, p in teacher.named_parameters()} if teacher else {}
    teacher_before = load_file(f"{scenario['teacher']}/model.safetensors") if teacher else {}
    result = {
        "wrapper": wrapper,
        "checkpoint": checkpoint and Path(checkpoint).name,
        "trained_steps": trainer.trained_steps,
        "losses": watch.losses,
        "sharded": watch.sharded,
        "teacher_is_untouched": all(torch.equal(p, teacher_now.get(name, p)) for name, p in teacher_before.items()),
        "longest_completions": trainer.accelerator.gather(torch.tensor([watch.longest])).tolist(),
        "parameter_sums": trainer.accelerator.gather(sums[None]).tolist(),
        "zero_stage": getattr(trainer.model_wrapped, "zero_optimization_stage", int)(),
    }
    trainer.save_model(trainer.args.output_dir)
    trainer.evaluate()
    return {**result, "log_history": trainer.state.log_history}


def main(backend: str, folder: Path) -> None:
    """`folder/plan.json`: scenarios by name; their results go to `folder/NAME.json`."""
    prepare(backend)
    for name, scenario in json.loads((folder / "plan.json").read_text()).items():
        result = run(backend, scenario)
        if PartialState().is_main_process:
            (folder / f"{name}.json").write_text(json.dumps(result))
        PartialState().wait_for_everyone()
        gc.freeze()  # what DeepSpeed keeps of an engine would be looked through time and again
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's teardown aborts now and then, after everything has succeeded


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
