# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Served teachers: the live teacher's trajectory over HTTP, what is refused, and what faults of the server do."""

import gc
import threading
import time

import datasets
import pytest
import ranks
import torch
from standins import save_pair
from teacher_server import TeacherServer
from test_cached import OBJECTIVES, builder_of, close, losses_of, options
from transformers import TrainerCallback

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.command_line import usage_errors_on_one_line
from trl_tempkd.commands import distill
from trl_tempkd.study.diagnostics import Plan, collect, diagnose
from trl_tempkd.teachers import TeacherServerError, client
from trl_tempkd.teachers.asked import documents


MEASURES = ("loss", "grad_norm", "kd_loss", "kl_tau1", "teacher_entropy", "token_agreement", "eval_loss")
PROBES = 3  # requests at the start: of which kind it is, and what it gives


@pytest.fixture
def server(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer).running() as server:
        yield server


@pytest.fixture
def pair(tmp_path, make_model, tokenizer):
    return lambda: save_pair(tmp_path / "pair", make_model, tokenizer)


@pytest.fixture
def quick(monkeypatch):
    """Requests are repeated at once."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)


@pytest.fixture
def make(make_model, make_config, prompt_dataset, tokenizer):
    """`make(server, **fields)`: a trainer whose teacher is served, or with `None` is the same one in memory."""

    def make(server, architecture="llama", train_dataset=None, eval_dataset=None, callbacks=None, **fields):
        fields = {"max_steps": 4, "per_device_train_batch_size": 2, **fields}
        if server is not None:
            fields = {"teacher_server_url": server.url, "teacher_server_patience": 20.0, **fields}
        return TemperatureKDTrainer(
            make_model(architecture),
            None if server is not None else make_model(architecture, seed=1),
            args=make_config(**fields),
            train_dataset=prompt_dataset if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def history(trainer, **kwargs):
    trainer.train(**kwargs)
    log = trainer.state.log_history
    return {name: [entry[name] for entry in log if name in entry] for name in MEASURES}


def check_same(make, server, rel=1e-3, **fields):
    # A server's numbers are in fp32, whatever the teacher has, and its rows aren't padded. So they differ by rounding,
    # which Adam enlarges where gradients are small: by less than 1e-5 of the loss, and of the norm by 1e-4.
    fields = {"learning_rate": 1e-3, **fields}
    live, served = history(make(None, **fields)), history(make(server, **fields))
    assert len(live["loss"]) == 4 and max(live["loss"]) > 1e-3
    for name, values in live.items():
        assert served[name] == pytest.approx(values, rel=10 * rel if name == "grad_norm" else rel, abs=1e-4), name


# The same trajectory


@pytest.mark.parametrize("name", OBJECTIVES)
def test_same_trajectory(make, server, prompt_dataset, name):
    fields = {"eval_dataset": prompt_dataset.select(range(5, 8)), "eval_strategy": "steps", "eval_steps": 2}
    check_same(make, server, **fields, **OBJECTIVES[name])


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text"])
def test_same_trajectory_of_other_architectures(make, make_model, tokenizer, architecture):
    # GPT-2's student has dropout, so the random numbers are the same too; Gemma caps its logits
    with TeacherServer(make_model(architecture, seed=1), tokenizer).running() as server:
        check_same(make, server, architecture=architecture, kd_temperature=3.0)


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logprobs", "processed_logits"])
def test_same_trajectory_in_other_modes(make, server, mode):
    server.mode = mode
    check_same(make, server, kd_temperature=3.0)


FORMATS = {
    "text": ("text_dataset", {}),
    "assistant only": ("chat_dataset", {"assistant_only_loss": True}),
    "bfd": ("prompt_dataset", {"packing": True, "max_length": 32}),
    "wrapped": ("text_dataset", {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}),
    "padding-free": ("prompt_dataset", {"padding_free": True, "max_length": None, "pad_to_multiple_of": 16}),
    "padded": ("text_dataset", {"pad_to_multiple_of": 16}),
    "accumulated": ("prompt_dataset", {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1}),
    "workers": ("prompt_dataset", {"dataloader_num_workers": 2}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_data_formats(make, server, request, name):
    dataset, fields = FORMATS[name]
    check_same(make, server, train_dataset=request.getfixturevalue(dataset), **fields)


def test_streamed(make, server, prompt_dataset):
    check_same(make, server, train_dataset=prompt_dataset.to_iterable_dataset(num_shards=2))


def test_documents_of_a_packed_row():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 1, 1]]),
        "position_ids": torch.tensor([[0, 1, 0, 1, 2, 0, 0]]),  # padded
    }
    assert list(documents(batch))[:2] == [((0, 0), [5, 6]), ((0, 2), [7, 8, 9])]
    batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    assert list(documents(batch)) == [((0, 0), [5, 6, 7]), ((1, 0), [8, 9])]


def test_diagnostics(make, server):
    plan = Plan(["reverse_kl"], [1.0, 4.0], ["both"])
    tables = []
    for each in (None, server):
        trainer = make(each)
        tables.append([row["value"] for row in diagnose(trainer, collect(trainer, trainer.train_dataset), plan)])
    assert tables[1] == pytest.approx(tables[0], rel=1e-2, abs=1e-4)


def test_the_request(make, server, prompt_dataset):
    history(make(server, max_steps=1))
    body = server.bodies[-1]
    ids = body.pop("prompt")
    texts = [row["prompt"] + row["completion"] + server.tokenizer.eos_token for row in prompt_dataset]
    assert ids in server.tokenizer(texts)["input_ids"]
    assert body == {
        "model": "teacher",
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "prompt_logprobs": -1,
    }


def test_the_command(tmp_path, server, quick, make_model, tokenizer, prompt_dataset, capsys):
    student, _ = save_pair(tmp_path, make_model, tokenizer)
    datasets.DatasetDict(train=prompt_dataset, test=prompt_dataset.select(range(4))).save_to_disk(tmp_path / "data")
    values = {
        "model_name_or_path": student,
        "teacher_server_url": f"{server.url}/v1/",
        "teacher_server_patience": 0.2,
        "teacher_model_name_or_path": "teacher",
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "output",
        "max_steps": 2,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    arguments = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    values, _, _ = distill.make_parser().parse(arguments, launched=True)
    distill.main(*values)
    assert (tmp_path / "output/model.safetensors").is_file()
    assert server.count > PROBES
    server.stop()
    with pytest.raises(SystemExit) as stop, usage_errors_on_one_line("trl-tempkd distill"):
        distill.main(*values)
    assert stop.value.code == 2
    assert "error: The teacher's server http://127.0.0.1" in capsys.readouterr().err


# What the server is found to give


def test_what_is_found_out(make, server):
    for mode, normalised, tempered in (
        ("raw_logprobs", True, False),
        ("raw_logits", False, False),
        ("processed_logprobs", True, True),
        ("processed_logits", False, True),
    ):
        server.mode = mode
        found = make(server).teacher.served
        assert (found.normalised, found.tempered, found.whole) == (normalised, tempered, True), mode
    assert found.width == len(server.tokenizer)


def test_refuses_numbers_that_follow_no_rule(make, server):
    def shifted(reply, body):
        for row in reply["choices"][0]["prompt_logprobs"][1:]:
            for i, entry in enumerate(row.values()):
                entry["logprob"] += (body["temperature"] - 1) * (i % 7)
        return reply

    server.change = shifted
    with pytest.raises(ValueError, match=r"other log-probabilities .* at another temperature, but not those"):
        make(server)


def test_refuses_another_tokenizer(make, server, tokenizer):
    def renamed(reply, body):
        for row in reply["choices"][0]["prompt_logprobs"][1:]:
            for entry in row.values():
                entry["decoded_token"] += "x"
        return reply

    server.change = renamed
    with pytest.raises(ValueError, match=r"need the same tokenizer, but .* ids mean different tokens, the first"):
        make(server)
    tokenizer.add_tokens("<new>")
    with pytest.raises(ValueError, match=f"the tokenizer has {len(tokenizer)} tokens, the teacher's vocabulary"):
        make(server)


def test_names_of_the_model(make, server):
    server.name = "Qwen/Qwen3-32B"
    assert make(server).teacher.client.model == "Qwen/Qwen3-32B"
    with pytest.raises(TeacherServerError, match="serves 'Qwen/Qwen3-32B', and `teacher_model_name_or_path` is 'x'"):
        make(server, teacher_model_name_or_path="x")


def test_the_key(make, server, monkeypatch):
    server.key = "Bearer secret"
    with pytest.raises(TeacherServerError, match=r"HTTP 401: Unauthorized.*VLLM_API_KEY"):
        make(server)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    make(server)


def test_refuses_what_does_not_go_together(make, server, make_config, make_trainer):
    for fields, match in (
        ({"teacher_cache": "x"}, "`teacher_cache` x: the target comes from one of them"),
        ({"teacher_server_url": "localhost:8000"}, "must begin with http:// or https://, got 'localhost:8000'"),
        ({"teacher_server_logprobs": 1}, "`teacher_server_logprobs` must be at least 2, got 1"),
        ({"teacher_server_requests": 0}, "`teacher_server_requests` must be at least 1, got 0"),
        ({"teacher_server_timeout": 0.0}, "`teacher_server_timeout` must be positive and finite"),
        ({"teacher_server_patience": float("inf")}, "`teacher_server_patience` must be positive and finite"),
    ):
        with pytest.raises(ValueError, match=match):
            make_config(**{"teacher_server_url": server.url, **fields})
    with pytest.raises(ValueError, match="and `teacher_model` a LlamaForCausalLM: pass one of the two"):
        make_trainer(teacher_server_url=server.url)
    with pytest.raises(ValueError, match=r"`teacher_model_revision` is 'main', but the teacher is served"):
        make(server, teacher_model_revision="main")


# A part of the vocabulary


@pytest.fixture
def cached(tmp_path, pair, make_config, prompt_dataset):
    """`cached(k, taus, **fields)`: the losses from a cache of the same teacher's k largest logits."""

    def cached(k, taus, **fields):
        student, teacher = pair()
        values = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, **fields}
        live = make_config(teacher_model_name_or_path=teacher, **values)
        trainer = TemperatureKDTrainer(student, args=live, train_dataset=prompt_dataset)
        builder_of(trainer, tmp_path / "cache", mode="topk", count=k, taus=taus).build()
        offline = make_config(teacher_cache=str(tmp_path / "cache"), **values)
        return history(TemperatureKDTrainer(student, args=offline, train_dataset=prompt_dataset))

    return cached


