"""The Langevin corrector's stationary law against its target, as formulas and as simulated chains.

    python -m benchmarks.langevin [--figure=docs/langevin.png] [--chains=4000]

Gaussian data N(0, I/4), VE at t = 0.6, exact score, so the target is N(0, v I). Formulas: sde/corrector.py. A fixed
step and norms over a batch keep the law Gaussian; with norms per sample only E[1/||x||^2] is known, for which the
target has 1/((d - 2) v).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adpm import ideal
from adpm.noise import KeyedNoise
from adpm.process import Array
from adpm.run.figures import save_figure
from adpm.sampler import keyed
from benchmarks.protocol import describe
from sde.corrector import Langevin, StepSize, batch_norms, noise_level, sample_norms
from sde.process import VE

DATA, TIME, STEPS, PUBLISHED = 0.25, 0.6, 150, 0.16
SNRS = np.array([0.04, 0.08, 0.16, 0.25, 0.35, 0.5])
SIDES = (4, 8, 16)


def stationary(unit: StepSize, snr: float, side: int, chains: int) -> tuple[Array, float]:
    """||x||^2 / (v d) of the chains after STEPS steps from the target itself, and v."""
    sde, shape = VE(), (1, side, side)
    v = DATA + float(sde.sigma(TIME)) ** 2
    denoise = ideal.IdealDenoiser(ideal.gaussian(0.0, DATA, shape), sde)
    noise = keyed(KeyedNoise(0, "langevin"), torch.arange(chains), shape, torch.float64)
    # a long run for short steps: the relaxation takes 1/snr^2 of them
    steps = int(STEPS * max(1.0, (PUBLISHED / snr) ** 2))
    x, _, _ = Langevin(sde, snr, steps, unit).correct(denoise, v**0.5 * noise(0), TIME, (TIME, TIME), noise)
    return (x.flatten(1).square().sum(1) / (v * side**2)).numpy(), v


def row(name: str, snr: float, formula: float, found: Array) -> tuple[float, float]:
    """Print one comparison; returns the simulated figure and its standard error."""
    mean, error = float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5)
    print(f"| {name} | {snr:g} | {formula:.4f} | {mean:.4f} ± {error:.4f} |")
    return mean, error


def variance_panel(axes: Axes, chains: int) -> None:
    """Fixed step and batch norms: variance over target."""
    sigma2 = float(VE().sigma(TIME)) ** 2
    v = DATA + sigma2
    fine = np.linspace(0.01, 0.55, 200)
    formulas = {
        "step in units of sigma": (noise_level, lambda snr: 1.0 / (1.0 - snr**2 * sigma2 / v)),
        "norms over the batch": (batch_norms, lambda snr: 1.0 + snr**2),
    }
    for color, (name, (unit, formula)) in zip(("C0", "C1"), formulas.items(), strict=True):
        points = [row(name, snr, formula(snr), stationary(unit, snr, 4, chains)[0]) for snr in SNRS]
        axes.plot(fine, formula(fine), color=color, label=name)
        axes.errorbar(SNRS, *np.array(points).T, fmt="o", markersize=4, color=color)
    axes.set(xlabel="snr", ylabel="stationary variance / target", title="bias in the step size")


def norm_panel(axes: Axes, chains: int) -> None:
    """Norms per sample: 1/E[1/||x||^2] over the target's, whose bias stays when steps are short."""
    fine = np.linspace(0.01, 0.55, 200)
    for color, side in zip(("C2", "C3", "C4"), SIDES, strict=True):
        d = side**2
        points = []
        for snr in SNRS:
            ratio, _ = stationary(sample_norms, snr, side, chains)
            formula = (d - 2) / ((d + 2) * (1.0 + snr**2))
            points.append(row(f"norms per sample, d = {d}, E[1/||x||²]", snr, formula, (d - 2) / (d * ratio)))
        mean, error = np.array(points).T
        axes.plot(fine, (d + 2) / (d - 2) * (1.0 + fine**2), color=color, label=f"d = {d}")
        axes.errorbar(SNRS, 1.0 / mean, error / mean**2, fmt="o", markersize=4, color=color)
    axes.set(xlabel="snr", ylabel="1 / E[1/||x||²] / target", title="norms per sample: a bias for short steps, too")


def main() -> None:
    parser = argparse.ArgumentParser(description="stationary law of the Langevin corrector")
    parser.add_argument("--figure", type=Path, help="draw it into this PNG")
    parser.add_argument("--chains", type=int, default=4000)
    options = parser.parse_args()
    describe(f"Langevin corrector on Gaussian data, VE at t = {TIME:g}: {options.chains} chains in float64")
    print("| law over target: variance, or as named | snr | formula | simulated ± standard error |\n|---|---|---|---|")
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    variance_panel(left, options.chains)
    norm_panel(right, options.chains)
    for axes in (left, right):
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.axvline(PUBLISHED, color="gray", linestyle=":", label=f"published snr = {PUBLISHED}")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    if options.figure:
        save_figure(options.figure, picture)
        print(f"\nfigure: {options.figure}")


if __name__ == "__main__":
    main()
