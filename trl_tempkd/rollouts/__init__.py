# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where a batch's completions come from: data set, student, teacher, or what the student has said before."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UsageError
from ..row_formats import PROMPTS
from ..teachers import Teacher
from ..vision import Processing
from ..vocabularies.translation import Translation
from .options import RolloutOptions
from .preparation import CARRIED, TRAIN, check_answers, prepared
from .rollouts import Collator, Rollouts
from .rows import CarryingCollator, rows_of
from .sampling import ModelSampler, Sampler, longest_prompt, room_for_prompts, stop_tokens
from .vllm import VLLMSampler


__all__ = [
    "CARRIED",
    "PROMPTS",
    "TRAIN",
    "CarryingCollator",
    "RolloutOptions",
    "Rollouts",
    "check_answers",
    "make_rollouts",
    "prepared",
]


def make_rollouts(
    student: Callable[[], nn.Module],
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    collator: Collator,
    args: RolloutOptions,
    dataset: Iterable[dict[str, Any]] | None = None,
    processing: Processing | None = None,
) -> Rollouts:
    """
    What completes the batches of a run. Where nothing is to be generated, it leaves them as they are.

    Args:
        student (`Callable[[], torch.nn.Module]`):
            Gives the student as it is wrapped at the time.
        teacher ([`Teacher`]):
            Teacher.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of both.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer.
        collator (`Callable`):
            Data collator of the trainer.
        args ([`RolloutOptions`]):
            Options.
        dataset (`Iterable`, *optional*):
            Training data as the trainer has prepared it, to be checked.
        processing ([`~trl_tempkd.vision.Processing`], *optional*):
            The student's processor, if rows have images.

    Raises:
        `ValueError`: If the models have no room for `max_new_tokens`, the data no prompts, or the parallelism isn't
            supported.
        `ImportError`: If vLLM is asked for and isn't installed.
    """
    if not args.generates:
        return Rollouts(args, accelerator, tokenizer, collator, stops=[])
    alike = teacher.can_generate and teacher.shares_tokenizer
    writers = [student, teacher.wrapped] if alike else [student]
    models = [accelerator.unwrap_model(model()) for model in writers]
    stops = sorted({token for model in models for token in stop_tokens(model, tokenizer)})
    _check_parallelism(accelerator, models[0])
    if dataset is not None:
        _check_prompts(dataset, collator)
    # What one of the models pads its vocabulary with, the other may have no embedding for
    sizes = [model.config.get_text_config().vocab_size for model in models]
    positions: list[int | None] = []
    if teacher.shares_tokenizer:
        sizes += [] if teacher.vocabulary is None else [teacher.vocabulary]
        positions.append(teacher.positions)
    vocabulary = min(sizes)
    of_teacher: Sampler | None = None
    translation = None
    if args.seq_kd and not teacher.shares_tokenizer:
        of_teacher, translation = _of_another_tokenizer(teacher, accelerator, args)
    elif args.seq_kd and teacher.can_generate:
        its_own = None if processing is None else teacher.processing(processing)
        of_teacher = ModelSampler(
            teacher.wrapped, accelerator, tokenizer, args, vocabulary, teacher.active, processing=its_own
        )
    elif args.seq_kd:
        served = of_teacher = teacher.sampler(args, stops, vocabulary)
        positions.append(served.positions)
    limits = [longest_prompt(model, args.max_new_tokens) for model in models]
    limits += [room_for_prompts(each, args.max_new_tokens) for each in positions if each is not None]
    of_student: Sampler | None = None
    if args.lmbda > 0 or args.lmbda_schedule == "adaptive":
        if args.use_vllm:
            of_student = VLLMSampler(models[0], accelerator, tokenizer, args, vocabulary)
            if args.vllm_mode == "colocate" and args.vllm_max_model_length is not None:
                limits.append(room_for_prompts(args.vllm_max_model_length, args.max_new_tokens))
        else:
            of_student = ModelSampler(student, accelerator, tokenizer, args, vocabulary, processing=processing)
    limit = min((limit for limit in limits if limit is not None), default=None)
    rollouts = Rollouts(args, accelerator, tokenizer, collator, stops, of_student, of_teacher, limit, translation)
    if teacher.requests and isinstance(of_student, ModelSampler):
        of_student.written = partial(rollouts.written, teacher.ask_early)
    return rollouts


def _of_another_tokenizer(
    teacher: Teacher, accelerator: Accelerator, args: RolloutOptions
) -> tuple[Sampler, Translation]:
    """What completes in the teacher's own tokens, and what makes the student's of them."""
    known = teacher.translation(None)
    assert known is not None
    tokenizer, ends = known.teacher.spelling.tokenizer, sorted(known.teacher.frame.ends)
    sampler: Sampler
    if teacher.can_generate:
        sampler = ModelSampler(teacher.wrapped, accelerator, tokenizer, args, len(tokenizer), teacher.active)
        longest = longest_prompt(accelerator.unwrap_model(teacher.wrapped()), args.max_new_tokens)
    else:
        sampler = served = teacher.sampler(args, ends, len(tokenizer))
        longest = None if served.positions is None else room_for_prompts(served.positions, args.max_new_tokens)
    translation = teacher.translation(longest)
    assert translation is not None
    return sampler, translation


def _check_parallelism(accelerator: Accelerator, model: nn.Module) -> None:
    parallelism = accelerator.parallelism_config
    if getattr(model, "_tp_size", None) or (parallelism is not None and parallelism.tp_enabled):
        raise UsageError(
            "`lmbda` and `seq_kd` aren't supported with tensor parallelism. Use ZeRO-3 or FSDP2 for memory."
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UsageError("`lmbda` and `seq_kd` aren't supported with FSDP 1. Use `fsdp_version` 2, or ZeRO-3.")


def _check_prompts(dataset: Iterable[dict[str, Any]], collator: Collator) -> None:
    """Refuse data whose first rows have no prompt."""
    rows = list(islice(dataset, 32))
    if rows and not any(row.prompt for row in rows_of(collator(rows))):
        raise UsageError(
            "`lmbda` and `seq_kd` need prompts, but the first rows are plain text, or tokens that are all trained on: "
            "nothing stands before the part to be generated. Use data with `prompt` or `messages`, or with a "
            "`completion_mask` beside `input_ids`."
        )
