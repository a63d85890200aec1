# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows that a served teacher can't read are found before anything is trained, and so are columns that nobody reads."""

import pytest
from datasets import Dataset
from teacher_server import TeacherServer
from test_own_prompt import FLASH, pairs_of, rows_of_text

from trl_tempkd import TemperatureKDTrainer


ROWS = rows_of_text()
PLAIN = [{name: row[name] for name in ("prompt", "completion")} for row in ROWS]
ON_POLICY = {"lmbda": 1.0, "max_new_tokens": 8}


@pytest.fixture(params=[True, False], ids=["states", "log-probabilities"])
def server(request, make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer, pooling=request.param).running() as server:
        server.reads = lambda most: setattr(server, "positions", most + (not request.param))  # one more is generated
        yield server


@pytest.fixture
def make(server, make_model, make_config, tokenizer, tmp_path):
    server.model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")

    def make(rows, several=False, **fields):
        name = str(tmp_path / "teacher") if server.pooling else "teacher"
        teacher = {"teacher_model_name_or_path": name, "teacher_server_url": server.url}
        if several:
            teacher = {"teachers": [{"name": "far", "model": name, "server_url": server.url}]}
        data = rows if not isinstance(rows, list) else Dataset.from_list(rows)
        args = make_config(**{**teacher, "max_length": None, "kd_temperature": 1.0, **fields})
        return TemperatureKDTrainer(make_model(), args=args, train_dataset=data, processing_class=tokenizer)

    return make


def lengths(rows, tokenizer):
    """Of what the teacher reads: its prompt and the answer; and of its prompt."""
    pairs = pairs_of([{"teacher_prompt": None, **row} for row in rows], tokenizer)
    return [len(own) + len(said) for _, own, said in pairs], [len(own) for _, own, _ in pairs]


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("rows", [ROWS, PLAIN], ids=["own prompts", "plain"])
@pytest.mark.filterwarnings(FLASH)
def test_a_row_that_the_server_cannot_read(make, server, tokenizer, rows, several):
    tokens, _ = lengths(rows, tokenizer)
    most, first = max(tokens), tokens.index(max(tokens))
    server.reads(most)
    make(rows, several)
    server.reads(most - 1)
    own = "with its `teacher_prompt` " if "teacher_prompt" in rows[0] else ""
    start = "`teachers`, far: " if several else ""
    message = (
        rf"^{start}Row {first} of the train data {own}has {most} tokens, and the server http.* reads {most - 1} at"
    )
    with pytest.raises(ValueError, match=message):
        make(rows, several)
    if not several:  # one text of a packed row is what is asked about
        with pytest.raises(ValueError, match=rf"has {most} tokens, and the server"):
            make(rows, packing=True, max_length=2 * most)
        server.reads(most)
        make(rows, packing=True, max_length=2 * most)


def test_a_prompt_of_its_own_that_leaves_no_room_for_a_completion(make, server, tokenizer):
    _, prompts = lengths(ROWS, tokenizer)
    most, first = max(prompts), prompts.index(max(prompts))
    server.reads(most + 8)
    make(ROWS, **ON_POLICY)  # whatever the data's own completions have
    server.reads(most + 7)
    message = (
        rf"Row {first} of the train data has a `teacher_prompt` of {most} tokens, behind which .* up to 8 \(`max_"
    )
    with pytest.raises(ValueError, match=message):
        make(ROWS, **ON_POLICY)
    make(PLAIN, **ON_POLICY)  # the student's own prompts are cut


def test_a_stream_is_refused_in_its_step(make, server, tokenizer):
    most = max(lengths(ROWS, tokenizer)[0])
    server.reads(most - 1)
    trainer = make(Dataset.from_list(ROWS).to_iterable_dataset(), per_device_train_batch_size=8)
    with pytest.raises(ValueError, match=rf"A row has {most} tokens, and the server .*--max-model-len"):
        trainer.train()


@pytest.mark.parametrize(
    ("rows", "teachers", "column"),
    [
        (ROWS, None, "teacher_prompt"),
        ([{**row, "teacher": "a"} for row in PLAIN], [{"name": "a", "model": "student"}], "teacher"),
        ([{"input_ids": [5, 6], "teacher_number": 0}], [{"name": "a", "model": "student"}], "teacher_number"),
    ],
    ids=["own prompts", "routed", "numbers"],
)
def test_columns_that_only_the_preparation_reads(make_config, make_model, tokenizer, rows, teachers, column):
    args = make_config(dataset_kwargs={"skip_prepare_dataset": True}, teachers=teachers)
    with pytest.raises(ValueError, match=rf"`skip_prepare_dataset`, and `train_dataset` a column `{column}`"):
        TemperatureKDTrainer(
            make_model(), None if teachers else make_model(seed=1), args, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )  # fmt: skip
