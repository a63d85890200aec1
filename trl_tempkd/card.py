# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The card of a distilled model: what was made of what, how to use it, how close it came, and the recipe."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel

from ._version import __version__
from .citation import bibtex, credits_of
from .compat import get_comet_experiment_url, get_config_model_id, get_trackio_space_url
from .files import write_atomically
from .run_recipe import is_on_the_hub, public_name, recipe_of
from .teachers.several_options import TeacherSpec


_MARK = "## How it was distilled"  # a heading that no other card has
_VERSIONS = ("trl", "transformers", "torch", "datasets")
# Of the entries of the log, what the card tells, and how
_TOLD = {"kl_tau1": "KL at temperature 1, nats a token", "token_agreement": "agreement"}
_ALIKE = {"student_base": "itself without the adapter", "student": "itself", "student_ema": "an average of itself"}
_TRL = """\
@software{vonwerra2020trl,
    title   = {{TRL: Transformers Reinforcement Learning}},
    author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, \
Tristan and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
    license = {Apache-2.0},
    url     = {https://github.com/huggingface/trl},
    year    = {2020}
}"""


def write_card(trainer: Any, model_name: str | None, dataset_name: Any, tags: Any) -> None:
    """
    Write the card of a trainer's model into its output folder, on the main process.

    Args:
        trainer ([`TemperatureKDTrainer`]): it.
        model_name (`str`, *optional*): the title, by default the name of the folder.
        dataset_name (`str` or `list[str]`, *optional*): the data, by default those that the command line was given.
        tags (`str` or `list[str]`, *optional*): further tags.
    """
    folder = Path(str(trainer.args.output_dir))
    named = trainer.named
    data = dataset_name or named.get("data")
    data = data.split(", ") if isinstance(data, str) else list(data or [])
    student = named.get("student") or _base_of(trainer)
    base = student if is_on_the_hub(student) else None
    title = model_name or folder.absolute().name
    card_data = ModelCardData(
        base_model=base,
        datasets=[name for name in data if is_on_the_hub(name) and name != "tiny"] or None,
        library_name="peft" if _is_adapter(trainer) else "transformers",
        model_name=title,
        pipeline_tag="image-text-to-text" if trainer.processing is not None else "text-generation",
        tags=sorted({"generated_from_trainer", *trainer._tag_names, *_tags_of(trainer, tags)}),
    )
    parts = [
        f"# {title}",
        _introduction(trainer, student, data),
        "## Quick start",
        _fenced("python", _snippet(trainer, folder)),
        *_metrics(trainer),
        _MARK,
        _links(),
        f"With [TRL](https://github.com/huggingface/trl) and trl_tempkd {__version__}: `trl-tempkd distill --config` "
        "takes this recipe. Names of folders and files are those of the machine that it ran on.",
        _fenced("yaml", recipe_of(trainer, data[0] if len(data) == 1 else None)),
        "Versions: " + ", ".join(f"{name} {version(name)}" for name in _VERSIONS) + ".",
        *_citations(trainer.args),
    ]
    text = f"---\n{card_data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "README.md", text)


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _is_adapter(trainer: Any) -> bool:
    return isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)


def _base_of(trainer: Any) -> str | None:
    return get_config_model_id(trainer.accelerator.unwrap_model(trainer.model).config) or None


def _tags_of(trainer: Any, given: Any) -> set[str]:
    tags = {given} if isinstance(given, str) else set(given or ())
    if "JOB_ID" in os.environ:
        tags.add("hf_jobs")
    if (url := get_trackio_space_url()) is not None:
        tags = {tag for tag in tags if not tag.startswith("trackio:")} | {f"trackio:{url}"}
    return tags


def _link(name: str | None, kind: str = "") -> str:
    """A name as others may see it, linked where it is on the Hub."""
    shown = public_name(name)
    if shown is None:
        return "a model without a name"
    return f"[{shown}](https://huggingface.co/{kind}{shown})" if is_on_the_hub(name) and "/" in shown else f"`{shown}`"


def _introduction(trainer: Any, student: str | None, data: list[str]) -> str:
    args = trainer.args
    on = " on " + ", ".join("`tiny`" if name == "tiny" else _link(name, "datasets/") for name in data) if data else ""
    adapter = "An adapter for" if _is_adapter(trainer) else "A student that began as"
    return (
        f"{adapter} {_link(student)}, distilled{on} from {_teacher(trainer)}.\n\n"
        f"Objective: {args.describe()}, on {args.text}."
    )


def _teacher(trainer: Any) -> str:
    args, name = trainer.args, trainer.teacher.name
    how = args.vocabulary_alignment
    other = f", which has another tokenizer (compared by `{how}`)" if how else ""
    if args.teachers is not None:
        specs = TeacherSpec.read(args).values()
        return "several teachers: " + ", ".join(
            f"`{spec.name}` ({_ALIKE.get(str(spec.model)) or _link(spec.model or spec.server_model or spec.cache)})"
            for spec in specs
        )
    if args.teacher_server_url is not None:
        return f"{_link(trainer.named.get('teacher') or name)}, on a server{other}"
    if args.teacher_cache is not None:
        return f"{_link(name)}, whose target was stored before{other}"
    named = trainer.named.get("teacher") or args.teacher_model_name_or_path or name
    return _ALIKE.get(str(named)) or f"{_link(named)}{other}"


