# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""`trl-tempkd student`: cut a student from a teacher, layers and all that is around them."""

import argparse
import shutil
from pathlib import Path

from ..command_line import HelpFormatter, OneLineParser, positive


DESCRIPTION = """\
Cut a student from a teacher: a copy with only some of its layers, and with its tokenizer. What is left of the teacher
is where training starts, not a model to use."""

EPILOG = """\
examples:
  # every other layer of the built-in teacher, then its training
  trl-tempkd student --from tiny:teacher --layers 0 2 4 --output_dir outputs/tiny-student
  trl-tempkd distill --config recipes/tiny/distill.yaml --model_name_or_path outputs/tiny-student

  # half of the layers, the first and the last among them
  trl-tempkd student --from Qwen/Qwen3-0.6B --num_layers 14 --output_dir outputs/qwen3-14-layers"""


def main(args: argparse.Namespace) -> None:
    """Write model and tokenizer into a folder, and say what to do with them."""
    from transformers import AutoConfig

    from ..models import check_model, load_model, load_tokenizer, resolve_model
    from ..paths import check_new
    from ..students import check_layers, student_from_layers

    check_new(args.output, "output_dir")
    name = resolve_model(args.teacher, "from")
    check_model(name, args.revision, args.trust_remote_code, "from")
    loading = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    config = AutoConfig.from_pretrained(name, **loading).get_text_config(decoder=True)
    layers = check_layers(args.layers or args.num_layers, config.num_hidden_layers)
    teacher = load_model(name, args.revision, "from", dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    student = student_from_layers(teacher, layers)
    output = Path(args.output)
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    load_tokenizer(name, args.revision, teacher, args.trust_remote_code).save_pretrained(unfinished)
    student.save_pretrained(unfinished)
    if output.is_dir():
        output.rmdir()  # it is empty
    unfinished.rename(output)
    parts = (sum(parameter.numel() for parameter in model.parameters()) for model in (student, teacher))
    print(
        f"{output}: layers {', '.join(map(str, layers))} of {config.num_hidden_layers}, "
        f"{' of '.join(f'{count / 1e6:,.1f}' for count in parts)} million parameters. Train it with\n"
        f"  trl-tempkd distill --model_name_or_path {output} --teacher_model_name_or_path {args.teacher} "
        "--dataset_name DATA --output_dir DISTILLED"
    )


def make_parser(prog: str | None = None) -> OneLineParser:
    parser = OneLineParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--from", dest="teacher", required=True, help="the model that it is cut from: as for distill")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--layers", type=int, nargs="+", help="numbers of the layers to keep, from 0 on")
    which.add_argument("--num_layers", type=positive, help="how many layers to keep, spread evenly")
    parser.add_argument(
        "--output_dir",
        "--output",
        dest="output",
        metavar="DIR",
        required=True,
        help="a folder that isn't there yet, or is empty",
    )
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", default="auto", choices=dtypes, help="of the weights: auto is the teacher's")
    parser.add_argument("--revision", help="of the teacher on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the teacher")
    return parser
