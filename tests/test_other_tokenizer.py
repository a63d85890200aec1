# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher with another tokenizer in the trainer: against the plain formula, on any rows, on-policy, and refusals."""

import logging

import datasets
import pytest
import torch
from made_models import SENTENCES
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabulary_pairs import CHAT, CHATS, ROWS, TAGS, TEXT, byte_level, metaspace, unigram, with_chat, word_piece

from trl_tempkd import DIVERGENCES, KDConfig, TemperatureKDTrainer
from trl_tempkd.errors import UsageError
from trl_tempkd.losses import Pooled
from trl_tempkd.row_formats import TEACHER_QUESTION
from trl_tempkd.vocabularies.alignment import readable
from trl_tempkd.vocabularies.bins import make_bins


# With what TRL finds the assistant's words by
GENERATION = CHAT.replace(" {{ m['content'] }}<eos>", "{% generation %} {{ m['content'] }}<eos>{% endgeneration %}")


def plain_loss(trainer, rows, tau_s, tau_t, divergence, kd_ratio, alignment):
    """From the rows alone: each model on its own tokens of the same text, in full."""
    tokenizers = [trainer.processing_class, AutoTokenizer.from_pretrained(trainer.args.teacher_model_name_or_path)]
    models = [trainer.model, trainer.teacher.model]
    bins = make_bins(*trainer.teacher.aligner.sides, alignment)
    total, count, aligned, ce = 0.0, 0, 0, 0.0
    for row in rows:
        whole = tokenizers[0](row["prompt"] + row["completion"])["input_ids"] + [tokenizers[0].eos_token_id]
        start = len(tokenizers[0](row["prompt"])["input_ids"])
        # "\n" stands before the completion, so that no space is put before it
        begin = tokenizers[1](row["prompt"])["input_ids"]
        behind = tokenizers[1]("\n" + row["completion"])["input_ids"][len(tokenizers[1]("\n")["input_ids"]) :]
        logits = [
            m(input_ids=torch.tensor([ids])).logits[0] for m, ids in zip(models, (whole, begin + behind), strict=True)
        ]
        ends = [
            [len(_bytes(side, ids[:n])) for n in range(len(ids) + 1)]
            for side, ids in zip(trainer.teacher.aligner.sides, (whole[start:-1], behind), strict=True)
        ]
        log_q1 = logits[0].log_softmax(-1)
        ce = ce - sum(log_q1[i - 1, whole[i]] for i in range(start, len(whole)))
        count += len(whole) - start
        for i, offset in enumerate(ends[0]):
            if offset not in ends[1]:
                continue
            k = ends[1].index(offset)
            z, v = logits[0][start + i - 1], logits[1][len(begin) + k - 1]
            q, p = (z / tau_s).softmax(-1), (v / tau_t).softmax(-1)
            log_q, log_p = (
                torch.stack([mass[column == b].sum() for b in range(bins.count)])
                .clamp(min=torch.finfo(torch.float64).tiny)
                .log()
                for mass, column in ((q, bins.student), (p, bins.teacher))
            )
            total = total + DIVERGENCES[divergence](log_p, log_q) * tau_s * tau_t
            aligned += 1
    return kd_ratio * total / count + (1 - kd_ratio) * ce / count, aligned / count


def _bytes(side, ids):
    return b"".join(side.spelling.tokens[i] for i in ids)


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("alignment", ["bytes", "shared"])
def test_the_loss_is_the_plain_formula(float64, make_pair, alignment, padding_free):
    trainer = make_pair(
        vocabulary_alignment=alignment, divergence="reverse_kl", student_kd_temperature=1.5, kd_temperature=2.5,
        kd_ratio=0.8, padding_free=padding_free, max_steps=1, per_device_train_batch_size=4, max_length=None,
    )  # fmt: skip
    want, share = plain_loss(trainer, ROWS, 1.5, 2.5, "reverse_kl", 0.8, alignment)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(want.item(), rel=1e-9)
    assert log["aligned_share"] == pytest.approx(share, rel=1e-9)
    assert 0.1 < share < 1
    assert 0 < log["student_shared_mass"] < 1 and 0 < log["teacher_shared_mass"] < 1
    want, _ = plain_loss(trainer, ROWS, 1.5, 2.5, "reverse_kl", 0.8, alignment)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(want.item(), rel=1e-9)


