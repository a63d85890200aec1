# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What two tokenizers have in common on real text: where a student is compared with a teacher that has another one.

    python benchmarks/tokenizer_coverage.py --tokenizers NAME=FOLDER NAME=FOLDER --texts NAME=FILE.jsonl:COLUMN

Each tokenizer is the student's to each other one. Of a JSON Lines file a column has the texts, of another file each
paragraph is one. Nothing is trained: what the two put on their common tokens depends on the models, and is logged.
"""

import argparse
import json
from itertools import permutations
from pathlib import Path

from transformers import AutoTokenizer

from trl_tempkd.tiny import resolve
from trl_tempkd.vocabularies.alignment import Question, Side, align
from trl_tempkd.vocabularies.answers import AnswerFrame
from trl_tempkd.vocabularies.bins import make_bins
from trl_tempkd.vocabularies.spelling import Spelling


def load(name: str, side: str) -> Side:
    """A tokenizer by its folder."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    return Side(Spelling(tokenizer, side), AnswerFrame(tokenizer))


def read(source: str, count: int) -> list[str]:
    """The first texts of a file."""
    path, _, column = source.partition(":")
    text = Path(path).read_text(encoding="utf-8")
    rows = [json.loads(line)[column] for line in text.split("\n") if line] if column else text.split("\n\n")
    return [row for row in rows if row.strip()][:count]


def coverage(student: Side, teacher: Side, texts: list[str]) -> dict[str, float]:
    """
    Returns:
        `dict[str, float]`: `aligned`, the share of the student's tokens, its end among them, at which both have read
        the same bytes; `common`, that of the student's tokens that are a token of the teacher too; `per_token`, the
        teacher's tokens for each of the student's.
    """
    in_both = make_bins(student, teacher, "shared").in_both[0]
    tokens = aligned = common = of_teacher = 0
    for text in texts:
        ids = student.spelling.encode(text) or []
        end = [] if student.frame.end is None else [student.frame.end]
        found = align([0, *ids, *end], Question([0], 1, 0, False), student, teacher)
        tokens += len(ids) + len(end)
        aligned += len(found.student)
        common += int(in_both[ids + end].sum())
        of_teacher += len(found.teacher_ids) - 1
    return {"aligned": aligned / tokens, "common": common / tokens, "per_token": of_teacher / tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE[:COLUMN]")
    parser.add_argument("--count", type=int, default=300, help="texts of each file")
    args = parser.parse_args()
    sides = {}
    for name, folder in (each.split("=", 1) for each in args.tokenizers):
        sides[name] = load(folder, name)
        print(f"{name}: {sides[name].spelling.kind}, {len(sides[name].spelling.tokens)} tokens")
    texts = {name: read(source, args.count) for name, source in (each.split("=", 1) for each in args.texts)}
    print(
        "\n| student | teacher | tokens in common | "
        + " | ".join(f"{name}: aligned, common, ratio" for name in texts)
        + " |"
    )
    print("| --- | --- | --- |" + " --- |" * len(texts))
    for student, teacher in permutations(sides, 2):
        one, other = sides[student], sides[teacher]
        both = int(make_bins(one, other, "shared").in_both[0].sum())
        found = (coverage(one, other, rows) for rows in texts.values())
        cells = ["{aligned:.2f}, {common:.2f}, {per_token:.2f}".format(**each) for each in found]
        print(f"| {student} | {teacher} | {both} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
