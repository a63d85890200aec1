# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The command line: what it prints, what it refuses and how, and that it trains."""

import argparse
import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import ranks
import torch
from accelerate.commands.launch import _validate_launch_command
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file
from standins import save_pair

import trl_tempkd
from trl_tempkd import cli, command_line, data, launch, models
from trl_tempkd.checkpoints import find_checkpoint
from trl_tempkd.commands import distill
from trl_tempkd.commands.divergences import describe, markdown
from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.errors import UsageError


ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "recipes/tiny/distill.yaml")
PAIR = "--model_name_or_path tiny:student --teacher_model_name_or_path tiny:teacher"
DIAGNOSE = ["diagnose", *PAIR.split(), "--dataset_name", "tiny"]


def run(*args: str, module: str = "trl_tempkd") -> subprocess.CompletedProcess:
    """`trl-tempkd ARGS` as a person starts it: in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=600)


@pytest.fixture
def refused(capsys):
    """`refused(ARGS)`: the one line on stderr with which a command line is refused, at exit status 2."""

    def call(*args: str) -> str:
        try:
            status = cli.main(list(args))
        except SystemExit as stop:
            status = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert status == 2, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("trl-tempkd")
        return lines[0]

    return call


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_help_is_fast_and_lists_the_commands():
    code = "import sys; from trl_tempkd import cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    result = run("--help")
    assert result.returncode == 0
    for command in cli.COMMANDS:
        assert command.name in result.stdout
    assert "examples:" in result.stdout
    assert run().stdout == result.stdout


def test_version():
    assert run("--version").stdout.strip() == trl_tempkd.__version__


@pytest.mark.parametrize("command", [command.name for command in cli.COMMANDS])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_distill_help_groups_the_options(capsys, monkeypatch):
    def help_of(flag: str) -> str:
        monkeypatch.setattr(sys, "argv", ["trl-tempkd", "distill", flag])
        with pytest.raises(SystemExit):
            cli.main(["distill", flag])
        return capsys.readouterr().out

    short, long = help_of("--help"), help_of("--help_all")
    assert short.index("divergence and temperature:") < short.index("\n  --kd_temperature") < short.index("data:")
    options = short.partition("\noptions:")[2].partition("\ndivergence and")[0]  # those of no group
    assert {word for word in options.split() if word.startswith("--")} <= {"--help", "--help_all", "--import"}
    assert "--weight_decay" not in short
    assert "--weight_decay" in long
    assert "--kd-temperature" not in long


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["distil"], "unknown command 'distil'; did you mean 'distill'?"),
        (["x"], "choose from distill, cache, student, generate, evaluate, diagnose, sweep, tune, report, divergences"),
        (["divergences", "--format", "html"], "invalid choice: 'html'"),
        (["diagnose"], "no data set: give --dataset_name"),
        (["diagnose", "--dataset_name", "tiny"], "no model: give --model_name_or_path"),
        ([*DIAGNOSE, "--temperature", "2"], "unknown flag --temperature; did you mean '--temperatures'?"),
        ([*DIAGNOSE, "--temperatures", "1", "hot"], "invalid float value: 'hot'"),
        ([*DIAGNOSE, "--temperatures", "1,2"], "Give several with spaces between them: --temperatures 1 2"),
        (["student", "--from", "tiny:teacher", "--layers", "[0,2]", "--output_dir", "x"], "them: --layers 0 2"),
        ([*DIAGNOSE, "--temperatures", "0"], "must be positive and finite, got [0.0]"),
        ([*DIAGNOSE, "--objectives", "kl"], "`objectives` must be one of forward_kl, "),
        ([*DIAGNOSE, "--objective_kwargs", '{"jsd": {"b": 1}}', "--objectives", "jsd"], "`objective_kwargs` has 'b'"),
        ([*DIAGNOSE, "--objective_kwargs", '{"jds": {}}'], "must have objectives for its keys"),
        ([*DIAGNOSE, "--objective_kwargs", "{bad"], "--objective_kwargs: '{bad' is not valid JSON"),
        ([*DIAGNOSE, "--modes", "student"], "invalid choice: 'student'"),
        ([*DIAGNOSE, "--num_rows", "0"], "`num_rows` must be at least 1, got 0"),
        ([*DIAGNOSE, "--output", "table.json"], "`output` must end with .csv"),
        (
            [*DIAGNOSE, "--dataset_train_split", "nope"],
            "the data set has no split 'nope'; it has: general, train, test",
        ),
        ([*DIAGNOSE, "--teacher_model_name_or_path", "tiny:x"], "tiny:teacher"),
        (["distill", "--use_cpu"], "no data (--dataset_name)"),
        (
            ["distill", "--use_cpu", "--dataset_name", "tiny"],
            "no student (--model_name_or_path), no teacher (--teacher_",
        ),
        (["distill", "--config", TINY, "--dataset_name", "./nope.jsonl"], "no such data set: ./nope.jsonl"),
        (
            ["distill", "--config", TINY, "--model_name_or_path", "./nope"],
            "no such model (--model_name_or_path): ./nope",
        ),
        (["distill", "--config", TINY, "--resume_from_checkpoint", "nope"], "no such checkpoint: nope"),
        (["distill", "--config", TINY, "--teacher_model_name_or_path", "tiny:x"], "tiny:teacher"),
        (["distill", "--config"], "expected a value after --config"),
        (["distill", "--config", "nope.yaml"], "cannot read nope.yaml: No such file"),
        (["distill", "--config", TINY, "--kd_temprature", "4"], "did you mean '--kd_temperature'?"),
        (["distill", "--config", TINY, "--kd_temp", "4"], "unknown flag --kd_temp"),
        (["distill", "--config", TINY, "--num_procesess", "4"], "did you mean '--num_processes'?"),
        (["distill", "--config", TINY, "--kd_temperature", "hot"], "invalid float value: 'hot'"),
        (["distill", "--config", TINY, "--kd_temperature", "-1"], "must be positive and finite, got -1.0"),
        (["distill", "--config", TINY, "--divergence", "kl"], "forward_kl"),
        (
            ["distill", "--config", TINY, "--divergence_kwargs", "{bad"],
            "--divergence_kwargs: '{bad' is not valid JSON",
        ),
        (["distill", "--config", TINY, "--divergence_kwargs={bad"], "--divergence_kwargs: '{bad' is not valid JSON"),
        (["distill", "--config", TINY, "--model_init_kwargs", "x"], "expected JSON such as"),
        (["distill", "--config", TINY, "--accelerate_config", "zero9"], "neither a file nor one of single_gpu"),
        (["distill", "--config", TINY, "--accelerate_config"], "expected a value after --accelerate_config"),
        (["distill", "--config", TINY, "--multi_gpu", "--num_processes", "1"], "at least 2 processes"),
        (["distill", "--config", TINY, "--num_processes", "two"], "--num_processes: expected int, got 'two'"),
        (["distill", "--config", TINY, "--num_processes=2.5"], "--num_processes: expected int, got '2.5'"),
        (
            ["distill", "--config", TINY, "--mixed_precision", "bf61"],
            "expected one of no, fp16, bf16, fp8, got 'bf61'",
        ),
        (["distill", "--config", TINY, "--num_processes"], "expected a value after --num_processes"),
        (["distill", "--config", TINY, "--num_processes", "--multi_gpu"], "expected a value after --num_processes"),
        (["distill", "--config", TINY, "stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_on_the_command_line(refused, args, message):
    assert message in refused(*args)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["diagnose", "--dataset_train_split", "nope"], "the data set has no split 'nope'; it has: train"),
        (["evaluate", "--max_new_tokens", "64"], "`max_new_tokens` must leave room for a prompt in the 64 positions"),
    ],
    ids=["after the data is read", "after the models are loaded"],
)
def test_a_mistake_is_one_line_in_a_pipe(command, message, tmp_path, make_model, tokenizer, prompt_dataset):
    """On a machine that has read nothing before, where the libraries would draw bars."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    prompt_dataset.to_json(tmp_path / "rows.jsonl")
    names = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": tmp_path / "rows.jsonl",
    }
    options = [part for name, value in names.items() for part in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "xdg"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trl_tempkd", *command, *options],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd_temprature: 3", "unknown key 'kd_temprature' in"),
        ("kd_temprature: 3", "did you mean 'kd_temperature'?"),
        ("num_procesess: 3", "did you mean 'num_processes'?"),
        ("max_steps: 2.5", "expected int, got 2.5"),
        ("kd_temperature: [1]", "expected float, got [1]"),
        ("use_cpu: maybe", "expected bool, got 'maybe'"),
        ("kd_temperature_rescale: tau3", "expected one of none, tau, tau2, got 'tau3'"),
        ("use_cpu: true\nkd_ratio: 2", "`kd_ratio` must be in [0, 1], got 2"),
        ("- a list", "must contain a YAML mapping"),
        ("a: [1\nb", "is not valid YAML"),
        ("", "must contain a YAML mapping"),
    ],
)
def test_mistakes_in_a_recipe(refused, tmp_path, text, message):
    assert message in refused("distill", "--config", recipe(tmp_path, text))


