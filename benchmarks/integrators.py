"""Exponential integrators per coordinate, from the data's variances or the measured slopes: do they win?  On digits.

In y = x/alpha and rho = sigma/alpha, along the coordinates f of the data's PCA, the probability flow is
dy/drho = (y - D)/rho with D = x0_hat. Taking a linear part l_f(rho) out of D,

    D_f = m_f + l_f (y_f - m_f) + N_f,      z_f = (y_f - m_f)/w_f,      w_f = exp of the integral of (1 - l_f)/rho,
    z_s = z_t + N_f (u_s - u_t),            du/drho = -1/(rho w_f),     the last step to D

holds N constant over a step; DDIM is l = 0, and a Gaussian's flow is exact with l = lambda/(lambda + rho^2), where
w = sqrt(lambda + rho^2) and u = asinh(sqrt(lambda)/rho)/sqrt(lambda). Tried are that l with the data's variances and
the network's mean slope r_f/rho^2 from the moments, each with and without half of the linear extrapolation of N, and
DDIM with the part along eps_hat of each coordinate as long as keeps E z_f^2. Beside them, `fitted` (adpm/fitting.py).
All on the scalar's least-cost times, on times even in log-SNR and on those of `fitted`, from the same noise.

    python -m benchmarks.integrators [--samples=1000] [--seeds=5] [--steps 5 10]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

import adpm
from adpm.denoiser import Denoise
from adpm.fitted import Fitted
from adpm.gaussian import ZERO
from adpm.noise import KeyedNoise, Noise
from adpm.process import Array, Process
from adpm.reference import Unlimited
from adpm.run.metrics import FEATURES, FrechetDistance
from adpm.sampler import keyed, sample
from adpm.solver import Solver, Step
from benchmarks.protocol import describe

PATHS = ("least_cost", "log_snr", "fitted")


@dataclass(frozen=True)
class Known:
    """What is known per coordinate: m, lambda and r(t), with the process and what turns images into coordinates."""

    process: Process
    spectrum: adpm.coordinates.Spectrum
    mean: Tensor

    def log_rho(self, *times: float) -> Array:
        return -0.5 * self.process.log_snr(np.array(times))

    @cached_property
    def _curve(self) -> PchipInterpolator:
        return PchipInterpolator(-0.5 * self.process.log_snr(self.spectrum.times), np.log(self.spectrum.smoothed()))

    def residual(self, log_rho: Array) -> Array:
        """r_f, [..., d], also between the times of a discrete process; beyond the measured ones that of the last."""
        found: Array = np.exp(self._curve(np.clip(log_rho, *self._curve.x[[0, -1]])))
        return found


@dataclass(frozen=True)
class Linear:
    """log w_f(t) - log w_f(s) and u_s - u_t of a step, [d] each."""

    known: Known

    def none(self, t: float, s: float) -> tuple[Array, Array]:
        """Of l = 0: w = rho, u = 1/rho."""
        fallen = -np.diff(self.known.log_rho(t, s)) + 0.0 * self.known.spectrum.variance
        return fallen, -np.expm1(-fallen)

    def variance(self, t: float, s: float) -> tuple[Array, Array]:
        """Of l = lambda/(lambda + rho^2), in closed form."""
        root = np.sqrt(np.maximum(self.known.spectrum.variance, 1e-12))
        rho_t, rho_s = np.exp(self.known.log_rho(t, s))
        width_t, width_s = (np.hypot(root, rho) for rho in (rho_t, rho_s))
        return np.log(width_t / width_s), width_s * (np.arcsinh(root / rho_s) - np.arcsinh(root / rho_t)) / root

    def slope(self, t: float, s: float) -> tuple[Array, Array]:
        """Of l = r_f/rho^2, by the trapezoidal rule on 33 points even in log rho, from t down to s."""
        logs = np.linspace(*self.known.log_rho(t, s), 33)
        step, slope = logs[0] - logs[1], self.known.residual(logs) * np.exp(-2.0 * logs)[:, None]
        left = 1.0 - slope  # of d log w/d log rho
        fallen = step * np.concatenate([np.zeros((1, left.shape[1])), np.cumsum(0.5 * (left[1:] + left[:-1]), 0)])
        shrunk = np.exp(fallen - fallen[-1])  # w_s/w
        return fallen[-1], step * 0.5 * (shrunk[1:] + shrunk[:-1]).sum(0)


class Exponential:
    """The first-order step, or with a part of the extrapolation of N.

    Args:
        known: per coordinate.
        linear: (t, s) -> (log w_t/w_s, w_s (u_s - u_t)), whose l at t is `share`.
        share: t -> l_f(t), [d].
        extrapolated: the part of the linear extrapolation of N that is used.
    """

    def __init__(
        self,
        known: Known,
        linear: Callable[[float, float], tuple[Array, Array]],
        share: Callable[[float], Array],
        extrapolated: float,
    ) -> None:
        self.known, self.linear, self.share, self.extrapolated = known, linear, share, extrapolated

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        found, y, d = coordinates(self.known, denoise, x, t)
        if s == 0.0:
            return ended(self.known, found, d, x, t, s)
        rest = d - torch.as_tensor(self.share(t)) * y
        fallen, gained = (torch.as_tensor(part) for part in self.linear(t, s))
        used = rest
        if carry is not None:
            before, earlier = carry
            used = rest + 0.5 * self.extrapolated * (gained * torch.exp(fallen) / earlier) * (rest - before)
        return ended(self.known, found, y * torch.exp(-fallen) + used * gained, x, t, s, (rest, gained))


class Matched:
    """DDIM with c_f (y - D) for its y - D, c_f such that E (y_s - m)^2 = lambda + rho_s^2 for an exact mean."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        found, y, d = coordinates(self.known, denoise, x, t)
        if s == 0.0:
            return ended(self.known, found, d, x, t, s)
        variance, (rho_t, rho_s) = self.known.spectrum.variance, np.exp(self.known.log_rho(t, s))
        most = variance * rho_t**2 / (variance + rho_t**2)  # of a network that is no worse than the best linear mean
        r = np.minimum(self.known.residual(self.known.log_rho(t)[0]), most)
        a, c = np.maximum(rho_t**2 - r, 1e-12), -(r + rho_s**2)  # E (D - m + k (y - D))^2 = a k^2 + 2 r k + lambda - r
        return ended(self.known, found, d + torch.as_tensor((np.sqrt(r**2 - a * c) - r) / a) * (y - d), x, t, s)


