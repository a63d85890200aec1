# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
What survives kill -9, what two at once do to each other, and whether long runs and large inputs stay within bounds.

    python benchmarks/reliability.py                               # everything
    python benchmarks/reliability.py kills --kinds full lora --count 10
    python benchmarks/reliability.py pairs rank soak rows long vocabulary --output reliability.json

kills       A command is killed with SIGKILL, with all its processes, `--count` times at random moments, and started
            again each time, until it is through. What it leaves is compared with that of a run that nobody has
            disturbed: weights bit by bit, every number in the log, results, pages.
pairs       The same command twice at once, on one folder.
rank        One of two processes that train together is killed.
soak        Resident memory and open files of a training over 500 steps, off-policy and on-policy.
rows        50,000 short rows: time to prepare them and to train on all of them, and the peak of the memory.
long        One row of 20,000 tokens.
vocabulary  A step with a vocabulary of 262,144.

Models are random and tiny, so that what is measured is everything else. The commands are those that people type. Times
of trainings are those of the processor, of one thread, which a busy machine doesn't change.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil


TRAININGS = {
    "full": {},
    "lora": {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lmbda": 0.5},
    # The share of the student's own text follows the evaluation's loss
    "adaptive": {
        "lmbda": 0.3,
        "lmbda_schedule": "adaptive",
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 7,
    },
}
KINDS = [*TRAININGS, "cache", "sweep", "tune", "report"]
PARTS = ["kills", "pairs", "rank", "soak", "rows", "long", "vocabulary"]
TIMES = ("runtime", "_per_second")  # of a log's numbers, those that measure time
TWO = "--accelerate_config multi_gpu --num_processes 2 --main_process_port 0".split()
SECONDS = 900  # after which a command counts as hanging


class Place:
    """
    A folder with models, rows and recipes.

    Args:
        folder (`pathlib.Path`):
            The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.models()
        from datasets import DatasetDict

        from trl_tempkd.tiny import load_tiny_dataset

        rows = load_tiny_dataset()
        rows["train"].take(2000).to_json(folder / "many.jsonl")
        DatasetDict(train=rows["train"].take(96), test=rows["test"].take(16)).save_to_disk(folder / "data")
        self.base = {
            "model_name_or_path": str(folder / "student"),
            "teacher_model_name_or_path": str(folder / "teacher"),
            "dataset_name": str(folder / "data"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "logging_steps": 1,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 2,
            "max_length": 64,
            "max_new_tokens": 8,
            "disable_tqdm": True,
        }

    def models(self, where: str = "", vocabulary: int | None = None, positions: int = 128) -> None:
        """Write a student and a teacher with the tokenizer of the built-in pair."""
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        from trl_tempkd.tiny import tiny_model_path

        tokenizer = AutoTokenizer.from_pretrained(tiny_model_path("student"))
        for seed, name in enumerate(("student", "teacher")):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=vocabulary or len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=positions,
                bos_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            LlamaForCausalLM(config).save_pretrained(self.folder / where / name)
            tokenizer.save_pretrained(self.folder / where / name)

    def recipe(self, name: str, options: dict[str, Any]) -> list[str]:
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(options, indent=1), encoding="utf-8")  # JSON is YAML
        return ["--config", str(path)]

    def start(self, *command: str) -> "Command":
        return Command([*command], self.folder / "log")

    def run(self, *command: str) -> None:
        started = self.start(*command)
        if started.wait() != 0:
            sys.exit(f"{' '.join(command)} has failed:\n{started.output()[-4000:]}")


class Command:
    """A command that runs, and its processes."""

    def __init__(self, command: list[str], log: Path):
        self.file = log.with_name(f"{log.name}-{random.randrange(10**9)}")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self.file.open("w") as out:
            line = [sys.executable, "-m", "trl_tempkd", *command]
            self.process = subprocess.Popen(line, env=env, stdout=out, stderr=out, start_new_session=True)

    def output(self) -> str:
        return self.file.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def below(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait_for(self, ready: Callable[[], bool]) -> bool:
        """Whether it is so before the command ends."""
        until = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < until:
            if ready():
                return True
            time.sleep(0.05)
        return False

    def kill(self) -> float:
        """Kill its group, as a scheduler does. Returns the seconds until the last of its processes is gone."""
        below, begin = self.below(), time.monotonic()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return gone_after(below, begin)


def gone_after(below: list[psutil.Process], begin: float) -> float:
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in below):
        if time.monotonic() - begin > 60:
            sys.exit(f"still there: {below}")
        time.sleep(0.02)
    return time.monotonic() - begin


# What a command leaves, to be compared


def of_training(folder: Path) -> dict[str, Any]:
    """Hashes of the weights, and every number of the log that doesn't measure time."""
    weights = {path.name: hash_of(path) for path in folder.glob("*model*.safetensors")}
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    log = [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in state["log_history"]]
    # What a run says at its end is about the part since its last start
    log = [entry for entry in log if "train_loss" not in entry]
    return {"weights": weights, "log": log}


def of_cache(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): hash_of(path) for path in sorted(folder.rglob("*.arrow"))}


