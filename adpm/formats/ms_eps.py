"""Published `ms_eps` files, which lie beside checkpoints and are none: told apart, so that they can be put right."""

from __future__ import annotations

import numpy as np

from adpm.families import Kind
from adpm.formats.checkpoint import Checkpoint, FormatFacts, Opened


def _array(file: Opened) -> Checkpoint:
    shape = file.content.shape
    told = f"mean squares for {shape[0] - 1} steps" if len(shape) == 1 else f"an array of shape {shape}"
    return Checkpoint({}, "none", unusable=f"it holds {told}; name such a file in `ms_eps`")


ARRAY = Kind(_array, "an ms_eps file, one array", FormatFacts(lambda file: isinstance(file.content, np.ndarray)))
