"""What the tour draws and counts from the files of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adpm.moments import MomentTable
from adpm.run.cli import parse
from adpm.run.core import CORE
from adpm.run.figures import excess_precision, save_figure
from adpm.run.modes import MODES
from adpm.run.tables import build

LEAST_DRAWN = 1e-3  # bits/dim of a step


def loss_curves(picture: Path, folders: Mapping[str, Path]) -> dict[str, float]:
    """Draw the losses in TensorBoard folders; returns the last test loss of each."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    last = {}
    for (name, folder), color in zip(folders.items(), ("C0", "C1"), strict=True):
        events = EventAccumulator(str(folder)).Reload()
        for tag, style in (("train/loss", "-"), ("test/loss", "o")):
            seen = events.Scalars(tag)
            axes.plot([e.step for e in seen], [e.value for e in seen], style, color=color, label=f"{name}, {tag}")
        last[name] = float(events.Scalars("test/loss")[-1].value)
    axes.set(xlabel="iteration", ylabel="mean squared error of eps")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(picture, figure)
    return last


def cost_of_steps(picture: Path, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw what every step of some paths adds to the bound, over the time that it starts from."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for (name, curve), style in zip(curves.items(), ("^:", "s--", "o-"), strict=True):
        bits = np.array(curve["bits_per_dim"])
        axes.plot(curve["t"], np.where(bits < LEAST_DRAWN, np.nan, bits), style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="t, where the step starts", ylabel="bits/dim that the step costs")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(picture, figure)


def what_moments_say(file: Path, options: Sequence[str]) -> dict[str, Any]:
    """Figures of a moment table, by the residual: Var[x_0 | x_t] against Var[x_0], and the excess precision.

    Args:
        file: the table.
        options: of the command that made it.
    """
    table = MomentTable.load(file)
    config = parse(["main.py", *options], MODES)[0]
    process = build(CORE.processes, config, "process")
    estimate = table.posterior_variance("residual", process)
    precision, half = excess_precision(table, process)
    falls = precision[:-1] + half[:-1] < precision[1:] - half[1:]  # times rise, so SNR falls from one to the next
    log_snr = process.log_snr(table.times)
    return {
        "times": len(table.times),
        "pairs": len(falls),
        "data_variance": table.data_variance,
        "prior_precision": 1.0 / table.data_variance,
        "above_data": int(np.count_nonzero(estimate.values - estimate.interval() > table.data_variance)),
        "falls": int(np.count_nonzero(falls)),
        "most_precise": precision[0],
        "high_log_snr": log_snr[0],
    }
