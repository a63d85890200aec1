# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A teacher that runs beside the student."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..compat import (
    ForwardRedirection,
    create_model_from_path,
    fsdp2_prepare_model,
    get_config_model_id,
    prepare_deepspeed,
)
from ..errors import UsageError
from ..heads import Head, check_head, gathered_head, is_here, last_hidden_state, read_head
from ..losses import Pooled
from ..models import damaged
from ..packing import PackingCheck
from ..parameters import parameter_hash
from ..paths import check_model_name
from ..sharding import layers_of
from ..tiny import resolve
from ..vision import Processing
from .base import Batch, Teacher
from .offload import Offloaded
from .own_pixels import own_processing


logger = get_logger(__name__)

# Heads are padded to a multiple of 64 to 512 rows: Qwen2.5 has 151936 and 152064 for the same 151665 tokens
_MAX_PADDING = 512


class LiveTeacher(Teacher):
    """
    A model beside the student: in evaluation mode, without gradients, never saved.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`]):
            Name or path of a causal language model, or the model itself, which `bind` prepares in place.
        options (`KDConfig`):
            Configuration of the run: how to load it.

    Raises:
        `ValueError`: If there is no model of that name, or an option says how to load what is loaded already; by
            `bind`, if it shares parameters with the student or has another tokenizer, or if its logits or its
            padding-free batches can't be trusted.
    """

    can_generate = True
    _offloaded: Offloaded | None = None

    def __init__(self, teacher: str | PreTrainedModel, options: Any):
        teacher = resolve(teacher) if isinstance(teacher, str) else teacher
        self._teacher, self._options = teacher, options
        kwargs, revision = options.teacher_model_init_kwargs, options.teacher_model_revision
        if isinstance(teacher, str):
            check_model_name(teacher, revision or (kwargs or {}).get("revision"), "`teacher_model`")
        else:
            refuse_options("a model already", kwargs, revision)

    def bind(
        self, student: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        options = self._options
        origin = {"revision": options.teacher_model_revision, "trust_remote_code": options.trust_remote_code}
        model = load_teacher(self._teacher, options.teacher_model_init_kwargs, **origin)
        unwrapped = accelerator.unwrap_model(student())
        check_separate(unwrapped, model)
        self.check_tokenizer(tokenizer, unwrapped, model)
        self._accelerator = accelerator
        self._forward_redirection = ForwardRedirection()
        self._packing = PackingCheck("teacher", options)
        self._prepare(model)

    def check_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel, teacher: PreTrainedModel
    ) -> None:
        """Arguments and errors as of [`check_vocabulary`]."""
        options = self._options
        origin = {"revision": options.teacher_model_revision, "trust_remote_code": options.trust_remote_code}
        check_vocabulary(tokenizer, student, teacher, **origin)

    def _prepare(self, model: PreTrainedModel) -> None:
        model.requires_grad_(False)
        model.eval()
        check_head(model)
        accelerator = self._accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.model = prepare_deepspeed(model, accelerator)
        elif accelerator.is_fsdp2:
            self.model = _shard(model, accelerator)
        else:
            self.model = accelerator.prepare_model(model, evaluation_mode=True)
        self._packing.begin(model, self._run)

    def processing(self, student: Processing) -> Processing:
        options = self._options
        origin = {"revision": options.teacher_model_revision, "trust_remote_code": options.trust_remote_code}
        return own_processing(self._teacher, student, **origin)

    def wrapped(self) -> nn.Module:
        return self.model

    def active(self) -> AbstractContextManager[None]:
        return nullcontext() if self._offloaded is None else self._offloaded.here()

    def offload(self, where: str, folder: str) -> None:
        model = self.reader()
        refused = None
        if not is_here(model) or getattr(model, "hf_device_map", None):
            refused = "is in parts, by ZeRO-3, FSDP2 or its `device_map`, which have their own offload"
        elif getattr(model, "is_quantized", False):
            refused = "is quantized, and its weights can't be moved by themselves"
        elif where == "cpu" and next(model.parameters()).device.type == "cpu":
            refused = "runs in the CPU's memory: 'disk' takes it out of there"
        if refused is not None:
            raise UsageError(f"`teachers_offload` is {where!r}, and the model {refused}. Leave it unset.")
        head = read_head(model)
        self._offloaded = Offloaded(model, where, folder, {id(head.weight), id(head.bias)})

    def reader(self) -> nn.Module:
        return self._accelerator.unwrap_model(self.model)

    def rows(self, inputs: Batch) -> torch.Tensor | Pooled:
        with self.active():
            self._packing.see(inputs, self._accelerator.unwrap_model(self.model), self._run)
            return self._run(inputs).flatten(0, 1)

    @torch.no_grad()
    def _run(self, inputs: Batch) -> torch.Tensor:
        model = self._accelerator.unwrap_model(self.model)
        # Through the wrapper, which gathers the shards of the parameters
        return self._forward_redirection(self.model, model, partial(last_hidden_state, model, inputs))

    @contextmanager
    def head(self) -> Iterator[Head]:
        with gathered_head(self._accelerator.unwrap_model(self.model)) as head:
            yield head
        # FSDP2 keeps the head whole after a forward, for a backward that never comes here
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @property
    def name(self) -> str | None:
        model = self._accelerator.unwrap_model(self.model)
        return self._options.teacher_model_name_or_path or model.config._name_or_path

    def identity(self) -> dict[str, Any]:
        model = self._accelerator.unwrap_model(self.model)
        with self.active():
            return {"kind": "model", "name": self.name, "identity": parameter_hash(model.parameters())}


