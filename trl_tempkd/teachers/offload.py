# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A frozen model that is on the device only while it runs: else its weights are in the CPU's memory or on the disk."""

import mmap
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import torch
from torch import Tensor, nn

from ..files import written


PLACES = ("cpu", "disk")
ALIGNED = 64  # bytes, as torch aligns its own tensors


class Offloaded:
    """
    Takes the weights of a model off its device, and back for as long as they are needed. Nothing is written back,
    since the model is frozen. Its buffers stay.

    Args:
        model (`torch.nn.Module`):
            The model, on its device.
        where (`str`):
            Where the weights are else. Of `disk` a file without a name has them, which is gone with the process.
        folder (`str`):
            Where on the disk.
        stay (`set[int]`):
            Ids of parameters that stay on the device.

    Raises:
        [`Unwritable`]: If the disk is full.
    """

    def __init__(self, model: nn.Module, where: str, folder: str, stay: set[int]):
        self._parameters = [p for p in model.parameters() if id(p) not in stay and p.numel()]
        self._shapes = [p.shape for p in self._parameters]
        self._device = next(model.parameters()).device
        self._here = False
        self._file: IO[bytes] | None = None
        self._kept: list[Tensor] = []
        self._starts: list[int] = []
        if where == "cpu":
            self._kept = [p.detach().cpu() for p in self._parameters]
        else:
            with written(folder):
                self._write(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        for p in model.parameters():
            if id(p) in stay:
                p.data = p.data.clone()  # else it may keep the checkpoint in memory, of which it is a part
        self._leave()

    def _write(self, file: IO[bytes]) -> None:
        self._file = file
        weakref.finalize(self, file.close)
        for p in self._parameters:
            file.write(bytes(-file.tell() % ALIGNED))
            self._starts.append(file.tell())
            file.write(memoryview(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
        file.flush()

    def _leave(self) -> None:
        for i, p in enumerate(self._parameters):
            p.data = self._kept[i] if self._kept else p.data.new_empty(0)

    def _fetch(self) -> None:
        # The file is mapped, so that on a CPU it is read where it is, and leaves nothing behind in the heap
        mapped = None if self._file is None else mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        for i, (p, shape) in enumerate(zip(self._parameters, self._shapes, strict=True)):
            if mapped is None:
                p.data = self._kept[i].to(self._device)
            else:
                found = torch.frombuffer(mapped, dtype=p.dtype, count=shape.numel(), offset=self._starts[i])
                p.data = found.view(shape).to(self._device)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Context in which the model is on its device. Inside of another one it changes nothing."""
        if self._here:
            yield
            return
        self._fetch()
        self._here = True
        try:
            yield
        finally:
            self._here = False
            self._leave()
