# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The configuration of a distillation: everything of TRL's `SFTConfig`, plus the temperature and the divergence."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .divergences import DIVERGENCES, check_divergence
from .rollouts.config import RolloutConfig
from .temperature import RESCALES, SCHEDULES


@dataclass
class KDConfig(RolloutConfig):
    r"""
    Configuration class for the [`TemperatureKDTrainer`].

    This class includes only the parameters that are specific to distillation. Those of on-policy training are
    inherited from [`RolloutConfig`]; everything else (data preparation, optimizer, logging, ...) is inherited from
    [`~trl.SFTConfig`] and keeps its meaning. Each name is also a command-line flag and a key of a YAML recipe, through
    [`~trl.TrlParser`].

    Parameters:
        > Parameters that control the divergence

        divergence (`str`, *optional*, defaults to `"forward_kl"`):
            What the student minimises: a name of [`DIVERGENCES`]. All are true divergences, in nats: 0 exactly when
            the student equals the teacher.
        divergence_kwargs (`dict[str, Any]`, *optional*):
            Parameters of the divergence, e.g. `{"beta": 0.1}` for `"jsd"`. Those left out keep their defaults.
        kd_ratio (`float`, *optional*, defaults to `1.0`):
            The loss is `kd_ratio * KD + (1 - kd_ratio) * CE`. The cross-entropy with the labels is always at
            temperature 1.

        > Parameters that control the temperature

        kd_temperature (`float`, *optional*, defaults to `2.0`):
            Temperature tau of the divergence: both sets of logits are divided by it. It is not a sampling
            temperature.
        student_kd_temperature (`float`, *optional*):
            Temperature of the student alone, in place of `kd_temperature`. `1.0` softens the teacher only, which
            changes the optimum: the student then learns the softened teacher itself.
        teacher_kd_temperature (`float`, *optional*):
            Temperature of the teacher alone, in place of `kd_temperature`.
        kd_temperature_rescale (`str`, *optional*, defaults to `"tau2"`):
            Factor on the divergence: `"none"` (1), `"tau"` or `"tau2"`, with the product of both sides in place of
            tau² if they differ. `"tau2"` keeps the size of the gradient about the same for every tau, which matters
            when cross-entropy is mixed in or gradients are clipped.
        kd_temperature_schedule (`str`, *optional*, defaults to `"constant"`):
            How tau goes from `kd_temperature` to `kd_temperature_final` over the training steps: `"constant"`,
            `"linear"`, `"cosine"` or `"step"`. A side with its own temperature keeps it.
        kd_temperature_final (`float`, *optional*):
            Value of tau at the end of training. Required by every schedule but `"constant"`.

        > Parameters that control the memory

        kd_chunk_size (`int`, *optional*):
            Number of tokens whose logits exist at a time. Smaller means less memory and more, smaller matrix
            products. If `None`, the loss chooses.

        > Parameters that control the teacher and the student

        teacher_model_name_or_path (`str`, *optional*):
            Model name or path of the teacher, used when the trainer is given no `teacher_model`. `student_base` is the
            student without its PEFT adapter, one model in memory (for a folder of that name write `./student_base`).
            A fresh adapter changes nothing, so loss and gradient are then 0 unless the two temperatures differ, or
            cross-entropy is mixed in.
        teacher_model_revision (`str`, *optional*):
            Revision of the teacher (branch, tag or commit hash).
        teacher_model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for `from_pretrained` when the teacher is given as a string. Unlike the student, the
            teacher keeps the dtype of its checkpoint unless `"dtype"` says otherwise, since it is not trained.
        teacher_cache (`str`, *optional*):
            Folder that `trl-tempkd cache` has written, and no teacher is loaded. Of mode `hidden` the teacher's last
            hidden states are read from it, the exact same target at every temperature and for every divergence; the
            others serve some. A teacher's name that is given too is compared with that of the cache.
        teacher_server_url (`str`, *optional*):
            Address of an OpenAI-compatible server that gives log-probabilities of prompt tokens, as vLLM's does, e.g.
            `http://localhost:8000`. It is asked for the target, and no teacher is loaded. A teacher's name that is
            given too is its name on the server. A key is taken from the environment variable `VLLM_API_KEY`.
        teacher_server_logprobs (`int`, *optional*):
            How many log-probabilities to ask the server for at each position. If `None`, all.
        teacher_server_requests (`int`, *optional*, defaults to `8`):
            Most requests of a process in flight.
        teacher_server_timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for a reply before the request is repeated.
        teacher_server_patience (`float`, *optional*, defaults to `600.0`):
            Seconds for which a request is repeated while the server is away. Then a checkpoint is written, and the run
            stops with an error.
        disable_dropout (`bool`, *optional*, defaults to `False`):
            Whether to disable dropout in the student. The teacher never has any.

        > Parameters that control the diagnostics

        kd_diagnostics_steps (`int`, *optional*):
            Optimizer steps between two measurements of the gradients and of the student's errors, into
            `diagnostics.csv` of the `output_dir`. `trl-tempkd distill` sees to it; in Python, add the callback that
            measures: `trainer.add_callback(DiagnosticsCallback(trainer))`, from `trl_tempkd.diagnostics`. If `None`,
            nothing is measured.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *RolloutConfig._VALID_DICT_FIELDS,
        "divergence_kwargs",
        "teacher_model_init_kwargs",
    ]

    # Parameters that control the divergence
    divergence: str = field(
        default="forward_kl",
        metadata={
            "help": "What the student minimises, in nats, 0 exactly when it equals the teacher. One of "
            f"{', '.join(DIVERGENCES)}."
        },
    )
    divergence_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Parameters of the divergence, e.g. `{"beta": 0.1}` for `jsd`.'},
    )
    kd_ratio: float = field(
        default=1.0,
        metadata={
            "help": "The loss is kd_ratio * KD + (1 - kd_ratio) * CE, in [0, 1]. The cross-entropy with the labels is "
            "always at temperature 1."
        },
    )

    # Parameters that control the temperature
    kd_temperature: float = field(
        default=2.0,
        metadata={
            "help": "Temperature tau of the divergence: student and teacher logits are divided by it. It is not a "
            "sampling temperature."
        },
    )
    student_kd_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature of the student alone, in place of `kd_temperature`. 1.0 softens the teacher only, "
            "which changes the optimum: the student then learns the softened teacher itself."
        },
    )
    teacher_kd_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of the teacher alone, in place of `kd_temperature`."},
    )
    kd_temperature_rescale: str = field(
        default="tau2",
        metadata={
            "help": "Factor on the divergence: 'none' (1), 'tau' or 'tau2'. 'tau2' keeps the size of the gradient "
            "about the same for every tau, which matters when cross-entropy is mixed in or gradients are clipped.",
            "choices": list(RESCALES),
        },
    )
    kd_temperature_schedule: str = field(
        default="constant",
        metadata={
            "help": "How tau goes from `kd_temperature` to `kd_temperature_final` over the training steps. A side "
            "with its own temperature keeps it.",
            "choices": list(SCHEDULES),
        },
    )
    kd_temperature_final: float | None = field(
        default=None,
        metadata={"help": "Value of tau at the end of training. Required by every schedule but 'constant'."},
    )

    # Parameters that control the memory
    kd_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of tokens whose logits exist at a time. Smaller means less memory and more, smaller "
            "matrix products. If not set, the loss chooses."
        },
    )

    # Parameters that control the teacher and the student
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model name or path of the teacher, used when the trainer is given no `teacher_model`. "
            "`student_base` is the student without its PEFT adapter, one model in memory."
        },
    )
    teacher_model_revision: str | None = field(
        default=None,
        metadata={"help": "Revision of the teacher (branch, tag or commit hash)."},
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments for `from_pretrained` when the teacher is given as a string. The teacher keeps "
            "the dtype of its checkpoint unless `dtype` says otherwise."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `trl-tempkd cache` has written. What the teacher says is read from it, and no "
            "teacher is loaded."
        },
    )
    teacher_server_url: str | None = field(
        default=None,
        metadata={
            "help": "Address of an OpenAI-compatible server that gives log-probabilities of prompt tokens, as vLLM's "
            "does, e.g. http://localhost:8000. It is asked for the target, and no teacher is loaded."
        },
    )
    teacher_server_logprobs: int | None = field(
        default=None,
        metadata={"help": "How many log-probabilities to ask the server for at each position. If not set, all."},
    )
    teacher_server_requests: int = field(
        default=8, metadata={"help": "Most requests of a process to the teacher's server in flight."}
    )
    teacher_server_timeout: float = field(
        default=120.0, metadata={"help": "Seconds to wait for a reply of the server before the request is repeated."}
    )
    teacher_server_patience: float = field(
        default=600.0,
        metadata={
            "help": "Seconds for which a request is repeated while the server is away. Then a checkpoint is written, "
            "and the run stops with an error."
        },
    )
    disable_dropout: bool = field(
        default=False,
        metadata={"help": "Whether to disable dropout in the student. The teacher never has any."},
    )

    # Parameters that control the diagnostics
    kd_diagnostics_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps between two measurements of the gradients and of the student's errors, into "
            "`diagnostics.csv` of the `output_dir`. If not set, nothing is measured."
        },
    )

    def __post_init__(self):
        # TRL sets its default under the old name, for which transformers would warn whatever the user does
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            if getattr(self, new, "absent") is None:
                setattr(self, new, getattr(self, old))
        super().__post_init__()

        examples = {"divergence_kwargs": '{"beta": 0.1}', "teacher_model_init_kwargs": '{"dtype": "bfloat16"}'}
        for name, example in examples.items():
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"`{name}` must be a dict, or on the command line its JSON, e.g. '{example}', got "
                    f"{getattr(self, name)!r}."
                )
        assert not isinstance(self.divergence_kwargs, str)
        check_divergence(self.divergence, self.divergence_kwargs)
        for name in ("kd_temperature", "student_kd_temperature", "teacher_kd_temperature", "kd_temperature_final"):
            tau = getattr(self, name)
            if tau is not None and not (tau > 0 and math.isfinite(tau)):
                raise ValueError(
                    f"`{name}` must be positive and finite, got {tau}. For a nearly greedy teacher use a small "
                    "temperature such as 0.1."
                )
        if self.kd_temperature_rescale not in RESCALES:
            raise ValueError(
                f"`kd_temperature_rescale` must be one of {', '.join(RESCALES)}, got {self.kd_temperature_rescale!r}."
            )
        if self.kd_temperature_schedule not in SCHEDULES:
            raise ValueError(
                f"`kd_temperature_schedule` must be one of {', '.join(SCHEDULES)}, got "
                f"{self.kd_temperature_schedule!r}."
            )
        if self.kd_temperature_schedule == "constant" and self.kd_temperature_final is not None:
            raise ValueError(
                f"`kd_temperature_final` is {self.kd_temperature_final}, but `kd_temperature_schedule` is 'constant', "
                "so it would never be reached. Choose a schedule such as 'linear', or leave `kd_temperature_final` "
                "unset."
            )
        if self.kd_temperature_schedule != "constant":
            if self.kd_temperature_final is None:
                raise ValueError(
                    f"`kd_temperature_schedule` is {self.kd_temperature_schedule!r}, which needs "
                    "`kd_temperature_final`, got None. Set it, or use the 'constant' schedule."
                )
            if self.student_kd_temperature is not None and self.teacher_kd_temperature is not None:
                raise ValueError(
                    f"`kd_temperature_schedule` is {self.kd_temperature_schedule!r}, but `student_kd_temperature` "
                    f"({self.student_kd_temperature}) and `teacher_kd_temperature` ({self.teacher_kd_temperature}) "
                    "fix both sides, so it would have no effect. Leave one of them unset."
                )
        if not 0 <= self.kd_ratio <= 1:
            raise ValueError(f"`kd_ratio` must be in [0, 1], got {self.kd_ratio}.")
        if self.kd_chunk_size is not None and self.kd_chunk_size < 1:
            raise ValueError(
                f"`kd_chunk_size` must be at least 1, got {self.kd_chunk_size}. Leave it unset to let the loss choose."
            )
        if self.kd_diagnostics_steps is not None and self.kd_diagnostics_steps < 1:
            raise ValueError(
                f"`kd_diagnostics_steps` must be at least 1, got {self.kd_diagnostics_steps}. Leave it unset to "
                "measure nothing."
            )

        if self.teacher_cache is not None and self.generates:
            raise ValueError(
                f"`teacher_cache` {self.teacher_cache} has nothing for completions generated in training. Set "
                f"`lmbda` to 0 (got {self.lmbda}), `lmbda_schedule` to 'constant' and `seq_kd` to False, or leave "
                "`teacher_cache` unset to run the teacher itself."
            )

        if self.teacher_server_url is not None:
            self._check_server()

        # Options of SFT that act inside its loss, which the divergence replaces
        if self.loss_type != "nll":
            raise ValueError(
                f"`loss_type` must be left at 'nll', got {self.loss_type!r}: it selects SFT's loss, which the "
                "divergence replaces. Set `divergence` and `kd_ratio` instead."
            )
        if self.label_smoothing_factor > 0:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, got {self.label_smoothing_factor}: it acts on SFT's loss, which "
                "the divergence replaces. A higher `teacher_kd_temperature` smooths the target."
            )
        if self.torch_compile:
            raise ValueError(
                "`torch_compile` must be False, got True: it compiles the model's forward, and the loss calls its "
                "backbone. The loss compiles itself; for the layers, call `model.model.compile()` before training."
            )
        if self.use_liger_kernel:
            raise ValueError(
                "`use_liger_kernel` must be False, got True: the loss here is fused already. For fast layers use "
                '`model_init_kwargs={"use_kernels": True}`.'
            )

    def _check_server(self) -> None:
        if not str(self.teacher_server_url).startswith(("http://", "https://")):
            raise ValueError(
                f"`teacher_server_url` must begin with http:// or https://, got {self.teacher_server_url!r}."
            )
        if self.teacher_cache is not None:
            raise ValueError(
                f"`teacher_server_url` is {self.teacher_server_url} and `teacher_cache` {self.teacher_cache}: the "
                "target comes from one of them. Leave the other unset."
            )
        if self.generates:
            raise ValueError(
                f"`teacher_server_url` {self.teacher_server_url} is asked ahead of the step, before there are "
                f"completions generated in training. Set `lmbda` to 0 (got {self.lmbda}), `lmbda_schedule` to "
                "'constant' and `seq_kd` to False, or leave `teacher_server_url` unset to run the teacher itself."
            )
        if self.teacher_server_logprobs is not None and self.teacher_server_logprobs < 2:
            raise ValueError(
                f"`teacher_server_logprobs` must be at least 2, got {self.teacher_server_logprobs}. Leave it unset "
                "for all."
            )
        if self.teacher_server_requests < 1:
            raise ValueError(f"`teacher_server_requests` must be at least 1, got {self.teacher_server_requests}.")
        for name in ("teacher_server_timeout", "teacher_server_patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, in seconds, got {getattr(self, name)}.")

    def describe(self) -> str:
        """What the student minimises, in a line: divergence, temperature of both sides, rescale, share of the KD."""
        tau = str(self.kd_temperature)
        if self.kd_temperature_final is not None:
            tau = f"{tau} to {self.kd_temperature_final} ({self.kd_temperature_schedule})"
        student = tau if self.student_kd_temperature is None else self.student_kd_temperature
        teacher = tau if self.teacher_kd_temperature is None else self.teacher_kd_temperature
        parameters = self.divergence_kwargs if isinstance(self.divergence_kwargs, dict) else {}
        kwargs = "".join(f" {name} {value}" for name, value in parameters.items())
        return (
            f"{self.divergence}{kwargs}, student tau {student}, teacher tau {teacher}, rescale "
            f"{self.kd_temperature_rescale}, kd_ratio {self.kd_ratio}"
        )
