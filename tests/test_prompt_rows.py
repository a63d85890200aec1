# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Rows carry the prompt that a model in use is given, from the data set to what is asked for a completion."""

from functools import cache, partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from made_models import SENTENCES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast
from trl import SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_tempkd.chat import text_prompt
from trl_tempkd.prompts import read_rows, tokenize
from trl_tempkd.rollouts import PROMPTS, CarryingCollator, prepared
from trl_tempkd.rollouts.rows import Row, rows_of


TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}

# Every template that TRL ships


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "be kind"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "moon"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at something.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "What."}},
            "required": ["at"],
        },
    },
}
CONTEXTS = [
    [user("what is it")],
    [SYSTEM, user("what is it")],
    [user("hi"), answer("a cat", reasoning_content="hmm"), user("and now")],
    [user("look"), answer("", tool_calls=[CALL]), {"role": "tool", "name": "look", "content": "cheese"}],
]


@cache
def byte_tokenizer(name):
    """Its tokens are bytes, so that equal prompts are equal texts."""
    alphabet = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        chat_template=TEMPLATES[name].read_text(encoding="utf-8"),
    )


def in_parts(turns):
    """The same turns for templates of models that see: their content is a list."""
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def asked_in_use(tokenizer, context, tools):
    return tokenizer.apply_chat_template(context, tools=tools, add_generation_prompt=True, return_dict=False)


def cases_of(tokenizer):
    """The contexts that a template can write, with the tools, and what a model in use is given."""
    for parts in (False, True):
        found = []
        for context, tools in product(CONTEXTS, (None, [TOOL])):
            try:
                turns = in_parts(context) if parts else context
                tokenizer.apply_chat_template([*turns, *(in_parts if parts else list)([answer("a dog")])], tools=tools)
                found.append((turns, tools, asked_in_use(tokenizer, turns, tools)))
            except (TemplateError, TypeError):
                continue
        if found:
            return found, parts
    return [], False


def prepare(tokenizer, rows, args, name="train"):
    """As a trainer prepares it, without its models."""
    template = None
    if args.assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
        template = get_training_chat_template(tokenizer)
    of_trl = SimpleNamespace(
        _tokenizer=tokenizer,
        chat_template=template,
        completion_only_loss=args.completion_only_loss or "completion" in next(iter(rows)),
    )
    step = partial(prepared, partial(SFTTrainer._prepare_dataset, of_trl), template)
    return step(rows, tokenizer, args, args.packing, None, name)


