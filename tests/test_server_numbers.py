# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which numbers of a server are taken for the teacher's distribution, and which are refused or warned of."""

import math
import re

import numpy as np
import pytest
import torch
from teacher_server import TeacherServer

from trl_tempkd.errors import UsageError
from trl_tempkd.teachers import client as client_file
from trl_tempkd.teachers import probe as probe_file
from trl_tempkd.teachers.client import CompletionsClient
from trl_tempkd.teachers.probe import _distances, probe


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_file, "FIRST_WAIT", 0.01)


@pytest.fixture
def warned(monkeypatch):
    """What has been warned of."""
    said = []
    monkeypatch.setattr(probe_file.logger, "warning", said.append)
    return said


@pytest.fixture
def server(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer).running() as server:
        yield server


@pytest.fixture
def ask(server):
    """`ask(k)`: what `probe` finds, and the client."""
    clients = []

    def ask(k, vocabulary=None):
        vocabulary = vocabulary or server.model.config.vocab_size
        clients.append(CompletionsClient(server.url, None, k, 4, 20, 20, vocabulary))
        return probe(clients[-1], server.tokenizer, vocabulary), clients[-1]

    yield ask
    for client in clients:
        client.close()


def rows_of(change):
    """A change of a reply, from `change(rows, tokens)`: the rows of the tokens but the first."""

    def changed(reply, body):
        choice = reply["choices"][0]
        choice["prompt_logprobs"] = [None, *change(choice["prompt_logprobs"][1:], body["prompt"][1:])]
        return reply

    return changed


def values_of(change):
    """A change of a reply, from `change(values)`, the numbers of a row."""

    def changed(rows, tokens):
        for row in rows:
            values = change(np.array([entry["logprob"] for entry in row.values()]))
            for entry, value in zip(row.values(), values.tolist(), strict=True):
                entry["logprob"] = value
        return rows

    return rows_of(changed)


# Rows of other positions


def shifted(by, with_own):
    """Each row is that of so many tokens later. A server that computes them so has the prompt's token in each."""

    def change(rows, tokens):
        moved = [rows[min(max(i + by, 0), len(rows) - 1)] for i in range(len(rows))]
        if with_own:
            own = {"logprob": -12.0, "rank": 99, "decoded_token": None}
            moved = [{str(token): row.get(str(token), own), **row} for token, row in zip(tokens, moved, strict=True)]
        return moved

    return rows_of(change)


@pytest.mark.parametrize("k", [None, 8, 64])
@pytest.mark.parametrize("by", [-2, -1, 1, 2])
def test_refuses_rows_of_other_positions(server, ask, by, k):
    server.change = shifted(by, with_own=True)
    way = "later" if by > 0 else "earlier"
    with pytest.raises(UsageError, match=f"rows of other positions: .* stands the one {abs(by)} {way}"):
        ask(k)


@pytest.mark.parametrize("by", [-1, 1])
def test_the_prompts_own_token_is_in_each_row(server, ask, by):
    server.change = shifted(by, with_own=False)
    with pytest.raises(UsageError, match=r"its row of token \d+ hasn't got that token itself .* other positions"):
        ask(8)


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logprobs", "processed_logits"])
def test_refuses_them_in_other_modes(server, ask, mode):
    server.mode, server.change = mode, shifted(1, with_own=True)
    with pytest.raises(UsageError, match="rows of other positions"):
        ask(None)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "falcon_h1"])
def test_refuses_them_of_other_architectures(server, ask, make_model, architecture):
    server.model = make_model(architecture, seed=1).eval()
    ask(8)
    server.change = shifted(1, with_own=True)
    with pytest.raises(UsageError, match="rows of other positions"):
        ask(8)


def test_refuses_numbers_that_no_prompt_changes(server, ask):
    server.change = rows_of(lambda rows, tokens: [rows[0]] * len(rows))
    with pytest.raises(UsageError, match="the same numbers for two prompts that differ in their token"):
        ask(None)
    first = []

    def cached(reply, body):
        first.append(reply)
        return first[0]

    server.change = cached
    with pytest.raises(UsageError, match="the same numbers for two prompts that differ in their token"):
        ask(None)


# Floors