def _snippet(trainer: Any, folder: Path) -> str:
    """Lines that run where the model is: on the Hub, or beside its folder."""
    args = trainer.args
    hub_id = args.hub_model_id or (getattr(trainer, "hub_model_id", None) if args.push_to_hub else None)
    model = str(hub_id or (folder.as_posix() if not folder.is_absolute() else folder.name))
    if trainer.processing is not None:
        return (
            "from PIL import Image\nfrom transformers import pipeline\n\n"
            f'generator = pipeline("image-text-to-text", model={json.dumps(model)})\n'
            'image = Image.new("RGB", (224, 224), "white")  # yours\n'
            'content = [{"type": "image", "image": image}, {"type": "text", "text": "What is to be seen?"}]\n'
            'messages = [{"role": "user", "content": content}]\n'
            "output = generator(text=messages, max_new_tokens=64, return_full_text=False)[0]\n"
            'print(output["generated_text"])'
        )
    chat = getattr(trainer.processing_class, "chat_template", None)
    asked = '[{"role": "user", "content": "What is a moon?"}]' if chat else '"The moon is"'
    return (
        "from transformers import pipeline\n\n"
        f'generator = pipeline("text-generation", model={json.dumps(model)})\n'
        f"output = generator({asked}, max_new_tokens=64, return_full_text=False)[0]\n"
        'print(output["generated_text"])'
    )


def _metrics(trainer: Any) -> list[str]:
    """How far the student was from its teacher at first and at last, on the data and on held-out text."""
    history = trainer.state.log_history
    rows = []
    prefixes = dict.fromkeys(
        found[1] for entry in history for key in entry if (found := re.match(r"(eval_(?:.+_)?)kl_tau1$", key))
    )
    for prefix in ("", *prefixes):
        entries = [entry for entry in history if f"{prefix}kl_tau1" in entry]
        data = prefix.removeprefix("eval_").rstrip("_")
        what = f"held out{f', {data}' if data else ''}" if prefix else "training text"
        for entry in dict.fromkeys(entry["step"] for entry in entries[:1] + entries[-1:]):
            values = next(e for e in (entries if entry == entries[0]["step"] else entries[::-1]) if e["step"] == entry)
            cells = f"{values[f'{prefix}kl_tau1']:.4g}", f"{values.get(f'{prefix}token_agreement', float('nan')):.1%}"
            rows.append(f"| {what} | {entry} | {' | '.join(cells)} |")
    if not rows:
        return []
    head = [f"| text | step | {' | '.join(_TOLD.values())} |", "| --- | --- | --- | --- |"]
    said = (
        "How far the student is from its teacher, at first and at last: the KL divergence, and the share of tokens "
        "at which both have the same likeliest one. On training text they are of a step's batch, before its update."
    )
    return ["## Distance from the teacher", said, "\n".join([*head, *rows])]


def _links() -> str:
    wandb = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    found = {
        "Weights & Biases": getattr(run, "url", None),
        "Trackio": get_trackio_space_url(),
        "Comet": get_comet_experiment_url(),
    }
    links = [f"[{name}]({url})" for name, url in found.items() if url]
    return f"Curves: {', '.join(links)}." if links else ""


def _citations(args: Any) -> list[str]:
    credits = credits_of(args)
    lines = [f"- {what}: {_linked(source) or 'no source is given'}" for what, source in credits]
    entries = dict.fromkeys(entry for _, source in credits for entry in bibtex(source))
    return ["## Citations", "\n".join(lines), _fenced("bibtex", "\n\n".join([*entries, _TRL]))]


def _linked(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


class CardTrainer:
    """
    The trainer's part that writes the card.

    Attributes:
        named (`Mapping[str, str]`): what the command line calls the `student`, the `teacher` and the `data`.
        parts (`Sequence`): its options beside the configuration, as dataclasses.
    """

    named: Mapping[str, str | None] = {}
    parts: Sequence[Any] = ()

    def create_model_card(self, model_name: str | None = None, dataset_name: Any = None, tags: Any = None) -> None:
        """Write the card into `output_dir`. Arguments as in [`~trl.SFTTrainer`]."""
        trainer: Any = self
        if trainer.is_world_process_zero():
            write_card(trainer, model_name, dataset_name, tags)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer: Any = self
        card = Path(output_dir or str(trainer.args.output_dir), "README.md")
        before = card.read_text(encoding="utf-8") if card.is_file() else ""
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if not _is_adapter(trainer):
            return
        if _MARK in before:  # PEFT has put its own tags and names into it
            write_atomically(card, before)
        else:
            without_places(card, _base_of(trainer))


def without_places(readme: Path, base: Any) -> None:
    """
    Take the place of a student on this machine out of a card that PEFT has written.

    Args:
        readme (`pathlib.Path`): the card, if there is one.
        base (`str`, *optional*): name or folder of the model that the adapter is for.
    """
    if not readme.is_file() or not base or is_on_the_hub(base):
        return
    card = ModelCard.load(readme)
    card.data.base_model = None
    card.data.tags = [tag for tag in card.data.tags or [] if str(base) not in tag] or None
    write_atomically(readme, str(card).replace(str(base), str(public_name(base))))
