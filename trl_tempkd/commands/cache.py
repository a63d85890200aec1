# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd cache`: run the teacher of a recipe once over its data, and store what it says."""

from ..caching import CacheArguments
from ..caching import build as main
from ..caching import check as check  # what the command line calls before it starts any process
from ..recipes import RecipeParser, training_parser


__all__ = ["check", "main", "make_parser"]

DESCRIPTION = """\
Run a teacher once over the data of a recipe, and store what it says of every token that is trained on. Then
`trl-tempkd distill` with the same recipe and --teacher_cache trains without the teacher: with --mode hidden on the
same target and the same loss, for every divergence and temperature, with --mode topk or sampled on
less, from a smaller cache.

The data are prepared as in training, with the evaluation's where the recipe has `do_eval`. A build that was
interrupted goes on when it is started again; a complete cache is checked then, and what is damaged made anew."""

EPILOG = """\
Beside these, every option of `trl-tempkd distill` is taken: --help_all lists them.

examples:
  # the pair of models that comes with the package, on a CPU: once the teacher, then a student at another temperature
  trl-tempkd cache --config recipes/tiny/distill.yaml --mode hidden --output_dir outputs/tiny-cache
  trl-tempkd distill --config recipes/tiny/distill.yaml --teacher_cache outputs/tiny-cache --kd_temperature 4

  # 64 tokens a position in place of the hidden state, for the divergences and temperatures that they can serve
  trl-tempkd cache --config recipes/tiny/distill.yaml --mode topk --k 64 --taus 1 2 4 --output_dir outputs/tiny-topk
  trl-tempkd distill --config recipes/tiny/distill.yaml --teacher_cache outputs/tiny-topk --divergence jsd

  # the teacher behind a server of last hidden states (docs/teachers.md), of which nothing but the head is read here
  trl-tempkd cache --config recipes/tiny/served_exact.yaml --mode hidden --output_dir outputs/tiny-served-cache

  # one of several teachers (docs/teachers.md): its own rows, through its own model or server
  trl-tempkd cache --config recipes/tiny/two_teachers.yaml --teacher short --output_dir outputs/tiny-short

  # four GPUs, each with the teacher and a quarter of the data
  trl-tempkd cache --config recipes/qwen3/distill.yaml --mode hidden --output_dir outputs/qwen3-cache \\
      --accelerate_config multi_gpu --num_processes 4"""


def make_parser(prog: str | None = None) -> RecipeParser:
    parser = training_parser(prog, DESCRIPTION, EPILOG, first=(CacheArguments,))
    parser.ignored = ("teacher_cache",)  # where a training reads from: perhaps what is to be built
    parser.call("output", "output_dir")  # the key of a recipe goes on to be the training's
    return parser
