# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What is measured between two logs: sums over tokens that stay on the device, and the speed."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class Meter:
    """
    Sums over tokens, of training and of evaluation, and a clock. Costs one synchronisation with the device per log.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator of the trainer, to sum over its processes.
        names (`list[str]`):
            Names of the `K` measures.
        relative (`dict[str, str]`, *optional*):
            Measures whose mean is over the tokens that another measure counts, in place of all.
    """

    def __init__(self, accelerator: Accelerator, names: list[str], relative: Mapping[str, str] | None = None):
        self._accelerator = accelerator
        self._names = names
        self._relative = relative or {}
        self._sums: dict[str, list[torch.Tensor]] = {"train": [], "eval": []}
        self._tokens: torch.Tensor | int = 0
        self._since: float | None = None

    def add(self, mode: str, sums: torch.Tensor) -> None:
        """Sums of this rank, of shape `(1 + K,)`: the number of tokens, then the measures, or the first of them."""
        self._sums[mode].append(sums)

    def means(self, mode: str) -> dict[str, float]:
        """Means over the tokens since the last call, over all ranks, by name."""
        if not self._sums[mode]:
            return {}
        sums = torch.stack(self._sums[mode]).sum(0)
        self._sums[mode].clear()
        tokens, *totals = self._accelerator.reduce(sums, reduction="sum").tolist()
        of = dict(zip(self._names, totals, strict=False))
        counts = {name: of.get(self._relative.get(name, ""), max(tokens, 1)) for name in of}
        return {name: total / counts[name] for name, total in of.items() if counts[name]}

    def start(self) -> None:
        """Start the clock, if it isn't running."""
        self._since = time.perf_counter() if self._since is None else self._since

    def reset(self) -> None:
        """Forget what was measured, and stop the clock: a training begins."""
        self._sums["train"].clear()
        self._tokens, self._since = 0, None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Forget what an evaluation that was interrupted has left, and stop the clock for the duration of this one."""
        start = time.perf_counter()
        self._sums["eval"].clear()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - start

    def see(self, tokens: torch.Tensor | int) -> None:
        """Count tokens of this rank."""
        self._tokens = self._tokens + tokens

    def speed(self) -> tuple[int, float]:
        """Tokens of all ranks since the last call, and how many that is per second."""
        seen = torch.as_tensor(self._tokens, device=self._accelerator.device)
        tokens = int(self._accelerator.reduce(seen, reduction="sum").item())
        now = time.perf_counter()
        seconds = now - (now if self._since is None else self._since)
        self._tokens, self._since = 0, now
        return tokens, tokens / max(seconds, 1e-9)
