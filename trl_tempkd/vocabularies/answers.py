# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Where an answer begins and ends for a tokenizer: what its chat template writes around it, and its end tokens."""

from collections.abc import Iterable

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


_ASKED, _ANSWER = "Question", "Xanswer"  # what to look for in what a template has written


class AnswerFrame:
    """
    What a tokenizer puts around an answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        stops (`Iterable[int]`):
            Tokens that stop the model's completions.

    Attributes:
        glue (`str`):
            What the chat template writes between its prompt and an answer, such as a space; empty without one.
        ends (`set[int]`):
            Tokens that end an answer: EOS, `stops`, and the special token that the chat template writes behind it.
        end (`int`, *optional*):
            The one that an answer in the data has: the template's, or EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Iterable[int] = ()):
        self.glue, self.end = "", tokenizer.eos_token_id
        self.ends = {*stops, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
        if not tokenizer.chat_template:
            return
        asked = [{"role": "user", "content": _ASKED}]
        answered = [*asked, {"role": "assistant", "content": _ANSWER}]
        try:
            prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(answered, tokenize=False)
        except (TemplateError, TypeError, KeyError):  # it wants more than turns
            return
        assert isinstance(prompt, str) and isinstance(whole, str)
        before, _, behind = whole.rpartition(_ANSWER)
        if before.startswith(prompt):
            self.glue = before.removeprefix(prompt)
        special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
        after = tokenizer(behind, add_special_tokens=False)["input_ids"]
        self.end = next((i for i in after if i in special), self.end)
        self.ends |= {self.end} - {None}
