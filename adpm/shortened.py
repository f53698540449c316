"""A process up to one of its times: what a path that begins after a jump is chosen on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from numpy.typing import ArrayLike

from adpm.costs import CostNeeds
from adpm.process import Array, Process
from adpm.published_split import Floats


class Shortened(Process):
    """The reference times 0..last of a process, each with its own alpha and sigma.

    Args:
        process: the whole.
        last: index of the last time that is kept, 1..N.
    """

    def __init__(self, process: Process, last: int) -> None:
        self.whole, self.times = process, process.times[: last + 1]
        self.prior_std = process.start_std(float(self.times[-1]))
        self.preserves_variance, self.continuous = process.preserves_variance, process.continuous
        self.pure_noise = process.pure_noise and last == process.steps

    def alpha(self, t: ArrayLike) -> Array:
        return self.whole.alpha(t)

    def sigma(self, t: ArrayLike) -> Array:
        return self.whole.sigma(t)

    def log_snr(self, t: ArrayLike) -> Array:
        return self.whole.log_snr(t)


def shortened(
    process: Process, last: int, needs: Callable[[bool], CostNeeds], ms_eps: Callable[[], Floats] | None
) -> tuple[Process, Callable[[bool], CostNeeds], Callable[[], Floats] | None]:
    """What a path is found with, of the reference times 0..last alone."""
    short, n = Shortened(process, last), last + 1

    def cut(priced: bool) -> CostNeeds:
        whole = needs(priced)

        def row() -> Array | None:
            found = whole.data_row()
            return None if found is None else found[:n]

        return replace(
            whole,
            process=short,
            variance=lambda: whole.variance()[:n],
            errors=lambda: whole.errors()[:n],
            data_row=row,
            axes=lambda: whole.axes()[:n],
            table=lambda: whole.table()[:n, :n],
        )

    return short, cut, None if ms_eps is None else lambda: ms_eps()[:n]
