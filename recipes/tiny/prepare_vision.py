# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Draw pictures of shapes with their descriptions, train a small teacher that describes them, and make a smaller,
untrained student. All of it takes a minute on a CPU, from nothing.

```bash
python recipes/tiny/prepare_vision.py outputs/tiny-vision
```

The folder gets `data` (the splits `train`, `test`, and `blank`, which is `test` with grey pictures), `teacher` and
`student`.
"""

import random
import sys
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Images
from PIL import ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from trl_tempkd.vision import Processing, VisionCollator


SIDE, PATCH = 24, 6
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 70, 220), "yellow": (240, 210, 40)}
SHAPES = ("circle", "square", "cross")
PLACES = {"top left": (0, 0), "top right": (12, 0), "bottom left": (0, 12), "bottom right": (12, 12)}
QUESTIONS = ("what is in the picture ?", "describe the picture .")
SPECIAL = ("<pad>", "</s>", "<unk>", "<image>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endgeneration %}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def drawn(colour: str, shape: str, place: str, rng: random.Random) -> Images.Image:
    """A shape in its corner, of a size and on a ground that differ a little from picture to picture."""
    ground = rng.randrange(150, 256)
    picture = Images.new("RGB", (SIDE, SIDE), (ground, ground, ground))
    draw, size = ImageDraw.Draw(picture), rng.randrange(8, 11)
    left, top = (start + rng.randrange(12 - size + 1) for start in PLACES[place])
    box, fill = (left, top, left + size - 1, top + size - 1), COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.line(box, fill=fill, width=2)
        draw.line((box[0], box[3], box[2], box[1]), fill=fill, width=2)
    return picture


def drawn_rows(count: int, seed: int) -> list[dict]:
    """Pictures of one shape or of two in other corners, and what is in them, in the order of reading."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        places = sorted(rng.sample(sorted(PLACES), rng.randint(1, 2)), key=list(PLACES).index)
        picture, words = Images.new("RGB", (SIDE, SIDE)), []
        for number, place in enumerate(places):
            colour, shape = rng.choice(sorted(COLOURS)), rng.choice(SHAPES)
            one = drawn(colour, shape, place, rng)
            corner = (*PLACES[place], PLACES[place][0] + 12, PLACES[place][1] + 12)
            picture = one if number == 0 else picture
            picture.paste(one.crop(corner), corner[:2])
            words.append(f"a {colour} {shape} at the {place}")
        asked = [{"role": "user", "content": rng.choice(QUESTIONS)}]
        said = [{"role": "assistant", "content": " and ".join(words)}]
        rows.append({"images": [picture], "prompt": asked, "completion": said})
    return rows


def blanked(rows: list[dict]) -> list[dict]:
    """The same rows with nothing to be seen."""
    return [{**row, "images": [Images.new("RGB", (SIDE, SIDE), (200, 200, 200))]} for row in rows]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = {"a", "and", "at", "the", *COLOURS, *SHAPES, *" ".join([*PLACES, *QUESTIONS]).split()}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        extra_special_tokens={"image_token": "<image>"},
    )


def make_processor() -> LlavaProcessor:
    side = {"height": SIDE, "width": SIDE}
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side, do_center_crop=False)
    own = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(pixels, make_tokenizer(), chat_template=TEMPLATE, **own)


def make_model(processor: LlavaProcessor, width: int, layers: int, seed: int) -> LlavaForConditionalGeneration:
    tokenizer = processor.tokenizer
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    config = LlavaConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "num_hidden_layers": layers,
            "max_position_embeddings": 128, **sizes, **special,
        },
        vision_config={
            "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 2,
            **sizes,
        },
        image_token_index=processor.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**{**special, "bos_token_id": None})
    return model


def train(model: LlavaForConditionalGeneration, processor: LlavaProcessor, rows: list[dict], steps: int) -> float:
    """Train on the descriptions, and return the loss of the last steps."""
    collate, size = VisionCollator(Processing(processor)), 32
    batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    losses = []
    for step in range(steps):
        batch = dict(batches[step % len(batches)])
        labels = batch.pop("labels")[:, 1:].flatten()
        loss = cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def main(folder: str, count: int = 2048, steps: int = 500) -> None:
    turns = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"images": List(Image()), "prompt": turns, "completion": turns})
    rows = {"train": drawn_rows(count, 0), "test": drawn_rows(128, 1)}
    rows["blank"] = blanked(rows["test"])
    data = DatasetDict({split: Dataset.from_list(own, features=features) for split, own in rows.items()})
    data.save_to_disk(str(Path(folder) / "data"))
    processor = make_processor()
    for name, width, layers in (("teacher", 64, 3), ("student", 48, 2)):
        model = make_model(processor, width, layers, seed=len(name))
        if name == "teacher":
            loss = train(model, processor, rows["train"], steps)
            print(f"{folder}/teacher: {loss:.3f} nats per token")
        model.save_pretrained(Path(folder) / name)
        processor.save_pretrained(Path(folder) / name)
    print(f"{folder}/student: {sum(p.numel() for p in model.parameters())} parameters, untrained")


if __name__ == "__main__":
    main(sys.argv[1])
