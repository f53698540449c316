"""What a config is about: process and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adpm.draws import Source
from adpm.errors import UserError
from adpm.likelihood import Levels
from adpm.process import Process
from adpm.run.choices import Choices
from adpm.run.data import DataSet
from adpm.run.work import resolve_device


@dataclass(frozen=True)
class Problem(Choices):
    """A config's process and data, on its device; each built when asked. Attributes: see `Choices`."""

    @property
    def device(self) -> torch.device:
        return resolve_device(self.config.device)

    @cached_property
    def process(self) -> Process:
        return self.build("process.name")

    @cached_property
    def data(self) -> DataSet:
        data = self.build("data.name")
        if len(data.shape) != 3:
            raise UserError(f"data set '{data.name}' has images of shape {data.shape}; (C, H, W) is wanted.")
        return data

    @property
    def levels(self) -> Levels:
        return Levels(self.data.levels, self.data.low, self.data.high)

    def images(self, split: str) -> Callable[[Tensor], Tensor]:
        """Numbers of a split's images -> the images in the network's range, on the device."""
        stored = self.data.split(split)
        return lambda index: self.data.scaled(stored[index]).to(self.device)

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {}

    def source(self, split: str) -> Source:
        """A split as the moments see it, with its exact mean and variance."""
        if split not in self._sources:
            self._sources[split] = Source.of(self.images(split), len(self.data.split(split)))
        return self._sources[split]