@pytest.mark.parametrize("k", [8, 120])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_top_k_is_that_of_a_cache(make, server, cached, divergence, k):
    fields = {"divergence": divergence, "teacher_kd_temperature": 1.0, "kd_temperature": 3.0, "learning_rate": 1e-3}
    found = history(make(server, teacher_server_logprobs=k, **fields))
    assert max(found["loss"]) > 1e-3
    assert found["loss"] == pytest.approx(cached(k, (1.0,), **fields)["loss"], rel=1e-2)


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_the_bins_are_those_of_the_teacher(make, server, mode):
    """The k largest, the text's own token and the rest. What is given at tau says what the partition is there."""
    server.mode, taus = mode, {"raw_logprobs": (1.0,), "processed_logprobs": (1.0, 2.0, 4.0)}[mode]
    fields = {"kd_temperature": taus[-1]}
    if len(taus) > 1:
        fields |= {"kd_temperature_schedule": "step", "kd_temperature_final": 2.0}
    trainer = make(server, teacher_server_logprobs=8, **fields)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    ids = batch["input_ids"][0]
    rows = trainer.teacher.rows(batch)
    assert {body["temperature"] for body in server.bodies} == {2.0, *taus}
    with torch.no_grad():
        logits = server.model(ids[None]).logits[0, :-1].double()
    own_is_largest = []
    for i, own in enumerate(ids[1:].tolist()):
        largest = logits[i].topk(8).indices.tolist()
        assert {*rows.ids[i, :-1].tolist()} == {*largest} and rows.ids[i, -1] == own
        own_is_largest.append(own in largest)
        kept = [*rows.ids[i, :-1].tolist(), *([] if own_is_largest[-1] else [own])]
        for tau in taus:
            p = (logits[i] / tau).softmax(-1)
            expected = torch.cat([p[kept], (1 - p[kept].sum())[None]])
            found = rows.log_bins(tau, torch.float64)[i].exp()
            found = torch.cat([found[: len(kept)], found[-1:]])
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert {*own_is_largest} == {True, False}


