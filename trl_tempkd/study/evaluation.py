# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Generate from a model, score what it says, and compare it with its teacher on a data set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..chat import text_prompt
from ..errors import UsageError
from ..prompts import tokenize
from ..rollouts.sampling import as_in_use, by_length, complete, longest_prompt, stop_tokens
from ..vision import Processing, read_row
from .bits_per_byte import bits_per_byte
from .metrics import distinct_n, rouge_l, self_bleu
from .to_teacher import PER_TOKEN, compare, compare_pictured, divergence_to_teacher, evaluating


__all__ = [
    "divergence_to_teacher",
    "evaluate_model",
    "evaluating",
    "generate",
    "rouge_l",
    "sample",
    "tokenize",
]

SEEDS = (10, 20, 30, 40, 50)  # MiniLLM's
OF_THE_STUDENT = ("tokens", "ce", "student_entropy", "perplexity", "top_1", "ece")  # these need no teacher


class Completion(NamedTuple):
    """
    What a model said to a prompt.

    Attributes:
        text (`str`): Without special tokens.
        length (`int`): Number of tokens, with the one that stopped it.
        stopped (`bool`): Whether a stop token ended it, rather than the limit of its length.
    """

    text: str
    length: int
    stopped: bool


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 10,
    batch_size: int = 64,
    progress: bool = True,
    pictured: Sequence[dict[str, Any]] | None = None,
    processing: Processing | None = None,
) -> list[Completion]:
    """
    Complete prompts, each until the end token.

    The sampling settings are these alone: those of the model's own generation config don't count, so that models of
    one comparison are sampled alike.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]` or `Sequence[list[int]]`):
            Prompts, as text or as tokens.
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
            Whether to show a progress bar over the prompts where standard error is a terminal.
        pictured (`Sequence[dict[str, Any]]`, *optional*):
            Rows with images that the prompts are of, which are then made of them.
        processing ([`~trl_tempkd.vision.Processing`], *optional*):
            The model's processor, for such rows.

    Returns:
        `list[Completion]`: The completions in the order of the prompts.
    """
    if temperature < 0:
        raise UsageError(f"`temperature` must be 0 (greedy) or positive, got {temperature}.")
    stops = stop_tokens(model, tokenizer)
    # Whatever pads is masked
    pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    markup = [] if processing is None else sorted(processing.markup)
    config = GenerationConfig(
        **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, **sampling},
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=pad,
        suppress_tokens=markup or None,
        use_cache=True,  # trainers turn it off in the model's config
    )
    ids = [text_prompt(prompt, tokenizer) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    completions = [Completion("", 0, False)] * len(ids)
    with (
        torch.no_grad(),
        as_in_use(model) as base,
        torch.random.fork_rng(),
        tqdm(total=len(ids), desc="Generating", unit="row", disable=None if progress else True) as bar,
    ):
        torch.manual_seed(seed)
        for batch in by_length([len(row) for row in ids], batch_size):
            pictures = None
            if pictured is not None and processing is not None:
                pictures = (processing, [read_row(pictured[j]).question for j in batch])
            said = complete(base, [ids[j] for j in batch], config, model.device, pictures=pictures)
            for i, row in zip(batch, said, strict=True):
                text = tokenizer.decode([token for token in row if token not in stops], skip_special_tokens=True)
                completions[i] = Completion(text, len(row), row[-1] in stops)
            bar.update(len(batch))
    return completions


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], **sampling: Any
) -> list[str]:
    """The texts alone of [`sample`], which has the same arguments."""
    return [completion.text for completion in sample(model, tokenizer, prompts, **sampling)]


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    teacher: PreTrainedModel | None = None,
    seeds: Sequence[int] = SEEDS,
    greedy: bool = True,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    results: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda results: None,
    progress: bool = True,
    processing: Processing | None = None,
    of_teacher: Processing | None = None,
) -> dict[str, Any]:
    """
    Compare a model with its teacher on the references, then generate once per seed and once greedily, and score.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows (`Sequence[dict[str, Any]]`):
            What [`~trl_tempkd.prompts.read_rows`] has read.
        teacher ([`~transformers.PreTrainedModel`], *optional*):
            Teacher, on the same device. Without one there are no divergences.
        seeds, greedy (`Sequence[int]`, `bool`):
            Which runs to make.
        temperature, top_p, max_new_tokens, batch_size:
            As in [`sample`].
        results (`dict[str, Any]`, *optional*):
            Results with the same settings that an earlier call has saved: what they hold isn't run again.
        save (`Callable`, *optional*):
            Called with the results after each part.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.
        processing, of_teacher ([`~trl_tempkd.vision.Processing`], *optional*):
            Of rows with images the model's processor, and the teacher's if it is another.

    Returns:
        `dict[str, Any]`: `rows` (prompts and references), `compared` (means over all tokens, and for each row its
        tokens and means), `runs` (one per seed, the greedy one with `seed` `None`: `scores`, and the same for each
        item with the completions) and `means` (over the sampled runs: `mean` and `std` of each score).
    """
    results = results if results is not None else {}
    results["rows"] = [{name: row[name] for name in ("prompt", "references")} for row in rows]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    with_text = [i for i, row in enumerate(rows) if row["completion"] is not None]
    if with_text and "compared" not in results:
        whole = None
        if processing is not None:
            pictured = [rows[i]["row"] for i in with_text]
            how = (processing, of_teacher, progress)
            scores, by_row = compare_pictured(model, teacher or model, pictured, batch_size, *how)
        else:
            texts = whole = tokenize([{**rows[i], "prompt": rows[i]["prompt"] or ""} for i in with_text], tokenizer)
            if limit:  # cut as the prompts are, at the start
                texts = [{name: column[-limit:] for name, column in text.items()} for text in texts]
            scores, by_row = compare(model, teacher or model, texts, batch_size, progress)
        names = ("tokens", *PER_TOKEN, "perplexity", "top_1", "ece") if teacher else OF_THE_STUDENT
        items: dict[str, list[float | None]] = {name: [None] * len(rows) for name in names if name in by_row}
        for name, column in items.items():
            for i, total, tokens in zip(with_text, by_row[name], by_row["tokens"], strict=True):
                column[i] = total if name == "tokens" else total / tokens if tokens else None
        results["compared"] = {"scores": {name: scores[name] for name in names}, "items": items}
        if whole is not None:
            targets = [sum(label != -100 for label in text["labels"][1:]) for text in whole]
            kept = [count == tokens for count, tokens in zip(targets, by_row["tokens"], strict=True)]
            if (found := bits_per_byte(by_row["ce"], [rows[i]["bytes"] for i in with_text], kept)) is not None:
                results["compared"]["scores"]["bits_per_byte"], own = found
                values = dict(zip(with_text, own, strict=True))
                items["bits_per_byte"] = [values.get(i) for i in range(len(rows))]
        save(results)
    runs = results.setdefault("runs", [])
    wanted: list[int | None] = [*seeds, *([None] if greedy else [])] if rows[0]["prompt"] is not None else []
    prompts: list[list[int]] = []
    if wanted:
        prompts, results["prompts_cut"] = prompt_tokens(model, tokenizer, rows, max_new_tokens)
    for seed in wanted:
        if any(run["seed"] == seed for run in runs):
            continue
        sampling: dict[str, Any] = (
            {"temperature": 0.0} if seed is None else {"temperature": temperature, "top_p": top_p, "seed": seed}
        )
        said = sample(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
            pictured=None if processing is None else [row["row"] for row in rows],
            processing=processing,
            **sampling,
        )
        runs.append({"seed": seed, **score_completions(said, [row["references"] for row in rows])})
        results["means"] = _over_seeds(runs)
        save(results)
    return results


