# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A cache of a teacher with another tokenizer: the live teacher's trajectory, and what doesn't fit together."""

import json
import shutil

import datasets
import pytest
from made_models import SENTENCES
from test_cached import builder_of
from vocabulary_pairs import CHATS, TEXT, byte_level, metaspace, unigram, with_chat

from trl_tempkd.commands import cache as command
from trl_tempkd.commands import distill
from trl_tempkd.errors import UsageError
from trl_tempkd.row_formats import TEACHER_OFFSETS, TEACHER_TOKENS


MEASURES = ("loss", "grad_norm", "kd_loss", "ce_loss", "aligned_share", "teacher_shared_mass", "eval_loss")
OBJECTIVES = {
    "bytes": {"vocabulary_alignment": "bytes", "divergence": "reverse_kl", "kd_temperature": 2.0, "alm_weight": 0.5},
    "shared": {"vocabulary_alignment": "shared", "kd_temperature_rule": "zscore", "kd_ratio": 0.5},
    "uld": {"vocabulary_alignment": "uld", "divergence": "tvd", "alm_weight": 0.2},
}


def history(trainer):
    trainer.train()
    log = [*trainer.state.log_history, trainer.evaluate()]
    return {name: [entry[name] for entry in log if name in entry] for name in MEASURES}


@pytest.mark.parametrize("rows", ["text", "chats", "padding-free"])
def test_same_trajectory(float64, make_pair, tmp_path, rows):
    """One cache for every way to compare, in whatever batches."""
    pair = {"student": with_chat(byte_level()), "teacher": with_chat(unigram(seed=1))}
    data = CHATS if rows == "chats" else TEXT
    fields = {**pair, "dataset": data, "eval_dataset": data.select([1, 3]), "max_steps": 3}
    if rows == "padding-free":
        fields |= {"padding_free": True, "max_length": None}
    builder_of(make_pair(**fields), tmp_path / "cache").build()
    for objective in OBJECTIVES.values():
        live, offline = (history(make_pair(**fields, **objective, **cache)) for cache in both(tmp_path))
        assert len(live["loss"]) == 3 and 0 < live["aligned_share"][0] < 1
        assert offline == {name: pytest.approx(column, rel=1e-9) for name, column in live.items()}


def both(tmp_path):
    return {}, {"teacher_cache": str(tmp_path / "cache")}


def test_one_of_several_teachers_is_cached(float64, make_pair, tmp_path):
    student, own = with_chat(byte_level()), with_chat(unigram(seed=1))
    pair = {"student": student, "teacher": own}
    trainer = make_pair(**pair, dataset=CHATS.select([0, 2, 3]), alm_weight=0.2)
    builder_of(trainer, tmp_path / "cache").build()
    folders = {name: str(tmp_path / "pair" / name) for name in ("student", "teacher")}
    same = {"name": "same", "model": str(tmp_path / "same")}
    shutil.copytree(folders["student"], same["model"])
    rows = CHATS.add_column("teacher", ["other", "same", "other", "other"])
    fields = {
        **pair,
        "dataset": rows,
        "eval_dataset": rows,
        "vocabulary_alignment": None,
        "max_steps": 3,
        "kd_ratio": 0.6,
    }
    histories = []
    for source in ({"model": folders["teacher"]}, {"cache": str(tmp_path / "cache")}):
        other = {"name": "other", "vocabulary_alignment": "shared", "alm_weight": 0.2, **source}
        run = make_pair(**fields, teachers=[other, same], teacher_model_name_or_path=None)
        histories.append(history(run))
    live, offline = histories
    assert len(live["loss"]) == 3
    assert offline == {name: pytest.approx(column, rel=1e-9) for name, column in live.items()}


def test_text_and_a_cut_row_are_cached_too(float64, make_pair, tmp_path):
    rows = [{"text": sentence + " 語🙂"} for sentence in SENTENCES]
    fields = {"dataset": datasets.Dataset.from_list(rows), "max_length": 14, "alm_weight": 0.3, "max_steps": 2}
    fields["eval_dataset"] = fields["dataset"].select([0, 2])
    builder_of(make_pair(**fields), tmp_path / "cache").build()
    live, offline = (history(make_pair(**fields, **cache)) for cache in both(tmp_path))
    assert offline == {name: pytest.approx(column, rel=1e-9) for name, column in live.items()}


def test_the_rows_have_the_teachers_own_tokens_and_offsets(make_pair, tmp_path):
    its = metaspace(seed=1)
    trainer = make_pair(teacher=its)
    builder_of(trainer, tmp_path / "cache").build()
    for row, given in zip(datasets.load_from_disk(str(tmp_path / "cache"))["train"], TEXT, strict=True):
        asked = row["teacher_question"]["teacher_ids"]
        tokens, offsets = row[TEACHER_TOKENS], row[TEACHER_OFFSETS]
        assert tokens[: len(asked)] == asked == its(given["prompt"])["input_ids"]
        spelt = [trainer.teacher.aligner.sides[1].spelling.tokens[i] for i in tokens[len(asked) :]]
        assert b"".join(spelt).decode() == given["completion"]
        assert offsets[: len(asked) - 1] == [-1] * (len(asked) - 1)
        assert offsets[len(asked) - 1 :] == [len(b"".join(spelt[:n])) for n in range(len(spelt) + 1)]
        # What predicts the completion is stored, and nothing else
        assert [len(part) > 0 for part in row["teacher_hidden"]] == [offset >= 0 for offset in offsets]