def test_a_rest_that_rounds_to_nothing(make, server):
    """Where the k likeliest have all the mass that fp32 can tell, reverse KL must not take that for none at all."""
    with torch.no_grad():
        server.model.lm_head.weight.mul_(30)
    found = history(make(server, teacher_server_logprobs=8, divergence="reverse_kl", kd_temperature=1.0, max_steps=1))
    assert 0 < found["loss"][0] < 200


def test_what_part_of_the_vocabulary_cannot_serve(make, server):
    def refused(match, **fields):
        with pytest.raises(ValueError, match=match):
            make(server, teacher_server_logprobs=8, **fields)

    refused(
        r"the 8 largest log-probabilities .* doesn't change them\) .* at the temperatures 1 alone, .* is 2.0: the log"
    )
    step = {"kd_temperature": 1.0, "kd_temperature_final": 1.5, "kd_temperature_schedule": "step"}
    refused("`kd_temperature_final` is 1.5", **step)
    refused("needs the teacher's whole rows", divergence="alpha_beta", kd_temperature=1.0)
    refused("`kd_diagnostics_steps` is 5", kd_diagnostics_steps=5, kd_temperature=1.0)
    trainer = make(server, teacher_server_logprobs=8, kd_temperature=1.0)
    with pytest.raises(ValueError, match=r"whole rows are needed here, and the server .* hasn't them"):
        collect(trainer, trainer.train_dataset)
    server.mode = "raw_logits"
    refused("the 8 largest logits at each position.* Without all of them", kd_temperature=1.0)
    server.mode = "processed_logprobs"
    refused("`kd_temperature_schedule` is 'linear'", **{**step, "kd_temperature_schedule": "linear"})