def test_a_launcher_key_in_a_recipe_reaches_the_launcher(tmp_path):
    path = recipe(tmp_path, "num_processes: 2\nmulti_gpu: true\ncpu: false\neval_strategy: no\nuse_cpu: true\n")
    args = ["--config", path, "--main_process_port", "29511", "--output_dir", "29511"]
    (_, training_args, _, _), for_launch, for_script = distill.make_parser().parse(args)
    assert for_launch == ["--num_processes", "2", "--multi_gpu", "--main_process_port", "29511"]
    assert for_script == ["--config", path, "--output_dir", "29511"]
    assert training_args.eval_strategy == "no"


def test_a_launcher_flag_is_unknown_to_a_launched_process(tmp_path, capsys):
    with pytest.raises(SystemExit):
        distill.make_parser("p").parse(["--num_processes", "2"], launched=True)
    assert capsys.readouterr().err.startswith("p: error: unknown flag --num_processes")


@pytest.fixture
def launched(monkeypatch):
    """`launched(FLAGS)`: what `accelerate launch` would act on, the config's values filled in as it does itself."""
    seen = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)

    def call(flags: str, use_cpu: bool = False) -> argparse.Namespace:
        assert launch.launch("module", flags.split(), ["--seed", "1"], use_cpu) == 0
        args, _, _ = _validate_launch_command(seen.pop())
        assert (args.module, args.training_script, args.training_script_args) == (True, "module", ["--seed", "1"])
        return args

    return call


