# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What every source of the target has from the base class: a new one is a class, and a line in `SOURCES`."""

import copy

import pytest
import torch
from standins import save_pair
from teacher_server import TeacherServer

from trl_tempkd import TemperatureKDTrainer
from trl_tempkd.errors import UsageError
from trl_tempkd.losses import Logits, Sampled, TopK
from trl_tempkd.teachers import (
    SOURCES,
    STUDENT_BASE,
    CachedTeacher,
    LiveTeacher,
    ServedTeacher,
    StatesTeacher,
    StudentBaseTeacher,
    Teacher,
    make_teacher,
)
from trl_tempkd.teachers.base import temperatures_of


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


class Least(Teacher):
    """As little as a source can be: `rows`."""

    def __init__(self, teacher, options):
        self.frozen = copy.deepcopy(options.frozen).eval()

    @torch.no_grad()
    def rows(self, inputs):
        return Logits(self.frozen(**inputs, use_cache=False).logits.flatten(0, 1))


class Part(Least):
    """The largest logits alone."""

    knows, taus, source, instead = TopK, (1.0, 2.0), "the almanac", "buy a thicker one"
    metrics = TopK.metrics_of(taus)

    def __init__(self, teacher, options):
        super().__init__(teacher, options)
        self.check(options)

    def rows(self, inputs):
        v = super().rows(inputs).values
        logits, ids = v.topk(20)
        others = v.scatter(-1, ids, -torch.inf)
        rest = torch.stack([(others / tau).logsumexp(-1) for tau in self.taus], -1)
        return TopK(self.taus, v.shape[-1], ids, logits, rest)


class Busy(Least):
    """Takes note of all that it is asked."""

    columns = ["input_ids", "labels", "rollout_prompts", "number"]

    def __init__(self, teacher, options):
        super().__init__(teacher, options)
        self.calls = []

    def bind(self, student, tokenizer, accelerator):
        self.calls.append(("bind", type(student()).__name__))

    def prepare(self, prepare, dataset, processing_class, *args):
        dataset = prepare(dataset, processing_class, *args)
        return dataset.add_column("number", list(range(len(dataset))))

    def collate(self, collator):
        def numbered(rows):
            numbers = [row.pop("number", -1) for row in map(dict, rows)]
            batch = collator([{name: row[name] for name in row if name != "number"} for row in rows])
            return {**batch, "number": torch.tensor(numbers)}

        return numbered

    def ahead(self, batches):
        self.calls.append(("ahead",))
        return batches

    def wait(self, batches, save=None):
        self.calls.append(("wait", [batch["number"].min().item() >= 0 for batch in batches], save is not None))

    def ask(self, batches):
        self.calls.append(("ask", len(batches)))
        for batch in batches:
            batch["answer"] = batch["input_ids"].shape

    def rows(self, inputs):
        self.calls.append(("rows", inputs.pop("answer") == inputs["input_ids"].shape))
        inputs.pop("number")
        return super().rows(inputs)


@pytest.fixture
def make(make_model, make_config, tokenizer, prompt_dataset, monkeypatch):
    """`make(source, **fields)`: a trainer whose teacher is that source, and `None` the model itself beside it."""

    def make(source, **fields):
        student, teacher = make_model(), make_model(seed=1)
        config = make_config(max_steps=2, per_device_train_batch_size=2, **fields)
        config.frozen = teacher
        if source is not None:
            monkeypatch.setitem(SOURCES, "run_name", source)  # any option that is set asks for it
            config.run_name = "here"
        return TemperatureKDTrainer(
            student, teacher if source is None else None, config, train_dataset=prompt_dataset,
            processing_class=tokenizer,
        )  # fmt: skip

    return make


def test_one_method_is_a_source(make):
    """Whole rows serve every divergence, rule and temperature, and say what the model itself does."""
    fields = {"divergence": "jsd", "kd_temperature_rule": "zscore", "teacher_kd_temperature": 3.0}
    found = []
    for source in (None, Least):
        trainer = make(source, **fields)
        trainer.train()
        found.append(logged(trainer, "loss"))
    assert trainer.teacher_model is None and trainer.teacher.metrics == LiveTeacher.metrics
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_part_is_refused_what_it_cannot_serve(make):
    make(Part, teacher_kd_temperature=2.0, divergence="jsd").train()
    for fields, said in (
        ({"divergence": "diversity_reverse_kl"}, "`divergence` diversity_reverse_kl needs the teacher's whole rows"),
        ({"kd_temperature_rule": "zscore"}, "`kd_temperature_rule` is zscore, .* the almanac hasn't"),
        (
            {"kd_temperature": 3.0},
            "The almanac knows .* 1, 2 alone, and the run's `kd_temperature` is 3.0",
        ),
        (
            {"kd_temperature_schedule": "cosine", "kd_temperature_final": 1.0},
            r"the run lets the teacher's temperature pass .* \(`kd_temperature_schedule` is 'cosine'\).* thicker one",
        ),
        ({"kd_diagnostics_steps": 2}, "`kd_diagnostics_steps` is 2, .* which the almanac hasn't. .* buy a thicker"),
    ):
        with pytest.raises(UsageError, match=said):
            make(Part, **fields)


