# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The scores of texts: by hand, against the libraries that others use, and as modules of `evaluate`."""

import random
from pathlib import Path

import evaluate
import pytest
from made_models import SENTENCES
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from trl_tempkd.study.metrics import DistinctN, RougeL, SelfBLEU, distinct_n, rouge_l, self_bleu


FOLDER = Path(__file__).parent.parent / "trl_tempkd/study/metrics"


def test_distinct_n_by_hand():
    texts = ["a b a b", "A c"]
    assert distinct_n(texts, 1) == 3 / 6
    assert distinct_n(texts, 2) == 3 / 4  # ab ba ab, ac
    assert distinct_n(texts, 3) == 2 / 2  # aba bab
    assert distinct_n(texts, 4) == 1
    assert distinct_n(texts, 5) == 0
    assert distinct_n(["so, so"], 1) == 2 / 3  # the comma is a word
    with pytest.raises(ValueError, match="got 0"):
        distinct_n(texts, 0)


def test_self_bleu_by_hand():
    assert self_bleu(["a b c d", "a b c d", "a b c d"]) == pytest.approx([100] * 3)
    assert self_bleu(["a b", "c d"]) == [0, 0]
    assert self_bleu(["a b"]) == [0]
    # Unigrams and bigrams: sqrt(2/3 * 1/2) and, with a shorter text against a longer one, exp(1 - 3/2) * sqrt(1 * 1)
    assert self_bleu(["a b c", "a b"], 2) == pytest.approx([100 * 3**-0.5, 100 * 2.718281828**-0.5])


def test_self_bleu_equals_nltk():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("a b c d e f".split(), k=rng.randrange(12))) for _ in range(20)] + SENTENCES
    words = [text.split() for text in texts]
    expected = [
        100 * sentence_bleu(words[:i] + words[i + 1 :], row, smoothing_function=SmoothingFunction().method1)
        for i, row in enumerate(words)
    ]
    assert max(expected) > 50
    assert self_bleu(texts) == pytest.approx(expected)


@pytest.mark.parametrize(
    "load", [lambda metric, file: metric(), lambda metric, file: evaluate.load(str(FOLDER / file))]
)
class TestModules:
    """Each as a class and loaded from its file, with the hub out of reach (conftest.py)."""

    def test_rouge_l(self, load):
        metric = load(RougeL, "rouge_l.py")
        references = [[a, b] for a, b in zip(SENTENCES[1:], SENTENCES, strict=False)]
        predictions = SENTENCES[2:] + SENTENCES[:1]
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        expected = [
            100 * max(scorer.score(r, p)["rougeL"].fmeasure for r in rs)
            for p, rs in zip(predictions, references, strict=True)
        ]
        found = metric.compute(predictions=predictions, references=references)
        assert found == {"rouge_l": pytest.approx(sum(expected) / len(expected))}
        found = metric.compute(predictions=predictions, references=references, use_aggregator=False)
        assert found["rouge_l"] == pytest.approx(expected) == rouge_l(predictions, references)
        assert metric.compute(predictions=["a cat"], references=["a cat"]) == {"rouge_l": 100}

    def test_distinct_n(self, load):
        found = load(DistinctN, "distinct_n.py").compute(predictions=SENTENCES)
        assert found == {f"distinct_{n}": distinct_n(SENTENCES, n) for n in (1, 2, 3, 4)}

    def test_self_bleu(self, load):
        found = load(SelfBLEU, "self_bleu.py").compute(predictions=SENTENCES)
        assert found == {"self_bleu": pytest.approx(sum(self_bleu(SENTENCES)) / len(SENTENCES))}
