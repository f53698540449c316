"""Source images of a translation: of the run's own data, or of a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.run.dataset import DataSet
from adpm.run.folders import files
from adpm.run.listing import missing


@dataclass(frozen=True)
class SourceImages:
    """Attributes: count: how many; stored: numbers -> images as the data set stores its own; digest: which they are."""

    count: int
    stored: Callable[[Tensor], Tensor]
    digest: str


def _of_split(data: DataSet, split: str = "test", label: int | None = None) -> SourceImages:
    """A split, or its images of one class."""
    images = data.split(split)
    which = torch.arange(len(images))
    if label is not None:
        labels = data.labels.get(split)
        if labels is None:
            raise UserError(
                f"`source_class` = {label}, but data set '{data.name}' has no {split} labels; unset it for all images."
            )
        which = which[labels == label]
    if not len(which):
        raise UserError(f"`source_class` = {label} is the class of no {split} image of data set '{data.name}'.")
    return SourceImages(len(which), lambda numbers: images[which[numbers.cpu()]], f"{split} {label}")


def _of_folder(data: DataSet, folder: str = "") -> SourceImages:
    """All images in a folder, of the data's size."""
    if not folder:
        raise UserError("`source` = 'folder' needs `source_folder`, a folder of images.")
    if told := missing(Path(folder)):
        raise UserError(f"{told.rstrip('.')} (`source_folder`).")
    if data.levels != 256:
        raise UserError(f"`source_folder` has images of 256 levels, and data set '{data.name}' has others.")
    found = files(Path(folder), channels=data.shape[0] if data.shape[0] in (1, 3) else 0)
    if found.shape[1:] != data.shape:
        raise UserError(
            f"`source_folder` = '{folder}' has images of shape {tuple(found.shape[1:])}, and the model makes images of "
            f"{data.shape}; resize them first."
        )
    return SourceImages(len(found), lambda numbers: found[numbers.cpu()], found.found.digest())


SOURCES: dict[str, Kind] = {
    "split": Kind(
        _of_split,
        "the run's own data, a split or a class of it",
        fields={
            "source_split": Field("test", "of the data", arg="split"),
            "source_class": Field(None, "only images of this class; unset = all", type=int, low=0, arg="label"),
        },
    ),
    "folder": Kind(
        _of_folder,
        "a folder of PNG, JPEG or WebP images, of the size that the model makes",
        fields={"source_folder": Field("", "of images", of=(), arg="folder")},
    ),
}
"""Builders take (the run's data set, own options)."""