def test_the_same_tokenizer_is_the_loss_of_today(float64, make_pair):
    losses = []
    for alignment in ("shared", None):
        fields = {"vocabulary_alignment": alignment, "max_steps": 3, "divergence": "jsd", "kd_ratio": 0.7}
        # Without padding of the head: it has no bin of its own, and in the loss of today no logit
        trainer = make_pair(byte_level(), byte_level(), padding=0, **fields)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert alignment is None or trainer.state.log_history[0]["aligned_share"] == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_accumulation_is_one_batch(float64, make_pair):
    logs = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = make_pair(
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, alm_weight=0.5, kd_ratio=0.7,
            vocabulary_alignment="shared", train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer.train()
        logs.append(trainer.state.log_history[:2])
    for one, other in zip(*logs, strict=True):
        names = ("loss", "grad_norm", "kd_loss", "ce_loss", "aligned_share", "teacher_shared_mass")
        assert {n: one[n] for n in names} == pytest.approx({n: other[n] for n in names}, rel=1e-9)


KINDS = {"byte-level": byte_level, "metaspace": metaspace, "unigram": unigram}


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("teacher", KINDS)
def test_any_two_kinds_train_on_chats(make_pair, student, teacher):
    """Each reads its own template, and what it puts between prompt and answer is nothing to the other."""
    ours, its = with_chat(KINDS[student]()), with_chat(KINDS[teacher](seed=1))
    its.chat_template = TAGS
    trainer = make_pair(ours, its, dataset=CHATS, alm_weight=0.1)
    question = trainer.train_dataset[0][TEACHER_QUESTION]
    assert its.decode(question["teacher_ids"]).strip() == "<user>the cat sat on<assistant>"
    assert question["chat"] and question["skip"] == 0
    batch = next(iter(trainer.get_train_dataloader()))
    found = batch[TEACHER_QUESTION]
    sides = trainer.teacher.aligner.sides
    for row, alignment, question in zip(batch["input_ids"], found.alignments, found.questions, strict=True):
        assert len(alignment.student) > 1
        for i, k in zip(alignment.student, alignment.teacher, strict=True):
            answer = _bytes(sides[0], row[question.start : i + 1].tolist())
            assert answer.removeprefix(b" ") == _bytes(
                sides[1], alignment.teacher_ids[len(question.teacher_ids) : k + 1]
            )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_text_without_a_prompt_and_conversations(make_pair):
    text = datasets.Dataset.from_list([{"text": sentence} for sentence in SENTENCES])
    trainer = make_pair(dataset=text)
    trainer.train()
    assert 0 < trainer.state.log_history[0]["aligned_share"] < 1
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]
    messages = datasets.Dataset.from_list([{"messages": turns}] * 4)
    trainer = make_pair(with_chat(byte_level()), with_chat(metaspace(seed=1)), dataset=messages)
    trainer.train()
    assert 0 < trainer.state.log_history[0]["aligned_share"] < 1


def test_a_cut_row_is_compared_up_to_its_end(make_pair):
    short = make_pair(max_length=12)
    found = next(iter(short.get_train_dataloader()))[TEACHER_QUESTION]
    assert all(alignment.student and max(alignment.student) < 11 for alignment in found.alignments)
    nothing = make_pair(max_length=12, dataset=datasets.Dataset.from_list(
        [*ROWS[:3], {"prompt": "the student learns what the teacher knows " * 3, "completion": " a"}]
    ), per_device_train_batch_size=3)  # fmt: skip
    nothing.train()


