"""What do covariances that know the state gain, and in which coordinates? KL terms in the worlds of natural patches.

The worlds, times and paths are those of benchmarks/patch_world.py. With C(x_t) = Cov[x_0 | x_t] exact at every state,
a step t -> s at eta = 1 has the expected bound term, bits/dim,

    1/(2 d) E log2 det(I + (gamma_s - gamma_t) M(x_t)),     M = tr C / d, the diagonal of C in a basis, or C itself

over states of the mixture; without `per state` M is the mean over states. A spectral head with variances w_f(x_t) costs

    1/(2 d log 2) E sum_f [ log1p(D w_f) + D (C_ff - w_f) / (1 + D w_f) ],    D = gamma_s - gamma_t.

The head is a perceptron of (x_t, log-SNR) beside the exact mean, trained by objective `spectral_head` on a pool of
draws, in the cosine basis and scaled by moments measured in it. It is trained in the world of seed 0, and kept in
`workdir`.

`--digits` shows the same table in the world of benchmarks/estimators.py, in its principal axes.

    python -m benchmarks.patch_states [--minutes=7] [--iterations=0] [--bound-step=4] [--workdir=runs/patch_states]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from adpm.costs import first_edges, measured_costs
from adpm.draws import Source
from adpm.ideal import Mixture
from adpm.kernel import reverse_kernel
from adpm.mixture_fit import fit_mixture
from adpm.noise import KeyedNoise
from adpm.planning import Planner, planner
from adpm.process import Array, DiscreteProcess
from adpm.shortest_path import edge_table
from benchmarks.estimators import digits_world
from benchmarks.head_training import Head, Training, World, trained, world_of
from benchmarks.patch_world import DEFAULTS, RIDGE, SIDE, even_process, grey_patches
from benchmarks.protocol import describe
from covariance.rules import SpectralHead

IMAGES, DRAWS = 4000, 1000  # of the moments that the head is scaled by
HEAD = "spectral head"
Curve = tuple[Array, Array]
"""What there is and what is used instead, at each of the times, states x axes: [T, n or 1, F]."""
Moments = Callable[[Tensor, float, float], Tensor]
"""States [n, ...], alpha and sigma -> second moments of x_0 - x0_hat there, [n, d, d]."""


def covariances(mixture: Mixture, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Cov[x_0 | x_t = x], [n, d, d]: over components, the mean of their covariances and the scatter of their means."""
    assert mixture.basis is not None
    delta = x.flatten(1)[:, None] - alpha * mixture.means  # [n, K, d]
    marginal = alpha**2 * mixture.spectrum + sigma**2
    rotated = torch.einsum("kji,bkj->bki", mixture.basis, delta)
    weight = torch.softmax(mixture.weights.log() - 0.5 * (rotated.square() / marginal + marginal.log()).sum(2), 1)
    means = mixture.means + torch.einsum("kij,bkj->bki", mixture.basis, alpha * mixture.spectrum / marginal * rotated)
    within = (mixture.basis * (mixture.spectrum * sigma**2 / marginal)[:, None]) @ mixture.basis.mT  # [K, d, d]
    off = means - (weight[:, :, None] * means).sum(1, keepdim=True)
    return torch.einsum("bk,kij->bij", weight, within) + (weight[:, :, None] * off).mT @ off


def states(mixture: Mixture, process: DiscreteProcess, k: int, n: int, seed: int) -> Tensor:
    """x_t at the k-th of the times 1..N, [n, 1, 8, 8]."""
    t = process.times[k]
    eps = KeyedNoise(seed, "patch states")(torch.arange(n), k, mixture.shape).double()
    return float(process.alpha(t)) * mixture.sample(n, ((seed + 1) << 32) - k) + float(process.sigma(t)) * eps


def cosine_axes() -> Tensor:
    """The axes of the cosine transform of a patch, in rows."""
    cosines = dct(np.eye(SIDE), axis=0, norm="ortho")
    return torch.from_numpy(np.kron(cosines, cosines))


