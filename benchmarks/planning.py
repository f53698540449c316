"""How fast all budgets are found: dense recursion against divide and conquer on the same KL costs, in one run.

    python -m benchmarks.planning          # at N = 4000 the dense recursion is timed on a sample of its layers
    python -m benchmarks.planning --full   # every layer of it
    python -m benchmarks.planning --quick  # N = 200 only, and few steps among 6,000 and 20,000

Costs are those of exact data with 16 variances between 1 and 0.01 (linear schedule, through index 1). Two dense
recursions are timed: "dense" is the library's, in row blocks that fit the cache and skip the empty half s >= t;
"one block" adds and reduces the whole feasible block t >= k, s >= k-1 of a layer at once. Every search must find the
same costs to 1e-9. Times are CPU seconds of one thread. Building the table is timed apart: all searches need it.

Then N = 20,000, whose table has no room: the whole plan, from variances to a path, with costs priced when asked for;
goal 10 s and 2 GB. The same search is compared with the dense recursion over a table at N = 6,000. `axes` has the
variances of 3,072 coordinates, in 256 groups. Peak memory is that of the process, the variances themselves included.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import numpy as np

from adpm.costs import Costs, axes_costs, kl_costs
from adpm.planning import planner
from adpm.process import Array, DiscreteProcess, linear_betas
from adpm.shortest_path import (
    STRIDE,
    Edges,
    IntArray,
    Search,
    all_budgets,
    dense,
    divide,
    halve,
    table_edges,
)
from benchmarks.protocol import describe

ROWS = 1000


def one_block(edges: Edges) -> Search:
    """Dense search of a layer in a single addition and reduction; the table's rows are contiguous."""
    last = edges.last

    def search(previous: Array, k: int) -> IntArray:
        total = edges.block(slice(k, last + 1), slice(k - 1, last)) + previous[k - 1 : last]
        return total.argmin(axis=1) + (k - 1)

    return search


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Least CPU time of `repeats` runs; all of this runs on one thread."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def curves(last: int, coordinates: int) -> tuple[DiscreteProcess, Array]:
    """A process of N times, and the exact Var_t of so many Gaussian coordinates, [N+1, coordinates]."""
    process = DiscreteProcess(linear_betas(last))
    v, snr = np.logspace(0, -2, coordinates), np.exp(process.log_snr(process.times[1:]))
    variance = np.ones((last + 1, coordinates))
    for begin in range(0, last, ROWS):  # in parts, for the memory
        variance[1 + begin : 1 + begin + ROWS] = v / (1 + np.multiply.outer(snr[begin : begin + ROWS], v))
    return process, variance


def problem(last: int) -> Edges:
    """KL costs of a smooth exact variance curve."""
    process, variance = curves(last, 16)
    start = time.process_time()
    costs = kl_costs(process, variance.mean(1))
    built = time.process_time() - start
    start = time.process_time()
    violation, _ = costs.monge()
    checked = time.process_time() - start
    print(
        f"N = {last}: costs built in {built:.2f} s, Monge condition checked in {checked:.4f} s (worst {violation:.1e})"
    )
    return costs.edges


def without_a_table(last: int, name: str, make: Callable[[DiscreteProcess, Array], Costs], budgets: int) -> None:
    """A whole plan, in seconds and the process's largest memory."""
    process, variance = curves(last, 16 if name == "kl" else 3072)
    start = time.process_time()
    plan = planner(make(process, variance), budgets).plan(budgets)
    spent, most = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"N = {last}, cost {name}, K = 1..{budgets}: {spent:.2f} s, peak {most:.2f} GB, {plan.method} search, "
        f"{plan.raw:.4f} nats/dim at K = {budgets}",
        flush=True,
    )


