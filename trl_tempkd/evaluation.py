# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Generate from a model, score what it says, and measure how far it is from its teacher on a data set."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .heads import backbone, gathered_head
from .losses import chunked_kd_loss
from .rollouts.sampling import by_length, complete, stop_tokens


@contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Context in which models are in evaluation mode, each back in its own mode afterwards."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 10,
    batch_size: int = 64,
    progress: bool = True,
) -> list[str]:
    """
    Complete prompts, each until the end token.

    The sampling settings are these alone: those of the model's own generation config don't count, so that models of
    one comparison are sampled alike.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            Prompts.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest completion in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature, 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of the probability mass to sample from.
        seed (`int`, *optional*, defaults to `10`):
            Seed of the sampling. The random state outside is left as it is.
        batch_size (`int`, *optional*, defaults to `64`):
            Prompts per batch. It decides which random numbers a prompt gets.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over the prompts.

    Returns:
        `list[str]`: The completions without special tokens, in the order of the prompts.
    """
    if temperature < 0:
        raise ValueError(f"`temperature` must be 0 (greedy) or positive, got {temperature}.")
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    config = GenerationConfig(
        **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, **sampling},
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=pad,
        use_cache=True,  # trainers turn it off in the model's config
    )
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    completions = [""] * len(ids)
    with (
        evaluating(model),
        torch.random.fork_rng(),
        tqdm(total=len(ids), desc="Generating", unit="row", disable=not progress) as bar,
    ):
        torch.manual_seed(seed)
        for batch in by_length([len(row) for row in ids], batch_size):
            for i, row in zip(batch, complete(model, [ids[j] for j in batch], config, model.device), strict=True):
                text = [token for token in row if token not in stops]
                completions[i] = tokenizer.decode(text, skip_special_tokens=True)
            bar.update(len(batch))
    return completions


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[float]:
    """
    ROUGE-L of each prediction, as MiniLLM counts it: F-measure on stemmed words, best over the references, times 100.
    What papers report is the mean.

    Args:
        predictions (`Sequence[str]`):
            Texts to score.
        references (`Sequence[str]` or `Sequence[Sequence[str]]`):
            For each prediction its reference or references.

    Returns:
        `list[float]`: For each prediction its score, from 0 to 100.
    """
    if len(predictions) != len(references):
        raise ValueError(f"Every prediction needs its references, got {len(predictions)} and {len(references)}.")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    targets = ((p, [r] if isinstance(r, str) else list(r)) for p, r in pairs)
    return [100 * scorer.score_multi(r, p)["rougeL"].fmeasure for p, r in targets]


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a mean over rows. Given the differences between two models on the same rows, it
    is the interval of the paired difference.

    Args:
        values (`Sequence[float]`):
            One value per row.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the resampled means inside the interval.
        resamples (`int`, *optional*, defaults to `10_000`):
            How often the rows are drawn again, with replacement.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the drawing.

    Returns:
        `tuple[float, float]`: Lower and upper end.
    """
    rng, rows = np.random.default_rng(seed), np.asarray(values, dtype=float)
    # Each resample is a number of copies per row, which spares a table of `resamples` by rows of indices into `values`
    copies = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    low, high = np.quantile(copies @ rows / len(rows), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def tokenize(
    dataset: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> list[dict[str, list[int]]]:
    """
    Tokenize prompt-completion rows as [`~trl.SFTTrainer`] does, the loss being on the completion and its end token.

    Args:
        dataset (`Iterable[dict[str, Any]]`):
            Rows with the texts `prompt` and `completion`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        max_length (`int`, *optional*):
            Where to cut the rows off.

    Returns:
        `list[dict[str, list[int]]]`: Rows with `input_ids` and `labels`, the latter -100 in the prompt.
    """
    rows = []
    for row in dataset:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"].removesuffix(tokenizer.eos_token) + tokenizer.eos_token)[
            "input_ids"
        ]
        # Tokens may merge across the boundary: the completion starts where the two differ
        start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        rows.append({"input_ids": ids[:max_length], "labels": ([-100] * start + ids[start:])[:max_length]})
    return rows


def divergence_to_teacher(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    dataset: Iterable[dict[str, Any]],
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, float]:
    """
    Compare a student with its teacher on given text, at temperature 1: what the trainer logs as `eval_kl_tau1` etc.

    Args:
        student ([`~transformers.PreTrainedModel`]):
            Student.
        teacher ([`~transformers.PreTrainedModel`]):
            Teacher, on the same device.
        dataset (`Iterable[dict[str, Any]]`):
            Rows with `input_ids` and `labels`, as [`tokenize`] or a trainer's `eval_dataset` has them.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows per batch.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over the rows.

    Returns:
        `dict[str, float]`: `tokens`, the number of labels; means over them, in nats: `kl_tau1` (KL(p, q) of the
        student q from the teacher p), `ce` (cross-entropy of the student with the labels), `student_entropy`,
        `teacher_entropy`; `agreement`, the share with the same top choice; and `perplexity`, of the student.
    """
    rows = [(list(row["input_ids"]), list(row["labels"])) for row in dataset]
    names = ("kl_tau1", "ce", "student_entropy", "teacher_entropy", "agreement")
    sums, count = dict.fromkeys(names, 0.0), 0
    with (
        evaluating(student, teacher),
        gathered_head(student) as head,
        gathered_head(teacher) as teacher_head,
        tqdm(total=len(rows), desc="Comparing with the teacher", unit="row", disable=not progress) as bar,
    ):
        for batch in by_length([len(ids) for ids, _ in rows], batch_size):
            longest = len(rows[batch[0]][0])
            # Padding stands on the right: causal attention doesn't see it, and its labels are ignored
            ids, labels = (
                torch.tensor([row + [fill] * (longest - len(row)) for row in column], device=student.device)
                for column, fill in (([rows[i][0] for i in batch], 0), ([rows[i][1] for i in batch], -100))
            )
            mask = (torch.arange(longest) < torch.tensor([[len(rows[i][0])] for i in batch])).long().to(ids.device)
            hidden, teacher_hidden = (
                backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
                for model in (student, teacher)
            )
            targets = labels[:, 1:].flatten()
            output = chunked_kd_loss(
                student_hidden=hidden.flatten(0, 1),
                teacher_hidden=teacher_hidden.flatten(0, 1),
                **head.arguments("student"),
                **teacher_head.arguments("teacher"),
                labels=targets,
                metrics=True,
            )
            assert output.metrics is not None
            for name in names:
                sums[name] += output.metrics[name].double().sum().item()
            count += int((targets != -100).sum())
            bar.update(len(batch))
    if not count:
        raise ValueError("The data set has no label to compare at: every label is -100, or it has no rows.")
    means = {name: total / count for name, total in sums.items()}
    return {"tokens": count, **means, "perplexity": math.exp(means["ce"])}
