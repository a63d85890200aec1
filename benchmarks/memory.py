# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Memory per GPU of a distillation, by arithmetic: nothing is loaded or measured. docs/scale.md has its tables.

    python benchmarks/memory.py                                # the tables of docs/scale.md
    python benchmarks/memory.py --teacher llama3.1-70b --student llama3.1-8b --gpus 16 --configs zero3
    python benchmarks/memory.py --gpus 1 --configs single_gpu --lora-rank 32
    python benchmarks/memory.py --tokens 8192 --rollout-rows 64 --gather-for-generation

What counts: the student's weights, gradients and AdamW; the teacher's weights in bf16; what ZeRO-3 and FSDP2 gather,
or autocast casts; activations with gradient checkpointing; what the loss holds; buffers of the communication; the KV
cache of on-policy training. What does not: fragmentation (leave a tenth free), the CUDA context and NCCL (1 to 2 GiB),
vLLM. Where a term is an estimate it is an upper one. All is in GiB, for bf16 training with AdamW.
"""

import argparse
import math
from dataclasses import dataclass, replace

from trl_tempkd.losses.fused import CHUNK_ELEMENTS, MIN_CHUNK_ROWS


@dataclass(frozen=True)
class Shape:
    """What the `config.json` of a model says (Llama's and Qwen2's architecture)."""

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def head(self) -> int:
        """Parameters of the output projection."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        attention = 2 * self.hidden * self.queries + 2 * self.hidden * self.keys
        bias = self.queries + 2 * self.keys if self.model_type == "qwen2" else 0
        return attention + bias + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.head * (1 if self.tied else 2) + self.hidden

    def lora(self, rank: int) -> int:
        """Parameters of a LoRA adapter of this rank on all seven projections of every layer."""
        return self.layers * rank * (7 * self.hidden + 2 * self.queries + 2 * self.keys + 3 * self.intermediate)


# From config.json of Qwen/Qwen2.5-0.5B, Qwen/Qwen2.5-7B, meta-llama/Llama-3.1-8B and meta-llama/Llama-3.1-70B
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, tied=True),
        Shape("qwen2.5-7b", "qwen2", 28, 3584, 18944, 28, 4, 128, 152064),
        Shape("llama3.1-8b", "llama", 32, 4096, 14336, 32, 8, 128, 128256),
        Shape("llama3.1-70b", "llama", 80, 8192, 28672, 64, 8, 128, 128256),
    )
}
CONFIGS = ("single_gpu", "multi_gpu", "zero1", "zero2", "zero3", "fsdp2")
BUCKET = 5 * 10**8  # DeepSpeed's reduce_bucket_size, in elements
LIVE = 10**9  # DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Setup:
    """
    One way to run it. `tokens` is what a GPU has in a micro-batch; `rollout_rows` how many rows it generates together
    (0: the data set's completions), each of `rollout_length` tokens with its prompt.
    """

    student: Shape
    teacher: Shape
    config: str = "zero3"
    gpus: int = 8
    tokens: int = 4096
    lora_rank: int = 0
    offload_optimizer: bool = False
    rollout_rows: int = 0
    rollout_length: int = 1024
    gather_for_generation: bool = False

    @property
    def deepspeed(self) -> bool:
        return self.config.startswith("zero")

    @property
    def sharded(self) -> bool:
        return self.config in ("zero3", "fsdp2")


def memory(s: Setup) -> dict[str, float]:
    """Bytes on each GPU by what takes them; [`peak`] is what they come to."""
    gpus = 1 if s.config == "single_gpu" else s.gpus
    student, teacher = s.student, s.teacher
    total = student.parameters
    trained = student.lora(s.lora_rank) if s.lora_rank else total
    frozen = total if s.lora_rank else 0
    parts: dict[str, float] = {}

    # DeepSpeed trains bf16 weights beside an fp32 copy in the optimizer; elsewhere the weights are fp32 and autocast
    # makes bf16 copies of them. A frozen student is bf16 (--dtype bfloat16).
    wide = 2 if s.deepspeed else 4
    weights = trained * wide + frozen * 2
    gradients = trained * wide
    optimizer = trained * (16 if s.deepspeed else 8)  # fp32 weights, two moments, fp32 gradient of the step
    parts["teacher"] = teacher.parameters * 2 / (gpus if s.sharded else 1)
    parts["student"] = weights / (gpus if s.sharded else 1)
    parts["gradients"] = gradients / (gpus if s.config in ("zero2", "zero3", "fsdp2") else 1)
    offloaded = s.offload_optimizer and s.deepspeed
    parts["AdamW"] = 0 if offloaded else optimizer / (gpus if s.deepspeed or s.sharded else 1)

    gathered = buffers = 0
    if s.config == "zero3":
        gathered = 2 * (min(total, LIVE) + min(teacher.parameters, LIVE))  # besides the heads, which the loss gathers
        buffers = 2 * 2 * min(trained, BUCKET)  # two, as communication overlaps with the backward pass
    elif s.config == "fsdp2":
        # The layer that runs and the next one; embedding or head, which stay once they are gathered
        gathered = sum(2 * 2 * model.layer + 2 * model.head for model in (teacher, student))
    elif s.deepspeed:
        buffers = 2 * min(trained, BUCKET)
    else:
        gathered = 2 * trained  # autocast's copies
        buffers = 4 * trained if s.config == "multi_gpu" else 0  # DDP's buckets
    parts["gathered, casts"] = gathered
    parts["buffers"] = buffers

    # The input of every layer is kept, and one layer is recomputed at a time: its activations and their gradients. The
    # residual stream is fp32 under autocast.
    kept = student.layers * student.hidden * wide
    live = 2 * 2 * (6 * student.hidden + 2 * student.queries + 2 * student.keys + 4 * student.intermediate)
    teacher_live = 2 * (6 * teacher.hidden + 2 * teacher.queries + 2 * teacher.keys + 4 * teacher.intermediate)
    parts["activations"] = s.tokens * (kept + max(live, teacher_live))
    parts["loss"] = loss(s, wide)
    if s.rollout_rows:
        parts["generation"] = s.rollout_rows * s.rollout_length * student.layers * 2 * student.keys * 2
        if s.gather_for_generation and s.sharded:
            parts["generation"] += 2 * total
    return parts