def principal_axes(mixture: Mixture) -> Tensor:
    """The eigenvectors of a mixture's covariance, in rows."""
    assert mixture.basis is not None
    within = (mixture.basis * mixture.spectrum[:, None]) @ mixture.basis.mT
    off = mixture.means - mixture.mean()
    scatter = within + off[:, :, None] * off[:, None]
    return torch.linalg.eigh((mixture.weights[:, None, None] * scatter).sum(0)).eigenvectors.mT


def kinds(c: Tensor, name: str, q: Tensor) -> dict[str, Array]:
    """Variances [n, F] of each kind of covariance that knows the state, of C [n, d, d]; a basis and its name."""
    found = {
        "scalar": c.diagonal(dim1=1, dim2=2).mean(1, keepdim=True),
        "pixel": c.diagonal(dim1=1, dim2=2),
        name: (q @ c @ q.mT).diagonal(dim1=1, dim2=2),
        "full": torch.linalg.eigvalsh(c),
    }
    return {f"{name} per state": values.numpy() for name, values in found.items()}


def matrices(
    mixture: Mixture, process: DiscreteProcess, n: int, seed: int, moments: Moments | None = None
) -> Iterator[Tensor]:
    """At n states of each time, [n, d, d]: Cov[x_0 | x_t], or other moments."""
    for k, t in enumerate(process.times[1:], 1):
        x, scales = states(mixture, process, k, n, seed), (float(process.alpha(t)), float(process.sigma(t)))
        yield moments(x, *scales) if moments else covariances(mixture, x, *scales)


def curves_of(each_time: Iterable[Tensor], basis: str = "DCT", q: Tensor | None = None) -> dict[str, Curve]:
    """What each kind sees of such matrices, and what their means over states are; cosines unless given."""
    axes = cosine_axes() if q is None else q
    rows: dict[str, list[Array]] = {}
    for c in each_time:
        for name, values in kinds(c, basis, axes).items():
            rows.setdefault(name, []).append(values)
    each = {name: np.stack(values) for name, values in rows.items()}
    means = {name: each[f"{name} per state"].mean(1, keepdims=True) for name in ("scalar", "pixel", basis)}
    return {name: (values, values) for name, values in (means | each).items()}


def head_curve(world: World, head: Head, exact: Array, seed: int) -> Curve:
    """A spectral head's variances at the states of `matrices`, beside the exact ones."""
    process, used = world.process, []
    assert isinstance(process, DiscreteProcess)
    rule = SpectralHead(world.known_scale, process)
    for k, t in enumerate(process.times[1:], 1):
        x = states(world.mixture, process, k, exact.shape[1], seed)
        with torch.no_grad():
            says = rule.parameter(reverse_kernel(process, t, 0.0), world.predict(head, x, np.asarray(t))).values
        used.append(torch.as_tensor(says).flatten(1).numpy())
    return exact, np.stack(used)


def planned(process: DiscreteProcess, curve: Curve, most: int) -> Planner:
    """The least-cost paths of up to `most` steps, priced by KL terms in bits/dim."""
    exact, used = curve
    snr = np.exp(process.log_snr(process.times[1:]))

    def column(t: int) -> Array:
        c, w = exact[t - 1].ravel(), used[t - 1].ravel()
        return np.array([np.mean(np.log1p(d * w) + d * (c - w) / (1.0 + d * w)) for d in snr[: t - 1] - snr[t - 1]]) / (
            2.0 * math.log(2.0)
        )

    table = edge_table(process.steps, column)
    table[0] = first_edges(process, None)
    return planner(measured_costs(table), most)


def bits(process: DiscreteProcess, curve: Curve, budgets: Sequence[int]) -> Array:
    """KL terms of the least-cost paths, bits/dim."""
    found = planned(process, curve, max(budgets))
    return np.array([found.plan(k).raw for k in budgets])


def mixture_of(patches: int, components: int, seed: int) -> Mixture:
    """The mixture of a seed's world."""
    crops = grey_patches(patches, seed)
    return fit_mixture(Source.of(lambda index: crops[index], len(crops)), components, ridge=RIDGE, clusters="em")


