# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Servers of last hidden states: the live teacher's trajectory, what is refused, and what faults of the server do."""

import json
import threading
import time
from itertools import pairwise

import pytest
import ranks
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from standins import save_pair
from teacher_server import TeacherServer
from test_cached import OBJECTIVES, builder_of, close, losses_of, options
from test_own_prompt import rows_of_text
from test_served import FORMATS, Restart, answered, dropped, history
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.commands import distill
from trl_tempkd.rollouts import sampling
from trl_tempkd.rollouts.rows import split
from trl_tempkd.study.diagnostics import Plan, collect, diagnose
from trl_tempkd.teachers import TeacherServerError, build, client
from trl_tempkd.tiny import resolve


PROBES = 4  # requests at the start
ON_POLICY = {"lmbda": 1.0, "max_new_tokens": 8, "temperature": 1.0, "gradient_accumulation_steps": 2}


@pytest.fixture
def checkpoint(tmp_path, make_model, tokenizer):
    """`checkpoint(architecture)`: folders of a student and its teacher."""
    return lambda architecture="llama": save_pair(tmp_path / architecture, make_model, tokenizer, architecture)


@pytest.fixture
def server(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer, pooling=True).running() as server:
        yield server


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)


@pytest.fixture
def make(checkpoint, make_model, make_config, prompt_dataset, tokenizer):
    """`make(server, **fields)`: a trainer whose teacher is served, or with `None` is the same one in memory."""

    def make(server, architecture="llama", train_dataset=None, eval_dataset=None, callbacks=None, **fields):
        fields = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, **fields}
        if server is not None:
            fields = {"teacher_server_url": server.url, "teacher_server_patience": 20.0, **fields}
        return TemperatureKDTrainer(
            make_model(architecture),
            args=make_config(**{"teacher_model_name_or_path": checkpoint(architecture)[1], **fields}),
            train_dataset=prompt_dataset if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def check_same(make, server, rel=1e-3, **fields):
    live, served = history(make(None, **fields)), history(make(server, **fields))
    assert len(live["loss"]) == 4 and max(live["loss"]) > 1e-3
    for name, values in live.items():
        assert served[name] == pytest.approx(values, rel=10 * rel if name == "grad_norm" else rel, abs=1e-4), name


# The same trajectory


RULE = {
    "divergence": "reverse_kl",
    "kd_temperature_rule": "token_adaptive",
    "kd_temperature_rule_kwargs": {"keep": 0.6},
}


@pytest.mark.parametrize("name", [*OBJECTIVES, "taid", "rule"])
def test_same_trajectory(make, server, prompt_dataset, name):
    fields = {"eval_dataset": prompt_dataset.select(range(5, 8)), "eval_strategy": "steps", "eval_steps": 2}
    check_same(make, server, **fields, **{**OBJECTIVES, "taid": {"divergence": "taid"}, "rule": RULE}[name])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "phi", "cohere", "opt"])
def test_same_trajectory_of_other_heads(make, make_model, tokenizer, architecture):
    """Tied, with a bias, a scale, a cap, and narrower than the layers. GPT-2's student has dropout."""
    model = make_model(architecture, seed=1)
    with TeacherServer(model, tokenizer, pooling=True).running() as server:
        if architecture == "opt":  # what its decoder projects is what vLLM gives
            server.model = make_model("opt", seed=1)
        check_same(make, server, architecture=architecture, kd_temperature=3.0)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "assistant only"])
def test_data_formats(make, server, request, name):
    dataset, fields = FORMATS[name]
    check_same(make, server, train_dataset=request.getfixturevalue(dataset), **fields)


@pytest.mark.parametrize("encodings", [("base64", "float"), ("float",)])
def test_other_encodings(make, server, encodings):
    server.encodings = encodings
    check_same(make, server)
    assert server.bodies[-1]["encoding_format"] == encodings[0]


def test_a_proxy_may_drop_the_header(make, server):
    server.headers = {"metadata": None}
    check_same(make, server)


