"""Steps fitted to a network's own flow: linear in what a multistep method sees, by least squares over trajectories.

In y = x/alpha and D = x0_hat before limits, along the coordinates f of a basis, a step from t to s is

    y_s = c_f + a y_t + b D_t + e D_before        a, b, e one number for every band of coordinates

like all methods that call the network once a step and remember one prediction; here the numbers are those that lose
least over the trajectories of adpm/reference.py, with the means c_f of every coordinate and the variance of every band
kept. They are fitted step by step, on the states that the fitted steps themselves have reached, so that a step makes up
for what those before it lost; the last step has the trajectory's end for its target, not D. On Gaussian data whose
bands have one variance each, the flow is linear in y and the steps are exact, whatever K.

The same regressions on the trajectories' own states need no network call, whatever the times. They price a step by
what it misses, weighted by how much of that is left at the data, (lambda/(lambda + rho_s^2)) with the band's variance
lambda, as the flow of a Gaussian has it; the K times that lose least follow by dynamic programming over pairs of
neighbouring times, for a step depends on the time before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from adpm.classes import at
from adpm.denoiser import Denoise, require_finite
from adpm.errors import UserError
from adpm.process import Array, Process
from adpm.reference import Reference, Unlimited
from adpm.shortest_path import IntArray

RIDGE = 1e-9
"""Relative; where y and D are collinear, as on Gaussian data, the fit would otherwise be undetermined."""

NODE_BANDS = 8
"""Bands that times are chosen by."""


@dataclass(frozen=True)
class FittedStep:
    """c [d], and a, b and e (none in the first step) for each coordinate, [p, d]."""

    offset: Tensor
    weights: Tensor

    def __call__(self, seen: list[Tensor]) -> Tensor:
        """The next coordinates from y, D and the D before, each [B, d]."""
        return self.offset + sum((w * z for w, z in zip(self.weights, seen, strict=True)), torch.zeros_like(seen[0]))


def bands_of(variance: Tensor, bands: int) -> list[Tensor]:
    """Coordinates in bands of about equal numbers, in the order of their variance, the largest first.

    Raises:
        UserError: for fewer than one or more than there are coordinates.
    """
    if not 1 <= bands <= len(variance):
        raise UserError(f"`bands` = {bands} must lie in 1..{len(variance)}, the coordinates of the data.")
    return list(variance.argsort(descending=True, stable=True).tensor_split(bands))


def solved(gram: Array, right: Array) -> Array:
    """Least-squares weights [p, targets] of a gram [p, p] and right-hand sides [p, targets], relatively ridged."""
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    left = gram / scale[:, None] / scale + RIDGE * np.eye(len(gram))
    return np.linalg.solve(left, right / scale[:, None]) / scale[:, None]


def fit_steps(
    reference: Reference,
    process: Process,
    times: Array,
    predict: Callable[[Tensor, float], Tensor],
    bands: int,
) -> list[FittedStep]:
    """The steps of a path, the largest time first.

    Args:
        reference: the trajectories.
        process: whose times they are.
        times: [K+1], the path, increasing from 0.
        predict: (y [n, ...], t) -> D; K calls for every start.
        bands: how many.

    Raises:
        UserError: if the trajectories do not hold the path's times, or are too few.
    """
    groups, forward = bands_of(reference.variance, bands), reference.basis.forward
    fewest = min(map(len, groups)) * reference.starts
    if fewest < 10:
        raise UserError(f"`starts` = {reference.starts} and `bands` = {bands} leave {fewest} numbers to fit 3 to.")
    y, before, out = forward(reference.at(float(times[-1]), process)).flatten(1), list[Tensor](), list[FittedStep]()
    for t, s in zip(times[:0:-1].tolist(), times[-2::-1].tolist(), strict=True):
        state = reference.basis.inverse(y.reshape(-1, *reference.shape))
        d = forward(predict(state, t).double().to(y.device)).flatten(1)
        target = forward(reference.at(s, process)).flatten(1)
        out.append(_fitted([y, d, *before], target, groups))
        y, before = out[-1]([y, d, *before]), [d]
    return out


def _fitted(seen: list[Tensor], target: Tensor, groups: list[Tensor]) -> FittedStep:
    """The step that makes `target` [n, d] of what is seen, [n, d] each, with its means and its variance per band."""
    means, wanted = [z.mean(0) for z in seen], target.mean(0)
    centred, aim = torch.stack([z - m for z, m in zip(seen, means, strict=True)]), target - wanted
    weights = torch.zeros(len(seen), target.shape[1], dtype=target.dtype)
    for group in groups:
        rows, goal = centred[:, :, group].flatten(1), aim[:, group].flatten()
        found = torch.from_numpy(solved((rows @ rows.mT).numpy(), (rows @ goal)[:, None].numpy())[:, 0])
        energy = (found @ rows).square().sum()
        kept = (goal.square().sum() / energy).sqrt() if energy > 0.0 else 1.0  # least squares shrinks
        weights[:, group] = (kept * found)[:, None]
    return FittedStep(wanted - sum(w * m for w, m in zip(weights, means, strict=True)), weights)


class Priced:
    """What steps between the trajectories' own times miss, by regression, [previous, from, to].

    Indices 0..M are those of `reference.times`, 0 the data; a first step has no previous time, index M + 1 here.
    """

    def __init__(self, reference: Reference, process: Process) -> None:
        self.count = len(reference.times)
        rho2 = np.exp(-process.log_snr(reference.times[1:]))
        grams, carries = [], []
        bands = min(NODE_BANDS, len(reference.variance))
        rows = [_centred(reference, values) for values in (*reference.states, *reference.predictions)]
        for group in bands_of(reference.variance, bands):
            stack = torch.stack([row[:, group].flatten() for row in rows])
            grams.append((stack @ stack.mT / reference.starts).numpy())
            variance = float(reference.variance[group].mean())
            carries.append(np.concatenate([[1.0], variance / np.maximum(variance + rho2, 1e-300)]))
        self._grams, self._carries = grams, carries

    def missed(self, before: int | None, at: int) -> Array:
        """What steps from `at` to 0..at-1 miss at the data, [at], remembering the prediction at `before`."""
        seen = [at, self.count + at - 1, *([] if before is None else [self.count + before - 1])]
        targets, total = np.arange(at), np.zeros(at)
        for gram, carry in zip(self._grams, self._carries, strict=True):
            right = gram[seen][:, targets]
            weights = solved(gram[seen][:, seen], right)
            total += carry[targets] * np.maximum(gram[targets, targets] - (weights * right).sum(0), 0.0)
        return total

    @cached_property
    def _further(self) -> dict[tuple[int, int], Array]:
        """(previous, from) -> `missed`, of all steps but first ones."""
        pairs = ((p, i) for i in range(1, self.count - 1) for p in range(i + 1, self.count))
        return {(p, i): self.missed(p, i) for p, i in pairs}

    def best(self, steps: int) -> list[int]:
        """The path of K steps that misses least, as indices from 0 up to M.

        Raises:
            UserError: if there are not so many times.
        """
        last = self.count - 1
        if not 1 <= steps <= last:
            raise UserError(f"`steps` = {steps} must lie in 1..{last}, the times of the trajectories.")
        cost = np.full((self.count, self.count), np.inf)  # [from, to] of what leads through both
        cost[last, :last] = self.missed(None, last)
        back: list[dict[tuple[int, int], int]] = []
        for _ in range(steps - 1):
            new, came = np.full_like(cost, np.inf), dict[tuple[int, int], int]()
            for i in range(1, last):
                ways = np.stack([cost[p, i] + self._further[p, i] for p in range(i + 1, self.count)])
                new[i, :i] = ways.min(0)
                came |= {(i, j): i + 1 + int(p) for j, p in enumerate(ways.argmin(0))}
            back.append(came)
            cost = new
        path = [0, int(np.argmin(cost[:, 0]))]
        for came in reversed(back):
            path.append(came[path[-1], path[-2]])
        return path


def _centred(reference: Reference, values: Tensor) -> Tensor:
    """Coordinates [n, d] less their means."""
    z = reference.basis.forward(values.double()).flatten(1)
    return z - z.mean(0)


@dataclass
class Flow:
    """Trajectories with the network whose they are, and what has been fitted to them.

    Attributes:
        reference: the trajectories.
        denoise, process: of the network.
        batch_size: states per network call.
        device: where the network is.
    """

    reference: Reference
    denoise: Denoise
    process: Process
    batch_size: int = 256
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self._fitted: dict[tuple[float, ...], list[FittedStep]] = {}

    @torch.inference_mode()
    def predict(self, y: Tensor, t: float) -> Tensor:
        """D for states y = x/alpha [n, ...] of all trajectories in turn, float32.

        Raises:
            UserError: if the network returned numbers that are not finite.
        """
        alpha, out = float(self.process.alpha(t)), list[Tensor]()
        for numbers in torch.arange(len(y)).split(self.batch_size):
            free = Unlimited(at(self.denoise, numbers), self.process)
            x = (alpha * y[numbers]).float().to(self.device)
            out.append(require_finite(free(x, t), t).x0)
        return torch.cat(out)

    def steps(self, times: Array, bands: int) -> list[FittedStep]:
        """The steps of a path [K+1], the largest time first; fitted once, see `fit_steps`."""
        key = (*times.tolist(), float(bands))
        if key not in self._fitted:
            self._fitted[key] = fit_steps(self.reference, self.process, times, self.predict, bands)
        return self._fitted[key]

    @cached_property
    def _priced(self) -> Priced:
        return Priced(self.reference, self.process)

    def best_times(self, process: Process, steps: int) -> IntArray:
        """Indices into a process's reference times of the K steps that miss least, [K+1].

        Raises:
            UserError: if the trajectories are not from its last time, or are another's, or have not so many times.
        """
        times = self.reference.times
        if times[-1] != process.times[-1]:
            raise UserError(
                f"trajectories begin at t = {times[-1]:g}, the path at {process.times[-1]:g}; a start that jumps wants "
                "another `trajectory.name`."
            )
        chosen = times[self._priced.best(steps)]
        found = np.searchsorted(process.times, chosen)
        if not np.array_equal(process.times[found], chosen):
            raise UserError("these trajectories are of another process: their times are none of this one's.")
        return found
