# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a server's numbers are, found out by asking, before anything is trained on them."""

from dataclasses import dataclass, field

import numpy as np
from accelerate.logging import get_logger
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from .address import plain
from .client import Answer, CompletionsClient
from .plausible import NOTHING, cut_off, floored, is_mass, is_whole, log_mass, never_said, rounding


logger = get_logger(__name__)

# Of the difference that a temperature of 2 would make. A server's own noise (batches of other shapes, bf16) is less,
# but for that of a few numbers. Where nothing seems to change, nothing is asked at another temperature.
_TOLERANCE, _UNCHANGED = 0.1, 0.3
_TEXT = "The temperature of a distribution says how far it spreads over what is less likely."
_RAW = "Start it without logits processors and default sampling parameters, with vLLM's --logprobs-mode raw_logprobs."


@dataclass(frozen=True)
class Served:
    """
    What a server gives.

    Attributes:
        width (`int`):
            How many numbers for each position.
        whole (`bool`):
            Whether that is the whole vocabulary.
        normalised (`bool`):
            Whether they are log-probabilities, and not logits.
        tempered (`bool`):
            Whether the temperature of the request changes them.
        own_first (`bool`):
            Whether the prompt's own token comes first in each row.
        tokens (`int`):
            How many tokens the tokenizer has.
        silent (`numpy.ndarray` of shape `(V,)`, *optional*):
            Which tokens the teacher never says, where it gives whole rows.
    """

    width: int
    whole: bool
    normalised: bool
    tempered: bool
    own_first: bool = False
    tokens: int = 0
    silent: np.ndarray | None = field(default=None, repr=False, compare=False)

    def describe(self) -> str:
        what = "log-probabilities" if self.normalised else "logits"
        how_many = f"the {what} of all {self.width} tokens" if self.whole else f"the {self.width} largest {what}"
        effect = "changes them; 1 is asked for" if self.tempered else "doesn't change them"
        return f"{how_many} at each position; the temperature of a request {effect}"

    def misfit(self, answer: Answer, vocabulary: int) -> str | None:
        """What is wrong with an answer that isn't of the same kind, or can't be the teacher's."""
        if answer.ids.shape[-1] != self.width:
            return f"{answer.ids.shape[-1]} numbers at each position"
        if is_whole(answer.ids) != self.whole:
            return "those of other tokens"
        if not self.whole and answer.ids.max() >= vocabulary:
            return f"a number for token {answer.ids.max()}, where the student has {vocabulary} tokens"
        if floored(answer.ids, answer.values, self.silent, self.tokens):
            return "the same number for many tokens of a row, a floor"
        if self.normalised and not is_mass(answer.values, self.width if self.whole else vocabulary):
            masses = np.exp(np.clip(log_mass(answer.values), -99, 99))
            return f"numbers whose mass, from {masses.min():.3g} to {masses.max():.3g}, isn't that of probabilities"
        if self.own_first and not answer.own_first:
            return "rows in which another token than the prompt's own comes first, as if they were of other positions"
        return None


