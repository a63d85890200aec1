# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A served exact teacher with another tokenizer: the live teacher's trajectory, off-policy, on-policy and cached."""

import pytest
from teacher_server import TeacherServer
from test_cached import builder_of
from test_other_cached import MEASURES
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabulary_pairs import CHATS, TEXT, byte_level, metaspace, with_chat

from trl_tempkd.errors import UsageError
from trl_tempkd.vocabularies.alignment import Question


PAIR = {"student": with_chat(byte_level()), "teacher": with_chat(metaspace(seed=1))}


@pytest.fixture
def serve(make_pair, tmp_path):
    """`serve(trainer)`: a server of its teacher."""
    running = []

    def start(trainer, pooling=True, **fields):
        folder = trainer.args.teacher_model_name_or_path
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        running.append(TeacherServer(model, tokenizer, pooling=pooling, **fields).running())
        return running[-1].__enter__()

    yield start
    for each in running:
        each.__exit__(None, None, None)


def history(trainer):
    trainer.train()
    log = [*trainer.state.log_history, trainer.evaluate()]
    return {name: [entry[name] for entry in log if name in entry] for name in MEASURES}


def check_same(make_pair, server, **fields):
    live, served = (history(make_pair(**fields, **more)) for more in ({}, {"teacher_server_url": server.url}))
    assert len(live["loss"]) == 3 and 0 < live["aligned_share"][0] < 1
    for name, values in live.items():
        rel = 1e-2 if name == "grad_norm" else 1e-3
        assert served[name] == pytest.approx(values, rel=rel, abs=1e-4), name


@pytest.mark.parametrize("kind", ["text", "chats", "padding-free", "accumulated", "on-policy"])
def test_same_trajectory(make_pair, serve, kind):
    more = {
        "padding-free": {"padding_free": True, "max_length": None},
        "accumulated": {"gradient_accumulation_steps": 2, "vocabulary_alignment": "shared"},
        "on-policy": {"lmbda": 1.0, "max_new_tokens": 8},
    }
    rows = CHATS if kind in ("chats", "on-policy") else TEXT
    fields = {**PAIR, "dataset": rows, "eval_dataset": rows.select([1, 3]), "max_steps": 3, "alm_weight": 0.3}
    fields |= {"kd_temperature": 2.0, "kd_ratio": 0.7, "seed": 5, **more.get(kind, {})}
    server = serve(make_pair(**fields))
    check_same(make_pair, server, **fields)
    assert len(server.bodies) > 5


def test_it_is_asked_about_its_own_tokens(make_pair, serve):
    live = make_pair(**PAIR, dataset=CHATS)
    server = serve(live)
    make_pair(**PAIR, dataset=CHATS, teacher_server_url=server.url, max_steps=2).train()
    asked = [text for body in server.bodies for text in body["input"]]
    for row in live.train_dataset:
        reading = live.teacher.aligner.read(row["input_ids"], Question(**row["teacher_question"]))
        assert reading.ids in asked and row["input_ids"] not in asked


def test_a_cache_is_built_through_it(make_pair, serve, tmp_path):
    fields = {**PAIR, "dataset": CHATS, "eval_dataset": CHATS.select([0]), "max_steps": 3}
    live = make_pair(**fields)
    server = serve(live)
    builder_of(make_pair(**fields, teacher_server_url=server.url), tmp_path / "cache", dtype="float32").build()
    wanted, found = history(live), history(make_pair(**fields, teacher_cache=str(tmp_path / "cache")))
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-2 if name == "grad_norm" else 1e-3, abs=1e-4), name


def test_it_writes_in_its_own_tokens(make_pair, serve):
    """`seq_kd` through a server that generates."""
    fields = {**PAIR, "dataset": CHATS, "seq_kd": True, "max_new_tokens": 8, "max_steps": 1, "temperature": 0.01}
    live = make_pair(**fields)
    server, writer = serve(live), serve(live, pooling=False)
    urls = {"teacher_server_url": server.url, "teacher_server_generation_url": writer.url}
    served = make_pair(**fields, **urls)
    written = []
    for trainer in (live, served):
        trainer.train()
        written.append(trainer.rollouts.latest)
    assert any(completion for _, completion in written[0])
    assert [prompt for prompt, _ in written[0]] == [prompt for prompt, _ in written[1]]
    assert written[0] == written[1]


def test_a_server_of_log_probabilities_is_refused(make_pair, serve):
    server = serve(make_pair(), pooling=False)
    with pytest.raises(UsageError, match=r"'bytes', and `teacher_server_url` .* gives log-probabilities of so"):
        make_pair(teacher_server_url=server.url, teacher_server_model="teacher")
