"""Classes: which class each image or sample is of, and denoisers that are told.

A class-conditional network predicts E[eps | x_t, y], and all that is measured of it is a mean over images with their
own classes: Var[x_0 | x_t, y], bounds on -log p(x_0 | y). Images and samples are known by their numbers. Whoever works
on a batch of them asks for the denoiser `at` its numbers: the denoiser itself, unless it is `Told` their classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import Denoise, Prediction
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.noise import KeyedNoise

Classes = Callable[[Tensor], Tensor | None]
"""Numbers [B] of images or samples -> their classes [B], int64; None: no class."""


@runtime_checkable
class Conditional(Protocol):
    """A denoiser of a class-conditional network."""

    def given(self, classes: Tensor | None) -> Denoise:
        """The denoiser of a batch of these classes [B]; None: of no class, for networks that know what that is."""


class Told:
    """A conditional denoiser with the classes of images or samples by their numbers.

    Raises:
        UserError: if the denoiser is not conditional.
    """

    def __init__(self, denoise: Denoise, classes: Classes) -> None:
        if not isinstance(denoise, Conditional):
            raise UserError(f"{type(denoise).__name__} is told no classes: it has no method `given`.")
        self._denoise, self._classes = denoise, classes

    def given(self, classes: Tensor | None) -> Denoise:
        """See `Conditional`: with these classes in place of those of the numbers."""
        return self._denoise.given(classes)

    def at(self, numbers: Tensor) -> Denoise:
        """For a batch of images or samples with these numbers [B]."""
        return self._denoise.given(self._classes(numbers))

    def renumbered(self, index: Callable[[Tensor], Tensor]) -> Told:
        """For draws whose images have the numbers `index(draw)`."""
        return Told(self._denoise, lambda draw: self._classes(index(draw)))

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        raise UserError("the denoiser knows the classes of examples by their numbers: call `at(denoise, numbers)`.")


def at(denoise: Denoise, numbers: Tensor) -> Denoise:
    """`denoise` for a batch of images or samples with these numbers [B]."""
    return denoise.at(numbers) if isinstance(denoise, Told) else denoise


def renumbered(denoise: Denoise, index: Callable[[Tensor], Tensor]) -> Denoise:
    """`denoise` for draws whose images have the numbers `index(draw)`."""
    return denoise.renumbered(index) if isinstance(denoise, Told) else denoise


def of_table(classes: Tensor) -> Classes:
    """Those of a table [n], from its beginning again for numbers beyond it."""
    table = classes.long().cpu()
    return lambda numbers: table[numbers.cpu() % len(table)]


# What samples are of


@dataclass(frozen=True)
class ClassNeeds:
    """What a member's builder may ask for.

    Attributes:
        count: how many classes the network is told.
        null: whether it knows what no class is.
        seed: of what is drawn.
    """

    count: int
    null: bool
    seed: int


def _drawn(needs: ClassNeeds) -> Classes:
    keyed = KeyedNoise(needs.seed, "classes")
    return lambda numbers: keyed.integers(numbers, needs.count)


def _one(needs: ClassNeeds, class_index: int = 0) -> Classes:
    if not 0 <= class_index < needs.count:
        raise UserError(f"`class_index` = {class_index} must lie in 0..{needs.count - 1}, the network's classes.")
    return lambda numbers: torch.full((len(numbers),), class_index)


def _none(needs: ClassNeeds) -> Classes:
    if not needs.null:
        raise UserError("`classes` = 'none' needs a network that knows what no class is (`null_class` = True).")
    return lambda numbers: None


CLASSES: dict[str, Kind] = {
    "drawn": Kind(_drawn, "evenly, by the number of the sample"),
    "one": Kind(_one, "the same for all samples", fields={"class_index": Field(0, "which class", low=0)}),
    "none": Kind(_none, "no class, for networks that know what that is"),
}
