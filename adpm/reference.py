"""Trajectories of a network's own probability flow, followed closely, and what is read off them between their times.

In y = x/alpha and rho = sigma/alpha the flow is

    dy/drho = (y - D(y, rho))/rho,    D = x0_hat before any limits

for any process. A set of starts is followed from the last reference time to the first by DPM-Solver++ (2M), in steps
even in log-SNR, and from there to D, the data. States and predictions are kept; between two times a state is the cubic
in rho that has their values and slopes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.bases import basis_arrays, basis_from, check_basis
from adpm.basis import Basis
from adpm.classes import at
from adpm.denoiser import Denoise, Prediction, require_finite, unclipped_x0
from adpm.errors import UserError
from adpm.exponential import halved
from adpm.moments import spread_times
from adpm.moving import moved
from adpm.multistep import Multistep, Scheme
from adpm.noise import KeyedNoise
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep, in_memory
from adpm.provenance import require_own
from adpm.reading import measured_file
from adpm.sampler import keyed, sample


class Unlimited:
    """A denoiser whose x0 and eps are the network's own, before any limits."""

    def __init__(self, denoise: Denoise, process: Process) -> None:
        self._denoise, self._process = denoise, process

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        found = self._denoise(x, t)
        shape = (-1,) + (1,) * (x.ndim - 1)
        scales = (moved(f(t), x.device) for f in (self._process.alpha, self._process.sigma))
        alpha, sigma = (scale.double().reshape(shape) for scale in scales)
        x0 = unclipped_x0(found, x.double(), alpha, sigma)  # in double, where alpha may be small
        return replace(found, x0=x0.to(x.dtype), eps=found.eps_network)


@dataclass(frozen=True, eq=False)
class Reference:
    """Trajectories in y = x/alpha.

    Attributes:
        times: [M+1], increasing from 0, the data, to the last reference time.
        states: [M+1, n, ...], y at these times.
        predictions: [M, n, ...], D at times[1:].
        basis: whose coordinates they are compared in.
        shape: of the data.
        provenance: what the numbers depend on.
    """

    times: Array
    states: Tensor
    predictions: Tensor
    basis: Basis
    shape: tuple[int, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def starts(self) -> int:
        return self.states.shape[1]

    @cached_property
    def variance(self) -> Tensor:
        """Variance of the ends along each coordinate of the basis, [d], float64."""
        return self.basis.forward(self.states[0].double()).flatten(1).var(0, correction=0)

    def at(self, t: float, process: Process) -> Tensor:
        """y at a time of the range, [n, ...], float64: the cubic in rho through its neighbours.

        Raises:
            UserError: for a time between the data and the first of the times, or beyond the last.
        """
        after = int(np.searchsorted(self.times, t))
        if after < len(self.times) and self.times[after] == t:
            return self.states[after].double()
        if not 1 < after < len(self.times):
            raise UserError(f"the trajectories hold times {self.times[1]:g} to {self.times[-1]:g}, not t = {t:g}.")
        ends = [after - 1, after]
        rho = np.exp(-0.5 * process.log_snr(np.array([*self.times[ends], t])))
        width, u = rho[1] - rho[0], (rho[2] - rho[0]) / (rho[1] - rho[0])
        y = [self.states[i].double() for i in ends]
        slope = [(y[k] - self.predictions[i - 1].double()) / rho[k] for k, i in enumerate(ends)]
        value = (1 + 2 * u) * (1 - u) ** 2 * y[0] + u**2 * (3 - 2 * u) * y[1]
        return value + width * (u * (1 - u) ** 2 * slope[0] + u**2 * (u - 1) * slope[1])

    def save(self, path: Path) -> None:
        """Write everything to one npz file."""
        about = {"shape": list(self.shape), "provenance": dict(self.provenance)}
        arrays: dict[str, Any] = {"times": self.times, "about": np.array(json.dumps(about, sort_keys=True))}
        arrays |= {name: getattr(self, name).cpu().numpy() for name in ("states", "predictions")}
        arrays |= basis_arrays(self.basis)
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: Path) -> Reference:
        """Read a file written by `save`.

        Raises:
            UserError: if it is missing, not such a file, or holds what no measurement gives.
        """
        with measured_file(path, "trajectories file") as arrays:
            about = json.loads(str(arrays["about"]))
            states, predictions = (torch.from_numpy(arrays[name]) for name in ("states", "predictions"))
            shape, basis = tuple(about["shape"]), basis_from(arrays)
            found = Reference(arrays["times"], states, predictions, basis, shape, about["provenance"])
            _require(found)
            return found

    def require(self, provenance: Mapping[str, Any], path: Path) -> None:
        """Check that the file is about what is asked for: it agrees with every entry of `provenance`.

        Raises:
            UserError: naming the differing entries.
        """
        require_own(self.provenance, provenance, path, "trajectories", "trajectories_file")


