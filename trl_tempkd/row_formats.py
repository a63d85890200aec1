# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What a row of data must look like to be trained on, and how to get there from what it looks like instead."""

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from .names import did_you_mean


Row = Mapping[str, Any]

# What question and answer are called where they aren't `prompt` and `completion`
QUESTIONS = ("question", "query", "problem", "input", "inputs", "source", "human", "user", "instruction", "prompt")
ANSWERS = (
    "answer",
    "response",
    "output",
    "outputs",
    "target",
    "targets",
    "solution",
    "assistant",
    "chosen",
    "completion",
)
PROMPTS = "rollout_prompts"  # column of prepared rows: what completions are generated for, and what a batch has of it
TEACHER_PROMPT = "teacher_prompt"  # column of rows: what the teacher reads in the place of the student's prompt
# Columns of prepared rows: what it reads before the first token that is trained on, as `[count, *tokens]` for each
# text of the row; and before a completion that is generated, as `PROMPTS` has it
CONTEXTS = "teacher_contexts"
TEACHER_PROMPTS = "teacher_rollout_prompts"
TEACHER = "teacher"  # column of rows: the name of the teacher that a row has, of several
ROUTE = "teacher_number"  # of prepared rows: its number
TEACHER_QUESTION = "teacher_question"  # and what a teacher with another tokenizer is asked
# Of cached rows: what it has read, and where in bytes, as `vocabularies.alignment.Reading` has it
TEACHER_TOKENS, TEACHER_OFFSETS = "teacher_tokens", "teacher_offsets"
PIXELS = "image_hash"  # of prepared rows with images: 16 bytes of a hash
ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT, which no chat template knows
KNOWN_ROLES = ("user", "assistant", "system", "developer", "tool", "function")  # what most chat templates know


def contexts_of(column: list[int]) -> list[list[int]]:
    """The tokens of each text in a column `CONTEXTS`."""
    contexts, start = [], 0
    while start < len(column):
        end = start + 1 + int(column[start])
        contexts.append([int(token) for token in column[start + 1 : end]])
        start = end
    return contexts


class Expected(NamedTuple):
    """
    What is expected of the rows of a run.

    Attributes:
        text_field (`str`): the column that has text.
        completion (`bool`): whether a prompt must have a completion.
        assistant (`bool`): whether a conversation must have a turn of the assistant.
        template (`str`): the chat template, if it is known.
    """

    text_field: str = "text"
    completion: bool = False
    assistant: bool = False
    template: str = ""


PLAIN = Expected()


def problem_of(row: Row, expected: Expected = PLAIN) -> str | None:
    """
    What keeps a row from being trained on, or `None`.

    Args:
        row (`Mapping[str, Any]`):
            A row in one of TRL's formats: `input_ids`, `prompt` (and `completion`), `messages`, `conversations` of
            `from` and `value`, or text.
        expected ([`Expected`], *optional*):
            What the run expects of it.

    Returns:
        `str` or `None`: The problem and the way out, on one line. Code in it is Python, with `dataset` for the data.
    """
    if row.get(TEACHER_PROMPT) is not None and (problem := _teacher_prompt(row)):
        return problem
    text = expected.text_field
    if "input_ids" in row:
        return _tokens(row)
    if is_from_value(row.get("conversations")):
        return problem_of_turns("conversations", row["conversations"], expected, "from", "value")
    if "prompt" in row:
        return _prompt(row, expected)
    if "messages" in row and not isinstance(row.get(text), str):
        return problem_of_turns("messages", row["messages"], expected)
    if text in row:
        return _text(text, row[text])
    texts = [column for column, value in row.items() if isinstance(value, str)]
    named = f" Name the column that has text: `dataset_text_field` {texts[0]!r}." if len(texts) == 1 else ""
    return (
        f"has no column to train on, which are `prompt` and `completion`, `messages`, `{text}` or `input_ids`: it has "
        f"{', '.join(map(str, row)) or 'none at all'}.{conversion(row) or named}"
    )


def is_chat(row: Row) -> bool:
    """Whether a row is a conversation, which a chat template writes."""
    return is_from_value(row.get("conversations")) or any(
        _is_turns(row.get(column)) for column in ("prompt", "completion", "messages")
    )


