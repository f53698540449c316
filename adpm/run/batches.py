"""Pickled batches of images, as CIFAR-10 and ImageNet 64 are published.

They are read by an unpickler that can build numpy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

from adpm.pickles import numpy_names


class _Arrays(pickle.Unpickler):
    """Unpickles dicts of numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        known = numpy_names()
        if (dotted := f"{module}.{name}") not in known:
            raise pickle.UnpicklingError(f"{dotted} is not part of an array")
        return known[dotted]


def unpickled(file: IO[bytes]) -> dict[str, Any]:
    """The dict in a file, its names as text, whichever Python wrote it.

    Raises:
        pickle.UnpicklingError, EOFError, ValueError: if it is none, not whole, or holds anything but arrays.
    """
    try:
        found = _Arrays(file, encoding="bytes").load()
    except (AttributeError, ImportError, IndexError, KeyError, TypeError, UnicodeError) as error:
        raise pickle.UnpicklingError(f"it is damaged: {error}") from error
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dict")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}
