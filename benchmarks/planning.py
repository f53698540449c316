"""How fast all budgets are found: dense recursion against divide and conquer on the same KL costs, in one run.

    python -m benchmarks.planning          # at N = 4000 the dense recursion is timed on a sample of its layers
    python -m benchmarks.planning --full   # every layer of it
    python -m benchmarks.planning --quick  # N = 200 only

Costs are those of exact data with 16 variances between 1 and 0.01 (linear schedule, through index 1). Two dense
recursions are timed: "dense" is the library's, in row blocks that fit the cache and skip the empty half s >= t;
"one block" adds and reduces the whole feasible block t >= k, s >= k-1 of a layer at once. Every search must find the
same costs to 1e-9. Times are CPU seconds of one thread. Building the table is timed apart: all searches need it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

from adpm.costs import kl_costs
from adpm.process import Array, DiscreteProcess, linear_betas
from adpm.shortest_path import (
    STRIDE,
    Edges,
    IntArray,
    Search,
    all_budgets,
    dense,
    divide,
    monge_violation,
    table_edges,
)
from benchmarks.protocol import describe


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


def problem(last: int) -> Edges:
    """KL costs of a smooth exact variance curve."""
    process = DiscreteProcess(linear_betas(last))
    v, snr = np.logspace(0, -2, 16), np.exp(process.log_snr(process.times[1:]))
    variance = np.concatenate([[0.0], (v / (1 + np.multiply.outer(snr, v))).mean(axis=1)])
    start = time.process_time()
    table = kl_costs(process, variance).table
    built = time.process_time() - start
    start = time.process_time()
    violation = monge_violation(table)
    checked = time.process_time() - start
    print(
        f"N = {last}: table built in {built:.2f} s, Monge condition checked in {checked:.2f} s (worst {violation:.1e})"
    )
    return table_edges(table)


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
        return
    measure(1000, 1000, repeats=5, sample=0)
    measure(4000, 1000, repeats=1 if full else 3, sample=0 if full else 40)


if __name__ == "__main__":
    main()