FLOORS = {
    "-9999": lambda values: -9999.0,
    "-100": lambda values: -100.0,
    "of the smallest": lambda values: math.log(1e-10),
    "of the rest": lambda values: math.log1p(-min(np.exp(values).sum(), 1 - 1e-9)) - math.log(100),
}


def with_floor(real, floor):
    def change(values):
        order = np.argsort(-values)
        changed = values.copy()
        changed[order[real:]] = floor(values[order[:real]])
        return changed

    return values_of(change)


@pytest.mark.parametrize("k", [None, 64])
@pytest.mark.parametrize("name", FLOORS)
def test_refuses_a_floor(server, ask, name, k):
    """20 real values, and one number for the rest."""
    server.change = with_floor(20, FLOORS[name])
    with pytest.raises(UsageError, match=r"teacher's own for as few as \d+ of them, and the same one, -.*: a floor"):
        ask(k)


@pytest.mark.parametrize(("real", "k"), [(1, 8), (4, 8), (20, 22)])
def test_refuses_few_that_are_no_probability(server, ask, real, k):
    server.change = with_floor(real, FLOORS["-9999"])
    with pytest.raises(UsageError, match="a floor"):
        ask(k)


def test_refuses_what_top_p_leaves(server, ask):
    def change(values):
        order = np.argsort(-values)
        kept = order[: 1 + int((np.cumsum(np.exp(values[order])) < 0.9).sum())]
        changed = np.full_like(values, -9999.0)
        changed[kept] = values[kept] - math.log(np.exp(values[kept]).sum())
        return changed

    server.change = values_of(change)
    with pytest.raises(UsageError, match=r"a floor.*--logprobs-mode raw_logprobs"):
        ask(None)


# Masses


def normalised(values):
    return values - math.log(np.exp(values).sum())


@pytest.mark.parametrize("k", [8, 64, 120])
def test_warns_of_numbers_that_were_made_to_sum_to_1(server, ask, warned, k):
    ask(k)
    assert not warned
    server.change = values_of(normalised)
    ask(k)
    assert re.search(f"The {k} likeliest tokens that .* have the whole mass, though the last of them has", warned[0])


@pytest.mark.parametrize("factor", [0.6, 1.8])
def test_warns_of_a_mass_that_cannot_be(server, ask, warned, factor):
    server.change = values_of(lambda values: values + math.log(factor))
    found, _ = ask(None)
    assert not found.normalised
    assert f"has a mass from {factor} to {factor} in place of 1" in warned[0]
    # Of a part of the vocabulary it can't be told what they are, so they are taken for logits, and nothing is
    # trained on those
    found, _ = ask(64)
    assert not found.normalised and len(warned) == 1


# What is no fault


def rounded_to(dtype):
    return values_of(lambda values: torch.tensor(values).to(dtype).double().numpy())


HONEST = {
    "as it is": lambda reply, body: reply,
    "bf16": rounded_to(torch.bfloat16),
    "fp16": rounded_to(torch.float16),
    "two decimals": values_of(lambda values: values.round(2)),
    "in another order": rows_of(lambda rows, tokens: [dict(sorted(row.items())) for row in rows]),
}


@pytest.mark.parametrize("k", [None, 2, 64])
@pytest.mark.parametrize("name", HONEST)
def test_honest_servers_are_believed(server, ask, warned, name, k):
    server.change = HONEST[name]
    found, client = ask(k)
    assert (found.normalised, found.tempered, found.whole) == (True, False, k is None)
    assert found.own_first == (name != "in another order")
    for text in ("the cat sat on the mat", "a dog ran"):
        answer = client.ask(server.tokenizer(text)["input_ids"]).result()
        assert found.misfit(answer, server.model.config.vocab_size) is None
    assert not warned


def padded(make_model, value):
    """A model whose vocabulary is longer than the tokenizer's, with padding of some logit."""
    model = make_model(seed=1, vocab_size=192)
    head = torch.nn.Linear(32, 192)
    torch.nn.init.normal_(head.weight, std=0.3)
    head.weight.data[161:], head.bias.data[:161], head.bias.data[161:] = 0.0, 0.0, value
    model.lm_head = head
    return model


