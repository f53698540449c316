"""A path of times, and what planning it needs: moments, the data term, a rule's cost table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.bound import Images
from adpm.classes import at
from adpm.coordinates import Spectrum
from adpm.cost_table import measure_column
from adpm.costs import CostNeeds, first_edges
from adpm.data_term import data_row, measure_data_row, planning_images
from adpm.denoiser import Denoise
from adpm.errors import UserError, lookup
from adpm.families import Families, built
from adpm.fitting import Flow
from adpm.kernel import Kernel
from adpm.likelihood import Decoder, Levels, keyed_noise
from adpm.moments import MomentTable
from adpm.planning import Plan, Planner, planner
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep, in_memory
from adpm.published_split import Floats
from adpm.shortened import shortened
from adpm.shortest_path import IntArray, edge_table
from adpm.trajectory import Request
from adpm.variance import Rule


@dataclass(frozen=True)
class Path:
    """Times that a sampler visits.

    Attributes:
        indices: [K+1], into the process's reference times; indices[0] = 0 is the data.
        times: [K+1].
        plan: how it was planned and what it costs, None where it was not.
    """

    indices: IntArray
    times: Array
    plan: Plan | None = None

    @property
    def steps(self) -> int:
        return len(self.indices) - 1

    @property
    def cost(self) -> float | None:
        """Nats per dimension by the costs as measured; None where the path was not planned."""
        return None if self.plan is None else self.plan.raw

    def __str__(self) -> str:
        if self.plan is None:
            return f"{self.steps} steps"
        plan = self.plan
        told = f"planned {plan.steps} steps ({plan.budget} {plan.asked}; {plan.method} search): {plan.raw:.4f} nats/dim"
        if plan.gap:
            told += f" by the costs as measured, {plan.planned:.4f} by their monotone projection (gap {plan.gap:+.1e})"
        return told


class _Recording:
    """A planner that remembers the plan it gave."""

    def __init__(self, inner: Planner) -> None:
        self._inner = inner
        self.plans: list[Plan] = []

    def plan(self, steps: int, budget: str = "exactly") -> Plan:
        self.plans.append(self._inner.plan(steps, budget))
        return self.plans[-1]


def find_path(
    families: Families,
    name: str,
    process: Process,
    steps: int,
    needs: Callable[[bool], CostNeeds],
    ms_eps: Callable[[], Floats] | None = None,
    last: int | None = None,
    flow: Callable[[], Flow] | None = None,
    **options: Any,
) -> Path:
    """The path of the trajectory `name`.

    Args:
        families: of trajectories and costs.
        name: of the trajectory.
        process: gives the reference times.
        steps: K.
        needs: (whether the last step is priced) -> what planning may ask for.
        ms_eps, flow: as in `Request`.
        last: index of the latest reference time that it may begin at; all unless given.
        options: of the trajectory, and of the costs that it plans on; those unsaid have their fields' defaults.

    Raises:
        UserError: if there is no such path.
    """
    if last is not None:
        process, needs, ms_eps = shortened(process, last, needs, ms_eps)
    made: list[_Recording] = []

    def solved(cost: str, method: str, data_term: bool, **of_cost: Any) -> Any:
        costs = built(families["cost"], cost, "`cost`", needs(data_term), **of_cost)
        made.append(_Recording(planner(costs, steps, method)))
        return made[-1]

    if steps > process.steps:
        after = "" if last is None else " that a jump leaves"
        raise UserError(
            f"`trajectory.steps` = {steps} must lie in 1..{process.steps}, the number of reference times{after}."
        )
    request = Request(process, steps, ms_eps, solved, flow)
    fields = lookup(families["trajectory"], name, "`trajectory.name`").fields
    unsaid = {key: own.default for key, own in fields.items() if own.given}
    indices = built(families["trajectory"], name, "`trajectory.name`", request, **{**unsaid, **options})
    plan = made[-1].plans[-1] if made and made[-1].plans else None
    return Path(indices, process.times[indices], plan)


def moment_needs(
    table: Callable[[], MomentTable],
    process: Process,
    *,
    data_row: Callable[[], Array | None],
    rule: Callable[[], Rule],
    spectrum: Callable[[], Spectrum],
    costs: Callable[[], Array],
    eta: float,
) -> CostNeeds:
    """What planning may ask for, from moments, a data row, a rule and its measured costs; each made when asked."""

    def axes() -> Array:
        known = spectrum().curve(process)(process.times[1:])
        return np.concatenate([np.zeros_like(known[:1]), known])

    def variance() -> Array:
        known = table()
        if np.isnan(known.data_variance):
            raise UserError(
                "planning needs the residual, which a published ms_eps file does not hold; unset `moments.ms_eps` to "
                "measure it, or use `trajectory.name` = 'published_split' or 'even'."
            )
        return np.concatenate([[0.0], known.variance("residual", process)(process.times[1:])])

    def errors() -> Array:
        return np.concatenate([[0.0], table().standard_error("residual", process)(process.times[1:])])

    def width() -> Callable[[Kernel], Array]:
        found = rule()
        return lambda kernel: np.asarray(found(kernel, None).values, dtype=np.float64)

    return CostNeeds(process, variance, errors, data_row, width, axes, costs, eta)


def gamma_of(table: MomentTable, process: Process) -> Floats:
    """E||eps_network||^2 / d at every reference time by the moments, [N+1], entry 0 unused."""
    times = process.times[1:]
    return np.concatenate([[0.0], 1.0 - table.variance("gamma", process)(times) * np.exp(process.log_snr(times))])


def measure_cost_table(
    denoise: Denoise,
    process: Process,
    rule: Rule,
    decoder: Decoder | None,
    levels: Levels,
    images: Images,
    numbers: Tensor,
    *,
    eta: float,
    seed: int,
    batch_size: int,
    keep: Keep = in_memory,
) -> Array:
    """F [N+1, N+1] of a rule in nats per dimension, measured at every reference time; +inf where there is no step.

    Without a decoder every path goes through the first reference time.
    """
    batches = []
    for part in numbers.split(batch_size):
        x0 = images(part).double()
        noise = keyed_noise(seed, process, part.to(x0.device), tuple(x0.shape[1:]), x0.dtype, "table")
        batches.append((at(denoise, part), x0, noise))

    @torch.inference_mode()
    def work(items: range) -> Arrays:
        given = (process, rule, decoder, levels, items.start + 1)
        parts = [len(x0) * measure_column(told, *given, [(x0, noise)], eta) for told, x0, noise in batches]
        return {"column": np.stack(parts).sum(0) / len(numbers)}

    columns = [done["column"].astype(np.float64) for done in keep(process.steps, 1, work, "cost table")]
    table = edge_table(process.steps, lambda t: columns[t - 1][1:])
    table[0] = first_edges(process, np.array([np.inf, *(c[0] for c in columns)]) if decoder is not None else None)
    return table


@dataclass(frozen=True)
class Pricing:
    """What planning asks for, measured whenever it is asked.

    Attributes:
        denoise, process, rule, eta: the reverse process; the rule is made when asked.
        table, spectrum: give the moments, and those per coordinate.
        decoder, levels: give the variance of the last step, and what the data look like.
        images: gives the images to measure on, and their number.
        draws, seed: of them and of their noise.
        batch_size: images per network call.
    """

    denoise: Denoise
    process: Process
    rule: Callable[[], Rule]
    eta: float
    table: Callable[[], MomentTable]
    spectrum: Callable[[], Spectrum]
    decoder: Callable[[], Decoder]
    levels: Callable[[], Levels]
    images: Callable[[], tuple[Images, int]]
    draws: int
    seed: int
    batch_size: int

    def needs(self, priced: bool) -> CostNeeds:
        """What the builder of costs may ask for; `priced`: the last step, too."""
        return moment_needs(
            self.table,
            self.process,
            data_row=lambda: self._row() if priced else None,
            rule=self.rule,
            spectrum=self.spectrum,
            costs=lambda: self._costs(priced),
            eta=self.eta,
        )

    def gamma(self) -> Floats:
        """E||eps_network||^2 / d at every reference time, [N+1]."""
        return gamma_of(self.table(), self.process)

    def _row(self) -> Array:
        images, count = self.images()
        numbers = planning_images(count, self.draws, self.seed)
        args = (self.denoise, self.process, self.decoder(), self.levels(), images, numbers, self.table().times)
        return data_row(self.process, measure_data_row(*args, seed=self.seed, batch_size=self.batch_size))

    def _costs(self, priced: bool) -> Array:
        images, count = self.images()
        numbers = planning_images(count, self.draws, self.seed)
        decoder = self.decoder() if priced else None
        args = (self.denoise, self.process, self.rule(), decoder, self.levels(), images, numbers)
        return measure_cost_table(*args, eta=self.eta, seed=self.seed, batch_size=self.batch_size)
