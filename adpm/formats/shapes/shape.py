"""What network a state dict is of, as far as names and shapes tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from adpm.families import Kind

Sizes = Mapping[str, torch.Size]
"""Names of a state dict's entries -> their shapes."""


@dataclass(frozen=True)
class Shape:
    """A network of a family, read off a state dict.

    Attributes:
        family: name among the networks.
        kind: the same for people, with its variant.
        channels: of the image.
        width: of the finest level.
        mult: widths of the levels in units of it.
        blocks: residual blocks per level on the way down.
        attends: levels with attention, 0 the finest.
        place: (level, side of the image) -> what the family's option of attention has for that level.
        option: that option's name.
        head: "none", "simple" or "complex".
        options: further options of the family's builder.
        assumed: options that no entry tells, with the value that published networks have.
        classes: labels that the network is conditioned on; 0: none.
        outputs: channels that come out, a head's not counted.
        usual: parameters of the rest, which no entry tells, as published files of this kind have them.
        fixed: parameters that the architecture settles.
    """

    family: str
    kind: str
    channels: int
    width: int
    mult: tuple[int, ...]
    blocks: int
    attends: tuple[int, ...]
    place: Callable[[int, int], int]
    option: str
    outputs: int
    head: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 0
    usual: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def least_side(self) -> int:
        """The smallest image that the network takes."""
        return 2 ** (len(self.mult) - 1)

    def build_options(self, side: int) -> dict[str, Any]:
        """Options of the family's builder for images of a side, but for dropout, which no state dict knows."""
        return {
            "model_channels": self.width,
            "channel_mult": self.mult,
            "num_res_blocks": self.blocks,
            self.option: tuple(self.place(level, side) for level in self.attends),
            "head": self.head,
            **self.options,
            **self.assumed,
            **({"num_classes": self.classes} if self.classes else {}),
        }

    def __str__(self) -> str:
        levels = ", ".join(str(m) for m in self.mult)
        at = ", ".join(str(level) for level in self.attends)
        told = [
            f"{self.blocks} block{'s' * (self.blocks != 1)}",
            f"width {self.width} ({levels})",
            f"attention at level {at}" if self.attends else "attention in the middle only",
            f"{self.channels} channel{'s' * (self.channels != 1)}",
        ]
        told += [f"{self.outputs} outputs"] if self.outputs != self.channels else []
        told += [f"a {self.head} head"] if self.head in WITH_HEAD else []
        told += [f"{self.classes} classes"] if self.classes else []
        return f"{self.kind} network, {', '.join(told)}"


WITH_HEAD = frozenset({"simple", "complex"})


@dataclass(frozen=True)
class Reader:
    """Attributes: recognises: whether names are of this family."""

    recognises: Callable[[Sizes], bool]


def reader(about: str, recognises: Callable[[Sizes], bool], read: Callable[[Sizes], Shape]) -> Kind:
    """A member of the family of readers.

    Args:
        about: what its networks are.
        recognises: see `Reader`.
        read: shapes -> the network; raises KeyError, ValueError or IndexError where they are none of the family's.
    """
    return Kind(read, about, Reader(recognises))


def equal(values: list[int]) -> int:
    """The one value of all.

    Raises:
        ValueError: if there are several, or none.
    """
    if len(set(values)) != 1:
        raise ValueError(f"levels have {values} blocks")
    return values[0]


def multiples(widths: list[int], unit: int) -> tuple[int, ...]:
    """Widths in units of the finest level's.

    Raises:
        ValueError: if they are no multiples.
    """
    if any(width % unit for width in widths):
        raise ValueError(f"widths {widths} are no multiples of {unit}")
    return tuple(width // unit for width in widths)
