# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Starts a command through `accelerate launch`, with the configs of `trl_tempkd/accelerate_configs`."""

import argparse
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .arguments import RecipeParser, usage_errors_on_one_line


if TYPE_CHECKING:
    from transformers import TrainingArguments

ACCELERATE_CONFIGS = ("single_gpu", "multi_gpu", "zero1", "zero2", "zero3", "fsdp2")
FOLDER = Path(__file__).parent.parent / "accelerate_configs"


def launch(module: str, for_launch: list[str], for_script: list[str]) -> int:
    """
    Run `accelerate launch [for_launch] --module module [for_script]`.

    Args:
        module (`str`):
            Module to run in every process. By name rather than by path: run by path, the module's own folder would
            come first on `sys.path` and its files would hide packages of the same name.
        for_launch (`list[str]`):
            Arguments of `accelerate launch`, and `--accelerate_config NAME_OR_PATH` as `trl` has it.
        for_script (`list[str]`):
            Arguments of the module.

    Returns:
        `int`: Exit status of the first process that failed, or 0.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args([*resolve_config(for_launch), "--module", module, *for_script])
    # A process that fails has printed why. The launcher's own traceback would only bury that.
    check_processes(args)
    try:
        launch_command(args)
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    # DeepSpeed not installed, options that contradict each other, no such config file, a port that is taken
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"accelerate launch: {error}") from error
    return 0


def resolve_config(for_launch: list[str]) -> list[str]:
    """`--accelerate_config NAME_OR_PATH` as accelerate's `--config_file PATH`. The last one given wins."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate_config")
    known, rest = parser.parse_known_args(for_launch)
    name = known.accelerate_config
    if name is None:
        return for_launch
    if Path(name).is_file():
        return [*rest, "--config_file", name]
    if name in ACCELERATE_CONFIGS:
        return [*rest, "--config_file", str(FOLDER / f"{name}.yaml")]
    if name == "fsdp1":
        raise UsageError("no accelerate config 'fsdp1': it would leave the teacher whole on every GPU; use fsdp2")
    raise UsageError(f"accelerate config {name!r} is neither a file nor one of {', '.join(ACCELERATE_CONFIGS)}")


def check_processes(args: argparse.Namespace) -> None:
    """
    Start one process per GPU where nobody says how many, which accelerate does without a config only, and stop where
    it would start a single process whatever `--num_processes` says.
    """
    import torch
    import yaml
    from accelerate.commands.config.config_args import ClusterConfig, default_config_file, load_config_from_file
    from accelerate.utils import DistributedType

    gpus = torch.accelerator.device_count()
    config = None
    if args.config_file is not None or (os.path.isfile(default_config_file) and not args.cpu):
        try:
            config = load_config_from_file(args.config_file)
        except (ValueError, OSError, yaml.YAMLError) as error:  # no such file, or one that isn't accelerate's
            raise UsageError(f"accelerate launch: {error}") from error
        if not isinstance(config, ClusterConfig):  # SageMaker, whose machines are elsewhere
            return
    many = args.multi_gpu or args.use_deepspeed or args.use_fsdp or args.use_megatron_lm or args.tpu
    if config is None:
        many = many or gpus > 1
    else:
        many = many or config.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU)
    many = (many and not args.cpu) or args.mpirun_hostfile is not None
    machines = args.num_machines or getattr(config, "num_machines", 1)
    if machines > 1 and (args.main_process_ip or getattr(config, "main_process_ip", None)) is None:
        raise UsageError(
            f"--num_machines {machines} needs --main_process_ip and --main_process_port of the first machine, and a "
            "--machine_rank on each"
        )
    asked = args.num_processes
    if asked is not None and asked > 1 and not many:
        raise UsageError(
            f"--num_processes {asked}, but accelerate would start a single process; add --accelerate_config multi_gpu "
            "or another for many" + (", in place of --cpu" if args.cpu else "")
        )
    if asked is None and many and (config is None or config.num_processes in (-1, None)):
        ids = args.gpu_ids or getattr(config, "gpu_ids", None) or "all"
        per_machine = gpus if ids == "all" else len(ids.split(","))
        if per_machine == 0:
            raise UsageError("no GPU found: say with --num_processes how many processes to start")
        args.num_processes = per_machine * machines


def run_started(parser: RecipeParser, main: Callable[..., Any]) -> None:
    """Run a command on the command line of a process that `accelerate launch` has started."""
    with usage_errors_on_one_line(parser.prog):
        arguments, _, _ = parser.parse(launched=True)
        main(*arguments)


def check_started(training_args: "TrainingArguments") -> None:
    """In a launched process: stop where those that were started together would not train together."""
    from accelerate.logging import get_logger

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if training_args.world_size < started:
        raise UsageError(
            f"{started} processes were started, but each would train alone, as there is no GPU; to try it on a CPU, "
            "give --use_cpu"
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and training_args.device.type == "cpu":
        get_logger(__name__).warning("FSDP2 shards on GPUs only: on a CPU every process holds both models, as in DDP.")