def sure(make_model):
    model = make_model(seed=1)
    model.lm_head.weight.data.mul_(30)
    return model


def ignorant(make_model):
    model = make_model(seed=1)
    model.lm_head.weight.data.zero_()
    return model


TEACHERS = {
    "padded with nothing": lambda make_model: padded(make_model, -math.inf),
    "padded with zeros": lambda make_model: padded(make_model, 0.0),
    "padded with what is unlikely": lambda make_model: padded(make_model, -60.0),
    "sure": sure,
    "ignorant": ignorant,
    "flat": lambda make_model: make_model(seed=1, initializer_range=0.02),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TEACHERS)
def test_honest_teachers_are_believed(server, ask, warned, make_model, name, dtype):
    server.model = TEACHERS[name](make_model).eval()
    server.change = rounded_to(dtype)
    for k in (None, 20):
        found, _ = ask(k)
        assert (found.normalised, found.tempered) == (True, False)
        assert found.whole == (k is None)
    assert not warned


def test_noise_is_no_shift(server, ask, warned):
    """bf16 and batches of other shapes make the same prompt's numbers differ a little."""
    forward, random = server.model.forward, torch.Generator().manual_seed(0)

    def noisy(tokens):
        output = forward(tokens)
        output.logits += 0.03 * torch.randn(output.logits.shape, generator=random)
        return output

    server.model.forward = noisy
    for k in (None, 2, 2, 8, 8, 64):
        found, _ = ask(k)
        assert (found.normalised, found.tempered) == (True, False)
    assert not warned


def test_a_rounding_that_flips_is_no_shift(server, ask):
    """Where all numbers are the same but for one, in a row that can't know where the texts part."""

    def flipped(reply, body):
        rows = reply["choices"][0]["prompt_logprobs"][1:]
        if body["temperature"] == 2:
            row = rows[2 * len(body["prompt"]) // 3 - 1]
            max(row.values(), key=lambda entry: entry["logprob"])["logprob"] -= 0.01
        return reply

    server.change = flipped
    ask(8)


def test_the_distance_of_rows_that_know_few_tokens():
    """The last of the k may be another token for little, so what is alone may be as likely in the other row."""
    p, q = np.array([0.6, 0.4]), np.array([0.61, 0.39])
    assert _distances(np.array([1, 2]), p, np.array([1, 3]), q) == pytest.approx((0.01, 0.4))
    assert _distances(np.array([1, 2]), p, np.array([2, 1]), q[::-1]) == pytest.approx((0.01, 0.01))
    assert _distances(np.array([1, 2]), p, np.array([3, 4]), q) == pytest.approx((0.215, 1))


# Later answers


LATER = {
    "shifted": (None, shifted(1, with_own=False), "another token than the prompt's own comes first"),
    "floored": (None, with_floor(20, FLOORS["-9999"]), "a floor"),
    "floored at -100": (64, with_floor(20, FLOORS["-100"]), "a floor"),
    "too heavy": (8, values_of(lambda values: normalised(values) + 0.2), "numbers whose mass, from 1.2"),
    "too light": (64, values_of(lambda values: values - 1), "numbers whose mass"),
}


@pytest.mark.parametrize("name", LATER)
def test_later_answers_are_checked(server, ask, name):
    k, change, problem = LATER[name]
    found, client = ask(k)
    server.change = change
    answer = client.ask(server.tokenizer("the student learns what the teacher knows")["input_ids"]).result()
    assert problem in found.misfit(answer, server.model.config.vocab_size)


def test_ids_that_the_student_has_not(server, ask):
    with pytest.raises(UsageError, match=r"the student has 100 tokens, and the server gives a number for token 1\d\d"):
        ask(64, vocabulary=100)


def test_a_server_that_gives_fewer_now_and_then(server, ask):
    def fewer(reply, body):
        if body["temperature"] == 2:
            reply["choices"][0]["prompt_logprobs"][1:] = [
                dict([*row.items()][:50]) for row in reply["choices"][0]["prompt_logprobs"][1:]
            ]
        return reply

    server.change = fewer
    with pytest.raises(UsageError, match="gives 161 numbers at each position for one prompt, and for another 50"):
        ask(None)
