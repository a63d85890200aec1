# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The diagnostics: the identities of the gradients, the measures by hand, the models of a trainer, the command."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig
from standins import save_pair

from trl_tempkd import DIVERGENCES, TemperatureKDTrainer, cli, kd_loss
from trl_tempkd.commands import distill
from trl_tempkd.fingerprint import fingerprint
from trl_tempkd.study.diagnostics import (
    COLUMNS,
    DiagnosticsCallback,
    Plan,
    collect,
    diagnose,
    logit_gradient,
    measure_logits,
    measure_parameters,
)
from trl_tempkd.study.diagnostics import models as diagnostics_models
from trl_tempkd.study.diagnostics.logits import cosine, difference, effective_number, rank_buckets
from trl_tempkd.study.diagnostics.shown import COLUMNS as SHOWN
from trl_tempkd.study.diagnostics.shown import ERROR, INTERCEPT, OTHER_PAIR, SLOPE, lifted


def logits(rows: int = 6, size: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, v = (3 * torch.randn(rows, size, generator=generator, dtype=torch.float64) for _ in range(2))
    return z, v, torch.arange(rows)


def gap(pi: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """pi (d - E_pi[d])"""
    return pi * (d - (pi * d).sum(-1, keepdim=True))


def table(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    assert frame["value"].map(math.isfinite).all()
    assert not frame.duplicated(COLUMNS[:5]).any()
    return frame.set_index(COLUMNS[:5]).sort_index()


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
class TestIdentities:
    def test_forward_kl(self, tau):
        z, v, _ = logits()
        p, q = (v / tau).softmax(-1), (z / tau).softmax(-1)
        torch.testing.assert_close(logit_gradient("forward_kl", z, v, tau, tau), (q - p) / tau)

    def test_reverse_kl_sees_the_teacher_only_in_the_difference(self, tau):
        z, v, _ = logits()
        expected = gap((z / tau).softmax(-1), z - v) / tau**2
        torch.testing.assert_close(logit_gradient("reverse_kl", z, v, tau, tau), expected)

    def test_path(self, tau):
        z, v, _ = logits()
        d, steps = z - v, 4000
        path = sum(gap(((v + (k + 0.5) / steps * d) / tau).softmax(-1), d) for k in range(steps)) / steps
        gradient = tau**2 * logit_gradient("forward_kl", z, v, tau, tau)
        torch.testing.assert_close(gradient, path, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_sums_to_zero(self, tau, divergence):
        # Up and down, the same mass: a softmax knows no constant
        z, v, labels = logits()
        gradient = logit_gradient(divergence, z, v, tau, 1.0, labels=labels)
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(6, dtype=torch.float64))


def test_hinton_limit():
    z, v, _ = logits()
    tau, d = 1e5, z - v
    limit = (d - d.mean(-1, keepdim=True)) / d.shape[-1]
    for name in ("forward_kl", "reverse_kl"):
        gradient = tau**2 * logit_gradient(name, z, v, tau, tau)
        torch.testing.assert_close(gradient, limit, atol=1e-4, rtol=0)
    rows = table(measure_logits([logits()], Plan(temperatures=(1.0, tau), modes=("both",))))
    for measure in ("cosine", "batch_cosine"):
        far = rows.loc["forward_kl", "both", tau, measure]["value"]
        assert far["difference"] == pytest.approx(1, abs=1e-6)
        assert far["reverse_kl"] == pytest.approx(1, abs=1e-6)
        assert rows.loc["forward_kl", "both", 1.0, measure]["value"]["reverse_kl"] < 0.9


def test_measures_by_hand():
    z, v, labels = logits()
    tau = 3.0
    rows = table(measure_logits([(z, v, labels)], Plan(["reverse_kl"], [1.0, tau], ["teacher"])))
    # The student stays at 1, and so does the temperature of its gradient
    g = logit_gradient("reverse_kl", z, v, 1.0, tau)
    g_1 = logit_gradient("reverse_kl", z, v)
    d = z - v - (z - v).mean(-1, keepdim=True)
    kl = logit_gradient("forward_kl", z, v, 1.0, tau)
    ranks = v.argsort(-1, descending=True).argsort(-1)
    share = g.abs() / g.abs().sum(-1, keepdim=True)

    def get(measure: str, bucket: str = "-", objective: str = "reverse_kl") -> float:
        return rows.loc[objective, "teacher", tau, measure, bucket]["value"]

    for k in (1, 10):
        assert get("mass_outside", f"top_{k}") == pytest.approx((share * (ranks >= k)).sum(-1).mean().item())
    assert get("mass_outside", "top_100") == 0  # of 40
    middle = (ranks >= 1) & (ranks < 10)
    assert get("mass", "2-10") == pytest.approx((share * middle).sum(-1).mean().item())
    assert get("up", "2-10") == pytest.approx((share * middle * (g < 0)).sum(-1).mean().item())
    assert sum(get("up", bucket) for bucket in rank_buckets(40)) == pytest.approx(0.5)
    for bucket, other in (("tau_1", g_1), ("difference", d), ("forward_kl", kl)):
        cos = torch.cosine_similarity(g, other, dim=-1)
        assert get("cosine", bucket) == pytest.approx(cos.mean().item())
        whole = torch.cosine_similarity(g.flatten(), other.flatten(), dim=0)
        assert get("batch_cosine", bucket) == pytest.approx(whole.item())
    assert get("residual", "tau_1") == pytest.approx((1 - torch.cosine_similarity(g, g_1).square()).mean().item())
    assert get("norm_ratio", "none") == pytest.approx((g.norm() / g_1.norm()).item())
    assert get("norm_ratio", "tau2") == pytest.approx((tau * g.norm() / g_1.norm()).item())  # tau_s tau_t
    entropy = torch.special.entr(share).sum(-1)
    assert get("effective_tokens") == pytest.approx(entropy.exp().mean().item())
    p, q = (v / tau).softmax(-1), z.softmax(-1)
    assert get("teacher_entropy", objective="-") == pytest.approx(torch.special.entr(p).sum(-1).mean().item())
    assert get("teacher_mass", "1", objective="-") == pytest.approx(p.amax(-1).mean().item())
    assert get("student_mass", "11-40", objective="-") == pytest.approx((q * (ranks >= 10)).sum(-1).mean().item())
    assert (rows["tokens"] == 6).all()


def test_errors_of_head_and_tail():
    z, v, labels = logits()
    rows = table(measure_logits([(z, v, labels)], Plan()))["value"].loc["-", "-", 1.0]
    p, q = v.softmax(-1), z.softmax(-1)
    sorted_p, order = p.sort(-1, descending=True)
    inside = sorted_p.cumsum(-1) <= 0.5
    inside[:, 0] = True
    head = torch.zeros_like(inside).scatter(-1, order, inside)
    error = (p - q).abs()
    assert rows["error", "head"] == pytest.approx((error * head).sum(-1).mean().item())
    assert rows["error", "tail"] == pytest.approx((error * ~head).sum(-1).mean().item())
    for name in ("forward_kl", "reverse_kl"):
        assert min(rows[name]) > 0
        assert rows[name].sum() == pytest.approx(kd_loss(z, v, divergence=name).mean().item())
    assert rows["teacher_mass"].sum() == pytest.approx(1)


def test_chunks_do_not_matter():
    z, v, labels = logits()
    chunks = [(z[part], v[part], labels[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    plan = Plan(list(DIVERGENCES), [1.0, 4.0])
    whole, parts = table(measure_logits([(z, v, labels)], plan)), table(measure_logits(chunks, plan))
    pd.testing.assert_frame_equal(whole, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_to_learn(dtype):
    _, v, labels = logits()
    v[0], v[1, 5:] = 1.0, -math.inf  # equal logits; tokens that the teacher excludes
    v = v.to(dtype)
    plan = Plan(list(DIVERGENCES), [1.0, 2.0], ["both"])
    rows = table(measure_logits([(v, v.clone(), labels)], plan))
    smooth = [name for name in DIVERGENCES if name != "tvd"]
    gradients = rows.loc[smooth]
    assert (gradients["tokens"] == 0).all()
    assert (gradients["value"] == 0).all()
    assert rows.loc["-", "-", 1.0, "error"]["value"].abs().max() < 1e-6


def test_extreme_logits():
    z, v, labels = (t.clone() for t in logits())
    z[0], v[0] = 0.0, 0.0  # no choice at all
    z[1], v[1, 1:] = 0.0, -math.inf
    z[2] *= 1e4
    z[3], v[3, ::2] = v[3].clone(), -math.inf
    rows = table(measure_logits([(z.float(), v.float(), labels)], Plan(list(DIVERGENCES), [0.5, 1.0, 8.0])))
    shares = rows.reset_index().query("measure in ['mass', 'mass_outside', 'up']")["value"]
    assert shares.between(0, 1 + 1e-6).all()


def test_padded_vocabularies():
    z, v, labels = logits()
    padded = torch.cat([z, torch.full((6, 3), 9.0, dtype=z.dtype)], dim=-1)
    pd.testing.assert_frame_equal(
        table(measure_logits([(padded, v, labels)], Plan())), table(measure_logits([(z, v, labels)], Plan()))
    )


def test_small_functions():
    assert list(rank_buckets(40)) == ["1", "2-10", "11-40"]
    assert list(rank_buckets(20000))[-2:] == ["1001-10000", "10001-20000"]
    assert list(rank_buckets(1)) == ["1"]
    assert effective_number(torch.tensor([1.0, -1.0, 0.0, 1.0])).item() == pytest.approx(3)
    assert cosine(torch.zeros(3), torch.ones(3)) == 0
    assert difference(torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 5.0]])).tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objectives": ["kl"]}, "kl"),
        ({"objectives": []}, "`objectives` must have at least one"),
        ({"temperatures": [0.0]}, r"positive and finite, got \[0.0\]"),
        ({"modes": ["student"]}, "`modes` must be of both, teacher"),
        ({"kwargs": {"forward_kl": {"beta": 1}}}, "beta"),
    ],
)
def test_plan_is_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        Plan(**fields)


@pytest.mark.usefixtures("float64")
def test_models_equal_their_logits(make_trainer, monkeypatch):
    trainer = make_trainer("gemma3_text", "granite")
    batches = collect(trainer, trainer.train_dataset, num_rows=5, batch_size=2)
    assert len(batches) == 3
    plan = Plan(["reverse_kl", "decoupled_kl"], [1.0, 3.0])
    chunks = []
    for batch in batches:
        with torch.no_grad():
            sides = (
                m(**batch.inputs).logits.flatten(0, 1)[batch.kept] for m in (trainer.model, trainer.teacher.model)
            )
            chunks.append((*sides, batch.targets))
    monkeypatch.setattr(diagnostics_models, "CHUNK_ELEMENTS", 1000)
    rows = diagnose(trainer, batches, plan)
    pd.testing.assert_frame_equal(table(rows), table(measure_logits(chunks, plan)), atol=1e-9, rtol=1e-9)
    assert trainer.model.training == make_trainer("gemma3_text", "granite").model.training


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # the latter's head is its embedding
def test_parameter_gradients_are_those_of_the_loss(architecture, make_trainer, monkeypatch):
    trainer = make_trainer(architecture, architecture, max_grad_norm=1e-3)
    monkeypatch.setattr(diagnostics_models, "CHUNK_ELEMENTS", 1000)
    batches = collect(trainer, trainer.train_dataset, num_rows=5, batch_size=3)
    plan = Plan(["reverse_kl"], [1.0, 4.0], ["teacher"])
    for batch in batches:
        gradient, norms = diagnostics_models.parameter_gradient(
            trainer, [batch], lambda chunk: plan.gradient("reverse_kl", chunk, 1.0, 4.0)
        )
        z, v = (m(**batch.inputs).logits.flatten(0, 1)[batch.kept] for m in (trainer.model, trainer.teacher.model))
        loss = kd_loss(z, v, divergence="reverse_kl", teacher_temperature=4.0).mean()
        expected = torch.autograd.grad(loss, list(trainer.model.parameters()))
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]), atol=1e-9, rtol=1e-9)
        assert norms == [pytest.approx(gradient.norm().item())]
    rows = table(measure_parameters(trainer, batches, plan))["value"].loc["reverse_kl", "teacher"]
    assert all(p.grad is None for p in trainer.model.parameters())
    assert rows[1.0, "parameter_cosine", "tau_1"] == pytest.approx(1)
    assert rows[1.0, "parameter_norm_ratio", "tau2"] == pytest.approx(1)
    assert 0 < rows[4.0, "parameter_residual", "tau_1"] < 1
    assert {"tau_1", "difference", "forward_kl"} == set(rows[4.0, "parameter_cosine"].index)
    assert rows[4.0, "parameter_norm", "tau2"] == pytest.approx(4 * rows[4.0, "parameter_norm", "none"])
    assert rows[4.0, "clip_rate", "none"] == 1
    trainer.args.max_grad_norm = 1e9
    assert table(measure_parameters(trainer, batches, plan))["value"].xs("clip_rate", level="measure").max() == 0


