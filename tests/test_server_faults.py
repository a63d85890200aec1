# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What may go wrong between here and a teacher's server: each ends in one error, soon, that says what to do."""

import copy
import gzip
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from email.utils import formatdate

import certifi
import pytest
from teacher_server import TeacherServer

from trl_tempkd.errors import UsageError
from trl_tempkd.teachers import TeacherServerError
from trl_tempkd.teachers import client as client_file
from trl_tempkd.teachers.address import Address, authorities, plain, shown
from trl_tempkd.teachers.client import CompletionsClient
from trl_tempkd.teachers.faults import Malformed, retry_after
from trl_tempkd.teachers.questions import Answer, Models, PromptLogprobs


TOKENS = [5, 6, 7, 8]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Requests are repeated at once, and doubtful ones for a short time."""
    monkeypatch.setattr(client_file, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client_file, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(client_file, "DOUBT", 0.15)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "VLLM_API_KEY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server(make_model, tokenizer):
    with TeacherServer(make_model(seed=1), tokenizer).running() as server:
        yield server


@pytest.fixture
def connect():
    """`connect(url)`: a client, with more patience than a test may take."""
    clients = []

    def connect(url, k=4, requests=4, timeout=20.0, patience=30.0):
        clients.append(CompletionsClient(url, None, k, requests, timeout, patience, 161))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def always(write):
    """A fault of each request, from `write(handler)`."""

    def fault(number, handler):
        write(handler)
        return True

    return fault


def with_status(status, reply=b"", **headers):
    return lambda handler: handler.send(status, reply, **headers)


def error_of(client, **kwargs):
    """The one error in which a request ends, soon."""
    start = time.monotonic()
    with pytest.raises(TeacherServerError) as found:
        client.ask(TOKENS, **kwargs).result(30)
    assert time.monotonic() - start < 10
    return str(found.value)


# Replies of another form


GOOD = {
    "id": "cmpl-1",
    "choices": [
        {
            "index": 0,
            "prompt_logprobs": [
                None,
                *(
                    {
                        str(i): {"logprob": -1.5 - i / 100, "rank": 1, "decoded_token": "x"}
                        for i in (token, 11, 12, 13, 14)
                    }
                    for token in TOKENS[1:]
                ),
            ],
        }
    ],
}
DEEP = json.loads("[" * 500 + "]" * 500)
VALUES = [
    *(None, True, False, 0, -1, 1, 1.5, "", "x", "1", "\x00", [], {}, [None], [[]], {"a": 1}, {"5": {}}, DEEP),
    *(
        10**400,
        -(10**400),
        10**30,
        2**63,
        1e39,
        1e300,
        float("nan"),
        float("inf"),
        float("-inf"),
        "9" * 30,
        "9" * 5000,
    ),
]
KEYS = ["9" * 30, "9" * 5000, "-1", "", "x", "1.5", "٣", "1_1", " 11", "011", str(2**63)]


def places_of(node, path=()):
    """Where there is something in a reply."""
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places_of(value, (*path, key))


def variants():
    """A good reply with one thing in it changed, in each way."""
    for path in places_of(GOOD):
        for value in VALUES:
            reply = copy.deepcopy(GOOD)
            if not path:
                yield value
                continue
            at = reply
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
            yield reply
        if path:
            reply = copy.deepcopy(GOOD)
            at = reply
            for key in path[:-1]:
                at = at[key]
            del at[path[-1]]
            yield reply
            if isinstance(at, dict):
                for key in KEYS:
                    other = copy.deepcopy(GOOD)
                    inner = other
                    for step in path[:-1]:
                        inner = inner[step]
                    inner[key] = inner.pop(path[-1])
                    yield other


@pytest.mark.parametrize("k", [None, 4])
def test_a_changed_reply_is_read_or_malformed(k):
    question, count, read = PromptLogprobs("teacher", TOKENS, 1.0, k, 161), 0, 0
    question.read(json.dumps(GOOD).encode())
    for reply in variants():
        count += 1
        try:
            answer = question.read(json.dumps(reply).encode())
        except Malformed as error:
            assert len(str(error)) < 500
            continue
        read += 1
        assert isinstance(answer, Answer) and answer.ids.shape == answer.values.shape
        assert abs(answer.values).max() < 1e31 and answer.ids.min() >= 0
        assert all(isinstance(text, str) for text in answer.texts.values())
    assert count > 2000 and 100 < read < count / 2


def test_a_changed_list_of_models_is_read_or_malformed():
    good = {"object": "list", "data": [{"id": "teacher"}]}
    for value in VALUES:
        for reply in (value, {**good, "data": value}, {"data": [value]}, {"data": [{"id": value}]}):
            with suppress(Malformed):
                assert all(isinstance(name, str) for name in Models().read(json.dumps(reply).encode()))


def test_changed_replies_end_in_our_error(server, connect):
    client = connect(server.url)
    replies = [reply for reply in variants() if reply != GOOD]
    found = []
    for reply in random.Random(0).sample(replies, 20):
        server.fault = always(with_status(200, reply))
        try:
            found.append(client.ask(TOKENS).result(30))
        except TeacherServerError as error:
            assert "has sent 3 replies to the same request that make no sense, the last one because it" in str(error)
    assert len(found) < 15


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    part = b" " * 2**20
    try:
        for _ in range(1000):
            handler.wfile.write(part)
            handler.server.teacher.sent = getattr(handler.server.teacher, "sent", 0) + 1
    finally:
        handler.close_connection = True


def slowly(handler):
    data = json.dumps(GOOD).encode()
    handler.write(b"HTTP/1.1 200 OK\r\n\r\n", *(data[i : i + 1] for i in range(10)), pause=0.05)


def head_of(*lines):
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines, "")).encode()


def with_value(value):
    return json.dumps(GOOD).replace("-1.56", value, 1).encode()


BOMB = gzip.compress(b" " * 2**28)
REPLIES = {
    "a number of 400 digits": (with_status(200, with_value("-" + "9" * 400)), "OverflowError"),
    "a number of 5000 digits": (with_status(200, with_value("9" * 5000)), "it is no JSON"),
    "an id of 30 digits": (
        with_status(200, json.dumps(GOOD).replace('"11"', f'"{"9" * 30}"').encode()),
        "OverflowError",
    ),
    "deep": (with_status(200, b"[" * 200_000), "it is nested too deeply"),
    "deep objects": (with_status(200, b'{"a":' * 200_000), "it is nested too deeply"),
    "NaN": (with_status(200, with_value("NaN")), "it has numbers that aren't finite"),
    "1e300": (with_status(200, with_value("-1e300")), "it has numbers that aren't finite, or that no model gives"),
    "text": (with_status(200, with_value('"-1.5"')), "log-probabilities that aren't numbers"),
    "empty": (with_status(200), "it is empty"),
    "no UTF-8": (with_status(200, b'{"choices": "\xff\xfe"}'), r"it is no JSON \('utf-8' codec"),
    "HTML": (
        with_status(200, b"<!DOCTYPE html><title>Login</title>"),
        "it is a page for a browser and no JSON, .*Login",
    ),
    "endless": (endless, r"it is longer than \d+ bytes, which is several times"),
    "a bomb": (with_status(200, BOMB, Content_Encoding="gzip"), r"it is longer than \d+ bytes"),
    "no gzip": (with_status(200, b"{}", Content_Encoding="gzip"), "it can't be unpacked: Error -3"),
}
BROKEN = {
    "slow": (slowly, "no reply within 0.2 s"),
    "nothing": (lambda handler: time.sleep(0.5), "no reply within 0.2 s"),
    "cut off": (lambda handler: handler.send(200, GOOD, cut=50), "RemoteProtocolError peer closed connection"),
    "hung up": (lambda handler: handler.cut(), "(RemoteProtocol|Read)Error"),
    "too short": (
        lambda handler: handler.write(head_of("Content-Length: 9999"), b"{}"),
        "RemoteProtocolError peer closed",
    ),
    "no chunks": (
        lambda handler: handler.write(head_of("Transfer-Encoding: chunked"), b"zz\r\n"),
        "RemoteProtocolError",
    ),
    "no length": (lambda handler: handler.write(head_of("Content-Length: many"), b"{}"), "RemoteProtocolError"),
    "no HTTP": (lambda handler: handler.write(b"220 mail.example.com ESMTP\r\n"), "RemoteProtocolError"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_makes_no_sense(server, connect, name):
    fault, problem = REPLIES[name]
    client, server.fault = connect(server.url), always(fault)
    said = error_of(client)
    assert_matches(
        f"has sent 3 replies to the same request that make no sense, the last one because .*{problem}", said
    )
    assert len(said) < 800 and server.count == 3
    assert getattr(server, "sent", 0) < 100  # MiB of an endless one, with what lies in buffers


@pytest.mark.parametrize("name", BROKEN)
def test_a_reply_that_does_not_come(server, connect, name):
    """These are repeated for as long as there is patience, since the server may be restarting."""
    fault, problem = BROKEN[name]
    client = connect(server.url)
    client.ask(TOKENS).result()  # it has answered before
    client.timeout = 0.2
    server.fault = lambda number, handler: number == 1 and always(fault)(number, handler)
    assert client.ask(TOKENS).result().ids.shape == (3, 4)
    server.fault, client.patience = always(fault), 0.4
    assert_matches(rf"hasn't answered for \d s .*{problem}.*`resume_from_checkpoint`", error_of(client))


def test_http_1_0(server, connect):
    def old(handler):
        data = json.dumps(GOOD).encode()
        handler.write(b"HTTP/1.0 200 OK\r\n\r\n" + data)

    server.fault = always(old)
    assert connect(server.url).ask(TOKENS).result().ids.tolist()[0] == [6, 11, 12, 13]


def assert_matches(pattern, text):
    assert re.search(pattern, text), text


# What repeating does not help


def soon(connect, url, pattern, **kwargs):
    start = time.monotonic()
    with pytest.raises(TeacherServerError) as found:
        connect(url, **kwargs).ask(TOKENS).result(30)
    assert time.monotonic() - start < 8
    assert_matches(pattern, str(found.value))
    return str(found.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The files of a certificate for this machine, that nobody has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    return folder / "cert", folder / "key"


@pytest.fixture
def tls_server(server, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with TeacherServer(server.model, server.tokenizer, tls=context).running() as secure:
        yield secure


def test_a_certificate_that_is_not_trusted(tls_server, connect, certificate, monkeypatch):
    soon(
        connect,
        tls_server.url,
        r"can't be asked, because of a certificate that isn't trusted \(self.signed .*SSL_CERT_FILE",
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    client = connect(tls_server.url)
    assert client.ask(TOKENS).result().ids.shape == (3, 4)
    soon(connect, tls_server.url.replace("127.0.0.1", "localhost"), "a certificate that isn't trusted .*Give the name")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with pytest.raises(UsageError, match=r"can't be asked by way of what the environment says .*SSL_CERT_FILE"):
        connect(tls_server.url)


def test_the_wrong_scheme(server, tls_server, connect):
    plain_host, tls_host = (each.url.split("//")[1] for each in (server, tls_server))
    soon(connect, f"https://{plain_host}/v1", f"doesn't speak TLS. Set `teacher_server_url` to http://{plain_host}.$")
    soon(connect, f"http://{tls_host}/v1", f"speaks TLS alone. Set `teacher_server_url` to https://{tls_host}.$")
    # nginx answers in words
    server.models = lambda handler: handler.send(400, b"The plain HTTP request was sent to HTTPS port") or True
    soon(connect, server.url, f"Set `teacher_server_url` to https://{plain_host}.$")


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_an_unknown_host(connect, monkeypatch, code):
    asked = []

    def unknown(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(code, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(client_file, "DOUBT", 1.0)
    soon(
        connect,
        "http://nowhere.invalid:8000",
        r"an unknown host \(Name or service not known\). Correct `teacher_server_url`",
    )
    assert len(asked) > 2  # a name server may fail once


@pytest.mark.parametrize("status", [502, 521])
def test_the_gateway_before_a_server_that_is_not_there(server, connect, status):
    page = with_status(status, b"<html><head><title>Bad Gateway</title></head><h1>nginx</h1></html>")
    server.models = lambda handler: page(handler) or True
    said = soon(
        connect, server.url, f"can't be asked, because of HTTP {status}: Bad Gateway nginx. Is the server behind"
    )
    assert "<" not in said
    # The proxy may have the list of models itself
    server.models, server.fault = lambda handler: False, always(page)
    soon(connect, server.url, f"can't be asked, because of HTTP {status}")
    # Once the server has been there, it may come back
    server.fault = lambda number, handler: False
    client = connect(server.url)
    client.ask(TOKENS).result()
    first = server.count
    server.fault = lambda number, handler: number < first + 8 and always(page)(number, handler)
    assert client.ask(TOKENS).result().ids.shape == (3, 4)
    server.fault, client.patience = always(page), 0.6
    assert_matches(r"hasn't answered for \d s \(`teacher_server_patience` 0.6\).*HTTP", error_of(client))


def test_a_server_that_is_being_started(server, connect):
    """It is waited for, for as long as there is patience: nothing listens yet, or a balancer has nobody to ask."""
    server.stop()
    with pytest.raises(TeacherServerError, match=r"hasn't answered for \d s .*ConnectError.*Start it, or correct"):
        connect(server.url, patience=0.4)
    server.start()
    counts = iter(range(100))
    server.models = lambda handler: next(counts) < 20 and (handler.send(503, b"no server is available") or True)
    assert connect(server.url).model == "teacher"


def test_a_proxy(server, connect, monkeypatch):
    """The proxy of the environment, which can't reach the server, and whose password isn't shown."""
    monkeypatch.setenv("HTTP_PROXY", server.url.replace("//", "//user:hunter2@"))
    server.models = lambda handler: handler.send(502, b"no such host; user:hunter2") or True
    said = soon(connect, "http://teacher.invalid:8000", "HTTP 502: no such host")
    assert "HTTP_PROXY sends requests through a proxy; NO_PROXY=teacher.invalid goes past it" in said
    assert "hunter2" not in said
    monkeypatch.setenv("HTTP_PROXY", "ftp://user:hunter2@proxy:1")
    with pytest.raises(UsageError, match="by way of what the environment says") as found:
        connect("http://teacher.invalid:8000")
    assert "hunter2" not in "".join(traceback.format_exception(found.value))


REFUSALS = {
    (
        301,
        "",
        "Location",
        "http://other:81/v1/completions",
    ): "a redirect to http://other:81. Redirects aren't followed",
    (307, "", "Location", "/elsewhere"): r"a redirect to http://127.0.0.1:\d+/elsewhere. Redirects",
    (
        302,
        "",
        "Location",
        "https://login/?back=teacher&token=hunter2#x",
    ): r"a redirect to https://login/\?\*\*\*. Redir",
    (304, ""): "HTTP 304, a redirect that names no target",
    (204, ""): "can't be asked, because of HTTP 204",
    (400, "the prompt is too long"): "--max-model-len",
    (400, "This model's maximum context length is 64 tokens."): "--max-model-len",
    (422, "The decoder prompt (length 99) is longer than the maximum model length of 64"): "--max-model-len",
    (400, "Requested prompt logprobs of 64, which is greater than max allowed: 20"): "--max-logprobs",
    (400, "Token id 161 is out of vocabulary"): "the same tokenizer",
    (400, "extra fields not permitted"): "It must take token ids as a prompt, and `prompt_logprobs`",
    (401, "Unauthorized"): "Put its key into the environment variable VLLM_API_KEY",
    (403, "Forbidden"): "VLLM_API_KEY",
    (404, "The model `x` does not exist."): "It must serve 'teacher', as it did at the start",
    (404, "Not Found"): r"It must take POST /v1/completions.*--runner generate",
    (405, "Method Not Allowed"): "It must take POST /v1/completions",
    (407, "Proxy Authentication Required"): "A proxy stands before the server, and wants to know who asks",
    (413, "Request Entity Too Large"): "client_max_body_size",
    (418, "I'm a teapot"): r"refuses a request, with HTTP 418: I'm a teapot\.$",
    (501, "Not Implemented"): "refuses a request, with HTTP 501",
}


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case[0]} {case[1][:20]}")
def test_a_refusal_has_the_hint_that_fits(server, connect, case):
    status, said, *header = case
    client, pattern = connect(server.url), REFUSALS[case]
    server.fault = always(with_status(status, {"error": {"message": said}}, **dict([header] if header else [])))
    found = error_of(client)
    assert_matches(pattern, found)
    assert server.count == 1 and "hunter2" not in found
    hints = ["--max-model-len", "--max-logprobs", "VLLM_API_KEY", "client_max_body_size", "--runner", "same tokenizer"]
    assert sum(hint in found for hint in hints) <= 1


def test_refusals_of_the_list_of_models(server, connect, monkeypatch):
    for status, pattern in (
        (404, "Is that the address of an OpenAI-compatible server, without the `/v1`"),
        (405, "takes no such request"),
        (301, "HTTP 301, a redirect"),
    ):
        server.models = lambda handler, status=status: handler.send(status, b"no") or True
        soon(connect, server.url, pattern)
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    server.models, server.key = lambda handler: False, "Bearer right"
    soon(
        connect,
        server.url,
        "HTTP 401: Unauthorized. It doesn't take the key in the environment variable VLLM_API_KEY.$",
    )


# How long a server wants to be left alone


@pytest.mark.parametrize(("status", "date"), [(429, False), (503, True)])
def test_retry_after_is_kept(server, connect, status, date):
    client = connect(server.url)
    client.ask(TOKENS).result()
    server.times.clear()

    def busy(number, handler):
        wish = formatdate(time.time() + 2, usegmt=True) if date else "1"  # a date has no fractions
        return number == 1 and (handler.send(status, b"busy", Retry_After=wish) or True)

    server.fault = busy
    first = client.ask(TOKENS)
    while not server.times:
        time.sleep(0.01)
    time.sleep(0.1)
    others = [client.ask(TOKENS) for _ in range(3)]  # these are held back too
    for request in (first, *others):
        request.result()
    assert min(server.times[1:]) - server.times[0] > 0.9


def test_retry_after_that_is_longer_than_the_patience(server, connect):
    client = connect(server.url, patience=5.0)
    server.fault = always(with_status(429, {"error": "quota"}, Retry_After="3600"))
    said = error_of(client)
    assert_matches(
        "HTTP 429: quota, and it asks to be left alone for 3600 s. `teacher_server_requests` sends fewer", said
    )
    assert server.count == 1


def test_what_retry_after_may_say():
    now = time.time()
    for said, seconds in {
        "7": 7,
        "1.5": 1.5,
        " 3 ": 3,
        formatdate(now + 100, usegmt=True): 100,
        formatdate(now + 100): 100,
        formatdate(now - 100, usegmt=True): 0,
        "": 0,
        "soon": 0,
        "-5": 0,
        "nan": 0,
        "inf": 0,
        "1e9": 0,
        "9" * 400: 0,
        "٣": 0,
        "Mon, 99 Foo 99999 00:00:00 GMT": 0,
    }.items():
        assert retry_after({"retry-after": said}) == pytest.approx(seconds, abs=2), said
    assert retry_after({}) == 0


def test_waiting_for_others_is_no_lack_of_an_answer(server, connect):
    """Patience is for a server that is away, and not for the requests before one's own."""
    client = connect(server.url, requests=1, patience=1.0)
    client.ask(TOKENS).result()
    first = server.count

    def slow(number, handler):
        if number == first + 4:
            return handler.send(500, b"once") or True
        time.sleep(0.4)
        return False

    server.fault = slow
    for request in [client.ask(TOKENS) for _ in range(5)]:
        assert request.result().ids.shape == (3, 4)


