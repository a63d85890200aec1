# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The options of where the target comes from."""

import math
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..option_groups import OptionGroup, must, option
from .address import Address, shown
from .offload import PLACES
from .several_options import TeacherSpec, check_teachers


@dataclass
class TeacherOptions(OptionGroup):
    """Parameters that control the teacher and the student."""

    teacher_model_name_or_path: str | None = option(
        None,
        "Model name or path of the teacher, used when the trainer is given no `teacher_model`. `student_base` is the "
        "student without its PEFT adapter, one model in memory (for a folder of that name write `./student_base`). A "
        "fresh adapter changes nothing, so loss and gradient are then 0 unless the two temperatures differ, or "
        "cross-entropy is mixed in. `student` is the student itself, and `student_ema` an average of the weights that "
        "it had, for rows whose `teacher_prompt` it reads, or for another temperature.",
    )
    teacher_ema_decay: float = option(
        0.999,
        "Share of the average that stays at each optimizer step, in [0, 1), with the teacher `student_ema`.",
    )
    teacher_model_revision: str | None = option(None, "Revision of the teacher (branch, tag or commit hash).")
    teacher_model_init_kwargs: dict[str, Any] | str | None = option(
        None,
        "Keyword arguments for `from_pretrained` when the teacher is given as a string. Unlike the student, the "
        "teacher keeps the dtype of its checkpoint, since it is not trained, unless they say otherwise, e.g. "
        '`{"dtype": "bfloat16"}`.',
    )
    teacher_cache: str | None = option(
        None,
        "Folder that `trl-tempkd cache` has written: what the teacher says is read from it, and no teacher is loaded. "
        "Of mode `hidden` these are its last hidden states, the exact same target at every temperature and for every "
        "divergence; the others serve some. A teacher's name that is given too is compared with that of the cache.",
    )
    teachers: list[dict[str, Any]] | None = option(
        None,
        "Several teachers, a list in the recipe. Each has a `name` and a source: a `model` (with `revision` and "
        "`init_kwargs`), a `cache` or a `server_url` (with `server_model` and `server_logprobs`). It may have a "
        "`weight`, `teacher_prompt: false` (it reads the student's prompt where others read a `teacher_prompt`), "
        "temperatures (`kd_temperature`, `student_kd_temperature`, `teacher_kd_temperature`), and a "
        "`divergence` with `divergence_kwargs` of its own. A column `teacher` of the rows names the one that a row "
        "has; without it the target is the mixture of their probabilities.",
    )
    teachers_offload: str | None = option(
        None,
        "Where the live models of `teachers` are while they don't run: `cpu` (its memory) or `disk` (a file in the "
        "`output_dir` that has no name). Each is on the device once per optimizer step, one after the other, if it "
        "has rows in it; its head stays. If not set, all stay on the device. Not with ZeRO-3 and FSDP2.",
        choices=list(PLACES),
    )
    disable_dropout: bool = option(False, "Whether to disable dropout in the student. The teacher never has any.")

    def check(self) -> None:
        must(
            self, "teachers_offload", self.teachers_offload in (None, *PLACES), f"one of {', '.join(PLACES)}, or unset"
        )
        if self.teachers is not None:
            check_teachers(self)
        elif self.teachers_offload is not None:
            raise UsageError(
                f"`teachers_offload` is {self.teachers_offload!r}, and there are no `teachers`: one teacher is needed "
                "in every step. Leave it unset."
            )
        must(self, "teacher_ema_decay", 0 <= self.teacher_ema_decay < 1, "in [0, 1)")
        if self.teacher_cache is not None and self.generates:
            raise UsageError(
                f"`teacher_cache` {self.teacher_cache} has nothing for completions generated in training. Set "
                f"`lmbda` to 0 (got {self.lmbda}), `lmbda_schedule` to 'constant' and `seq_kd` to False, or leave "
                "`teacher_cache` unset to run the teacher itself."
            )


@dataclass
class ServerOptions(OptionGroup):
    """Parameters that control the teacher's server."""

    teacher_server_url: str | None = option(
        None,
        "Address of a server of vLLM's kind, e.g. `http://localhost:8000`. It is asked for the target, and no teacher "
        "is loaded. In pooling mode it gives last hidden states, the exact teacher, whose head is read from the "
        "checkpoint `teacher_model_name_or_path`; else log-probabilities of prompt tokens, and a teacher's name that "
        "is given too is its name on the server. A key is taken from the environment variable `VLLM_API_KEY`.",
    )
    teacher_server_model: str | None = option(
        None,
        "Name of the teacher on the server. If not set, the only one that it serves, or that of "
        "`teacher_model_name_or_path`.",
    )
    teacher_server_requests: int = option(8, "Most requests of a process to the teacher's server in flight.")
    teacher_server_timeout: float = option(
        120.0, "Seconds to wait for a reply of the teacher's server before the request is repeated."
    )
    teacher_server_patience: float = option(
        600.0,
        "Seconds for which a request is repeated while the teacher's server is away. Then a checkpoint is written, "
        "and the run stops with an error.",
    )

    def check(self) -> None:
        several = self.teachers is not None and any(of.server_url for of in TeacherSpec.read(self).values())
        if self.teacher_server_url is None:
            _need_server(self, "teacher_server_model")
            if not several:
                return
        else:
            Address.of(str(self.teacher_server_url))
        must(self, "teacher_server_requests", self.teacher_server_requests >= 1, "at least 1")
        for name in ("teacher_server_timeout", "teacher_server_patience"):
            must(self, name, 0 < getattr(self, name) < math.inf, "positive and finite, in seconds")


@dataclass
class ServedTargetOptions(OptionGroup):
    """Parameters that control what the teacher's server is asked for."""

    teacher_server_logprobs: int | None = option(
        None, "How many log-probabilities to ask the server for at each position. If not set, all."
    )
    teacher_server_generation_url: str | None = option(
        None,
        "Address of a server of the same teacher that generates, for `seq_kd` where that of `teacher_server_url` "
        "gives last hidden states and can't.",
    )

    def check(self) -> None:
        generation_url = self.teacher_server_generation_url
        if self.teacher_server_url is None:
            _need_server(self, "teacher_server_generation_url")
            return
        if generation_url is not None:
            Address.of(generation_url, "teacher_server_generation_url")
            if not self.seq_kd:
                raise UsageError(
                    f"`teacher_server_generation_url` is {shown(generation_url)}, and `seq_kd` False: the teacher "
                    "generates nothing. Set `seq_kd`, or leave it unset."
                )
        if self.teacher_cache is not None:
            raise UsageError(
                f"`teacher_server_url` is {Address.of(str(self.teacher_server_url)).url} and `teacher_cache` "
                f"{self.teacher_cache}: the target comes from one of them. Leave the other unset."
            )
        logprobs = self.teacher_server_logprobs
        ok = logprobs is None or logprobs >= 2
        must(self, "teacher_server_logprobs", ok, "at least 2", "Leave it unset for all.")


def _need_server(options: OptionGroup, name: str) -> None:
    if getattr(options, name) is not None:
        raise UsageError(
            f"`{name}` is {shown(getattr(options, name))}, and is of a teacher that is served: set "
            "`teacher_server_url`, or leave it unset."
        )
