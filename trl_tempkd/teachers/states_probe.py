# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Whether a server's last hidden states are those of the teacher whose head is at hand, found out by asking."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from accelerate.logging import get_logger
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..heads import Head
from .address import plain
from .client import CompletionsClient, TeacherServerError
from .pooling import DTYPES, ENCODINGS, START, PooledStates


logger = get_logger(__name__)

_TEXT = (
    "The temperature of a distribution says how far it spreads over what is less likely. When water is heated, it "
    "begins to boil, and the steam rises into the air. A student who listens to the teacher learns more than one who "
    "reads the same book alone, because the teacher knows which of the answers are almost right. Once upon a time "
    "there was a little girl who lived in a small house near the forest with her mother and her father."
)
_LONGEST = 128  # tokens of it
_MARK = 4  # tokens by whose states the teacher is recognised in each answer
# Of the size of a state, what it may differ by between two answers: batches of other shapes, bf16, dynamic fp8
NOISE = 0.1
# Nats above those of a uniform guess, and what the right order of the text must be worth, for a head that is doubted
_WORSE, _MUCH_WORSE, _WORTH = 0.3, 4.0, 0.3
# Of the lengths of a head's rows, squared and in units of their mean: H times this is 2 for normal numbers
_NOISE_VARIANCE = 4.0


@dataclass(frozen=True)
class ServedStates:
    """
    What a server of last hidden states gives.

    Attributes:
        dtype (`str`):
            The smallest that has them exactly.
        encoding (`str`):
            How they are sent.
        hidden_size (`int`):
            How large each is.
        cross_entropy (`float`):
            Of a known text under server and head, in nats per token.
        mark (`list[int]`):
            The first tokens of that text.
        marked (`torch.Tensor` of shape `(M, H)`):
            Their states.
    """

    dtype: str
    encoding: str
    hidden_size: int
    cross_entropy: float
    mark: list[int] = field(repr=False)
    marked: torch.Tensor = field(repr=False, compare=False)

    def describe(self) -> str:
        return f"last hidden states of size {self.hidden_size} in {self.dtype}"

    def misfit(self, marked: torch.Tensor) -> str | None:
        """What is wrong with the states of the mark, where they are another teacher's."""
        off = _distance(self.marked, marked).max().item()
        return f"other ones for the same tokens (off by {off:.0%}), another teacher's" if off > NOISE else None


def probe(
    client: CompletionsClient,
    encoding: str,
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: str,
    positions: int | None = None,
) -> ServedStates:
    """
    Find out what a server gives, and refuse what can't be the states that the head belongs to.

    A known text is asked about twice, and once with another token in it: the same must come for the same, and the
    other token must change its own state and those after it.

    Args:
        client ([`CompletionsClient`]):
            Asks it.
        encoding (`str`):
            How the server sends states.
        head ([`Head`]):
            Read from the checkpoint.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student and of the data.
        checkpoint (`str`):
            Name of the checkpoint, for messages.
        positions (`int`, *optional*):
            Tokens that a text may have.

    Raises:
        `ValueError`: If they aren't the teacher's.
        [`TeacherServerError`]: If the server doesn't answer, or isn't of this kind.
    """
    tokens = _text(tokenizer, min(len(head.weight), len(tokenizer)), positions)
    at = 2 * len(tokens) // 3
    other = next((token for token in tokens if token != tokens[at]), 0)
    changed = [*tokens[:at], other, *tokens[at + 1 :]]
    requests = [_ask(client, encoding, text, tokens[:_MARK]) for text in (tokens, tokens, changed)]
    (first, marked), (second, _), (third, _) = (request.result() for request in requests)
    gives = f"The server {client.url} ({plain(client.model)}) gives"
    if first.shape[1] != head.weight.shape[1]:
        raise UsageError(
            f"{gives} last hidden states of size {first.shape[1]}, and the head of {checkpoint} takes "
            f"{head.weight.shape[1]}. Let `teacher_model_name_or_path` name the checkpoint that the server has loaded."
        )
    if (first.norm(dim=-1) - 1).abs().max() < 0.01:
        raise UsageError(
            f"{gives} states that are normalised to length 1, from which no logits follow: start it with {START}."
        )
    _check_rows(gives, first, second, third, at)
    cross_entropy = _check_head(gives, checkpoint, head, first, tokens)
    dtype = next(name for name, kind in DTYPES.items() if torch.equal(first.to(kind).float(), first))
    return ServedStates(dtype, encoding, first.shape[1], cross_entropy, tokens[:_MARK], marked)