def collated(dataset, args):
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=args.packing)
    return rows_of(CarryingCollator(collator)([dict(row) for row in dataset]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_what_the_model_in_use_is_given(make_config, name):
    tokenizer = byte_tokenizer(name)
    cases, parts = cases_of(tokenizer)
    assert len(cases) >= 2
    said = in_parts([answer("a dog")]) if parts else [answer("a dog")]
    try:
        get_training_chat_template(tokenizer)
        assistant_only = True
    except ValueError:  # TRL can't train with it on the assistant's turns alone
        assistant_only = False
    formats = {
        "messages": [{"messages": [*context, *said], "tools": tools} for context, tools, _ in cases],
        "prompt": [{"prompt": context, "completion": said, "tools": tools} for context, tools, _ in cases],
        "prompt alone": [{"prompt": context, "tools": tools} for context, tools, _ in cases],
    }
    for kind, rows in formats.items():
        args = make_config(lmbda=1.0, assistant_only_loss=assistant_only and kind == "messages", max_length=None)
        found = collated(prepare(tokenizer, IterableDataset.from_generator(lambda rows=rows: iter(rows)), args), args)
        assert [row.prompt for row in found] == [prompt for _, _, prompt in cases], kind
    # ... and what `trl-tempkd evaluate` asks
    for kind in ("messages", "prompt"):
        items = read_rows(formats[kind], tokenizer)
        assert [text_prompt(item["prompt"], tokenizer, special=False) for item in items] == [p for _, _, p in cases]
        for (context, tools, _), row in zip(cases, tokenize(items, tokenizer), strict=True):
            whole = tokenizer.apply_chat_template([*context, *said], tools=tools, return_dict=False)
            assert row["input_ids"] == whole and 0 < row["labels"].count(-100) < len(whole)


def test_a_template_that_cannot_write_the_context_is_replaced_by_that_of_training(make_config):
    # DeepSeek-V3's joins the arguments of a call, which are a dict, to text
    tokenizer, context = byte_tokenizer("deepseekv3"), CONTEXTS[3]
    with pytest.raises(TypeError):
        asked_in_use(tokenizer, context, None)
    args = make_config(lmbda=1.0, assistant_only_loss=True)
    rows = Dataset.from_list([{"messages": [*context, answer("a dog")]}])
    (row,) = collated(prepare(tokenizer, rows, args), args)
    assert tokenizer.decode(row.prompt).endswith("cheese<｜tool▁output▁end｜><｜tool▁outputs▁end｜>")


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_row_says_to_the_template(make_config, stream):
    tokenizer = byte_tokenizer("qwen3_5_think")
    arguments = [{"enable_thinking": False}, {"add_vision_id": True}, None]
    tools = [None, '[{"type": "function", "function": {"name": "look"}}]', None]
    rows = [
        {"prompt": [user("hi")], "chat_template_kwargs": given, "tools": known}
        for given, known in zip(arguments, tools, strict=True)
    ]
    dataset = Dataset.from_list(rows)
    assert dataset[0]["chat_template_kwargs"] == {"enable_thinking": False, "add_vision_id": None}
    args = make_config(lmbda=1.0)
    dataset = dataset.to_iterable_dataset() if stream else dataset
    found = [tokenizer.decode(row.prompt) for row in collated(prepare(tokenizer, dataset, args), args)]
    assert [text.endswith("<think>\n\n</think>\n\n") for text in found] == [True, False, False]
    assert ['{"type": "function", "function": {"name": "look"}}' in text for text in found] == [False, True, False]
    assert found == [item["prompt"] for item in read_rows(dataset, tokenizer)]


# A template as those of thinking models: the header of the answer belongs to what is trained on, and who is asked gets
# an opening that the answers of the data set don't have
THINKING = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}<|assistant|> {{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|> {{ message['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> the{% endif %}"
)


def rows_of_kind(kind):
    pairs = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
    return {
        "messages": [{"messages": [user(a), answer(b), user(b), answer(a)]} for a, b in pairs],
        "conversation": [{"prompt": [user(a)], "completion": [answer(b)]} for a, b in pairs],
        "text": [{"prompt": a, "completion": f" {b}"} for a, b in pairs],
        "asked in turns": [{"prompt": [user(a), answer(b), user(b)]} for a, b in pairs],
        "asked in messages": [{"messages": [user(a)]} for a, _ in pairs],
        "asked in text": [{"prompt": a} for a, _ in pairs],
    }[kind]


def prompts_in_use(kind, tokenizer):
    def of(row):
        if "messages" in row:
            turns = row["messages"]
            return asked_in_use(tokenizer, turns[:-1] if len(turns) > 1 else turns, None)
        asked = row["prompt"]
        return tokenizer(asked)["input_ids"] if isinstance(asked, str) else asked_in_use(tokenizer, asked, None)

    return sorted(of(row) for row in rows_of_kind(kind))


@pytest.fixture
def asked(make_trainer, tokenizer):
    """`asked(rows, **fields)`: the prompts that the student is asked in a step with all rows, and its trainer."""
    tokenizer.chat_template = THINKING

    def ask(rows, who="student", kwargs=None, **fields):
        found = []
        fields = {"lmbda": 1.0, "max_new_tokens": 4, "max_steps": 1, "per_device_train_batch_size": 8, **fields}
        trainer = make_trainer(train_dataset=rows, kwargs=kwargs, **fields)
        sampler = trainer.rollouts.samplers[who]

        def spy(prompts, seed):
            found.extend(prompts)
            return sampler(prompts, seed)

        trainer.rollouts.samplers[who] = spy
        trainer.train()
        (loss,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        assert loss > 0
        return sorted(found), trainer

    return ask


KEEP_END = "ignore:The `'keep_end'` truncation mode:FutureWarning"
FLASH = "ignore:.*[Ff]lash:UserWarning"


TRUNCATED, PACKED = {"max_length": 6}, {"packing": True, "max_length": 48}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"assistant_only_loss": False, "completion_only_loss": False},
        TRUNCATED,  # to less than a prompt
        {**TRUNCATED, "truncation_mode": "keep_end"},
        {"padding_free": True, "max_length": None},
        PACKED,
        {"packing": True, "max_length": 12, "shuffle_dataset": True},
        {"remove_unused_columns": False},
        {"shuffle_dataset": True, "dataset_num_proc": 2},
        {"stream": True},
        {"stream": True, "shuffle_dataset": True, "dataloader_num_workers": 1},
        {"stream": True, **PACKED},
    ],
    ids=str,
)
@pytest.mark.filterwarnings(KEEP_END, FLASH)
def test_the_prompt_of_a_conversation_survives(asked, tokenizer, fields):
    check_prompts(asked, tokenizer, "messages", {"assistant_only_loss": True, **fields})


@pytest.mark.parametrize("fields", [{}, TRUNCATED, PACKED, {"stream": True}], ids=str)
@pytest.mark.parametrize("kind", ["conversation", "text"])
@pytest.mark.filterwarnings(FLASH)
def test_the_prompt_beside_a_completion_survives(asked, tokenizer, kind, fields):
    check_prompts(asked, tokenizer, kind, fields)


def check_prompts(asked, tokenizer, kind, fields):
    fields = dict(fields)
    rows = Dataset.from_list(rows_of_kind(kind))
    if fields.pop("stream", False):
        rows = rows.to_iterable_dataset()
    found, _ = asked(rows, **fields)
    expected = prompts_in_use(kind, tokenizer)
    if fields.get("packing"):  # a step has 8 packed rows, in the order of the epoch
        assert len(found) >= len(expected) and {*map(tuple, found)} == {*map(tuple, expected)}
    else:
        assert found == expected


def test_a_collator_of_the_user_sees_no_prompts(asked, tokenizer):
    seen = set()

    class Collator(DataCollatorForSeq2Seq):
        def __call__(self, features, return_tensors=None):
            seen.update(*features)
            return super().__call__(features, return_tensors)

    found, _ = asked(Dataset.from_list(rows_of_kind("text")), kwargs={"data_collator": Collator(tokenizer)})
    assert found == prompts_in_use("text", tokenizer)
    assert seen == {"input_ids", "labels"}


def test_a_collator_must_keep_the_rows():
    collator = CarryingCollator(lambda rows: DataCollatorForLanguageModeling(pad_token_id=0)(rows[1:]))
    batch = collator([{"input_ids": [i, 5], "labels": [-100, 5], PROMPTS: [[i]]} for i in (1, 2)])
    with pytest.raises(ValueError, match=r"must keep every row.*made 1 of 2"):
        rows_of(batch)


def test_the_teacher_completes_the_same_prompts(asked, tokenizer):
    rows = Dataset.from_list(rows_of_kind("messages"))
    found, _ = asked(rows, who="teacher", lmbda=0.0, seq_kd=True, assistant_only_loss=True)
    assert found == prompts_in_use("messages", tokenizer)


def test_what_is_trained_on_off_policy_is_that_of_trl(make_trainer, tokenizer):
    tokenizer.chat_template = THINKING
    rows = Dataset.from_list(rows_of_kind("messages"))
    fields = {"assistant_only_loss": True, "max_length": 30}
    plain, mixed = (make_trainer(train_dataset=rows, lmbda=lmbda, max_new_tokens=4, **fields) for lmbda in (0.0, 0.5))
    columns = ["input_ids", "labels"]
    assert mixed.train_dataset.select_columns(columns)[:] == plain.train_dataset.select_columns(columns)[:]
    assert len(mixed.train_dataset) > 0 and PROMPTS not in plain.train_dataset.column_names


def test_generated_rows_are_trained_on_from_the_prompt_on(asked, tokenizer, tmp_path, monkeypatch):
    from trl_tempkd.rollouts.rollouts import Rollouts

    trained, call = [], Rollouts.__call__

    def spy(self, *args):
        batches = call(self, *args)
        trained.extend(row for batch in batches for row in rows_of(batch))
        return batches

    monkeypatch.setattr(Rollouts, "__call__", spy)
    rows = Dataset.from_list(rows_of_kind("messages"))
    found, trainer = asked(rows, assistant_only_loss=True, replay_size=8, log_completions=True)
    assert sorted(row.prompt for row in trained) == found
    assert all(1 <= row.targets == len(row.input_ids) - len(row.prompt) for row in trained)
    assert {*map(str, trainer.rollouts.replay)} == {*map(str, trained)}
    table = Dataset.from_parquet(str(tmp_path / "out" / "completions" / "completions_00001.parquet"))
    assert sorted(table["prompt"]) == sorted(map(tokenizer.decode, found))


def test_an_ending_that_the_tokenizer_adds_is_no_part_of_a_prompt(tokenizer):
    plain = tokenizer("the cat")["input_ids"]
    end = tokenizer.eos_token_id
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", end)]
    )
    assert tokenizer("the cat")["input_ids"] == [end, *plain, end]
    assert text_prompt("the cat", tokenizer) == [end, *plain]
    assert text_prompt("the cat<eos>", tokenizer)[-1] == end
    assert text_prompt("the cat", tokenizer, special=False) == plain
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", end)]
    )
    assert text_prompt("", tokenizer) == [end]  # GPT-2's begins with its end token


# Rows that only ask


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *product(["asked in text", "asked in turns"], [{}, {"stream": True}]),
        ("asked in text", PACKED),
        ("asked in turns", {**PACKED, "max_length": 16}),
        ("asked in turns", TRUNCATED),
        ("asked in turns", {"padding_free": True, "max_length": None}),
        ("asked in messages", {"assistant_only_loss": True}),
        ("asked in messages", {"assistant_only_loss": False, "stream": True}),
        ("asked in text", {"lmbda": 0.0, "seq_kd": True, "who": "teacher"}),
        ("asked in turns", {"lmbda": 1.0, "replay_size": 4, "replay_ratio": 1.0, "gradient_accumulation_steps": 2}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings(FLASH)
def test_rows_that_only_ask_are_trained_on(asked, tokenizer, kind, fields):
    if "gradient_accumulation_steps" in fields:
        fields = {**fields, "per_device_train_batch_size": 4}
    check_prompts(asked, tokenizer, kind, fields)


@pytest.mark.parametrize("stream", [False, True])
def test_some_rows_may_have_a_completion(asked, tokenizer, stream):
    rows = rows_of_kind("text")
    for row in rows[1::2]:
        row["completion"] = None
    dataset = Dataset.from_list(rows)
    found, _ = asked(dataset.to_iterable_dataset() if stream else dataset)
    assert found == prompts_in_use("text", tokenizer)


def streamed(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (rows_of_kind("asked in text"), {}, "train.*`completion`.*`lmbda` is 0.0 and `seq_kd` False.*`lmbda` 1.0"),
        (rows_of_kind("asked in turns"), {"lmbda": 0.5}, "`completion`.*`lmbda` is 0.5"),
        (
            rows_of_kind("asked in text"),
            {"lmbda_schedule": "adaptive", "eval_strategy": "steps", "eval_steps": 1, "lmbda": 0.9},
            "`completion`.*`lmbda` is 0.9",
        ),
        (rows_of_kind("asked in messages"), {"lmbda": 0.5, "assistant_only_loss": True}, "`completion`"),
    ],
    ids=["off-policy", "mixed", "adaptive", "messages"],
)
@pytest.mark.parametrize("make", [Dataset.from_list, streamed], ids=["table", "stream"])
def test_refuses_rows_that_only_ask_before_anything_is_loaded(make_config, rows, fields, message, make):
    from trl_tempkd import TemperatureKDTrainer

    with pytest.raises(ValueError, match=message):
        TemperatureKDTrainer("/no/model", "/no/teacher", make_config(**fields), train_dataset=make(rows))


def test_one_row_that_only_asks_is_found(make_config):
    from trl_tempkd import TemperatureKDTrainer

    for before in (1, 1000, 2345):  # a table is looked through in parts
        answered, asks = {"prompt": "a dog", "completion": "barks"}, {"prompt": "a cat", "completion": None}
        rows = Dataset.from_list([*[answered] * before, asks, answered, asks])
        for shown, number in ((rows, before), (rows.select(range(1, len(rows))), before - 1)):
            message = rf"have no `completion` \(row {number} is the first\)"
            with pytest.raises(ValueError, match=message):
                TemperatureKDTrainer("/no/model", "/no/teacher", make_config(lmbda=0.5), train_dataset=shown)


def test_a_stream_says_so_when_the_row_comes(make_trainer):
    rows = [*rows_of_kind("text") * 5, {"prompt": "a cat", "completion": None}]
    trainer = make_trainer(train_dataset=streamed(rows), lmbda=0.5, max_new_tokens=4)
    with pytest.raises(ValueError, match=rf"`completion` \(row {len(rows) - 1} is.*`lmbda` is 0.5"):
        list(trainer.train_dataset)


def test_rows_without_completions_that_were_left_out_do_not_matter(make_trainer):
    rows = Dataset.from_list([*rows_of_kind("text"), {"prompt": "a cat", "completion": None}])
    trainer = make_trainer(train_dataset=rows.filter(lambda row: row["completion"] is not None))
    assert len(trainer.train_dataset) == len(rows) - 1


# Evaluation of rows that only ask


@pytest.mark.parametrize("fields", [{}, {"padding_free": True, "max_length": None}, PACKED], ids=str)
@pytest.mark.filterwarnings(FLASH)
def test_evaluation_measures_what_the_student_says(make_trainer, tokenizer, fields):
    rows = Dataset.from_list(rows_of_kind("asked in text"))
    fields = {"lmbda": 1.0, "temperature": 0.0, "max_new_tokens": 5, **fields}
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows, per_device_eval_batch_size=3, **fields)
    metrics = trainer.evaluate()
    student = trainer.rollouts.samplers["student"]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    said = [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(prompts, student(prompts, 0), strict=True)
    ]
    expected = trainer.evaluate(Dataset.from_list(said))
    for name in ("eval_loss", "eval_kl_tau1", "eval_student_entropy"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4)
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-4)
    assert not trainer.rollouts.counts and not trainer.rollouts.latest  # which are about the training


