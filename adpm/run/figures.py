"""Figures of a run, by matplotlib without a screen."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from adpm.process import Array
from adpm.whole import write_whole

_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}}
"""Of formats that would name the day."""

_GAP = 1
"""Pixels between images of a strip."""


def save_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure in the format that the path's suffix says (none: PNG); the same figure makes the same file."""
    kind = path.suffix.removeprefix(".") or "png"
    with matplotlib.rc_context({"svg.hashsalt": "adpm"}):  # names of an SVG's parts, random without
        write_whole(path, lambda p: figure.savefig(p, format=kind, dpi=dpi, metadata=_METADATA.get(kind)))


def strip_figure(images: ArrayLike, times: Array, log_snr: Array) -> Figure:
    """Images along a path with the time and log-SNR of each column under it.

    Args:
        images: [rows, columns, C, H, W] in [0, 1]; in grey unless C = 3.
        times, log_snr: [columns].
    """
    values = np.clip(np.moveaxis(np.asarray(images, dtype=np.float64), 2, -1), 0.0, 1.0)
    if values.shape[-1] != 3:
        values = values.mean(-1, keepdims=True)
    figure, axes = _strip_axes(values, times, log_snr)
    axes.imshow(_tiled(values, fill=1.0), cmap="gray", vmin=0.0, vmax=1.0)
    return figure


def deviation_figure(deviation: ArrayLike, times: Array, log_snr: Array) -> Figure:
    """Standard deviations along a path on one logarithmic scale, with its bar, three decades at most.

    Args:
        deviation: [rows, columns, C, H, W], not negative; channels are shown by their root mean square.
        times, log_snr: [columns].
    """
    values = np.sqrt(np.square(np.asarray(deviation, dtype=np.float64)).mean(2))[..., None]
    highest = float(values.max())
    floor = 1e-3 * highest
    cut = bool(values.min() < floor)
    lowest = floor if cut else float(values.min())
    norm = LogNorm(lowest, highest) if 0.0 < lowest < highest else Normalize(0.0, highest or 1.0)
    figure, axes = _strip_axes(values, times, log_snr)
    picture = axes.imshow(_tiled(np.maximum(values, lowest), fill=np.nan), cmap="viridis", norm=norm)
    bar = figure.colorbar(picture, ax=axes, extend="min" if cut else "neither", pad=0.01)
    bar.set_label("standard deviation of the step")
    return figure


def _tiled(values: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
    """Images [rows, columns, H, W, C] as one [height, width, C], with gaps between them."""
    padded = np.pad(values, ((0, 0), (0, 0), (_GAP, 0), (_GAP, 0), (0, 0)), constant_values=fill)
    rows, columns, height, width, channels = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)[_GAP:, _GAP:]


def _strip_axes(values: NDArray[np.float64], times: Array, log_snr: Array) -> tuple[Figure, Axes]:
    """A figure in the shape of the tiles, with a tick under each column."""
    rows, columns, height, width, _ = values.shape
    inches = min(max(0.6, 6.0 / columns), 1.2)
    figure = Figure(figsize=(columns * inches + 1.2, rows * inches * height / width + 0.8), layout="constrained")
    axes = figure.subplots()
    centres = np.arange(columns) * (width + _GAP) + (width - 1) / 2.0
    axes.set_xticks(centres, [f"{t:.4g}\n{s:.1f}" for t, s in zip(times, log_snr, strict=True)], fontsize=8)
    axes.set_xlabel("t, and log-SNR below it, of the state that the step begins with", fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes
