# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Distil one pair from every source of its teacher: beside the student, from the three caches, and from a server.

    python benchmarks/sources.py --config recipes/tiny/distill.yaml --max_steps 60 --max_length 48
    python benchmarks/sources.py --config recipes/sweeps/study_smollm2.yaml --logprobs 64 --output sources.json

The recipe is one of `trl-tempkd distill`, or of a sweep, whose `base` is taken; every other option goes to it. It is
trained on the first `--rows` rows with each objective of `--objectives`, and before and after, the student is compared
with the teacher itself on `--eval_rows` held-out rows: KL at temperature 1, whatever it was trained with. Steps are
timed from end to end, as medians. The server is that of the tests: on loopback, in this process, with the teacher in
it, so its times are no server's. A source that can't serve an objective is left out, with what it says.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback


ROOT = Path(__file__).parent.parent
CACHES = ("hidden", "topk", "sampled")
SOURCES = ("live", *CACHES, "served")


class Clock(TrainerCallback):
    """When each step has ended."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


class Runner:
    """
    The recipe, its rows and its teacher.

    Args:
        args (`argparse.Namespace`): of the command line.
        rest (`list[str]`): options of the recipe.
        folder (`Path`): for the rows, the caches and what runs write.
    """

    def __init__(self, args: argparse.Namespace, rest: list[str], folder: Path):
        from datasets import DatasetDict

        from trl_tempkd.data import load_data

        self.args, self.folder = args, folder
        self.recipe = ["--config", str(self._recipe()), *rest, "--output_dir", str(folder / "out")]
        script_args, _, _, dataset_args = self.parse([])
        dataset = load_data(script_args, dataset_args)
        rows = {"train": args.rows, "test": args.eval_rows}
        DatasetDict({name: dataset[name].select(range(count)) for name, count in rows.items()}).save_to_disk(
            folder / "rows"
        )
        self.recipe += ["--dataset_name", str(folder / "rows"), "--eval_strategy", "no", "--save_strategy", "no"]
        self.recipe += ["--disable_tqdm", "true"]
        self.judge = self.trainer(["--do_eval", "true", "--kd_temperature", "1"])
        self.before = self.judge.evaluate()["eval_kl_tau1"]

    def _recipe(self) -> Path:
        """The recipe of a sweep's cells, or the recipe itself."""
        values = yaml.safe_load(Path(self.args.config).read_text(encoding="utf-8"))
        if not isinstance(values.get("base"), dict):
            return Path(self.args.config)
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(values["base"]), encoding="utf-8")
        return self.folder / "recipe.yaml"

    def parse(self, options: list[str]) -> Any:
        from trl_tempkd.commands import distill

        return distill.make_parser().parse([*self.recipe, *options], launched=True)[0]

    def trainer(self, options: list[str]) -> Any:
        from trl_tempkd.training import make_trainer

        return make_trainer(*self.parse(options))

    def options_of(self, source: str, url: str) -> list[str]:
        if source == "served":
            count = ["--teacher_server_logprobs", str(self.args.logprobs)] if self.args.logprobs else []
            named = ["--teacher_model_name_or_path", "teacher", "--teacher_model_init_kwargs", "{}"]
            return ["--teacher_server_url", url, *named, *count]
        return ["--teacher_cache", str(self.folder / source)] if source in CACHES else []

    def build(self, mode: str) -> float:
        """Write a cache. Returns its bytes for each token that is trained on."""
        from trl_tempkd.commands import cache

        own = ["--mode", mode, "--output", str(self.folder / mode), "--do_eval", "false"]
        own += ["--cache_dtype", self.args.cache_dtype]
        if mode != "hidden":
            count = {"topk": "--k", "sampled": "--samples"}[mode]
            taus = sorted({tau for _, tau in self.args.objectives})
            own += [count, str(self.args.count), "--taus", *map(str, taus)]
        values = cache.make_parser().parse([*self.recipe, *own], launched=True)[0]
        cache.main(*values)
        manifest = json.loads((self.folder / mode / "manifest.json").read_text(encoding="utf-8"))
        written = sum(path.stat().st_size for path in (self.folder / mode).rglob("*.arrow"))
        return written / manifest["splits"]["train"]["tokens"]

    def distil(self, source: str, divergence: str, tau: float, url: str) -> dict[str, Any]:
        """One run, and what became of the student."""
        objective = ["--divergence", divergence, "--kd_temperature", str(tau), "--do_eval", "false"]
        trainer, clock = self.trainer([*self.options_of(source, url), *objective]), Clock()
        trainer.add_callback(clock)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        self.judge.model.load_state_dict(trainer.model.state_dict())
        steps = [after - before for before, after in zip(clock.times[1:], clock.times[2:], strict=False)]
        return {
            "source": source,
            "divergence": divergence,
            "tau": tau,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "kl_tau1_before": self.before,
            "kl_tau1_after": self.judge.evaluate()["eval_kl_tau1"],
            "step_seconds": statistics.median(steps),
        }