def test_an_evaluation_knows_whose_text_it_measures(make_trainer):
    told = []
    rows, answered = (Dataset.from_list(rows_of_kind(kind)) for kind in ("asked in text", "text"))
    sets = {"answered": answered, "asked": rows}
    trainer = make_trainer(train_dataset=rows, eval_dataset=sets, lmbda=1.0, max_new_tokens=5, divergence="minillm")
    objective = trainer.step_loss.objective
    arguments = objective.arguments
    objective.arguments = lambda tokens: told.append(tokens.on_policy) or arguments(tokens)
    trainer.evaluate()
    assert told == [False, True]


def test_every_evaluation_draws_the_same(make_trainer):
    rows = Dataset.from_list(rows_of_kind("asked in text"))
    first, second = (
        make_trainer(train_dataset=rows, eval_dataset={"a": rows}, lmbda=1.0, max_new_tokens=5) for _ in range(2)
    )
    assert first.evaluate()["eval_a_loss"] == second.evaluate()["eval_a_loss"] == second.evaluate()["eval_a_loss"]


def test_the_logits_of_an_evaluation_are_those_of_its_labels(make_trainer):
    shapes = []

    def compute_metrics(found):
        shapes.append((found.predictions.shape[:2], found.label_ids.shape, (found.label_ids != -100).sum()))
        return {}

    rows = Dataset.from_list(rows_of_kind("asked in text"))
    kwargs = {"compute_metrics": compute_metrics}
    make_trainer(train_dataset=rows, eval_dataset=rows, lmbda=1.0, max_new_tokens=5, kwargs=kwargs).evaluate()
    ((logits, labels, trained),) = shapes
    assert logits == labels and trained > 0


