"""The README's two tables of bits/dim on digits.

    python -m benchmarks.digits_bits [--workdir=runs/tables] [--images=0 (all)] [--figure=FILE.png]

One pass of the shipped model over the test split at all 1000 times gives the bound of every state-independent rule on
every path. Moments and data term come from the training split with the config's defaults. Every cell is the mean over
test images +- one standard error over images, all cells with the same noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from adpm.costs import Costs, bound_costs, kl_costs
from adpm.data_term import statistics_of
from adpm.kernel import Kernel
from adpm.likelihood import Statistics, bits_per_dim
from adpm.planning import planner
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.figures import save_figure
from adpm.run.measure import data_row_for, moments_for, moments_key, variance_for
from adpm.run.store import digest, read_arrays, save_arrays
from adpm.trajectory import Request, trajectory
from adpm.variance import Analytic, Bounded, Large, Rule, Small
from benchmarks.protocol import describe

BUDGETS = (3, 5, 10, 25, 50, 100, 1000)


class Bench:
    """A session with one decoder, its moments and its statistics on the test split."""

    def __init__(self, folder: Path, decoder: str, images: int) -> None:
        config = load_config("configs/digits.py")[0]
        config.likelihood.decoder = decoder
        self.session = Session.make(config, folder, house())
        self.process = self.session.process
        table = moments_for(self.session)
        times = self.process.times[1:]
        curves = {name: table.variance(name, self.process) for name in ("gamma", "residual")}
        self.residual = np.concatenate([[0.0], curves["residual"](times)])
        self.errors = np.concatenate([[0.0], table.standard_error("residual", self.process)(times)])
        self.gamma = np.concatenate([[0.0], curves["gamma"](times)])
        self.upper = table.data_variance
        self.rules: dict[str, Rule] = {
            "small": Small(),
            "large": Large(),
            "analytic, gamma": Bounded(Analytic(curves["gamma"]), self.upper),
            "analytic, residual": Bounded(Analytic(curves["residual"]), self.upper),
        }
        key = digest([self.session.identity, moments_key(self.session), decoder, images, config.seed])
        self.statistics = self._statistics(folder / f"statistics-{decoder}-{key}.npz", images)

    def _statistics(self, path: Path, images: int) -> Statistics:
        session, times = self.session, self.process.times[1:]
        dim = int(np.prod(session.data.shape))
        arrays = read_arrays(path)
        if arrays is None:
            numbers = torch.arange(images or len(session.data.split("test")))
            s = statistics_of(
                session.trunk.denoise,
                self.process,
                session.decoder(variance_for(session)),
                session.levels,
                session.images("test"),
                numbers,
                times,
                seed=session.config.seed,
                batch_size=session.config.likelihood.batch_size,
            )
            arrays = {"squared": s.squared, "data": s.data, "prior": s.prior}
            save_arrays(path, arrays)
        return Statistics(times, arrays["squared"], arrays["data"], arrays["prior"], dim)

    def costs(self, name: str, data_term: Array | None) -> Costs:
        """Planning costs of a rule: the KL cost for the optimal one, else the bound of the rule itself."""
        if name == "analytic, residual":
            return kl_costs(self.process, self.residual, self.errors, data_term)
        rule = self.rules[name]

        def width(kernel: Kernel) -> Array:
            return np.maximum(np.asarray(rule(kernel, None).values), 1e-300)

        return bound_costs(self.process, self.residual, width, data_term=data_term)

    def gamma_alone(self, data_term: Array | None) -> Costs:
        """Planned as published, with gamma for Var_t (negative estimates raised to 1e-6 of Var[x_0])."""
        limited = np.clip(self.gamma, 1e-6 * self.upper, self.upper)
        return kl_costs(self.process, limited, None, data_term, project=False)

    def bits(self, rule: Rule, path: Array) -> tuple[float, float]:
        terms = self.statistics.terms(self.process, rule, self.process.times[path])
        total = np.asarray(bits_per_dim(terms.sum(0), self.statistics.dim))
        return float(total.mean()), float(total.std(ddof=1) / np.sqrt(len(total)))


Row = list[tuple[float, float]]


def shown(mean: float, error: float) -> str:
    digits = 2 if mean < 100 else 0
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def table(bench: Bench, title: str, data_term: Array | None) -> dict[tuple[str, str], Row]:
    """Print one Markdown table; returns its cells."""
    print(f"\n### {title}\n")
    print("| rule | steps | " + " | ".join(f"K = {k}" for k in BUDGETS) + " |")
    print("|---|---|" + "---|" * len(BUDGETS))
    process = bench.process
    paths: dict[tuple[str, str], Callable[[int], Array]] = {}
    for name in bench.rules:
        paths[name, "even"] = lambda k: trajectory("even", Request(process, k))
        solved = planner(bench.costs(name, data_term), max(BUDGETS))
        paths[name, "least-cost"] = lambda k, solved=solved: solved.plan(k).path  # type: ignore[misc]
    alone = planner(bench.gamma_alone(data_term), max(BUDGETS))
    paths["analytic, gamma", "least-cost on gamma alone"] = lambda k: alone.plan(k).path
    cells: dict[tuple[str, str], Row] = {}
    for (name, steps), path_of in paths.items():
        row = cells[name, steps] = [bench.bits(bench.rules[name], path_of(k)) for k in BUDGETS]
        print(f"| {name} | {steps} | " + " | ".join(shown(*cell) for cell in row) + " |", flush=True)
    solved = planner(bench.costs("analytic, residual", data_term), max(BUDGETS))
    for k in (3, 5, 25):
        print(f"\nleast-cost path, residual, K = {k}: {solved.plan(k).path.tolist()}")
    return cells


def figure(path: Path, first: dict[tuple[str, str], Row], second: dict[tuple[str, str], Row]) -> None:
    """Bits/dim against K for the rules worth comparing, both tables side by side."""
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    titles = ("through t = 1, published decoder", "planned with the data term, optimal decoder")
    for axes, cells, title in zip(panels, (first, second), titles, strict=True):
        for name, color in (("small", "C0"), ("large", "C1"), ("analytic, residual", "C2")):
            for steps, style in (("even", "--"), ("least-cost", "-")):
                mean, error = np.array(cells[name, steps]).T
                label = f"{name}, {steps}"
                axes.errorbar(BUDGETS, mean, error, color=color, linestyle=style, marker=".", label=label)
        axes.set(xscale="log", ylim=(1.6, 6.4), xlabel="K, network calls", title=title)
        axes.set_xticks(BUDGETS, [str(k) for k in BUDGETS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("bits/dim, digits test split")
    panels[0].legend(fontsize=8, handlelength=3.5)
    save_figure(path, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description="bits/dim of digits by rule, path and budget")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"))
    parser.add_argument("--figure", type=Path, help="also draw the tables into this PNG")
    parser.add_argument("--images", type=int, default=0, help="test images; 0 = all 359")
    options = parser.parse_args()
    describe(f"bits/dim on the digits test split ({options.images or 359} images, one draw per image and time)")
    published = Bench(options.workdir, "published", options.images)
    first = table(published, "(i) through t = 1, published decoder", None)
    optimal = Bench(options.workdir, "optimal", options.images)
    second = table(optimal, "(ii) planned with the data term, optimal decoder", data_row_for(optimal.session))
    solved = planner(published.costs("analytic, residual", data_row_for(published.session)), max(BUDGETS))
    row = [published.bits(published.rules["analytic, residual"], solved.plan(k).path) for k in BUDGETS]
    print("\nanalytic, residual, planned with the data term of the published decoder and measured with it:")
    print("; ".join(f"K = {k}: {shown(*cell)}" for k, cell in zip(BUDGETS, row, strict=True)))
    seen = [5, 10, 20, 55, 100, 200, 500]
    ratio = optimal.statistics.variance()[np.array(seen) - 1] / optimal.residual[seen]
    print("\nsquared x0 error, test split over Var_t (measured on the training split):")
    print("; ".join(f"t = {t}: {r:.2f}" for t, r in zip(seen, ratio, strict=True)))
    if options.figure:
        figure(options.figure, first, second)
        print(f"\nfigure: {options.figure}")


if __name__ == "__main__":
    main()