def is_from_value(value: Any) -> bool:
    """Whether a value is a conversation of `from` and `value`, which TRL turns into `messages`."""
    return _is_turns(value) and {"from", "value"} <= set(value[0])


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _tokens(row: Row) -> str | None:
    ids = row["input_ids"]
    if isinstance(ids, str) or not hasattr(ids, "__len__"):
        return f"has {_shown(ids)} in `input_ids`, which must be a list of token ids."
    if len(ids) and not (isinstance(ids[0], numbers.Integral) or getattr(ids[0], "shape", None) == ()):
        return f"has {_shown(ids[0])} in `input_ids`, which must be a list of token ids."
    for name in ("labels", "completion_mask", "assistant_masks"):
        if name in row and (not hasattr(row[name], "__len__") or len(row[name]) != len(ids)):
            size = len(row[name]) if hasattr(row[name], "__len__") else row[name]
            return f"has {len(ids)} `input_ids` and {size} `{name}`: there must be as many."
    return None


def _prompt(row: Row, expected: Expected) -> str | None:
    # A table has a column for all of its rows: nothing in it is no completion
    values = {name: row[name] for name in ("prompt", "completion") if name == "prompt" or row.get(name) is not None}
    for name, value in values.items():
        problem = (
            _text(name, value)
            if not isinstance(value, list)
            else problem_of_turns(name, value, expected._replace(assistant=False))
        )
        if problem:
            return problem
    if expected.completion and "completion" not in values:
        return (
            "has a `prompt` and no `completion`, which takes an `lmbda` of 1, or `seq_kd`, with which completions are "
            f"generated.{conversion(row)}"
        )
    if len({type(value) for value in values.values()}) > 1:
        role, name = ("assistant", "completion") if isinstance(row["prompt"], list) else ("user", "prompt")
        return (
            f"has text in one of `prompt` and `completion` and a conversation in the other. Make both one: "
            f'`dataset.map(lambda row: {{"{name}": [{{"role": "{role}", "content": row["{name}"]}}]}})`'
        )
    turns = [turn for value in values.values() if isinstance(value, list) for turn in value]
    if (
        expected.assistant
        and "completion" in values
        and turns
        and not any(turn["role"] == "assistant" for turn in turns)
    ):
        return _without_assistant("completion")
    return None


def _teacher_prompt(row: Row) -> str | None:
    """What keeps a teacher from reading its own prompt in the place of the student's."""
    own = row[TEACHER_PROMPT]
    if "input_ids" in row:
        student = own  # tokens fit both
    elif is_from_value(row.get("conversations")) or not {"prompt", "messages"} & set(row):
        return (
            f"has a `{TEACHER_PROMPT}`, which the teacher reads in the place of the `prompt`, and none. Give it "
            "`prompt` and `completion`."
        )
    else:
        student = row["prompt"] if "prompt" in row else row["messages"]
    if not isinstance(own, str | list | tuple) or not own:
        return f"has {_shown(own)} in `{TEACHER_PROMPT}`, which must be text or messages, or None for the student's."
    if isinstance(own, str) != isinstance(student, str):
        kinds = ("text", "a conversation") if isinstance(own, str) else ("a conversation", "text")
        return (
            f"has {kinds[0]} in `{TEACHER_PROMPT}` and {kinds[1]} for the student: one answer must follow both, so "
            "make both one of these."
        )
    if not isinstance(own, str) and (problem := problem_of_turns(TEACHER_PROMPT, own)):
        return problem
    if "prompt" not in row and "input_ids" not in row:
        answers = [turn for turn in row["messages"] if isinstance(turn, dict) and turn.get("role") == "assistant"]
        if len(answers) > 1:
            return (
                f"has a `{TEACHER_PROMPT}` and {len(answers)} turns of the assistant in `messages`: the teacher reads "
                "it in the place of all before one answer. Give it `prompt` and `completion`, the last turn."
            )
    return None


def _text(column: str, value: Any) -> str | None:
    if isinstance(value, str):
        return None
    return f"has {_shown(value)} in `{column}`, which must be text. Leave such rows out, or give them some."