def at_scale(quick: bool) -> None:
    """N = 20,000, and that the search finds what the dense one does where that has room."""
    process, variance = curves(6000, 16)
    edges = kl_costs(process, variance.mean(1)).edges
    found, plain = all_budgets(edges, 5, halve).costs, all_budgets(table_edges(edges.table()), 5, dense).costs
    assert not edges.tabled and np.abs(found[2:] - plain[2:]).max() < 1e-9, "the searches disagree"
    print(f"N = 6000, K = 1..5: costs differ from the dense recursion's by {np.abs(found[2:] - plain[2:]).max():.1e}")
    for budgets in (25,) if quick else (25, 100, 1000):
        without_a_table(20_000, "kl", lambda process, v: kl_costs(process, v.mean(1)), budgets)
    if not quick:
        without_a_table(20_000, "axes", axes_costs, 25)


def all_layers(edges: Edges, budgets: int, method: Callable[[Edges], Search], repeats: int, expected: Array) -> float:
    """Seconds for every budget, after asserting the costs."""
    found = all_budgets(edges, budgets, method).costs
    assert np.abs(found[2:] - expected[2:]).max() < 1e-9, "the searches disagree"
    return seconds(lambda: all_budgets(edges, budgets, method), repeats)


def sampled_layers(edges: Edges, budgets: int, method: Callable[[Edges], Search], sample: int) -> float:
    """Seconds for `sample` evenly spaced layers, scaled to all; each layer's costs are asserted for every node."""
    chosen = np.unique(np.linspace(2, budgets, sample).round().astype(int))
    inputs: dict[int, Array] = {}

    def recording(of: Edges) -> Search:
        search = divide(of)

        def recorded(previous: Array, k: int) -> IntArray:
            if k in chosen:
                inputs[k] = previous
            return search(previous, k)

        return recorded

    all_budgets(edges, budgets, recording)
    search, quick, spent = method(edges), divide(edges), 0.0
    for k, previous in inputs.items():
        start = time.process_time()
        found = search(previous, k)
        spent += time.process_time() - start
        nodes = np.arange(k, edges.last + 1)
        costs = [previous[parents] + edges.pairs(parents, nodes) for parents in (found, quick(previous, k))]
        both = np.isfinite(costs[0])
        assert np.abs(costs[0][both] - costs[1][both]).max() < 1e-9, "the searches disagree"
    return spent * (budgets - 1) / len(chosen)


def report(name: str, spent: float, quick: float, note: str) -> None:
    print(f"    {name:<20} {spent:8.3f} s   {spent / quick:6.1f} times divide and conquer   {note}")


def measure(last: int, budgets: int, repeats: int, sample: int) -> None:
    """Time the three searches for K = 1..budgets; sample = 0 runs every layer of the dense ones."""
    edges = problem(last)
    expected = all_budgets(edges, budgets, divide).costs
    quick = all_layers(edges, budgets, divide, repeats, expected)
    print(f"  K = 1..{budgets}")
    report(
        "divide and conquer", quick, quick, f"all layers, best of {repeats}; {1e6 * quick / budgets:.0f} us per layer"
    )
    for name, method in (("dense", dense), ("one block", one_block)):
        if sample:
            note = f"{sample} of {budgets} layers timed and scaled (--full runs all)"
            report(name, sampled_layers(edges, budgets, method, sample), quick, note)
        else:
            note = f"all layers, best of {repeats}"
            report(name, all_layers(edges, budgets, method, repeats, expected), quick, note)


def main() -> None:
    parser = argparse.ArgumentParser(description="all budgets: dense recursion against divide and conquer")
    parser.add_argument("--full", action="store_true", help="run every dense layer at N = 4000, too (about a minute)")
    parser.add_argument("--quick", action="store_true", help="only N = 200, K = 1..200, to see that it works")
    options = parser.parse_args()
    full = options.full
    describe(f"all budgets: CPU seconds on one thread (load {os.getloadavg()[0]:.1f}), float64, stride {STRIDE}")
    if options.quick:
        measure(200, 200, repeats=1, sample=0)
        at_scale(quick=True)
        return
    measure(1000, 1000, repeats=5, sample=0)
    measure(4000, 1000, repeats=1 if full else 3, sample=0 if full else 40)
    at_scale(quick=False)


if __name__ == "__main__":
    main()