def test_the_same_answer_to_another_question_is_another_row(make_pair, tmp_path):
    """A student's template may leave out what the teacher is asked."""
    blind = "{% for m in messages %}{% if m['role'] != 'system' %}" + "{{ m['content'] }} {% endif %}{% endfor %}"

    def rows(system):
        turns = [{"role": "system", "content": system}, {"role": "user", "content": "the cat"}]
        answer = [{"role": "assistant", "content": "sat on the mat"}]
        return datasets.Dataset.from_list([{"prompt": turns, "completion": answer}] * 2)

    whole = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    pair = {"student": with_chat(byte_level(), blind), "teacher": with_chat(metaspace(seed=1), whole)}
    builder_of(make_pair(**pair, dataset=rows("a dog")), tmp_path / "cache").build()
    make_pair(**pair, dataset=rows("a dog"), teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"2 of 2 rows of the train data set.*aren't in the cache"):
        make_pair(**pair, dataset=rows("a moon"), teacher_cache=str(tmp_path / "cache"))


def test_what_does_not_fit_is_refused(make_pair, tmp_path):
    cache = tmp_path / "cache"
    builder_of(make_pair(), cache).build()
    using = {"teacher_cache": str(cache)}
    with pytest.raises(UsageError, match=r"`vocabulary_alignment` is None, and the cache .* of a teacher with an"):
        make_pair(vocabulary_alignment=None, **using)
    with pytest.raises(UsageError, match="`tokenizer`"):  # another student
        make_pair(student=byte_level(seed=1), **using)
    with pytest.raises(UsageError, match=r"`(teacher_weights|other_tokenizer.tokenizer)`"):
        make_pair(teacher=metaspace(seed=2), **using)
    with pytest.raises(UsageError, match="`divergence` taid needs both models'"):
        make_pair(divergence="taid", **using)
    same = make_pair(byte_level(), byte_level(), padding=0, vocabulary_alignment=None)
    builder_of(same, tmp_path / "same").build()
    with pytest.raises(UsageError, match=r"'bytes', and the cache .* the student's own tokenizer. Leave it unset"):
        make_pair(byte_level(), byte_level(), padding=0, teacher_cache=str(tmp_path / "same"))


def test_another_tokenizer_of_the_same_weights_is_refused(make_pair, tmp_path):
    """Also one with the same vocabulary, that cuts a text in another way."""
    cache = tmp_path / "cache"
    builder_of(make_pair(), cache).build()
    trainer = make_pair(teacher_cache=str(cache), teacher_model_name_or_path=None)  # which needs no teacher
    trainer.train()

    def without_merges(path):
        state = json.loads(path.read_text())
        state["model"]["merges"] = state["model"]["merges"][:-5]
        path.write_text(json.dumps(state))

    without_merges(cache / "tokenizer" / "tokenizer.json")
    with pytest.raises(UsageError, match=r"other_tokenizer.tokenizer.*it makes anew what is damaged"):
        make_pair(teacher_cache=str(cache), teacher_model_name_or_path=None)
    shutil.rmtree(cache / "tokenizer")
    with pytest.raises(UsageError, match="tokenizer can't be read"):
        make_pair(teacher_cache=str(cache), teacher_model_name_or_path=None)
    builder_of(make_pair(), cache).build()  # makes it anew
    assert make_pair(teacher_cache=str(cache)).teacher.identity()["kind"] == "cache"


def test_the_command_builds_it_and_a_run_takes_it(make_pair, tmp_path, capsys):
    trainer = make_pair()
    student, teacher = str(tmp_path / "pair" / "student"), trainer.args.teacher_model_name_or_path
    TEXT.to_json(tmp_path / "rows.jsonl")
    recipe = {
        "model_name_or_path": student, "teacher_model_name_or_path": teacher, "max_steps": 1,
        "dataset_name": str(tmp_path / "rows.jsonl"), "vocabulary_alignment": "shared", "use_cpu": True, "bf16": False,
        "report_to": "none", "output_dir": str(tmp_path / "run"), "activation_checkpointing": False,
        "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    cache = ["--output", str(tmp_path / "cache")]
    run(command, tmp_path, *cache)
    run(distill, tmp_path, "--teacher_cache", str(tmp_path / "cache"))
    assert "aligned_share" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--mode topk has some tokens of the teacher, and vocabulary_alignment 'sha"):
        run(command, tmp_path, *cache, "--mode", "topk")


def run(which, tmp_path, *options):
    values, _, _ = which.make_parser().parse(["--config", str(tmp_path / "recipe.yaml"), *options], launched=True)
    return which.main(*values)