def test_learns(make_pair):
    """A student comes nearer to a teacher of another vocabulary, at a temperature that isn't 1."""
    trainer = make_pair(max_steps=25, kd_temperature=2.0, divergence="forward_kl", per_device_train_batch_size=4)
    trainer.train()
    losses = [entry["kd_loss"] for entry in trainer.state.log_history if "kd_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("replay_size", [0, 4])
def test_on_policy(make_pair, replay_size, tmp_path):
    trainer = make_pair(
        lmbda=1.0, max_new_tokens=12, replay_size=replay_size, replay_ratio=0.5 if replay_size else None, max_steps=4,
        save_strategy="steps" if replay_size else "no", save_steps=2, dataset=CHATS,
        student=with_chat(byte_level()), teacher=with_chat(metaspace(seed=1)),
    )  # fmt: skip
    seen = []
    rows = trainer.teacher.rows

    def watched(inputs):
        found = inputs[TEACHER_QUESTION]
        sides = trainer.teacher.aligner.sides
        for ids, alignment, question in zip(inputs["input_ids"], found.alignments, found.questions, strict=True):
            for i, k in zip(alignment.student, alignment.teacher, strict=True):
                own = _bytes(sides[0], ids[question.start : i + 1].tolist())
                answer = _bytes(sides[1], alignment.teacher_ids[len(question.teacher_ids) : k + 1])
                assert answer.endswith(own.removeprefix(b" "))
            seen.append(len(alignment.student))
        return rows(inputs)

    trainer.teacher.rows = watched
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any(entry["on_policy_share"] == 1 for entry in logs) and sum(seen) > len(seen)
    if replay_size:
        kept = list(trainer.rollouts.replay)
        trainer.rollouts.save(str(tmp_path))
        trainer.rollouts.load(str(tmp_path))
        assert list(trainer.rollouts.replay) == kept and kept[0].question is not None


def test_the_teacher_writes_in_its_own_tokens(make_pair):
    """`seq_kd`: greedily it writes what the teacher does on its own prompt, in the student's tokens."""
    its = with_chat(metaspace(seed=1), TAGS)
    trainer = make_pair(
        with_chat(byte_level()), its, dataset=CHATS, seq_kd=True, temperature=0.0, max_new_tokens=9, max_steps=1,
        per_device_train_batch_size=4,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(trainer.args.teacher_model_name_or_path)
    want = set()
    for row in CHATS:
        ids = its.apply_chat_template(row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=9, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        sides = trainer.teacher.aligner.sides
        ended = its.eos_token_id in out
        want.add((readable(sides[1].spelling.known(out)), ended))
    trainer.train()
    ours = trainer.processing_class
    found = set()
    for _, completion in trainer.rollouts.latest:
        ended = completion[-1:] == [ours.eos_token_id]
        text = sides[0].spelling.known(completion[: len(completion) - ended]).decode()
        assert text.startswith(" ")  # which the student's template puts before an answer
        found.add((text.removeprefix(" "), ended))
    assert found == want
    assert trainer.state.log_history[0]["aligned_share"] > 0


def test_uld_and_a_rule_and_lora(make_pair):
    trainer = make_pair(vocabulary_alignment="uld", divergence="tvd")
    trainer.train()
    assert 0 < trainer.state.log_history[0]["kd_loss"] < 1
    trainer = make_pair(kd_temperature_rule="curriculum")
    trainer.train()
    assert trainer.state.log_history[0]["kd_temperature"] > 1


def test_says_what_has_a_counterpart(make_pair, caplog):
    with caplog.at_level(logging.INFO, logger="trl_tempkd.teachers.other_tokenizer"):
        make_pair()
    (line,) = [record.getMessage() for record in caplog.records if "in both" in record.getMessage()]
    assert "student: byte-level BPE" in line and "teacher: BPE with metaspace and byte fallback" in line
    assert "end of text '<eos>'" in line


REFUSED = {
    "packing": ({"packing": True}, "`packing`"),
    "keep_end": ({"truncation_mode": "keep_end"}, "`truncation_mode`"),
    "token_adaptive": ({"kd_temperature_rule": "token_adaptive"}, "`kd_temperature_rule` 'token_adaptive'"),
    "diagnostics": ({"kd_diagnostics_steps": 1}, "`kd_diagnostics_steps`"),
    "concrete_score": ({"divergence": "concrete_score"}, "`divergence` concrete_score"),
    "minillm": ({"divergence": "minillm", "lmbda": 1.0}, "`divergence` minillm"),
    "uld": ({"vocabulary_alignment": "uld", "divergence": "todi"}, "`divergence` todi"),
    "unknown": ({"vocabulary_alignment": "byte"}, "`vocabulary_alignment` must be one of bytes, shared, uld"),
    "alm": ({"alm_weight": -1.0}, "`alm_weight`"),
    "alm alone": ({"alm_weight": 1.0, "vocabulary_alignment": None}, "`alm_weight` must be 0 without"),
    "student_base": ({"teacher_model_name_or_path": "student_base"}, "'student_base'"),
    "student_ema": ({"teacher_model_name_or_path": "student_ema"}, "'student_ema' has the student's tokenizer"),
    "several": (
        {"teacher_model_name_or_path": None, "teachers": [{"name": "one", "model": "teacher"}]},
        "`vocabulary_alignment` is 'bytes', and there are `teachers`: leave it unset, and give it to the entry",
    ),
}


@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_it_can_not_do_is_refused(make_pair, case):
    fields, match = REFUSED[case]
    with pytest.raises(UsageError, match=match):
        make_pair(**fields)


@pytest.mark.parametrize("rows", ["text", "chats", "messages"])
@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_the_teacher_may_have_a_prompt_of_its_own(make_pair, rows, lmbda):
    """It reads that in its own tokens, before the same completion; a row without one has the student's."""
    its = with_chat(metaspace(seed=1), TAGS)
    own = ["so the cat", None, "a dog that", None]
    if rows == "text":
        data = TEXT.add_column("teacher_prompt", own)
    else:
        asked = [None if text is None else [{"role": "user", "content": text}] for text in own]
        data = [{**row, "teacher_prompt": text} for row, text in zip(CHATS, asked, strict=True)]
        if rows == "messages":
            data = [
                {"messages": [*r["prompt"], *r["completion"]], "teacher_prompt": r["teacher_prompt"]} for r in data
            ]
        data = datasets.Dataset.from_list(data)
    fields = {"lmbda": lmbda, "max_new_tokens": 6, "assistant_only_loss": rows == "messages"}
    student = with_chat(byte_level(), GENERATION)
    trainer = make_pair(student=student, teacher=its, dataset=data, max_steps=2, **fields)
    for row, text, given in zip(trainer.train_dataset, own, ROWS, strict=True):
        read = its.decode(row[TEACHER_QUESTION]["teacher_ids"]).strip()
        asked = text or given["prompt"]
        assert read == (asked if rows == "text" else f"<user>{asked}<assistant>")
        assert "prompt_of_the_teacher" not in row and "teacher_contexts" not in row
    trainer.train()
    assert trainer.state.log_history[0]["aligned_share"] > 0


def test_a_prompt_of_the_teachers_own_is_of_the_kind_of_the_other(make_pair):
    rows = datasets.Dataset.from_list([{"prompt": "the cat", "completion": " sat", "teacher_prompt": "so the cat"}])
    with pytest.raises(UsageError, match="`formatting_func` makes one text of a row"):
        text = {"formatting_func": lambda row: row["prompt"] + row["completion"], "completion_only_loss": False}
        make_pair(dataset=rows, **text)
    mixed = CHATS.add_column("teacher_prompt", ["so the cat"] * len(CHATS))
    with pytest.raises(UsageError, match="has text in `teacher_prompt` and a conversation for the student"):
        make_pair(student=with_chat(byte_level()), teacher=with_chat(metaspace(seed=1)), dataset=mixed)


def test_rows_that_are_tokens_are_refused(make_pair):
    rows = datasets.Dataset.from_list([{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}])
    with pytest.raises(UsageError, match="train data set are tokens already"):
        make_pair(dataset=rows)


def test_a_tokenizer_that_is_not_there_or_not_understood_is_refused(make_pair, make_model, make_config, tmp_path):
    with pytest.raises(UsageError, match="teacher's tokenizer is of the kind WordPiece"):
        make_pair(teacher=word_piece())
    args = make_config(vocabulary_alignment="bytes")
    with pytest.raises(UsageError, match="doesn't say where it was loaded from"):
        TemperatureKDTrainer(make_model(), make_model(seed=1), args, train_dataset=TEXT, processing_class=byte_level())
    make_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="can't be loaded"):
        make_pair(teacher_model_name_or_path=str(tmp_path / "bare"))


def test_without_the_option_two_tokenizers_are_refused_with_its_name(make_pair):
    with pytest.raises(UsageError, match="`vocabulary_alignment`"):
        make_pair(vocabulary_alignment=None)


@pytest.mark.filterwarnings("ignore:.*not a prefix")
def test_a_prompt_that_merges_into_its_completion(make_pair):
    """The student's first token has the end of the prompt in it; the teacher has read that, and goes on from there."""
    rows = [{"prompt": "the ca", "completion": "t sat on the mat"}, {"prompt": "a do", "completion": "g ran after it"}]
    trainer = make_pair(dataset=datasets.Dataset.from_list(rows), train_sampling_strategy="sequential")
    found = next(iter(trainer.get_train_dataloader()))
    ours, its = trainer.teacher.aligner.sides
    asked = found[TEACHER_QUESTION]
    assert any(question.skip for question in asked.questions)
    for row, ids, question, alignment in zip(
        rows, found["input_ids"].tolist(), asked.questions, asked.alignments, strict=True
    ):
        answer = alignment.teacher_ids[len(question.teacher_ids) :]
        assert its.spelling.known(answer) == row["completion"].encode()
        for i, k in zip(alignment.student, alignment.teacher, strict=True):
            read = its.spelling.known(alignment.teacher_ids[: k + 1])
            assert ours.spelling.known(ids[: i + 1]) == read.removeprefix(b" ")  # its own, before every text
    trainer.train()
    assert 0 < trainer.state.log_history[0]["aligned_share"] < 1


def test_a_stream(make_pair):
    trainer = make_pair(dataset=TEXT.to_iterable_dataset())
    trainer.train()
    assert 0 < trainer.state.log_history[0]["aligned_share"] < 1


def test_chats_need_a_template_of_the_teacher(make_pair):
    with pytest.raises(UsageError, match="teacher's tokenizer has no chat template"):
        make_pair(with_chat(byte_level()), metaspace(seed=1), dataset=CHATS)
    with pytest.raises(UsageError, match="teacher's chat template can't write a row: no system"):
        make_pair(
            with_chat(byte_level()),
            with_chat(metaspace(seed=1), "{{ raise_exception('no system') }}"),
            dataset=CHATS,
        )


def test_the_teachers_rows_are_of_its_own_type(make_pair):
    trainer = make_pair()
    batch = dict(next(iter(trainer.get_train_dataloader())))
    batch.pop("labels")
    rows = trainer.teacher.rows(batch)
    assert isinstance(rows, Pooled) and TEACHER_QUESTION not in batch
    assert len(rows.hidden) == len(rows.rows) and rows.rows.max() < batch["input_ids"].numel()
    assert isinstance(trainer.args, KDConfig)
    assert AutoModelForCausalLM.from_pretrained(trainer.args.teacher_model_name_or_path).config.vocab_size == len(
        rows.bins[1]
    )


@pytest.fixture
def save_teacher(tmp_path, make_model):
    """`save_teacher(name, tokenizer)`: the folder of a teacher."""

    def save(name, tokenizer, seed=2):
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
        make_model("llama", seed=seed, **ids, **sizes).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def entries_of(save_teacher):
    """Three teachers, two of them with other tokenizers."""
    kind = {"vocabulary_alignment": "bytes", "alm_weight": 0.4}
    return [
        {"name": "first", "model": save_teacher("first", with_chat(metaspace(seed=1))), **kind, "weight": 0.5},
        {"name": "second", "model": save_teacher("second", with_chat(unigram(seed=1))), "vocabulary_alignment": "uld"},
        {"name": "own", "model": save_teacher("own", with_chat(byte_level())), "kd_temperature": 1.5},
    ]


def routed_rows(rows):
    return rows.add_column("teacher", ["first", "second", "own", "first"])


def test_several_teachers_with_their_own_tokenizers(float64, make_pair, save_teacher):
    """Each row's loss is that of a run with its teacher alone."""
    entries, student = entries_of(save_teacher), with_chat(byte_level())
    rows = routed_rows(CHATS)
    fields = {"student": student, "divergence": "tvd", "kd_ratio": 0.7, "max_steps": 2, "learning_rate": 0.0}
    fields["per_device_train_batch_size"] = 4
    routed = make_pair(**fields, dataset=rows, eval_dataset=rows, teachers=entries, vocabulary_alignment=None,
                       teacher_model_name_or_path=None)  # fmt: skip
    assert [row[TEACHER_QUESTION] is None for row in routed.train_dataset] == [False, False, True, False]
    routed.train()
    log, total, count = routed.state.log_history[0], 0.0, 0
    found = routed.evaluate()
    for entry in entries:
        own = {key: value for key, value in entry.items() if key not in ("name", "model", "weight")}
        own = {"vocabulary_alignment": None, **own}
        weight = entry.get("weight", 1.0)
        mine = rows.filter(lambda row, name=entry["name"]: row["teacher"] == name).remove_columns("teacher")
        for share in (fields["kd_ratio"], 0.0):  # the weight is on the divergence, and not on the cross-entropy
            alone = make_pair(
                **{**fields, "kd_ratio": share}, dataset=mine, eval_dataset=mine, **own,
                teacher_model_name_or_path=entry["model"],
            )  # fmt: skip
            tokens = sum(label != -100 for row in alone.eval_dataset for label in row["labels"][1:])
            loss = alone.evaluate()["eval_loss"] * tokens
            if share:
                whole = loss
        # kd_ratio * KD + (1 - kd_ratio) * CE
        ce = (1 - fields["kd_ratio"]) * loss
        total += weight * (whole - ce) + ce
        count += tokens
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-9)
    assert log["loss"] == pytest.approx(total / count, rel=1e-9)
    assert 0 < found["eval_aligned_share/first"] < 1 and found["eval_kd_loss/own"] > 0


@pytest.mark.parametrize("replay_size", [0, 4])
def test_several_teachers_with_their_own_tokenizers_on_policy(make_pair, save_teacher, replay_size, tmp_path):
    trainer = make_pair(
        student=with_chat(byte_level()), dataset=routed_rows(CHATS), teachers=entries_of(save_teacher),
        vocabulary_alignment=None, teacher_model_name_or_path=None, divergence="forward_kl", lmbda=1.0,
        max_new_tokens=8, max_steps=4, replay_size=replay_size, replay_ratio=0.5 if replay_size else None,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["on_policy_share"] + entry.get("replay_share", 0) == 1 for entry in logs)
    assert any(entry.get("aligned_share/first", 0) > 0 for entry in logs)
    if replay_size:  # with and without a question
        kept = list(trainer.rollouts.replay)
        trainer.rollouts.save(str(tmp_path))
        trainer.rollouts.load(str(tmp_path))
        assert list(trainer.rollouts.replay) == kept and len({row.question is None for row in kept}) == 2


def test_a_mixture_of_tokenizers_is_refused(make_pair, save_teacher):
    fields = {"vocabulary_alignment": None, "teacher_model_name_or_path": None, "student": with_chat(byte_level())}
    with pytest.raises(UsageError, match="`teachers`, first: `vocabulary_alignment` is 'bytes', and without a"):
        make_pair(**fields, dataset=CHATS, teachers=entries_of(save_teacher))
    entries = entries_of(save_teacher)
    for change, match in (
        ({"alm_weight": -1.0}, "`teachers`, first: `alm_weight` must be 0 or more"),
        ({"vocabulary_alignment": "byte"}, "`teachers`, first: `vocabulary_alignment` must be one of bytes"),
        ({"vocabulary_alignment": None}, "`teachers`, first: `alm_weight` must be 0 without"),
    ):
        with pytest.raises(UsageError, match=match):
            make_pair(**fields, dataset=routed_rows(CHATS), teachers=[{**entries[0], **change}, *entries[1:]])
