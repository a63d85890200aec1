# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The model cards of the built-in pair, written from the figures that the training measured."""

import importlib.metadata
import platform

from ..fingerprint import shown_fingerprints
from .data import PACKAGES


def model_card(name: str, stages: dict[str, dict]) -> str:
    """
    Write the model card of a built-in model from the figures of its stages.

    Args:
        name (`str`):
            `"teacher"` or `"student"`.
        stages (`dict[str, dict]`):
            The figures of the stages `general`, `teacher`, `settle` and `student`, as `tiny.train` writes them.

    Returns:
        `str`: Markdown text.
    """
    figures = stages["settle" if name == "teacher" else name]
    versions = ", ".join(f"{dist} {importlib.metadata.version(dist).split('+')[0]}" for dist in PACKAGES.values())
    described = {
        "teacher": "It was fine-tuned on the rows to distil on (`train`), seen several times and mixed with other "
        "rows, as the teachers in papers on distillation are: it is surer of itself there than on rows it never saw.",
        "student": f"It keeps layers {', '.join(map(str, figures.get('kept_layers', ())))} of the teacher's general "
        "ancestor and was healed on general rows. It has never seen the rows to distil on.",
    }[name]
    lines = [
        "---",
        "license: apache-2.0",
        "language: en",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# tiny:{name}",
        "",
        f"The {name} of `trl_tempkd`'s built-in pair: a Llama model with {figures['parameters'] / 1e6:.1f} million "
        f"parameters in bf16 that answers what a Python function or class does. {described} It serves tests, "
        "examples and first experiments without a network, and nothing else.",
        "",
        "## Data",
        "",
        "`trl_tempkd.tiny.load_tiny_dataset()`: first paragraphs of the docstrings of the Python "
        f"{platform.python_version()} standard library and of {versions}. The docstrings belong to the authors of "
        "these packages and stand under the packages' own licences; the model's weights are under Apache-2.0. No "
        "module and no docstring of the split `test` stands in the splits `general` and `train`. Fingerprints of the "
        f"rows: {shown_fingerprints(figures['fingerprints'])}.",
        "",
        "## Training",
        "",
        "```bash",
        "OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m trl_tempkd.tiny.train --output runs/tiny \\",
        "    " + " ".join(f"--{stage}_steps {stages[stage]['steps']}" for stage in stages),
        "```",
        "",
        f"Batches of {figures['batch_size']} rows, AdamW, warmup, constant learning rate, linear decay over the last "
        "third of the steps. All figures are means over completion tokens at temperature 1: loss and entropy in nats, "
        f"top-1 the probability of the likeliest token. While a stage runs they come from {figures['watched_rows']} "
        "rows of each split.",
    ]
    for stage in ("general", "student") if name == "student" else ("general", "teacher", "settle"):
        lines += ["", f"### Stage `{stage}`", "", *_stage_table(stages[stage])]
    lines += [
        "",
        "## Final figures",
        "",
        f"On all {figures['final_rows']['test']} rows of `test` and {figures['final_rows']['train']} rows of `train`.",
        "",
        "| weights | split | loss | top-1 | entropy | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for weights, key in (("fp32", "final"), ("bf16, as shipped", "final_bf16")):
        for split, values in figures[key].items():
            cells = " | ".join(f"{values[column]:.3f}" for column in ("loss", "top1", "entropy", "accuracy"))
            lines.append(f"| {weights} | `{split}` | {cells} |")
    return "\n".join(lines) + "\n"


def _stage_table(figures: dict) -> list[str]:
    lines = [
        f"{figures['steps']} steps, {figures['epochs']} epochs of `{figures['split']}`, {figures['tokens'] / 1e6:.1f} "
        f"million tokens with padding, learning rate {figures['learning_rate']}, loss on "
        f"{'completions' if figures['completion_only'] else 'all tokens'}.",
        "",
        "| step | training loss | `train` loss | `train` top-1 | `train` entropy "
        "| `test` loss | `test` top-1 | `test` entropy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    losses = {int(step): loss for step, loss in figures["losses"].items()}
    for entry in figures["measured"]:
        nearest = min(losses, key=lambda step: abs(step - entry["step"]))
        columns = [(split, column) for split in ("train", "test") for column in ("loss", "top1", "entropy")]
        cells = [f"{entry[split][column]:.3f}" for split, column in columns]
        lines.append(f"| {entry['step']} | {losses[nearest]:.3f} | {' | '.join(cells)} |")
    if figures["tuned_share"] < 1:
        lines += [
            "",
            f"The table is of the model as trained. The result has {figures['tuned_share']:g} of its weights and "
            f"{1 - figures['tuned_share']:g} of those of stage `general`, which is better on held-out rows.",
        ]
    for note in figures.get("notes", []):
        lines += ["", note]
    return lines
