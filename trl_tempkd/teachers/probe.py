# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a server's numbers are, found out by asking, before anything is trained on them."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from .client import Answer, CompletionsClient, is_mass


# Of the difference that a temperature of 2 would make. A server's own noise (batches of other shapes, bf16) is less.
_TOLERANCE = 0.1
_NOTHING = -1000.0  # vLLM sends -9999 for a probability of zero
_TEXT = "The temperature of a distribution says how far it spreads over what is less likely."


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
    """

    width: int
    whole: bool
    normalised: bool
    tempered: bool

    def describe(self) -> str:
        what = "log-probabilities" if self.normalised else "logits"
        how_many = f"the {what} of all {self.width} tokens" if self.whole else f"the {self.width} largest {what}"
        effect = "changes them; 1 is asked for" if self.tempered else "doesn't change them"
        return f"{how_many} at each position; the temperature of a request {effect}"

    def fits(self, answer: Answer, vocabulary: int) -> bool:
        """Whether an answer is of the same kind."""
        if answer.ids.shape[-1] != self.width or is_whole(answer.ids) != self.whole:
            return False
        if not self.whole and answer.ids.max() >= vocabulary:
            return False
        return not self.normalised or is_mass(answer.values, self.width if self.whole else vocabulary)


def probe(client: CompletionsClient, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Served:
    """
    Find out what a server gives.

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
    requests = [client.ask(tokens, temperature) for temperature in (1.0, 2.0)]
    one, two = (request.result() for request in requests)
    _check_tokens(client, one, tokenizer)
    whole, width = is_whole(one.ids), one.ids.shape[-1]
    return Served(width, whole, is_mass(one.values, width if whole else vocabulary), _tempered(client, one, two))


def is_whole(ids: np.ndarray) -> bool:
    """Whether each row has every id from 0 on. None comes twice."""
    return bool((ids.max(-1) == ids.shape[-1] - 1).all())


def _check_tokens(client: CompletionsClient, answer: Answer, tokenizer: PreTrainedTokenizerBase) -> None:
    theirs = {token: text for token, text in answer.texts.items() if "\N{REPLACEMENT CHARACTER}" not in text}
    differing = [token for token, text in sorted(theirs.items()) if tokenizer.decode([token]).strip() != text.strip()]
    problem = None
    if is_whole(answer.ids) and max(tokenizer.get_vocab().values()) >= answer.ids.shape[-1]:
        problem = f"the tokenizer has {len(tokenizer)} tokens, the teacher's vocabulary {answer.ids.shape[-1]}"
    elif len(differing) > len(theirs) / 10:  # some print their special tokens otherwise
        first = differing[0]
        problem = (
            f"{len(differing)} of {len(theirs)} ids mean different tokens, the first being {first}: "
            f"{tokenizer.decode([first])!r} to the student, {theirs[first]!r} to the server"
        )
    if problem is not None:
        raise UsageError(
            f"The student and the teacher that {client.url} serves ({client.model}) need the same tokenizer, but "
            f"{problem}. Serve a teacher of the student's family."
        )


def _tempered(client: CompletionsClient, one: Answer, two: Answer) -> bool:
    """Whether what was asked for at temperature 2 differs from that at 1 as it should, or not at all."""
    unchanged, halved, expected = [], [], []
    for ids_1, values_1, ids_2, values_2 in zip(one.ids, one.values, two.ids, two.values, strict=True):
        _, at_1, at_2 = np.intersect1d(ids_1, ids_2, return_indices=True)
        a, b = values_1[at_1].astype(np.float64), values_2[at_2].astype(np.float64)
        a, b = a[(a > _NOTHING) & (b > _NOTHING)], b[(a > _NOTHING) & (b > _NOTHING)]
        if len(a) > 1:
            unchanged.append(np.abs(b - a).mean())
            # up to a constant, which the partition function makes
            a, b = a - a.mean(), b - b.mean()
            halved.append(np.abs(b - a / 2).mean())
            expected.append(np.abs(a / 2).mean())
    limit = _TOLERANCE * sum(expected)
    if not expected or sum(unchanged) <= limit:
        return False
    if sum(halved) <= limit:
        return True
    raise UsageError(
        f"The server {client.url} gives other log-probabilities for the same prompt at another temperature, but not "
        f"those of that temperature (off by {sum(halved) / sum(expected):.0%}), so it isn't known what they are. "
        "Start it without logits processors and default sampling parameters, with vLLM's --logprobs-mode raw_logprobs."
    )