# What must not be shown


KEY, PASSWORD = "sk-live-0123456789", "p@ss/wörd&<1>"
IN_URL = "p%40ss%2Fw%C3%B6rd%26%3C1%3E"
SECRETS = (KEY, PASSWORD, IN_URL, "p@ss/w", "p%40ss", "c2stbGl2ZS", "dXNlcj")


def assert_no_secret(text):
    for secret in SECRETS:
        assert secret not in text, text


@pytest.mark.parametrize("in_url", [False, True])
def test_no_secret_is_shown(server, connect, monkeypatch, caplog, in_url):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    host = server.url.split("//")[1]
    url = f"http://user:{IN_URL}@{host}/v1" if in_url else server.url
    echoed = [KEY, "sk-live-\x1b[1m0123456789"]
    if in_url:
        echoed += [PASSWORD, IN_URL, "p@ss/w\u200börd&amp;&lt;1&gt;", f"user:{PASSWORD}"]
    echo = json.dumps({"error": {"message": " ".join(echoed)}}).encode()
    caplog.set_level(logging.DEBUG)
    client = connect(url, patience=0.15)
    caplog.clear()
    assert client.url == f"http://{host}/v1"
    header = {}

    def see(number, handler):
        header["was"] = handler.headers["Authorization"]
        return False

    server.fault = see
    client.ask(TOKENS).result()
    assert header["was"].startswith("Basic dXNlcj" if in_url else f"Bearer {KEY}")
    header["was"] = header["was"].split()[1]
    for status in (200, 302, 400, 401, 403, 404, 407, 429, 500, 502):
        for body in (echo, f"<p>{' '.join(echoed)} {header['was']}</p>".encode()):
            server.fault = always(with_status(status, body, Location=url.replace("/v1", f"/?key={KEY}")))
            with pytest.raises(TeacherServerError) as found:
                client.ask(TOKENS).result(10)
            assert_no_secret("".join(traceback.format_exception(found.value)).replace(__file__, ""))
            assert found.value.__cause__ is None and found.value.__context__ is None
    server.stop()
    with pytest.raises(TeacherServerError) as found:
        client.ask(TOKENS).result(10)
    assert_no_secret("".join(traceback.format_exception(found.value)))
    info = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert any("/v1/completions" in line for line in info)  # the HTTP library's own
    assert_no_secret("\n".join(info))
    assert_no_secret(repr(Address.of(url)))


