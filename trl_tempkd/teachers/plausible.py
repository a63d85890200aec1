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


def _tolerance(values: np.ndarray) -> float:
    """
    What the logarithm of a mass may be off by. Rounded to bf16, log-probabilities are off by up to 1/256 of
    themselves, and that of the uniform distribution over 200,000 tokens is -12.
    """
    digits = np.where(values <= NOTHING, 0, values).astype(np.float32).view(np.uint32)
    return 0.01 if (digits & 0xFFFF).any() else 0.05


def is_mass(values: np.ndarray, vocabulary: int) -> bool:
    """
    Whether rows may be the log-probabilities of the k likeliest of so many tokens: their mass is 1 at most, and the
    others, none of which is likelier than the k-th, can make up what it lacks.
    """
    mass, tolerance = log_mass(values), _tolerance(values)
    if values.shape[-1] >= vocabulary:
        return bool((np.abs(mass) <= tolerance).all())
    rest = math.log(vocabulary - values.shape[-1]) + values.min(-1).astype(np.float64)
    return bool((mass <= tolerance).all() and (np.logaddexp(mass, rest) >= -0.1).all())


def is_whole(ids: np.ndarray) -> bool:
    """Whether each row has every id from 0 on. None comes twice."""
    return bool((ids.max(-1) == ids.shape[-1] - 1).all())


def never_said(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    The tokens that have the least number of each row, as padding of the vocabulary has, of shape `(V,)`.

    Args:
        ids, values (`numpy.ndarray` of shape `(N, V)`):
            Whole rows.
    """
    least = (values == values.min(-1, keepdims=True)) | (values <= NOTHING)
    of_token = np.empty_like(least)
    np.put_along_axis(of_token, ids, least, -1)
    return of_token.all(0) & (values.max() > values.min())


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
    least = np.where(kept, values, np.inf).min(-1, keepdims=True)
    gone, lowest = kept & (values <= NOTHING), kept & (values == least)
    some = np.maximum(kept.sum(-1), 1)
    found = gone.sum(-1) > 0.01 * some
    if silent is None:  # of nearly all tokens some may be ones that are never said
        found &= values.shape[-1] - gone.sum(-1) < _NEARLY_ALL * tokens
    # Rounded numbers are often the same too, but then all are, and those of the ends least often
    spread = np.where(kept, values, -np.inf).max(-1) - least[:, 0]
    for row in np.flatnonzero(~found & (lowest.sum(-1) >= np.maximum(3, some / 10)) & (spread > 1)):
        others = np.unique(values[row, kept[row] & ~lowest[row]], return_counts=True)[1]
        found[row] = lowest[row].sum() >= 3 * others.max()
    return bool(found.mean() > 0.1)


def cut_off(values: np.ndarray, tokens: int) -> bool:
    """
    Whether the k likeliest log-probabilities have the whole mass, though the last of them is far from nothing: the
    others would have to be a hundredth of it all together. So it is where the k were made to sum to 1.
    """
    if values.shape[-1] >= _NEARLY_ALL * tokens:
        return False
    rest, last = 1 - np.exp(np.minimum(log_mass(values), 1)), np.exp(np.minimum(values.min(-1), 0))
    tell = last > 1e-5  # what fp32 can tell of the rest is 1e-7
    return bool(tell.sum() >= 4 and (rest[tell] < last[tell] / 10).mean() >= _NEARLY_ALL)