def test_rows_without_labels(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="none of the 1 rows"):
        collect(trainer, [{"input_ids": [1, 2], "labels": [-100, -100]}])


@pytest.mark.usefixtures("float64")
def test_callback(make_trainer, prompt_dataset):
    trainer = make_trainer(eval_dataset=prompt_dataset, max_steps=5, kd_diagnostics_steps=2, divergence="jsd")
    trainer.add_callback(DiagnosticsCallback(trainer, num_rows=4))
    trainer.train()
    measured = pd.read_csv(f"{trainer.args.output_dir}/diagnostics.csv")
    assert list(measured.columns) == ["step", *COLUMNS]
    assert sorted(set(measured["step"])) == [0, 2, 4, 5]
    assert set(measured["objective"]) == {"jsd", "forward_kl", "reverse_kl", "-"}
    rates = measured[measured["measure"] == "clip_rate"]
    assert rates["tokens"].tolist() == [1, 2, 2]  # a step is logged after it is measured
    assert rates["value"].between(0, 1).all()

    plain = make_trainer(eval_dataset=prompt_dataset, max_steps=5, divergence="jsd")
    plain.train()
    for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="kd_diagnostics_steps"):
        DiagnosticsCallback(plain)


def test_callback_goes_on_after_a_resume(make_trainer):
    fields = {"kd_diagnostics_steps": 1, "save_strategy": "steps", "save_steps": 2}
    for steps, checkpoint in ((3, None), (4, "checkpoint-2")):
        trainer = make_trainer(max_steps=steps, **fields)
        trainer.add_callback(DiagnosticsCallback(trainer, plan=Plan(temperatures=[1.0]), num_rows=2))
        trainer.train(resume_from_checkpoint=checkpoint and f"{trainer.args.output_dir}/{checkpoint}")
        measured = pd.read_csv(f"{trainer.args.output_dir}/diagnostics.csv")
        assert list(measured["step"].unique()) == list(range(steps + 1))
        assert not measured.duplicated(["step", *COLUMNS[:5]]).any()


