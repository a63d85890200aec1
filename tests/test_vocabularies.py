# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Two tokenizers: the bytes of tokens, the ends of answers, boundaries that both have, and bins."""

from itertools import pairwise

import pytest
import torch
from made_models import SENTENCES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vocabulary_pairs import byte_level, metaspace, unigram, word_piece

from trl_tempkd.errors import UsageError
from trl_tempkd.tiny import tiny_model_path
from trl_tempkd.vocabularies.alignment import Question, Side, align, boundaries
from trl_tempkd.vocabularies.answers import AnswerFrame
from trl_tempkd.vocabularies.bins import describe, make_bins
from trl_tempkd.vocabularies.spelling import PROBES, Spelling


TEXTS = [
    *PROBES,
    "world",
    " leading and trailing ",
    "\n\n\tindented",
    "🙂",
    "語",
    "x",
    "<eos> is text here, and so is </s> <|pad|>",
]
KINDS = {"byte-level": byte_level, "metaspace": metaspace, "unigram": unigram}


def side(tokenizer, size=None):
    spelling = Spelling(tokenizer, "student")
    spelling.fit(size or len(tokenizer))
    return Side(spelling, AnswerFrame(tokenizer))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_have_the_bytes_of_real_text(kind, prefix):
    spelling = Spelling(KINDS[kind](prefix=prefix), "teacher")
    for text in TEXTS:
        ids = spelling.encode(text)
        assert ids is not None
        if kind == "unigram" and 0 in ids:  # a character that it doesn't know
            assert text.encode().startswith(spelling.known(ids))
            continue
        assert not {*ids} & {*spelling.special}
        assert spelling.known(ids) == text.encode()
        ends = boundaries(spelling, ids)
        parts = [text.encode()[a:b] for a, b in pairwise(ends)]
        assert parts == [spelling.tokens[i] for i in ids]


def test_tokenizers_that_are_shipped(tmp_path):
    spelling = Spelling(AutoTokenizer.from_pretrained(tiny_model_path("student")), "student")
    assert spelling.kind == "byte-level BPE" and spelling.special == {0: "<|pad|>", 1: "<|eos|>"}
    assert all(spelling.known(spelling.encode(text)) == text.encode() for text in TEXTS)


def test_bytes_of_all_kinds_of_tokens():
    tokenizer = metaspace()
    tokenizer.add_tokens(["<think>"])
    spelling = Spelling(tokenizer, "student")
    spelling.fit(len(tokenizer) + 3)
    of = {text: spelling.tokens[i] for text, i in tokenizer.get_vocab().items()}
    assert of["<0x0A>"] == b"\n" and of["<0xE2>"] == b"\xe2" and of["▁"] == b" " and of["<think>"] == b"<think>"
    assert of["<eos>"] is of["<unk>"] is None
    assert spelling.tokens[-3:] == [None] * 3  # the head is padded
    byte = byte_level()
    byte.add_tokens(["<think> Ġ"])
    assert Spelling(byte, "student").tokens[-1] == "<think> Ġ".encode()


