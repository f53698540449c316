"""Least-cost paths with a given number of edges, all budgets in one pass (Watson et al. 2021, section 3).

Nodes are 0..N and an edge s -> t, s < t, costs F[s, t]. The cheapest path 0 -> t with exactly k edges costs

    C[1, t] = F[0, t],        C[k, t] = min_{k-1 <= s < t} C[k-1, s] + F[s, t],        k = 2..K_max

Three searches find the arg-mins of one layer k; all take the first index on ties:

    dense    every s < t: O(N^2) per layer, right for any costs
    divide   for Monge costs, F[a,c] + F[b,d] <= F[a,d] + F[b,c] where 1 <= a < b < c < d, the arg-min never falls as
             t grows. Every `stride`-th row t is searched in full, the rows between two of them only between their
             arg-mins: O(N^2/stride + N stride) per layer, O(N^1.5) at the best stride.
    halve    for Monge costs, too: the middle row first, then those in the middle of what is left, each between the
             arg-mins of its neighbours: O(N log N) per layer. Fewer costs than `divide`, but more work for each, so
             it is for costs that are priced when they are asked for, where a table of N^2 of them would not fit.

The costs F[0, t] of the first edge are only the vector C[1, :] and may be anything, for all searches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adpm.errors import UserError
from adpm.process import Array

IntArray = NDArray[np.int64]

ROWS = 64  # rows of one dense block: its sums stay in the cache and little of the empty half s >= t is visited
STRIDE = 96  # measured best for N = 1000 and N = 4000; numpy's cost per call sets it more than N does
MOST_DENSE = 15_000  # N up to which the table that the dense search needs, of 8 (N + 1)^2 bytes, may be made: 1.8 GB
MOST_TABLED = 5000  # N up to which a table, of 8 (N + 1)^2 bytes, is quicker than costs priced when they are asked for


@dataclass(frozen=True)
class Edges:
    """Costs of all edges between the nodes 0..last.

    Attributes:
        last: N, the node that paths end at.
        first: [N+1], cost of the edge 0 -> t; +inf at t = 0.
        block: (slice of t, slice of s) -> costs [len(t), len(s)], 1 <= s, +inf where s >= t.
        pairs: (s, t), index arrays of one shape with 1 <= s < t -> costs of that shape.
        tabled: whether costs are looked up; else each is computed whenever it is asked for.
    """

    last: int
    first: Array
    block: Callable[[slice, slice], Array]
    pairs: Callable[[IntArray, IntArray], Array]
    tabled: bool = True

    def cost(self, path: IntArray) -> float:
        """Sum of the costs along a path [0 < t_1 < ... < N]."""
        return float(np.concatenate([self.first[path[1:2]], self.pairs(path[1:-1], path[2:])]).sum())

    def table(self) -> Array:
        """F [N+1, N+1], F[s, t] for s < t, +inf elsewhere."""
        by_row = np.full((self.last + 1, self.last + 1), np.inf)
        by_row[:, 0] = self.first
        for low in range(2, self.last + 1, ROWS):
            high = min(low + ROWS, self.last + 1)
            by_row[low:high, 1:high] = self.block(slice(low, high), slice(1, high))
        return by_row.T


def edge_table(last: int, column: Callable[[int], Array]) -> Array:
    """F [N+1, N+1] with F[1..t-1, t] = column(t) for t = 2..N, +inf elsewhere, laid out for `table_edges`."""
    by_row = np.full((last + 1, last + 1), np.inf)
    for t in range(2, last + 1):
        by_row[t, 1:t] = column(t)
    return by_row.T


def require_room(last: int) -> None:
    """Refuse a table of too many nodes.

    Raises:
        UserError: naming a way out.
    """
    if last > MOST_DENSE:
        raise UserError(
            f"{last} reference times are too many to look at every step between them, {MOST_DENSE} at most: use fewer, "
            "or costs that keep the Monge condition, such as `cost` = 'kl' with its projection."
        )


def table_edges(table: ArrayLike) -> Edges:
    """Edges from a table F [N+1, N+1], F[s, t] for s < t, +inf where s >= t or where no edge exists.

    Raises:
        UserError: if the table is not square, holds NaN or -inf, or is finite somewhere in s >= t.
    """
    costs = np.asarray(table, dtype=np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or costs.shape[0] < 2:
        raise UserError(f"a cost table must be [N+1, N+1] with N >= 1, got shape {costs.shape}.")
    if np.isnan(costs).any() or np.isneginf(costs).any():
        raise UserError("a cost table must hold numbers, or +inf where there is no edge, but it has NaN or -inf.")
    if np.isfinite(costs)[np.tri(len(costs), dtype=bool)].any():
        raise UserError("a cost table F[s, t] must be +inf where s >= t, but it is finite there; is it transposed?")
    by_row = np.ascontiguousarray(costs.T)
    flat, width = by_row.ravel(), len(by_row)
    return Edges(
        last=width - 1,
        first=by_row[:, 0].copy(),
        block=lambda t, s: by_row[t, s],
        pairs=lambda s, t: flat.take(t * width + s),
    )


def priced_edges(
    last: int, first: Array, price: Callable[[IntArray, IntArray], Array], most_tabled: int = MOST_TABLED
) -> Edges:
    """Edges whose costs are price(s, t), for index arrays that broadcast, 1 <= s < t.

    Up to N = most_tabled a table is made of them at once, beyond it nothing is kept.
    """

    def block(t: slice, s: slice) -> Array:
        row, column = np.arange(last + 1)[t, None], np.arange(last + 1)[None, s]
        return np.where(column < row, price(np.minimum(column, row - 1).clip(1), row.clip(2)), np.inf)

    edges = Edges(last, first, block, price, tabled=False)
    return edges if last > most_tabled else table_edges(edges.table())


Search = Callable[[Array, int], IntArray]
"""(C[k-1, :], k) -> the arg-min s of C[k-1, s] + F[s, t] for t = k..N."""


def dense(edges: Edges) -> Search:
    """Look at every s < t, in a table.

    Raises:
        UserError: if that would be too large.
    """
    if not edges.tabled:
        require_room(edges.last)
        edges = table_edges(edges.table())

    def search(previous: Array, k: int) -> IntArray:
        parents = np.empty(edges.last + 1 - k, dtype=np.int64)
        for low in range(k, edges.last + 1, ROWS):
            high = min(low + ROWS, edges.last + 1)
            total = edges.block(slice(low, high), slice(k - 1, high - 1)) + previous[k - 1 : high - 1]
            total.argmin(axis=1, out=parents[low - k : high - k])
        parents += k - 1
        return parents

    return search


def divide(edges: Edges, stride: int = STRIDE) -> Search:
    """Look at every s < t in every `stride`-th row, and between their arg-mins elsewhere; for Monge costs."""

    def search(previous: Array, k: int) -> IntArray:
        last = edges.last
        parents = np.empty(last + 1 - k, dtype=np.int64)
        top = last - (last - k) // stride * stride
        total = edges.block(slice(top, last + 1, stride), slice(k - 1, last)) + previous[k - 1 : last]
        best = total.argmin(axis=1) + (k - 1)
        parents[top - k :: stride] = best
        start, low = k, k - 1
        for row, high in zip(range(top, last + 1, stride), best.tolist(), strict=True):
            if start < row:
                # Where costs tie, rounding may put `high` below `low`; any arg-min between them will do.
                between, window = parents[start - k : row - k], slice(low, max(low, high) + 1)
                (edges.block(slice(start, row), window) + previous[window]).argmin(axis=1, out=between)
                between += low
            start, low = row + 1, high
        return parents

    return search


def halve(edges: Edges) -> Search:
    """Look at every s < t in the middle row, then between the arg-mins of neighbours in finer ones; for Monge costs.

    All rows of one fineness are searched at once, their windows laid end to end.
    """

    def search(previous: Array, k: int) -> IntArray:
        count = edges.last + 1 - k
        best = np.empty(count + 1, dtype=np.int64)  # best[i] is row k - 1 + i's
        best[0] = k - 1
        half = 1 << (count.bit_length() - 1)
        while half:
            rows = np.arange(half, count + 1, 2 * half)
            low, above = best[rows - half], rows + half
            high = np.where(above > count, edges.last, best[np.minimum(above, count)])
            # Where costs tie, rounding may put `high` below `low`; any arg-min between them will do.
            high = np.maximum(np.minimum(high, rows + k - 2), low)
            best[rows] = _least(edges, previous, low, high, rows + (k - 1))
            half //= 2
        return best[1:]

    return search


def _least(edges: Edges, previous: Array, low: IntArray, high: IntArray, t: IntArray) -> IntArray:
    """The first arg-min s of previous[s] + F[s, t] in low..high, for each t."""
    width = high - low + 1
    begin = np.cumsum(width) - width
    s = np.arange(begin[-1] + width[-1]) - np.repeat(begin - low, width)
    total = previous[s] + edges.pairs(s, np.repeat(t, width))
    hits = np.flatnonzero(total == np.repeat(np.minimum.reduceat(total, begin), width))
    window = np.searchsorted(begin, hits, side="right") - 1
    found = np.empty_like(low)
    found[window[::-1]] = s[hits[::-1]]  # of several, the last to be written is the first
    return found


def monotone(edges: Edges) -> Search:
    """The quicker of the two searches for Monge costs."""
    return divide(edges) if edges.tabled else halve(edges)


@dataclass(frozen=True)
class Budgets:
    """Cheapest paths 0 -> N for every number of edges up to K_max.

    Attributes:
        costs: [K_max+1], cost with exactly k edges; +inf where there is no such path, and at k = 0.
        parents: [min(K_max, N)+1, N+1], the node before t on the best k-edge path to t.
    """

    costs: Array
    parents: NDArray[np.int32]

    def path(self, edges: int) -> IntArray:
        """The nodes [0 < ... < N] of the cheapest path with exactly `edges` edges.

        Raises:
            UserError: if there is no such path.
        """
        if not 1 <= edges < len(self.costs) or np.isinf(self.costs[edges]):
            raise UserError(f"no path has exactly {edges} steps of finite cost; possible are {self._possible()}.")
        path = np.empty(edges + 1, dtype=np.int64)
        path[0], path[edges] = 0, self.parents.shape[1] - 1
        for k in range(edges, 1, -1):
            path[k - 1] = self.parents[k, path[k]]
        return path

    def at_most(self, edges: int) -> IntArray:
        """The cheapest path with 1..`edges` edges; the one with fewest edges on ties. Cost need not fall with k.

        Raises:
            UserError: if there is no such path.
        """
        if not 1 <= edges < len(self.costs) or np.isinf(self.costs[: edges + 1]).all():
            raise UserError(f"no path has at most {edges} steps of finite cost; possible are {self._possible()}.")
        return self.path(int(self.costs[: edges + 1].argmin()))

    def _possible(self) -> str:
        known = np.flatnonzero(np.isfinite(self.costs))
        return f"{known[0]}..{known[-1]}" if known.size else "none"


def all_budgets(edges: Edges, max_edges: int, method: Callable[[Edges], Search] = dense) -> Budgets:
    """C[k, N] and the arg-mins for k = 1..max_edges.

    Raises:
        UserError: if max_edges < 1.
    """
    if max_edges < 1:
        raise UserError(f"the largest number of steps is {max_edges}, it must be at least 1.")
    last = edges.last
    layers, nodes = min(max_edges, last), np.arange(last + 1)
    costs = np.full(max_edges + 1, np.inf)
    parents = np.zeros((layers + 1, last + 1), dtype=np.int32)
    search = method(edges)
    previous = edges.first
    costs[1] = previous[last]
    for k in range(2, layers + 1):
        best = search(previous, k)
        current = np.full(last + 1, np.inf)
        current[k:] = previous.take(best) + edges.pairs(best, nodes[k:])
        parents[k, k:], costs[k], previous = best, current[last], current
    return Budgets(costs, parents)


def path_cost(table: Array, path: IntArray) -> float:
    """Sum of F[path[j], path[j+1]]."""
    return float(table[path[:-1], path[1:]].sum())


def monge_violation(table: Array) -> float:
    """max of F[a,c] + F[b,d] - F[a,d] - F[b,c] over neighbours b = a + 1, d = c + 1, 1 <= a < b < c < d <= N.

    The condition for neighbours gives it for all a < b < c < d, by summation. Negative when it holds with room,
    -inf when there is no quadruple (N < 4), +inf when an edge of one is missing.
    """
    by_row = np.asarray(table, dtype=np.float64).T
    last = len(by_row) - 1
    worst = -np.inf
    for c in range(3, last):
        with np.errstate(invalid="ignore"):
            step = by_row[c, 1:c] - by_row[c + 1, 1:c]  # F[s, c] - F[s, c+1] for s = 1..c-1
        if not np.isfinite(step).all():
            return np.inf
        worst = max(worst, float((step[:-1] - step[1:]).max()))
    return worst


METHODS: dict[str, Callable[[Edges], Search]] = {"dense": dense, "divide": monotone}
