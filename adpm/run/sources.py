"""A split as the moments see it: its images by number, with their exact mean and variance.

Where images lie in files, the pass over all of them is made once and what came of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.draws import Source
from adpm.progress import Arrays, progress, say
from adpm.run.dataset import DataSet
from adpm.run.store import record
from adpm.run.stored import in_batches


def source_of(data: DataSet, split: str, images: Callable[[Tensor], Tensor], file: Path | None) -> Source:
    """The images of a split.

    Args:
        data: whose they are.
        images: numbers -> images in the network's range, on the device.
        file: named by everything that they depend on; None: nothing is kept.
    """
    if file is None or not data.in_files:
        return Source.of(images, len(data.split(split)))

    def in_order(parts: Sequence[Tensor]) -> Iterator[Tensor]:
        for stored in progress(in_batches(data.split(split), parts), total=len(parts), what="batches of images"):
            yield data.scaled(stored)

    def make(keep: Any) -> dict[str, Any]:
        say(f"reading all {len(data.split(split)):,} {split} images, once, for their mean and variance: {file}")
        found = Source.of(images, len(data.split(split)), in_order)
        return {"size": found.size, "mean": found.mean.cpu().numpy(), "variance": found.variance}

    def check(arrays: Arrays) -> None:
        if arrays["mean"].shape != data.shape or not arrays["size"].item() or np.isnan(arrays["variance"].item()):
            raise ValueError(f"a mean of shape {arrays['mean'].shape}")

    found = record(file, make, check)
    mean = torch.from_numpy(found["mean"].astype(np.float32))
    return Source(int(found["size"].item()), images, mean, float(found["variance"].item()))
