# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Tiny random vision-language models of several families, their processors, and rows of coloured shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from made_models import build_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast


# What each family calls the places of its images. Every tokenizer has all of them, so that the families share one
NAMES = {
    "image_token": "<image>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
MORE = (
    "<|image_pad|> <|video_pad|> <|vision_start|> <|vision_end|> <fake_token_around_image> <end_of_utterance> "
    "<global-img> <row_1_col_1> <row_1_col_2> <row_2_col_1> <row_2_col_2> <|image_start|> <|image_end|> "
    "<|img_thumbnail|> <|img_row_1_col_1|> <|img_row_1_col_2|> <|img_row_2_col_1|> <|img_row_2_col_2|>"
).split()

# As in made_models.py, with parts, and the words of a family for an image
TEMPLATE = (
    "{%% for message in messages %%}<|{{ message['role'] }}|>"
    "{%% if message['role'] == 'assistant' %%}{%% generation %%}"
    "{%% for part in message['content'] %%} {{ part['text'] }}{%% endfor %%}<eos>{%% endgeneration %%}{%% else %%}"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s{%% else %%} {{ part['text'] }}"
    "{%% endif %%}{%% endfor %%}<eos>{%% endif %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|assistant|>{%% endif %%}"
)
PLACES = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "idefics3": "<image>",
    "llava_next": "<image>",
    "internvl": "<IMG_CONTEXT>\n",
    "lfm2_vl": "<image>",
}

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.3,
}


def vision_tokenizer(family: str = "") -> PreTrainedTokenizerFast:
    """The tests' tokenizer, with the image tokens of every family, and the name that one has for its own."""
    plain = build_tokenizer()
    names = {**NAMES, **({"image_token": "<|image_pad|>"} if family.startswith("qwen") else {})}
    plain.add_tokens([*NAMES.values(), *MORE], special_tokens=True)  # the same ids in every family
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=names,
    )
    return tokenizer


def processor_of(family: str, patch: int = 4, size: int = 16, **settings: Any) -> Any:
    """The processor of a family, for images of up to `size` pixels or so."""
    tokenizer = vision_tokenizer(family)
    kwargs = {"tokenizer": tokenizer, "chat_template": TEMPLATE % PLACES[family]}
    side = {"height": size, "width": size}
    if family in ("qwen2_5_vl", "qwen3_vl"):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        least = (2 * patch) ** 2
        tiny = {"patch_size": patch, "merge_size": 2, "min_pixels": least, "max_pixels": 4 * least, **settings}
        image_processor = Qwen2VLImageProcessorPil(**tiny)
        name = "Qwen2_5_VLProcessor" if family == "qwen2_5_vl" else "Qwen3VLProcessor"
        # Videos need torchvision, images don't
        return without_videos(getattr(transformers, name))(image_processor, tokenizer, None, kwargs["chat_template"])
    if family == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        image_processor = Gemma3ImageProcessorPil(size=side, **settings)
        return transformers.Gemma3Processor(image_processor, image_seq_length=4, **kwargs)
    if family == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        large, small = {"longest_edge": 2 * size}, {"longest_edge": size}
        image_processor = Idefics3ImageProcessorPil(**{"size": large, "max_image_size": small, **settings})
        return transformers.Idefics3Processor(image_processor, image_seq_len=4, **kwargs)
    if family == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        image_processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_size=side,
            image_grid_pinpoints=[[size, 2 * size], [2 * size, size], [2 * size, 2 * size]],
            **settings,
        )
        more = {"patch_size": patch, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return transformers.LlavaNextProcessor(image_processor, **more, **kwargs)
    if family == "internvl":
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        image_processor = GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, max_patches=2, **settings)
        cls = without_videos(transformers.InternVLProcessor)
        return cls(image_processor, tokenizer, None, image_seq_length=4, chat_template=kwargs["chat_template"])
    raise ValueError(family)


