# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The student as its own teacher: with the weights of this step, or with an exponential average of those it had."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from ..compat import ForwardRedirection
from ..errors import UsageError
from ..files import whole_file
from ..heads import Head, gathered_head, read_head
from ..row_formats import CONTEXTS
from .base import Batch
from .student_base import StudentBaseTeacher


logger = get_logger(__name__)


class StudentTeacher(StudentBaseTeacher):
    """
    The student itself: in evaluation mode, without gradients, through its own wrapper, with the weights of this step.
    There is something to learn from it where it reads another prompt, or at another temperature.

    Source: SDFT (arXiv 2601.19897); OPSD (Zhao et al., Self-Distilled Reasoner, 2026).

    Args:
        teacher (`str`):
            `"student"`.
        options (`KDConfig`):
            Configuration of the run.

    Raises:
        `ValueError`: If an option says how to load it; by `prepare`, if there is nothing to learn.
    """

    def __init__(self, teacher: str, options: Any):
        super().__init__(teacher, options)
        self._name, self._options = teacher, options

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        self._wrapped, self._accelerator = student, accelerator
        self._forward_redirection = ForwardRedirection()

    def check_rows(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        # Among several, others say something else
        if self.alone and name == "train" and CONTEXTS not in (dataset.column_names or next(iter(dataset), {})):
            self._check_difference()

    def _check_difference(self) -> None:
        """Stop where student and teacher are the same distribution at every token."""
        options = self._options
        student, teacher = options.student_kd_temperature, options.teacher_kd_temperature
        both = student is None and teacher is None
        if not both and (student or options.kd_temperature) != (teacher or options.kd_temperature):
            return
        said = (
            f"The teacher is {self._name!r}, and the rows have no `teacher_prompt` and both sides the same "
            "temperature, so that it says what the student does: there is nothing to learn"
        )
        if options.kd_ratio == 1 and not options.router_aux_loss_coef:
            raise UsageError(
                f"{said}. Give rows a `teacher_prompt`, set `teacher_kd_temperature` or `student_kd_temperature`, or "
                "name another teacher."
            )
        logger.warning(f"{said} but from the labels (`kd_ratio` is {options.kd_ratio}).")

    def active(self) -> AbstractContextManager[None]:
        return _evaluating(self._student())

    def head(self) -> AbstractContextManager[Head]:
        return gathered_head(self._student())

    def identity(self) -> dict[str, Any]:
        return {"kind": self._name, "name": None, "identity": None}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class StudentEMATeacher(StudentTeacher):
    """
    The student with an exponential moving average of what is trained of it, with the share `1 - teacher_ema_decay` of
    the new weights after each optimizer step. Before the first one it is the student.

    Each process keeps the average of its own shards, in fp32 at least; while the teacher runs, it stands in the place
    of the weights. So a LoRA student costs another adapter.

    Args:
        teacher (`str`):
            `"student_ema"`.
        options (`KDConfig`):
            Configuration of the run.
    """

    def __init__(self, teacher: str, options: Any):
        super().__init__(teacher, options)
        self._average: dict[str, Tensor] | None = None
        self._head: Head | None = None  # of the average, whole, until the next step

    def ask(self, batches: list[Batch]) -> None:
        if self._average is None:  # what it starts from, before the first step changes it
            self._average = {name: _widened(shard) for name, shard in self._shards().items()}

    @torch.no_grad()
    def step(self) -> None:
        self._head = None
        if self._average is None:
            return
        decay = self._options.teacher_ema_decay
        for name, shard in self._shards().items():
            self._average[name].lerp_(shard.to(self._average[name].dtype), 1 - decay)

    def _shards(self) -> dict[str, Tensor]:
        """What this process has of the parameters that are trained."""
        self._release()
        named = self._student().named_parameters()
        return {name: _shard(parameter) for name, parameter in named if parameter.requires_grad}

    def _release(self) -> None:
        """Have nothing gathered that would go on being used after the shards have changed."""
        wrapped = self._wrapped()
        for module in wrapped.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        optimizer = getattr(wrapped, "optimizer", None)
        offload = getattr(optimizer, "parameter_offload", None)
        if offload is not None:  # of ZeRO-3
            offload.partition_all_parameters()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self._average is None:
            yield
            return
        shards = self._shards()
        own = {name: shard.clone() for name, shard in shards.items()}
        _write(shards, self._average)
        try:
            yield
        finally:
            self._release()
            _write(shards, own)

    @contextmanager
    def active(self) -> Iterator[None]:
        with super().active(), self._averaged():
            yield

    def rows(self, inputs: Batch) -> Tensor:
        self._keep_head()
        return super().rows(inputs)

    @torch.no_grad()
    def _keep_head(self) -> None:
        """Take the average's own head, which the loss needs beside the student's."""
        head = read_head(self._student())
        if self._head is not None or self._average is None or not _is_trained(head):
            return
        with self.active(), gathered_head(self._student()) as head:
            bias = None if head.bias is None else head.bias.detach().clone()
            self._head = replace(head, weight=head.weight.detach().clone(), bias=bias)

    def head(self) -> AbstractContextManager[Head]:
        return super().head() if self._head is None else nullcontext(self._head)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "name": f"decay {self._options.teacher_ema_decay}"}

    # Checkpoints

    def _file(self, folder: str) -> tuple[Path, bool]:
        """Where this process finds its average, and whether it is the one that writes it."""
        sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in self._student().parameters())
        rank = self._accelerator.process_index if sharded else 0
        return Path(folder) / f"student_ema_{rank}.safetensors", sharded or self._accelerator.is_main_process

    def save(self, folder: str) -> None:
        path, writes = self._file(folder)
        if self._average is None or not writes:
            return
        with whole_file(path) as name:
            save_file({key: shard.contiguous() for key, shard in self._average.items()}, name)

    def load(self, folder: str | None) -> None:
        """
        Raises:
            `ValueError`: If the checkpoint's average has other shards than this run.
        """
        self._average = self._head = None
        if folder is None:
            return
        path, _ = self._file(folder)
        if not path.is_file():
            logger.warning(f"{path} doesn't exist: the average of the student starts anew from its weights.")
            return
        found, shards = load_file(path), self._shards()
        shapes, expected = ({name: t.shape for name, t in part.items()} for part in (found, shards))
        if shapes != expected:
            raise UsageError(
                f"{path} is of a student that is sharded, or trained, in another way. Resume with as many processes "
                "as it was written with, or start anew."
            )
        self._average = {name: tensor.to(shards[name].device) for name, tensor in found.items()}


def _shard(parameter: nn.Parameter) -> Tensor:
    """What this process has of a parameter, in its own memory."""
    if isinstance(parameter, DTensor):
        return parameter.detach().to_local()
    return getattr(parameter, "ds_tensor", parameter).detach()


def _widened(shard: Tensor) -> Tensor:
    return shard.clone().to(torch.promote_types(shard.dtype, torch.float32))


@torch.no_grad()
def _write(shards: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, shard in shards.items():
        shard.data.copy_(values[name])


def _is_trained(head: Head) -> bool:
    return any(part is not None and part.requires_grad for part in (head.weight, head.bias))