NORMALIZERS = {
    "Lowercase": normalizers.Lowercase(),
    "NFKD": normalizers.NFKD(),
    "NFD": normalizers.NFD(),
    "Strip": normalizers.Strip(),
    "StripAccents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "Replace": normalizers.Replace("tab", "TAB"),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_tokenizer_that_changes_text_is_refused_by_name(name):
    with pytest.raises(UsageError, match=rf"The teacher's tokenizer doesn't give back .*{name} changes or drops"):
        Spelling(byte_level(normalizer=NORMALIZERS[name]), "teacher")


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_text_is_compared_up_to_what_the_teacher_changes(form, kind):
    """NFC, as Qwen's tokenizers have it, and NFKC: both leave most text as it is."""
    tokenizer = {"byte-level": byte_level, "unigram": unigram}[kind](seed=1)
    tokenizer.backend_tokenizer.normalizer = getattr(normalizers, form)()
    student, teacher = side(byte_level()), side(tokenizer)
    assert teacher.spelling.kind.endswith(", NFKC") == (form == "NFKC")
    changed = {"NFC": "e\u0301", "NFKC": "\u00bd"}[form]
    for text, beginning in (
        ("the é cat sat", "the é cat sat"),
        (f"the cat {changed} sat", "the cat "),
        (f"the cat{changed} sat", "the cat"),
        (f"{changed} the cat", ""),
    ):
        ids = student.spelling.encode(text)
        found = align([0, *ids], Question([0], 1, 0, False), student, teacher)
        assert teacher.spelling.known(found.teacher_ids[1:]).decode() in (beginning, beginning.rpartition(" ")[0])
        for i, k in zip(found.student, found.teacher, strict=True):
            assert student.spelling.known(ids[:i]) == teacher.spelling.known(found.teacher_ids[1 : k + 1])
        assert len(found.student) > 1 or not beginning


def test_other_kinds_are_refused_by_name():
    with pytest.raises(UsageError, match="of the kind WordPiece"):
        Spelling(word_piece(), "student")
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.train_from_iterator(SENTENCES, trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False))
    with pytest.raises(UsageError, match=r"BPE of neither bytes nor metaspaces .*made of Whitespace"):
        Spelling(PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>"), "student")
    suffixed = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    suffixed.decoder = decoders.BPEDecoder()
    suffixed.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False)
    )
    with pytest.raises(UsageError, match="`end_of_word_suffix` '</w>'"):
        Spelling(PreTrainedTokenizerFast(tokenizer_object=suffixed, unk_token="<unk>"), "student")
    with pytest.raises(UsageError, match="no fast version"):
        Spelling(object(), "student")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<turn>{% endif %}{% endfor %}"
)


