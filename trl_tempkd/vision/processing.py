# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What a processor makes of rows: tokens and pixels, of any family of models.

Rows with images go through the processor together, those without through its tokenizer, so that no processor has to
know of batches that mix.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from trl import apply_chat_template

from ..errors import UsageError
from .images import Image
from .rows import Pictured, Turns


Columns = dict[str, list[int]]  # what there is for each token of a row, `input_ids` among them
Pixels = dict[str, torch.Tensor]

_IGNORED = -100
# Tokens around and in an image, in the words of the families: Qwen's <|vision_start|>, Gemma's <start_of_image>,
# Idefics' <row_1_col_1> and <fake_token_around_image>, InternVL's <IMG_CONTEXT>, LFM2's <|img_thumbnail|>
_MARKUP = re.compile(r"image|img|vision|video|row_\d+_col_\d+", re.IGNORECASE)


class Processing:
    """
    A processor, as rows need it.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            Processor of a model.
        template (`str`, *optional*):
            Chat template in place of the processor's own.
    """

    def __init__(self, processor: Any, template: str | None = None):
        self.processor, self.tokenizer, self.template = processor, processor.tokenizer, template

    @cached_property
    def placeholder(self) -> str | None:
        """What stands for an image in a text."""
        return getattr(self.processor, "image_token", None)

    @cached_property
    def markup(self) -> set[int]:
        """Ids of the tokens that images consist of, and that stand around them: none is trained on, or generated."""
        added = self.tokenizer.added_tokens_decoder
        named = {number for number, token in added.items() if _MARKUP.search(str(token))}
        own = [getattr(part, "image_token_id", None) for part in (self.processor, self.tokenizer)]
        return named | {number for number in own if number is not None}

    @cached_property
    def blank(self) -> Pictured:
        """An image with nothing in it."""
        import PIL.Image

        images = (PIL.Image.new("RGB", (32, 32)),)
        asked = self.placeholder or [{"role": "user", "content": [{"type": "image"}]}]
        return Pictured(asked, images)

    @cached_property
    def empty(self) -> tuple[Columns, Pixels]:
        """What the processor makes of an image with nothing in it."""
        (own,), pixels = self._call([self.text(self.blank)], [self.blank.images])
        return own, pixels

    @cached_property
    def per_token(self) -> list[str]:
        """What the model of this processor needs for each token beside its id, such as which ones are an image's."""
        return [name for name in self.empty[0] if name != "input_ids"]

    # Texts

    def text(self, asked: Pictured, answer: Turns | None = None, whole: bool = False) -> str:
        """
        What is asked as the model's chat template writes it, with a placeholder for each image.

        Args:
            asked ([`Pictured`]):
                What is asked.
            answer (`list[dict]`, *optional*):
                What follows it in the data: a template may open an answer that doesn't go on so.
            whole (`bool`, *optional*, defaults to `False`):
                Whether it is a conversation with its answers, in place of one that waits for one.

        Raises:
            [`UsageError`]: If the template can't write it, or has not as many places as there are images.
        """
        return self.texts(asked, answer, whole)[0]

    def texts(self, asked: Pictured, answer: Turns | None = None, whole: bool = False) -> tuple[str, str]:
        """As `text`, and the answer as the template writes it."""
        if isinstance(asked.asked, str):
            text, rest = asked.asked, ""
        else:
            row = {"messages": asked.asked} if whole else {"prompt": asked.asked}
            row |= {} if answer is None else {"completion": answer}
            row |= (
                {}
                if "chat_template_kwargs" not in asked.arguments
                else {"chat_template_kwargs": asked.arguments["chat_template_kwargs"]}
            )
            own = {} if self.template is None else {"chat_template": self.template}
            try:
                found = apply_chat_template(row, self.processor, asked.arguments.get("tools"), **own)
            except Exception as error:  # whatever a template does with what it doesn't expect
                raise UsageError(f"has messages that the chat template can't write: {error}") from error
            text, rest = found["text" if whole else "prompt"], found.get("completion", "")
        self.check_count(text, len(asked.images))
        if self.placeholder is not None and self.placeholder in rest:
            raise UsageError(f"has {self.placeholder!r}, which stands for an image, in its answer.")
        return text, rest

    def check_count(self, text: str, count: int) -> None:
        """Refuse a text that has not as many placeholders as there are images."""
        found = count if self.placeholder is None else text.count(self.placeholder)
        if found != count:
            raise UsageError(
                f"has {count} image{'s' * (count != 1)} and {found} place{'s' * (found != 1)} for them in its text, "
                f"where {self.placeholder!r} stands for one."
            )

    # Tokens and pixels

    def encode(self, texts: Sequence[str], images: Sequence[tuple[Image, ...]]) -> tuple[list[Columns], Pixels]:
        """
        Tokens of texts with their placeholders, and the pixels of their images in the order of the rows.

        Args:
            texts (`Sequence[str]` of length `B`):
                Texts with a placeholder for each image. Special tokens stand in them already.
            images (`Sequence[tuple]` of length `B`):
                Images of each.

        Returns:
            `tuple[list[dict[str, list[int]]], dict[str, torch.Tensor]]`: Columns of each row, and what the model takes
            for the images of all.
        """
        with_images = [i for i, own in enumerate(images) if own]
        columns: list[Columns] = [{} for _ in texts]
        pixels: Pixels = {}
        if with_images:
            found, pixels = self._call([texts[i] for i in with_images], [images[i] for i in with_images])
            for i, own in zip(with_images, found, strict=True):
                columns[i] = own
        names = self.per_token
        for i in range(len(texts)):
            if not images[i]:
                ids = self.tokenizer(texts[i], add_special_tokens=False)["input_ids"]
                columns[i] = {"input_ids": ids, **{name: [0] * len(ids) for name in names}}
        return columns, pixels

    def encode_prompts(self, asked: Sequence[Pictured]) -> tuple[list[Columns], Pixels]:
        """What a model is to go on with."""
        return self.encode([self.text(own) for own in asked], [own.images for own in asked])

    def said(self, row: Pictured) -> list[bool]:
        """Which tokens of a conversation the assistant has said."""
        filled, images = [], iter(row.images)
        for turn in row.asked:
            assert isinstance(turn, dict)
            parts = turn.get("content") or []  # none where there are calls of tools alone
            parts = [{**part, "image": next(images)} if part["type"] == "image" else part for part in parts]
            filled.append({**turn, "content": parts} if parts else turn)
        found = self.processor.apply_chat_template(
            [filled],
            chat_template=self.template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"add_special_tokens": False, "return_tensors": "pt"},
            **{name: value for name, value in row.arguments.items() if name == "tools"},
            **(row.arguments.get("chat_template_kwargs") or {}),
        )
        return [bool(bit) for bit in found["assistant_masks"][0]]

    def labels_of(self, ids: Sequence[int], trained: Sequence[bool]) -> list[int]:
        """The tokens that are trained on, and -100 for the others, those of images among them."""
        markup = self.markup
        return [i if kept and i not in markup else _IGNORED for i, kept in zip(ids, trained, strict=True)]

    def answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer, which has no images."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _call(self, texts: list[str], images: list[tuple[Image, ...]]) -> tuple[list[Columns], Pixels]:
        found = dict(
            self.processor(
                text=list(texts),
                images=[list(own) for own in images],
                padding=True,
                padding_side="right",
                return_tensors="pt",
                add_special_tokens=False,
            )
        )
        mask = found.pop("attention_mask").bool()
        names = [name for name in found if name == "input_ids" or name.endswith("token_type_ids")]
        columns = [{name: found[name][i][mask[i]].tolist() for name in names} for i in range(len(texts))]
        pixels = {name: value for name, value in found.items() if name not in names and torch.is_tensor(value)}
        return columns, pixels

    def settings(self) -> dict[str, Any]:
        """What decides the tokens and pixels of a row: two processors with the same settings make the same."""
        image_processor = self.processor.image_processor.to_dict()
        # The backend makes no difference that is meant to be one
        kind = str(image_processor.pop("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
        own = {"kind": kind, "image_processor": image_processor, "template": self.chat_template}
        own["processor"] = {
            name: value
            for name, value in vars(self.processor).items()
            if isinstance(value, int | float | str | bool) and name != "chat_template"
        }
        return json.loads(json.dumps(own, default=str, sort_keys=True))

    @property
    def pad(self) -> int:
        """What rows are padded with."""
        return self.tokenizer.pad_token_id or 0

    @property
    def chat_template(self) -> str | None:
        return self.template or self.processor.chat_template or self.tokenizer.chat_template
