# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Two processes give what one gives: DDP, ZeRO-1 to 3, FSDP2; LoRA, sharded teachers, uneven batches, resuming."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import distributed_worker
import pytest
import torch
from made_models import SENTENCES, build_model, build_tokenizer
from peft import PeftModel
from ranks import inherited, launched, run
from teacher_server import TeacherServer
from test_cached import builder_of
from transformers import AutoModelForCausalLM
from vision_models import processor_of, vision_model
from vision_models import rows as pictured_rows
from vocabulary_pairs import metaspace

from trl_tempkd import KDConfig, TemperatureKDTrainer


pytestmark = pytest.mark.distributed

FSDP2 = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_cpu_ram_efficient_loading "
    "false --fsdp_state_dict_type FULL_STATE_DICT --fsdp_reshard_after_forward true"
)
# By default a tiny model isn't sharded
ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
ZERO = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": ZERO3,
    "zero3_offload": {**ZERO3, "offload_optimizer": {"device": "cpu"}},
}

DEFAULTS = {
    "student": "untied",
    "teacher": "untied_teacher",
    "train_dataset": "prompts",
    "eval_dataset": "seven_rows",
}
FIELDS = {
    "per_device_train_batch_size": 4,  # of a single process: two have half of it each
    "per_device_eval_batch_size": 4,
    "max_steps": 5,
    "learning_rate": 1e-2,
    "divergence": "jsd",
    "kd_ratio": 0.7,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_length": None,
    "gradient_checkpointing": False,
}
LORA = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "fields": {"learning_rate": 0.1, "gradient_checkpointing": True},  # reentrant under ZeRO-3
}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
UNLABELLED = {"train_dataset": "unlabelled", "fields": {"train_sampling_strategy": "sequential"}}
SEVERAL = [
    {"name": "first", "model": "untied_teacher", "weight": 0.5},
    {"name": "second", "model": "tied_teacher", "teacher_kd_temperature": 3.0},
]
# In memory, from a cache, behind a server: of some batches a rank has no row of one of them. Where they are whole, the
# models are on the disk while they don't run.
SOURCES = [
    SEVERAL[0],
    {"name": "second", "model": "tied_teacher", "cache": "cache", "teacher_kd_temperature": 3.0},
    {"name": "third", "model": "untied_teacher", "server_url": "", "divergence": "reverse_kl"},
]
ITSELF = {"name": "second", "model": "student_ema", "teacher_kd_temperature": 0.5}
AVERAGED = {"train_dataset": "hinted", "eval_dataset": "hinted", "itself": "student_ema"}
GREEDY = {"lmbda": 1.0, "max_new_tokens": 8, "temperature": 0.0}
SEEING = {
    "student": "sees",
    "teacher": "sees_teacher",
    "train_dataset": "pictures",
    "eval_dataset": "pictures_seven",
    "fields": {"train_sampling_strategy": "sequential"},
}
SCENARIOS = {
    "untied": {"fields": {"eval_strategy": "steps", "eval_steps": 2}, "compute_metrics": True},
    "tied": {"student": "tied", "teacher": "tied_teacher", "loaded": True},  # as models, not as names
    "lora": LORA,
    "lora_and_head": {**LORA, "lora": {**LORA["lora"], "modules_to_save": ["lm_head"]}},
    "accumulated": {"fields": {**ACCUMULATED, "gradient_checkpointing": True}},
    # Accelerate fills the last batch up with the first rows, so that every rank has one
    "uneven": {
        "train_dataset": "ten_rows",
        "single": {"train_dataset": "ten_rows_and_two"},
        "fields": {"train_sampling_strategy": "sequential", "num_train_epochs": 1, "max_steps": -1},
    },
    # Five batches a pass, two to a step; the evaluation's are of several widths
    "streamed": {"train_dataset": "ten_rows", "eval_dataset": "prompts", "streamed": True, "fields": ACCUMULATED},
    # Both models are tried on such rows: under ZeRO-3 the student at its first batch, through its wrapper
    # (Rows that fill up a batch of the evaluation can't be told apart in it.)
    "padding_free": {"eval_dataset": "prompts", "fields": {"padding_free": True}},
    "unlabelled": UNLABELLED,
    # Every token of the batch is compared with those of all ranks, of which some have none
    "token_adaptive": {
        **UNLABELLED,
        "eval_dataset": "prompts",  # rows that fill up a batch would be compared too
        "fields": {
            **UNLABELLED["fields"],
            "kd_temperature_rule": "token_adaptive",
            "kd_temperature_rule_kwargs": {"keep": 0.6},
        },
    },
    # Both states follow all tokens of a step
    "states": {
        "fields": {
            **ACCUMULATED,
            "divergence": "taid",
            "divergence_kwargs": {"alpha": 1.0, "momentum": 0.5},  # faster than linear
            "kd_temperature_rule": "curriculum",
            "kd_temperature_rule_kwargs": {"learning_rate": 2.0},
        },
    },
    "on_policy": {"fields": GREEDY},
    "on_policy_lora": {**LORA, "fields": {**LORA["fields"], **GREEDY}},
    "on_policy_unlabelled": {**UNLABELLED, "fields": {**UNLABELLED["fields"], **GREEDY}},
    # Evaluation generates too
    "only_asked": {"train_dataset": "questions", "eval_dataset": "questions", "fields": GREEDY},
    # The teacher reads another prompt, and it may be the student, whose average is in shards
    "own_prompt": {"train_dataset": "hinted", "eval_dataset": "hinted", "fields": ACCUMULATED},
    "own_prompt_on_policy": {"train_dataset": "hinted", "fields": GREEDY},
    "itself": {"train_dataset": "hinted", "itself": "student"},
    "averaged": {**AVERAGED, "fields": {"teacher_ema_decay": 0.6}},
    "averaged_tied": {**AVERAGED, "student": "tied", "fields": {"teacher_ema_decay": 0.6, **ACCUMULATED}},
    # Of some batches a rank has no row of one of them
    "routed": {"train_dataset": "routed", "eval_dataset": "routed_seven", "fields": {"teachers": SEVERAL}},
    "mixed": {"fields": {"teachers": [{**of, "weight": i + 1} for i, of in enumerate(SEVERAL)], **ACCUMULATED}},
    "sources": {
        "train_dataset": "routed_to_three",
        "eval_dataset": "routed_to_three_seven",
        "offloaded": True,
        "fields": {"teachers": SOURCES, **ACCUMULATED},
    },
    "sources_on_policy": {
        "train_dataset": "routed_to_three",
        "eval_dataset": "routed_to_three_seven",
        "fields": {"teachers": [SOURCES[0], ITSELF, SOURCES[2]], **GREEDY, "teacher_ema_decay": 0.6},
    },
    "averaged_lora": {**LORA, **AVERAGED, "fields": {**LORA["fields"], "teacher_ema_decay": 0.6}},
    # The ranks have rows of other lengths in the teacher's tokens too, and other shares of them are compared
    "other_tokenizer": {
        "teacher": "other_teacher",
        "fields": {**GREEDY, **ACCUMULATED, "lmbda": 0.5, "vocabulary_alignment": "shared", "alm_weight": 0.5},
    },
    "of_teacher": {"fields": {**GREEDY, **ACCUMULATED, "lmbda": 0.0, "seq_kd": True}},
    # Of some batches a rank has no image
    "seeing": {**SEEING, "fields": {**SEEING["fields"], "eval_strategy": "steps", "eval_steps": 2}},
    "seeing_on_policy": {**SEEING, "fields": {**SEEING["fields"], **GREEDY}},
    # Each rank asks the server about its own rows, and has the teacher's head whole
    "served": {"served": True, "fields": {"eval_strategy": "steps", "eval_steps": 2}},
    "served_on_policy": {"served": True, "fields": {**GREEDY, **ACCUMULATED}},
    "served_hinted": {"train_dataset": "hinted", "served": True, "fields": {**GREEDY, **ACCUMULATED}},
    # The ranks end their completions after different numbers of tokens, and gather the layers for each of them
    "stopping": {
        "student": "stopping",
        "teacher": "stopping_teacher",
        "fields": {**GREEDY, "ds3_gather_for_generation": False},
    },
}
FEW = ["untied", "tied", "lora"]
# What is killed and resumed, and compared with a run that isn't. With this seed, the completions come from: the data
# set, the student, replay, replay right after the checkpoint, the student, replay, replay, the student.
RESUMED = {
    "fields": {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "seed": 49}
    | {"lmbda": 0.7, "max_new_tokens": 8, "replay_size": 4, "replay_ratio": 0.5}
}
AVERAGED_SAVED = {
    **AVERAGED,
    "fields": {"teacher_ema_decay": 0.6, "max_steps": 4, "save_strategy": "steps", "save_steps": 2},
}
BACKENDS = {
    "ddp": list(SCENARIOS),
    "zero1": FEW,
    "zero2": list(SCENARIOS),
    "zero3": list(SCENARIOS),
    "zero3_offload": FEW,
    "fsdp2": list(SCENARIOS),
}
RESUMING = ["ddp", "zero2", "zero3", "fsdp2"]
SHARDING = ["zero3", "zero3_offload", "fsdp2"]
EVERY = [(backend, name) for backend, names in BACKENDS.items() for name in names]