def loss(s: Setup, wide: int) -> float:
    """
    Both heads in bf16, the student's gradient and a second copy while it is added up, and one chunk: both logits in
    bf16 and up to ten fp32 tensors of that size. A compiled block needs fewer.
    """
    size = min(s.student.vocabulary, s.teacher.vocabulary)
    rows = max(MIN_CHUNK_ROWS, math.ceil(CHUNK_ELEMENTS / size))
    chunk = rows * size * (2 * 2 + 10 * 4)
    hidden = s.tokens * 2 * (2 * s.student.hidden + s.teacher.hidden)
    head_gradient = 0 if s.lora_rank else s.student.head * (wide + 2)
    teacher_head = s.teacher.head * 2 if s.sharded else 0
    student_head = s.student.head * 2 if s.sharded or not s.deepspeed else 0  # gathered, or cast
    if s.config == "fsdp2":  # gathered in fp32, then cast
        student_head += s.student.head * 4
    return chunk + hidden + head_gradient + teacher_head + student_head


def peak(parts: dict[str, float]) -> float:
    """Generation and training take turns, so the larger of the two counts."""
    training = parts["gathered, casts"] + parts["activations"] + parts["loss"]
    generation = parts.get("generation", 0)
    return sum(parts.values()) - min(training, generation)


def table(setups: list[Setup]) -> str:
    rows = [memory(setup) for setup in setups]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        "| config | GPUs | " + " | ".join(names) + " | peak, GiB |",
        "| --- " * (len(names) + 3) + "|",
    ]
    for setup, row in zip(setups, rows, strict=True):
        name = f"`{setup.config}`" + (", optimizer on CPU" if setup.offload_optimizer and setup.deepspeed else "")
        gpus = 1 if setup.config == "single_gpu" else setup.gpus
        cells = [f"{row.get(part, 0) / 2**30:.1f}" for part in names]
        lines.append(f"| {name} | {gpus} | {' | '.join(cells)} | **{peak(row) / 2**30:.0f}** |")
    return "\n".join(lines)


def heading(s: Setup) -> str:
    what = f"a LoRA adapter of rank {s.lora_rank} of {s.student.name}" if s.lora_rank else s.student.name
    policy = "off-policy"
    if s.rollout_rows:
        where = ", student gathered" if s.gather_for_generation else ""
        policy = f"on-policy, {s.rollout_rows} rows of {s.rollout_length} tokens generated together{where}"
    return f"{s.teacher.name} to {what}, {s.tokens} tokens per GPU, {policy}"


def section(setups: list[Setup]) -> str:
    return f"### {heading(setups[0])}\n\n{table(setups)}\n"


def document() -> str:
    """The tables of docs/scale.md."""
    small = Setup(SHAPES["qwen2.5-0.5b"], SHAPES["qwen2.5-7b"])
    large = Setup(SHAPES["llama3.1-8b"], SHAPES["llama3.1-70b"])
    sections = [
        [replace(small, config=config) for config in CONFIGS],
        [replace(small, config=config, lora_rank=32) for config in ("single_gpu", "multi_gpu")],
        [
            replace(small, config=config, rollout_rows=64, gather_for_generation=True)
            for config in ("single_gpu", "zero2", "zero3")
        ],
        [
            *(replace(large, config=config) for config in ("zero2", "fsdp2", "zero3")),
            replace(large, offload_optimizer=True),
            replace(large, gpus=16),
            replace(large, gpus=32),
        ],
        [replace(large, lora_rank=32, gpus=gpus) for gpus in (4, 8)],
        [replace(large, rollout_rows=32, gather_for_generation=True, gpus=gpus) for gpus in (8, 16)],
    ]
    return "\n".join(section(setups) for setups in sections)


def count(value: str) -> int:
    if int(value) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return int(value)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=SHAPES, help="default: qwen2.5-0.5b")
    parser.add_argument("--teacher", choices=SHAPES, help="default: qwen2.5-7b")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, help="names of --accelerate_config, default: all")
    parser.add_argument("--gpus", type=count, help="of all machines together, default: 8")
    parser.add_argument("--tokens", type=count, help="of a micro-batch on one GPU: rows x length, default: 4096")
    parser.add_argument("--lora-rank", type=count, help="an adapter on every projection in place of full training")
    parser.add_argument(
        "--offload-optimizer", action="store_true", default=None, help="--offload_optimizer_device cpu"
    )
    parser.add_argument("--rollout-rows", type=count, help="rows that a GPU generates together: on-policy training")
    parser.add_argument("--rollout-length", type=count, help="prompt and completion together, default: 1024")
    parser.add_argument(
        "--gather-for-generation",
        action="store_true",
        default=None,
        help="as ds3_gather_for_generation",
    )
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if not given:
        print(document(), end="")
        return
    student = SHAPES[given.pop("student", "qwen2.5-0.5b")]
    teacher = SHAPES[given.pop("teacher", "qwen2.5-7b")]
    configs = given.pop("configs", CONFIGS)
    print(section([Setup(student, teacher, config=config, **given) for config in configs]), end="")


if __name__ == "__main__":
    main()