def test_bf16_is_sent_in_half(make, server, make_model, capsys):
    server.model = make_model(seed=1).bfloat16()
    trainer = make(server, teacher_model_init_kwargs={"dtype": "bfloat16"})
    assert trainer.teacher.served.dtype == "bfloat16"
    assert "last hidden states of size 32 in bfloat16, and the head of" in capsys.readouterr().out
    live = history(make(None, teacher_model_init_kwargs={"dtype": "bfloat16"}))
    assert history(trainer)["loss"] == pytest.approx(live["loss"], rel=1e-2)
    assert server.bodies[-1]["embed_dtype"] == "bfloat16"


def test_diagnostics(make, server):
    plan = Plan(["reverse_kl"], [1.0, 4.0], ["both"])
    tables = []
    for each in (None, server):
        trainer = make(each)
        tables.append([row["value"] for row in diagnose(trainer, collect(trainer, trainer.train_dataset), plan)])
    assert tables[1] == pytest.approx(tables[0], rel=1e-2, abs=1e-4)


def test_the_request(make, server):
    trainer = make(server, max_steps=1)
    history(trainer)
    body = server.bodies[-1]
    text, mark = body.pop("input")
    assert mark == trainer.teacher.served.mark and len(text) > 4
    assert body == {
        "model": "teacher",
        "encoding_format": "bytes",
        "embed_dtype": "float32",
        "endianness": "little",
        "use_activation": False,
    }


def test_names(make, server, checkpoint):
    server.name = "org/model"
    assert make(server).teacher.client.model == "org/model"  # the only one
    assert make(server, teacher_server_model="org/model").teacher.client.model == "org/model"
    with pytest.raises(TeacherServerError, match="serves 'org/model', and `teacher_server_model` is 'x'"):
        make(server, teacher_server_model="x")
    with pytest.raises(ValueError, match=r"gives last hidden states, and the head .*let `teacher_model_name_or_path`"):
        make(server, teacher_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"`teacher_server_logprobs` is 8, .* gives last hidden states"):
        make(server, teacher_server_logprobs=8)
    with pytest.raises(ValueError, match=r"`teacher_model_init_kwargs` is .*: nothing but its `dtype`"):
        make(server, teacher_model_init_kwargs={"attn_implementation": "eager"})


# What isn't the teacher


@pytest.fixture
def trained():
    """The built-in teacher, served."""
    folder = resolve("tiny:teacher")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with TeacherServer(model, AutoTokenizer.from_pretrained(folder), pooling=True).running() as server:
        yield server


def with_head(folder, tokenizer, change):
    """The checkpoint of the built-in teacher with another head."""
    model = AutoModelForCausalLM.from_pretrained(resolve("tiny:teacher"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = change(tensors["model.embed_tokens.weight"]).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda weight: weight.roll(1, 0), "the head isn't that of the served model"),
        (lambda weight: weight[torch.randperm(len(weight))], "the head isn't that of the served model"),
        (lambda weight: -weight, "the head isn't that of the served model"),
        (lambda weight: 4 * weight, "the head isn't that of the served model"),
    ],
)
def test_refuses_a_wrong_head(tmp_path, trained, make_config, prompt_dataset, change, match):
    checkpoint = with_head(tmp_path / "other", trained.tokenizer, change)
    args = make_config(teacher_server_url=trained.url, teacher_model_name_or_path=checkpoint)
    with pytest.raises(ValueError, match=match):
        TemperatureKDTrainer(resolve("tiny:student"), args=args, train_dataset=prompt_dataset)


def test_takes_the_right_one(trained, make_config, prompt_dataset):
    args = make_config(teacher_server_url=trained.url, teacher_model_name_or_path="tiny:teacher")
    trainer = TemperatureKDTrainer(resolve("tiny:student"), args=args, train_dataset=prompt_dataset)
    assert 4 < trainer.teacher.served.cross_entropy < 7.5  # a guess costs 8.3
    assert trainer.teacher_model is None