@pytest.mark.parametrize("key", ["sk-live\nX-Other: 1", "sk-lüve", "sk\x00live"])
def test_a_key_that_cannot_be_sent(server, connect, monkeypatch, key):
    if "\x00" not in key:  # no environment has that
        monkeypatch.setenv("VLLM_API_KEY", key)
        with pytest.raises(UsageError, match="VLLM_API_KEY has characters that can't be sent as a key") as found:
            connect(server.url)
        assert "sk" not in str(found.value)
    monkeypatch.setenv("VLLM_API_KEY", " secret \n")
    server.key = "Bearer secret"
    assert connect(server.url).model == "teacher"


URLS = {
    "localhost:8000": "must begin with http:// or https://, got 'localhost:8000'",
    "user:hunter2@host:8000": r"must begin with http:// or https://, got '\*\*\*@host:8000'",
    "ftp://user:hunter2@host": "must begin with http",
    "http://": "must name a host",
    "http:///v1": "must name a host",
    "http://user:hunter2@": "must name a host",
    "http://host:99999": "a port from 1 to 65535",
    "http://host:0": "a port from 1 to 65535",
    "http://host:many": "a port from 1 to 65535",
    "http://[::1": "must name a host",
    "http://ho st": "must name a host",
    "http://host\r\nX-Other: 1": "must name a host",
    "http://user:hunter2/@host": r"got 'http://\*\*\*@host'. In a password, @, /",
    "http://user:hunter2#@host:1": r"got 'http://\*\*\*@host:1'",
    "http://host/v1?api-key=hunter2": r"without \? and #, got 'http://host/v1\?\*\*\*'. A key belongs .*VLLM_API_KEY",
    "http://host/#hunter2": r"without \? and #",
}


