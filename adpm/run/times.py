"""How training times are drawn: uniformly, evenly in log-SNR, or by the size of the loss.

A sampler turns uniform numbers u in [0, 1) into times with weights. The mean of weight * loss has the expectation of
the loss under the sampler's target, whatever the loss; weights are 1 where the target is the sampler's own density.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.families import Kind
from adpm.process import Array, Process
from adpm.run.state import check_tensors


def stratified(seed: int, iteration: int, batch_size: int) -> Array:
    """Uniform numbers in [0, 1), one per stratum of a batch (a lower variance than independent draws)."""
    offset = np.random.default_rng((seed, iteration)).random()
    return (offset + np.arange(batch_size) / batch_size) % 1.0


class TimeSampler(Protocol):
    """Training times. `state` is what a resumed run needs to go on as if it had not stopped.

    Attributes:
        learns: whether losses change the times that are drawn.
    """

    learns: bool

    def draw(self, u: Array) -> tuple[Array, Array]:
        """Times and weights, both [B] float64, for uniform numbers u [B] in [0, 1)."""

    def update(self, t: Array, losses: Array) -> None:
        """Learn from the unweighted losses [B] at times t [B]."""

    def state(self) -> dict[str, Tensor]:
        """Everything that `update` changed."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: saying what is off, if it is not the state of such a sampler.
        """


class Fixed:
    """Times that depend on u alone, weights 1."""

    learns = False

    def __init__(self, times: Callable[[Array], Array]) -> None:
        self._times = times

    def draw(self, u: Array) -> tuple[Array, Array]:
        return self._times(u), np.ones(len(u))

    def update(self, t: Array, losses: Array) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        pass


class LossAware:
    """p_t ~ sqrt(mean of the last `history` squared losses at t), weights 1 / (N p_t) (Nichol & Dhariwal 2021, eq. 18).

    The target is the uniform distribution over the N reference times. `uniform` of the probability is spread over all
    times, so that none is forgotten. Until every time has `history` losses the times are uniform, with weight 1: that
    warm-up takes at least N * history losses.

    Args:
        process: a discrete process; t = times[1], ..., times[N].
        history: losses kept for each time.
        uniform: share of the probability that is uniform.

    Raises:
        UserError: for an SDE, whose times have no second visit.
    """

    learns = True

    def __init__(self, process: Process, history: int = 10, uniform: float = 0.001) -> None:
        if process.continuous:
            raise UserError(
                "config.train.times = 'loss_aware' keeps losses of every time, so it needs a discrete process; "
                "use uniform or log_snr on an SDE."
            )
        self._times = process.times[1:]
        self._losses = np.zeros((process.steps, history))
        self._counts = np.zeros(process.steps, dtype=np.int64)
        self._uniform = uniform

    @property
    def warm(self) -> bool:
        """Whether every time has a full history."""
        return bool(np.all(self._counts >= self._losses.shape[1]))

    def probabilities(self) -> Array:
        """p_t, [N]."""
        steps = len(self._times)
        root = np.sqrt(np.mean(self._losses**2, axis=1)) if self.warm else np.ones(steps)
        total = root.sum()
        p = root / total if total > 0 else np.full(steps, 1.0 / steps)
        return p if not self.warm else (1.0 - self._uniform) * p + self._uniform / steps

    def draw(self, u: Array) -> tuple[Array, Array]:
        p = self.probabilities()
        edges = np.cumsum(p)
        index = np.minimum(np.searchsorted(edges / edges[-1], u, side="right"), len(p) - 1)
        return self._times[index], 1.0 / (len(p) * p[index])

    def update(self, t: Array, losses: Array) -> None:
        for row, loss in zip(np.searchsorted(self._times, t), losses, strict=True):
            self._losses[row, self._counts[row] % self._losses.shape[1]] = loss  # the oldest one goes
            self._counts[row] += 1

    def state(self) -> dict[str, Tensor]:
        return {"losses": torch.from_numpy(self._losses.copy()), "counts": torch.from_numpy(self._counts.copy())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        check_tensors("times", state, self.state())
        if (state["counts"] < 0).any():
            raise ValueError("times: counts are negative")
        self._losses[:] = state["losses"].cpu().numpy()
        self._counts[:] = state["counts"].cpu().numpy()


@dataclass(frozen=True)
class TimesFacts:
    """Attributes: learns: whether losses change the times that are drawn."""

    learns: bool = False


TIMES: dict[str, Kind] = {
    "uniform": Kind(lambda process: Fixed(process.uniform_times), "uniformly over the times", TimesFacts()),
    "log_snr": Kind(lambda process: Fixed(process.log_snr_times), "evenly in log-SNR", TimesFacts()),
    "loss_aware": Kind(LossAware, "by the size of the loss, for objectives that are a bound", TimesFacts(learns=True)),
}