def coordinates(known: Known, denoise: Denoise, x: Tensor, t: float) -> tuple[Any, Tensor, Tensor]:
    """(prediction, y - m, D - m), [B, d]."""
    found, forward = Unlimited(denoise, known.process)(x, t), known.spectrum.basis.forward
    y, d = (forward(z.double()).flatten(1) for z in (x / float(known.process.alpha(t)), found.x0))
    return found, y - known.mean, d - known.mean


def ended(known: Known, found: Any, y: Tensor, x: Tensor, t: float, s: float, carry: Any = None) -> Step:
    """The step to these coordinates."""
    made = known.spectrum.basis.inverse((y + known.mean).reshape(x.shape))
    mean = (float(known.process.alpha(s)) * made).to(x.dtype)
    return Step(t, s, mean, found, mean, ZERO, carry)


def solvers(known: Known, flow: adpm.fitting.Flow) -> dict[str, Callable[[Array], Solver]]:
    """Name -> path -> solver."""
    linear, variance = Linear(known), known.spectrum.variance

    def gaussian(t: float) -> Array:
        return variance / (variance + np.exp(2.0 * known.log_rho(t)))

    def measured(t: float) -> Array:
        return known.residual(known.log_rho(t)[0]) * np.exp(-2.0 * known.log_rho(t))

    return {
        "DDIM": lambda _: Exponential(known, linear.none, lambda _: 0.0 * variance, 0.0),
        "DDIM, E z_f^2 kept": lambda _: Matched(known),
        "data's variance": lambda _: Exponential(known, linear.variance, gaussian, 0.0),
        "data's variance, half extrapolated": lambda _: Exponential(known, linear.variance, gaussian, 0.5),
        "measured slope": lambda _: Exponential(known, linear.slope, measured, 0.0),
        "measured slope, half extrapolated": lambda _: Exponential(known, linear.slope, measured, 0.5),
        "fitted": lambda times: Fitted(known.process, times, lambda: flow, bands=1),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=300, help="of the moments")
    parser.add_argument("--times", type=int, default=100, help="of the moments")
    parser.add_argument("--starts", type=int, default=200, help="of the trajectories")
    parser.add_argument("--workdir", type=Path, default=Path("runs/integrators"))
    options = parser.parse_args()
    describe("Exponential integrators per coordinate")
    torch.set_num_threads(1)
    model = adpm.load(options.config, workdir=options.workdir)
    moments = model.measure(draws=options.draws, times=options.times, basis="pca")
    flow, images = model.measure_trajectories(starts=options.starts), model.images["train"]
    spectrum = moments.spectrum
    assert spectrum is not None
    centre = spectrum.basis.forward(images.double()).flatten(1).mean(0)
    known = Known(model.process, spectrum, centre)
    shape = tuple(images.shape[1:])
    spaces = ("digits", "pixels") if shape == (1, 8, 8) else ("pixels",)
    judges = [FrechetDistance(FEATURES[kind].build(shape), images) for kind in spaces]
    print(f"{options.samples} samples x {options.seeds} seeds, Frechet distances to the training images: {spaces}\n")
    print("| integrator | " + " | ".join(f"K = {k}, {path}" for k in options.steps for path in PATHS) + " |")
    print("|---" * (1 + len(options.steps) * len(PATHS)) + "|")
    paths = [
        model.plan(moments, k, path, statistics=flow if path == "fitted" else None).times
        for k in options.steps
        for path in PATHS
    ]
    for name, build in solvers(known, flow).items():
        cells = []
        for times in paths:
            samples = (drawn(model, build(times), times, seed, options.samples) for seed in range(options.seeds))
            found = np.array([[judge(images) for judge in judges] for images in samples])
            error = found.std(0, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.full(len(judges), np.nan)
            cells.append(" / ".join(f"{m:.3g} ± {e:.1g}" for m, e in zip(found.mean(0), error, strict=True)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def drawn(model: adpm.Model, solver: Solver, times: Array, seed: int, samples: int) -> Tensor:
    """Samples in [-1, 1]."""
    shape, parts = tuple(model.images["train"].shape[1:]), []
    for numbers in torch.arange(samples).split(500):
        noise = keyed(KeyedNoise(seed, "sample"), numbers, shape)
        *_, last = sample(model.denoise, solver, model.process, times, noise)
        parts.append(last.x)
    return torch.cat(parts).clamp(-1.0, 1.0)


if __name__ == "__main__":
    main()