@pytest.mark.parametrize("url", URLS, ids=ascii)
def test_addresses_that_are_none(url, make_config):
    with pytest.raises(ValueError, match=URLS[url]) as found:
        make_config(teacher_server_url=url)
    said = "".join(traceback.format_exception(found.value, limit=0))
    assert "hunter2" not in str(found.value) and "\r" not in str(found.value)
    assert found.value.__context__ is None, said


def test_addresses(make_config):
    for url, clean in {
        "http://host:8000": "http://host:8000",
        "HTTPS://Host/v1/": "https://Host",
        "http://user:hunter2@[::1]:8000/teacher/v1": "http://[::1]:8000/teacher",
        "http://token@host": "http://host",
    }.items():
        assert Address.of(url).url == clean
    config = make_config(teacher_server_url="http://user:hunter2@host:8000/v1")
    assert config.teacher_server_url == "http://user:hunter2@host:8000/v1"
    assert config.to_dict()["teacher_server_url"] == "http://***@host:8000/v1"
    assert "hunter2" not in config.to_json_string()
    with pytest.raises(ValueError, match="`teacher_server_url` is http://host:8000 and `teacher_cache` x") as found:
        make_config(teacher_server_url="http://user:hunter2@host:8000/v1", teacher_cache="x")
    assert "hunter2" not in str(found.value)
    assert shown("http://u:p@h/?x=1") == "http://***@h/?***"