def test_every_accelerate_config_has_a_name():
    assert {path.stem for path in launch.FOLDER.iterdir()} == set(launch.ACCELERATE_CONFIGS)
    assert ", ".join(launch.ACCELERATE_CONFIGS) in distill.DESCRIPTION


@pytest.mark.parametrize("name", launch.ACCELERATE_CONFIGS)
def test_accelerate_configs(name, launched):
    args = launched(f"--accelerate_config {name}")
    assert Path(args.config_file) == launch.FOLDER / f"{name}.yaml"
    assert Path(args.config_file).read_text(encoding="utf-8").startswith("# ")
    assert args.num_processes == (1 if name == "single_gpu" else 4)  # as many as there are GPUs
    assert args.mixed_precision == "no"  # `bf16` of the recipe decides
    assert (args.num_machines, args.machine_rank) == (1, 0)
    assert args.use_deepspeed == name.startswith("zero")
    assert args.use_fsdp == (name == "fsdp2")
    assert args.multi_gpu == (name == "multi_gpu")
    if args.use_deepspeed:
        assert args.zero_stage == int(name[-1])
        assert args.deepspeed_multinode_launcher == "standard"
        assert args.gradient_accumulation_steps is None  # the recipe's
    if name == "zero3":
        assert args.zero3_init_flag is True
        assert args.zero3_save_16bit_model is True
    if args.use_fsdp:
        assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
        assert args.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
        assert args.fsdp_reshard_after_forward is True


def test_flags_win_over_the_accelerate_config(launched):
    args = launched("--accelerate_config zero3 --num_processes 2 --offload_optimizer_device cpu")
    assert (args.num_processes, args.offload_optimizer_device) == (2, "cpu")
    assert (args.use_deepspeed, args.zero_stage) == (True, 3)
    args = launched("--accelerate_config multi_gpu --gpu_ids 0,2")
    assert (args.num_processes, args.gpu_ids) == (2, "0,2")


def test_the_last_accelerate_config_wins(launched, tmp_path):
    path = recipe(tmp_path, "accelerate_config: zero2\nuse_cpu: true\n")
    _, for_launch, _ = distill.make_parser().parse(["--config", path, "--accelerate_config", "zero3"])
    assert launched(" ".join(for_launch)).zero_stage == 3


