"""How the reference times of a process in continuous time are spread between the first of them and T."""

from __future__ import annotations

import numpy as np

from adpm.families import Kind
from adpm.process import Array, Process

END = 1.0
"""T, the largest time."""


def _uniform(process: Process, steps: int, t_min: float) -> Array:
    """Even in t."""
    return np.linspace(t_min, END, steps) if steps > 1 else np.array([END])


def _log_snr(process: Process, steps: int, t_min: float) -> Array:
    """Even in log-SNR."""
    ends = process.log_snr(np.array([t_min, END]))
    inner = process.time_of(np.linspace(ends[0], ends[1], steps))
    return np.concatenate([[t_min], inner[1:-1], [END]]) if steps > 1 else np.array([END])


def _quadratic(process: Process, steps: int, t_min: float) -> Array:
    """Even in the square root of t."""
    return _uniform(process, steps, t_min**0.5) ** 2


def _edm(process: Process, steps: int, t_min: float) -> Array:
    """Even in (sigma/alpha)^(1/7), Karras et al. 2022."""
    ends = np.exp(-0.5 * process.log_snr(np.array([t_min, END]))) ** (1.0 / 7.0)
    ratio = np.linspace(ends[0], ends[1], steps) ** 7.0
    inner = process.time_of(-2.0 * np.log(ratio))
    return np.concatenate([[t_min], inner[1:-1], [END]]) if steps > 1 else np.array([END])


GRIDS: dict[str, Kind] = {
    "uniform": Kind(lambda: _uniform, "even in t"),
    "log_snr": Kind(lambda: _log_snr, "even in log-SNR"),
    "quadratic": Kind(lambda: _quadratic, "even in the square root of t"),
    "edm": Kind(lambda: _edm, "even in (sigma/alpha)^(1/7) (Karras et al. 2022)"),
}
