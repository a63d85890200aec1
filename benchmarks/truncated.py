# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a truncated teacher costs in the gradient: the bias of the k largest logits beside the noise of k drawn tokens.

    python benchmarks/truncated.py                                  # the built-in pair, 2048 held-out tokens
    python benchmarks/truncated.py --counts 16 256 --taus 1 8 --output truncated.json

Errors are relative to the gradient of forward KL from whole rows, as norms, both sides at tau. `token` is of the
gradients in the last hidden states, `batch` of that in the student's head, which is a mean over all tokens: there
noise averages out, the more the more tokens there are, and bias doesn't. Draws are means over `--rounds`. As many
`independent` draws are beside those of the cache, which draw no token twice.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor


def load(n_tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    """What the loss takes of the student, and the teacher's logits, for the first tokens of the held-out rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_tempkd.heads import backbone, read_head
    from trl_tempkd.tiny import load_tiny_dataset, resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny:teacher"))
    rows = load_tiny_dataset()["test"]
    texts = ("".join(value for value in row.values() if isinstance(value, str)) for row in rows)
    models = [
        AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32)
        for name in ("tiny:student", "tiny:teacher")
    ]
    hidden: tuple[list[Tensor], list[Tensor]] = ([], [])
    while sum(map(len, hidden[0])) < n_tokens:
        ids = tokenizer(next(texts), return_tensors="pt", truncation=True, max_length=256)
        for model, parts in zip(models, hidden, strict=True):
            with torch.no_grad():
                parts.append(backbone(model)(**ids).last_hidden_state[0])
    student, teacher = (torch.cat(parts)[:n_tokens] for parts in hidden)
    weight = read_head(models[0]).weight.detach()
    logits = read_head(models[1]).logits(teacher).detach()
    return {"student_hidden": student.requires_grad_(), "student_weight": weight.requires_grad_()}, logits


def top_k(v_NV: Tensor, count: int, tau: float) -> object:
    from trl_tempkd.losses import TopK

    logits, ids = v_NV.topk(count, dim=-1)
    rest = (v_NV.scatter(-1, ids, -torch.inf) / tau).logsumexp(-1, keepdim=True)
    return TopK((tau,), v_NV.shape[-1], ids, logits, rest)


def sampled(v_NV: Tensor, count: int, tau: float) -> object:
    from trl_tempkd.losses import Sampled
    from trl_tempkd.losses.sampled import draw

    log_p = (v_NV.double() / tau).log_softmax(-1)
    ids, weights = draw(log_p.exp(), count, torch.rand(len(v_NV)))
    entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    return Sampled((tau,), v_NV.shape[-1], ids[:, None], weights[:, None], entropy)


def independent(v_NV: Tensor, count: int, tau: float) -> object:
    """Draws with repetition, merged: each token once, with its share of the draws."""
    from trl_tempkd.losses import Sampled

    ids = (v_NV / tau).softmax(-1).multinomial(count, replacement=True)
    shares = torch.zeros_like(v_NV).scatter_add(-1, ids, torch.full_like(v_NV[:, :count], 1 / count))
    weights, ids = shares.topk(count, dim=-1)
    return Sampled((tau,), v_NV.shape[-1], ids[:, None], weights[:, None], torch.zeros(len(v_NV), 1))


METHODS: dict[str, Callable[[Tensor, int, float], object]] = {
    "top-k": top_k,
    "drawn": sampled,
    "independent": independent,
}


def gradients(student: dict[str, Tensor], tau: float, target: object, weight: Tensor | None = None) -> list[Tensor]:
    from trl_tempkd import chunked_kd_loss

    temperatures = {"student_temperature": tau, "teacher_temperature": tau}
    loss = chunked_kd_loss(**student, teacher_hidden=target, teacher_weight=weight, **temperatures).loss
    return list(torch.autograd.grad(loss, tuple(student.values())))


def measure(args: argparse.Namespace) -> list[dict[str, float | str]]:
    """One record for each temperature, number of tokens and method."""
    torch.manual_seed(0)
    student, v_NV = load(args.tokens)
    identity, records = torch.eye(v_NV.shape[-1]), []
    for tau in args.taus:
        full = gradients(student, tau, v_NV, identity)
        for count, (name, method) in itertools.product(args.counts, METHODS.items()):
            rounds = 1 if name == "top-k" else args.rounds
            squares = torch.zeros(2)
            for _ in range(rounds):
                for i, (own, whole) in enumerate(
                    zip(gradients(student, tau, method(v_NV, count, tau)), full, strict=True)
                ):
                    squares[i] += ((own - whole).norm() / whole.norm()).square() / rounds
            token, batch = squares.sqrt().tolist()
            records.append({"tau": tau, "count": count, "method": name, "token": token, "batch": batch})
    return records


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="default: 2048")
    parser.add_argument("--counts", type=int, nargs="+", default=[16, 64, 256], help="default: 16 64 256")
    parser.add_argument("--taus", type=float, nargs="+", default=[1.0, 1.5, 2.0, 4.0], help="default: 1 1.5 2 4")
    parser.add_argument("--rounds", type=int, default=4, help="draws (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    records = measure(args)
    table = Table("tau", "tokens", title=f"Relative error of the gradient, {args.tokens} tokens")
    for name, kind in itertools.product(METHODS, ("token", "batch")):
        table.add_column(f"{name}\n{kind}", justify="right")
    for (tau, count), group in itertools.groupby(records, key=lambda record: (record["tau"], record["count"])):
        table.add_row(
            f"{tau:g}", str(count), *(f"{record[kind]:.3f}" for record in group for kind in ("token", "batch"))
        )
    Console().print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=1))


if __name__ == "__main__":
    main()
