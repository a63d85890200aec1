# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd generate`: a teacher's completions as a data set."""

import json

import pytest
from made_models import build_tokenizer
from standins import save_pair
from teacher_server import TeacherServer
from trl import ScriptArguments

from trl_tempkd import cli, generating
from trl_tempkd.commands import distill
from trl_tempkd.errors import UsageError
from trl_tempkd.generating import ABOUT, DATA, FAILED, PARTS, GenerateConfig, generate
from trl_tempkd.teachers import TeacherServerError, client


TURNS = [{"role": "user", "content": "what is the capital"}]
ROWS = [
    {"prompt": "the cat", "completion": "sat"},
    {"prompt": TURNS, "tools": None},
    {"messages": [*TURNS, {"role": "assistant", "content": "none"}]},
    {"prompt": "a dog " * 80},
    {"text": "plain"},
    {"prompt": "a teacher"},
]


@pytest.fixture
def teacher(make_model, tokenizer, tmp_path):
    return save_pair(tmp_path / "pair", make_model, tokenizer)[1]


@pytest.fixture
def data(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [{"prompt": text} for text in ("the cat", "a dog " * 80, "a teacher", "")]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(teacher, tmp_path, monkeypatch):
    """`run(rows, **options)`: what is written, and how much of what."""

    def run(rows=ROWS, name="out", **options):
        monkeypatch.setattr(generating, "load_rows", lambda script_args, count: rows[:count])
        output = tmp_path / name
        fields = {"max_new_tokens": 6, "batch_size": 2, "device": "cpu", **options}
        config = GenerateConfig(teacher_model_name_or_path=teacher, output=str(output), **fields)
        counts = generate(config, ScriptArguments(dataset_name="tiny"))
        return read(output / DATA), read(output / FAILED), counts

    return run


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_written(run, tmp_path):
    written, failed, counts = run(num_completions=2)
    assert [(row["row"], row["sample"]) for row in written] == [(i, k) for i in (0, 1, 2, 5) for k in (0, 1)]
    assert written[0]["prompt"] == "the cat" and isinstance(written[0]["completion"], str)
    for row in written[2:6]:  # of a conversation a turn
        assert row["prompt"] == TURNS and [turn["role"] for turn in row["completion"]] == ["assistant"]
    assert [row["row"] for row in failed] == [3, 4]
    assert "has a prompt of" in failed[0]["failed"] and "room for 58" in failed[0]["failed"]
    assert "has no prompt" in failed[1]["failed"]
    assert counts == {"rows": 6, "written": 8, "too_short": 0, "not_stopped": 0, "failed": 2}
    about = json.loads((tmp_path / "out" / ABOUT).read_text(encoding="utf-8"))
    assert about["counts"] == counts and about["tokens"] == sum(row["tokens"] for row in written)
    assert {"teacher_weights", "fingerprint", "seed", "temperature"} <= set(about["settings"])
    assert not (tmp_path / "out" / PARTS).exists()


def test_they_are_what_the_teacher_says(run, teacher):
    from transformers import AutoModelForCausalLM

    (row,) = run([{"prompt": "the cat"}], temperature=0.0)[0]
    tokenizer, model = build_tokenizer(), AutoModelForCausalLM.from_pretrained(teacher)
    inputs = tokenizer("the cat", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert row["completion"] == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_run_that_was_stopped_goes_on_to_the_same(run, monkeypatch, tmp_path):
    whole, _, counts = run(name="whole")
    save, parts = generating.write_atomically, []

    def stop(path, text):
        if path.parent.name == PARTS:
            parts.append(path)
            if len(parts) == 2:
                raise KeyboardInterrupt
        save(path, text)

    monkeypatch.setattr(generating, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "out" / DATA).exists()
    monkeypatch.setattr(generating, "write_atomically", lambda path, text: parts.append(path) or save(path, text))
    assert run()[0] == whole
    assert len([path for path in parts[2:] if path.parent.name == PARTS]) == 2  # of three, one was there
    parts.clear()
    assert run()[2] == counts and parts == []  # complete


def test_another_run_is_refused_in_its_folder(run, tmp_path):
    run()
    with pytest.raises(UsageError, match=r"other settings \(temperature\): give another --output_dir, or --overwrite"):
        run(temperature=0.5)
    with pytest.raises(UsageError, match=r"other settings \(rows, fingerprint\)"):
        run(ROWS[:1])
    assert run(temperature=0.5, overwrite=True)[2]["written"] == 4
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else in it"):
        run(name="taken")


def test_what_is_left_out(run):
    written, _, counts = run(name="all", num_completions=8)
    stopped, _, left = run(name="stopped", num_completions=8, only_stopped=True)
    assert [row for row in written if row["stopped"]] == stopped
    assert left["not_stopped"] == counts["written"] - len(stopped) > 0
    longer, _, left = run(name="longer", num_completions=8, min_tokens=5)
    assert [row for row in written if row["tokens"] >= 5] == longer and left["too_short"] == len(written) - len(longer)


@pytest.fixture
def server(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer).running() as server:
        yield server


def test_a_server_writes_what_the_model_does(run, server, tmp_path):
    """Greedily the same tokens, without a model here."""
    rows = [{"prompt": "the cat"}, {"prompt": TURNS}, {"prompt": "a teacher"}]
    own = run(rows, name="own", temperature=0.0)
    served = run(rows, name="served", temperature=0.0, teacher_server_url=server.url)
    assert served == own and served[2]["written"] == 3
    settings = json.loads((tmp_path / "served" / ABOUT).read_text(encoding="utf-8"))["settings"]
    assert settings["teacher_server_model"] == "teacher" and server.url not in str(settings)
    assert "prompt_logprobs" not in server.bodies[-1] and isinstance(server.bodies[-1]["prompt"][0], int)
    other = run(rows, name="drawn", num_completions=2, teacher_server_url=server.url)
    assert run(rows, name="again", num_completions=2, teacher_server_url=server.url) == other


def test_a_row_that_the_server_refuses_is_named(run, server):
    def fault(number, handler):
        refused = len(handler.body["prompt"]) > 10
        if refused:
            handler.send(400, {"error": {"message": "the prompt is not to my taste"}})
        return refused

    server.fault = fault
    rows = [{"prompt": "the cat"}, {"prompt": "a dog " * 12}, {"prompt": "a teacher"}]
    written, failed, counts = run(rows, num_completions=2, teacher_server_url=server.url)
    assert {row["row"] for row in written} == {0, 2} and counts["failed"] == 1
    assert failed[0]["row"] == 1 and "HTTP 400: the prompt is not to my taste" in failed[0]["failed"]


def test_a_server_that_is_gone_fails_no_row(run, server, monkeypatch):
    """The run stops, and goes on with it later."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)

    def fault(number, handler):
        if number >= 3 and gone:
            handler.send(503, {"error": "loading"})
        return number >= 3 and bool(gone)

    gone, server.fault = [True], fault
    rows = [{"prompt": text} for text in ("the cat", "a dog", "a teacher", "the sun")]
    options = {"teacher_server_url": server.url, "teacher_server_patience": 0.3, "temperature": 0.0}
    with pytest.raises(TeacherServerError, match="HTTP 503"):
        run(rows, **options)
    gone.clear()
    written, failed, _ = run(rows, **options)
    assert [row["row"] for row in written] == [0, 1, 2, 3] and failed == []


def test_what_a_server_cannot_do(run, server):
    with pytest.raises(UsageError, match=r"`generation_kwargs` is .* the teacher's server generates"):
        run(teacher_server_url=server.url, generation_kwargs={"no_repeat_ngram_size": 3})
    with pytest.raises(UsageError, match="`teacher_server_model` is x, and is of a teacher that is served"):
        run(teacher_server_model="x")
    server.pooling = True
    with pytest.raises(UsageError, match="It must generate, as vLLM does without --runner pooling"):
        run(teacher_server_url=server.url)


def test_nothing_to_keep(run):
    with pytest.raises(UsageError, match="has a completion that is kept: the first row that failed has no"):
        run([{"text": "plain"}])


THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def test_what_a_template_opens_is_of_the_answer(make_model, tokenizer, tmp_path, run, monkeypatch):
    own = build_tokenizer()
    own.chat_template = THINKING
    monkeypatch.setattr("trl_tempkd.models.load_tokenizer", lambda *args: own)
    (row,) = run([{"prompt": TURNS}])[0]
    assert row["completion"][0]["content"].startswith("<think>\n")
    # so that what is trained on is what the teacher has said after its prompt
    asks = own.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    assert own.apply_chat_template([*TURNS, *row["completion"]], tokenize=False).startswith(asks)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num_completions", "0"], "`num_completions` must be at least 1, got 0"),
        (["--temperature", "-1"], "`temperature` must be at least 0"),
        (["--generation_kwargs", '{"max_length": 3}'], "can't set max_length"),
        (["--output", ""], "no folder for the completions: give --output"),
        (["--teacher_model_name_or_path", "./nowhere"], "nowhere"),
        (["--dataset_name", "./nowhere.jsonl"], "nowhere.jsonl"),
        (["--num_completion", "2"], "did you mean '--num_completions'"),
    ],
)
def test_mistakes(teacher, data, tmp_path, capfd, options, said):
    command = ["generate", "--teacher_model_name_or_path", teacher, "--dataset_name", data]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--output", str(tmp_path / "out"), *options])
    (line,) = capfd.readouterr().err.splitlines()
    assert stopped.value.code == 2 and said in line and line.startswith("trl-tempkd generate: error: ")


@pytest.mark.distributed
def test_two_processes_write_the_same_and_a_student_trains_on_it(teacher, data, tmp_path, capfd):
    command = ["generate", "--teacher_model_name_or_path", teacher, "--dataset_name", data, "--device", "cpu"]
    command += ["--max_new_tokens", "6", "--batch_size", "2"]
    two = ["--accelerate_config", "multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    for name, launched in (("one", []), ("two", two)):
        assert cli.main([*command, "--output", str(tmp_path / name), *launched]) == 0, capfd.readouterr().err
    assert read(tmp_path / "one" / DATA) == read(tmp_path / "two" / DATA)
    recipe = ["--dataset_name", str(tmp_path / "two"), "--max_steps", "1", "--use_cpu", "--report_to", "none"]
    models = ["--model_name_or_path", teacher, "--teacher_model_name_or_path", teacher]
    distill.main(*distill.make_parser().parse_here([*models, *recipe, "--output_dir", str(tmp_path / "run")]))