def probe(client: CompletionsClient, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Served:
    """
    Find out what a server gives, and refuse what can't be the teacher's distribution.

    Two texts are asked about which part at one token, at temperatures 1 and 2. Up to there they say what the
    temperature does, and after it, at which row a token begins to count.

    Args:
        client ([`CompletionsClient`]):
            Asks it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student and of the data.
        vocabulary (`int`):
            Size of the student's vocabulary.

    Raises:
        `ValueError`: If the server has another tokenizer, or its numbers follow no rule that is known here.
        [`TeacherServerError`]: If it doesn't answer.
    """
    tokens = tokenizer(_TEXT, add_special_tokens=False)["input_ids"][:32]
    tokens = [*tokens, *range(len(tokenizer))][: max(len(tokens), 16)]  # it may know no English
    at = 2 * len(tokens) // 3
    other = next((token for token in tokens if token != tokens[at]), (tokens[at] + 1) % len(tokenizer))
    requests = [client.ask(tokens, 1.0), client.ask([*tokens[:at], other, *tokens[at + 1 :]], 2.0)]
    one, two = (request.result() for request in requests)
    _check_tokens(client, one, tokenizer, vocabulary)
    whole, width = is_whole(one.ids), one.ids.shape[-1]
    if two.ids.shape[-1] != width or is_whole(two.ids) != whole:
        raise UsageError(
            f"The server {client.url} gives {width} numbers at each position for one prompt, and for another "
            f"{two.ids.shape[-1]} or those of other tokens. Start it so that it gives as many as are asked for "
            "(vLLM's --max-logprobs)."
        )
    silent = never_said(one.ids, one.values) if whole else None
    for answer in (one, two):
        _check_floor(client, answer, silent, len(tokenizer))
    tempered = _tempered(client, one, two, at - 2)
    _check_order(client, one, two, at, tempered)
    normalised = is_mass(one.values, width if whole else vocabulary)
    _warn_of_masses(client, one, whole, normalised, len(tokenizer))
    return Served(width, whole, normalised, tempered, one.own_first and two.own_first, len(tokenizer), silent)


def _check_tokens(
    client: CompletionsClient, answer: Answer, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    # A character may be cut in two. A teacher's padding may be longer
    theirs = {
        token: text
        for token, text in answer.texts.items()
        if "\N{REPLACEMENT CHARACTER}" not in text and token < vocabulary
    }
    differing = [token for token, text in sorted(theirs.items()) if tokenizer.decode([token]).strip() != text.strip()]
    problem = None
    if not is_whole(answer.ids) and answer.ids.max() >= vocabulary:
        problem = f"the student has {vocabulary} tokens, and the server gives a number for token {answer.ids.max()}"
    elif is_whole(answer.ids) and max(tokenizer.get_vocab().values()) >= answer.ids.shape[-1]:
        problem = f"the tokenizer has {len(tokenizer)} tokens, the teacher's vocabulary {answer.ids.shape[-1]}"
    elif len(differing) > len(theirs) / 10:  # some print their special tokens otherwise
        first = differing[0]
        problem = (
            f"{len(differing)} of {len(theirs)} ids mean different tokens, the first being {first}: "
            f"{tokenizer.decode([first])!r} to the student, {theirs[first][:50]!r} to the server"
        )
    if problem is not None:
        raise UsageError(
            f"The student and the teacher that {client.url} serves ({plain(client.model)}) need the same tokenizer, "
            f"but {problem}. Serve a teacher of the student's family."
        )


def _check_floor(client: CompletionsClient, answer: Answer, silent: np.ndarray | None, tokens: int) -> None:
    if not floored(answer.ids, answer.values, silent, tokens):
        return
    real = int((answer.values > answer.values.min(-1, keepdims=True)).sum(-1).min())
    raise UsageError(
        f"The server {client.url} gives {answer.ids.shape[-1]} numbers at each position, but has the teacher's own "
        f"for as few as {real} of them, and the same one, {answer.values.min():g}, for the others: a floor, with "
        "which the tail of the distribution is lost. Ask for those that it knows (`teacher_server_logprobs` "
        f"{max(real, 2)}), or let it give all. {_RAW}"
    )


def _tempered(client: CompletionsClient, one: Answer, two: Answer, rows: int) -> bool:
    """Whether so many rows at temperature 2 differ from those at 1 as they should, or not at all."""
    unchanged, halved, expected = [], [], []
    for ids_1, values_1, ids_2, values_2 in zip(
        one.ids[:rows], one.values[:rows], two.ids[:rows], two.values[:rows], strict=True
    ):
        _, at_1, at_2 = np.intersect1d(ids_1, ids_2, return_indices=True)
        a, b = values_1[at_1].astype(np.float64), values_2[at_2].astype(np.float64)
        a, b = a[(a > NOTHING) & (b > NOTHING)], b[(a > NOTHING) & (b > NOTHING)]
        if len(a) > 1:
            unchanged.append(np.abs(b - a).mean())
            # up to a constant, which the partition function makes
            a, b = a - a.mean(), b - b.mean()
            halved.append(np.abs(b - a / 2).mean())
            expected.append(np.abs(a / 2).mean())
    if sum(unchanged) <= _UNCHANGED * sum(expected):
        return False
    if sum(halved) <= _TOLERANCE * sum(expected) + rounding(two.values) * len(halved):
        return True
    raise UsageError(
        f"The server {client.url} gives other log-probabilities for the same prompt at another temperature, but not "
        f"those of that temperature (off by {sum(halved) / sum(expected):.0%}), so it isn't known what they are. "
        f"{_RAW}"
    )


def _check_order(client: CompletionsClient, one: Answer, two: Answer, at: int, tempered: bool) -> None:
    """
    Refuse rows of other positions. The texts differ in the token `at`, of which row `at` (that of the token after it)
    must be the first to know. So it is with every causal model, however good it is.
    """
    if np.ptp(one.values, axis=-1).max() < 0.1:
        return  # the rows of a model that knows nothing are the same wherever they stand
    p, q = _shares(one.values, 2 if tempered else 1), _shares(two.values, 1)
    least, most = np.array([_distances(*row) for row in zip(one.ids, p, two.ids, q, strict=True)]).T
    if most[at:].max() < 1e-4:
        raise UsageError(
            f"The server {client.url} gives the same numbers for two prompts that differ in their token {at + 1}, so "
            "they aren't the teacher's about a prompt. Look at what answers there: a cache, or another program?"
        )
    noise, effect = least[: at - 2].max(), least[at - 2 :].max()
    sure = np.sqrt(max(noise, effect / 100) * effect)  # between the two
    if least[at - 2 : at].max() > sure:
        place = at - 2 + int(np.argmax(least[at - 2 : at] > sure))
    elif most[at] < effect / 10 and least[at:].max() > sure:
        place = at + int(np.argmax(least[at:] > sure))
    else:
        return
    way = "later" if place < at else "earlier"
    raise UsageError(
        f"The server {client.url} gives rows of other positions: where that of a token should be stands the one "
        f"{abs(place - at)} {way}, since another token at place {at} changes the rows from that of token {place + 1} "
        f"on, and not from that of token {at + 1} on. Use a server whose row t is the distribution of token t, as "
        "vLLM's is."
    )


def _shares(values: np.ndarray, tau: float) -> np.ndarray:
    values = values.astype(np.float64) / tau
    shares = np.exp(values - values.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _distances(ids_p: np.ndarray, p: np.ndarray, ids_q: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """
    The total variation distance of two rows, at least and at most: what only one of them has may weigh as much in the
    other as its last one, or nothing.
    """
    _, at_p, at_q = np.intersect1d(ids_p, ids_q, return_indices=True)
    common = np.abs(p[at_p] - q[at_q]).sum()
    p_alone, q_alone = np.delete(p, at_p), np.delete(q, at_q)
    least = np.maximum(p_alone - q.min(), 0).sum() + np.maximum(q_alone - p.min(), 0).sum()
    return (common + least) / 2, (common + p_alone.sum() + q_alone.sum()) / 2


def _warn_of_masses(client: CompletionsClient, answer: Answer, whole: bool, normalised: bool, tokens: int) -> None:
    mass, width = log_mass(answer.values), answer.ids.shape[-1]
    if whole and not normalised and (np.abs(mass) < 1).all():
        low, high = np.exp([mass.min(), mass.max()])
        logger.warning(
            f"What {client.url} gives of all {width} tokens looks like log-probabilities, but has a mass from "
            f"{low:.3g} to {high:.3g} in place of 1. It is taken for logits, and normalised. {_RAW}"
        )
    if not whole and normalised and cut_off(answer.values, answer.mass, tokens):
        logger.warning(
            f"The {width} likeliest tokens that {client.url} gives have the whole mass, though the last of them has "
            f"{np.exp(np.median(answer.values.min(-1))):.2g} and the others must have some: the numbers look as if "
            f"they were made to sum to 1, and are another distribution than the teacher's. {_RAW}"
        )
