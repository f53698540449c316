"""What does a covariance in a basis gain over the best scalar? KL terms in a world whose posterior mean is exact.

A world: 8x8 grey crops (mean of RGB, in [-1, 1], d = 64) of scikit-learn's two photographs, 12,000 of all of them, a
Gaussian mixture of 40 full covariances fitted to these by expectation maximisation (+ 1e-4 I), and the process with 60
reference times even in log-SNR between the ends of the linear schedule, 9.21 and -10.1. With R_t the second moment of
x_0 - E[x_0 | x_t] over x_0 drawn from the mixture, a step t -> s at eta = 1 has the expected bound term, bits/dim,

    1/(2 d) log2 det(I + (gamma_s - gamma_t) C_t),        C_t = R_t, or its diagonal in a basis, or tr R_t / d

on the least-cost path of K steps under it. The path goes through the first reference time, and the step from there to
the data is one of the K and is not priced (adpm/costs.py). A seed chooses the crops, thus the mixture, and the draws:
the crops matter most.

The second table gives the mean an error: white, independent of x_0 - E[x_0 | x_t], with a share of its energy. Then
the moments are r_f = (R_t)_ff + share tr R_t / d; a covariance c_f instead of r_f costs 1/(2 d log 2) times

    sum_f log1p(D c_f) + D (r_f - c_f) / (1 + D c_f),      D = gamma_s - gamma_t

    python -m benchmarks.patch_world [--patches=12000] [--components=40] [--times=60] [--draws=5000] [--seeds=5]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from adpm.costs import first_edges, measured_costs
from adpm.draws import Source
from adpm.ideal import IdealDenoiser, Mixture
from adpm.mixture_fit import fit_mixture
from adpm.noise import KeyedNoise
from adpm.planning import planner
from adpm.process import Array, DiscreteProcess, linear
from adpm.shortest_path import edge_table
from benchmarks.protocol import describe

SIDE, RIDGE, SHARE = 8, 1e-4, 0.1
DEFAULTS = {"patches": 12_000, "components": 40, "times": 60, "draws": 5000, "seeds": 5}  # draws: per time and seed
Curve = tuple[Array, Array]
"""r_f and c_f, [T, F] each: the moments, and the variances in use instead."""


def grey_patches(n: int, seed: int) -> Tensor:
    """n of all crops, without repetition, [n, 1, 8, 8] in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    grey = [torch.tensor(photograph).double().mean(2) / 127.5 - 1.0 for photograph in load_sample_images().images]
    crops = torch.cat([g.unfold(0, SIDE, 1).unfold(1, SIDE, 1).reshape(-1, 1, SIDE, SIDE) for g in grey])
    return crops[np.sort(np.random.default_rng(seed).choice(len(crops), n, replace=False))]


def even_process(times: int) -> DiscreteProcess:
    """Reference times even in log-SNR, with the ends of the linear schedule of 1000 steps."""
    whole = linear(1000)
    log_snr = np.linspace(*whole.log_snr(whole.times[[1, -1]]), times)
    kept = np.concatenate([[1.0], 1.0 / (1.0 + np.exp(-log_snr))])  # alpha^2
    return DiscreteProcess(1.0 - kept[1:] / kept[:-1])


def second_moments(mixture: Mixture, process: DiscreteProcess, draws: int, seed: int) -> Array:
    """E (x_0 - E[x_0 | x_t]) (x_0 - E[x_0 | x_t])^T at the times 1..N, [N, d, d]."""
    exact, noise, found = IdealDenoiser(mixture, process), KeyedNoise(seed, "patch world"), []
    x0 = mixture.sample(draws, seed)
    for k, t in enumerate(process.times[1:]):
        eps = noise(torch.arange(draws), k, mixture.shape).double()
        x = float(process.alpha(t)) * x0 + float(process.sigma(t)) * eps
        error = torch.cat([one - exact(part, t).x0 for one, part in zip(x0.split(250), x.split(250), strict=True)])
        found.append(error.flatten(1).mT @ error.flatten(1) / draws)
    return torch.stack(found).numpy()