def test_logits_that_look_like_small_probabilities(make, server):
    """Very negative logits have no mass above 1 either. But the k likeliest of V tokens have k / V at least."""

    def lowered(reply, body):
        for row in reply["choices"][0]["prompt_logprobs"][1:]:
            for entry in row.values():
                entry["logprob"] -= 30
        return reply

    server.mode, server.change = "raw_logits", lowered
    with pytest.raises(ValueError, match="the 8 largest logits"):
        make(server, teacher_server_logprobs=8, kd_temperature=1.0)


def test_the_most_that_a_server_gives(make, server):
    server.most = 20
    with pytest.raises(TeacherServerError, match=r"Requested \d+ prompt logprobs, more than 20.*--max-logprobs"):
        make(server)
    make(server, teacher_server_logprobs=20, kd_temperature=1.0)


# Faults


def answered(status, reply, cut=None):
    def fault(handler):
        handler.send(status, reply, cut)
        return True

    return fault


def slow(handler):
    time.sleep(0.8)
    return True  # nothing was sent


def dropped(handler):
    handler.cut()
    return True


def other_length(handler):
    handler.send(200, {"choices": [{"prompt_logprobs": [None, {"5": {"logprob": -1.0}}]}]})
    return True


FAULTS = {
    "500": answered(500, {"error": {"message": "out of memory"}}),
    "503 in HTML": answered(503, b"<html>Bad gateway</html>"),
    "429": answered(429, {"error": "too many"}),
    "slow": slow,
    "dropped": dropped,
    "truncated body": answered(200, {"choices": [{"prompt_logprobs": [None] * 50}]}, cut=20),
    "no JSON": answered(200, b'{"choices": ['),
    "another form": answered(200, {"choices": []}),
    "no log-probabilities": answered(200, {"choices": [{"prompt_logprobs": None}]}),
    "wrong length": other_length,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_now_and_then_changes_nothing(make, server, quick, name):
    expected = history(make(server))
    assert server.count == PROBES + 8
    server.count, failed = 0, set()

    def fault(number, handler):
        request = (*handler.body["prompt"], handler.body["temperature"])
        if request in failed:
            return False
        failed.add(request)
        return FAULTS[name](handler)

    server.fault = fault  # each request fails once
    assert history(make(server, teacher_server_timeout=0.5)) == close(expected, rel=1e-3)
    assert len(failed) == PROBES + 8
    assert server.count >= 2 * len(failed)


def test_waits_longer_each_time(make, server, monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.1)
    server.fault = lambda number, handler: number < 5 and answered(500, {})(handler)
    trainer = make(server, teacher_server_requests=1)
    server.times.clear()
    server.count = 0
    trainer.teacher.client.ask([5, 6, 7]).result()
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert len(waits) == 5
    for i, wait in enumerate(waits):
        assert 0.05 * 2**i <= wait < 0.1 * 2**i + 5  # the machine may be busy


class Restart(TrainerCallback):
    """Stops the server after a step, and starts it again after some time, or never."""

    def __init__(self, server, step, seconds=None):
        self.server, self.step, self.seconds = server, step, seconds

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.server.stop()
            if self.seconds is not None:
                threading.Timer(self.seconds, self.server.start).start()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_restart_loses_nothing(make, server, quick, accumulation):
    fields = {"gradient_accumulation_steps": accumulation, "max_steps": 6, "num_train_epochs": 3}
    expected = history(make(server, **fields))
    assert history(make(server, callbacks=[Restart(server, 2, 0.5)], **fields)) == close(expected, rel=1e-3)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_server_that_stays_away(make, server, quick, tmp_path, accumulation):
    """The run stops with a checkpoint of the last step it has done, and goes on from it as if nothing had happened."""
    fields = {
        "architecture": "gpt2",  # with dropout
        "gradient_accumulation_steps": accumulation,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 100,
        "teacher_server_patience": 0.5,
    }
    server.model = make(None, architecture="gpt2").teacher_model
    whole = history(make(server, **fields))
    trainer = make(server, callbacks=[Restart(server, 2)], **fields)
    with pytest.raises(TeacherServerError, match=r"hasn't answered for .*ConnectError.*`resume_from_checkpoint`"):
        trainer.train()
    # what was there when it went away is used up first
    done = trainer.state.global_step
    assert 2 < done < 6
    assert [entry["loss"] for entry in trainer.state.log_history] == pytest.approx(whole["loss"][:done], rel=1e-3)
    assert (tmp_path / f"out/checkpoint-{done}").is_dir()
    server.start()
    resumed = history(make(server, **fields), resume_from_checkpoint=str(tmp_path / f"out/checkpoint-{done}"))
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_gone_from_the_start(make, server, quick, tmp_path):
    trainer = make(server, teacher_server_patience=0.2)
    server.stop()
    start = time.monotonic()
    with pytest.raises(TeacherServerError, match="hasn't answered"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))  # nothing is lost
    with pytest.raises(TeacherServerError, match="hasn't answered"):
        make(server, teacher_server_patience=0.2)
    assert time.monotonic() - start < 30  # and not the 600 s of `teacher_server_patience`


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (answered(400, {"error": {"message": "the prompt is\ntoo long"}}), "HTTP 400: the prompt is too long.*-len"),
        (answered(404, {"object": "error", "message": "no such model"}), "HTTP 404: no such model"),
        (other_length, "has sent 3 replies .* because it is about 2 tokens of"),
    ],
)
def test_what_repeating_does_not_help_stops_at_once(make, server, quick, fault, match):
    trainer = make(server)
    server.fault = lambda number, handler: fault(handler)
    with pytest.raises(TeacherServerError, match=match):
        trainer.train()


