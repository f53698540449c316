"""What a reverse variance is, in one picture: where x_s may lie, given x_t, and three Gaussians that stand for it.

    python -m benchmarks.reverse_step --figure=docs/reverse_step.png

The data are two narrow Gaussians at -1 and 1 in one dimension, so the posterior q(x_s | x_t) is known exactly. The
steps have its exact mean; they differ in the variance that a rule gives them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from adpm import ideal
from adpm.kernel import reverse_kernel
from adpm.process import Array, linear
from adpm.run.figures import save_figure

MEANS, VARIANCE = np.array([-1.0, 1.0]), 0.01
T, S, X = 80.0, 15.0, 0.9
COLORS = {"small": "#7f7f7f", "large": "#d55e00", "analytic": "#0072b2"}


def normal(x: Array, mean: float, variance: float) -> Array:
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2.0 * np.pi * variance)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figure", type=Path, default=Path("runs/reverse_step.png"))
    args = parser.parse_args()
    process = linear(1000)
    kernel = reverse_kernel(process, T, S)
    alpha, sigma, gain, lambda2 = (float(v) for v in (kernel.alpha_t, kernel.sigma_t, kernel.gain, kernel.lambda2))
    world = ideal.diagonal_mixture([0.5, 0.5], MEANS[:, None], [VARIANCE, VARIANCE], (1, 1, 1))
    draws = world.sample(20_000, 0)
    noise = torch.randn(draws.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    average = float(world.posterior(alpha * draws + sigma * noise, alpha, sigma)[1].mean())
    mean = float(world.posterior(torch.full((1, 1, 1, 1), X), alpha, sigma)[0])

    def step_mean(x0: float) -> float:
        return float(kernel.alpha_s) * x0 + float(kernel.eps_scale) * (X - alpha * x0) / sigma

    weights = normal(X, alpha * MEANS, alpha**2 * VARIANCE + sigma**2)
    centres = MEANS + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (X - alpha * MEANS)
    within = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    x = np.linspace(0.2, 1.6, 600)
    parts = zip(weights / weights.sum(), centres, strict=True)
    exact = sum(w * normal(x, step_mean(c), lambda2 + gain**2 * within) for w, c in parts)
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(x, exact, color="#cbe6f6", label="where x_s really lies, given x_t")
    rules = {"small": lambda2, "large": float(kernel.forward_variance), "analytic": lambda2 + gain**2 * average}
    for name, variance in rules.items():
        label = f"{name}: variance {variance:.3f}"
        axes.plot(x, normal(x, step_mean(mean), variance), color=COLORS[name], label=label)
    axes.axvline(X, color="black", linewidth=0.8, linestyle=":", label="x_t")
    axes.set(xlabel="x_s", yticks=[], title=f"One step back, from t = {T:g} to s = {S:g}: same mean, three variances")
    axes.legend(fontsize=8, frameon=False)
    save_figure(args.figure, figure)
    told = ", ".join(f"{name} {variance:.4f}" for name, variance in rules.items())
    print(f"variances of the step {T:g} -> {S:g}: {told}; of q(x_s | x_t = {X}): {_variance(x, exact):.4f}")
    print(f"figure: {args.figure}")


def _variance(x: Array, density: Array) -> float:
    mean = np.trapezoid(x * density, x)
    return float(np.trapezoid((x - mean) ** 2 * density, x))


if __name__ == "__main__":
    main()