def test_evaluation_needs_someone_who_writes(make_trainer, make_config, prompt_dataset):
    from trl_tempkd import TemperatureKDTrainer

    rows = Dataset.from_list(rows_of_kind("asked in text"))
    message = "Rows of the far data set have no `completion` .row 0 is the first. to measure at, and `lmbda` is 0.0"
    with pytest.raises(ValueError, match=message):
        TemperatureKDTrainer(
            "/no/model", "/no/teacher", make_config(), train_dataset=prompt_dataset, eval_dataset={"far": rows}
        )
    with pytest.raises(ValueError, match=r"the eval data set.*`seq_kd` False"):
        make_trainer().evaluate(rows)


# Rows that are tokens already


TOKENS = [
    {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]},
    {"input_ids": [9, 10], "completion_mask": [0, 1]},
]


@pytest.mark.parametrize("make", [Dataset.from_list, streamed], ids=["table", "stream"])
@pytest.mark.parametrize(
    ("columns", "fields", "labels"),
    [
        ({}, {}, [[-100, -100, 7, 8], [-100, 10]]),
        ({}, {"completion_only_loss": True}, [[-100, -100, 7, 8], [-100, 10]]),
        ({}, {"completion_only_loss": False}, [[5, 6, 7, 8], [9, 10]]),
        ({"assistant_masks": [[1, 0, 1, 0], [1, 1]]}, {}, [[-100, -100, 7, -100], [-100, 10]]),
        (
            {"assistant_masks": [[1, 0, 1, 0], [1, 1]]},
            {"completion_only_loss": False},
            [[5, -100, 7, -100], [9, 10]],
        ),
        ({"labels": [[5, -100, 7, -100], [9, 10]]}, {}, [[5, -100, 7, -100], [9, 10]]),
    ],
    ids=str,
)
def test_a_mask_of_the_completion_is_honoured(make_trainer, make, columns, fields, labels):
    rows = [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(TOKENS)]
    trainer = make_trainer(train_dataset=make(rows), eval_dataset=Dataset.from_list(rows), **fields)
    assert [row["labels"] for row in trainer.train_dataset] == labels
    assert [row["labels"] for row in trainer.eval_dataset] == labels