def _shard(model: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    # Layer by layer, as Accelerate shards the student: TRL's `prepare_fsdp` would make one piece of the whole model,
    # which each forward gathers. The plugin keeps the layers of the first model it sees, so it gets to see a copy.
    plugin = accelerator.state.fsdp_plugin
    accelerator.state.fsdp_plugin = copy.copy(plugin)
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers_of(model)
    try:
        return fsdp2_prepare_model(accelerator, model).eval()
    finally:
        accelerator.state.fsdp_plugin = plugin


def load_teacher(
    teacher: str | PreTrainedModel,
    init_kwargs: Any = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """
    Load a teacher as TRL does, but in the dtype of its checkpoint.

    Args:
        teacher (`str` or [`~transformers.PreTrainedModel`]):
            Name or path, or the model itself, which is returned as it is.
        init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments of `from_pretrained`.
        revision (`str`, *optional*):
            Revision to load.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the model.

    Returns:
        [`~transformers.PreTrainedModel`]: The teacher.

    Raises:
        `ValueError`: If it is said how to load a teacher that is loaded already.
    """
    if not isinstance(teacher, str):
        refuse_options("a model already", init_kwargs, revision)
        return teacher
    kwargs = {"dtype": "auto", "trust_remote_code": trust_remote_code, **(init_kwargs or {})}
    if revision is not None:
        kwargs["revision"] = revision
    # Distributed training requires device_map=None ("auto" fails)
    if PartialState().distributed_type in [DistributedType.MULTI_GPU, DistributedType.DEEPSPEED]:
        kwargs["device_map"] = None
    try:
        return create_model_from_path(teacher, **kwargs)
    # A folder without weights, a revision that there isn't, an option that its class or its configuration doesn't take
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, TypeError) and "unexpected keyword" not in str(error):
            raise
        how = f" with `teacher_model_init_kwargs` {init_kwargs!r}" if init_kwargs else ""
        raise UsageError(f"cannot load the teacher {teacher!r}{how}: {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise UsageError(f"cannot load the teacher {teacher!r}: {damaged(error)}.") from error


def refuse_options(what: str, init_kwargs: Any, revision: str | None) -> None:
    """Refuse what says how to load a teacher that isn't loaded, since it would have no effect."""
    for name, value in {"teacher_model_init_kwargs": init_kwargs, "teacher_model_revision": revision}.items():
        if value:
            raise UsageError(
                f"`{name}` is {value!r}, but the teacher is {what}. Pass the teacher's name or path instead, or leave "
                f"`{name}` unset."
            )


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """
    Refuse a teacher that is the student, or part of it.

    Raises:
        `ValueError`: If the two share a parameter.
    """
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    if shared:
        raise UsageError(
            f"The teacher shares {len(shared)} parameters with the student, so training would change the target. Load "
            "the teacher separately, or pass `copy.deepcopy(model)`. For the student without its PEFT adapter, pass "
            "`teacher_model='student_base'`."
        )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    way_out: str = "A training compares two vocabularies by `vocabulary_alignment`, e.g. 'bytes'.",
) -> None:
    """
    Refuse a teacher whose token ids mean something else than the student's.

    The divergence compares the two distributions id by id. The teacher's tokenizer decides, if its name or folder has
    one; otherwise only the sizes of the heads can be compared, where padding is allowed for.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student and of the data.
        student ([`~transformers.PreTrainedModel`]):
            Student.
        teacher ([`~transformers.PreTrainedModel`]):
            Teacher.
        revision (`str`, *optional*):
            Revision of the teacher's tokenizer.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the tokenizer.
        way_out (`str`, *optional*):
            What to do if there is no such teacher, for the message.

    Raises:
        `ValueError`: If the vocabularies differ by more than padding and special tokens.
    """
    ids = tokenizer.get_vocab()
    student_size = student.config.get_text_config().vocab_size
    teacher_size = teacher.config.get_text_config().vocab_size
    name = get_config_model_id(teacher.config)
    problem = None
    if max(ids.values()) >= teacher_size:
        problem = f"the tokenizer has {len(ids)} tokens, the teacher's vocabulary {teacher_size}"
    elif (teacher_tokenizer := _load_tokenizer(name, revision, trust_remote_code)) is not None:
        # Added tokens may differ: families rename their reserved ones, and later versions add some
        added = {*tokenizer.added_tokens_decoder, *teacher_tokenizer.added_tokens_decoder}
        teacher_tokens = {i: token for token, i in teacher_tokenizer.get_vocab().items() if i not in added}
        tokens = {i: token for token, i in ids.items() if i not in added}
        differing = [i for i in sorted({*tokens, *teacher_tokens}) if tokens.get(i) != teacher_tokens.get(i)]
        if differing:
            i = differing[0]
            problem = (
                f"{len(differing)} ids mean different tokens, the first being {i}: {tokens.get(i)!r} to the student, "
                f"{teacher_tokens.get(i)!r} to the teacher"
            )
    elif abs(student_size - teacher_size) > _MAX_PADDING:
        problem = f"the student's vocabulary has size {student_size}, the teacher's {teacher_size}"
    elif student_size != teacher_size:
        logger.warning(
            f"The vocabularies of student ({student_size}) and teacher ({teacher_size}) differ in size and the "
            "teacher's tokenizer can't be loaded, so the difference is taken for padding."
        )
    if problem is not None:
        raise UsageError(
            f"Student and teacher ({name or type(teacher).__name__}) need the same tokenizer, but {problem}. The "
            "divergence compares the two distributions token by token: use a teacher of the student's family. "
            f"{way_out}"
        )


def _load_tokenizer(name: str | None, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    if not name:
        return None
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        logger.warning(
            f"The tokenizer of the teacher {name} can't be loaded to compare it with the student's: {error}"
        )
        return None
