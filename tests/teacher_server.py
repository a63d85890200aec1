# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
An HTTP server on loopback that gives a model's prompt log-probabilities, or its last hidden states, as vLLM does, and
faults on demand.

    python tests/teacher_server.py tiny:teacher --port 8000
    python tests/teacher_server.py tiny:teacher --port 8000 --runner pooling
"""

import argparse
import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class TeacherServer:
    """
    Serves a model, in threads of this process.

    Args:
        model, tokenizer:
            The teacher.
        name (`str`): under which it is served.
        tls (`ssl.SSLContext`, *optional*): with which it speaks https.
        most (`int`, *optional*): the most log-probabilities it gives (`--max-logprobs`; `None` is -1).
        mode (`str`): `--logprobs-mode`.
        pooling (`bool`): whether it gives last hidden states (`--runner pooling`), and no log-probabilities.

    Attributes:
        fault (`Callable[[int, Handler], bool]`): called with the number of each request for completions, from 0 on,
            before it is answered. If it returns `True`, it has answered itself.
        models (`Callable[[Handler], bool]`): the same for requests for the list of models.
        change (`Callable[[dict, dict], dict]`): changes the reply to a request.
        encodings (`tuple[str, ...]`): in which it sends states.
        states (`Callable[[list[torch.Tensor], dict], list[torch.Tensor]]`): changes the states of a request.
        headers (`dict[str, str | None]`): changes those of a reply in bytes.
        positions (`int`, *optional*): `--max-model-len`.
        delay (`float`): seconds before an answer.
        memory (`dict`, *optional*): states by text, where no text is computed twice.
    """

    def __init__(self, model, tokenizer, name="teacher", most=None, mode="raw_logprobs", tls=None, pooling=False):
        self.model, self.tokenizer, self.name, self.most, self.mode = model.eval(), tokenizer, name, most, mode
        self.fault: Callable[[int, Handler], bool] = lambda number, handler: False
        self.change: Callable[[dict, dict], dict] = lambda reply, body: reply
        self.models: Callable[[Handler], bool] = lambda handler: False
        self.states: Callable[[list[torch.Tensor], dict], list[torch.Tensor]] = lambda states, body: states
        self.pooling, self.encodings, self.headers = pooling, ("bytes", "base64", "float"), {}
        self.positions: int | None = None
        self.delay, self.memory = 0.0, None
        self.key, self.tls = None, tls
        self.count = self.now = self.peak = 0
        self.bodies: list[dict] = []
        self.texts: dict[int, str] = {}
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.port = 0
        self.http: ThreadingHTTPServer | None = None

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def start(self):
        """Also after `stop`, at the same port."""
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        if self.tls is not None:
            self.http.socket = self.tls.wrap_socket(self.http.socket, server_side=True)
        self.http.daemon_threads = True
        self.http.teacher = self
        self.http.open = set()
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self):
        """Connections that are kept alive are cut too."""
        if self.http is not None:
            http, self.http = self.http, None
            http.shutdown()
            http.server_close()
            for handler in list(http.open):
                handler.cut()

    @contextmanager
    def running(self):
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def text(self, token):
        if token not in self.texts:
            self.texts[token] = self.tokenizer.decode([token])
        return self.texts[token]

    def states_of(self, text):
        if self.memory is not None and tuple(text) in self.memory:
            return self.memory[tuple(text)]
        with self.lock:  # one model
            states = self.model.base_model(torch.tensor([text])).last_hidden_state[0].float()
        if self.memory is not None:
            self.memory[tuple(text)] = states
        return states

    @torch.no_grad()
    def pooled(self, body):
        """Status, reply and headers."""
        texts, encoding, dtype = (
            body["input"],
            body.get("encoding_format", "float"),
            body.get("embed_dtype", "float32"),
        )
        if encoding not in self.encodings:
            return 422, {"error": {"message": f"Input should be one of {self.encodings}"}}, {}
        texts = texts if isinstance(texts[0], list) else [texts]
        found = [self.states_of(text) for text in texts]
        found = [states.to(getattr(torch, dtype)) for states in self.states(found, body)]
        data = [states.contiguous().view(torch.uint8).numpy().tobytes() for states in found]
        if encoding == "bytes":
            items, start = [], 0
            for i, (part, states) in enumerate(zip(data, found, strict=True)):
                item = {"index": i, "embed_dtype": dtype, "endianness": "little", "start": start}
                items.append({**item, "end": start + len(part), "shape": [*states.shape]})
                start += len(part)
            headers = {"Content_Type": "application/octet-stream", "metadata": json.dumps({"data": items})}
            return 200, b"".join(data), {**headers, **self.headers}
        data = [base64.b64encode(part).decode() for part in data] if encoding == "base64" else [*map(listed, found)]
        items = [{"index": i, "object": "pooling", "data": part} for i, part in enumerate(data)]
        return 200, {"object": "list", "data": items}, {}

    @torch.no_grad()
    def written(self, body):
        tokens, new = list(body["prompt"]), []
        generator = torch.Generator().manual_seed(body["seed"])
        while len(new) < body["max_tokens"] and not {*new[-1:]} & {*body["stop_token_ids"]}:
            with self.lock:
                logits = self.model(torch.tensor([tokens + new])).logits[0, -1].float()
            if body["temperature"] == 0:
                new.append(int(logits.argmax()))
            else:
                p = (logits / body["temperature"]).softmax(-1)
                new.append(int(torch.multinomial(p, 1, generator=generator)))
        return 200, self.change({"choices": [{"index": 0, "text": "x", "token_ids": new}]}, body)

    @torch.no_grad()
    def answer(self, body):
        if "prompt_logprobs" not in body:
            return self.written(body)
        tokens, wanted = body["prompt"], body["prompt_logprobs"]
        vocabulary = self.model.config.get_text_config().vocab_size
        wanted = vocabulary if wanted == -1 else wanted
        if self.most is not None and wanted > self.most:
            return 400, {"error": {"message": f"Requested {wanted} prompt logprobs, more than {self.most}."}}
        with self.lock:  # one model
            logits = self.model(torch.tensor([tokens])).logits[0].float()
        if self.mode.startswith("processed"):
            logits = logits / body["temperature"]
        rows = (logits if self.mode.endswith("logits") else logits.log_softmax(-1))[:-1]
        largest, ids = rows.topk(wanted)
        own = rows.gather(-1, torch.tensor(tokens[1:])[:, None])
        ranks = ((rows > own).sum(-1) + 1).tolist()
        said = [None]
        for token, value, rank, *others in zip(
            tokens[1:], own[:, 0].tolist(), ranks, ids.tolist(), largest.tolist(), strict=True
        ):
            # the prompt's own first, as vLLM
            found = {token: (value, rank)} | {i: (v, at + 1) for at, (i, v) in enumerate(zip(*others, strict=True))}
            said.append(
                {
                    str(i): {"logprob": max(v, -9999.0), "rank": at, "decoded_token": self.text(i)}
                    for i, (v, at) in found.items()
                }
            )
        choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length", "prompt_logprobs": said}
        return 200, self.change({"id": "cmpl-1", "object": "text_completion", "choices": [choice]}, body)


def listed(states):
    return states.float().tolist()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def setup(self):
        super().setup()
        self.server.open.add(self)

    def finish(self):
        self.server.open.discard(self)
        super().finish()

    def handle(self):
        with suppress(OSError, ValueError):  # cut off
            super().handle()

    def cut(self):
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass

    def send(self, status, reply, cut=None, **headers):
        """`cut` bytes of the reply alone, whatever the header promises."""
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True

    def write(self, *parts, pause=0.0):
        """Bytes as they are, HTTP or not, and the end of the connection."""
        self.close_connection = True
        for part in parts:
            self.wfile.write(part)
            time.sleep(pause)

    def do_GET(self):
        if self.server.teacher.models(self):
            return
        assert self.path == "/v1/models"
        if self.server.teacher.key not in (None, self.headers["Authorization"]):
            return self.send(401, {"error": "Unauthorized"})
        card = {"id": self.server.teacher.name, "object": "model", "max_model_len": self.server.teacher.positions}
        self.send(200, {"object": "list", "data": [card]})

    def do_POST(self):
        teacher = self.server.teacher
        body = self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != ("/pooling" if teacher.pooling else "/v1/completions"):
            return self.send(404, {"detail": "Not Found"})
        with teacher.lock:
            number, teacher.count = teacher.count, teacher.count + 1
            teacher.now += 1
            teacher.peak = max(teacher.peak, teacher.now)
            teacher.times.append(time.monotonic())
            teacher.bodies.append(body)
        try:
            time.sleep(teacher.delay)
            if not teacher.fault(number, self):
                if teacher.pooling:
                    status, reply, headers = teacher.pooled(body)
                    self.send(status, reply, **headers)
                else:
                    self.send(*teacher.answer(body))
        finally:
            with teacher.lock:
                teacher.now -= 1


def main():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_tempkd.tiny import resolve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, name on the Hub, or tiny:teacher")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--runner", default="generate", choices=["generate", "pooling"], help="default: generate")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--remember", action="store_true", help="compute the states of no text twice")
    args = parser.parse_args()
    folder = resolve(args.model)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if args.remember else torch.float32)
    server = TeacherServer(model, AutoTokenizer.from_pretrained(folder), pooling=args.runner == "pooling")
    server.port, server.delay, server.memory = args.port, args.delay, {} if args.remember else None
    with server.running():
        print(f"{server.url} serves {args.model} until it is interrupted.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
