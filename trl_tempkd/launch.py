# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Starts a command through `accelerate launch`, with the configs of `trl_tempkd/accelerate_configs`."""

import argparse
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError
from .processes import LAUNCHER, Stopped, may_fork, pass_on, run_in_fork


if TYPE_CHECKING:
    from transformers import TrainingArguments

ACCELERATE_CONFIGS = ("single_gpu", "multi_gpu", "zero1", "zero2", "zero3", "fsdp2")
FOLDER = Path(__file__).parent / "accelerate_configs"


def launch(
    module: str,
    for_launch: list[str],
    for_script: list[str],
    use_cpu: bool = False,
    work: Callable[[], object] | None = None,
) -> int:
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
        use_cpu (`bool`, *optional*, defaults to `False`):
            Whether the module trains on the CPU, whatever GPUs there are.
        work (`Callable`, *optional*):
            What the module does with these arguments. If given, a process that trains alone and on a CPU is a fork of
            this one, and need not import anew what is imported here.

    Returns:
        `int`: Exit status of the first process that failed, 128 and the signal if one has ended it, or 0.

    Raises:
        [`Stopped`]: If a signal told this process to stop. Those that it has started are gone then.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from .compat import launch_command, launch_command_parser

    args = launch_command_parser().parse_args([*resolve_config(for_launch), "--module", module, *for_script])
    # A process that fails has printed why. The launcher's own traceback and log would only bury that.
    quiet_elastic()
    check_processes(args, use_cpu)
    try:
        if starts_itself(args):
            os.environ[LAUNCHER] = str(os.getpid())
        with forking(args, work):
            launch_command(args)
    except KeyboardInterrupt as stop:
        pass_on(stop)
        raise
    except SignalException as stop:  # torch has ended the processes
        raise Stopped(stop.sigval) from stop
    except subprocess.CalledProcessError as error:
        return ended([error.returncode])
    except ChildFailedError as error:
        return ended([failure.exitcode for failure in sorted(error.failures.values(), key=lambda one: one.timestamp)])
    # DeepSpeed not installed, options that contradict each other, no such config file, a port that is taken
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"accelerate launch: {error}") from error
    finally:
        os.environ.pop(LAUNCHER, None)
    return 0


def forking(args: argparse.Namespace, work: Callable[[], object] | None) -> AbstractContextManager[None]:
    """Context in which a process that trains alone does the work as a fork of this one, where it can."""
    import torch

    from .compat import single_process_started_by

    # What a GPU's driver has begun here doesn't go on in a fork
    if work is None or not may_fork() or args.mpirun_hostfile is not None or torch.accelerator.device_count():
        return nullcontext()

    def start(environment: dict[str, str]) -> int:
        def begin() -> None:
            torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which torch reads when it is imported
            work()

        return run_in_fork(begin, environment)

    return single_process_started_by(start)


def quiet_elastic() -> None:
    """Have torch's launcher log what `LOGLEVEL` asks for alone, and leave out SIGHUP where `nohup` ignores it."""
    # It warns of each option that it has a default for
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    if "LOGLEVEL" not in os.environ:
        for name in ("agent.server.api", "multiprocessing.api"):
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")


def starts_itself(args: argparse.Namespace) -> bool:
    """Whether the processes are started by this one, and not by one of MPI's or of another machine."""
    several = args.use_deepspeed and (args.num_machines or 1) > 1
    return args.mpirun_hostfile is None and (not several or args.deepspeed_multinode_launcher == "standard")


def ended(statuses: list[int]) -> int:
    """The exit status for those of the processes, in the order in which they ended."""
    # What torch ends because another one has failed, and what fails because another one is gone, isn't the reason.
    killed = [-status for status in statuses if status < 0 and -status != signal.SIGTERM]
    if killed:
        name = signal.Signals(killed[0]).name
        reason = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        print(f"trl-tempkd: error: a process was ended by {name}{reason}", file=sys.stderr)
        return 128 + killed[0]
    return statuses[0] if statuses[0] > 0 else 128 - statuses[0]


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


def check_processes(args: argparse.Namespace, use_cpu: bool = False) -> None:
    """
    Start one process per GPU where nobody says how many, which accelerate does without a config only, and stop where
    it would start a single process whatever `--num_processes` says, or more than the machine has room for.
    """
    import torch
    import yaml
    from accelerate.utils import DistributedType

    from .compat import ClusterConfig, default_config_file, load_config_from_file

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
    ids = args.gpu_ids or getattr(config, "gpu_ids", None) or "all"
    per_machine = gpus if ids == "all" else len(str(ids).split(","))
    asked = asked or getattr(config, "num_processes", None)
    if many and (asked is None or asked == -1):
        if per_machine == 0:
            raise UsageError("no GPU found: say with --num_processes how many processes to start")
        args.num_processes = per_machine * machines
    elif many and asked is not None and args.mpirun_hostfile is None and not args.tpu:
        if use_cpu or not gpus:
            check_room(asked, machines, os.cpu_count() or 1, "CPU cores")
        else:
            check_room(asked, machines, min(per_machine, gpus), "GPUs")


def check_room(processes: int, machines: int, room: int, what: str) -> None:
    """Stop where a machine has fewer GPUs or cores than processes."""
    if math.ceil(processes / machines) > room:
        which = "this machine" if machines == 1 else f"each of {machines} machines runs an equal part, and this one"
        raise UsageError(f"--num_processes {processes}, but {which} has {room} {what}: give at most {room * machines}")


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
