# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Whether a model keeps the sequences of a padding-free batch apart, where they lie end to end in one row.

A recurrence runs on from one into the next unless the architecture stops it, an attention looks back unless its mask
is made of `position_ids`, and positions that are counted in another way go on too. Nothing else would show it: the
loss is finite and plausible.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from .compat import DataCollatorForLanguageModeling
from .errors import UsageError
from .heads import as_trained, is_here, last_hidden_state, unwrap_adapter


HiddenStates = Callable[[dict[str, Any]], torch.Tensor]

LENGTHS = (5, 8)  # of the two sequences that a model is tried on


class PackingOptions(Protocol):
    """What is read of a configuration."""

    packing: bool
    packing_strategy: str
    padding_free: bool


def end_to_end_option(options: PackingOptions) -> str | None:
    """The option that lays the sequences of a batch end to end, as TRL decides it; `None` if they are padded."""
    if options.packing and options.packing_strategy in ("bfd", "bfd_split"):
        return "packing"
    return "padding_free" if options.padding_free else None


class PackingCheck:
    """
    Refuses a model that lets the sequences of a padding-free batch see each other, before it is trained on one.

    Two short sequences are run alone and end to end, once, with what TRL's collator gives: what the kernels that are
    installed make of them decides, not the name of the architecture.

    Args:
        side (`str`):
            `"student"` or `"teacher"`.
        options ([`PackingOptions`]):
            Configuration of the trainer.
    """

    def __init__(self, side: str, options: PackingOptions):
        self.option = end_to_end_option(options)
        self._side = side
        self._passed = False

    def begin(self, model: Any, hidden_states: HiddenStates | None = None) -> None:
        """
        Check before the first batch, if the configuration lays sequences end to end. Arguments and errors as in `see`.

        A model in shards that has no wrapper yet, and so no `hidden_states`, waits for its first batch.
        """
        if self.option is not None and (hidden_states is not None or is_here(model)):
            batch = _end_to_end(_sequences(unwrap_adapter(model)))
            self.see(batch, model, hidden_states or partial(last_hidden_state, model))

    def see(self, batch: dict[str, Any], model: Any, hidden_states: HiddenStates) -> None:
        """
        Check the model if this is the first padding-free batch that it gets.

        Args:
            batch (`dict`):
                Batch as the data collator makes it.
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Causal language model, not wrapped for distributed training.
            hidden_states (`Callable`):
                Gives its last hidden state for a batch, through its wrapper if it has one. Every rank calls it.

        Raises:
            [`UsageError`]: If a sequence's hidden states depend on what lies in the row beside it.
        """
        if self._passed or not _is_end_to_end(batch):
            return
        model = unwrap_adapter(model)
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), as_trained(model):
                self._compare(model, hidden_states, set(batch))
        finally:
            model.train(training)
        self._passed = True

    def _compare(self, model: PreTrainedModel, hidden_states: HiddenStates, names: set[str]) -> None:
        sequences = _sequences(model)
        alone = [hidden_states({"input_ids": x[None], "attention_mask": torch.ones_like(x)[None]}) for x in sequences]
        everything = _end_to_end(sequences)
        everything["attention_mask"] = torch.ones_like(everything["input_ids"])
        batch = {name: value for name, value in everything.items() if name in names}
        try:
            together = hidden_states(batch).split(LENGTHS, dim=1)
        except (TypeError, ValueError, RuntimeError) as error:  # the model has just run on each alone
            raise self._refusal(model, f"{type(error).__name__}: {error}".rstrip(".")) from error
        errors = [(a - b).norm() / b.norm() for a, b in zip(together, alone, strict=True)]
        difference = torch.stack(errors).max().item()  # not a number if one of them isn't
        if not difference <= _rounding(alone[0], model) ** 0.5:
            problem = f"their hidden states differ from those of each alone by {difference:.2g} of their size"
            attention = getattr(model.config.get_text_config(), "_attn_implementation", None) or ""
            hint = ""
            if getattr(model, "_supports_flash_attn", False) and "flash" not in attention:
                hint = f", or try a flash attention (`attn_implementation` is {attention!r})"
            raise self._refusal(model, problem, hint)

    def _refusal(self, model: PreTrainedModel, problem: str, hint: str = "") -> UsageError:
        where, way_out = "the data collator", "Let it pad the rows instead, each with one sequence"
        if self.option is not None:
            where, way_out = f"`{self.option}` (True)", f"Leave `{self.option}` out"
        return UsageError(
            f"The {self._side}, {type(model).__name__} (model type {model.config.model_type!r}), doesn't keep apart "
            f"the sequences that {where} lays end to end: {problem}. {way_out}{hint}."
        )


def _sequences(model: PreTrainedModel) -> list[torch.Tensor]:
    """Two sequences of ids from the whole vocabulary but its ends, where control and image tokens are."""
    length, vocabulary = sum(LENGTHS), model.config.get_text_config().vocab_size
    return list((torch.arange(1, length + 1, device=model.device) * vocabulary // (length + 1)).split(LENGTHS))


def _is_end_to_end(batch: dict[str, Any]) -> bool:
    """Whether a row has several sequences: positions without a mask, or such as start anew within it."""
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if positions is None or mask is None:
        return positions is not None
    if positions.shape != mask.shape:
        return False
    return bool(((positions.diff(dim=1) != 1) & mask[:, 1:].bool() & mask[:, :-1].bool()).any())


def _end_to_end(sequences: list[torch.Tensor]) -> dict[str, Any]:
    """The two as TRL's collator lays them into a row."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collator([{"input_ids": sequence.tolist()} for sequence in sequences])
    device = sequences[0].device
    return {name: x.to(device) if torch.is_tensor(x) else x for name, x in batch.items() if name != "labels"}


def _rounding(hidden: torch.Tensor, model: PreTrainedModel) -> float:
    """
    The relative error of the coarsest arithmetic in the model. Its square root is far above what sums in another order
    make of it, and far below what a token's hidden state owes to its context.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if getattr(model, "is_quantized", False):
        dtype = torch.bfloat16
    # Rotations and norms are in float32 in every model, and its products on a GPU may be in TF32
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if device == "cpu" else 2**-10)
