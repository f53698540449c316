"""Reading `torch.save` files of others without running code that may be stored in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch


def numpy_globals() -> list[Any]:
    """What pickled numpy arrays and scalars need, under the module names of numpy 1 and of numpy 2."""
    core, numeric = np._core.multiarray, np._core.numeric  # type: ignore[attr-defined]
    return [
        core._reconstruct,
        (core._reconstruct, "numpy.core.multiarray._reconstruct"),
        core.scalar,
        (core.scalar, "numpy.core.multiarray.scalar"),
        np.ndarray,
        np.dtype,
        np.dtypes.Float32DType,
        np.dtypes.Float64DType,
        numeric._frombuffer,
        (numeric._frombuffer, "numpy.core.numeric._frombuffer"),
    ]


def numpy_names() -> dict[str, Any]:
    """The same by the dotted names that pickles call them."""
    found = numpy_globals()
    named = (one if isinstance(one, tuple) else (one, f"{one.__module__}.{one.__name__}") for one in found)
    return {name: one for one, name in named}


def safe_load(file: Path | IO[bytes]) -> Any:
    """The object in a `torch.save` file, on the CPU: tensors, plain containers, numpy arrays and scalars.

    Tensors in a file of torch's own archive are mapped: what is not looked at takes no memory.

    Raises:
        pickle.UnpicklingError: if the file needs anything else to be run or imported.
        Exception: in torch's many ways, if the file is not whole.
    """
    with torch.serialization.safe_globals(numpy_globals()):
        mapped = isinstance(file, Path) and zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