def without_videos(cls: type) -> type:
    """A processor without a processor of videos, which is there with torchvision alone."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else cls.check_argument_for_proper_class(self, name, argument)

    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})


def config_of(family: str, patch: int = 4, **text: Any) -> Any:
    """The configuration of a tiny model of a family."""
    tokenizer = vision_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"vocab_size": len(tokenizer), **special, "bos_token_id": tokenizer.eos_token_id, **_TEXT, **text}
    if family in ("qwen2_5_vl", "qwen3_vl"):
        cls = transformers.Qwen2_5_VLConfig if family == "qwen2_5_vl" else transformers.Qwen3VLConfig
        vision = {
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "out_hidden_size": text["hidden_size"],
            "patch_size": patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        }
        if family == "qwen2_5_vl":
            vision |= {"fullatt_block_indexes": [1], "window_size": 4 * patch}
        else:
            vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
        rope |= {"mrope_interleaved": True} if family == "qwen3_vl" else {}
        return cls(
            text_config={**text, "rope_parameters": rope},
            vision_config=vision,
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=False,
        )
    if family == "gemma3":
        return transformers.Gemma3Config(
            text_config={**text, "sliding_window": 16, "tie_word_embeddings": False},
            vision_config=_TOWER,
            mm_tokens_per_image=4,
            boi_token_index=ids("<start_of_image>"),
            eoi_token_index=ids("<end_of_image>"),
            image_token_index=ids("<image>"),
            tie_word_embeddings=False,
        )
    if family == "idefics3":
        return transformers.Idefics3Config(
            text_config={"model_type": "llama", **text},
            vision_config=_TOWER,
            image_token_id=ids("<image>"),
            scale_factor=2,
            pad_token_id=special["pad_token_id"],
            tie_word_embeddings=False,
        )
    if family == "llava_next":
        return transformers.LlavaNextConfig(
            text_config={"model_type": "llama", **text},
            vision_config={"model_type": "clip_vision_model", **_TOWER, "num_hidden_layers": 2},
            image_token_index=ids("<image>"),
            image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
            tie_word_embeddings=False,
        )
    if family == "internvl":
        tower = {**_TOWER, "image_size": [16, 16], "patch_size": [4, 4]}
        return transformers.InternVLConfig(
            text_config={"model_type": "qwen3", **text},
            vision_config=tower,
            image_token_id=ids("<IMG_CONTEXT>"),
            image_seq_length=4,
            downsample_ratio=0.5,
            tie_word_embeddings=False,
        )
    if family == "lfm2_vl":
        tower = {name: value for name, value in _TOWER.items() if name != "image_size"}
        return transformers.Lfm2VlConfig(
            text_config={
                "model_type": "lfm2", **text, "layer_types": ["conv", "full_attention"], "conv_dim": 32,
                "block_multiple_of": 8,
            },
            vision_config={"model_type": "siglip2_vision_model", **tower, "num_patches": 16},
            image_token_id=ids("<image>"),
            downsample_factor=2,
            projector_hidden_size=16,
        )  # fmt: skip
    raise ValueError(family)


def vision_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> PreTrainedModel:
    """A random model of a family, for its processor."""
    config = config_of(family, **text)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        if not parameter.any():  # biases, and Gemma's projector, which would let no pixel through
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = vision_tokenizer().eos_token_id
    model.generation_config.pad_token_id = vision_tokenizer().pad_token_id
    return model.eval()


def save_pair_that_sees(folder: Path, family: str = "gemma3") -> tuple[str, str]:
    """Write a student and a teacher of other weights, with their processors. Returns their folders."""
    for seed, name in enumerate(("student", "teacher")):
        vision_model(family, seed).save_pretrained(folder / name)
        processor_of(family).save_pretrained(folder / name)
    return str(folder / "student"), str(folder / "teacher")


def noise(seed: int, width: int = 16, height: int = 16) -> PIL.Image.Image:
    """An image that no other one is like."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """Rows with one image, two of them, and none, in the format of `prompt` and `completion`."""

    def asked(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": text}]

    def said(text: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": text}]

    return [
        {"images": [noise(seed)], "prompt": asked("what is the moon"), "completion": said("the cat sat on the mat")},
        {
            "images": [noise(seed + 1, 24, 16), noise(seed + 2)],
            "prompt": asked("a dog ran"),
            "completion": said("after the cat"),
        },
        {"images": [], "prompt": asked("the student learns"), "completion": said("what the teacher knows")},
        {"images": [noise(seed + 3, 16, 32)], "prompt": asked("look at it"), "completion": said("cheese")},
    ]


def chat_rows() -> list[dict[str, Any]]:
    """The same as conversations, whose messages have parts."""
    found = []
    for row in rows():
        (asked,), (said,) = row["prompt"], row["completion"]
        places = [{"type": "image"} for _ in row["images"]]
        turns = [
            {"role": "user", "content": [*places, {"type": "text", "text": asked["content"]}]},
            {"role": "assistant", "content": [{"type": "text", "text": said["content"]}]},
        ]
        found.append({"images": row["images"], "messages": turns})
    return found