@pytest.mark.parametrize("name", ["multi_gpu", "zero3", "fsdp2"])
def test_more_than_one_machine(name, launched):
    flags = "--num_machines 2 --machine_rank 1 --main_process_ip node0 --main_process_port 29511"
    args = launched(f"--accelerate_config {name} {flags}")
    assert args.num_processes == 8  # of both machines together
    assert (args.num_machines, args.machine_rank) == (2, 1)
    assert (args.main_process_ip, args.main_process_port) == ("node0", 29511)
    args.deepspeed_fields_from_accelerate_config = ""  # launch_command sets it
    (prepare_deepspeed_cmd_env if args.use_deepspeed else prepare_multi_gpu_env)(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 1)
    assert args.rdzv_endpoint == "node0:29511"
    assert launched(f"--accelerate_config {name} {flags} --num_processes 6").num_processes == 6
    with pytest.raises(UsageError, match="--num_machines 2 needs --main_process_ip"):
        launched(f"--accelerate_config {name} --num_machines 2")


def test_an_accelerate_config_of_ones_own(launched, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n", encoding="utf-8")
    assert launched(f"--accelerate_config {path}").num_processes == 3
    assert launched(f"--config_file {path} --num_processes 2").num_processes == 2
    path.write_text("distributed_type: MULTI_GPU\n", encoding="utf-8")
    assert launched(f"--accelerate_config {path}").num_processes == 4


def test_no_more_processes_than_the_machine_has_room_for(launched, tmp_path, monkeypatch):
    several = "--num_machines 2 --machine_rank 1 --main_process_ip node0 --main_process_port 29511"
    (tmp_path / "mine.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 6\n", encoding="utf-8")
    for flags, message in (
        ("multi_gpu --num_processes 5", "--num_processes 5, but this machine has 4 GPUs: give at most 4"),
        ("zero3 --num_processes 64", "--num_processes 64, but this machine has 4 GPUs"),
        ("multi_gpu --gpu_ids 0,2 --num_processes 3", "--num_processes 3, but this machine has 2 GPUs"),
        ("multi_gpu --gpu_ids 0,1,2,3,4 --num_processes 5", "--num_processes 5, but this machine has 4 GPUs"),
        (f"{tmp_path / 'mine.yaml'}", "--num_processes 6, but this machine has 4 GPUs"),
        (f"fsdp2 {several} --num_processes 9", "each of 2 machines .* this one has 4 GPUs: give at most 8"),
    ):
        with pytest.raises(UsageError, match=message):
            launched(f"--accelerate_config {flags}")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    two = "--accelerate_config multi_gpu --num_processes 2"
    assert launched(two, use_cpu=True).num_processes == 2
    for gpus in (0, 4):
        monkeypatch.setattr("torch.accelerator.device_count", lambda gpus=gpus: gpus)
        with pytest.raises(UsageError, match="--num_processes 3, but this machine has 2 CPU cores: give at most 2"):
            launched("--accelerate_config multi_gpu --num_processes 3", use_cpu=True)


def test_no_more_processes_on_a_cpu_than_cores(refused, monkeypatch):
    """The command line knows from the options that it is about a CPU."""
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 100)
    many = f"--accelerate_config multi_gpu --num_processes {os.cpu_count() + 1}".split()
    assert f"{os.cpu_count()} CPU cores" in refused("distill", "--config", TINY, "--use_cpu", *many)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--accelerate_config fsdp1", "use fsdp2"),
        ("--accelerate_config zero3", "no GPU found: say with --num_processes how many"),
        ("--num_processes 2", "--num_processes 2, but accelerate would start a single process"),
        ("--num_processes 2 --cpu", "in place of --cpu"),
        ("--accelerate_config single_gpu --num_processes 2", "would start a single process"),
        ("--config_file nope.yaml", "`nope.yaml` does not exist"),
    ],
)
def test_mistakes_of_launching(refused, monkeypatch, flags, message):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    assert message in refused("distill", "--config", TINY, *flags.split())


def test_processes_that_would_train_alone(small_run, tmp_path, monkeypatch):
    """Without a GPU and without --use_cpu each process would be a training of its own, into the same folder."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    args = [arg for arg in small_run if arg != "--use_cpu"]
    status, said = ranks.command("distill", args, tmp_path / "run")
    assert status == 2
    assert said.count("2 processes were started, but each would train alone") == 1


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2"])
def test_two_processes_train_together(name, small_run, tmp_path, prompt_dataset):
    if name == "multi_gpu":  # the whole way
        result = run(
            "distill", *small_run, *f"--accelerate_config {name} --num_processes 2 --main_process_port 0".split()
        )
        status, said = result.returncode, result.stderr
    else:
        status, said = ranks.command("distill", small_run, tmp_path / "run", config=name)
    assert status == 0, said
    assert ("FSDP2 shards on GPUs only" in said) == (name == "fsdp2")
    log = json.loads((tmp_path / "output/trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    rows = 2 * 2  # per_device_train_batch_size times processes
    assert log[0]["epoch"] == pytest.approx(1 / math.ceil(len(prompt_dataset) / rows))


def test_the_wheel_has_the_accelerate_configs():
    """hatchling packs what lies in the package's folder, unless git ignores it."""
    included = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert included["targets"]["wheel"] == {"packages": ["trl_tempkd"]}
    names = [f"{name}.yaml" for name in launch.ACCELERATE_CONFIGS]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=launch.FOLDER, capture_output=True, text=True)
    assert ignored.stdout == ""