def report(told: dict[str, list[Array]], budgets: Sequence[int]) -> None:
    """Means over worlds, with standard errors where there are several."""
    print("| covariance | " + " | ".join(f"K = {k}" for k in budgets) + " |\n" + "|---" * (len(budgets) + 1) + "|")
    for name, rows in told.items():
        mean, several = np.mean(rows, 0), len(rows) > 1
        error = np.std(rows, 0, ddof=1) / math.sqrt(len(rows)) if several else mean
        cells = [f"{m:.2f} ± {e:.2f}" if several else f"{m:.3f}" for m, e in zip(mean, error, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def trained_head(args: argparse.Namespace, mixture: Mixture) -> tuple[World, Head, dict[str, Any]]:
    """The spectral head of a world, trained as the arguments say unless there is one; and what its file says."""
    world = world_of(mixture, even_process(args.times), IMAGES, args.times, DRAWS, 0, "dct")
    options = Training(
        args.minutes, args.iterations, args.batch, args.rate, "log_snr", 0.999, args.width, args.blocks, 0,
        options={"bound_step": args.bound_step},
        pool=args.pool,
    )  # fmt: skip
    return world, *trained(world, "spectral_head", options, args.workdir)


def arguments(description: str) -> argparse.ArgumentParser:
    """Of the worlds, and of the head that is trained in the first one."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("patches", "components", "times"):
        parser.add_argument(f"--{name}", type=int, default=DEFAULTS[name])
    parser.add_argument("--states", type=int, default=1000, help="per time and world")
    parser.add_argument("--seeds", type=int, default=3, help="worlds")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 25])
    parser.add_argument("--minutes", type=float, default=7.0, help="of one core's time, to train the head")
    parser.add_argument("--iterations", type=int, default=0, help="stop after so many; 0 = when the minutes are over")
    parser.add_argument("--bound-step", type=float, default=4.0, help="of the objective, in log-SNR; 0: long steps")
    parser.add_argument(
        "--pool", type=int, default=1500, help="batches, which come again and again; 0: always new ones"
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=2, help="before the last one")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--workdir", type=Path, default=Path("runs/patch_states"))
    return parser


def main() -> None:
    parser = arguments("covariances that know the state, in worlds of natural patches")
    parser.add_argument("--digits", action="store_true", help="a Gaussian for each class of digits instead; no head")
    args = parser.parse_args()
    torch.set_num_threads(1)
    process = even_process(args.times)
    describe("Covariances that know the state, in worlds of natural patches")
    if args.digits:
        data = digits_world()
        exact = curves_of(matrices(data, process, args.states, 0), "PCA", principal_axes(data))
        print(f"Digits, a Gaussian for each class; {args.times} times, {args.states} states a time.\n")
        return report({name: [bits(process, curve, args.steps)] for name, curve in exact.items()}, args.steps)
    print(f"{args.patches} patches, {args.components} components, {args.times} times, {args.states} states a time.")
    mixtures = [mixture_of(args.patches, args.components, seed) for seed in range(args.seeds)]
    curves = [curves_of(matrices(mixture, process, args.states, seed)) for seed, mixture in enumerate(mixtures)]
    told = {name: [bits(process, world[name], args.steps) for world in curves] for name in curves[0]}
    print(f"KL terms of least-cost paths, eta = 1, bits/dim; ± the standard error over {args.seeds} worlds.\n")
    report(told, args.steps)
    world, head, header = trained_head(args, mixtures[0])
    print("\n" + ", ".join(f"{key} {value}" for key, value in header.items()), flush=True)
    own = {HEAD: [bits(process, head_curve(world, head, curves[0]["DCT per state"][0], 0), args.steps)]}
    print("\nIn the world of seed 0:\n")
    report({name: rows[:1] for name, rows in told.items()} | own, args.steps)
    gap = own[HEAD][0] - told["DCT per state"][0]
    print(
        "\nhead above DCT per state: " + ", ".join(f"{g:.3f} at K = {k}" for g, k in zip(gap, args.steps, strict=True))
    )


if __name__ == "__main__":
    main()