@pytest.mark.usefixtures("float64")
def test_adapter_beside_its_own_base(make_model, make_config, tokenizer, prompt_dataset):
    trainer = TemperatureKDTrainer(
        model=make_model(),
        teacher_model="student_base",
        args=make_config(teacher_kd_temperature=2.0, student_kd_temperature=1.0, kd_diagnostics_steps=2),
        train_dataset=prompt_dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear"),
    )
    callback = DiagnosticsCallback(trainer, num_rows=3)
    assert callback.plan.temperatures == [1.0, 2.0]
    trainer.add_callback(callback)
    trainer.train()
    measured = pd.read_csv(f"{trainer.args.output_dir}/diagnostics.csv", index_col="step")
    errors = measured[measured["measure"] == "error"]["value"]
    assert errors.loc[0].max() < 1e-6  # a fresh adapter changes nothing
    assert errors.loc[2].min() > 1e-6
    batches = collect(trainer, trainer.train_dataset, num_rows=3)
    table(measure_parameters(trainer, batches, Plan(temperatures=[2.0], modes=["both"])))


@pytest.fixture
def pair(tmp_path, make_model, tokenizer, chat_dataset) -> dict:
    """The options that name a random pair and its data."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    chat_dataset.save_to_disk(tmp_path / "data")
    return {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": str(tmp_path / "data"),
    }


def flags(options: dict) -> list[str]:
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def test_what_is_said_of_the_amount_lifted():
    """The ratio of each objective; what it says of the student's entropy is of both KLs, which it was measured on."""
    row = {"mode": "both", "tau": 2.0, "measure": "lifted_ratio", "bucket": "top_10", "tokens": 9}
    rows = [
        {**row, "objective": "forward_kl", "value": 9.97},
        {**row, "objective": "jsd", "value": 3.0},
        {**row, "objective": "reverse_kl", "value": 2.55},
        {**row, "objective": "reverse_kl", "value": 77.0, "tau": 4.0},
        {**row, "objective": "reverse_kl", "value": 88.0, "mode": "teacher"},
        {**row, "objective": "reverse_kl", "value": 99.0, "bucket": "top_1"},
    ]
    said = lifted(rows)
    assert (
        "forward_kl x10.0, jsd x3.0, reverse_kl x2.5." in said
        or "forward_kl x10.0, jsd x3.0, reverse_kl x2.6." in said
    )
    assert "0.82 (forward_kl) and 1.05 (reverse_kl)" in said and "give or take 11% of those" in said
    assert (
        lifted(rows[1:2]) == "With both softened, tau 2 raises what is lifted outside the teacher's top 10: jsd x3.0."
    )
    assert lifted(rows[3:]) == lifted([]) == ""
    # Nothing beyond what the line has seen: where tau lifts nothing, a student from random weights did otherwise
    assert "entropy" not in lifted([{**row, "objective": "reverse_kl", "value": 1.0}])