class Launcher:
    """Models and data on disk, and the results of every launch, each of which happens once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results: dict[str, dict] = {}
        tokenizer = build_tokenizer()
        for name, architecture in (("untied", "llama"), ("tied", "qwen3"), ("stopping", "phi")):
            for seed, side in enumerate(("", "_teacher")):
                model = build_model(architecture, seed)
                if name == "stopping":
                    model.lm_head.bias.data[tokenizer.eos_token_id] += 1  # about every sixth token ends the text
                model.save_pretrained(folder / (name + side))
                tokenizer.save_pretrained(folder / (name + side))
        for seed, name in enumerate(("sees", "sees_teacher")):
            vision_model("gemma3", seed).save_pretrained(folder / name)
            processor_of("gemma3").save_pretrained(folder / name)
        one, two, none, last = pictured_rows()
        self.save("pictures", [one, two, none, none, none, none, last, one, none, one, last, two] * 2)
        self.save("pictures_seven", [one, none, none, two, last, none, one])
        self.server = TeacherServer(build_model("llama", 1), tokenizer, pooling=True).start()

        other = metaspace(seed=1)
        size = {"vocab_size": len(other) + 5, "max_position_embeddings": 128}
        build_model("llama", 1, **size).save_pretrained(folder / "other_teacher")
        other.save_pretrained(folder / "other_teacher")

        pairs = [sentence.split(" ", 3) for sentence in SENTENCES]
        rows = [{"prompt": " ".join(p[:3]), "completion": " " + p[3]} for p in pairs]
        self.save("prompts", rows * 3)
        hints = [" ".join(SENTENCES[-1 - i].split(" ")[: 1 + i % 5]) for i in range(len(rows))]
        hinted = [{**row, "teacher_prompt": f"{hint} {row['prompt']}"} for row, hint in zip(rows, hints, strict=True)]
        self.save("hinted", hinted * 3)
        routed = [{**row, "teacher": "second" if i % 5 == 2 else "first"} for i, row in enumerate(rows * 3)]
        self.save("routed", routed)
        self.save("routed_seven", routed[:7])
        names = [of["name"] for of in SOURCES]
        to_three = [{**row, "teacher": names[(i // 2) % 3]} for i, row in enumerate(rows * 3)]
        self.save("routed_to_three", to_three)
        self.save("routed_to_three_seven", to_three[:7])
        self.cache("tied_teacher", rows)
        self.save("questions", [{"prompt": row["prompt"]} for row in rows * 3])
        self.save("ten_rows", (rows * 2)[:10])
        self.save("ten_rows_and_two", (rows * 2)[:10] + rows[:2])
        self.save("seven_rows", rows[:7])
        # The first step has no label on the second rank, the second none on the first, the third none at all
        ids = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES * 3]
        without = {2, 3, 4, 5, 8, 9, 10, 11}
        labels = [[-100] * (len(row) if i in without else 3) + row[3:] for i, row in enumerate(ids)]
        labels = [row_labels[: len(row)] for row_labels, row in zip(labels, ids, strict=True)]
        self.save("unlabelled", [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)])

    def save(self, name: str, rows: list[dict]) -> None:
        datasets.Dataset.from_list(rows).save_to_disk(self.folder / name)

    def cache(self, teacher: str, rows: list[dict]) -> None:
        args = KDConfig(
            str(self.folder / "caching"), teacher_model_name_or_path=str(self.folder / teacher), max_length=None,
            use_cpu=True, bf16=False, report_to="none",
        )  # fmt: skip
        trainer = TemperatureKDTrainer(
            build_model("qwen3"), args=args, train_dataset=datasets.Dataset.from_list(rows),
            processing_class=build_tokenizer(),
        )  # fmt: skip
        builder_of(trainer, self.folder / "cache").build()

    def placed(self, teacher: dict) -> dict:
        """An entry of `teachers` with its folders and its address."""
        folders = {key: str(self.folder / teacher[key]) for key in ("model", "cache") if key in teacher}
        if teacher["model"] == "student_ema":
            return teacher
        return {**teacher, **folders, **({"server_url": self.server.url} if "server_url" in teacher else {})}

    def scenario(self, backend: str, name: str, scenario: dict) -> dict:
        out = {**DEFAULTS, **scenario, **(scenario.get("single", {}) if backend == "single" else {})}
        out.update({key: str(self.folder / out[key]) for key in DEFAULTS})
        if "served" in scenario:
            out["fields"] = {**out["fields"], "teacher_server_url": self.server.url}
        output_dir = str(self.folder / backend / scenario.get("folder", name))
        fields = {**FIELDS, **out.get("fields", {}), "output_dir": output_dir}
        if "teachers" in fields:
            fields["teachers"] = [self.placed(teacher) for teacher in fields["teachers"]]
        if "offloaded" in scenario and backend not in SHARDING:
            fields["teachers_offload"] = "disk"
        return {**out, "fields": fields}

    def run(self, backend: str, name: str) -> dict:
        """Result of one scenario."""
        if backend not in self.results:
            self.results[backend] = {}
            self.launch(backend)
        if name not in self.results[backend]:
            pytest.fail(f"{backend} {name} gave no result:\n{self.log(backend)[-5000:]}")
        return self.results[backend][name]

    def launch(self, backend: str) -> None:
        plan = {name: SCENARIOS[name] for name in (SCENARIOS if backend == "single" else BACKENDS[backend])}
        if backend not in RESUMING:
            self.start(backend, plan)
            return
        # A killed run ends its launch, so it comes last. What it has left is for a second launch.
        plan |= {"averaged_saved": AVERAGED_SAVED, "unbroken": RESUMED, "killed": {**RESUMED, "kill_at": 4}}
        self.start(backend, plan)
        if "unbroken" in self.results[backend]:
            left = sorted(path.name for path in (self.folder / backend / "killed").glob("checkpoint-*"))
            assert "killed" not in self.results[backend] and left == ["checkpoint-3"]
            again = {**RESUMED, "resume": True, "folder": "unbroken"}
            damaged = {"checkpoint-8": "**/*optim*", "checkpoint-6": "rollouts_1.safetensors"}
            averaged = {**AVERAGED_SAVED, "resume": True, "folder": "averaged_saved"}
            self.start(
                backend,
                {
                    "killed": {**RESUMED, "resume": True},
                    "finished": again,
                    "damaged": {**again, "cut": damaged},
                    "averaged_again": {**averaged, "cut": {"checkpoint-4": "**/*optim*"}},
                },
            )

    def start(self, backend: str, scenarios: dict[str, dict]) -> int:
        folder = self.folder / backend
        folder.mkdir(exist_ok=True)
        plan = {name: self.scenario(backend, name, scenario) for name, scenario in scenarios.items()}
        (folder / "plan.json").write_text(json.dumps(plan))
        environments = [inherited()] if backend == "single" else launched(self.options(backend), folder)
        code = run(distributed_worker.main, (backend, folder), environments, folder / "log")
        for name in plan:
            if (path := folder / f"{name}.json").exists():
                self.results[backend][name] = json.loads(path.read_text())
        return code

    def options(self, backend: str) -> list[str]:
        if backend in ZERO:
            auto = "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping"
            config = {**dict.fromkeys(auto.split(), "auto"), "zero_optimization": ZERO[backend]}
            config["zero_force_ds_cpu_optimizer"] = False  # it would be compiled first
            path = self.folder / backend / "deepspeed.json"
            path.write_text(json.dumps(config))
            kind = (
                f"--use_deepspeed --zero3_init_flag {str('zero3' in backend).lower()} --deepspeed_config_file {path}"
            )
        else:
            kind = {"ddp": "--multi_gpu", "fsdp2": FSDP2, "cpu": "--cpu"}[backend]
        return kind.split()

    def log(self, backend: str) -> str:
        return (self.folder / backend / "log").read_text(errors="replace")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("distributed"))
    yield launcher
    launcher.server.stop()


def history(result: dict) -> dict[str, list[float]]:
    """Every number that is logged, but for those that measure time or count padding."""
    measured = ("_second", "_runtime", "total_flos")
    names = {name for entry in result["log_history"] for name in entry if not name.endswith(measured)}
    return {name: [entry[name] for entry in result["log_history"] if name in entry] for name in names}


def logits_of(folder: Path, base: Path | None = None) -> torch.Tensor:
    """From a saved model, or from an adapter and its base."""
    model = AutoModelForCausalLM.from_pretrained(base or folder)
    if base is not None:
        model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12)).logits


@pytest.mark.parametrize(("backend", "name"), EVERY)
def test_same_trajectory(launcher, backend, name):
    expected, result = history(launcher.run("single", name)), history(launcher.run(backend, name))
    assert set(result) == set(expected)
    names = {"loss", "grad_norm", "num_tokens", "eval_loss"}
    if name != "other_tokenizer":  # of other tokens there is no KL
        names |= {"kl_tau1", "eval_kl_tau1"}
    assert names <= set(result)
    assert len(result["loss"]) == (3 if name == "uneven" else 5)
    assert max(expected["loss"]) - min(expected["loss"]) > 0.05
    if name == "states":
        assert all(
            len(set(expected[key])) == 4 for key in ("taid_t", "kd_temperature")
        )  # the first step is as the second
    if name.startswith("seeing"):  # where a rank would have no image it gets an empty one, of some tokens
        assert result.pop("num_tokens")[-1] >= expected.pop("num_tokens")[-1]
    for key, values in expected.items():
        # In fp32, as DeepSpeed trains: what rounding makes of five steps of Adam stays below 1e-4
        assert result[key] == pytest.approx(values, rel=2e-3, abs=1e-4), key


@pytest.mark.parametrize(("backend", "name"), EVERY)
def test_same_model_is_saved(launcher, backend, name):
    launcher.run(backend, name), launcher.run("single", name)
    scenario = launcher.scenario(backend, name, SCENARIOS[name])
    base = Path(scenario["student"])
    adapter_base = base if "lora" in scenario else None
    expected = logits_of(launcher.folder / "single" / name, adapter_base)
    torch.testing.assert_close(
        logits_of(launcher.folder / backend / name, adapter_base), expected, rtol=2e-3, atol=5e-3
    )
    assert (logits_of(base) - expected).abs().max() > 0.1


@pytest.mark.parametrize(("backend", "name"), EVERY)
def test_set_up(launcher, backend, name):
    result = launcher.run(backend, name)
    assert result["wrapper"].startswith({"ddp": "DistributedDataParallel", "fsdp2": "FSDP"}.get(backend, "DeepSpeed"))
    assert result["zero_stage"] == ZERO.get(backend, {"stage": 0})["stage"]
    # Outside of the wrapper's forward no gradient would be reduced
    steps = len(history(result)["loss"]) * SCENARIOS[name].get("fields", {}).get("gradient_accumulation_steps", 1)
    calls = len(SEVERAL) if name == "routed" else 1  # of each teacher's own rows
    if "sources" in name:  # a teacher that is offloaded has none where it has no rows
        calls = result["losses"]["inside"] / steps
        assert 1 <= calls <= len(SOURCES)
    assert result["losses"] == {"inside": steps * calls, "outside": 0}
    first, second = result["parameter_sums"]
    assert first == second and len(first) > 10
    assert result["sharded"] == [[backend in SHARDING] * 2] * len(result["sharded"])
    assert result["teacher_is_untouched"]


@pytest.mark.parametrize("backend", RESUMING)
def test_completions_are_generated(launcher, backend):
    for name, share in (("on_policy", 1), ("on_policy_lora", 1), ("of_teacher", 0)):
        result = launcher.run(backend, name)
        assert history(result)["on_policy_share"] == [share] * 5
        assert all(0 < length <= 8 for lengths in result["longest_completions"] for length in lengths)
    first, second = launcher.run(backend, "stopping")["longest_completions"]
    assert sum(a != b for a, b in zip(first, second, strict=True)) >= 2, (first, second)


@pytest.mark.parametrize("backend", RESUMING)
def test_killed_and_resumed(launcher, backend):
    expected, result = launcher.run(backend, "unbroken"), launcher.run(backend, "killed")
    assert result["checkpoint"] == "checkpoint-3"
    expected, result = history(expected), history(result)
    assert expected["on_policy_share"] == [0, 1, 0, 0, 1, 0, 0, 1]
    assert expected["replay_share"] == [0, 0, 1, 1, 0, 1, 1, 0]
    for name in ("on_policy_share", "replay_share", "loss", "grad_norm", "kl_tau1", "num_tokens", "eval_loss"):
        assert result[name] == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("backend", RESUMING)
def test_the_average_of_the_student_goes_on(launcher, backend):
    expected, result = launcher.run(backend, "averaged_saved"), launcher.run(backend, "averaged_again")
    assert (result["checkpoint"], result["trained_steps"]) == ("checkpoint-2", 2)
    for name in ("loss", "kl_tau1", "grad_norm", "eval_loss"):
        assert history(result)[name] == pytest.approx(history(expected)[name], rel=1e-4), name


@pytest.mark.parametrize("backend", RESUMING)
def test_a_finished_run_stays_finished(launcher, backend):
    expected, result = launcher.run(backend, "unbroken"), launcher.run(backend, "finished")
    assert (result["checkpoint"], result["trained_steps"]) == ("checkpoint-8", 0)
    assert result["parameter_sums"] == expected["parameter_sums"]
    assert history(result)["eval_loss"] == history(expected)["eval_loss"]


@pytest.mark.parametrize("backend", RESUMING)
def test_all_pass_over_what_is_damaged(launcher, backend):
    # The optimizer of one rank in the newest checkpoint, what another has kept for replay in the one before
    expected, result = launcher.run(backend, "unbroken"), launcher.run(backend, "damaged")
    assert (result["checkpoint"], result["trained_steps"]) == ("checkpoint-3", 5)
    for name in ("on_policy_share", "loss", "kl_tau1", "eval_loss"):
        assert history(result)[name] == pytest.approx(history(expected)[name], rel=1e-5), name
    log = launcher.log(backend)
    assert log.count("Newer ones aren't whole: checkpoint-8: ") == 1 and "checkpoint-6: rollouts_1.safetensors" in log


def test_a_run_is_the_same_however_it_is_split(launcher):
    for backend in RESUMING:
        launcher.run(backend, "unbroken")
    paths = [launcher.folder / backend / "unbroken/checkpoint-3/distillation.json" for backend in RESUMING]
    first, *others = [json.loads(path.read_text()) for path in paths]
    assert first["target"]["teacher"]["identity"] and all(other["target"] == first["target"] for other in others)


def test_the_worker_refuses_one_process(launcher):
    # What `accelerate launch --cpu --num_processes 2` starts: every comparison above would hold
    launcher.results["cpu"] = {}
    assert launcher.start("cpu", {"untied": {}}) != 0
    assert "AssertionError: 1" in launcher.log("cpu") and not launcher.results["cpu"]
