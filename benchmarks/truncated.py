# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a cache costs in the loss and in the gradient: the digits of hidden states, the bias of the k largest logits, and
the noise of k drawn tokens.

    python benchmarks/truncated.py                                  # the built-in pair, 2048 held-out tokens
    python benchmarks/truncated.py --counts 16 256 --taus 1 8 --output truncated.json

Errors are relative to forward KL from whole rows of a teacher in fp32, both sides at tau. `loss` is its mean over all
tokens; `token` are the gradients in the last hidden states, as norms, and `batch` is that in the student's head, which
is a mean over all tokens: there noise averages out, the more the more tokens there are, and bias doesn't. Draws are
root mean squares over `--rounds`. As many `independent` draws are beside those of the cache, which draw no token
twice.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor


KINDS = ("loss", "token", "batch")


def load(n_tokens: int) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """What the loss takes of the student, and the teacher's hidden states, head and logits, for held-out tokens."""
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
    head = read_head(models[1])
    own = {"student_hidden": student.requires_grad_(), "student_weight": weight.requires_grad_()}
    return own, teacher, head.weight.detach(), head.logits(teacher).detach()


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
    log_p = (v_NV / tau).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    return Sampled((tau,), v_NV.shape[-1], ids[:, None], weights[:, None], entropy)


METHODS: dict[str, Callable[[Tensor, int, float], object]] = {
    "top-k": top_k,
    "drawn": sampled,
    "independent": independent,
}


def gradients(student: dict[str, Tensor], tau: float, target: object, weight: Tensor | None = None) -> list[Tensor]:
    """The loss, and its gradients in the student's hidden states and head."""
    from trl_tempkd import chunked_kd_loss

    temperatures = {"student_temperature": tau, "teacher_temperature": tau}
    loss = chunked_kd_loss(**student, teacher_hidden=target, teacher_weight=weight, **temperatures).loss
    return [loss.detach(), *torch.autograd.grad(loss, tuple(student.values()))]


def errors(runs: list[list[Tensor]], whole: list[Tensor]) -> dict[str, float]:
    """Relative errors, as root mean squares over runs."""
    squares = [
        [((own - exact).norm() / exact.norm()).square() for own, exact in zip(r, whole, strict=True)] for r in runs
    ]
    return dict(zip(KINDS, torch.tensor(squares).mean(0).sqrt().tolist(), strict=True))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each temperature, number of tokens and method."""
    torch.manual_seed(0)
    student, hidden, weight, v_NV = load(args.tokens)
    records = []
    for tau in args.taus:
        whole = gradients(student, tau, hidden, weight)
        half = gradients(student, tau, hidden.bfloat16().float(), weight)  # fp32 loses nothing
        records.append({"tau": tau, "count": None, "method": "hidden bf16", **errors([half], whole)})
        for count, (name, method) in itertools.product(args.counts, METHODS.items()):
            rounds = 1 if name == "top-k" else args.rounds
            runs = [gradients(student, tau, method(v_NV, count, tau)) for _ in range(rounds)]
            records.append({"tau": tau, "count": count, "method": name, **errors(runs, whole)})
    return records


def tables(records: list[dict[str, Any]], tokens: int) -> Iterator[Table]:
    """One of hidden states, one of some tokens."""
    for some in (False, True):
        own = [record for record in records if (record["count"] is not None) == some]
        names = list(dict.fromkeys(record["method"] for record in own))
        table = Table("tau", *(["tokens"] if some else []), title=f"Relative errors, {tokens} positions")
        for name, kind in itertools.product(names, KINDS):
            table.add_column(f"{name}\n{kind}", justify="right")
        for (tau, count), group in itertools.groupby(own, key=lambda record: (record["tau"], record["count"])):
            cells = [f"{record[kind]:.3f}" if some else f"{record[kind]:.1e}" for record in group for kind in KINDS]
            table.add_row(f"{tau:g}", *([str(count)] if some else []), *cells)
        yield table


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
    for table in tables(records, args.tokens):
        Console(width=140).print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=1))


if __name__ == "__main__":
    main()