def test_load_data_reads_files_and_folders(tmp_path, prompt_dataset):
    prompt_dataset.to_json(tmp_path / "rows.jsonl")
    prompt_dataset.to_csv(tmp_path / "rows.csv")
    prompt_dataset.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.txt").write_text("a line\nanother\n", encoding="utf-8")
    prompt_dataset.save_to_disk(tmp_path / "dataset")
    DatasetDict(train=prompt_dataset, test=prompt_dataset).save_to_disk(tmp_path / "splits")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet", "dataset", "splits"):
        train = load(tmp_path / name)["train"]
        assert train[0] == prompt_dataset[0]
        assert len(train) == len(prompt_dataset)
    assert load(tmp_path / "rows.txt")["train"]["text"][:] == ["a line", "another"]
    assert set(load(tmp_path / "splits")) == {"train", "test"}


def load(name: object, **kwargs):
    from trl import DatasetMixtureConfig, ScriptArguments

    return data.load_data(ScriptArguments(dataset_name=str(name), **kwargs), DatasetMixtureConfig())


def test_load_data_reads_a_mixture(tmp_path, prompt_dataset):
    from trl import DatasetMixtureConfig, ScriptArguments

    prompt_dataset.to_json(tmp_path / "rows.jsonl")
    part = {"path": "json", "data_files": str(tmp_path / "rows.jsonl")}
    mixture = DatasetMixtureConfig(datasets=[dict(part), dict(part)])
    assert len(data.load_data(ScriptArguments(), mixture)["train"]) == 2 * len(prompt_dataset)
    with pytest.raises(UsageError, match="keep one of them"):
        data.load_data(ScriptArguments(dataset_name="x"), mixture)


def test_missing_data_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    (tmp_path / "rows.xlsx").write_text("", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"did you mean 'rows\.jsonl'"):
        load(tmp_path / "row.jsonl")
    with pytest.raises(UsageError, match="expected a file of type"):
        load(tmp_path / "rows.xlsx")
    with pytest.raises(UsageError, match="cannot load the data set"):
        load(tmp_path / "broken.jsonl")
    with pytest.raises(UsageError, match="cannot load the data set owner/name"):
        load("owner/name")  # the tests run with the Hub switched off
    dataset = load(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match=r"no split 'test'; it has: train \(--dataset_test_split"):
        data.select_split(dataset, "test", "dataset_test_split")


def test_missing_models_are_named(tmp_path):
    with pytest.raises(UsageError, match="no model: give --model_name_or_path"):
        models.resolve_model(None, "model_name_or_path")
    with pytest.raises(UsageError, match="no such model"):
        models.resolve_model(str(tmp_path / "nope"), "model_name_or_path")
    with pytest.raises(UsageError, match="cannot load the model"):
        models.check_model(str(tmp_path), "main", False, "model_name_or_path")
    assert models.resolve_model("Qwen/Qwen3-0.6B", "model_name_or_path") == "Qwen/Qwen3-0.6B"
    assert Path(models.resolve_model("tiny:student", "model_name_or_path")).parts[-2:] == ("models", "student")


