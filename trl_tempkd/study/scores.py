# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The scores of a sweep: what they are called, and which way is better."""

LABELS = {
    "rouge_l": "ROUGE-L",
    "kl_tau1": "KL(teacher, student) at tau 1",
    "reverse_kl_tau1": "KL(student, teacher) at tau 1",
    "agreement": "agreement with the teacher's top choice",
    "ce": "cross-entropy of the references",
    "bits_per_byte": "bits per byte of the references",
    "perplexity": "perplexity of the references",
    "ece": "expected calibration error",
    "self_bleu": "self-BLEU",
    **{f"distinct_{n}": f"distinct-{n}" for n in range(1, 5)},
    "length": "length in tokens",
    "stop_rate": "share of completions that stop",
    "student_entropy": "entropy of the student",
    "head_first": "share of the head's error that is gone early, less that of the tail's",
    "lifted_outside_top_10": "log of the gradient's upward amount outside the teacher's top 10, relative to tau 1",
}
LOWER_IS_BETTER = {"kl_tau1", "reverse_kl_tau1", "ce", "bits_per_byte", "perplexity", "ece", "self_bleu"}
HIGHER_IS_BETTER = {"rouge_l", "agreement", *(f"distinct_{n}" for n in range(1, 5))}
GREEDY = "_greedy"  # ends the names of the scores of greedy decoding
AT_SELF_BLEU = "_at_self_bleu_"  # and the value: read off the curve over temperatures of sampling
PER_HUNDRED = {"rouge_l", "self_bleu", "length", "perplexity"}


def kind(score: str) -> str:
    """The score without what it was measured on and how was decoded: `rouge_l_greedy@dolly` -> `rouge_l`."""
    return score.partition("@")[0].removesuffix(GREEDY).partition(AT_SELF_BLEU)[0]


def label(score: str) -> str:
    name, _, where = score.partition("@")
    greedy = ", greedy" if name.endswith(GREEDY) else ""
    even = f" at self-BLEU {name.partition(AT_SELF_BLEU)[2]}" if AT_SELF_BLEU in name else ""
    return LABELS.get(kind(score), kind(score)) + greedy + even + (f", {where}" if where else "")


def digits(score: str) -> int:
    """After the point."""
    return 2 if kind(score) in PER_HUNDRED else 3


def direction(score: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is."""
    return 1 if kind(score) in HIGHER_IS_BETTER else -1 if kind(score) in LOWER_IS_BETTER else 0


def better(score: str) -> str:
    return {1: "higher is better", -1: "lower is better", 0: "neither way is better"}[direction(score)]