def test_refuses_another_size(make, server, make_model):
    server.model = make_model(seed=1, hidden_size=64)
    with pytest.raises(ValueError, match=r"last hidden states of size 64, and the head of .* takes 32"):
        make(server)


def unlike(states, body):
    return [part + torch.randn_like(part) for part in states]


def both_sides(states, body):
    return [part.flip(0).cumsum(0).flip(0) for part in states]


def normalised(states, body):
    return [part / part.norm(dim=-1, keepdim=True) for part in states]


def without_a_row(states, body):
    return [part[:-1] for part in states]


def one_vector(states, body):
    return [part[-1] for part in states]


def later(states, body):
    return [torch.cat([part[:1], part[:-1]]) for part in states]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (unlike, "other states when it is asked the same again"),
        (both_sides, "depend on what comes after them"),
        (normalised, "normalised to length 1.*use_activation"),
        (without_a_row, "has sent 3 replies .* states of 1 tokens of 2"),
        (one_vector, "one vector of a text, and not one of each token: start the server with --runner pooling"),
        (later, "don't change with their token"),
        (lambda states, body: [part * torch.nan for part in states], "states that aren't finite"),
        (lambda states, body: states[:0], "it is about 0 texts of 1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refuses_other_states(make, server, quick, change, match):
    server.states = change
    with pytest.raises(ValueError, match=match):
        make(server)


FOREIGN = {
    "SGLang": ("/get_model_info", {"model_path": "x"}),
    "llama.cpp": ("/props", {"default_generation_settings": {}}),
    "Ollama": ("/api/version", {"version": "1"}),
    "vllm-serve": ("/get_world_size/", {"world_size": 1}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_names_other_servers(make, server, quick, name):
    path, said = FOREIGN[name]

    def models(handler):
        known = handler.path == path or (handler.path == "/v1/models" and name != "vllm-serve")
        if handler.path != "/v1/models":
            handler.send(*((200, said) if known else (404, {"detail": "Not Found"})))
        elif not known:
            handler.send(404, {"detail": "Not Found"})
        return handler.path != "/v1/models" or not known

    def without_logprobs(number, handler):
        handler.send(200, {"choices": [{"text": "x"}]})
        return True

    server.pooling, server.models, server.fault = False, models, without_logprobs
    with pytest.raises(
        ValueError, match=rf"is .*{name}.* server, which .* Start vLLM in its place: `vllm serve MODEL"
    ):
        make(server)


# Faults


def other_dtype(handler):
    status, reply, headers = handler.server.teacher.pooled(handler.body)
    handler.send(status, reply, **{**headers, "metadata": headers["metadata"].replace("float32", "bfloat16")})
    return True


def cut(handler):
    status, reply, headers = handler.server.teacher.pooled(handler.body)
    handler.send(status, reply, cut=len(reply) // 2, **headers)
    return True


def short(handler):
    status, reply, headers = handler.server.teacher.pooled(handler.body)
    handler.send(status, reply[: len(reply) // 2], **headers)
    return True


def fewer_rows(handler):
    status, reply, headers = handler.server.teacher.pooled({**handler.body, "input": [[5, 6, 7]] * 2})
    handler.send(status, reply, **headers)
    return True


def infinite(handler):
    status, reply, headers = handler.server.teacher.pooled(handler.body)
    handler.send(status, b"\xff" * len(reply), **headers)
    return True


FAULTS = {
    "500": answered(500, {"error": {"message": "out of memory"}}),
    "dropped": dropped,
    "cut off": cut,
    "short": short,
    "another dtype": other_dtype,
    "another number of rows": fewer_rows,
    "NaN": infinite,
    "no JSON": answered(200, b'{"data": ['),
}


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_now_and_then_changes_nothing(make, server, quick, name, on_policy):
    fields = ON_POLICY if on_policy else {}
    expected = history(make(server, **fields))
    failed = set()

    def fault(number, handler):
        request = json.dumps(handler.body)
        if request in failed or len(handler.body["input"]) == 1:
            return False
        failed.add(request)
        return FAULTS[name](handler)

    server.fault = fault  # each request fails once
    assert history(make(server, **fields)) == close(expected, rel=1e-3)
    assert len(failed) >= 8


class Swap(TrainerCallback):
    """Another model of the same shape stands behind the address after a step."""

    def __init__(self, server, model, step):
        self.server, self.other, self.step = server, model, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.server.stop()
            self.server.model = self.other
            self.server.start()


@pytest.mark.parametrize("fields", [{}, ON_POLICY], ids=["off-policy", "on-policy"])
def test_another_model_after_a_restart(make, server, quick, make_model, tmp_path, fields):
    trainer = make(server, callbacks=[Swap(server, make_model(seed=5), 1)], save_strategy="steps", **fields)
    match = r"gave last hidden states of size 32 in float32 at the start, and now gives other ones for the same tokens"
    with pytest.raises(TeacherServerError, match=match):
        trainer.train()
    done = trainer.state.global_step
    assert 1 <= done < 4 and (tmp_path / f"out/checkpoint-{done}").is_dir()


def test_top_k_and_states_are_told_apart_after_a_restart(make, server, quick):
    class Change(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            server.pooling = False

    with pytest.raises(TeacherServerError, match=r"HTTP 404.*It must give the last hidden states of every token"):
        make(server, callbacks=[Change()]).train()


# On-policy


@pytest.mark.parametrize(
    "fields",
    [{"divergence": "reverse_kl"}, {"lmbda": 0.5}, {"replay_size": 4, "replay_ratio": 0.5}, {"padding_free": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_same_trajectory_on_policy(make, server, fields):
    fields = {**ON_POLICY, "max_length": None, **fields}
    check_same(make, server, **fields)


@pytest.mark.parametrize("k", [None, 8])
def test_log_probabilities_on_policy(make, server, make_model, tokenizer, k):
    """Any served teacher is asked about what was generated; the whole vocabulary gives the live one's trajectory."""
    server.pooling = False
    fields = {**ON_POLICY, "kd_temperature": 1.0, "teacher_server_logprobs": k, "divergence": "forward_kl"}
    losses = history(make(server, teacher_model_name_or_path="teacher", **fields))["loss"]
    assert len(losses) == 4 and min(losses) > 0
    if k is None:
        assert losses == pytest.approx(
            history(make(None, **{**fields, "teacher_server_logprobs": None}))["loss"], rel=1e-3
        )


def test_trains_while_the_server_answers(make, server):
    """All rows of a step are asked about at once, so many at a time, and the first micro-batch waits for its own."""
    spans, lock = [], threading.Lock()

    def slow(number, handler):
        begun = time.monotonic()
        time.sleep(0.2)
        with lock:
            spans.append((begun, time.monotonic()))
        return False

    trained = []

    class Look(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            trained.append(time.monotonic())

        on_step_end = on_substep_end

    fields = {**ON_POLICY, "gradient_accumulation_steps": 4, "max_steps": 1, "teacher_server_requests": 2}
    trainer = make(server, callbacks=[Look()], **fields)
    server.peak, server.fault = 0, slow
    trainer.train()
    assert server.peak == 2 and len(spans) == 8
    assert trained[0] < max(end for _, end in spans)  # the last rows weren't there yet
    assert all(later > earlier for earlier, later in pairwise(trained))


def test_what_is_written_first_is_asked_about_first(make, server, monkeypatch):
    """With `generation_batch_size` the server works while the rest is generated, on the same rows."""
    expected = history(make(server, **ON_POLICY, generation_batch_size=1))
    counts, complete = [], sampling.complete

    def counted(*args, **kwargs):
        deadline = time.monotonic() + 5
        while server.count < PROBES + len(counts) and time.monotonic() < deadline:
            time.sleep(0.01)
        counts.append(server.count - PROBES)
        return complete(*args, **kwargs)

    trainer = make(server, **ON_POLICY, generation_batch_size=1)
    server.count = PROBES
    monkeypatch.setattr(sampling, "complete", counted)
    assert history(trainer) == close(expected, rel=1e-3)
    assert counts == [*range(16)] and server.count == PROBES + 16  # no row twice


@pytest.mark.parametrize("own_prompt", [False, True])
def test_a_row_is_asked_about_when_it_ends(make, server, monkeypatch, prompt_dataset, own_prompt):
    """While longer ones of the same batch are written, each once, also with a prompt of the teacher's own."""
    rows = Dataset.from_list(rows_of_text()) if own_prompt else prompt_dataset
    trainer = make(server, train_dataset=rows, **{**ON_POLICY, "max_new_tokens": 24, "max_steps": 2})
    # Half of all tokens end a completion, so that a batch ends row by row
    trainer.rollouts.samplers["student"].config.eos_token_id = list(range(0, 192, 2))
    early, generate = [], type(trainer.model).generate

    def watched(*args, **kwargs):
        before = server.count
        output = generate(*args, **kwargs)
        deadline = time.monotonic() + 20
        while server.count == before and time.monotonic() < deadline:
            time.sleep(0.01)
        early.append(server.count - before)
        return output

    monkeypatch.setattr(type(trainer.model), "generate", watched)
    server.count = 0
    trainer.train()
    assert len(early) == 2 and min(early) > 0
    assert server.count == 2 * 4  # of two steps, no row twice


@pytest.mark.parametrize("name", ["off-policy", "on-policy", "one by one", "replay"])
def test_a_prompt_of_its_own_is_what_the_teacher_is_asked_with(make, server, name):
    fields = {
        "off-policy": {},
        "on-policy": ON_POLICY,
        "one by one": {**ON_POLICY, "generation_batch_size": 1},
        "replay": {**ON_POLICY, "replay_size": 4, "replay_ratio": 0.5},
    }[name]
    check_same(make, server, train_dataset=Dataset.from_list(rows_of_text()), **fields)
    assert server.count == PROBES + 4 * 2 * fields.get("gradient_accumulation_steps", 1)  # each text once


def test_nothing_is_asked_about_text_that_is_replaced(make, server, prompt_dataset):
    history(make(server, **ON_POLICY))
    given = {tuple(ids) for ids in make(server, **ON_POLICY).train_dataset["input_ids"]}
    assert not given & {tuple(body["input"][0]) for body in server.bodies}


class Away(TrainerCallback):
    """Of a step the server answers the first requests alone."""

    def __init__(self, server, step, answers):
        self.server, self.step, self.answers = server, step, answers

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.kept = [row.input_ids for row in self.trainer.rollouts.replay]
            last = self.server.count + self.answers
            self.server.fault = lambda number, handler: number >= last and dropped(handler)


@pytest.mark.parametrize("answers", [0, 3])
def test_a_server_that_stays_away(make, server, quick, tmp_path, make_model, answers):
    """On-policy too: what was generated in the step is forgotten, and the random state is that before it."""
    server.model = make_model("gpt2", seed=1).eval()
    fields = {
        "architecture": "gpt2",  # with dropout
        **ON_POLICY,
        "replay_size": 8,
        "replay_ratio": 0.0,  # what is kept changes in each step
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 100,
        "teacher_server_patience": 0.5,
        "teacher_server_requests": 1,
    }
    whole = history(make(server, **fields))
    away = Away(server, 3, answers)
    away.trainer = trainer = make(server, callbacks=[away], **fields)
    with pytest.raises(TeacherServerError, match=r"hasn't answered for .*`resume_from_checkpoint`"):
        trainer.train()
    assert trainer.state.global_step == 3
    kept = split(load_file(tmp_path / "out/checkpoint-3/rollouts_0.safetensors"))
    assert away.kept and [row.input_ids for row in kept] == away.kept
    server.fault = lambda number, handler: False
    resumed = history(make(server, **fields), resume_from_checkpoint=str(tmp_path / "out/checkpoint-3"))
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_a_restart_loses_nothing(make, server, quick):
    expected = history(make(server, **ON_POLICY))
    assert history(make(server, callbacks=[Restart(server, 2, 0.3)], **ON_POLICY)) == close(expected, rel=1e-3)


def test_prompts_leave_room_on_the_server(make, server):
    server.positions = 20
    trainer = make(server, **ON_POLICY)
    assert trainer.rollouts.max_prompt == 12
    trainer.train()
    assert max(len(body["input"][0]) for body in server.bodies) <= 20


# Completions of a served teacher


@pytest.fixture
def writing(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer).running() as server:
        yield server


OF_TEACHER = {"seq_kd": True, "max_new_tokens": 8, "temperature": 0.0, "gradient_accumulation_steps": 2}


def test_the_teacher_writes(make, server, writing):
    """Greedily, so that the live teacher writes the same."""
    live = history(make(None, **OF_TEACHER))
    served = history(make(writing, teacher_model_name_or_path="teacher", **OF_TEACHER))
    beside = history(make(server, teacher_server_generation_url=writing.url, **OF_TEACHER))
    assert min(live["loss"]) > 1e-3
    assert served["loss"] == pytest.approx(live["loss"], rel=1e-3)
    assert beside["loss"] == pytest.approx(live["loss"], rel=1e-3)


def test_what_the_teacher_writes_is_seeded(make, server, writing):
    fields = {**OF_TEACHER, "temperature": 1.0, "teacher_server_generation_url": writing.url}
    losses = [history(make(server, seed=seed, **fields))["loss"] for seed in (1, 1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0] != pytest.approx(losses[2], rel=1e-3)
    asked = [body for body in writing.bodies if "prompt_logprobs" not in body][-8:]
    assert len({body["seed"] for body in asked}) == 8


def test_refuses_to_generate_with_states(make, server, writing, quick):
    with pytest.raises(ValueError, match=r"`seq_kd` is True, .* can't generate. Let `teacher_server_generation_url`"):
        make(server, **OF_TEACHER)
    with pytest.raises(ValueError, match=r"HTTP 404.*It must generate, as vLLM does without --runner pooling"):
        make(server, teacher_server_generation_url=server.url, **OF_TEACHER)
    with pytest.raises(ValueError, match=r"`generation_kwargs` is .* the teacher's server generates"):
        make(
            server,
            teacher_server_generation_url=writing.url,
            generation_kwargs={"no_repeat_ngram_size": 2},
            **OF_TEACHER,
        )
    with pytest.raises(ValueError, match=r"`teacher_server_generation_url` is .*, and `seq_kd` False"):
        make(server, teacher_server_generation_url=writing.url)
    with pytest.raises(ValueError, match="`teacher_server_generation_url` must begin with http"):
        make(server, teacher_server_generation_url="x", **OF_TEACHER)
    writing.change = lambda reply, body: {"choices": [{"text": "x"}]}
    with pytest.raises(ValueError, match=r"it has no token ids, which vLLM gives from version 0.10.2 on"):
        make(server, teacher_server_generation_url=writing.url, **OF_TEACHER)


# Caches


@pytest.mark.parametrize("rows", [None, rows_of_text()], ids=["", "own prompts"])
@pytest.mark.parametrize("mode", ["hidden", "topk", "sampled"])
def test_a_cache_from_a_server(make, server, tmp_path, mode, rows, capsys):
    """What it has is what the teacher itself writes, and a run with it is the same."""
    data = {"train_dataset": rows and Dataset.from_list(rows)}
    found = {}
    for name, each in (("live", None), ("served", server)):
        kwargs = {} if mode == "hidden" else {"mode": mode, "count": 8, "taus": (2.0,)}
        manifest = builder_of(make(each, **data), tmp_path / name, "float32", **kwargs).build()
        trainer = make(None, teacher_cache=str(tmp_path / name), divergence="forward_kl", **data)
        found[name] = history(trainer)["loss"]
    assert found["served"] == pytest.approx(found["live"], rel=1e-3)
    assert manifest.teacher_weights and manifest.mode == mode and manifest.own_prompts == bool(rows)
    assert "The teacher has seen" in capsys.readouterr().out


def test_a_cache_goes_on_after_the_server_was_away(make, server, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SHARD_BYTES", 2048)
    todo = len(make(server).train_dataset)
    fields = {"teacher_server_patience": 0.3, "teacher_server_requests": 2}
    builder = builder_of(make(server, **fields), tmp_path / "cache", "float32", batch_size=1)
    first = server.count
    server.fault = lambda number, handler: number >= first + todo - 2 and dropped(handler)
    with pytest.raises(TeacherServerError, match="hasn't answered for"):
        builder.build()
    whole = len([*(tmp_path / "cache").rglob("data-*.arrow")])
    assert whole >= 2
    server.fault = lambda number, handler: False
    builder = builder_of(make(server, **fields), tmp_path / "cache", "float32", batch_size=1)
    first = server.count
    assert builder.build().complete
    assert 0 < server.count - first < todo


def test_a_cache_needs_states(make, server, tmp_path):
    server.pooling = False
    trainer = make(server, teacher_model_name_or_path="teacher")
    with pytest.raises(ValueError, match=r"built from last hidden states, and the server .* hasn't them: start the"):
        builder_of(trainer, tmp_path / "cache", "float32")


# Several processes


GREEDY = {"lmbda": 1.0, "max_new_tokens": 8, "temperature": 0.0, "gradient_accumulation_steps": 2}


def in_one(folder, *arguments, **fields):
    """The losses of a run with four rows a batch, in this process."""
    arguments = options(folder, *arguments, do_eval=False, max_length=48, per_device_train_batch_size=4, **fields)
    distill.main(*distill.make_parser().parse(arguments, launched=True)[0])
    return losses_of(folder / "output")


def in_two(folder, *arguments, **fields):
    """Exit status and output of two processes, with two rows each."""
    arguments = options(folder, *arguments, do_eval=False, max_length=48, per_device_train_batch_size=2, **fields)
    return ranks.command("distill", arguments, folder / "run")


@pytest.mark.distributed
def test_two_processes_train_as_one(tmp_path, server, checkpoint, prompt_dataset):
    fields = {"teacher_server_url": server.url}
    expected = in_one(tmp_path / "one", checkpoint(), prompt_dataset, **fields)
    code, said = in_two(tmp_path / "two", checkpoint(), prompt_dataset, **fields)
    assert code == 0, said
    assert len(expected) == 3 and min(expected) > 1e-3
    assert losses_of(tmp_path / "two/output") == pytest.approx(expected, rel=1e-3)


@pytest.mark.distributed
def test_two_processes_stop_together(tmp_path, server, checkpoint, prompt_dataset):
    """On-policy, in the middle of the last step: both stop with a checkpoint, and go on from it as one would."""
    fields = {**GREEDY, "teacher_server_url": server.url, "teacher_server_patience": 2.0, "max_steps": 4}
    fields |= {"save_strategy": "steps", "save_steps": 100}
    expected = in_one(tmp_path / "one", checkpoint(), prompt_dataset, **fields)
    steps = 4 * 8
    assert server.count == PROBES + steps
    server.count = 0
    last = 2 * PROBES + steps - 5  # three of its eight texts are answered
    server.fault = lambda number, handler: number >= last and dropped(handler)
    code, said = in_two(tmp_path / "two", checkpoint(), prompt_dataset, **fields)
    assert code != 0 and "error: The teacher's server" in said and "hasn't answered for" in said, said
    assert (tmp_path / "two/output/checkpoint-3").is_dir(), said
    server.fault = lambda number, handler: False
    code, said = in_two(tmp_path / "two", checkpoint(), prompt_dataset, **fields, resume_from_checkpoint=True)
    assert code == 0, said
    found = losses_of(tmp_path / "two/output")
    assert len(found) == 4 and found == pytest.approx(expected, rel=1e-3)