def measure(args: argparse.Namespace, rest: list[str]) -> list[dict[str, Any]]:
    """A record for each source and objective."""
    sys.path.insert(0, str(ROOT / "tests"))
    from teacher_server import TeacherServer

    records = []
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(args, rest, Path(name))
        sizes = {mode: runner.build(mode) for mode in CACHES if mode in args.sources}
        server = TeacherServer(runner.judge.teacher_model, runner.judge.processing_class)
        with server.running():
            for divergence, tau in args.objectives:
                for source in args.sources:
                    try:
                        record = runner.distil(source, divergence, tau, server.url)
                    except ValueError as error:
                        print(f"{source}, {divergence} at {tau:g}: {error}", file=sys.stderr)
                        continue
                    records.append({**record, "bytes_per_token": sizes.get(source)})
                    print(json.dumps(records[-1]), file=sys.stderr)
    return records


def show(records: list[dict[str, Any]]) -> Table:
    """The table of the figures."""
    table = Table("divergence", "tau", "source", title="KL at tau 1 is from the teacher itself, held out")
    for column in ("loss, first", "loss, last", "KL before", "KL after", "s / step", "bytes / token"):
        table.add_column(column, justify="right")
    for record in records:
        size = record["bytes_per_token"]
        table.add_row(
            record["divergence"],
            f"{record['tau']:g}",
            record["source"],
            *(f"{record[key]:.4f}" for key in ("first_loss", "last_loss", "kl_tau1_before", "kl_tau1_after")),
            f"{record['step_seconds']:.2f}",
            "" if size is None else f"{size:.0f}",
        )
    return table


def objective(text: str) -> tuple[str, float]:
    """`forward_kl:2` -> `("forward_kl", 2.0)`."""
    divergence, tau = text.split(":")
    return divergence, float(tau)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        default=str(ROOT / "recipes/tiny/distill.yaml"),
        help="recipe of `trl-tempkd distill`, or of a sweep (default: the built-in pair's)",
    )
    parser.add_argument("--sources", nargs="+", default=SOURCES, choices=SOURCES, help="default: all")
    parser.add_argument(
        "--objectives", nargs="+", type=objective, default=[("forward_kl", 1.0), ("reverse_kl", 1.0)],
        metavar="DIVERGENCE:TAU", help="default: forward_kl:1 reverse_kl:1",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, default=256, help="to train on (default: 256)")
    parser.add_argument("--eval_rows", type=int, default=64, help="to compare on (default: 64)")
    parser.add_argument("--count", type=int, default=64, help="tokens of a top-k or sampled cache (default: 64)")
    parser.add_argument("--cache_dtype", default="bfloat16", choices=["bfloat16", "float32"], help="default: bfloat16")
    parser.add_argument("--logprobs", type=int, help="of the server; the whole vocabulary if not set")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args, rest = parser.parse_known_args(argv)
    torch.set_num_threads(args.threads)

    records = measure(args, rest)
    Console(width=120).print(show(records))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"torch": torch.__version__, "options": rest, "records": records}, indent=1))


if __name__ == "__main__":
    main()
