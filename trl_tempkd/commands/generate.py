# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd generate`: a teacher's completions for the prompts of a data set, as a data set."""

from typing import TYPE_CHECKING

from ..generating import GenerateConfig, check
from ..job import end_group
from ..recipes import RecipeParser


if TYPE_CHECKING:
    from trl import ScriptArguments

__all__ = ["check", "main", "make_parser"]

DESCRIPTION = """\
Let a teacher complete the prompts of a data set, and write a data set of them that `trl-tempkd distill` and TRL train
on: sequence-level knowledge distillation, and the teacher's own text for any other objective.

Rows have a `prompt`, as text or as a conversation, or `messages`, whose last answer is written anew. A row that can't
be completed is named in _failed.jsonl, and the others go on. A run that was interrupted goes on when it is started
again. The folder holds train.jsonl, and in _generation.json who wrote it, how, and of which rows."""

EPILOG = """\
examples:
  # the pair of models that comes with the package: the teacher's text, then a student trained on it
  trl-tempkd generate --teacher_model_name_or_path tiny:teacher --dataset_name tiny --num_rows 200 \\
      --output_dir outputs/tiny-written
  trl-tempkd distill --config recipes/tiny/distill.yaml --dataset_name outputs/tiny-written \\
      --do_eval false --eval_strategy no

  # four samples of each prompt, without those that didn't come to an end
  trl-tempkd generate --teacher_model_name_or_path Qwen/Qwen3-4B --dataset_name prompts.jsonl \\
      --num_completions 4 --temperature 0.7 --max_new_tokens 512 --only_stopped --output_dir outputs/written

  # a teacher that vLLM serves: of its checkpoint the tokenizer alone is read here
  trl-tempkd generate --teacher_model_name_or_path Qwen/Qwen3-4B --teacher_server_url http://localhost:8000 \\
      --dataset_name prompts.jsonl --output_dir outputs/written

  # two GPUs, each with the teacher and half of the rows
  trl-tempkd generate --teacher_model_name_or_path Qwen/Qwen3-4B --dataset_name prompts.jsonl \\
      --output_dir outputs/written --accelerate_config multi_gpu --num_processes 2"""


def main(args: GenerateConfig, script_args: "ScriptArguments") -> None:
    """Write the completions, and say how many there are."""
    from accelerate import PartialState

    from ..generating import DATA, FAILED, generate

    found = generate(args, script_args)
    left_out = found["too_short"] + found["not_stopped"]
    said = [f"{found['written']} completions of {found['rows']} rows in {args.output}/{DATA}"]
    if left_out:
        said.append(f"{left_out} left out ({found['too_short']} too short, {found['not_stopped']} not at their end)")
    if found["failed"]:
        said.append(f"{found['failed']} rows failed, with the reasons in {args.output}/{FAILED}")
    PartialState().print(f"{'; '.join(said)}. Train on them with --dataset_name {args.output}")
    end_group()


def make_parser(prog: str | None = None) -> RecipeParser:
    from trl import ScriptArguments

    parser = RecipeParser((GenerateConfig, ScriptArguments), prog=prog, description=DESCRIPTION, epilog=EPILOG)
    parser.call("output", "output_dir")
    return parser