def _text(tokenizer: PreTrainedTokenizerBase, vocabulary: int, positions: int | None) -> list[int]:
    tokens = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    if len(tokens) < 16:  # it may know no English
        tokens = [*tokens, *range(vocabulary)]
    tokens = [token for token in tokens if token < vocabulary][: min(_LONGEST, positions or _LONGEST)]
    if len(tokens) < 2 * _MARK:
        raise UsageError(
            f"`teacher_server_url` takes texts of {positions} tokens at most, which are too few to be trained on: "
            "raise vLLM's --max-model-len."
        )
    return tokens


def _ask(client: CompletionsClient, encoding: str, *texts: Sequence[int]) -> "Future[list[torch.Tensor]]":
    return client.run(PooledStates(client.model, texts, "float32", encoding))


def encoding_of(client: CompletionsClient) -> str:
    """
    The most compact way in which a server sends the states of every token.

    Raises:
        [`TeacherServerError`]: If it doesn't; `refused` if it takes no such request at all.
    """
    for encoding in ENCODINGS[:-1]:
        try:
            _ask(client, encoding, [0, 1]).result()
            return encoding
        except TeacherServerError as error:
            if not error.refused:
                raise
    _ask(client, ENCODINGS[-1], [0, 1]).result()
    return ENCODINGS[-1]


def _distance(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """How far states differ, of their own size, of shape `(T,)`."""
    one, two = one.float(), two.float()
    size = torch.maximum(one.norm(dim=-1), two.norm(dim=-1)).clamp(min=1e-30)
    return (one - two).norm(dim=-1) / size


def _check_rows(gives: str, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor, at: int) -> None:
    noise, change = _distance(first, second).max().item(), _distance(first, third)
    if noise > NOISE:
        raise UsageError(
            f"{gives} other states when it is asked the same again (off by {noise:.0%}): is there dropout in it, or "
            "are there several models behind the address?"
        )
    if change[:at].max() > NOISE:
        raise UsageError(
            f"{gives} states that depend on what comes after them: another token at place {at + 1} changes that of "
            f"place {int((change > NOISE).nonzero()[0]) + 1}. They aren't those of a causal language model: an "
            "embedding model attends to both sides."
        )
    if change[at] < max(2 * noise, 1e-4):
        raise UsageError(
            f"{gives} states that don't change with their token (place {at + 1}), so they aren't the teacher's about "
            "a text, or are those of other positions."
        )


def _is_noise(weight: torch.Tensor) -> bool:
    """
    Whether a head is as it was initialised: its rows are as long as those of independent numbers, to which a trained
    one adds a multiple, since frequent tokens get other lengths than rare ones.
    """
    squares = weight[:: max(1, len(weight) // 4096)].double().square().sum(-1)
    squares = squares[squares > 0]  # that of the padding
    return len(squares) < 2 or bool(squares.var() < _NOISE_VARIANCE * squares.mean() ** 2 / weight.shape[1])


def _check_head(gives: str, checkpoint: str, head: Head, states: torch.Tensor, tokens: list[int]) -> float:
    """
    The cross-entropy of the text. Under a wrong head it is that of a guess or worse, and the order of the text is
    worth nothing: each token is as likely after any of the states. So it is with the right head of a model that was
    never trained, which its head shows.
    """
    target = torch.tensor(tokens[1:], device=head.weight.device)
    logits = head.logits(states[:-1].to(head.weight.device)).float()
    found = nn.functional.cross_entropy(logits, target).item()
    shuffled = nn.functional.cross_entropy(logits.roll(len(logits) // 3, 0), target).item()
    guess = math.log(len(head.weight))
    problem = f"{gives} states under which, with the head of {checkpoint}, English costs {found:.2f} nats a token"
    wrong = not found < guess + _MUCH_WORSE or (found > guess + _WORSE and shuffled - found < _WORTH)
    if wrong and not _is_noise(head.weight):
        raise UsageError(
            f"{problem}, where a guess costs {guess:.2f}: the head isn't that of the served model, or the states are "
            "those before its last norm. Let `teacher_model_name_or_path` name the checkpoint that the server has "
            f"loaded, and start it with {START}."
        )
    if found > guess - _WORTH:
        logger.warning(
            f"{problem}, no better than a guess ({guess:.2f}): is the teacher trained, is it of this text's language, "
            f"and is the head of {checkpoint} its own?"
        )
    return found