@pytest.mark.parametrize(
    ("columns", "fields", "prompts"),
    [
        ({}, {}, [[5, 6], [9]]),
        ({}, {"max_length": 2}, [[5, 6], [9]]),
        ({}, {"max_length": 1, "truncation_mode": "keep_end"}, [[5, 6], [9]]),
        ({}, {"completion_only_loss": False}, [[5, 6], [9]]),
        ({"completion_mask": None, "labels": [[5, -100, -100, 8], [-100, 10]]}, {}, [[5, 6, 7], [9]]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings(KEEP_END)
def test_prompts_of_tokens_are_told_by_their_masks(asked, columns, fields, prompts):
    rows = [{**row, **{k: v and v[i] for k, v in columns.items()}} for i, row in enumerate(TOKENS)]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    found, _ = asked(Dataset.from_list(rows), **fields)
    assert found == prompts


def test_rows_that_nobody_prepares_have_only_their_labels(asked):
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    found, trainer = asked(Dataset.from_list(rows), dataset_kwargs={"skip_prepare_dataset": True})
    assert found == [[5, 6]] and PROMPTS not in trainer.train_dataset.column_names


def test_prepared_rows_can_be_used_again(asked, tokenizer):
    rows = Dataset.from_list(rows_of_kind("asked in turns"))
    _, trainer = asked(rows)
    found, again = asked(trainer.train_dataset, max_length=6)
    assert found == prompts_in_use("asked in turns", tokenizer)
    assert again.train_dataset[:] == trainer.train_dataset[:]


def test_the_share_of_a_constant_schedule_is_that_of_the_run(make_trainer, tmp_path):
    before = make_trainer(lmbda=0.5, max_new_tokens=4)
    before.rollouts.save(str(tmp_path))
    after = make_trainer(lmbda=1.0, max_new_tokens=4, train_dataset=Dataset.from_list(rows_of_kind("asked in text")))
    after.rollouts.load(str(tmp_path))
    assert after.rollouts.share == 1.0


def test_a_prompt_that_a_row_carries_need_not_stand_in_it():
    assert Row([1, 2, 3], [-100, 2, 3], [1, 7]).prompt == [1, 7]
    assert Row([1, 2, 3], [-100, 2, 3], []).prompt == []
    assert Row([1, 2, 3], [-100, 2, 3]).prompt == [1]