def small_checkpoint(folder, step=1):
    folder.mkdir(exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")


@pytest.mark.parametrize("resume", ["true", "True", "auto", True])
def test_resuming_takes_the_newest_whole_checkpoint(tmp_path, resume):
    assert find_checkpoint(resume, str(tmp_path))[0] is None
    for step in (5, 100, 20):
        small_checkpoint(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-100/trainer_state.json").unlink()  # stopped while it was written, by an earlier version
    assert find_checkpoint(resume, str(tmp_path))[0] == str(tmp_path / "checkpoint-20")


def test_resuming_from_a_named_checkpoint(tmp_path):
    assert find_checkpoint(None, str(tmp_path))[0] is None
    assert find_checkpoint("false", str(tmp_path))[0] is None
    small_checkpoint(tmp_path)
    assert find_checkpoint(str(tmp_path), "elsewhere")[0] == str(tmp_path)
    with pytest.raises(UsageError, match="no such checkpoint"):
        find_checkpoint(str(tmp_path / "nope"), str(tmp_path))


@pytest.fixture
def small_run(tmp_path, make_model, tokenizer, prompt_dataset) -> list[str]:
    """The arguments of a run of two steps on a random pair."""
    student, teacher = save_pair(tmp_path, make_model, tokenizer)
    rows = Dataset.from_list(prompt_dataset.to_list())
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "output",
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "logging_steps": 1,
        "report_to": "none",
    }
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return [*flags, "--use_cpu", "--bf16", "false", "--disable_tqdm", "true"]


def test_distill_trains_through_accelerate(small_run, tmp_path):
    """
    The whole way: command line, `accelerate launch`, training, saving, evaluation. Then the script of the examples
    goes on from the same checkpoint.
    """
    args = [*small_run, "--do_eval", "--resume_from_checkpoint", "auto", "--kd_temperature", "4"]
    args += ["--divergence", "reverse_kl"]
    first = run("distill", *args, "--num_processes", "1")
    assert first.returncode == 0, first.stderr
    assert "starting from the beginning" in first.stdout
    output = tmp_path / "output"
    assert {"model.safetensors", "tokenizer.json", "eval_results.json"} <= {path.name for path in output.iterdir()}
    assert "eval_loss" in json.loads((output / "eval_results.json").read_text(encoding="utf-8"))

    script = ["--num_processes", "1", "examples/distill.py", *args, "--max_steps", "3"]
    second = run(*script, module="accelerate.commands.launch")
    assert second.returncode == 0, second.stderr
    assert "starting from the beginning" not in second.stdout
    log = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]


def test_a_mistake_found_by_the_launched_processes_is_one_line_too(small_run):
    result = run("distill", *small_run, "--dataset_train_split", "nope", "--multi_gpu", "--num_processes", "2")
    assert result.returncode == 2
    assert result.stderr.count("the data set has no split 'nope'; it has: train, test") == 1
    assert "Traceback" not in result.stderr


def test_a_mistake_that_another_process_alone_finds_is_said_by_it(monkeypatch, capsys):
    """Its rows of a sharded stream, say. Where the first one finds it too, this one is ended while it waits."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command_line.complain("prog", "a row\nis bad") == 2
    assert capsys.readouterr().err == "prog: error: a row is bad\n" * 2
    assert waited == [command_line._SECONDS]


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("trl_tempkd.commands.divergences.markdown", lambda rows: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["divergences", "--format", "markdown"])


def test_the_table_shows_every_divergence(capsys):
    assert cli.main(["divergences"]) == 0
    shown = capsys.readouterr().out
    for name in DIVERGENCES:
        assert name in shown


def test_the_table_is_read_off_the_functions():
    def spam(log_p, log_q, *, egg: float = 0.5):
        """
        One | line.

        Source: a book.
        """

    row = describe("spam", spam)
    assert (row.name, row.definition, row.parameters, row.source) == ("spam", "One | line.", "egg=0.5", "a book.")
    assert "| `spam` | One \\| line. | `egg=0.5` | a book. |" in markdown([row])


def test_every_divergence_has_a_definition_and_a_source():
    for name, function in DIVERGENCES.items():
        row = describe(name, function)
        assert row.definition, name
        assert row.source, name


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["sweep", "--confg", "x"], "unknown flag --confg; did you mean '--config'?"),
        (["tune", "--config", "x", "--n_trials", "3"], "unknown flag --n_trials"),
        (["tune", "--config", "x", "--trails=3"], "unknown flag --trails"),
        (["report", "x", "--otput", "y"], "unknown flag --otput; did you mean '--output'?"),
        (["student", "--form", "x"], "unknown flag --form; did you mean '--from'?"),
        (["divergences", "--fromat", "table"], "unknown flag --fromat; did you mean '--format'?"),
    ],
)
def test_unknown_flags_name_the_closest_in_every_command(args, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(args)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("options", [[], ["--use_cpu", "--bf16", "false"]])
def test_all_that_is_missing_is_said_at_once(options, capsys, monkeypatch):
    """Also where this machine hasn't got what an option is by default."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["distill", *options])
    (line,) = capsys.readouterr().err.splitlines()
    for flag in ("--model_name_or_path", "--teacher_model_name_or_path", "--teacher_server_url", "--dataset_name"):
        assert flag in line
