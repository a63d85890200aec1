# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is there before a process is forked that trains: ranks.py. No fork imports it, or looks it through."""

from importlib import import_module

from trl_tempkd.processes import freeze, uncollected


MODULES = (
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed asks whether an optimizer is this one
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "trl_tempkd.commands.cache",
    "trl_tempkd.commands.distill",
    "trl_tempkd.console",
    "trl_tempkd.data.files",
    "trl_tempkd.study.diagnostics",
    "trl_tempkd.trainer",
)
with uncollected():
    for name in MODULES:
        import_module(name)
freeze()