def prompt_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """The prompts' tokens, cut at the start where a completion has no room, as in training; and how many were cut."""
    room = longest_prompt(model, max_new_tokens) if rows and "row" not in rows[0] else None  # images aren't cut
    ids = [text_prompt(row["prompt"], tokenizer, special=not row["templated"]) for row in rows]
    prompts = [row[max(0, len(row) - room) :] if room else row for row in ids]
    return prompts, sum(len(a) < len(b) for a, b in zip(prompts, ids, strict=True))


def score_completions(completions: Sequence[Completion], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """
    Score what a model said to the prompts of a data set.

    Returns:
        `dict[str, Any]`: `scores`: `rouge_l` (where every row has a reference) and `self_bleu` from 0 to 100,
        `distinct_1` to `distinct_4` and `stop_rate` from 0 to 1, `length` in tokens. `items`: of each completion.
    """
    texts = [completion.text for completion in completions]
    items: dict[str, list[Any]] = {"rouge_l": rouge_l(texts, references)} if all(references) else {}
    items["self_bleu"] = self_bleu(texts)
    items["length"] = [completion.length for completion in completions]
    items["stop_rate"] = [float(completion.stopped) for completion in completions]
    scores = {name: float(np.mean(values)) for name, values in items.items()}
    scores |= {f"distinct_{n}": distinct_n(texts, n) for n in range(1, 5)}
    return {"scores": scores, "items": {"completion": texts, **items}}


def _over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    scores = [run["scores"] for run in runs if run["seed"] is not None]
    columns = {name: [score[name] for score in scores] for name in (scores[0] if scores else ())}
    return {
        name: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        for name, values in columns.items()
    }
