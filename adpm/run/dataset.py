"""What a data set is: integer levels or real numbers, a fixed split into train and test, scaled to the network's range.

With L levels 0..L-1 and range [a, b], level l becomes a + (b - a) l / (L - 1). `levels = 0` marks continuous data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm import ideal
from adpm.errors import UserError, lookup
from adpm.families import Field
from adpm.run.stored import Images, Stored


@dataclass(frozen=True)
class DataSet:
    """A data set with its split.

    Attributes:
        name: the key in DATA_SETS.
        splits: "train", "test" and perhaps others -> images [n, C, H, W], uint8 levels or float32 when continuous.
        levels: number of levels L, or 0 for continuous data.
        low, high: the range [a, b] that networks see.
        labels: "train" and "test" -> class labels 0, 1, ... [n] int64, empty when there are none.
        truth: the exact distribution, where it is known.
        digest: of the images, where their name does not say which they are.
        flips: whether half of the images that a network is trained on are mirrored, drawn anew each time.
        known_shape: (C, H, W), where it is known without reading the images.
    """

    name: str
    splits: Mapping[str, Images]
    levels: int
    low: float
    high: float
    labels: Mapping[str, Tensor]
    truth: ideal.Mixture | None = None
    digest: str = ""
    flips: bool = False
    known_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"`low` = {self.low} and `high` = {self.high} must be finite, and low below high.")

    @property
    def content(self) -> dict[str, str]:
        """Which images these are, for keys; empty where the fields of the config say it."""
        return {"images": self.digest} if self.digest else {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.known_shape or tuple(self.splits["train"].shape[1:])

    @property
    def in_files(self) -> bool:
        """Whether the images lie in files, so that reading all of them takes a while."""
        return self.known_shape is not None or isinstance(self.splits.get("train"), Stored)

    def split(self, name: str) -> Images:
        """The stored images of a split; scale them with `scaled`."""
        return lookup(self.splits, name, "split")

    def scaled(self, stored: Tensor) -> Tensor:
        """Stored images as float32 in [a, b]; continuous data as they are."""
        if not self.levels:
            return stored
        return self.low + (self.high - self.low) / (self.levels - 1) * stored.float()

    @property
    def kept_as(self) -> Any:
        """The type of images as they are kept."""
        return np.uint8 if self.levels else np.float32

    def encode(self, images: NDArray[Any]) -> NDArray[Any]:
        """Images in [a, b] as they are kept: 256 levels, or float32 for continuous data."""
        if not self.levels:
            return images
        return np.rint((images - self.low) * (255.0 / (self.high - self.low))).clip(0, 255).astype(np.uint8)

    def decode(self, kept: NDArray[Any]) -> Tensor:
        """The inverse of `encode`, float32."""
        images = torch.as_tensor(kept)
        if not self.levels:
            return images
        return self.low + (self.high - self.low) / 255.0 * images.float()

    def to_unit(self, x: Tensor) -> Tensor:
        """Images in [0, 1] for display."""
        return ((x.float() - self.low) / (self.high - self.low)).clamp(0, 1)


@dataclass(frozen=True)
class DataFacts:
    """What may be asked of a data set before it is read.

    Attributes:
        missing: its options -> what is not there and how it is got, in words; "" where nothing is missing.
    """

    missing: Callable[..., str] = lambda **options: ""


def range_fields(low: float = -1.0) -> dict[str, Field]:
    return {
        "low": Field(low, "end of the range that the network sees"),
        "high": Field(1.0, "end of the range that the network sees"),
    }


def held_out_of(total: int, held_out: int, what: str = "images") -> int:
    """How many of `total` examples are for test: `held_out`, or a fifth where that is 0.

    Raises:
        UserError: if that leaves none on either side.
    """
    count = held_out or total // 5
    if not 0 < count < total:
        raise UserError(f"`held_out` = {held_out} leaves {max(total - count, 0)} of {total} {what} to train on.")
    return count


DRAWN = ("training", "model")
"""Which images there are is nothing that a network's function depends on."""


def flips_field() -> dict[str, Field]:
    about = "train on mirrored images half of the time; nothing else ever sees these"
    return {"flips": Field(False, about, of=("training", "head"))}