def test_what_it_is_asked_in_a_step(make):
    trainer = make(Busy, lmbda=1.0, max_new_tokens=4, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.teacher.calls[0] == ("bind", "LlamaForCausalLM")
    first, second = ([("wait", [True, True], later), ("ask", 2), ("rows", True), ("rows", True)] for later in (0, 1))
    assert [call for call in trainer.teacher.calls if call[0] not in ("bind", "ahead")] == [*first, *second]
    assert ("ahead",) in trainer.teacher.calls and logged(trainer, "on_policy_share") == [1, 1]


def test_who_cannot_generate_says_so_by_name(make):
    with pytest.raises(UsageError, match="no model to generate with in the almanac: buy a thicker one"):
        make(Part, seq_kd=True, teacher_kd_temperature=1.0)
    with pytest.raises(UsageError, match="no model to generate with in the almanac"):
        object.__new__(Part).active()
    generating = {LiveTeacher, StudentBaseTeacher}
    for source in (LiveTeacher, StudentBaseTeacher, CachedTeacher, ServedTeacher, StatesTeacher):
        assert source.can_generate is (source in generating)
        assert (source.wrapped is not Teacher.wrapped) is (source.active is not Teacher.active) is source.can_generate


def test_whole_rows_of_a_part(make, prompt_dataset):
    trainer = make(Part, teacher_kd_temperature=1.0)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch.pop("labels")
    with pytest.raises(UsageError, match="whole rows are needed here, and the almanac hasn't them: buy a thicker one"):
        trainer.teacher.hidden_states(batch)
    whole = make(Least).teacher.hidden_states(dict(batch))
    assert whole.shape[:2] == batch["input_ids"].shape and whole.dim() == 3


@pytest.mark.parametrize("knows", [TopK, Sampled])
def test_temperatures_that_are_asked_for_one_by_one(knows):
    """Without a grid each single temperature will do, and none that moves."""
    teacher = object.__new__(Part)
    teacher.knows, teacher.taus = knows, None
    teacher.serves("forward_kl", None, [("`kd_temperature` is 7.0", 7.0)], None)
    with pytest.raises(UsageError, match="temperatures that it is asked for alone, and the run lets"):
        teacher.serves("forward_kl", None, [("`kd_temperature_schedule` is 'linear'", None)], None)
    teacher.knows = Logits
    teacher.serves("todi", None, [("", None)], "curriculum")


def test_the_teachers_temperatures(make_config):
    moving = {"kd_temperature": 2.0, "kd_temperature_final": 1.0}
    of = lambda **fields: [tau for _, tau in temperatures_of(make_config(**fields))]  # noqa: E731
    assert of(**moving, kd_temperature_schedule="linear") == [2.0, 1.0, None]
    assert of(**moving, kd_temperature_schedule="step") == [2.0, 1.0]
    assert of(**moving, kd_temperature_schedule="linear", teacher_kd_temperature=4.0) == [4.0]


def test_the_source_is_chosen_by_the_option_that_is_set(make_config, make_model, tokenizer, tmp_path):
    assert type(make_teacher(STUDENT_BASE, make_config())) is StudentBaseTeacher
    assert type(make_teacher(make_model(), make_config())) is LiveTeacher
    for pooling, kind in ((False, ServedTeacher), (True, StatesTeacher)):
        with TeacherServer(make_model(seed=1), tokenizer, pooling=pooling).running() as running:
            folder = save_pair(tmp_path / "pair", make_model, tokenizer)[1]
            name = folder if pooling else "teacher"
            assert type(make_teacher(name, make_config(teacher_server_url=running.url))) is kind
    server = make_config(teacher_server_url="http://localhost:1")
    with pytest.raises(UsageError, match="`teacher_server_url` is 'http://localhost:1', and `teacher_model` a Llama"):
        make_teacher(make_model(), server)
    with pytest.raises(UsageError, match=r"A teacher is required: .* `teacher_cache` or `teacher_server_url`"):
        make_teacher(None, make_config())
    with pytest.raises(UsageError, match="`teacher_cache` nowhere is no teacher cache"):
        make_teacher(None, make_config(teacher_cache="./nowhere"))
    with pytest.raises(UsageError, match="`teacher_model_revision` is 'main', but the teacher is 'student_base', whi"):
        make_teacher(STUDENT_BASE, make_config(teacher_model_revision="main"))
