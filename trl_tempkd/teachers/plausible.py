# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which numbers can be a distribution over a vocabulary, or a part of one."""

import math

import numpy as np


NOTHING = -1000.0  # vLLM sends -9999 for a probability of zero
_NEARLY_ALL = 0.9  # of the tokens, where the rest may be ones that a model never says


def log_mass(values: np.ndarray) -> np.ndarray:
    """The logarithm of the mass that each row of log-probabilities has."""
    values = values.astype(np.float64)
    largest = values.max(-1, keepdims=True)
    return (largest + np.log(np.exp(values - largest).sum(-1, keepdims=True)))[..., 0]


def rounding(values: np.ndarray) -> float:
    """What numbers are off by, at most, that were rounded to bf16. 0 if these weren't."""
    said = np.where(values <= NOTHING, 0, values).astype(np.float32)
    return 0.0 if (said.view(np.uint32) & 0xFFFF).any() else float(np.abs(said).mean()) / 256


def is_mass(values: np.ndarray, vocabulary: int) -> bool:
    """
    Whether rows may be the log-probabilities of the k likeliest of so many tokens: their mass is 1 at most, and the
    others, none of which is likelier than the k-th, can make up what it lacks.
    """
    mass, tolerance = log_mass(values), 0.01 + rounding(values)
    if values.shape[-1] >= vocabulary:
        return bool((np.abs(mass) <= tolerance).all())
    rest = math.log(vocabulary - values.shape[-1]) + values.min(-1).astype(np.float64)
    return bool((mass <= tolerance).all() and (np.logaddexp(mass, rest) >= -0.1).all())


def is_whole(ids: np.ndarray) -> bool:
    """Whether each row has every id from 0 on. None comes twice."""
    return bool((ids.max(-1) == ids.shape[-1] - 1).all())


def never_said(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    The tokens without a probability in each row, as padding of the vocabulary is, of shape `(V,)`.

    Args:
        ids, values (`numpy.ndarray` of shape `(N, V)`):
            Whole rows.
    """
    of_token = np.empty(values.shape, bool)
    np.put_along_axis(of_token, ids, values <= NOTHING, -1)
    return np.all(of_token, axis=0)


def floored(ids: np.ndarray, values: np.ndarray, silent: np.ndarray | None, tokens: int) -> bool:
    """
    Whether rows have a floor: one number for many tokens that have others in truth, as where a server knows 20 and
    fills the row up.

    Args:
        ids, values (`numpy.ndarray` of shape `(N, k)`):
            The rows.
        silent (`numpy.ndarray` of shape `(V,)`, *optional*):
            With whole rows, the tokens that the teacher never says, which are no floor.
        tokens (`int`):
            How many tokens the tokenizer has.
    """
    kept = np.ones(values.shape, bool) if silent is None else ~silent[ids]
    some = np.maximum(kept.sum(-1), 1)
    nothing = (kept & (values <= NOTHING)).sum(-1)
    found = nothing > 0.01 * some
    if silent is None:  # of nearly all tokens some may be ones that are never said
        found &= values.shape[-1] - nothing < _NEARLY_ALL * tokens
    # The same without a -9999: the least number, many times. In a whole row, what was never trained on has one too
    least = np.where(kept, values, np.inf).min(-1, keepdims=True)
    lowest = kept & (values == least)
    many = np.maximum(5, some * (0.1 if silent is None else 0.5))
    for row in np.flatnonzero(~found & (lowest.sum(-1) >= many) & (values.max(-1) > least[:, 0] + 0.1)):
        # Where numbers were rounded, others are the same too
        others = np.unique(values[row, kept[row] & ~lowest[row]], return_counts=True)[1]
        found[row] = lowest[row].sum() >= 5 * others.max()
    return bool(found.mean() > 0.1)


def cut_off(values: np.ndarray, mass: np.ndarray, tokens: int) -> bool:
    """
    Whether the k likeliest log-probabilities have the whole mass, though the last of them is far from nothing: all
    others together would be a hundredth of that one. So it is where the k were made to sum to 1.

    Args:
        values (`numpy.ndarray` of shape `(N, k)`):
            The rows.
        mass (`numpy.ndarray` of shape `(N,)`):
            The logarithm of what each weighs as it was sent.
        tokens (`int`):
            How many tokens the tokenizer has.
    """
    if values.shape[-1] >= _NEARLY_ALL * tokens:
        return False
    rest, last = 1 - np.exp(np.minimum(mass, 1)), np.exp(np.minimum(values.min(-1), 0))
    tell = last > 1e-5  # what fp32 can tell of the rest is 1e-7
    return bool(tell.sum() >= 4 and (rest[tell] < last[tell] / 100).mean() >= _NEARLY_ALL)