def diagonals(moments: Array, pca: Array) -> dict[str, Array]:
    """Variances [N, F] of each kind of covariance; `pca` has its axes in columns."""
    cosines = dct(np.eye(SIDE), axis=0, norm="ortho")
    axes = {"pixel": np.eye(len(pca)), "DCT": np.kron(cosines, cosines).T, "PCA": pca}
    scalar = np.trace(moments, axis1=1, axis2=2)[:, None] / len(pca)
    within = {name: np.einsum("if,tij,jf->tf", q, moments, q, optimize=True) for name, q in axes.items()}
    return {"scalar": scalar, **within, "best matrix": np.linalg.eigvalsh(moments)}


def bits(process: DiscreteProcess, curve: Curve, budgets: Sequence[int]) -> Array:
    """KL terms of the least-cost paths, bits/dim."""
    r, c = curve
    snr = np.exp(process.log_snr(process.times[1:]))

    def column(t: int) -> Array:
        drop = (snr[: t - 1] - snr[t - 1])[:, None]
        terms = np.log1p(drop * c[t - 1]) + drop * (r[t - 1] - c[t - 1]) / (1.0 + drop * c[t - 1])
        return terms.mean(1) / (2.0 * math.log(2.0))

    table = edge_table(process.steps, column)
    table[0] = first_edges(process, None)
    found = planner(measured_costs(table), max(budgets))
    return np.array([found.plan(k).raw for k in budgets])


def curves(moments: Array, pca: Array, data: Array) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """What the tables compare, by an exact mean and by one in error; `data` holds the data's variances along `pca`."""
    exact = diagonals(moments, pca)
    off = {name: r + SHARE * exact["scalar"] for name, r in exact.items()}
    imperfect: dict[str, Curve] = {name: (off[name], off[name]) for name in ("scalar", "PCA")}
    imperfect["PCA, at most the data's variance"] = (off["PCA"], np.minimum(off["PCA"], data))
    return {name: (r, r) for name, r in exact.items()}, imperfect


def world_curves(args: argparse.Namespace, process: DiscreteProcess, seed: int) -> tuple[dict[str, Curve], ...]:
    """What `curves` gives in the world of a seed."""
    patches = grey_patches(args.patches, seed)
    source = Source.of(lambda index: patches[index], len(patches))
    mixture = fit_mixture(source, args.components, ridge=RIDGE, clusters="em")
    own, pca = np.linalg.eigh(np.cov(patches.flatten(1).numpy().T))
    data = own + RIDGE  # of the mixture, which x_0 is drawn from
    return curves(second_moments(mixture, process, args.draws, seed), pca, data)


def report(process: DiscreteProcess, worlds: Sequence[dict[str, Curve]], budgets: Sequence[int]) -> None:
    """Means over the worlds, with standard errors."""
    print("| covariance | " + " | ".join(f"K = {k}" for k in budgets) + " |\n" + "|---" * (len(budgets) + 1) + "|")
    for name in worlds[0]:
        each = np.array([bits(process, world[name], budgets) for world in worlds])
        told = zip(each.mean(0), each.std(0, ddof=1) / math.sqrt(len(each)), strict=True)
        print(f"| {name} | " + " | ".join(f"{value:.2f} ± {error:.2f}" for value, error in told) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description="covariances in bases, in worlds of natural patches")
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 25])
    args = parser.parse_args()
    torch.set_num_threads(1)
    process = even_process(args.times)
    exact, imperfect = zip(*(world_curves(args, process, seed) for seed in range(args.seeds)), strict=True)
    describe("Covariances in bases, in worlds of natural patches")
    print(", ".join(f"{name} {getattr(args, name)}" for name in DEFAULTS) + "; ± the standard error over seeds from 0.")
    print("KL terms of least-cost paths through the first time, eta = 1, bits/dim.\n")
    report(process, exact, args.steps)
    print(f"\nThe mean with a white error of {SHARE:.0%} of the residual's energy:\n")
    report(process, imperfect, args.steps)


if __name__ == "__main__":
    main()