def test_what_stands_around_an_answer():
    tokenizer = metaspace()
    assert AnswerFrame(tokenizer).glue == "" and AnswerFrame(tokenizer).ends == {tokenizer.eos_token_id}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = TEMPLATE
    frame = AnswerFrame(tokenizer, stops=[5])
    assert frame.glue == " "
    assert frame.ends == {5, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn>")}
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert AnswerFrame(tokenizer).ends == {tokenizer.eos_token_id}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("teacher_kind", KINDS)
@pytest.mark.parametrize("student_kind", ["byte-level", "metaspace"])
def test_both_have_read_the_same_bytes_where_they_are_aligned(student_kind, teacher_kind, chat):
    student, other = KINDS[student_kind](), KINDS[teacher_kind](seed=1)
    other.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    other.chat_template = TEMPLATE
    student, teacher = side(student), side(other)
    end = student.spelling.tokenizer.eos_token_id
    for text in TEXTS:
        ids = [3, 4, *student.spelling.encode(text), end]
        found = align(ids, Question([7, 8, 9], 2, 0, chat), student, teacher)
        glue = " " * chat
        for i, k in zip(found.student, found.teacher, strict=True):
            before = student.spelling.known(ids[2 : i + 1])
            assert teacher.spelling.known(found.teacher_ids[3 : k + 1]) == glue.encode() + before
        if teacher_kind != "unigram":
            assert found.student[-1] == len(ids) - 2  # both may end here
        if not chat:
            assert (found.student[0], found.teacher[0]) == (1, 2)
        for (a, b), (c, d) in found.stretches:
            assert student.spelling.known(ids[a:b]) == teacher.spelling.known(found.teacher_ids[c:d])
            assert (b - a, d - c) != (1, 1)


def test_a_cut_inside_a_character_ends_the_comparison():
    student, teacher = side(byte_level()), side(metaspace())
    ids = student.spelling.encode("語" * 9)
    assert len(ids) > 2
    for cut in range(1, len(ids)):
        data = student.spelling.known(ids[:cut])
        found = align([3, *ids[:cut]], Question([7], 1, 0, False), student, teacher)
        text = data.decode(errors="ignore")
        assert teacher.spelling.known(found.teacher_ids[1:]) == text.encode() == data[: len(data) // 3 * 3]
        for i, k in zip(found.student, found.teacher, strict=True):
            assert student.spelling.known(ids[:i]) == teacher.spelling.known(found.teacher_ids[1 : k + 1])


def test_bytes_that_are_no_text_and_unknown_tokens_end_the_comparison():
    student, teacher = side(byte_level()), side(metaspace())
    lone = student.spelling.tokens.index(b"\xff")
    a, b = student.spelling.encode("a"), student.spelling.encode(" b")
    found = align([3, *a, lone, *b], Question([7], 1, 0, False), student, teacher)
    assert found.student == [0, 1]  # the byte itself may still be predicted, and nothing after it
    pad = student.spelling.tokenizer.pad_token_id
    found = align([3, *a, pad, *b], Question([7], 1, 0, False), student, teacher)
    assert found.student == [0, 1]


def test_a_prompt_that_merges_into_the_completion_is_left_out_of_it():
    student, teacher = side(byte_level()), side(metaspace())
    ids = student.spelling.encode("the cat sat")
    merged = student.spelling.tokens[ids[0]]
    assert len(merged) > 1
    found = align([3, *ids], Question([7, 8], 1, 1, False), student, teacher)
    rest = b"the cat sat"[1:]
    assert teacher.spelling.known(found.teacher_ids[2:]) == rest
    for i, k in zip(found.student, found.teacher, strict=True):
        assert student.spelling.known(ids[:i])[1:] == teacher.spelling.known(found.teacher_ids[2 : k + 1])


def test_positions_that_the_teacher_lacks_are_not_compared():
    student, teacher = side(byte_level()), side(metaspace())
    ids = [3, *student.spelling.encode("the cat sat on the mat")]
    whole, cut = (align(ids, Question([7, 8], 1, 0, False), student, teacher, longest) for longest in (None, 6))
    assert len(cut.teacher_ids) == 6 and max(cut.teacher) <= 5 < max(whole.teacher)


def test_bins_part_both_vocabularies():
    student, teacher = side(byte_level(), 600), side(metaspace())
    coarse, fine = (make_bins(student, teacher, alignment) for alignment in ("bytes", "shared"))
    for bins in (coarse, fine):
        assert {*bins.student.tolist()} | {*bins.teacher.tolist()} == {*range(bins.count)}
    assert coarse.count <= 258 < fine.count
    # In `bytes` two tokens share a bin exactly if they begin with the same byte
    first = {}
    for part, column in ((student, coarse.student), (teacher, coarse.teacher)):
        for token, number in zip(part.spelling.tokens, column.tolist(), strict=True):
            if token is not None:
                assert first.setdefault(token[:1], number) == number
    assert len({*first.values()}) == len(first)
    ends = [coarse.student[next(iter(student.frame.ends))], coarse.teacher[next(iter(teacher.frame.ends))]]
    assert ends[0] == ends[1] and ends[0] not in first.values()
    # In `shared` a string that both have is alone with itself, and the others are with those of their first byte
    number = fine.student[student.spelling.tokens.index(b" the")]
    assert (fine.student == number).sum() == 1
    assert teacher.spelling.tokens[(fine.teacher == number).nonzero().item()] == b" the"
    # No bin is one side's alone, but for what stands for no text
    for bins in (coarse, fine):
        assert len({*bins.student.tolist()} ^ {*bins.teacher.tolist()}) <= 1
    assert "end of text '<eos>'" in describe(student, teacher, fine)


def test_the_same_tokenizer_has_a_bin_for_each_token():
    one, other = side(byte_level()), side(byte_level())
    bins = make_bins(one, other, "shared")
    assert torch.equal(bins.student, bins.teacher) and bins.count == len(bins.student)
    assert all(mask.all() for mask in bins.in_both)


def test_what_only_one_side_can_say_is_in_one_bin(tokenizer):
    """A vocabulary without the whole alphabet, as of a small BPE: the other's tokens of such bytes are no bin."""
    student, teacher = side(tokenizer), side(metaspace())
    for alignment in ("bytes", "shared"):
        bins = make_bins(student, teacher, alignment)
        alone = teacher.spelling.tokens.index(b"Q")
        assert bins.teacher[alone] == bins.student[tokenizer.convert_tokens_to_ids("<|user|>")]
        assert {*bins.student.tolist()} == {*range(bins.count)} == {*bins.teacher.tolist()}
