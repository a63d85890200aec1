# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Bins that both vocabularies are pooled into, so that their distributions can be compared.

`bytes` asks for the next byte alone: 256 bins, one for the end of the text, and one for what stands for no text. It is
a coarse-graining of both distributions over strings. `shared` gives each byte string that is a token of both a bin of
its own, and is finer: an approximation, since a tokenizer may never write that token there. All other tokens fall into
bins by their first byte; where the other side has none of these, to the longest shared token that they begin with.
What only one side can say at all is with what stands for no text.
"""

from dataclasses import dataclass

import torch

from .alignment import Side


ALIGNMENTS = ("bytes", "shared", "uld")
END, NOTHING = "the end of the text", "no text"


@dataclass(frozen=True)
class Bins:
    """
    Attributes:
        student, teacher (`torch.Tensor` of shape `(V_s,)` and `(V_t,)`):
            The bin of each token.
        count (`int`):
            Number of bins.
        in_both (`tuple[torch.Tensor, torch.Tensor]`):
            Of each vocabulary, whether the other has a token of the same meaning.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    count: int
    in_both: tuple[torch.Tensor, torch.Tensor]

    def to(self, device: torch.device) -> "Bins":
        """The same on a device."""
        known = (self.in_both[0].to(device), self.in_both[1].to(device))
        return Bins(self.student.to(device), self.teacher.to(device), self.count, known)


def make_bins(student: Side, teacher: Side, alignment: str) -> Bins:
    """
    Args:
        student, teacher ([`Side`]): both.
        alignment (`str`): `bytes` or `shared`.
    """
    meanings = [_meanings(side) for side in (student, teacher)]
    both = {*meanings[0]} & {*meanings[1]} - {NOTHING}
    own = both if alignment == "shared" else {END}  # what has a bin of its own
    others = [{m[0] for m in of_side if isinstance(m, bytes) and m not in own} for of_side in meanings]

    def place_of(meaning: str | bytes) -> str | bytes:
        if meaning in own or not isinstance(meaning, bytes):
            return meaning if meaning in own else NOTHING
        if all(meaning[0] in of_side for of_side in others):
            return f"byte {meaning[0]}"
        shorter = (meaning[:n] for n in range(len(meaning) - 1, 0, -1))
        return next((beginning for beginning in shorter if beginning in own), f"byte {meaning[0]}")

    places = [[place_of(meaning) for meaning in of_side] for of_side in meanings]
    shared = {*places[0]} & {*places[1]}  # what only one side can say would be infinitely far from the other
    places = [[place if place in shared else NOTHING for place in of_side] for of_side in places]
    numbers = {place: i for i, place in enumerate(dict.fromkeys([*places[0], *places[1]]))}
    columns = [torch.tensor([numbers[place] for place in of_side]) for of_side in places]
    known = [torch.tensor([meaning in both for meaning in of_side]) for of_side in meanings]
    return Bins(columns[0], columns[1], len(numbers), (known[0], known[1]))


def _meanings(side: Side) -> list[str | bytes]:
    """What each id stands for: bytes, the end, or nothing; in the words of a special token if it isn't the end."""
    spelling = side.spelling
    return [
        END
        if i in side.frame.ends
        else part or (f"special {spelling.special[i]}" if i in spelling.special else NOTHING)
        for i, part in enumerate(spelling.tokens)
    ]


def describe(student: Side, teacher: Side, bins: Bins) -> str:
    """What has a counterpart in the other vocabulary and what hasn't, in a few lines."""

    def written(side: Side, ids: set[int]) -> str:
        return ", ".join(repr(side.spelling.special.get(i, i)) for i in sorted(ids)) or "none"

    lines = []
    of_both = {*student.spelling.special.values()} & {*teacher.spelling.special.values()}
    for name, side, known in (("student", student, bins.in_both[0]), ("teacher", teacher, bins.in_both[1])):
        size = sum(part is not None for part in side.spelling.tokens)
        alone = {i for i, text in side.spelling.special.items() if text not in of_both and i not in side.frame.ends}
        lines.append(
            f"{name}: {side.spelling.kind}, {size} tokens of text, {int(known.sum())} of all tokens in both; end of "
            f"text {written(side, side.frame.ends)}; special tokens without a counterpart {written(side, alone)}"
        )
    return "; ".join(lines) + f". {bins.count} bins."