def problem_of_turns(
    column: str, turns: Any, expected: Expected = PLAIN, role: str = "role", content: str = "content"
) -> str | None:
    """As [`problem_of`], of a conversation in a column, whose messages have these two keys."""
    if isinstance(turns, str) and turns.lstrip()[:1] == "[":
        return (
            f"has `{column}` as JSON in a text. Read it: "
            f'`dataset.map(lambda row: {{"{column}": json.loads(row["{column}"])}})`'
        )
    if not isinstance(turns, list | tuple):
        return f"has {_shown(turns)} in `{column}`, which must be a list of messages with `role` and `content`."
    if not turns:
        return f'has no messages in `{column}`. Leave such rows out: `dataset.filter(lambda row: row["{column}"])`'
    for number, turn in enumerate(turns):
        where = f"message {number} of `{column}`"
        if not isinstance(turn, dict):
            return f"has {_shown(turn)} as {where}, which must be a dict with `role` and `content`."
        if role not in turn and {"from", "value"} <= set(turn):
            return f"has `from` and `value` in {where}, in place of `role` and `content`.{_chat(column)}"
        if not isinstance(turn.get(role), str):
            return f"has {_shown(turn.get(role))} for the `{role}` of {where}, which must be text."
        if turn[role] in ROLES and turn[role] not in expected.template:
            return (
                f"has {turn[role]!r} for the `{role}` of {where}, and chat templates know user, assistant and system."
                f"{_chat(column, role, content)}"
            )
        # One that is like none of these may be a word of a template of one's own
        known = turn[role] in (*KNOWN_ROLES, *ROLES) or turn[role] in expected.template
        if not known and (hint := did_you_mean(turn[role].lower(), KNOWN_ROLES)):
            return f"has {turn[role]!r} for the `{role}` of {where}{hint}"
        others = any(value for key, value in turn.items() if key not in (role, content, "name"))  # e.g. tool calls
        if not isinstance(turn.get(content), str | list | dict) and not (turn.get(content) is None and others):
            return f"has {_shown(turn.get(content))} for the `{content}` of {where}, which must be text."
    if expected.assistant and not any(turn[role] == "assistant" for turn in turns):
        return _without_assistant(column)
    return None


def _without_assistant(column: str) -> str:
    return (
        f"has no message of the assistant in `{column}`, and with `assistant_only_loss` nothing else counts. Leave "
        "such rows out."
    )


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) < 40 else shown[:36] + '...'}"


def conversion(row: Row) -> str:
    """How to make a row that can be trained on of one with other columns, as code; or nothing."""
    if len(row) == 1 and (mark := next((mark for mark in ";\t|" if mark in next(iter(row))), None)):
        return (
            f" That is one column: a CSV has commas between them, and this one {mark!r}. Write it anew: "
            f"`pandas.read_csv(FILE, sep={mark!r}).to_csv(FILE, index=False)`"
        )
    for column, value in row.items():
        if _is_turns(value) and "role" in value[0] and column not in ("chosen", "rejected"):
            return f' Rename it: `dataset.rename_column("{column}", "messages")`'
        if _is_turns(value) and {"from", "value"} <= set(value[0]):
            return _chat(column)
    if isinstance(row.get("instruction"), str) and (answer := _first(row, ANSWERS)):
        more = _first(row, ("input", "context"))
        return (
            " Give instructions the prompt that `trl-tempkd evaluate` gives them: `from trl_tempkd.prompts import "
            f"alpaca_prompt` and {_mapped(_alpaca(more), answer)}"
        )
    question, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
    if question and answer and question != answer:
        return f" Say which is which: {_mapped(_column(question), answer)}"
    if _is_turns(row.get("chosen")):
        return ' Train on what was chosen: `dataset.select_columns("chosen").rename_column("chosen", "messages")`'
    return ""


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(row.get(name), str)), None)


def _column(name: str) -> str:
    return f'row["{name}"]'


def _alpaca(more: str | None) -> str:
    return f"alpaca_prompt({', '.join(map(_column, ('instruction', *([more] if more else []))))})"


def _mapped(prompt: str, answer: str) -> str:
    return (
        f'`dataset.map(lambda row: {{"prompt": {prompt}, "completion": {_column(answer)}}}, '
        "remove_columns=dataset.column_names)`"
    )


def _chat(column: str, role: str = "from", content: str = "value") -> str:
    return (
        ' Turn its words into those of chat templates: `dataset.map(lambda row: {"messages": [{"role": '
        f'{{"human": "user", "gpt": "assistant"}}.get(turn["{role}"], turn["{role}"]), "content": turn["{content}"]}} '
        f"for turn in {_column(column)}]}}, remove_columns=dataset.column_names)`"
    )