def test_a_restart_with_other_options(make, server, quick):
    class Change(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            server.mode = "raw_logits"

    with pytest.raises(TeacherServerError, match=r"gave the log-probabilities .* at the start, and now gives"):
        make(server, callbacks=[Change()]).train()


# Overlap, and an end


def test_requests_are_ahead_and_bounded(make, server, prompt_dataset):
    """While a step runs, the server has been asked about the next one, and never more at a time than it may be."""
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            wanted = PROBES + 4 * min(state.global_step + 2, 6)
            deadline = time.monotonic() + 5
            while server.count < wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(server.count)

    def pause(number, handler):
        time.sleep(0.02)
        return False

    server.fault = pause
    fields = {"gradient_accumulation_steps": 2, "max_steps": 6, "teacher_server_requests": 3}
    rows = datasets.concatenate_datasets([prompt_dataset] * 3)
    history(make(server, train_dataset=rows, callbacks=[Look()], **fields))
    assert seen == [PROBES + 4 * min(step + 2, 6) for step in range(6)]
    assert server.peak == 3


def test_nothing_is_left_behind(make, server):
    def threads():
        return {thread for thread in threading.enumerate() if thread.name == "teacher server"}

    before = threads()
    trainer = make(server, max_steps=1)
    trainer.train()
    (own,) = threads() - before
    del trainer
    gc.collect()
    own.join(5)
    assert not own.is_alive()


def test_infinities_are_probabilities_of_zero(make, server):
    """vLLM sends -9999 for them."""

    def without_the_first(reply, body):
        for row in reply["choices"][0]["prompt_logprobs"][1:]:
            row["0"]["logprob"] = -9999.0
        return reply

    server.change = without_the_first
    trainer = make(server, teacher_kd_temperature=4.0)
    server.mode = "raw_logits"
    (batch,) = collect(trainer, trainer.train_dataset, num_rows=2)[:1]
    assert (batch.teacher_hidden / 4).softmax(-1)[:, 0].max() == 0


@pytest.mark.distributed
def test_two_processes_train_as_one(tmp_path, server, pair, prompt_dataset):
    fields = {"teacher_server_url": server.url, "teacher_model_name_or_path": "teacher", "do_eval": False}
    found = {}
    for size, processes in ((4, 1), (2, 2)):
        folder = tmp_path / str(size)
        arguments = options(folder, pair(), prompt_dataset, **fields, per_device_train_batch_size=size)
        status, said = ranks.command("distill", arguments, folder / "run", processes)
        assert status == 0, said
        found[size] = losses_of(folder / "output")
    assert len(found[2]) == 3 and min(found[2]) > 1e-3
    assert found[2] == pytest.approx(found[4], rel=1e-3)
