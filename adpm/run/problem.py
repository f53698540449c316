"""What a config is about: process and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ml_collections import FrozenConfigDict
from torch import Tensor

from adpm.draws import Source
from adpm.errors import UserError
from adpm.likelihood import Levels
from adpm.moving import moved
from adpm.process import Process
from adpm.run.choices import Choices
from adpm.run.dataset import DataSet
from adpm.run.sources import source_of
from adpm.run.store import digest
from adpm.run.work import resolve_device


def cache_of(config: FrozenConfigDict, workdir: Path) -> Path:
    """Where a run keeps what several workdirs may share: config.cache, or beside its own."""
    return Path(config.cache) if config.cache else workdir.parent / "cache"


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
        """Numbers of a split's images -> the images in the network's range, on the device; read when asked."""
        return lambda index: moved(self.data.scaled(self.data.split(split)[index]), self.device)

    @property
    def cache(self) -> Path | None:
        """Where what several workdirs may share is kept; None: nowhere."""
        return Path(self.config.cache) if self.config.cache else None

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {}

    def source(self, split: str) -> Source:
        """A split as the moments see it, with its exact mean and variance."""
        if split not in self._sources:
            file = None if self.cache is None else self.cache / f"data-{digest(self.images_key(split))}.npz"
            self._sources[split] = source_of(self.data, split, self.images(split), file)
        return self._sources[split]

    def images_key(self, split: str) -> dict[str, Any]:
        """What the images of a split depend on."""
        fields = self.house.table.part(self.config, "model")
        return {**{n: value for n, value in fields.items() if n.startswith("data.")}, **self.data.content, "of": split}
