"""The published `ms_eps` files: E||eps_network||^2 / d for every step, as Analytic-DPM stores it.

`torch.save` of a numpy float32 array of shape [N + 1]; entry n belongs to step n, entry 0 is an unused 0.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adpm.draws import COLUMNS, GAMMA, Draws
from adpm.errors import UserError
from adpm.moments import MomentTable
from adpm.pickles import safe_load
from adpm.process import Array, Process
from adpm.reading import looks_like, plain_file


def read_array(path: Path, process: Process) -> NDArray[np.floating[Any]]:
    """The stored numbers [N + 1] in the file's own precision, which the published paths depend on.

    Raises:
        UserError: if the file is missing, not such a file, of another number of steps, or if an entry but the unused
            first is no mean of squares.
    """
    plain_file(path, "`ms_eps` file")
    try:
        if told := looks_like(path):
            raise ValueError(f"it is {told}")
        stored = np.asarray(safe_load(path))
        if stored.dtype.kind not in "fiu":
            raise ValueError(f"it holds {stored.dtype}")
        stored = stored if stored.dtype == np.float32 else stored.astype(np.float64)
    except pickle.UnpicklingError as error:
        raise UserError(f"`ms_eps` file '{path}' is not a saved array of numbers; refused.") from error
    except Exception as error:  # torch names a broken file in many ways
        raise UserError(f"`ms_eps` file '{path}' is not a saved array of numbers: {error}.") from error
    if stored.shape != (process.steps + 1,):
        raise UserError(
            f"`ms_eps` file '{path}' has shape {stored.shape}, but a process of N = {process.steps} steps "
            f"needs ({process.steps + 1},)."
        )
    bad = np.flatnonzero(~(np.isfinite(stored[1:]) & (stored[1:] >= 0.0)))
    if bad.size:
        n = int(bad[0]) + 1
        raise UserError(f"`ms_eps` file '{path}' holds {stored[n]:g} at n = {n}, which is no mean of squares.")
    return stored


def read_ms_eps(path: Path, process: Process) -> MomentTable:
    """A moment table with the gamma column of a published file; raises as `read_array` does.

    Such a file does not say which model it is of; only its length can be checked.
    """
    return table_of_gamma(read_array(path, process).astype(np.float64), process, str(path))


def table_of_gamma(ms_eps: Array, process: Process, source: str) -> MomentTable:
    """A table that knows gamma at every step and nothing else, errors included."""
    nan = np.full((len(COLUMNS), len(COLUMNS)), np.nan)
    draws = []
    for value in ms_eps[1:]:
        mean = np.full(len(COLUMNS), np.nan)
        mean[GAMMA] = value
        draws.append(Draws(1, mean, nan))
    return MomentTable(process.times[1:], tuple(draws), float("nan"), {"ms_eps": source})


def write_ms_eps(path: Path, table: MomentTable, process: Process) -> None:
    """The published form of a table's gamma, interpolated to every step."""
    variance = table.variance("gamma", process)(process.times[1:])
    gamma = 1.0 - variance * np.exp(process.log_snr(process.times[1:]))
    with path.open("wb") as file:  # a path would put its own name into the archive
        torch.save(np.concatenate([[0.0], gamma]).astype(np.float32), file)