def test_nothing_moves_the_cursor(server, connect):
    said = "\x1b[2J\x1b]0;title\x07\x9b31mred\x00\x08\x7f\u202eback\u200b\u2028line\r\n\ttab\ud800 \x1bPq\x1b\\end"
    assert plain(said) == "redback line tab end"
    server.fault = always(with_status(400, {"error": {"message": said + "x" * 10_000}}))
    found = error_of(connect(server.url))
    assert "HTTP 400: redback line tab endxxx" in found and len(found) < 900
    assert found.isprintable()
    server.models = lambda handler: handler.send(200, {"data": [{"id": said}, {"id": "b" * 10_000}] * 50}) or True
    found = soon(connect, server.url, "serves 'redback line tab end', 'b+', .* give the name of one")
    assert found.isprintable() and len(found) < 1500


# An end


INTERRUPTED = """
import sys, types
import trl_tempkd
teachers = sys.modules["trl_tempkd.teachers"] = types.ModuleType("trl_tempkd.teachers")  # which would load torch
teachers.__path__ = [trl_tempkd.__path__[0] + "/teachers"]
from trl_tempkd.teachers.client import CompletionsClient
client = CompletionsClient(sys.argv[1], None, 4, 2, 600, 600)
requests = [client.ask([5, 6, 7]) for _ in range(5)]
print("asked", flush=True)
requests[0].result()
"""


def test_an_interrupt_ends_it(server):
    server.fault = always(lambda handler: time.sleep(20))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout.readline() == "asked\n"
        deadline = time.monotonic() + 10
        while server.count < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert said.rstrip().endswith("KeyboardInterrupt"), said
    assert process.returncode != 0


def test_closing_ends_what_is_under_way(server, connect):
    client = connect(server.url)
    server.fault = always(lambda handler: time.sleep(1))
    request = client.ask(TOKENS)
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 1
    assert request.cancelled()


def test_certificates_are_read_again_only_where_others_are_named(monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    first = authorities()
    assert authorities() is first
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    assert authorities() is not first and authorities() is authorities()
