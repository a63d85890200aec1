# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The configuration of a distillation: everything of TRL's `SFTConfig`, plus divergence, temperature and teacher."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .errors import UsageError
from .objectives.config import ObjectiveConfig
from .option_checks import strict
from .teachers.address import Address, shown


@strict
@dataclass
class KDConfig(ObjectiveConfig):
    r"""
    Configuration class for the [`TemperatureKDTrainer`].

    This class includes only the parameters that are about the teacher, the memory, resuming and the diagnostics. Those
    of divergence and temperature are inherited from [`ObjectiveConfig`], those of on-policy training from
    [`RolloutConfig`]; everything else (data preparation, optimizer, logging, ...) is inherited from
    [`~trl.SFTConfig`] and keeps its meaning. Each name is also a command-line flag and a key of a YAML recipe, through
    [`~trl.TrlParser`].

    Parameters:
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
            Address of a server of vLLM's kind, e.g. `http://localhost:8000`. It is asked for the target, and no
            teacher is loaded. In pooling mode it gives last hidden states, the exact teacher, whose head is read from
            the checkpoint `teacher_model_name_or_path`; else log-probabilities of prompt tokens, and a teacher's name
            that is given too is its name on the server. A key is taken from the environment variable `VLLM_API_KEY`.
        teacher_server_model (`str`, *optional*):
            Name of the teacher on the server. If `None`, the only one that it serves, or that of
            `teacher_model_name_or_path`.
        teacher_server_generation_url (`str`, *optional*):
            Address of a server of the same teacher that generates, for `seq_kd` where that of `teacher_server_url`
            gives last hidden states and can't.
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

        > Parameters that control resuming

        resume_with_changes (`bool`, *optional*, defaults to `False`):
            Whether to go on from a checkpoint of a run with another objective, teacher, data set or source of
            completions, from one that is past the last step, or from one without an optimizer. Otherwise each is an
            error. Other options that differ are a warning.

        > Parameters that control the diagnostics

        kd_diagnostics_steps (`int`, *optional*):
            Optimizer steps between two measurements of the gradients and of the student's errors, into
            `diagnostics.csv` of the `output_dir`. `trl-tempkd distill` sees to it; in Python, add the callback that
            measures: `trainer.add_callback(DiagnosticsCallback(trainer))`, from `trl_tempkd.study.diagnostics`. If
            `None`, nothing is measured.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *ObjectiveConfig._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
    ]

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
            "help": "Address of a server of vLLM's kind, e.g. http://localhost:8000, that gives last hidden states "
            "(pooling mode, the exact teacher) or log-probabilities of prompt tokens. It is asked for the target, and "
            "no teacher is loaded."
        },
    )
    teacher_server_model: str | None = field(
        default=None,
        metadata={
            "help": "Name of the teacher on the server. If not set, the only one that it serves, or that of "
            "`teacher_model_name_or_path`."
        },
    )
    teacher_server_generation_url: str | None = field(
        default=None,
        metadata={
            "help": "Address of a server of the same teacher that generates, for `seq_kd` where that of "
            "`teacher_server_url` gives last hidden states and can't."
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

    # Parameters that control resuming
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Whether to go on from a checkpoint of a run with another objective, teacher, data set or source "
            "of completions, from one that is past the last step, or from one without an optimizer. Otherwise each is "
            "an error."
        },
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

        if isinstance(self.teacher_model_init_kwargs, str):
            raise UsageError(
                "`teacher_model_init_kwargs` must be a dict, or on the command line its JSON, e.g. "
                f"""'{{"dtype": "bfloat16"}}', got {self.teacher_model_init_kwargs!r}."""
            )
        if self.kd_chunk_size is not None and self.kd_chunk_size < 1:
            raise UsageError(
                f"`kd_chunk_size` must be at least 1, got {self.kd_chunk_size}. Leave it unset to let the loss choose."
            )
        if self.kd_diagnostics_steps is not None and self.kd_diagnostics_steps < 1:
            raise UsageError(
                f"`kd_diagnostics_steps` must be at least 1, got {self.kd_diagnostics_steps}. Leave it unset to "
                "measure nothing."
            )

        if self.teacher_cache is not None and self.generates:
            raise UsageError(
                f"`teacher_cache` {self.teacher_cache} has nothing for completions generated in training. Set "
                f"`lmbda` to 0 (got {self.lmbda}), `lmbda_schedule` to 'constant' and `seq_kd` to False, or leave "
                "`teacher_cache` unset to run the teacher itself."
            )

        if self.teacher_server_url is not None:
            self._check_server()
        elif self.teacher_server_generation_url is not None or self.teacher_server_model is not None:
            raise UsageError(
                "`teacher_server_model` and `teacher_server_generation_url` are of a teacher that is served: set "
                "`teacher_server_url`, or leave them unset."
            )

        if self.eval_packing and not self.packing and self.packing_strategy != "wrapped":
            raise UsageError(
                "`eval_packing` is True and `packing` False: TRL pads evaluation batches then, as those of training, "
                "and packed sequences would see each other. Set `packing` to True too, or leave `eval_packing` unset."
            )

        # Options of SFT that act inside its loss, which the divergence replaces
        if self.loss_type != "nll":
            raise UsageError(
                f"`loss_type` must be left at 'nll', got {self.loss_type!r}: it selects SFT's loss, which the "
                "divergence replaces. Set `divergence` and `kd_ratio` instead."
            )
        if self.label_smoothing_factor > 0:
            raise UsageError(
                f"`label_smoothing_factor` must be 0, got {self.label_smoothing_factor}: it acts on SFT's loss, which "
                "the divergence replaces. A higher `teacher_kd_temperature` smooths the target."
            )
        if self.torch_compile:
            raise UsageError(
                "`torch_compile` must be False, got True: it compiles the model's forward, and the loss calls its "
                "backbone. The loss compiles itself; for the layers, call `model.model.compile()` before training."
            )
        if self.use_liger_kernel:
            raise UsageError(
                "`use_liger_kernel` must be False, got True: the loss here is fused already. For fast layers use "
                '`model_init_kwargs={"use_kernels": True}`.'
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields, as trackers get them: without a password in `teacher_server_url`."""
        fields = super().to_dict()
        for name in ("teacher_server_url", "teacher_server_generation_url"):
            if getattr(self, name) is not None:
                fields[name] = shown(getattr(self, name))
        return fields

    def _check_server(self) -> None:
        url = Address.of(str(self.teacher_server_url)).url
        if self.teacher_server_generation_url is not None:
            Address.of(self.teacher_server_generation_url, "teacher_server_generation_url")
            if not self.seq_kd:
                raise UsageError(
                    "`teacher_server_generation_url` is "
                    f"{shown(self.teacher_server_generation_url)}, and `seq_kd` False: the teacher "
                    "generates nothing. Set `seq_kd`, or leave it unset."
                )
        if self.teacher_cache is not None:
            raise UsageError(
                f"`teacher_server_url` is {url} and `teacher_cache` {self.teacher_cache}: the "
                "target comes from one of them. Leave the other unset."
            )
        if self.teacher_server_logprobs is not None and self.teacher_server_logprobs < 2:
            raise UsageError(
                f"`teacher_server_logprobs` must be at least 2, got {self.teacher_server_logprobs}. Leave it unset "
                "for all."
            )
        if self.teacher_server_requests < 1:
            raise UsageError(f"`teacher_server_requests` must be at least 1, got {self.teacher_server_requests}.")
        for name in ("teacher_server_timeout", "teacher_server_patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"`{name}` must be positive and finite, in seconds, got {getattr(self, name)}.")