def of_sweep(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = {key: cell[key] for key in ("hashes", "scores", "means", "completions")}
    return found


def of_tune(folder: Path) -> dict[str, Any]:
    trials = json.loads((folder / "trials.json").read_text(encoding="utf-8"))["trials"]
    return {"trials": [(trial["parameters"], trial["score"]) for trial in trials if trial["state"] == "complete"]}


def of_report(folder: Path) -> dict[str, Any]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return {"whole": text.rstrip().endswith("</html>")}


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def strays(folder: Path) -> list[str]:
    """Files that no finished command leaves."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".tmp", ".part"))]


# The parts


def command_of(place: Place, kind: str, out: Path) -> tuple[list[str], Callable[[Path], dict[str, Any]]]:
    """The command of a kind that writes to a folder, and what to compare of it."""
    if kind in TRAININGS:
        steps = {"max_steps": 60, "save_steps": 2, "save_total_limit": 3, "eval_steps": 7}
        recipe = place.recipe(kind, {**place.base, **TRAININGS[kind], **steps})
        return ["distill", *recipe, "--output_dir", str(out), "--resume_from_checkpoint", "auto"], of_training
    if kind == "cache":
        options = {**place.base, "dataset_name": str(place.folder / "many.jsonl"), "per_device_eval_batch_size": 2}
        return ["cache", *place.recipe(kind, options), "--mode", "topk", "--k", "16", "--output", str(out)], of_cache
    base = {**place.base, "max_steps": 12, "save_strategy": "no"}
    if kind == "tune":
        recipe = {
            "base": base,
            "space": {"divergence": ["forward_kl", "jsd"], "tau": {"low": 1.0, "high": 4.0}},
            "rows": 16,
            "trials": 8,
            "results_dir": str(out),
        }
        return ["tune", *place.recipe(kind, recipe), "--results_dir", str(out)], of_tune
    recipe = {
        "base": base,
        "grid": {"divergence": ["forward_kl", "jsd"], "tau": [1.0, 2.0], "seed": [1, 2]},
        "evaluation": {"rows": 8, "seeds": [10], "max_new_tokens": 8, "diagnostics_rows": 4},
        "results_dir": str(out),
    }
    sweep = ["sweep", *place.recipe("sweep", recipe), "--results_dir", str(out), "--workers", "2"]
    return (sweep, of_sweep) if kind == "sweep" else (["report", str(out)], of_report)


def kills(place: Place, kinds: list[str], count: int, rng: random.Random) -> list[dict[str, Any]]:
    records = []
    for kind in kinds:
        calm, out = place.folder / f"{kind}-calm", place.folder / f"{kind}-killed"
        if kind == "report":
            place.run(*command_of(place, "sweep", calm)[0])
            shutil.copytree(calm, out)
        command, read = command_of(place, kind, calm)
        begin = time.monotonic()
        place.run(*command)
        seconds = time.monotonic() - begin
        command, _ = command_of(place, kind, out)
        done, training, slowest, torn = 0, 0, 0.0, 0
        while done < count:
            running = place.start(*command)
            time.sleep(rng.uniform(0, seconds))
            if running.process.poll() is None:
                slowest = max(slowest, running.kill())
                done += 1
                training += "'loss'" in running.output()
            elif running.process.returncode:
                sys.exit(f"{kind} doesn't go on after {done} kills:\n{running.output()[-4000:]}")
            elif kind != "report":  # it was through already
                shutil.rmtree(out)
            if kind == "report" and (out / "report.html").exists():
                torn += not of_report(out)["whole"]
        place.run(*command)
        records.append(
            {
                "part": f"kills: {kind}",
                "kills": done,
                **({"of them after the first step": training} if kind in TRAININGS else {}),
                "as undisturbed": read(out) == read(calm) and not torn,
                "stray files": len(strays(out)),
                "seconds until all processes were gone, at most": round(slowest, 2),
            }
        )
        show(records[-1])
    return records


def pairs(place: Place) -> list[dict[str, Any]]:
    """The second is refused, or both share the work."""
    records = []
    for kind in ("full", "cache", "sweep", "tune"):
        calm, out = place.folder / f"{kind}-calm", place.folder / f"{kind}-pair"
        command, read = command_of(place, kind, calm)
        if not calm.exists():
            place.run(*command)
        command, _ = command_of(place, kind, out)
        both = [place.start(*command) for _ in range(2)]
        statuses = [each.wait() for each in both]
        lines = [each.output().strip().splitlines()[-1] for each in both if each.process.returncode]
        if kind == "tune":  # two at a time draw others than one after the other
            same = len(of_tune(out)["trials"]) == len(of_tune(calm)["trials"])
        else:
            same = read(out) == read(calm)
        records.append(
            {
                "part": f"pairs: {kind}",
                "statuses": sorted(statuses),
                "as one alone": same,
                "stray files": len(strays(out)),
                "said": lines,
            }
        )
        show(records[-1])
    return records


def rank(place: Place) -> list[dict[str, Any]]:
    options = {**place.base, "max_steps": 40, "save_steps": 2, "save_total_limit": 3}
    command = ["distill", *place.recipe("rank", options), *TWO, "--resume_from_checkpoint", "auto", "--output_dir"]
    calm, out = place.folder / "rank-calm", place.folder / "rank-killed"
    place.run(*command, str(calm))
    records = []
    for number in (1, 0):
        running = place.start(*command, str(out))
        running.wait_for(partial(is_past, running, out, set(out.glob("checkpoint-*"))))
        below = running.below()
        ranks = [process for process in below if "trl_tempkd.commands.rank" in process.cmdline()]
        begin = time.monotonic()
        ranks[number].kill()
        status = running.wait()
        records.append(
            {
                "part": f"rank {number} killed",
                "status": status,
                "seconds until all processes were gone": round(gone_after(below, begin), 2),
                "said": [running.output().strip().splitlines()[-1]],
            }
        )
        show(records[-1])
    place.run(*command, str(out))
    records.append({"part": "rank: then started again", "as undisturbed": of_training(out) == of_training(calm)})
    show(records[-1])
    return records


def is_past(running: Command, out: Path, before: set[Path]) -> bool:
    """Whether it trains, and has written a checkpoint."""
    return "'loss'" in running.output() and bool(set(out.glob("checkpoint-*")) - before)


def measured(place: Place, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train in a process of its own that looks at itself. Returns what it has seen."""
    recipe = place.recipe(part.replace(" ", "-"), {**place.base, "save_strategy": "no", **options})
    recipe += ["--output_dir", str(place.folder / f"{part}-out")]
    line = [sys.executable, __file__, "inside", *recipe]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(line, env=env, capture_output=True, text=True, timeout=3 * SECONDS)
    if result.returncode:
        sys.exit(f"{part} has failed:\n{result.stderr[-4000:]}")
    return {"part": part, **json.loads(result.stdout.splitlines()[-1])}


def inside(options: list[str]) -> None:
    import resource

    from transformers import TrainerCallback

    from trl_tempkd.commands import distill

    me, seen, begun = psutil.Process(), {}, time.process_time()

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.began = time.process_time()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (1, 50, 100, 250, state.max_steps):
                seen[state.global_step] = (me.memory_info().rss / 2**20, me.num_fds())
            if state.global_step == state.max_steps:
                self.ended = time.process_time()

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.tokens = (logs or {}).get("num_tokens", getattr(self, "tokens", 0))

    watch = Watch()
    values, _, _ = distill.make_parser().parse(options, launched=True)
    before = me.memory_info().rss / 2**20
    distill.main(*values, callbacks=[watch])
    unit = 2**10 if sys.platform == "linux" else 2**20
    print()
    print(
        json.dumps(
            {
                "steps": max(seen),
                "tokens": watch.tokens,
                "seconds to prepare": round(watch.began - begun, 1),
                "seconds a step": round((watch.ended - watch.began) / max(seen), 3),
                "MiB before": round(before),
                "MiB at its peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
                "MiB after steps": {step: round(rss) for step, (rss, _) in seen.items()},
                "open files after steps": {step: files for step, (_, files) in seen.items()},
            }
        )
    )


def soak(place: Place) -> list[dict[str, Any]]:
    """With evaluations and checkpoints on the way."""
    often = {"max_steps": 500, "do_eval": True, "eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps"}
    often |= {"save_steps": 50, "save_total_limit": 2, "logging_steps": 10, "dataloader_num_workers": 1}
    kinds = {
        "off-policy": {},
        "on-policy": {"lmbda": 1.0, "replay_size": 32, "replay_ratio": 0.5},
        "taid and token_adaptive": {"kd_temperature_rule": "token_adaptive", "divergence": "taid"},
    }
    return [shown(measured(place, f"soak {name}", {**often, **options})) for name, options in kinds.items()]


def rows(place: Place) -> list[dict[str, Any]]:
    path = place.folder / "short.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(50_000):
            file.write(json.dumps({"prompt": f"What is {i}?", "completion": f" {i} is {i % 7}."}) + "\n")
    options = {"dataset_name": str(path), "per_device_train_batch_size": 256, "num_train_epochs": 1, "max_steps": -1}
    return [shown(measured(place, "50,000 short rows", {**options, "logging_steps": 50}))]


def long(place: Place) -> list[dict[str, Any]]:
    place.models("long", vocabulary=32_000, positions=20_000)
    (place.folder / "long.jsonl").write_text(json.dumps({"text": "one row of many words " * 8000}), encoding="utf-8")
    options = {
        "model_name_or_path": str(place.folder / "long" / "student"),
        "teacher_model_name_or_path": str(place.folder / "long" / "teacher"),
        "dataset_name": str(place.folder / "long.jsonl"),
        "max_length": 20_000,
        "per_device_train_batch_size": 1,
        "max_steps": 3,
    }
    return [shown(measured(place, "a row of 20,000 tokens, V = 32,000", options))]


def vocabulary(place: Place) -> list[dict[str, Any]]:
    place.models("wide", vocabulary=2**18)
    options = {
        "model_name_or_path": str(place.folder / "wide" / "student"),
        "teacher_model_name_or_path": str(place.folder / "wide" / "teacher"),
        "per_device_train_batch_size": 8,
        "max_steps": 3,
    }
    return [shown(measured(place, "V = 262,144", options))]


def show(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def shown(record: dict[str, Any]) -> dict[str, Any]:
    show(record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if left out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of `kills`")
    parser.add_argument("--count", type=int, default=10, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", help="file for the records as JSON")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        place = Place(Path(folder))
        for part in args.parts or PARTS:
            if part == "kills":
                records += kills(place, args.kinds, args.count, random.Random(args.seed))
            else:
                records += globals()[part](place)
    if args.output:
        Path(args.output).write_text(json.dumps({"cores": os.cpu_count(), "records": records}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(sys.argv[2:])
    else:
        main()