def test_the_line_is_that_of_the_study():
    """What `diagnose` says rests on the table that recipes/dial.py has written."""
    page = (Path(__file__).parent.parent / "docs/results/study_dial.md").read_text(encoding="utf-8")
    name = "log of the student's entropy, held out, less"
    [found] = re.findall(rf"^- {name}: (\S+) (\S+) log\(ratio\)", page, flags=re.MULTILINE)
    assert tuple(map(float, found)) == (INTERCEPT, SLOPE)
    [row] = re.findall(rf"^\| {name} \| (.*) \|$", page, flags=re.MULTILINE)
    *_, error, of_mean, holds = row.split(" | ")
    assert float(error) == ERROR < float(of_mean) and holds == "yes"
    others = re.findall(
        rf"^- {name}: \S+: (\S+) by the line of the other, (\S+) by its mean", page, flags=re.MULTILINE
    )
    assert len(others) == 2 and max(float(off) for off, _ in others) == OTHER_PAIR
    assert all(float(off) < float(plain) for off, plain in others)


def test_command(pair, tmp_path, capsys, chat_dataset):
    output = tmp_path / "new" / "table.csv"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "objectives: [forward_kl, jsd]\nobjective_kwargs: {jsd: {beta: 0.1}}\ntemperatures: [1, 3.0]\nnum_rows: 4\n"
        "assistant_only_loss: true\nparameter_gradients: true\n",
        encoding="utf-8",
    )
    assert cli.main(["diagnose", *flags(pair), "--config", str(recipe), "--output", str(output)]) == 0
    measured = table(pd.read_csv(output).to_dict("records"))
    settings = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert settings["objective_kwargs"] == {"jsd": {"beta": 0.1}}
    assert (settings["num_rows"], settings["temperatures"]) == (4, [1.0, 3.0])
    assert measured["tokens"].max() == settings["tokens"]
    assert settings["fingerprint"] == fingerprint(chat_dataset.take(4))
    index = measured.reset_index()
    assert set(index["objective"]) == {"forward_kl", "jsd", "-"}
    assert {"mass_outside", "parameter_cosine", "clip_rate", "error"} <= set(index["measure"])
    shown = capsys.readouterr().out
    assert "Gradient in the logits, both softened" in shown
    assert "Gradient in the parameters, teacher softened" in shown
    assert settings["fingerprint"] in shown
    # The columns that are shown are ones that exist
    known = {(row["measure"], row["bucket"]) for _, row in index.iterrows()}
    assert {key[:2] for columns in SHOWN.values() for key in columns.values()} - known <= {
        ("mass_outside", "top_100"),
    }


@pytest.mark.parametrize("line", ["temperatures: hot", "temperatures: [1, hot]", "modes: [both, x]", "tau: 1"])
def test_command_reads_settings_strictly(line, pair, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        cli.main(["diagnose", *flags(pair), "--config", str(recipe)])
    assert stop.value.code == 2
    assert str(recipe) in capsys.readouterr().err


def test_distill_measures_live(pair, tmp_path):
    options = {"output_dir": tmp_path / "out", "max_steps": 2, "kd_diagnostics_steps": 1, "divergence": "tvd"}
    options |= {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": 48, "disable_tqdm": True}
    values, _, _ = distill.make_parser().parse(flags({**pair, **options}), launched=True)
    distill.main(*values)
    measured = pd.read_csv(tmp_path / "out/diagnostics.csv")
    assert sorted(set(measured["step"])) == [0, 1, 2]
    assert "tvd" in set(measured["objective"])