def _require(found: Reference) -> None:
    """Refuse numbers that no measurement gives."""
    count, (states, predictions) = len(found.times), (tuple(found.states.shape), tuple(found.predictions.shape))
    if states != (count, *states[1:2], *found.shape) or predictions != (count - 1, *states[1:]) or not states[1]:
        raise UserError(f"states {states} and predictions {predictions} at {count} times, of data {found.shape}")
    if not (found.times[0] == 0.0 and (np.diff(found.times) > 0.0).all() and np.isfinite(found.times).all()):
        raise UserError("its times do not rise from 0")
    if not (torch.isfinite(found.states).all() and torch.isfinite(found.predictions).all()):
        raise UserError("some of its numbers are not finite")
    check_basis(found.basis, found.shape)


def measure_reference(
    denoise: Denoise,
    process: Process,
    basis: Basis,
    shape: tuple[int, ...],
    starts: int = 200,
    nodes: int = 60,
    *,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    keep: Keep = in_memory,
    provenance: Mapping[str, Any] | None = None,
) -> Reference:
    """Follow the flow from `starts` states of noise along about `nodes` times even in log-SNR.

    Args:
        denoise, process: the network and its process.
        basis: whose coordinates trajectories are compared in.
        shape: of the data.
        starts: n; their noise is a function of (seed, number).
        nodes: about M, network calls for each start.
        seed, batch_size, device, keep, provenance: as everywhere.

    Raises:
        UserError: if the network returned numbers that are not finite, or the basis does not fit.
    """
    check_basis(basis, shape)
    for name, value, least in (("starts", starts, 2), ("nodes", nodes, 4), ("batch_size", batch_size, 1)):
        if value < least:
            raise UserError(f"`{name}` = {value} must be at least {least}.")
    times = np.concatenate([[0.0], spread_times(process, nodes)])
    scales = process.alpha(times)

    @torch.inference_mode()
    def work(items: range) -> Arrays:
        numbers = torch.arange(items.start, items.stop, device=device)
        noise = keyed(KeyedNoise(seed, "trajectories"), numbers, shape)
        states, predictions = [], []
        solver = Multistep(process, times, Scheme(min(2, len(times) - 1), 2, halved(np.expm1)))
        free = Unlimited(at(denoise, numbers), process)
        for step in sample(free, solver, process, times, noise):
            require_finite(step.prediction, step.t)
            states.append(step.x / float(process.alpha(step.s)))
            predictions.append(step.prediction.x0)
        first = noise(0) * process.start_std(float(times[-1])) / scales[-1]
        own = {"states": torch.stack([first, *states]).flip(0), "predictions": torch.stack(predictions).flip(0)}
        return {name: value.float().cpu().numpy() for name, value in own.items()}

    parts = list(keep(starts, batch_size, work, "trajectories"))
    states, predictions = (
        torch.from_numpy(np.concatenate([part[name] for part in parts], 1)) for name in ("states", "predictions")
    )
    return Reference(times, states, predictions, basis, tuple(shape), dict(provenance or {}))
