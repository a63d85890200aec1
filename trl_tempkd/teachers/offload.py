# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""A frozen model that is on the device only while it runs: else its weights are in the CPU's memory or on the disk."""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import torch
from torch import Tensor, nn

from ..files import written


PLACES = ("cpu", "disk")


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
        self._parameters = [p for p in model.parameters() if id(p) not in stay]
        self._device = next(model.parameters()).device
        self._here = False
        self._file: IO[bytes] | None = None
        self._kept: list[Tensor] = []
        if where == "cpu":
            self._kept = [p.detach().cpu() for p in self._parameters]
        else:
            with written(folder):
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                for p in self._parameters:
                    self._file.write(_bytes_of(p.detach().cpu().contiguous()))
                self._file.flush()
            weakref.finalize(self, self._file.close)
        self._shapes = [p.shape for p in self._parameters]
        self._leave()

    def _leave(self) -> None:
        for i, p in enumerate(self._parameters):
            p.data = self._kept[i] if self._kept else p.data.new_empty(0)

    def _fetch(self) -> None:
        if self._file is not None:
            self._file.seek(0)
        for i, (p, shape) in enumerate(zip(self._parameters, self._shapes, strict=True)):
            if self._file is None:
                p.data = self._kept[i].to(self._device)
                continue
            found = torch.empty(shape, dtype=p.dtype)
            self._file.readinto(_bytes_of(found))  # type: ignore[attr-defined]
            p.data = found.to(self._device)

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


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
