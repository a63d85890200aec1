# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Which kind of server stands at an address: one of log-probabilities, one of last hidden states, or another."""

from typing import Any

import httpx2

from ..errors import UsageError
from .address import Address, authorities, plain
from .asked import AskedTeacher
from .client import DOUBT, CompletionsClient, TeacherServerError
from .other_states import OtherStatesTeacher
from .pooling import START
from .served import ServedTeacher
from .states import StatesTeacher
from .states_probe import encoding_of


def served_teacher(name: str | None, options: Any) -> AskedTeacher:
    """
    The teacher behind `teacher_server_url`, of the kind that answers there.

    Args:
        name (`str`, *optional*):
            Name or path of its checkpoint, or its name on a server of log-probabilities.
        options (`KDConfig`):
            Configuration of the run.

    Raises:
        `ValueError`: If the server is of no known kind, or an option doesn't go with its kind.
        [`TeacherServerError`]: If it doesn't answer.
    """
    try:
        client = _of_log_probabilities(options, name)
        _check_alignment(client, options)
        return ServedTeacher(client, options)
    except TeacherServerError as error:
        if not (error.refused or error.malformed):
            raise
        refusal = error
    found = _of_states(options, name)
    if found is None:
        foreign = recognised(Address.of(options.teacher_server_url))
        raise TeacherServerError(foreign) if foreign else refusal
    client, encoding = found
    try:
        _check_options(client, name, options)
        kind = StatesTeacher if options.vocabulary_alignment is None else OtherStatesTeacher
        return kind(client, encoding, str(name), options)
    except BaseException:
        client.close()
        raise


def _of_log_probabilities(options: Any, name: str | None) -> CompletionsClient:
    """
    What asks a server of log-probabilities.

    Raises:
        [`TeacherServerError`]: If it is none, `refused` or `malformed`, or doesn't answer.
    """
    client = CompletionsClient(
        options.teacher_server_url,
        options.teacher_server_model or name,
        options.teacher_server_logprobs,
        options.teacher_server_requests,
        options.teacher_server_timeout,
        options.teacher_server_patience,
        option="teacher_server_model" if options.teacher_server_model else "teacher_model_name_or_path",
    )
    try:
        client.ask([0, 1]).result()
    except BaseException:
        client.close()
        raise
    return client


def _of_states(options: Any, name: str | None) -> tuple[CompletionsClient, str] | None:
    """What asks a server of last hidden states, and how it sends them. `None` if it is none."""
    own = options.teacher_server_model
    patience = options.teacher_server_patience
    how = (options.teacher_server_requests, options.teacher_server_timeout, min(patience, DOUBT))
    option = "teacher_server_model" if own else "teacher_model_name_or_path"
    client = None
    try:
        client = CompletionsClient(
            options.teacher_server_url, own or name, None, *how, or_checkpoint=not own, option=option
        )
        encoding = encoding_of(client)
    except TeacherServerError as error:
        if client is not None:
            client.close()
        if error.malformed:
            raise
        return None
    client.patience = patience
    return client, encoding


def _check_options(client: CompletionsClient, name: str | None, options: Any) -> None:
    if name is None:
        root = f", perhaps {plain(client.card.root)!r}" if client.card.root else ""
        raise UsageError(
            f"`teacher_server_url` {client.url} gives last hidden states, and the head that they need is read from a "
            f"checkpoint: let `teacher_model_name_or_path` name the one that the server has loaded{root}."
        )
    if options.seq_kd and options.teacher_server_generation_url is None:
        raise UsageError(
            f"`seq_kd` is True, and `teacher_server_url` {client.url} gives last hidden states and can't generate. "
            "Let `teacher_server_generation_url` name a server of the same teacher that does (vLLM's without --runner "
            "pooling), or set `seq_kd` to False."
        )
    if options.teacher_server_logprobs is not None:
        raise UsageError(
            f"`teacher_server_logprobs` is {options.teacher_server_logprobs}, and `teacher_server_url` {client.url} "
            "gives last hidden states, from which all follow. Leave it unset, or start the server without --runner "
            "pooling."
        )


def _check_alignment(client: CompletionsClient, options: Any) -> None:
    if options.vocabulary_alignment is not None:
        client.close()
        raise UsageError(
            f"`vocabulary_alignment` is {options.vocabulary_alignment!r}, and `teacher_server_url` {client.url} gives "
            "log-probabilities of some tokens, where all of the teacher's are pooled. Start the server with "
            f"{START}, which gives its last hidden states."
        )


# Where other servers than vLLM's say what they are: path, a key of the reply, name. SGLang's `return_hidden_states` is
# no way: of a prompt whose beginning is in its cache, or that runs in a batch, states are missing or another request's
# (its issues 4997 and 8066; not tried here).
_FOREIGN = (
    ("/get_world_size/", "world_size", "an earlier version's `trl vllm-serve`"),
    ("/get_model_info", "model_path", "SGLang's"),
    ("/model_info", "model_path", "SGLang's"),
    ("/props", "default_generation_settings", "llama.cpp's"),
    ("/api/version", "version", "Ollama's"),
    ("/info", "model_id", "Text Generation Inference's"),
)


def recognised(address: Address) -> str | None:
    """What to say of a server of another kind, with what to start in its place. `None` if it isn't known."""
    headers = {"Authorization": address.authorization} if address.authorization else {}
    for path, key, whose in _FOREIGN:
        try:
            reply = httpx2.get(address.url + path, headers=headers, timeout=5.0, verify=authorities())
            found = reply.status_code == 200 and key in reply.json()
        except (httpx2.HTTPError, ValueError, TypeError):
            continue
        if found:
            return (
                f"`teacher_server_url` {address.url} is {whose} server, which gives neither the log-probabilities of "
                f"a prompt's tokens nor their last hidden states as vLLM does. Start vLLM in its place: `vllm serve "
                f"MODEL {START}` for the exact teacher, or `vllm serve MODEL --max-logprobs -1`."
            )
    return None
